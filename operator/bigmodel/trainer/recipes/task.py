"""What a recipe hands to the loop and to publishing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Generator, Tensor, nn

from bigmodel.artifact.manifest import Signature
from bigmodel.trainer.data.order import BatchOrder, Indices, Order
from bigmodel.trainer.losses import Loss


class Rows(Protocol):
    """N samples, in memory or read when they are asked for. Equal on all ranks, whatever each of them reads of it."""

    def __len__(self) -> int: ...

    def rows(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """(inputs, targets) of these samples, on the CPU. The first axis of both is the sample; none may be asked for.

        Raises: BadRecord.
        """

    def order(self, batch_size: int, seed: int) -> BatchOrder:
        """Which samples make up which global batch: what suits the way these are kept."""

    def expect(self, indices: Indices) -> None:
        """These will be asked for next: whoever has to read them may begin. Returns at once."""


@dataclass(frozen=True)
class Samples:
    """N samples in memory: what the model takes and what it should answer. The first axis of both is the sample."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, indices: Indices) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(indices)
        return self.inputs[chosen], self.targets[chosen]

    def order(self, batch_size: int, seed: int) -> BatchOrder:
        return Order(len(self), batch_size, seed)

    def expect(self, indices: Indices) -> None:
        """Nothing to read."""


@dataclass(frozen=True)
class Plan:
    """How a model may be taken apart, by the names of its modules. The default suits every model: FSDP2 shards it as
    one unit, recomputation has nothing to recompute, and tensor parallelism is refused.

    A recipe for a transformer of two layers: `Plan(blocks=("layers.0", "layers.1"), tensor={"layers.0.mlp.up":
    "columns", "layers.0.mlp.down": "rows", …})`. What runs between the two is seen by each rank for its part of the
    features only, so it must work on each feature alone.
    """

    # Large repeated parts, in the order in which they run: units of FSDP2 and of activation checkpointing. The rest
    # of the model is one more unit of FSDP2.
    blocks: tuple[str, ...] = ()
    # Linear layers: `columns` splits what a layer gives (its result stays split), `rows` what it takes (a split input,
    # a whole result). Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
    tensor: Mapping[str, Literal["columns", "rows"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """`model` is what is served: it takes the signature's one input and answers in the unit of the targets."""

    model: nn.Module
    train: Rows
    validation: Samples
    loss: Loss
    # Validation metrics, one value per sample; the mean over all samples is reported, in the unit of the data.
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
    # What simpler models reach on the same validation samples. Called when publishing: a restart must not wait for it.
    baselines: Callable[[], Mapping[str, float]]
    signature: Signature
    steps: int  # updates to make when the spec names neither steps nor epochs
    learning_rates: Mapping[str, float]  # by name of the optimizer, when the spec gives none
    # (samples, generator) → inputs of about the right size, made from statistics only: golden samples without
    # personal data
    random_inputs: Callable[[int, Generator], Tensor]
    # Other parameters of the recipe → a new model of this task (a student), with statistics of the data in its buffers
    # and random weights. Raises InvalidRecipe.
    build_model: Callable[[Mapping[str, Any]], nn.Module]
    data_uri: str
    data_digest: str
    validation_digest: str
    # Metrics that are functions of the means above, not means themselves: val_rmse of val_mse.
    derived: Mapping[str, Callable[[Mapping[str, float]], float]] = field(default_factory=dict)
    plan: Plan = Plan()
    evaluations: int = 20  # over a whole run: fewer where validation is large beside training

    @property
    def metric_names(self) -> list[str]:
        return [*self.metrics, *self.derived]

    def reported(self, means: Mapping[str, float]) -> dict[str, float]:
        """All validation metrics, from the means over the validation samples."""
        return {**means, **{name: derive(means) for name, derive in self.derived.items()}}
