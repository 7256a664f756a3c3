"""Losses by name, one value per sample: the loop sums them, so that every sample of a global batch weighs the same on
any number of ranks. Metrics have the same form.

Shapes: B samples, O outputs of each, C classes, … any further axes, over which a sample's value is the mean.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bigmodel.trainer.errors import InvalidRecipe

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) → losses_B


def mse(outputs_BO: Tensor, targets_BO: Tensor) -> Tensor:
    return functional.mse_loss(outputs_BO, targets_BO, reduction="none").mean(dim=1)


def mae(outputs_BO: Tensor, targets_BO: Tensor) -> Tensor:
    return functional.l1_loss(outputs_BO, targets_BO, reduction="none").mean(dim=1)


def huber(outputs_BO: Tensor, targets_BO: Tensor) -> Tensor:
    return functional.huber_loss(outputs_BO, targets_BO, reduction="none", delta=1.0).mean(dim=1)


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """logits_B…C, classes_B… (integers) → nats_B."""
    nats = functional.cross_entropy(logits.flatten(0, -2), classes.flatten().long(), reduction="none")
    return _per_sample(nats.view(classes.shape))


def bce(logits: Tensor, classes: Tensor) -> Tensor:
    """One class against the rest, each with a sigmoid of its own: logits_B…C, classes_B… (integers) → nats_B, the sum
    over the C questions.
    """
    wanted = functional.one_hot(classes.long(), logits.shape[-1]).to(logits.dtype)
    return _per_sample(functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=-1))


def accuracy(logits: Tensor, classes: Tensor) -> Tensor:
    """A metric: 1 where the largest logit is that of the class. logits_B…C, classes_B… → shares_B."""
    return _per_sample((logits.argmax(dim=-1) == classes).to(torch.float32))


def _per_sample(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1) if values.dim() > 1 else values


LOSSES: dict[str, Loss] = {"mse": mse, "mae": mae, "huber": huber, "cross-entropy": cross_entropy, "bce": bce}
OF_NUMBERS = ("mse", "mae", "huber")
OF_CLASSES = ("cross-entropy", "bce")


def loss_by_name(name: str | None, possible: Sequence[str]) -> Loss:
    """`possible`: those that fit the targets of a recipe, its own first. Raises InvalidRecipe for another one."""
    if name is None:
        return LOSSES[possible[0]]
    if name not in possible:
        raise InvalidRecipe(f"spec.recipe.loss is {name!r}, this recipe has {', '.join(possible)}")
    return LOSSES[name]
