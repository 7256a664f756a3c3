"""Suspending, resuming, resizing: pods go with their checkpoint and come again, and nobody pays for it."""

from __future__ import annotations

import pytest

from tests.builders import (
    DIGEST,
    NOON,
    a_checkpoint,
    a_job,
    a_last_word,
    a_progress,
    an_artifact,
    gave_up,
    pod_name,
    seconds,
)
from tests.unit.controller.job.world import World, training_world

NONE = {"program": 0, "infrastructure": 0, "hang": 0, "total": 0}


def save(world: World, step: int) -> World:
    """Every pod saves and ends; none is taken away yet."""
    attempt = world.status["attempt"]
    for index in (1, 0):
        word = a_last_word(index, attempt, 143, reason="Terminated", step=step, checkpoint=a_checkpoint(step, attempt))
        world.ends(index, 143, word)
    return world.settle()


def leave(world: World, step: int) -> World:
    """Every pod saves and goes, as kubelets tell it: first the last words, then the pods are gone."""
    return save(world, step).terminated().settle()


def suspended_world(step: int = 45) -> World:
    world = training_world().edit(suspend=True).settle()
    return leave(world.after(2), step)


# Suspend


def test_a_job_that_is_created_suspended_makes_nothing_until_it_is_resumed() -> None:
    """A28."""
    world = World(job=a_job().spec(suspend=True).manifest).settle()
    assert world.children == {}
    assert {kind: world.condition(kind) for kind in ("Accepted", "Suspended", "Admitted", "Running")} == {
        "Accepted": ("True", "Accepted"),
        "Suspended": ("True", "Suspended"),
        "Admitted": ("False", "Suspended"),
        "Running": ("False", "Suspended"),
    }
    assert world.status["phase"] == "Suspended"
    assert world.status["nodes"] == {"desired": 2, "ready": 0, "succeeded": 0, "failed": 0, "summary": "0/2"}
    assert "startTime" not in world.status
    assert 'kubectl patch bmj mlp -n ml --type=merge -p \'{"spec":{"suspend":false}}\'' in world.status["message"]
    world.after(100).edit(suspend=False).settle().start().settle()
    assert world.condition("Suspended") == ("False", "Resumed")
    assert world.condition("Running") == ("True", "PodsRunning")
    assert (world.status["attempt"], world.status["startTime"]) == (1, "2026-03-01T12:01:40Z")
    assert world.told == ["Accepted", "Suspended", "Resumed", "GangCreated", "Running"]


def test_a_bad_spec_is_refused_though_it_is_suspended() -> None:
    world = World(job=a_job().spec(suspend=True, store=None).manifest).settle()
    assert world.condition("Accepted") == ("False", "StoreNotSet")


def test_suspending_is_told_before_any_pod_is_deleted() -> None:
    """A29."""
    world = training_world().edit(suspend=True)
    told = world.reconcile()
    assert told.again
    assert told.delete == ()
    assert world.condition("Suspended") == ("False", "Suspending")
    done = world.reconcile()
    assert {deletion.name: deletion.grace_seconds for deletion in done.delete} == {
        pod_name(0): None,
        pod_name(1): None,
        "mlp-gyjmk-a1": None,
    }, "with the grace of the pods: they save"
    assert done.create == ()


def test_a_suspended_job_has_no_pods_and_says_where_it_stands() -> None:
    """A29."""
    world = training_world().edit(suspend=True).settle()
    assert world.condition("Suspended") == ("False", "Suspending")
    assert world.reconcile().requeue_after == pytest.approx(60)
    leave(world.after(2), 45)
    assert world.names() == []
    assert world.names("PodGroup") == []
    assert world.condition("Suspended") == ("True", "Suspended")
    assert world.status["phase"] == "Suspended"
    assert world.status["nodes"] == {"desired": 2, "ready": 0, "succeeded": 0, "failed": 0, "summary": "0/2"}
    assert world.status["checkpoint"]["step"] == 45
    assert world.status["restarts"] == NONE
    assert "incidents" not in world.status or world.status["incidents"] == []
    assert "checkpoint of step 45" in world.status["message"]
    writes = len(world.writes)
    world.after(100_000).settle()
    assert len(world.writes) == writes, "a job that rests causes no writes"


