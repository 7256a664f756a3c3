"""The seven variants of gradient descent by name: a thin mapping to torch.optim."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn, optim

from bigmodel.api.job import Optimizer
from bigmodel.trainer.errors import InvalidRecipe

# name → class and what makes it that variant. `parameters` of the spec are added and win.
VARIANTS: dict[str, tuple[type[optim.Optimizer], dict[str, Any]]] = {
    "sgd": (optim.SGD, {}),
    "momentum": (optim.SGD, {"momentum": 0.9}),
    "nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (optim.Adagrad, {}),
    "rmsprop": (optim.RMSprop, {}),
    "adam": (optim.Adam, {}),
    "adamw": (optim.AdamW, {}),
}


def build_optimizer(
    wanted: Optimizer, parameters: Iterable[nn.Parameter], learning_rates: Mapping[str, float]
) -> optim.Optimizer:
    """`learning_rates`: the recipe's own, by name of the variant, for a spec that gives none.

    Raises InvalidRecipe for an argument that the torch class does not have, or a value that it refuses.
    """
    kind, variant = VARIANTS[wanted.name]
    known = set(inspect.signature(kind).parameters) - {"params", "lr"}
    for key in wanted.parameters:
        if key not in known:
            raise InvalidRecipe(
                f"spec.recipe.optimizer.parameters has {key!r}, torch.optim.{kind.__name__} takes "
                f"{', '.join(sorted(known))}; the learning rate is spec.recipe.optimizer.learningRate"
            )
    arguments = {**variant, **{key: _plain(value) for key, value in wanted.parameters.items()}}
    rate = learning_rates[wanted.name] if wanted.learning_rate is None else wanted.learning_rate
    try:
        optimizer = kind(parameters, lr=rate, **arguments)  # type: ignore[call-arg]  # every variant has lr
    except (TypeError, ValueError) as error:
        raise InvalidRecipe(
            f"spec.recipe.optimizer.parameters: torch.optim.{kind.__name__} refuses {arguments}: {error}"
        ) from error
    for group in optimizer.param_groups:
        group["initial_lr"] = rate  # what the schedule scales; torch's own name, kept in the optimizer's state
    return optimizer


def _plain(value: Any) -> Any:
    """JSON has no tuples; torch wants them (betas)."""
    return tuple(value) if isinstance(value, list) else value
