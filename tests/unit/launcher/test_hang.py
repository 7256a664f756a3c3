import pytest

from bigmodel.api.progress import RankReport, RunPhase
from bigmodel.launcher.hang import HangWatch
from bigmodel.launcher.message import Beat, RankStack

TRAINING = RunPhase.TRAINING


def beat(rank: int, step: int, idle: float = 0.0, phase: RunPhase = TRAINING, in_collective: bool = False) -> Beat:
    report = RankReport(rank=rank, generation=1, phase=phase, step=step, in_collective=in_collective)
    return Beat(report=report, idle_seconds=idle)


def after_steps(seconds_per_step: float, steps: int = 10, ranks: int = 2, timeout: float = 600) -> HangWatch:
    watch = HangWatch(timeout)
    for step in range(1, steps + 1):
        for rank in range(ranks):
            watch.observe(beat(rank, step), step * seconds_per_step)
    return watch


LIMITS = {
    "quick steps: not below 5 s": (0.01, 10, 600, 5.0),
    "ten times the usual step": (2.0, 10, 600, 20.0),
    "never beyond the time-out that was asked for": (100.0, 10, 600, 600),
    "too few steps to know what is usual": (0.01, 2, 600, 600),
    "a time-out below 5 s is meant": (0.01, 10, 2, 2),
}


@pytest.mark.parametrize(("per_step", "steps", "timeout", "want"), LIMITS.values(), ids=LIMITS)
def test_limit(per_step: float, steps: int, timeout: float, want: float) -> None:
    assert after_steps(per_step, steps, timeout=timeout).limit_seconds == pytest.approx(want)


def test_a_rank_without_a_step_for_too_long_is_overdue() -> None:
    watch = after_steps(0.1)
    watch.observe(beat(1, 10, idle=4.9), 6.0)
    assert watch.overdue_seconds() is None
    watch.observe(beat(1, 10, idle=5.1), 6.2)
    assert watch.overdue_seconds() == 5.1


@pytest.mark.parametrize("phase", [p for p in RunPhase if p is not TRAINING])
def test_not_while_any_rank_does_something_else(phase: RunPhase) -> None:
    watch = after_steps(0.1)
    watch.observe(beat(0, 10, idle=30, phase=phase), 40)
    watch.observe(beat(1, 10, idle=30), 40)
    assert watch.overdue_seconds() is None


def test_not_before_every_rank_made_its_first_step() -> None:
    watch = HangWatch(5)
    watch.observe(beat(0, 0, phase=RunPhase.STARTING), 0)
    watch.observe(beat(1, 1), 1)
    watch.observe(beat(1, 1, idle=99), 100)
    assert watch.overdue_seconds() is None


def test_a_rank_that_ended_well_is_not_waited_for() -> None:
    watch = after_steps(0.1)
    watch.observe(beat(1, 10, idle=99), 100)
    watch.finished(1)
    assert watch.overdue_seconds() is None


SUSPECTS = {
    "the stopped one, though it had entered the collective": (
        [beat(0, 9, in_collective=False), beat(1, 9, in_collective=True)],
        [RankStack(rank=1, stopped=True)],
        1,
    ),
    "the one outside the collective": ([beat(0, 9, in_collective=True), beat(1, 9)], [], 1),
    "the one whose stack does not wait": ([beat(0, 9), beat(1, 9)], [RankStack(rank=0, waits=True)], 1),
    "the one behind": ([beat(0, 9), beat(1, 8)], [], 1),
    "no difference: the first": ([beat(1, 9), beat(0, 9)], [], 0),
}


@pytest.mark.parametrize(("beats", "stacks", "want"), SUSPECTS.values(), ids=SUSPECTS)
def test_culprit(beats: list[Beat], stacks: list[RankStack], want: int) -> None:
    watch = HangWatch(600)
    for one in beats:
        watch.observe(one, 10)
    assert watch.culprit(stacks) == want
