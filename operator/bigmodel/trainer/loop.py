"""The train loop: a list of named calls. Shapes: B samples of this rank in one micro-batch, G samples of the global
batch.

Every number that decides something (loss, metrics, whether to stop) is equal on all ranks, so all of them take the
same branch. A run is a function of seed, data and global batch size: the same on any number of ranks up to rounding
(and dropout), and after any restart.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from bigmodel.api.job import Recipe, Target
from bigmodel.trainer.checkpoint.state import unwrapped
from bigmodel.trainer.data.order import BatchOrder, Indices, share
from bigmodel.trainer.errors import InvalidRecipe, NonFiniteStep
from bigmodel.trainer.losses import Loss
from bigmodel.trainer.parallel import accumulating, clip_gradients
from bigmodel.trainer.process import seed_everything
from bigmodel.trainer.recipes.task import Rows, Task
from bigmodel.trainer.report import Reporter
from bigmodel.trainer.saving import Saving, Wish
from bigmodel.trainer.schedules import factor

log = logging.getLogger(__name__)

EVALUATION_BATCH = 1024


@dataclass
class TrainState:
    """All that a resumed run needs: what was learned, and how many updates were made.

    Nothing else, because everything else is a function of seed and step: the samples of a batch (`Order`), the random
    numbers of a step (`seed_everything`), the learning rate (`schedules.factor`). The target needs no memory either:
    a run that had reached it is over.
    """

    model: nn.Module  # of `parallel.parallelize`
    optimizer: Optimizer
    step: int = 0
    autocast: torch.dtype | None = None  # of the training passes; parameters, updates and evaluation stay fp32

    def kept(self) -> dict[str, Any]:
        """What a checkpoint holds; the step stands in its manifest."""
        return {"model": self.model, "optimizer": self.optimizer}


@dataclass(frozen=True)
class StepResult:
    loss: float  # mean over the G samples, before the update, equal on all ranks
    gradient_norm: float | None  # L2 before clipping; None where clipping is off
    wish: Wish  # of all ranks together


def train(
    task: Task,
    recipe: Recipe,
    state: TrainState,
    data: dist.ProcessGroup,
    device: torch.device,
    report: Reporter,
    saving: Saving,
    gang: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """Train to the last step or the target, from the newest checkpoint on. Returns the validation metrics of the
    parameters in `state`. Collective over all ranks.

    Args:   data: the ranks that see different samples. gang: all ranks, where tensor parallelism makes them more.
    The model is published after the end, so no checkpoint is made there.
    Raises: NonFiniteStep on every rank, before any parameter changed; InvalidRecipe; SystemExit(143) on every rank
            where the gang was told to leave, after a checkpoint.
    """
    rank, ranks = dist.get_rank(data), dist.get_world_size(data)
    order = task.train.order(recipe.batch_size, recipe.seed)
    total_steps = planned_steps(task, recipe, order)
    check_target(recipe.target, task)
    report.total_steps = total_steps
    evaluate_every = max(1, total_steps // task.evaluations)
    metrics: dict[str, float] = {}
    state.step = max(state.step, saving.resume(state.kept()))
    settle_buckets(task, state, device)
    while state.step < total_steps:
        # For dropout: new at each step and rank, and the same after a restart.
        seed_everything(recipe.seed, state.step, rank)
        batch = order.global_batch(state.step)
        inputs = micro_batches(task.train, share(batch, rank, ranks), recipe.gradient_accumulation, device)
        task.train.expect(share(order.global_batch(state.step + 1), rank, ranks))
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor(recipe.schedule, state.step, total_steps)
        result = train_step(
            state,
            inputs,
            task.loss,
            global_samples=len(batch),
            data=data,
            gang=gang,
            clip_norm=recipe.clip_norm,
            entering_collective=report.in_collective,
            wish=partial(saving.wish, state.step + 1),
        )
        state.step += 1
        if state.step % evaluate_every == 0 or state.step == total_steps:
            metrics = evaluate(unwrapped(state.model), task, data, device)
            log.info("step %d of %d: loss %.6g, %s", state.step, total_steps, result.loss, _words(metrics))
        report.stepped(state.step, {"loss": result.loss, **metrics})
        if recipe.target is not None and reached(recipe.target, metrics):
            log.info("target reached at step %d: %s", state.step, _words(metrics))
            break
        saving.obey(result.wish, state.kept(), state.step, last=state.step == total_steps)
    # Nothing left to do for a run that was taken up after its last step: it is evaluated all the same.
    return metrics or evaluate(unwrapped(state.model), task, data, device)


def settle_buckets(task: Task, state: TrainState, device: torch.device) -> None:
    """Have DDP make the gradient buckets that it will use. Collective; changes no parameter. FSDP2 has none.

    It makes them anew after its first backward, in the order in which gradients came. Where a gradient lies decides in
    which order three ranks or more add it up, hence its last bits: without this the first step after a restart would
    differ from the same step of a run that was not interrupted.
    """
    if not isinstance(state.model, DistributedDataParallel):
        return
    state.model.eval()  # no dropout, no running statistics
    inputs, targets = rows(task.train, np.arange(0), device)
    task.loss(state.model(inputs), targets).sum().backward()  # type: ignore[no-untyped-call]
    state.optimizer.zero_grad()


def train_step(
    state: TrainState,
    batch: list[tuple[Tensor, Tensor]],
    loss: Loss,
    *,
    global_samples: int,
    data: dist.ProcessGroup,
    gang: dist.ProcessGroup | None = None,
    clip_norm: float,
    entering_collective: Callable[[], None],
    wish: Callable[[], Wish],
) -> StepResult:
    """Update the parameters once, from one global batch. Collective: every rank must call it.

    Args:   batch: this rank's micro-batches, (inputs_B…, targets_B…) on its device; all but the last only accumulate
            gradients. clip_norm: largest L2 norm of the gradient over all parameters, 0 for no limit.
            wish: of this rank, asked as late as can be; it travels with the loss, so that asking for a checkpoint costs
            no collective of its own.
    Raises: NonFiniteStep on every rank, before any parameter changed.
    Source: clipping by norm, Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.
    """
    ranks = dist.get_world_size(data)
    state.model.train()
    state.optimizer.zero_grad()
    loss_sum = torch.zeros((), dtype=torch.float64)
    for index, (inputs, targets) in enumerate(batch):
        last = index == len(batch) - 1
        with accumulating(state.model, last=last):
            with torch.autocast(inputs.device.type, state.autocast, enabled=state.autocast is not None):
                losses = loss(state.model(inputs), targets)
            # DDP and FSDP2 average over ranks, whose shares may differ in size: times ranks, over G, makes it the mean
            # over the global batch.
            scaled = losses.sum() * (ranks / global_samples)
            if last:
                entering_collective()
            scaled.backward()  # type: ignore[no-untyped-call]
        loss_sum = loss_sum + losses.detach().sum().to("cpu", torch.float64)
    global_sum, agreed = _vote(float(loss_sum), wish(), state.step, data, gang or data)
    gradient_norm = None
    if clip_norm > 0:
        gradient_norm = clip_gradients(state.model.parameters(), clip_norm)
        if not math.isfinite(gradient_norm):  # gradients are equal on all ranks by now, so all of them see it
            raise NonFiniteStep(f"step {state.step}: the gradient's norm is {gradient_norm}; {ADVICE}")
    state.optimizer.step()
    return StepResult(global_sum / global_samples, gradient_norm, agreed)


ADVICE = "parameters are those of the step before; lower learningRate, add warmupSteps or set clipNorm"


def _vote(
    loss_sum: float, wish: Wish, step: int, data: dist.ProcessGroup, gang: dist.ProcessGroup
) -> tuple[float, Wish]:
    """The sum over all samples, and what any of them wishes. One small all_reduce also tells all of them which rank, if
    any, has no finite loss.
    """
    rank, ranks = dist.get_rank(gang), dist.get_world_size(gang)
    loss_sum /= ranks // dist.get_world_size(data)  # so many ranks saw the same samples
    finite = math.isfinite(loss_sum)
    ballot = torch.zeros(3 + ranks, dtype=torch.float64)
    ballot[:3] = torch.tensor([loss_sum if finite else 0.0, wish.save, wish.leave], dtype=torch.float64)
    ballot[3 + rank] = not finite
    dist.all_reduce(ballot, group=gang)
    total, save, leave, *infinite = ballot.tolist()
    culprits = [str(index) for index, votes in enumerate(infinite) if votes > 0]
    if culprits:
        raise NonFiniteStep(f"step {step}: the loss of rank {', '.join(culprits)} is not a finite number; {ADVICE}")
    return total, Wish(save=save > 0, leave=leave > 0)


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, data: dist.ProcessGroup, device: torch.device) -> dict[str, float]:
    """The task's metrics over all validation samples, each rank evaluating its share. Collective over `data`; equal on
    all ranks.
    """
    samples, metrics = task.validation, task.metrics
    model.eval()
    ranks = dist.get_world_size(data)
    mine = share(np.arange(len(samples)), dist.get_rank(data), ranks)
    largest_share = -(-len(samples) // ranks)  # FSDP2 wants a forward of every rank, if of no sample
    sums = torch.zeros(len(metrics), dtype=torch.float64)
    for start in range(0, largest_share, EVALUATION_BATCH):
        inputs, targets = rows(samples, mine[start : start + EVALUATION_BATCH], device)
        outputs = model(inputs)
        sums += torch.stack([metric(outputs, targets).sum().double() for metric in metrics.values()]).cpu()
    dist.all_reduce(sums, group=data)
    return task.reported({name: float(total) / len(samples) for name, total in zip(metrics, sums, strict=True)})


def micro_batches(samples: Rows, mine: Indices, parts: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """This rank's share of one global batch, cut for gradient accumulation. A part may be empty: DDP still wants its
    backward.
    """
    return [rows(samples, part, device) for part in np.array_split(mine, parts)]


def rows(samples: Rows, indices: Indices, device: torch.device) -> tuple[Tensor, Tensor]:
    inputs, targets = samples.rows(indices)
    return inputs.to(device), targets.to(device)


def planned_steps(task: Task, recipe: Recipe, order: BatchOrder) -> int:
    if recipe.steps is not None and recipe.epochs is not None:
        raise InvalidRecipe(f"spec.recipe has steps {recipe.steps} and epochs {recipe.epochs}; give one of them")
    if recipe.epochs is not None:
        return recipe.epochs * order.batches_per_epoch
    return recipe.steps if recipe.steps is not None else task.steps


def check_target(target: Target | None, task: Task) -> None:
    if target is None:
        return
    if target.metric not in task.metric_names:
        raise InvalidRecipe(
            f"spec.recipe.target.metric is {target.metric!r}, this recipe reports {', '.join(task.metric_names)}"
        )
    if (target.at_most is None) == (target.at_least is None):
        raise InvalidRecipe("spec.recipe.target wants exactly one of atMost and atLeast")


def reached(target: Target, metrics: Mapping[str, float]) -> bool:
    """False where the metric was not evaluated yet."""
    value = metrics.get(target.metric)
    if value is None:
        return False
    return value <= target.at_most if target.at_most is not None else value >= (target.at_least or 0.0)


def _words(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
