"""Losses by name, one value per sample: the loop sums them, so that every sample of a global batch weighs the same on
any number of ranks.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from bigmodel.trainer.errors import InvalidRecipe

# (outputs_BO, targets_BO) → losses_B. B samples, O outputs of each.
Loss = Callable[[Tensor, Tensor], Tensor]


def mse(outputs_BO: Tensor, targets_BO: Tensor) -> Tensor:
    return functional.mse_loss(outputs_BO, targets_BO, reduction="none").mean(dim=1)


def mae(outputs_BO: Tensor, targets_BO: Tensor) -> Tensor:
    return functional.l1_loss(outputs_BO, targets_BO, reduction="none").mean(dim=1)


def huber(outputs_BO: Tensor, targets_BO: Tensor) -> Tensor:
    return functional.huber_loss(outputs_BO, targets_BO, reduction="none", delta=1.0).mean(dim=1)


LOSSES: dict[str, Loss] = {"mse": mse, "mae": mae, "huber": huber}


def loss_by_name(name: str) -> Loss:
    if name not in LOSSES:
        raise InvalidRecipe(f"spec.recipe.loss is {name!r}, this recipe has {', '.join(LOSSES)}")
    return LOSSES[name]
