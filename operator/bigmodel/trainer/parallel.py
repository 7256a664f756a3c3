"""Applies parallelism from outside to a plain model: tensor parallel, then recomputation, then FSDP2 or DDP.

The model keeps its names whatever is applied, so that checkpoints and artefacts of all layouts are those of the plain
one. Order and ownership as in torchtitan's `parallelize_*` functions.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from bigmodel.trainer.errors import InvalidMesh
from bigmodel.trainer.recipes.task import Plan

STYLES: dict[str, type[ParallelStyle]] = {"columns": ColwiseParallel, "rows": RowwiseParallel}


def parallelize(
    model: nn.Module, plan: Plan, mesh: DeviceMesh, data: dist.ProcessGroup, *, recompute: bool
) -> nn.Module:
    """`model`, on its device and equal on all ranks, spread over `mesh` (of `mesh.build_mesh`). Collective.

    Args:   data: the ranks that see different samples. recompute: the activations of `plan.blocks` in the backward
            pass.
    Raises: InvalidMesh where the plan cannot be split that often.
    """
    axes = mesh.mesh_dim_names or ()
    if "pipeline" in axes:
        raise InvalidMesh("spec.parallelism.pipeline: this version has no pipelines; set it to 1")
    if "tensor" in axes:
        _check_tensor_plan(model, plan, mesh["tensor"].size())
        parallelize_module(model, mesh["tensor"], {name: STYLES[way]() for name, way in plan.tensor.items()})
    blocks = [model.get_submodule(name) for name in plan.blocks]
    if recompute:
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if "shard" not in axes:
        if "tensor" in axes:
            return model  # its ranks see the same samples, and there is no one else to agree with
        return DistributedDataParallel(
            model, process_group=data, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
    shards = mesh["data", "shard"]
    for module in (*blocks, model):
        # The outermost one too, which torch leaves whole after a forward: whoever saves after an evaluation would find
        # other parameters in the model than those that the optimizer updates.
        fully_shard(module, mesh=shards, reshard_after_forward=True)
    return model


def accumulating(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Around one micro-batch: gradients are averaged over ranks in the `last` one only."""
    if isinstance(model, DistributedDataParallel):
        return nullcontext() if last else model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    return nullcontext()


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale all gradients so that their L2 norm over the whole model is at most `limit`; returns the norm before.
    Collective where parameters are sharded; equal on all ranks.

    torch's own function stacks the norms, which must then all live on one mesh; here they may live on several, or on
    none.
    """
    groups: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in parameters:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups.setdefault(mesh, []).append(parameter)
    norms = [_norm(group) for group in groups.values()]
    total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for group in groups.values():
        nn.utils.clip_grads_with_norm_(group, limit, total)
    return float(total)


def gather(model: nn.Module, plain: nn.Module, rank: int) -> nn.Module | None:
    """`plain` with the whole parameters and buffers of `model`, on the CPU; None but on rank 0. Collective."""
    whole = {}
    for name, value in model.state_dict().items():  # one at a time: the whole model need not fit onto a GPU
        tensor = value.full_tensor() if isinstance(value, DTensor) else value
        whole[name] = tensor.cpu() if rank == 0 else None
    if rank != 0:
        return None
    plain = plain.cpu()
    plain.load_state_dict(whole)
    return plain


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _check_tensor_plan(model: nn.Module, plan: Plan, ranks: int) -> None:
    if not plan.tensor:
        raise InvalidMesh(
            f"spec.parallelism.tensor is {ranks}, but this recipe (with these parameters) has no layers that can be "
            "split; set tensor: 1 and use data or shard"
        )
    for name, way in plan.tensor.items():
        weight = model.get_submodule(name).get_parameter("weight")
        width = weight.shape[0 if way == "columns" else 1]
        if width % ranks:
            raise InvalidMesh(
                f"spec.parallelism.tensor is {ranks}, but {name} is {width} wide and {width} % {ranks} = "
                f"{width % ranks}; choose a divisor of {width} or another width"
            )
