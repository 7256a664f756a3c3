"""What goes wrong under a job, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bigmodel.api.job import JobIncident
from bigmodel.controller.job.failure import pause_until
from tests.builders import NOON, a_job, a_last_word, a_progress, gave_up, pod_name, seconds
from tests.unit.controller.job.world import World, training_world

NONE = {"program": 0, "infrastructure": 0, "hang": 0, "total": 0}


# The program


def test_a_gang_that_gave_up_fails_with_rank_exit_code_node_and_traceback() -> None:
    world = training_world().ends(1, 1, gave_up(1)).ends(0, 1, gave_up(0)).settle()
    assert world.condition("Failed") == ("True", "MaxRestartsExceeded")
    message = world.message("Failed")
    for word in ("rank 1, exit code 1", f"pod {pod_name(1)}", "node node-2", "spec.failurePolicy.maxRestarts"):
        assert word in message
    assert message.endswith("TypeError: unexpected keyword 'beta'")
    assert world.told[-1] == "Failed"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("MaxRestartsExceeded", "MaxRestartsExceeded"),
        ("CrashLoop", "CrashLoop"),
        ("FailJob", "NonRetryableExitCode"),
        ("MaxHangRestartsExceeded", "MaxHangRestartsExceeded"),
        ("UnequalNodes", "UnequalNodes"),
        ("NoArtifact", "ArtifactMissing"),
    ],
)
def test_the_launchers_verdict_is_the_reason(word: str, reason: str) -> None:
    world = training_world().ends(0, 1, gave_up(0, reason=word)).settle()
    assert world.condition("Failed") == ("True", reason)


def test_one_pod_that_lived_to_say_it_is_enough() -> None:
    world = training_world().gone(0).ends(1, 1, gave_up(1)).settle()
    assert world.condition("Failed") == ("True", "MaxRestartsExceeded")


def test_a_very_long_traceback_keeps_its_last_line_and_the_message_its_bound() -> None:
    error = {
        **{"rank": 0, "index": 0, "exitCode": 1, "message": "x" * 900},
        "traceback": "\n".join(f"  line {n}" for n in range(120)) + "\nValueError: the end",
    }
    world = training_world().ends(0, 1, gave_up(0, error=error)).settle()
    assert len(world.message("Failed")) <= 1024
    assert world.message("Failed").endswith("ValueError: the end")


def test_restarts_in_place_are_copied_not_added() -> None:
    world = training_world()
    for _ in range(3):
        told = a_progress().training(50, NOON + seconds(4)).with_(programRestarts=2, hangRestarts=1, generation=4)
        world.after(10).tells(told.incident(resumedFromStep=40, recoverySeconds=0.4)).settle()
    assert world.status["restarts"] == {"program": 2, "infrastructure": 0, "hang": 1, "total": 3}
    assert [(i["cause"], i["rank"], i["exitCode"], i["node"]) for i in world.status["incidents"]] == [
        ("ProgramError", 1, 137, "node-2")
    ]
    assert world.told.count("Restarted") == 1


def test_a_new_attempt_counts_on_from_what_was_spent() -> None:
    world = training_world()
    world.tells(a_progress().training(50, NOON + seconds(4)).with_(programRestarts=2, generation=3)).settle()
    world.gone(0).gone(1).settle()
    run = next(e for e in world.pod(0)["spec"]["containers"][0]["env"] if e["name"] == "BIGMODEL_RUN")["value"]
    assert '"spent":{"hang":0,"program":2}' in run


def test_the_last_lines_of_the_first_failing_rank_outlive_it() -> None:
    """A18."""
    world = training_world().after(10)
    log = "step 61\nCUDA error: device-side assert triggered"
    told = a_progress().training(62, NOON + seconds(4)).with_(programRestarts=1, generation=2)
    world.tells(told.incident(log=log, step=61, resumedFromStep=50, recoverySeconds=0.4)).settle()
    incident = world.status["incidents"][-1]
    assert (incident["log"], incident["step"], incident["resumedFromStep"]) == (log, 61, 50)
    note = next(event.note for event in world.events if event.reason == "Restarted")
    assert note == (
        "rank 1 (index 1) was killed by SIGKILL; all ranks go on from the last checkpoint. Last line of its log: CUDA "
        "error: device-side assert triggered"
    )


# One pod


def replaced(world: World, index: int, cause: str) -> None:
    assert world.status["attempt"] == 1
    assert world.status["replacements"] == [{"index": index, "count": 1}]
    assert world.status["restarts"] == {**NONE, "infrastructure": 1, "total": 1}
    assert pod_name(index, replacement=1) in world.names()
    assert world.status["incidents"][-1]["cause"] == cause
    assert world.status["incidents"][-1]["index"] == index
    assert "PodReplaced" in world.told


LOST = {
    "it is gone": (lambda w: w.gone(1), "Vanished"),
    "its node is not Ready": (lambda w: w.node_lost(1), "NodeLost"),
    "it was deleted and left after its checkpoint": (
        lambda w: w.deleted(1).ends(1, 143, a_last_word(1, exit_code=143, reason="Terminated")),
        "Deleted",
    ),
    "it was deleted and killed": (lambda w: w.deleted(1).ends(1, 137), "Deleted"),
    "it outlives its grace period": (lambda w: w.deleted(1).after(60), "Deleted"),
    "it was preempted": (lambda w: w.ends(1, 143, disrupted="PreemptionByScheduler"), "Preempted"),
    "it was drained": (lambda w: w.ends(1, 137, disrupted="EvictionByEvictionAPI"), "Evicted"),
    "its node had no room after all": (lambda w: w.refused_by_node(1, "OutOfcpu", "not enough cpu"), "RejectedByNode"),
    "the kubelet threw it out": (lambda w: w.refused_by_node(1, "Evicted", "low on memory"), "Evicted"),
    "its processes would not die": (
        lambda w: w.ends(1, 75, a_last_word(1, exit_code=75, reason="NotReaped")),
        "NotReaped",
    ),
    "its launcher lost index 0 for good": (
        lambda w: w.ends(1, 75, a_last_word(1, exit_code=75, reason="CoordinatorLost")),
        "LeftAlone",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("lose", "cause"), LOST.values(), ids=LOST)
def test_a_lost_pod_is_replaced_and_paid_from_the_infrastructure_budget(lose: object, cause: str) -> None:
    world = training_world()
    lose(world)  # type: ignore[operator]
    replaced(world.settle(), 1, cause)


def test_index_0_is_replaced_like_any_other() -> None:
    replaced(training_world().gone(0).settle(), 0, "Vanished")


def test_a_pod_that_is_being_deleted_is_given_its_grace_to_save() -> None:
    world = training_world().deleted(1).after(59).settle()
    assert world.status["restarts"] == NONE
    assert world.status["phase"] == "Recovering"
    assert f"Pod {pod_name(1)} is told to stop" in world.status["message"]
    assert world.reconcile().requeue_after == pytest.approx(1)


def test_a_replacement_is_counted_before_it_is_made_and_its_predecessor_leaves_the_dns_first() -> None:
    world = training_world().node_lost(1)
    counted = world.reconcile()
    assert counted.again
    assert (counted.create, counted.relabel, counted.delete) == ((), (), ())
    acted = world.reconcile()
    assert [(r.name, dict(r.labels)) for r in acted.relabel] == [(pod_name(1), {"bigmodel.io/active": "false"})]
    assert [m["metadata"]["name"] for m in acted.create] == [pod_name(1, replacement=1)]
    assert acted.delete == (), "the lost one is nobody's to force"


def test_a_successor_keeps_host_name_and_group_and_gets_a_higher_incarnation() -> None:
    world = training_world().gone(1).settle()
    old_style, new = world.pod(0)["spec"], world.pod(1)["spec"]
    assert new["hostname"] == "mlp-1"
    assert new["schedulingGroup"] == old_style["schedulingGroup"]
    assert {"name": "BIGMODEL_INCARNATION", "value": "1"} in new["containers"][0]["env"]


def test_while_a_pod_is_replaced_the_job_is_degraded_and_recovering_and_then_trains_again() -> None:
    world = training_world().node_lost(1).settle()
    assert world.status["phase"] == "Recovering"
    assert world.condition("Degraded") == ("True", "Recovering")
    assert world.condition("Admitted") == ("True", "Admitted")
    assert "node-2" in world.status["message"]
    world.after(5).start(1).settle()
    told = a_progress().training(60, NOON + seconds(4)).incident(
        cause="PodLost", at=NOON.timestamp() + 4, rank=None, exitCode=None, recoverySeconds=5.6, resumedFromStep=40
    )  # fmt: skip
    world.after(2).tells(told).settle()
    assert world.status["phase"] == "Training"
    assert world.condition("Degraded") == ("False", "AsWanted")
    assert world.status["incidents"] == [
        {
            "at": "2026-03-01T12:00:04Z",
            "attempt": 1,
            "cause": "NodeLost",
            "index": 1,
            "node": "node-2",
            "message": f"Pod {pod_name(1)} on node node-2 is on a node that is not Ready",
            "step": 40,
            "resumedFromStep": 40,
            "recoverySeconds": 6,
        }
    ]


def test_a_pod_can_be_lost_again_and_again_within_the_budget() -> None:
    world = training_world(job=a_job().spec(failurePolicy={"maxInfrastructureRestarts": 2}).manifest)
    for count in (1, 2):
        world.gone(1).settle().start().settle()
        assert world.status["replacements"] == [{"index": 1, "count": count}]
    world.gone(1).settle()
    assert world.condition("Failed") == ("True", "MaxInfrastructureRestartsExceeded")
    assert "2 of 2 restarts are used (spec.failurePolicy.maxInfrastructureRestarts)" in world.status["message"]


def test_losses_in_a_row_are_followed_by_growing_pauses() -> None:
    def after(*losses: float) -> float | None:
        incidents = [JobIncident(at=NOON + seconds(at), attempt=1, cause="Vanished", message="gone") for at in losses]
        until = pause_until(incidents)
        return (until - NOON).total_seconds() - losses[-1] if until is not None and losses else None

    assert after() is None
    assert [after(*range(n)) for n in range(1, 8)] == [0, 0, 0, 1, 3, 7, 15]
    assert after(*range(10)) == 60
    assert after(0, 1, 2, 3, 1000) == 0, "what is long past does not count"


def test_the_pause_holds_back_the_successor_not_the_count() -> None:
    world = training_world()
    for _ in range(4):
        world.gone(1).settle()
    assert world.status["restarts"]["infrastructure"] == 4
    assert pod_name(1, replacement=4) not in world.names()
    assert world.reconcile().requeue_after == pytest.approx(1)
    world.after(1).settle()
    assert pod_name(1, replacement=4) in world.names()


# A pod that failed by itself


def test_a_pod_out_of_memory_is_replaced_at_the_programs_cost() -> None:
    world = training_world().ends(1, 137, reason="OOMKilled").settle()
    assert world.status["restarts"] == {**NONE, "program": 1, "total": 1}
    assert world.status["incidents"][-1]["cause"] == "OOMKilled"
    assert "spec.resources.limits.memory" in world.status["incidents"][-1]["message"]
    assert pod_name(1, replacement=1) in world.names()


def test_the_same_end_three_times_in_a_row_without_a_step_is_a_crash_loop() -> None:
    world = training_world(job=a_job().spec(failurePolicy={"maxRestarts": 10}).manifest)
    for _ in range(3):
        world.start().ends(1, 137, reason="OOMKilled").settle()
    assert world.condition("Failed") == ("True", "CrashLoop")
    assert world.status["replacements"] == [{"index": 1, "count": 2}], "three tries"


def test_a_step_in_between_is_no_crash_loop() -> None:
    world = training_world(job=a_job().spec(failurePolicy={"maxRestarts": 10}).manifest)
    for number in range(4):
        world.after(20).start().ends(1, 137, reason="OOMKilled").settle().after(5).start().settle()
        at = world.now.timestamp() - 5
        told = a_progress().training(100 + number, NOON + seconds(4))
        told = told.incident(cause="PodLost", at=at, rank=None, exitCode=None, recoverySeconds=5.0, resumedFromStep=90)
        world.tells(told).settle()
    assert "finished" not in world.status
    assert world.status["restarts"]["program"] == 4


def test_max_restarts_bounds_pods_that_fail_by_themselves() -> None:
    world = training_world(job=a_job().spec(failurePolicy={"maxRestarts": 0}).manifest)
    world.ends(1, 3, "bigmodel-launcher: not found").settle()
    assert world.condition("Failed") == ("True", "MaxRestartsExceeded")
    assert "bigmodel-launcher: not found" in world.status["message"]
    assert "exit code 3" in world.status["message"]


RULES = {
    "the first match wins": ([{"onExitCodes": [3], "action": "FailJob"}, {"action": "RestartAndIgnore"}], "Failed", 0),
    "a rule without codes matches every failure": ([{"action": "FailJob"}], "Failed", 0),
    "another code goes on to the next rule": (
        [{"onExitCodes": [42], "action": "FailJob"}, {"onExitCodes": [3], "action": "RestartAndIgnore"}],
        "Queued",
        0,
    ),
    "no rule matches": ([{"onExitCodes": [42], "action": "FailJob"}], "Recovering", 1),
}


@pytest.mark.parametrize(("rules", "phase", "program"), RULES.values(), ids=RULES)
def test_rules_by_exit_code(rules: list[dict[str, object]], phase: str, program: int) -> None:
    world = training_world(job=a_job().spec(failurePolicy={"rules": rules}).manifest).ends(1, 3).settle()
    assert world.status["restarts"]["program"] == program
    if phase == "Failed":
        assert world.condition("Failed") == ("True", "NonRetryableExitCode")
        assert "spec.failurePolicy.rules[0]" in world.status["message"]
    else:
        assert world.status["phase"] == "Recovering"


def test_a_rule_does_not_catch_what_the_program_did_not_do() -> None:
    world = training_world(job=a_job().spec(failurePolicy={"rules": [{"action": "FailJob"}]}).manifest)
    replaced(world.ends(1, 137, disrupted="EvictionByEvictionAPI").settle(), 1, "Evicted")


# A whole attempt


def test_two_pods_lost_at_once_cost_the_attempt() -> None:
    world = training_world().node_lost(0).gone(1).settle()
    assert world.status["attempt"] == 2
    assert world.status["replacements"] == []
    assert world.status["restarts"] == {**NONE, "infrastructure": 1, "total": 1}
    assert world.names("PodGroup") == ["mlp-gyjmk-a2"]
    assert {pod_name(0, 2), pod_name(1, 2)} < set(world.names()), "at once: what is lost is fenced, not waited for"
    selector = world.children["Service", "mlp-gyjmk"]["spec"]["selector"]
    assert selector["bigmodel.io/attempt"] == "2"
    assert "AttemptFailed" in world.told
    world.start().settle()
    world.after(3).tells(a_progress().training(10, first_step_at=world.now)).settle()
    assert world.status["phase"] == "Training"
    assert world.status["incidents"][-1]["recoverySeconds"] == 3


def test_a_gang_that_leaves_pod_by_pod_costs_one_attempt_not_a_replacement_for_each() -> None:
    world = training_world().deleted(0).deleted(1).settle()
    assert world.status["attempt"] == 1, "they save a checkpoint"
    world.ends(1, 143, a_last_word(1, exit_code=143, reason="Terminated"), disrupted="PreemptionByScheduler").settle()
    assert world.status["attempt"] == 2
    assert world.status["restarts"] == {**NONE, "infrastructure": 1, "total": 1}
    assert world.status["incidents"][-1]["cause"] == "Preempted"


def test_a_new_attempt_is_counted_before_anything_is_deleted_or_made() -> None:
    world = training_world().gone(0).gone(1)
    counted = world.reconcile()
    assert counted.again
    assert (counted.create, counted.delete, counted.apply) == ((), (), ())
    assert world.status["attempt"] == 2


def test_a_pod_that_others_no_longer_wait_for_costs_the_attempt() -> None:
    world = training_world().ends(1, 0, a_last_word(1)).gone(0).settle()
    assert world.status["attempt"] == 2


def test_what_still_runs_of_the_old_attempt_is_stopped_and_what_ended_is_kept_for_one_attempt() -> None:
    job = a_job().spec(nodes=3).manifest
    world = training_world(job=job).ends(0, 137, disrupted="EvictionByEvictionAPI").gone(1).settle()
    assert "deletionTimestamp" in world.children["Pod", pod_name(2)]["metadata"]
    assert pod_name(0) in world.names()
    assert world.names("PodGroup") == [], "the new gang waits for the last pod of the old one"
    world.terminated().settle().gone(0).gone(1).settle()
    assert world.status["attempt"] == 3
    assert pod_name(0) not in world.names()


def test_a_replaced_gang_without_a_step_in_time_is_made_anew() -> None:
    world = training_world(job=a_job().spec(scheduling={"startDeadlineSeconds": 60}).manifest)
    world.after(1).gone(1).settle().start(1).settle()
    world.tells(a_progress().with_(firstStepAt=NOON.timestamp() + 4, generation=2)).settle()
    world.after(60).settle()
    assert world.status["attempt"] == 2
    assert world.status["restarts"]["infrastructure"] == 2
    assert world.status["incidents"][-1]["cause"] == "NeverStarted"


def test_a_restart_in_place_is_no_late_start() -> None:
    world = training_world(job=a_job().spec(scheduling={"startDeadlineSeconds": 60}).manifest).after(3600)
    world.tells(a_progress().with_(firstStepAt=NOON.timestamp() + 4, generation=2, programRestarts=1)).settle()
    assert world.status["attempt"] == 1
    assert "finished" not in world.status


# What the controller does not know


def test_a_pod_that_does_not_tell_its_progress_is_spoken_of_and_left_alone() -> None:
    world = training_world()
    assert world.pulled is not None
    world.pulled = replace(world.pulled, failing_since=world.now, failure="no answer within 2 s")
    world.after(29).settle()
    assert world.condition("Degraded") == ("False", "AsWanted")
    world.after(1).settle()
    assert world.condition("Degraded") == ("True", "ProgressUnreachable")
    assert "8270" in world.message("Degraded")
    assert world.status["phase"] == "Training"


def test_a_new_controller_keeps_what_was_known_until_index_0_answers() -> None:
    world = training_world()
    before = world.status
    world.pulled = None
    world.after(1).settle()
    assert world.status == before


def test_a_lost_status_is_begun_at_the_attempt_whose_pods_live() -> None:
    world = training_world().gone(0).gone(1).settle().start().settle()
    del world.job["status"]
    world.settle()
    assert world.status["attempt"] == 2
    assert world.names() == [pod_name(0, 2), pod_name(1, 2)]
