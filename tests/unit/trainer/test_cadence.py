import math

import pytest

from bigmodel.api.job import Checkpoint
from bigmodel.trainer.checkpoint.cadence import PRIOR_FAILURE_SECONDS, Cadence


def due_at(cadence: Cadence, seconds: range, started: float = 0) -> list[int]:
    """When a clock that is asked each second says so, if each save takes no time."""
    cadence.start(started)
    found = []
    for now in seconds:
        if cadence.due(step=now, now=now):
            cadence.saved(now, 0.0)
            found.append(now)
    return found


DUE = {
    "by default every ten minutes": (Checkpoint(), 0, [600, 1200, 1800]),
    "every so many seconds, from the start on": (Checkpoint(every_seconds=500), 100, [600, 1100, 1600]),
    "at multiples of steps, whenever the process began": (Checkpoint(every_steps=700), 100, [700, 1400]),
}


@pytest.mark.parametrize(("policy", "started", "want"), DUE.values(), ids=DUE)
def test_when_a_checkpoint_is_due(policy: Checkpoint, started: int, want: list[int]):
    assert due_at(Cadence(policy), range(started + 1, 2000), started) == want


def test_a_save_that_was_asked_for_counts_as_one():
    cadence = Cadence(Checkpoint(every_seconds=100))
    cadence.start(0)
    cadence.saved(90, 1)
    assert not cadence.due(1, 189)
    assert cadence.due(1, 190)


HOUR = 3600.0
AUTO = {
    "nothing known": (0, 0.0, [], math.sqrt(2 * 1 * PRIOR_FAILURE_SECONDS)),
    "saves are cheap": (0, 0.0, [0.02, 0.02], math.sqrt(2 * 0.02 * PRIOR_FAILURE_SECONDS)),
    "it failed often": (11, 0.0, [1.0], math.sqrt(2 * 1 * PRIOR_FAILURE_SECONDS / 12)),
    "it trained for long without": (0, 94 * HOUR, [1.0], math.sqrt(2 * 1 * (PRIOR_FAILURE_SECONDS + 94 * HOUR))),
    "never more often than every ten seconds": (1000, 0.0, [0.001], 10),
    "never more rarely than every hour": (0, 900 * HOUR, [60.0], 3600),
    "the last five costs count": (0, 0.0, [99.0, 2, 2, 2, 2, 2], math.sqrt(2 * 2 * PRIOR_FAILURE_SECONDS)),
}


@pytest.mark.parametrize(("failures", "trained", "costs", "want"), AUTO.values(), ids=AUTO)
def test_the_interval_that_loses_least(failures: int, trained: float, costs: list[float], want: float):
    cadence = Cadence(Checkpoint(auto=True), failures=failures, trained_seconds=trained)
    cadence.start(50.0)
    for cost in costs:
        cadence.saved(50.0, cost)
    assert cadence.interval_seconds(50.0) == pytest.approx(want)


def test_training_time_goes_on_over_generations():
    cadence = Cadence(Checkpoint(), trained_seconds=1000)
    cadence.start(70)
    assert cadence.trained(100) == 1030
