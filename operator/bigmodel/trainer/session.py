"""For own scripts: five lines that make a PyTorch loop survive whatever happens to it.

Before                                               After

                                                     from bigmodel.trainer import Session

                                                     with Session() as session:                             # 1
    model, optimizer = …                                 model, optimizer = …
                                                         state = {"model": model, "optimizer": optimizer}   # 2
    for step in range(1000):                             for step in session.steps(1000, state):            # 3
        loss = …                                             loss = …
        loss.backward(); optimizer.step()                    loss.backward(); optimizer.step()
                                                             session.report(loss=loss.item())               # 4
    torch.save(model.state_dict(), "model.pt")           session.publish(model, inputs[:8])                 # 5

The script still runs as `python train.py` and `torchrun train.py`: reports go nowhere then, and checkpoints to
`Session(directory="…")`, or nowhere without one.
"""

import copy
import inspect
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bigmodel.api.job import Checkpoint
from bigmodel.api.names import ENV_GENERATION, ENV_REPORT_SOCKET, ENV_TRAINING_RUN
from bigmodel.api.progress import ArtifactSummary, RunPhase
from bigmodel.api.run import StoreLocation, TrainingRun
from bigmodel.artifact.layout import checkpoints_key
from bigmodel.artifact.manifest import BATCH, DataType, Dimension, Provenance, Signature
from bigmodel.artifact.manifest import Tensor as TensorSpec
from bigmodel.artifact.stores import Store, open_store
from bigmodel.trainer.checkpoint.cadence import Cadence
from bigmodel.trainer.checkpoint.checkpoints import Checkpoints, checkpoint_group
from bigmodel.trainer.checkpoint.state import State, unwrapped
from bigmodel.trainer.errors import InvalidModel
from bigmodel.trainer.notices import notices_of, outlive_sigterm
from bigmodel.trainer.parallel import gather
from bigmodel.trainer.process import choose_device, process_group, rank_of
from bigmodel.trainer.publish import (
    PACKAGE,
    Inputs,
    Product,
    code_digest,
    frameworks,
    golden_batches,
    publish_product,
)
from bigmodel.trainer.report import Reporter, metric_list
from bigmodel.trainer.saving import Saving, Wish, failures_of

TIMEOUT_SECONDS = 1800  # of a collective, without a launcher: torch's own default
MAX_BATCH = 1024
LOCAL = "local"  # namespace, uid and image of what was made without a launcher

log = logging.getLogger(__name__)


