import pytest

from bigmodel.api.progress import RankReport, RunPhase
from bigmodel.launcher.hang import LONG_WORK_SECONDS, HangWatch, Overdue
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
    assert watch.overdue(6.0) is None
    watch.observe(beat(1, 10, idle=5.1), 6.2)
    overdue = watch.overdue(6.2)
    assert overdue == Overdue(1, TRAINING, 5.1, 5.0)
    assert overdue.message() == "no step for 5.1 s, the limit is 5.0 s"


@pytest.mark.parametrize("phase", [p for p in RunPhase if p is not TRAINING])
def test_a_step_is_not_watched_while_any_rank_does_something_else(phase: RunPhase) -> None:
    watch = after_steps(0.1)
    watch.observe(beat(0, 10, idle=30, phase=phase), 40)
    watch.observe(beat(1, 10, idle=30), 40)
    assert watch.overdue(100) is None


def test_not_before_every_rank_made_its_first_step() -> None:
    watch = HangWatch(5)
    watch.observe(beat(0, 0, phase=RunPhase.STARTING), 0)
    watch.observe(beat(1, 1), 1)
    watch.observe(beat(1, 1, idle=99), 100)
    assert watch.overdue(100) is None


def test_a_rank_that_ended_well_is_not_waited_for() -> None:
    watch = after_steps(0.1)
    watch.observe(beat(1, 10, idle=99), 100)
    watch.finished(1)
    assert watch.overdue(100) is None


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
    assert watch.culprit(Overdue(0, TRAINING, 9, 5), stacks) == want


PHASES = {
    "a start is bounded by the start deadline": (RunPhase.STARTING, 900, "did not get to its first step"),
    "a save by the limit of long work": (RunPhase.CHECKPOINTING, LONG_WORK_SECONDS, "is saving a checkpoint"),
    "a publication too": (RunPhase.PUBLISHING, LONG_WORK_SECONDS, "is publishing"),
    "and the end": (RunPhase.DONE, LONG_WORK_SECONDS, "is done and does not end"),
}


@pytest.mark.parametrize(("phase", "limit", "words"), PHASES.values(), ids=PHASES)
def test_what_is_no_step_has_a_limit_too(phase: RunPhase, limit: float, words: str) -> None:
    """A21, C26: a hang before the first step, in a save or in publishing is ended as well, and names its rank."""
    watch = HangWatch(600, start_deadline_seconds=900)
    watch.observe(beat(0, 10, idle=limit - 2), limit)
    watch.observe(beat(1, 10, idle=limit - 1, phase=phase), limit)
    assert watch.overdue(limit) is None
    watch.observe(beat(1, 10, idle=limit + 1, phase=phase), limit + 2)
    overdue = watch.overdue(limit + 2)
    assert overdue == Overdue(1, phase, limit + 1, limit)
    assert words in overdue.message()
    assert watch.culprit(overdue, [RankStack(rank=0, stopped=True)]) == 1


def test_a_longer_hang_timeout_is_a_longer_limit_of_everything() -> None:
    watch = HangWatch(7200, start_deadline_seconds=900)
    for phase in (RunPhase.STARTING, RunPhase.PUBLISHING):
        watch.observe(beat(0, 1, idle=7100, phase=phase), 7100)
        assert watch.overdue(7100) is None


def test_a_recipes_rank_that_says_nothing_at_all_is_overdue_and_a_programs_is_not() -> None:
    watch = HangWatch(600, start_deadline_seconds=900, started_at=50, expected=2)
    watch.observe(beat(0, 0, phase=RunPhase.STARTING), 60)
    assert watch.overdue(949) is None
    assert watch.overdue(951) == Overdue(1, RunPhase.STARTING, 901, 900)
    watch.finished(1)
    assert watch.overdue(951) is None
    assert HangWatch(600, start_deadline_seconds=900).overdue(10_000) is None