def test_pods_that_have_ended_are_waited_for_until_the_kubelet_has_taken_them_away() -> None:
    """A29: whoever waits for Suspended finds no pod."""
    world = save(training_world().edit(suspend=True).settle().after(2), 45)
    assert world.condition("Suspended") == ("False", "Suspending")
    assert world.reconcile().requeue_after == pytest.approx(58), "not for longer than their grace"
    assert world.terminated().settle().condition("Suspended") == ("True", "Suspended")


def test_a_resumed_job_is_a_new_attempt_of_the_same_ranks_that_nobody_pays_for() -> None:
    """A4, A29."""
    world = suspended_world().after(600).edit(suspend=False).settle()
    assert world.names() == [pod_name(0, 2), pod_name(1, 2)]
    assert world.condition("Suspended") == ("False", "Resumed")
    assert "from the checkpoint of step 45" in world.message("Suspended")
    assert world.status["startTime"] == "2026-03-01T12:10:06Z"
    assert world.status["goodput"]["since"] == "2026-03-01T12:00:00Z"
    world.after(1).start().settle()
    assert world.condition("Running") == ("True", "PodsRunning")
    world.after(3).tells(a_progress().training(46, first_step_at=world.now)).settle()
    assert world.condition("Running") == ("True", "Training")
    assert world.condition("Suspended") == ("False", "Resumed"), "it stays told"
    assert world.status["restarts"] == NONE
    assert world.status["goodput"]["suspendedSeconds"] == 600 + 2
    assert world.told[-4:] == ["Suspended", "Resumed", "GangCreated", "Running"]
    assert "AttemptFailed" not in world.told


def test_a_job_can_be_suspended_again_and_again() -> None:
    """A29."""
    world = suspended_world()
    for attempt in (2, 3):
        world.after(5).edit(suspend=False).settle().start().settle()
        world.tells(a_progress().training(50, first_step_at=world.now)).settle()
        assert world.status["phase"] == "Training"
        leave(world.edit(suspend=True).settle(), 50 + attempt)
        assert world.status["checkpoint"]["step"] == 50 + attempt
    assert world.status["attempt"] == 3


def test_resumed_before_its_pods_are_gone_it_waits_for_them() -> None:
    world = training_world().edit(suspend=True).settle().edit(suspend=False).settle()
    assert world.status["attempt"] == 2
    assert world.names() == [pod_name(0), pod_name(1)], "two attempts never run at once"
    assert pod_name(0) in world.status["message"]
    assert world.children["Service", "mlp-gyjmk"]["spec"]["selector"]["bigmodel.io/attempt"] == "1", "they still talk"
    world.terminated().settle()
    assert world.names() == [pod_name(0, 2), pod_name(1, 2)]


def test_pods_past_their_grace_do_not_keep_a_job_from_being_suspended_or_resumed() -> None:
    world = training_world().edit(suspend=True).settle().after(59).settle()
    assert world.condition("Suspended") == ("False", "Suspending")
    world.after(1).settle()
    assert world.condition("Suspended") == ("True", "Suspended")
    world.edit(suspend=False).settle()
    assert {pod_name(0, 2), pod_name(1, 2)} < set(world.names())


def test_pods_on_a_node_that_is_not_ready_do_not_keep_a_job_from_being_suspended() -> None:
    """A17. The node controller takes Ready from its pods, ContainersReady stays."""
    world = training_world().edit(suspend=True).settle()
    for index in (0, 1):
        world.node_not_ready(index)
    world.settle()
    assert world.condition("Suspended") == ("True", "Suspended")


