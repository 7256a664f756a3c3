import copy
import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bigmodel.api.job import Optimizer, Schedule, Target
from bigmodel.trainer import loop
from bigmodel.trainer.data.order import Order
from bigmodel.trainer.errors import InvalidRecipe, NonFiniteStep
from bigmodel.trainer.loop import TrainState, evaluate, planned_steps, reached, train
from bigmodel.trainer.losses import mse
from bigmodel.trainer.optimizers import build_optimizer
from bigmodel.trainer.recipes.task import Task
from bigmodel.trainer.report import Reporter
from tests.unit.trainer.tasks import a_recipe, a_task, no_saving

CPU = torch.device("cpu")


class Trained:
    """One run of the loop: the losses of its steps and the metrics of its end."""

    def __init__(
        self, alone: dist.ProcessGroup, task: Task | None = None, state: TrainState | None = None, **recipe: Any
    ):
        self.task = task if task is not None else a_task()
        self.recipe = a_recipe(**recipe)
        if state is None:
            model = DistributedDataParallel(self.task.model, process_group=alone, forward_sync_buffers=False)
            state = TrainState(
                model, build_optimizer(self.recipe.optimizer, model.parameters(), self.task.learning_rates)
            )
        self.state = state
        self.losses: dict[int, float] = {}
        self.report = Reporter(0, 1, None, lambda: 0.0)
        self.report.stepped = lambda step, values: self.losses.__setitem__(step, values["loss"])  # type: ignore[method-assign]
        self.alone = alone
        self.metrics: dict[str, float] = {}

    def run(self) -> "Trained":
        self.metrics = train(self.task, self.recipe, self.state, self.alone, CPU, self.report, no_saving(self.report))
        return self

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.state.model.parameters()]


def test_the_loss_goes_down_and_each_step_is_made_once(alone: dist.ProcessGroup):
    trained = Trained(alone, steps=40).run()
    assert list(trained.losses) == list(range(1, 41))
    assert trained.losses[40] < trained.losses[1] / 10
    assert trained.metrics["val_mse"] < 0.5


def test_the_reported_loss_is_the_mean_over_the_global_batch_before_the_update(alone: dist.ProcessGroup):
    trained = Trained(alone, steps=1)
    batch = Order(21, 8, 0).global_batch(0)
    samples = trained.task.train
    want = mse(trained.task.model(samples.inputs[batch]), samples.targets[batch]).mean().detach()
    assert trained.run().losses[1] == pytest.approx(float(want), rel=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 8, 11])
def test_gradient_accumulation_changes_nothing_but_memory(alone: dist.ProcessGroup, parts: int):
    whole, cut = Trained(alone).run(), Trained(alone, gradient_accumulation=parts).run()
    assert cut.losses == pytest.approx(whole.losses, rel=1e-5)
    for want, parameter in zip(whole.parameters, cut.parameters, strict=True):
        torch.testing.assert_close(parameter, want, rtol=1e-4, atol=1e-6)


