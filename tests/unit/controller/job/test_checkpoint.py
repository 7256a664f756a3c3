"""What status says of checkpoints: the newest good one of this very job, and whether saving works."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import JOB_UID, NOON, STORE_URI, a_checkpoint, a_last_word, a_progress, pod_name, seconds
from tests.unit.controller.job.world import World, training_world

TRAINING = a_progress().training(100, NOON + seconds(4))


def saves(world: World, step: int, attempt: int = 1, generation: int = 1, **progress: Any) -> World:
    told = TRAINING.with_(checkpoint=a_checkpoint(step, attempt, generation), **progress)
    return world.after(10).tells(told).settle()


def test_the_newest_checkpoint_is_told_with_its_place_and_its_time() -> None:
    world = training_world()
    assert world.condition("CheckpointHealthy") == ("Unknown", "NoCheckpointYet")
    saves(world, 80)
    assert world.status["checkpoint"] == {
        "step": 80,
        "uri": f"{STORE_URI}/ml/mlp/{JOB_UID}/checkpoint/1.1/80",
        "digest": "sha256:" + "3f" * 32,
        "savedAt": "2026-03-01T12:00:00Z",
    }
    assert world.condition("CheckpointHealthy") == ("True", "Saved")
    assert "step 80" in world.message("CheckpointHealthy")


def test_a_checkpoint_from_the_future_was_saved_now() -> None:
    world = training_world().after(10)
    world.tells(TRAINING.with_(checkpoint=a_checkpoint(80, savedAt=NOON.timestamp() + 9999))).settle()
    assert world.status["checkpoint"]["savedAt"] == "2026-03-01T12:00:14Z"


ELSEWHERE = {
    "another job's": {"uri": f"{STORE_URI}/ml/other/{JOB_UID}/checkpoint/1.1/80"},
    "another bucket": {"uri": f"s3://theirs/ml/mlp/{JOB_UID}/checkpoint/1.1/80"},
    "up and away": {"uri": f"{STORE_URI}/ml/mlp/{JOB_UID}/checkpoint/../../1.1/80"},
    "another step": {"uri": f"{STORE_URI}/ml/mlp/{JOB_UID}/checkpoint/1.1/81"},
    "an artefact": {"uri": f"{STORE_URI}/ml/mlp/{JOB_UID}/artifact/1.1/80"},
}


@pytest.mark.parametrize("fields", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_checkpoint_that_lies_elsewhere_is_not_taken_and_the_progress_is(fields: dict[str, str]) -> None:
    world = training_world().after(10).tells(TRAINING.with_(checkpoint=a_checkpoint(80, **fields))).settle()
    assert "checkpoint" not in world.status
    assert world.status["progress"]["step"] == 100


def test_an_old_report_does_not_take_a_newer_checkpoint_back() -> None:
    world = saves(saves(training_world(), 90), 80)
    assert world.status["checkpoint"]["step"] == 90


def test_a_later_generation_that_went_on_from_a_lower_step_is_believed() -> None:
    world = saves(saves(training_world(), 90), 80, generation=2)
    assert world.status["checkpoint"]["step"] == 80


def test_what_pods_saved_on_their_way_out_counts_also_when_only_their_last_word_says_so() -> None:
    """A16."""
    world = saves(training_world(), 80).deleted(0).deleted(1)
    for index in (1, 0):
        world.ends(index, 143, a_last_word(index, 1, 143, reason="Terminated", checkpoint=a_checkpoint(99)))
    world.settle()
    assert world.status["attempt"] == 2
    assert world.status["checkpoint"]["step"] == 99
    assert pod_name(0) in world.names(), "it is there, and its word is history now"
    world.start().tells(TRAINING.with_(checkpoint=a_checkpoint(80), checkpointError="checkpoint 1.1/99 is corrupt and"))
    world.settle().after(60).settle()
    assert world.status["checkpoint"]["step"] == 80


def test_a_corrupt_checkpoint_is_told_with_what_training_goes_on_from() -> None:
    """C40."""
    world = saves(
        saves(training_world(), 90), 80, checkpointError="checkpoint 1.1/90 is corrupt and was skipped: sha256"
    )
    assert world.condition("CheckpointHealthy") == ("False", "Corrupt")
    for words in ("1.1/90", "step 80", "Check the store"):
        assert words in world.message("CheckpointHealthy")
    assert world.status["checkpoint"]["step"] == 80
    assert world.status["phase"] == "Training", "it does not stop for it"
    saves(world, 95)
    assert world.condition("CheckpointHealthy") == ("True", "Saved")
    assert [event.reason for event in world.events if "heckpoint" in event.note] == [
        "Checkpointed",
        "Corrupt",
        "Checkpointed",
    ]


def test_a_save_that_fails_is_told_with_the_error_and_heals() -> None:
    """C40."""
    world = saves(saves(training_world(), 80), 80, checkpointError="no space left on device")
    assert world.condition("CheckpointHealthy") == ("False", "SaveFailed")
    for words in ("no space left on device", "step 80", "its room"):
        assert words in world.message("CheckpointHealthy")
    world.gone(0).settle()
    assert world.condition("CheckpointHealthy") == ("False", "SaveFailed"), "nobody said that it works again"
    world.start().settle()
    saves(world, 95, generation=2)
    assert world.condition("CheckpointHealthy") == ("True", "Saved")


def test_each_checkpoint_is_no_event_and_no_more_urgent_than_a_step() -> None:
    world = saves(training_world().after(100), 80)
    told, written = len(world.told), world.writes.count("status")
    for step in range(81, 91):
        world.after(1).tells(TRAINING.with_(checkpoint=a_checkpoint(step))).settle()
    assert len(world.told) == told
    assert world.writes.count("status") == written + 1
    assert world.status["checkpoint"]["step"] == 90
