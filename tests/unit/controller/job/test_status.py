"""What status says of progress, time and phase, and how often it is written."""

from __future__ import annotations

from typing import Any

import pytest

from bigmodel.api.job import JobStatus
from bigmodel.controller.job.goodput import booked, booked_until
from tests.builders import NOON, a_job, a_last_word, a_progress, an_artifact, seconds
from tests.unit.controller.job.world import World, training_world


def test_progress_as_people_read_it() -> None:
    world = training_world().after(10).tells(a_progress().training(1240, NOON + seconds(4))).settle()
    assert world.status["progress"] == {
        "step": 1240,
        "totalSteps": 2000,
        "summary": "62%",
        "stepsPerSecond": "8.1",
        "etaSeconds": 94,
        "metrics": [{"name": "loss", "value": "0.2117"}],
        "loss": "0.2117",
        "updatedAt": "2026-03-01T12:00:14Z",
    }


def test_progress_without_a_known_end_says_the_step() -> None:
    world = training_world().after(10)
    world.tells(a_progress().training(7, NOON + seconds(4)).with_(totalSteps=0)).settle()
    assert world.status["progress"]["summary"] == "step 7"
    assert "totalSteps" not in world.status["progress"]
    assert "etaSeconds" not in world.status["progress"]


def test_while_ranks_start_anew_the_last_progress_stands() -> None:
    world = training_world().after(10).tells(a_progress().training(1240, NOON + seconds(4))).settle()
    before = world.status["progress"]
    restarted = a_progress().with_(step=1200, totalSteps=0, firstStepAt=NOON.timestamp() + 4, generation=2)
    world.after(10).tells(restarted.incident()).settle()
    assert world.status["phase"] == "Recovering"
    assert world.status["progress"] == before
    fresh = World().settle().start().settle().after(5).tells(a_progress()).settle()
    assert "progress" not in fresh.status


def test_the_last_word_says_the_last_step_also_where_it_had_to_be_cut() -> None:
    world = training_world().ends(1, 0, a_last_word(1))
    world.ends(0, 0, a_last_word(0, step=2000, artifact=an_artifact())).settle()
    assert world.status["progress"]["summary"] == "100%"


@pytest.mark.parametrize(
    ("age", "pause"), [(10, 2), (61, 10)], ids=["every 2 s while the job is young", "every 10 s later"]
)
def test_progress_alone_is_written_now_and_then(age: float, pause: int) -> None:
    world = training_world().after(age)
    world.tells(a_progress().training(100, NOON + seconds(4))).settle()
    written = len(world.writes)
    world.after(pause - 0.5).tells(a_progress().training(101, NOON + seconds(4)))
    held = world.reconcile()
    assert len(world.writes) == written
    assert held.requeue_after is not None
    assert 0 < held.requeue_after <= pause
    world.after(0.5).reconcile()
    assert len(world.writes) == written + 1
    assert world.status["progress"]["step"] == 101


def test_what_matters_is_written_at_once_and_takes_the_progress_along() -> None:
    world = training_world().after(100).tells(a_progress().training(100, NOON + seconds(4))).settle()
    world.after(1).tells(a_progress().training(105, NOON + seconds(4)).publishing()).settle()
    assert world.status["phase"] == "Publishing"
    assert world.status["progress"]["step"] == 2000


def test_the_times_of_a_job() -> None:
    world = World().settle().after(2).start().settle().after(5)
    world.tells(a_progress().training(1, first_step_at=NOON + seconds(6))).settle().after(10).completes().settle()
    times = {name: world.status[name] for name in ("startTime", "runningTime", "firstStepTime", "completionTime")}
    assert times == {
        "startTime": "2026-03-01T12:00:00Z",
        "runningTime": "2026-03-01T12:00:02Z",
        "firstStepTime": "2026-03-01T12:00:06Z",
        "completionTime": "2026-03-01T12:00:17Z",
    }


def test_a_first_step_before_the_start_or_in_the_future_is_a_wrong_clock() -> None:
    early = World().settle().start().settle().after(5)
    early.tells(a_progress().training(1, first_step_at=NOON - seconds(3600))).settle()
    assert early.status["firstStepTime"] == early.status["startTime"]
    late = World().settle().start().settle().after(5)
    late.tells(a_progress().training(1, first_step_at=NOON + seconds(3600))).settle()
    assert late.status["firstStepTime"] == "2026-03-01T12:00:05Z"


# Goodput


def test_the_ledger_sums_to_the_wall_time_and_ends_starts_at_the_first_step() -> None:
    world = World().settle().after(3).start().settle().after(20)
    world.tells(a_progress().training(90, first_step_at=NOON + seconds(12))).settle()
    world.after(30).node_lost(1).settle().after(4).start(1).settle()
    again = a_progress().training(120, NOON + seconds(12)).incident(
        cause="PodLost", at=NOON.timestamp() + 53, rank=None, exitCode=None, recoverySeconds=6.0, resumedFromStep=90
    )  # fmt: skip
    world.after(2).tells(again).settle().after(30).tells(again.publishing()).settle().after(6).completes().settle()
    assert world.status["goodput"] == {
        "summary": "77.2%",
        "queuedSeconds": 3,
        "suspendedSeconds": 0,
        "startingSeconds": 9,
        "productiveSeconds": 11 + 30 + 30,
        "checkpointSeconds": 0,
        "lostSeconds": 0,
        "recoveringSeconds": 6,
        "publishingSeconds": 6,
        "since": "2026-03-01T12:00:00Z",
        "reported": {"checkpointSeconds": 0, "lostSeconds": 0, "recoveringSeconds": 0},
    }
    wall = sum(value for name, value in world.status["goodput"].items() if name.endswith("Seconds"))
    assert world.status["completionTime"] == "2026-03-01T12:01:35Z"
    assert wall == 95


def test_a_job_that_was_never_asked_still_says_when_it_began_to_train() -> None:
    world = World().settle().start().settle().after(20)
    told: dict[str, Any] = a_progress().training(2000, first_step_at=NOON + seconds(5)).fields
    world.ends(1, 0, a_last_word(1)).ends(0, 0, a_last_word(0, artifact=an_artifact(), progress=told)).settle()
    assert world.status["goodput"]["startingSeconds"] == 5
    assert world.status["goodput"]["productiveSeconds"] == 15


def test_before_the_start_nothing_is_booked() -> None:
    assert booked_until(JobStatus()) is None
    assert booked(JobStatus(), None, NOON) is None


def test_a_clock_that_jumps_back_books_nothing() -> None:
    world = training_world()
    before = world.status["goodput"]
    world.after(-3600).gone(1).settle()
    assert {k: v for k, v in world.status["goodput"].items() if k.endswith("Seconds")} == {
        k: v for k, v in before.items() if k.endswith("Seconds")
    }


# Columns


def test_the_printer_columns_of_a_job_that_waits_for_its_first_pods() -> None:
    world = World()
    world.reconcile()
    assert world.status["phase"] == "Pending"
    assert world.status["nodes"]["summary"] == "0/2"
    assert world.status["selector"] == "bigmodel.io/job=mlp"
    assert world.status["goodput"]["summary"] == "0.0%"


def test_a_status_that_another_version_wrote_keeps_its_attempt() -> None:
    job = a_job().status(attempt=4, phase="Dreaming")
    assert World(job=job.manifest).observed().status.attempt == 4