class Session:
    """This process as one rank of a training. Used as a context, once, by every rank.

    It joins the gang (unless the script called `init_process_group` before), and tells the launcher that training is
    done when the context ends without an exception.

    Args: directory: where checkpoints and the published model go without a launcher; all ranks must see the same one.
          every_seconds, keep: how often a checkpoint is made there, and how many stay. Under BigModel all three follow
          `spec.store` and `spec.checkpoint` instead.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device  # this rank's GPU, or the CPU

    def __init__(self, directory: str | Path | None = None, *, every_seconds: int = 600, keep: int = 3) -> None:
        self._directory = directory
        self._checkpoint = Checkpoint(every_seconds=every_seconds, keep=keep)
        self._stack = ExitStack()
        self._metrics: dict[str, float] = {}
        self._step = 0
        self._artifact: ArtifactSummary | None = None

    def __enter__(self) -> Self:
        environ = dict(os.environ)
        self._run = TrainingRun.model_validate_json(environ[ENV_TRAINING_RUN]) if ENV_TRAINING_RUN in environ else None
        rank = rank_of(environ, ENV_GENERATION)
        outlive_sigterm(environ)
        _speak(rank.rank, rank.local_rank)
        self._report = Reporter(rank.rank, rank.generation, environ.get(ENV_REPORT_SOCKET), time.monotonic)
        self._stack.callback(self._report.close)
        self._report.enter(RunPhase.STARTING)
        self.local_rank = rank.local_rank
        self.device = choose_device(rank)
        if not dist.is_initialized():
            timeout = self._run.budgets.hang_timeout_seconds if self._run is not None else TIMEOUT_SECONDS
            self._stack.enter_context(process_group(rank, self.device, timeout, environ))
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._group = checkpoint_group()
        self._store = self._open_store(environ)
        if self._run is not None:
            self._checkpoint = self._run.checkpoint
        self._saving = Saving(
            self._checkpoints(environ),
            Cadence(self._checkpoint, failures=failures_of(self._run, rank.generation)),
            notices_of(environ),
            self._report,
            time.monotonic,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            if self._artifact is not None:
                self._saving.published(self._checkpoint.keep_after_success)
            self._report.enter(RunPhase.DONE, artifact=self._artifact)
        self._stack.__exit__(kind, error, trace)

    def steps(self, total: int, state: State) -> Iterator[int]:
        """The steps still to make: from 0, or from where the newest checkpoint was made, up to `total` - 1.

        `state` is put back first, and saved between steps whenever one is due or asked for, and after the last step.
        What it may hold: models (plain, DDP or FSDP2) and their optimizers, anything else with `state_dict` and
        `load_state_dict`, tensors, numbers, text, and lists, tuples and dicts of these; numbers and the like are
        replaced in `state` itself. A checkpoint may be taken up by another number of ranks.

        Whatever a step draws at random or reads must follow from `step` (`torch.manual_seed(step)`), or be part of
        `state`. Every rank must make the same steps. Costs one small all_reduce a step.

        Raises: SystemExit(143) where BigModel wants the pods, after a checkpoint.
        """
        self._report.total_steps = total
        self._step = self._saving.resume(state)
        while self._step < total:
            yield self._step
            self._step += 1
            self._report.stepped(self._step, self._metrics)
            wish = self._saving.wish(self._step)
            votes = torch.tensor([wish.save, wish.leave], dtype=torch.int32)
            dist.all_reduce(votes, group=self._group)
            save, leave = votes.tolist()
            # Unlike a recipe, a script may publish nothing: then the last checkpoint is all that is left of it.
            agreed = Wish(save=save > 0 or self._step == total, leave=leave > 0)
            self._saving.obey(agreed, state, self._step, last=False)

    def report(self, **metrics: float) -> None:
        """Numbers of this step, by name, for `kubectl get bmj` and its status; rank 0's are shown, the first eight."""
        self._metrics.update({name: float(value) for name, value in metrics.items()})

    def publish(
        self,
        model: nn.Module,
        example_inputs: Tensor | Inputs,
        *,
        plain: nn.Module | None = None,
        max_batch: int = MAX_BATCH,
    ) -> ArtifactSummary | None:
        """Publish `model` as an artefact that a BigModelService serves. Every rank must call it; rank 0 does it.

        Args:   example_inputs: real samples, the first axis is the batch; one tensor for each argument of `forward`.
                Up to 64 of them become golden samples (spec.output.golden: none or random, where they are personal).
                plain: a new instance of the same model, for one that is sharded (FSDP2): it takes the parameters.
                max_batch: the largest batch that a server may put together.
        Returns: what was published; None on other ranks, and without a launcher and a directory.
        Raises: InvalidModel, ExportMismatch, whatever torch.export says, errors of the store. Nothing is published
                then.
        """
        inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
        whole = _unsharded(unwrapped(model), plain, self.rank)
        if self.rank != 0 or self._store is None or whole is None:
            return None
        self._report.enter(RunPhase.PUBLISHING)
        output = self._run.output if self._run is not None else None
        inputs = tuple(tensor.detach().cpu() for tensor in inputs)
        kind: Literal["validation", "random", "none"] = output.golden if output is not None else "validation"
        product = Product(
            model=whole,
            signature=signature_of(whole, inputs, max_batch),
            example=tuple(torch.cat([tensor[:1], tensor[-1:]]) for tensor in inputs),
            golden=golden_batches(inputs if kind == "validation" else tuple(map(_random_like, inputs))),
            golden_kind=kind,
            precision=_precision(whole),
            metrics=metric_list(self._metrics),
            validation=None,
            provenance=self._provenance(),
        )
        self._artifact = publish_product(product, output.serve if output is not None else "default", self._store)
        log.info("published %s (%d bytes)", self._artifact.uri, self._artifact.size_bytes)
        return self._artifact

    def _open_store(self, environ: Mapping[str, str]) -> Store | None:
        if self._run is not None:
            return open_store(self._run.store, environ)
        if self._directory is None:
            return None
        return open_store(StoreLocation(uri=Path(self._directory).absolute().as_uri()), environ)

    def _checkpoints(self, environ: Mapping[str, str]) -> Checkpoints | None:
        if self._store is None:
            return None
        run = self._run
        root = "checkpoint" if run is None else checkpoints_key(run.namespace, run.job, run.uid)
        attempt = 1 if run is None else run.attempt
        generation = self._report.generation if ENV_GENERATION in environ else None
        return Checkpoints(self._store, root, self._group, attempt, generation, self._checkpoint.keep)

    def _provenance(self) -> Provenance:
        run = self._run
        script = Path(getattr(sys.modules["__main__"], "__file__", None) or sys.argv[0]).absolute()
        return Provenance(
            namespace=run.namespace if run is not None else LOCAL,
            job=run.job if run is not None else script.stem or LOCAL,
            uid=run.uid if run is not None else LOCAL,
            attempt=run.attempt if run is not None else 1,
            step=self._step,
            image=run.image if run is not None else LOCAL,
            code=code_digest(PACKAGE, *([script.parent] if script.is_file() else [])),
            frameworks=frameworks(),
        )