def test_suspended_in_the_middle_of_a_recovery_it_makes_no_further_pods() -> None:
    """C37."""
    world = training_world()
    for _ in range(4):
        world.gone(1).settle()
    assert pod_name(1, replacement=4) not in world.names(), "it pauses before the next successor"
    world.edit(suspend=True).settle().after(60).settle()
    assert world.running() == [pod_name(0)], "it saves"
    assert pod_name(1, replacement=4) not in world.names()
    world.terminated().settle()
    assert world.condition("Suspended") == ("True", "Suspended")
    assert world.names() == []


def test_a_pod_that_is_lost_while_the_job_is_suspended_costs_nothing() -> None:
    world = training_world().edit(suspend=True).settle().gone(1).settle().node_lost(0).settle()
    assert world.condition("Suspended") == ("True", "Suspended")
    assert (world.status["restarts"], world.status["attempt"]) == (NONE, 1)


def test_a_gang_that_had_just_finished_when_it_was_suspended_is_complete() -> None:
    world = training_world().edit(suspend=True).settle()
    world.ends(1, 0, a_last_word(1)).ends(0, 0, a_last_word(0, artifact=an_artifact())).settle()
    assert world.condition("Complete") == ("True", "Complete")
    assert world.status["artifact"]["digest"] == DIGEST


def test_it_is_complete_also_where_the_other_pods_were_not_seen_to_end() -> None:
    world = training_world().edit(suspend=True).settle()
    world.ends(0, 0, a_last_word(0, artifact=an_artifact())).settle()
    assert world.condition("Complete") == ("True", "Complete")


def test_a_gang_that_had_just_given_up_when_it_was_suspended_has_failed() -> None:
    world = training_world().edit(suspend=True).settle().ends(0, 1, gave_up(0)).settle()
    assert world.condition("Failed") == ("True", "MaxRestartsExceeded")


def test_after_the_end_suspending_changes_nothing() -> None:
    world = training_world().completes().settle()
    before = {name: value for name, value in world.status.items() if name not in ("conditions", "observedGeneration")}
    world.edit(suspend=True).settle()
    after = {name: value for name, value in world.status.items() if name not in ("conditions", "observedGeneration")}
    assert after == before
    assert world.condition("Suspended") == ("False", "NotSuspended")


def test_placement_that_is_changed_while_suspended_shows_after_the_resume() -> None:
    """A30."""
    world = suspended_world().edit(nodeSelector={"zone": "b"}, image="trainer:2", nodes=3)
    world.settle()
    assert world.status["nodes"]["desired"] == 3
    world.edit(suspend=False).settle()
    assert len(world.pods()) == 3
    for pod in world.pods():
        assert pod["spec"]["nodeSelector"] == {"zone": "b"}
        assert pod["spec"]["containers"][0]["image"] == "trainer:2"
    assert "Resized" not in world.told


def test_a_spec_that_became_bad_while_suspended_is_told_at_the_resume_and_can_be_corrected() -> None:
    world = suspended_world().edit(suspend=False, parallelism={"data": 7}).settle()
    assert world.condition("Accepted") == ("False", "InvalidSpec")
    assert world.condition("Suspended") == ("True", "Suspended")
    assert world.names() == []
    world.edit(parallelism=None).settle()
    assert world.names() == [pod_name(0, 2), pod_name(1, 2)]


def test_the_store_stays_pinned_through_a_resume() -> None:
    world = suspended_world()
    before = world.status["resolved"]["store"]
    world.edit(suspend=False).settle()
    assert world.status["resolved"]["store"] == before


def test_a_status_that_is_lost_while_suspended_stops_what_runs_and_starts_under_new_names() -> None:
    world = training_world().edit(suspend=True).settle()
    del world.job["status"]
    world.settle()
    assert world.condition("Suspended") == ("False", "Suspending")
    world.edit(suspend=False).settle().terminated().settle()
    assert world.names() == [pod_name(0, 2), pod_name(1, 2)]


# Deadlines


def test_the_active_deadline_stands_while_suspended_and_begins_anew_at_the_resume() -> None:
    """A24."""
    world = training_world(job=a_job().spec(activeDeadlineSeconds=100).manifest)
    world.now = NOON + seconds(99)
    leave(world.edit(suspend=True).settle(), 45)
    world.after(10_000).settle()
    assert "finished" not in world.status
    world.edit(suspend=False).settle().start().settle().after(99).settle()
    assert "finished" not in world.status
    world.after(1).settle()
    assert world.condition("Failed") == ("True", "DeadlineExceeded")


