"""What a recipe hands to the loop and to publishing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Generator, Tensor, nn

from bigmodel.artifact.manifest import Signature
from bigmodel.trainer.losses import Loss


@dataclass(frozen=True)
class Samples:
    """N samples in memory: what the model takes and what it should answer. The first axis of both is the sample."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Task:
    """`model` is what is served: it takes the signature's one input and answers in the unit of the targets."""

    model: nn.Module
    train: Samples
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
    data_uri: str
    data_digest: str
    validation_digest: str