def signature_of(model: nn.Module, inputs: Inputs, max_batch: int) -> Signature:
    """What the model takes and answers: names from `forward` and, for a dict of answers, its keys. Raises
    InvalidModel.
    """
    names = list(inspect.signature(model.forward).parameters)[: len(inputs)]
    if len(names) < len(inputs) or len({len(tensor) for tensor in inputs}) != 1 or not len(inputs[0]):
        raise InvalidModel(
            f"publish got example inputs of shapes {', '.join(str(tuple(tensor.shape)) for tensor in inputs)} for "
            f"forward({', '.join(names)}); give one tensor for each argument, all with the same number of samples"
        )
    with torch.no_grad():
        answer = model(*inputs)
    if isinstance(answer, Tensor):
        answers = {"output": answer}
    elif isinstance(answer, Mapping):
        answers = dict(answer)
    else:
        answers = {f"output_{number}": tensor for number, tensor in enumerate(answer)}
    for name, tensor in answers.items():
        if not isinstance(tensor, Tensor) or tensor.shape[:1] != inputs[0].shape[:1]:
            raise InvalidModel(
                f"{name} of the model is {tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor)} for "
                f"{len(inputs[0])} samples; every answer must be a tensor whose first axis is the batch"
            )
    return Signature(
        inputs=[_spec(name, tensor) for name, tensor in zip(names, inputs, strict=True)],
        outputs=[_spec(name, tensor) for name, tensor in answers.items()],
        dimensions={BATCH: Dimension(minimum=1, maximum=max_batch)},
    )


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    datatype = str(tensor.dtype).removeprefix("torch.")
    if datatype not in set(DataType):
        raise InvalidModel(f"{name} has element type {datatype}; Triton takes {', '.join(DataType)}: convert it")
    return TensorSpec(name=name, datatype=DataType(datatype), shape=[BATCH, *tensor.shape[1:]])


def _precision(model: nn.Module) -> Literal["fp32", "bf16", "fp16"]:
    """Of the coarsest parameters: it chooses the tolerance that servers are held to."""
    types = {parameter.dtype for parameter in model.parameters()}
    return "bf16" if torch.bfloat16 in types else "fp16" if torch.float16 in types else "fp32"


def _random_like(tensor: Tensor) -> Tensor:
    """Inputs of about the right size from mean, deviation and range only: golden samples without personal data."""
    generator = torch.Generator().manual_seed(0)
    count = (64, *tensor.shape[1:])
    if tensor.is_floating_point():
        deviation, mean = torch.std_mean(tensor.float(), dim=0, correction=0)
        return (mean + deviation * torch.randn(count, generator=generator)).to(tensor.dtype)
    low, high = int(tensor.min()), int(tensor.max())
    return torch.randint(low, high + 1, count, generator=generator).to(tensor.dtype)


def _unsharded(model: nn.Module, plain: nn.Module | None, rank: int) -> nn.Module | None:
    """A copy with whole parameters on the CPU, in evaluation mode; None but on rank 0. Collective for a sharded one."""
    if any(isinstance(value, DTensor) for value in model.state_dict().values()):
        if plain is None:
            raise InvalidModel(
                "the model is sharded (its parameters are DTensors) and cannot be exported as it is; give a new "
                "instance of it: session.publish(model, inputs, plain=Model())"
            )
        whole = gather(model, plain, rank)
        return whole.eval() if whole is not None else None
    return copy.deepcopy(model).cpu().eval() if rank == 0 else None


def _speak(rank: int, local_rank: int) -> None:
    """Show what this package logs, one voice for each pod, unless the script set up logging itself."""
    ours = logging.getLogger("bigmodel")
    if not ours.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(message)s", "%H:%M:%S"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO if local_rank == 0 else logging.WARNING)