def test_a_resumed_job_that_never_made_a_step_fails_at_its_start_deadline() -> None:
    """A25."""
    job = a_job().spec(suspend=True, scheduling={"startDeadlineSeconds": 60}).manifest
    world = (
        World(job=job).settle().edit(suspend=False).settle().edit(suspend=True).settle().edit(suspend=False).settle()
    )
    assert world.status["attempt"] == 2
    world.waits(0, "ImagePullBackOff", "no such image").start(1).settle().after(60).settle()
    assert world.condition("Failed") == ("True", "StartDeadlineExceeded")


def test_a_suspended_job_is_never_removed_by_its_ttl() -> None:
    """A26."""
    world = suspended_world().edit(ttlSecondsAfterFinished=0).settle().after(1_000_000).settle()
    assert not world.job_deleted


ENDS = {
    "Complete": lambda world: world.completes(),
    "the program failed": lambda world: world.ends(0, 1, gave_up(0)),
    "the deadline": lambda world: world.edit(activeDeadlineSeconds=1).after(2),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_whatever_the_end_what_runs_is_stopped_and_the_ttl_removes_the_job(end: object) -> None:
    """A27. Also where nobody looked when it was due."""
    world = training_world().edit(ttlSecondsAfterFinished=60)
    end(world)  # type: ignore[operator]
    world.settle().terminated().settle()
    assert world.running() == []
    assert not world.job_deleted
    world.after(100_000).settle()
    assert world.job_deleted


# Resize


def test_a_resized_gang_saves_and_leaves_before_its_successor_is_made() -> None:
    world = training_world().edit(nodes=3).settle()
    assert world.status["attempt"] == 2
    assert world.names() == [pod_name(0), pod_name(1)]
    assert all("deletionTimestamp" in world.children["Pod", name]["metadata"] for name in world.names())
    assert world.names("PodGroup") == []
    for index in (0, 1):
        pod = world.children["Pod", pod_name(index)]
        word = a_last_word(index, 1, 143, reason="Terminated", checkpoint=a_checkpoint(47))
        world._status(pod, phase="Failed")
        terminated = {"exitCode": 143, "reason": "Error", "message": word, "finishedAt": "2026-03-01T12:00:05Z"}
        world._container(pod, {"terminated": terminated})
    world.settle()
    assert world.status["checkpoint"]["step"] == 47
    world.terminated().settle()
    assert world.names() == [pod_name(0, 2), pod_name(1, 2), pod_name(2, 2)]
    assert world.children["PodGroup", "mlp-gyjmk-a2"]["spec"]["schedulingPolicy"] == {"gang": {"minCount": 3}}
    assert world.status["restarts"] == NONE
    assert world.status["goodput"]["lostSeconds"] == 0
    assert [incident["cause"] for incident in world.status["incidents"]] == ["Resized"]
    assert next(event.note for event in world.events if event.reason == "Resized") == (
        "spec.nodes changed from 2 to 3: the gang saves a checkpoint and leaves, and 3 pods go on from it"
    )


def test_two_quick_edits_of_the_size_end_in_the_last() -> None:
    world = training_world().edit(nodes=3).settle().edit(nodes=1).settle().terminated().settle()
    assert world.names() == [pod_name(0, 3)]
    assert world.children["PodGroup", "mlp-gyjmk-a3"]["spec"]["schedulingPolicy"] == {"gang": {"minCount": 1}}
    assert world.status["restarts"] == NONE


def test_resizing_does_not_disturb_a_gang_that_publishes() -> None:
    world = training_world()
    world.tells(a_progress().training(2000, NOON + seconds(4)).publishing()).settle().edit(nodes=3).settle()
    assert world.status["attempt"] == 1
    world.completes().settle()
    assert world.condition("Complete") == ("True", "Complete")
