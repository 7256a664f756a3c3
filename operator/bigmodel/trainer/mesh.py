"""One object that checks the parallel degrees against the number of ranks, builds the device mesh and hands out its
axes by name.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from bigmodel.api.job import Parallelism
from bigmodel.trainer.errors import InvalidMesh

# Outermost first: pipeline stages talk least and tensor-parallel ranks most, so those are neighbours on one node.
AXES = ("pipeline", "data", "shard", "tensor")


@dataclass(frozen=True)
class Degrees:
    """Ranks along each axis. Their product is the world size."""

    pipeline: int
    data: int
    shard: int
    tensor: int

    def __str__(self) -> str:
        sizes = [f"{axis} {getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        return " × ".join(sizes) or "1 rank"


def degrees(parallelism: Parallelism, world_size: int) -> Degrees:
    """`data: auto` takes what the other three leave of the world. Raises InvalidMesh with the arithmetic."""
    others = parallelism.pipeline * parallelism.shard * parallelism.tensor
    data = world_size // others if parallelism.data == "auto" else parallelism.data
    if data < 1 or data * others != world_size:
        raise InvalidMesh(
            f"spec.parallelism: pipeline × data × shard × tensor = {parallelism.pipeline} × {parallelism.data} "
            f"× {parallelism.shard} × "
            f"{parallelism.tensor}, but nodes × processesPerNode = {world_size} ranks; make the product equal "
            "to that, or set data: auto "
            f"and let pipeline × shard × tensor = {others} divide it"
        )
    return Degrees(parallelism.pipeline, data, parallelism.shard, parallelism.tensor)


def build_mesh(wanted: Degrees, device: torch.device) -> DeviceMesh:
    """Collective. Axes of one rank are left out, as each would cost a process group; `data` is always there, and
    `shard` beside replicas of a model that is split: FSDP2 averages their gradients, as DDP takes no DTensor.
    """
    sizes = {axis: getattr(wanted, axis) for axis in AXES}
    needed = {"data"} | ({"shard"} if wanted.data > 1 and wanted.tensor > 1 else set())
    axes = tuple(axis for axis in AXES if sizes[axis] > 1 or axis in needed)
    return init_device_mesh(device.type, tuple(sizes[axis] for axis in axes), mesh_dim_names=axes)


def sample_ranks(mesh: DeviceMesh) -> dist.ProcessGroup:
    """The ranks among which a global batch is shared out: those along data and shard. Collective."""
    if "shard" not in (mesh.mesh_dim_names or ()):
        return mesh.get_group("data")
    return mesh["data", "shard"]._flatten("samples").get_group()