def test_a_smaller_last_batch_weighs_by_its_samples(alone: dist.ProcessGroup):
    trained = Trained(alone, steps=3, batch_size=16)  # 21 samples: 16, 5, 16
    assert Order(21, 16, 0).batches_per_epoch == 2
    model = copy.deepcopy(trained.task.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    want = []
    for step in range(3):
        batch = Order(21, 16, 0).global_batch(step)
        loss = mse(model(trained.task.train.inputs[batch]), trained.task.train.targets[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        want.append(float(loss.detach()))
    assert list(trained.run().losses.values()) == pytest.approx(want, rel=1e-5)


def test_a_run_that_is_taken_up_in_the_middle_ends_like_one_that_was_not(alone: dist.ProcessGroup):
    dropping = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    adam = Optimizer(name="adam", learning_rate=0.01)
    cosine = Schedule(name="cosine", warmup_steps=2)
    whole = Trained(alone, a_task(copy.deepcopy(dropping)), steps=9, optimizer=adam, schedule=cosine).run()

    interrupted = Trained(alone, a_task(copy.deepcopy(dropping)), steps=9, optimizer=adam, schedule=cosine)

    class Killed(Exception):
        pass

    def kill(step: int, values: dict[str, float]) -> None:
        if step == 4:
            raise Killed

    interrupted.report.stepped = kill  # type: ignore[method-assign]
    with pytest.raises(Killed):
        interrupted.run()
    torch.manual_seed(999)  # whatever the new process drew before
    resumed = Trained(alone, interrupted.task, steps=9, optimizer=adam, schedule=cosine)
    resumed.state.optimizer.load_state_dict(interrupted.state.optimizer.state_dict())
    resumed.state.step = 4
    resumed.run()
    assert resumed.losses == {step: loss for step, loss in whole.losses.items() if step > 4}
    for want, parameter in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(parameter, want)


def test_a_run_that_is_taken_up_after_its_last_step_is_evaluated_and_not_trained(alone: dist.ProcessGroup):
    trained = Trained(alone, steps=6)
    trained.state.step = 6
    before = trained.parameters
    assert trained.run().metrics.keys() == {"val_mse", "val_mae"}
    assert trained.losses == {}
    assert all(torch.equal(new, old) for new, old in zip(trained.parameters, before, strict=True))


class Poisoned(nn.Module):
    """Answers with `poison` from the third training batch on."""

    def __init__(self, poison: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.poison, self.batches = nn.Linear(5, 1), poison, 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += self.training
        outputs: Tensor = self.linear(x)
        return outputs * (self.poison if self.batches > 2 else 1.0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_update(alone: dist.ProcessGroup, poison: float):
    good = Trained(alone, a_task(Poisoned(poison)), steps=2).run()
    bad = Trained(alone, a_task(Poisoned(poison)), steps=6)
    with pytest.raises(NonFiniteStep, match=r"step 2: the loss of rank 0 is not a finite number.*learningRate"):
        bad.run()
    assert bad.state.step == 2
    for want, parameter in zip(good.parameters, bad.parameters, strict=True):
        assert torch.equal(parameter, want)


def test_a_gradient_that_is_no_number_stops_before_the_update(alone: dist.ProcessGroup):
    class SquareRootAtZero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (x.square() @ self.weight).sqrt()  # finite at 0, with an infinite derivative

    trained = Trained(alone, a_task(SquareRootAtZero()), clip_norm=1.0)
    with pytest.raises(NonFiniteStep, match="step 0: the gradient's norm is"):
        trained.run()
    assert torch.equal(trained.parameters[0], torch.zeros(5, 1))


def test_clipping_limits_the_update_to_the_norm(alone: dist.ProcessGroup):
    trained = Trained(alone, steps=1, clip_norm=0.01, optimizer=Optimizer(name="sgd", learning_rate=1.0))
    before = trained.parameters
    trained.run()
    moved = math.sqrt(
        sum(float((new - old).square().sum()) for new, old in zip(trained.parameters, before, strict=True))
    )
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_the_schedule_scales_the_rate_of_each_update(alone: dist.ProcessGroup):
    rates: list[float] = []
    trained = Trained(
        alone, steps=4, schedule=Schedule(name="linear"), optimizer=Optimizer(name="sgd", learning_rate=0.4)
    )
    step = trained.state.optimizer.step
    trained.state.optimizer.step = lambda: rates.append(trained.state.optimizer.param_groups[0]["lr"]) or step()  # type: ignore
    trained.run()
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_evaluation_is_the_mean_over_all_samples_without_dropout(
    alone: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "EVALUATION_BATCH", 3)  # 7 validation samples: 3, 3, 1
    task = a_task(nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 1)))
    got = evaluate(task.model, task, alone, CPU)
    errors = (task.model.eval()(task.validation.inputs) - task.validation.targets).detach()
    assert got == pytest.approx(
        {"val_mse": float(errors.square().mean()), "val_mae": float(errors.abs().mean())}, rel=1e-5
    )


def test_metrics_that_are_no_means_are_made_of_the_means(alone: dist.ProcessGroup):
    task = a_task(derived={"val_rmse": lambda means: math.sqrt(means["val_mse"])})
    trained = Trained(alone, task, steps=200, target=Target(metric="val_rmse", at_most=1.0)).run()
    assert trained.metrics["val_rmse"] == pytest.approx(math.sqrt(trained.metrics["val_mse"]))
    assert trained.metrics["val_rmse"] <= 1.0
    assert trained.state.step < 100


def test_a_task_says_how_often_it_is_evaluated(alone: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch):
    count = 0

    def counted(*arguments: Any) -> dict[str, float]:
        nonlocal count
        count += 1
        return {"val_mse": 1.0}

    monkeypatch.setattr(loop, "evaluate", counted)
    Trained(alone, a_task(evaluations=3), steps=30).run()
    assert count == 3


def test_metrics_at_the_end_are_those_of_the_last_parameters(alone: dist.ProcessGroup):
    trained = Trained(alone, steps=47).run()
    assert trained.metrics == evaluate(trained.task.model, trained.task, alone, CPU)


def test_the_target_ends_the_run_early_with_its_metrics(alone: dist.ProcessGroup):
    trained = Trained(alone, steps=200, target=Target(metric="val_mse", at_most=1.0)).run()
    assert trained.metrics["val_mse"] <= 1.0
    assert trained.state.step < 100
    assert trained.state.step % 10 == 0  # 20 evaluations over a run


TARGETS = {
    "below at most": (Target(metric="m", at_most=2), 1.9, True),
    "equal to at most": (Target(metric="m", at_most=2), 2.0, True),
    "above at most": (Target(metric="m", at_most=2), 2.1, False),
    "equal to at least": (Target(metric="m", at_least=2), 2.0, True),
    "below at least": (Target(metric="m", at_least=2), 1.9, False),
    "at least 0": (Target(metric="m", at_least=0), -1.0, False),
    "not evaluated yet": (Target(metric="m", at_most=2), None, False),
    "not a number": (Target(metric="m", at_most=2), math.nan, False),
}


@pytest.mark.parametrize(("target", "value", "want"), TARGETS.values(), ids=TARGETS)
def test_when_a_target_is_reached(target: Target, value: float | None, want: bool):
    assert reached(target, {} if value is None else {"m": value}) is want


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a metric that nobody reports": (
        {"target": Target(metric="accuracy", at_least=1)},
        "'accuracy', this recipe reports val_mse, val_mae",
    ),
    "a target without a value": ({"target": Target(metric="val_mse")}, "exactly one of atMost and atLeast"),
    "steps and epochs": ({"steps": 3, "epochs": 1}, "steps 3 and epochs 1"),
}


@pytest.mark.parametrize(("recipe", "message"), REFUSED.values(), ids=REFUSED)
def test_a_recipe_that_contradicts_itself_makes_no_step(alone: dist.ProcessGroup, recipe: dict[str, Any], message: str):
    trained = Trained(alone, **recipe)
    with pytest.raises(InvalidRecipe, match=message):
        trained.run()
    assert trained.losses == {}


PLANS: dict[str, tuple[dict[str, Any], int]] = {
    "steps": ({"steps": 5}, 5),
    "epochs of 21 samples in batches of 8": ({"steps": None, "epochs": 4}, 12),
    "neither: the recipe's own": ({"steps": None}, 6),
}


@pytest.mark.parametrize(("recipe", "want"), PLANS.values(), ids=PLANS)
def test_how_many_steps_are_planned(recipe: dict[str, Any], want: int):
    assert planned_steps(a_task(), a_recipe(**recipe), Order(21, 8, 0)) == want
