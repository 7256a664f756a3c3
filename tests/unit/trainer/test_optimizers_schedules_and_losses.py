from typing import Any

import pytest
import torch
from torch import nn, optim

from bigmodel.api.job import Optimizer, Schedule
from bigmodel.trainer.errors import InvalidRecipe
from bigmodel.trainer.losses import OF_CLASSES, OF_NUMBERS, Loss, accuracy, bce, cross_entropy, loss_by_name
from bigmodel.trainer.optimizers import VARIANTS, build_optimizer
from bigmodel.trainer.schedules import factor

RATES = dict.fromkeys(VARIANTS, 0.25)
OPTIMIZERS: dict[str, tuple[type[optim.Optimizer], dict[str, Any]]] = {
    "sgd": (optim.SGD, {"momentum": 0, "nesterov": False}),
    "momentum": (optim.SGD, {"momentum": 0.9, "nesterov": False}),
    "nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (optim.Adagrad, {}),
    "rmsprop": (optim.RMSprop, {}),
    "adam": (optim.Adam, {"betas": (0.9, 0.999)}),
    "adamw": (optim.AdamW, {"decoupled_weight_decay": True}),
}


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_name_is_its_torch_class_with_the_recipes_own_rate(name: str):
    kind, settings = OPTIMIZERS[name]
    optimizer = build_optimizer(Optimizer(name=name), parameters(), RATES)
    assert type(optimizer) is kind
    assert {key: optimizer.defaults[key] for key in settings} == settings
    assert optimizer.defaults["lr"] == 0.25


def test_every_optimizer_of_the_api_is_there():
    assert set(OPTIMIZERS) == set(VARIANTS) == set(Optimizer.model_fields["name"].annotation.__args__)


def test_the_spec_wins_over_recipe_and_variant():
    wanted = Optimizer(name="nesterov", learning_rate=0.5, parameters={"momentum": 0.5, "weight_decay": 0.1})
    defaults = build_optimizer(wanted, parameters(), RATES).defaults
    assert (defaults["lr"], defaults["momentum"], defaults["nesterov"], defaults["weight_decay"]) == (
        0.5,
        0.5,
        True,
        0.1,
    )


def test_lists_of_json_become_the_tuples_that_torch_wants():
    assert build_optimizer(Optimizer(parameters={"betas": [0.5, 0.6]}), parameters(), RATES).defaults["betas"] == (
        0.5,
        0.6,
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an argument of another optimizer": ({"momentum": 0.9}, r"has 'momentum', torch\.optim\.Adam takes .*betas"),
    "the rate in the wrong place": ({"lr": 1}, r"has 'lr'.*learningRate"),
    "a value out of range": ({"betas": [2, 0]}, r"refuses .*betas.*Invalid beta"),
    "a value of the wrong type": ({"betas": "x"}, "refuses"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_torch_would_refuse_is_refused_by_name(given: dict[str, Any], message: str):
    with pytest.raises(InvalidRecipe, match=message):
        build_optimizer(Optimizer(name="adam", parameters=given), parameters(), RATES)


SCHEDULES = {
    "constant": (Schedule(), [1.0, 1.0, 1.0, 1.0]),
    "linear goes down to 0": (Schedule(name="linear"), [1.0, 0.75, 0.5, 0.25]),
    "cosine goes down to 0": (Schedule(name="cosine"), [1.0, 0.8536, 0.5, 0.1464]),
    "a warm-up moves from the first update on": (Schedule(warmup_steps=3), [0.25, 0.5, 0.75, 1.0]),
    "then it goes down": (Schedule(name="linear", warmup_steps=2), [1 / 3, 2 / 3, 1.0, 0.5]),
}


@pytest.mark.parametrize(("schedule", "want"), SCHEDULES.values(), ids=SCHEDULES)
def test_the_rate_over_four_updates(schedule: Schedule, want: list[float]):
    assert [factor(schedule, step, 4) for step in range(4)] == pytest.approx(want, abs=1e-4)


OUTPUTS, TARGETS = torch.tensor([[1.0, 4.0], [0.0, 0.5]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])


@pytest.mark.parametrize(("name", "want"), [("mse", [5.0, 0.125]), ("mae", [2.0, 0.25]), ("huber", [1.5, 0.0625])])
def test_losses_are_one_value_per_sample(name: str, want: list[float]):
    loss = loss_by_name(name, OF_NUMBERS)
    assert loss(OUTPUTS, TARGETS).tolist() == pytest.approx(want)
    assert loss(OUTPUTS[:0], TARGETS[:0]).shape == (0,)


def test_an_unknown_loss_is_named_with_the_known_ones():
    with pytest.raises(InvalidRecipe, match="'bce', this recipe has mse, mae, huber"):
        loss_by_name("bce", OF_NUMBERS)


def test_without_a_name_a_recipe_takes_its_own_loss():
    assert loss_by_name(None, OF_CLASSES) is cross_entropy


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
CLASSES = torch.tensor([0, 2], dtype=torch.uint8)
OF_LOGITS: dict[str, tuple[Loss, list[float]]] = {
    "cross-entropy": (cross_entropy, [0.1698, 3.0949]),
    "bce, the sum over one class against the rest": (bce, [1.1333, 4.4349]),
    "accuracy": (accuracy, [1.0, 0.0]),
}


@pytest.mark.parametrize(("value_of", "want"), OF_LOGITS.values(), ids=OF_LOGITS)
def test_values_of_classes_are_one_per_sample(value_of: Loss, want: list[float]):
    assert value_of(LOGITS, CLASSES).tolist() == pytest.approx(want, abs=1e-4)
    assert value_of(LOGITS[:0], CLASSES[:0]).shape == (0,)
    sequences, of_each = torch.stack([LOGITS, LOGITS]), torch.stack([CLASSES, CLASSES])
    assert value_of(sequences, of_each).tolist() == pytest.approx([sum(want) / 2] * 2, abs=1e-4)
    assert value_of(sequences[:0], of_each[:0]).shape == (0,)
