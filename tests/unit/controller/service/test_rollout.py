"""The life of a service, told against a small cluster in memory."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from bigmodel.api import not_yet
from bigmodel.api.verdict import VerdictStage
from tests.unit.controller.service.world import (
    DIGEST_A,
    DIGEST_B,
    PARITY_FAILS,
    Health,
    World,
    a_job,
    a_service,
    a_training_job,
    crashed,
    done,
    running,
    serving_world,
    waiting,
)


def test_a_service_whose_job_trains_waits_and_says_how_far_it_is() -> None:
    world = World(job=a_training_job("62%"))
    world.run()
    assert world.status["rollout"] == "waiting bmj/mlp 62%"
    assert world.status["phase"] == "Waiting"
    assert world.condition("SourceAvailable") == ("False", "JobNotFinished")
    assert world.condition("Promoted") == ("Unknown", "WaitingForSource")
    assert world.condition("Ready") == ("False", "NoVerifiedRevision")
    assert world.objects == {}


def test_the_first_revision_goes_from_record_to_traffic() -> None:
    world = World(job=a_job())
    world.run()
    assert world.selected == 1
    assert world.status["phase"] == "Serving"
    assert world.status["rollout"] == "-"
    assert world.status["url"] == "http://mlp.ml.svc.cluster.local:8000"
    assert world.status["grpcUrl"] == "mlp.ml.svc.cluster.local:8001"
    assert world.status["replicas"] == {"desired": 1, "ready": 1, "summary": "1/1"}
    assert world.status["selector"] == "bigmodel.io/service=mlp,bigmodel.io/revision=1"
    assert world.status["stable"] == {
        "revision": 1,
        "digest": DIGEST_A,
        "shortDigest": "a" * 12,
        "weight": 100,
        "job": "mlp",
        "variant": "default",
        "timings": {
            "scheduleSeconds": 0,
            "pullSeconds": 0,
            "downloadSeconds": 4,
            "loadSeconds": 3,
            "warmupSeconds": 1,
        },
        "summary": "r1",
    }
    assert "candidate" not in world.status
    assert {c["type"]: (c["status"], c["reason"]) for c in world.status["conditions"]} == {
        "Ready": ("True", "Serving"),
        "Accepted": ("True", "Accepted"),
        "SourceAvailable": ("True", "ArtifactAvailable"),
        "ModelVerified": ("True", "GoldenMatched"),
        "Progressing": ("False", "RolloutComplete"),
        "Promoted": ("True", "Promoted"),
        "Degraded": ("False", "AsWanted"),
    }
    assert "64 golden samples" in world.message("ModelVerified")
    assert [event.reason for event in world.events] == ["RevisionCreated", "Promoted"]


def test_the_record_is_written_before_anything_else_and_the_address_after_verification() -> None:
    world = World(job=a_job())
    world.run()
    children = [write for write in world.writes if write != "status"]
    assert children == [
        "create ControllerRevision/mlp-r1",
        "create Pod/mlp-r1-inspect",
        "relabel ControllerRevision/mlp-r1",
        "create NetworkPolicy/mlp",
        "create Service/mlp-r1",
        "create Deployment/mlp-r1",
        "delete Pod/mlp-r1-inspect",
        "create Service/mlp",
        "relabel ControllerRevision/mlp-r1",
    ]


def test_a_revision_is_dark_while_its_pods_load() -> None:
    world = World(job=a_job())
    world.health[1] = Health(ready=False)
    world.run()
    assert world.selected is None
    assert world.status["candidate"]["stage"] == "Verifying"
    assert world.status["candidate"]["weight"] == 0
    assert world.status["candidate"]["timings"] == {
        "scheduleSeconds": 0,
        "pullSeconds": 0,
        "downloadSeconds": 4,
        "loadSeconds": 3,
        "warmupSeconds": 1,
    }
    assert world.condition("Promoted") == ("Unknown", "RolloutInProgress")
    assert world.status["phase"] == "Preparing"


@pytest.mark.parametrize(
    ("health", "seconds", "text"),
    [
        (Health(scheduled=False, scheduler_says=""), 0, "r1 Unschedulable"),
        (Health(fetch=waiting("PodInitializing"), ready=False), 41, "r1 pulling 40s"),
        (Health(server=waiting("PodInitializing"), ready=False, stage=None), 130, "r1 pulling 2m"),
        (Health(ready=False, stage=None), 8, "r1 loading 5s"),
        (Health(ready=False), 8, "r1 verifying"),
    ],
)
def test_the_rollout_column_says_how_far_a_revision_is(health: Health, seconds: int, text: str) -> None:
    world = World(job=a_job())
    world.health[1] = health
    world.run()
    world.later(seconds)
    world.run()
    assert world.status["rollout"] == text


def test_a_new_artefact_is_loaded_dark_then_takes_the_address_then_the_old_pods_go() -> None:
    world = serving_world()
    world.job = a_job(DIGEST_B, uid="job-2")
    world.health[2] = Health(ready=False)
    world.run()
    assert world.selected == 1
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Promoted") == ("Unknown", "RolloutInProgress")
    assert world.status["phase"] == "RollingOut"

    world.health[2] = Health()
    world.run()
    assert world.selected == 2
    assert world.status["stable"]["digest"] == DIGEST_B
    assert world.status["rollout"] == "r1 kept 5m"
    assert world.replicas(1) == 1
    assert world.condition("Promoted") == ("True", "Promoted")

    world.later(299)
    world.run()
    assert world.replicas(1) == 1
    world.later(1)
    world.run()
    assert world.names_of("Deployment") == ["mlp-r2"]
    assert world.names_of("Service") == ["mlp", "mlp-r2"]
    assert world.names_of("ControllerRevision") == ["mlp-r1", "mlp-r2"]
    assert world.status["rollout"] == "-"
    assert [h["revision"] for h in world.status["history"]] == [2, 1]


def test_all_replicas_are_verified_before_a_successor_takes_the_address() -> None:
    world = serving_world(server={"replicas": 3})
    world.health[2] = Health(ready_limit=2)
    world.change_spec(batching={"maxBatchSize": 8})
    world.run()
    assert world.selected == 1
    world.health[2] = Health()
    world.run()
    assert world.selected == 2


def test_the_first_revision_serves_with_its_first_verified_pod() -> None:
    world = World(a_service(server={"replicas": 3}), a_job())
    world.health[1] = Health(ready_limit=1)
    world.run()
    assert world.selected == 1
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Degraded") == ("True", "FewerReady")
    assert world.status["phase"] == "Degraded"
    assert world.status["replicas"]["summary"] == "1/3"


LOAD_ERROR = (
    "E0301 model_lifecycle.cc:654] \"failed to load 'mlp' version 2: Internal: BadZipFile: File is not a zip file"
    '\\n\\nAt:\\n  /usr/lib/python3.11/zipfile.py(1385): _RealGetContents\\n"'
)
STUB_DIED = "failed to load 'mlp' version 2: Internal: Stub process 'mlp_0_0' is not healthy."
FETCH = '{"ok":false,"reason":"%s","message":"mlp r2: %s"}'

REJECTIONS = {
    "corrupt model": (
        Health(server=crashed(1, LOAD_ERROR), ready=False, stage=None),
        "ModelLoadFailed",
        "BadZipFile: File is not a zip file",
        "r2 rejected: load",
    ),
    "the model's process killed for memory": (
        Health(server=crashed(1, STUB_DIED), ready=False, stage=None),
        "ModelLoadFailed",
        "limits.memory",
        "r2 rejected: load",
    ),
    "golden answers differ": (PARITY_FAILS, "ParityFailed", "sample 7 differs", "r2 rejected: parity"),
    "a verifier's own reason": (
        Health(ready=False, stage="Failed", reason="not a word!", says="??"),
        "VerificationFailed",
        "??",
        "r2 rejected: verification",
    ),
    "other bytes than published": (
        Health(fetch=crashed(1, FETCH % ("DigestMismatch", "model/program.pt2")), ready=False, stage=None),
        "DigestMismatch",
        "model/program.pt2",
        "r2 rejected: digest",
    ),
    "artefact gone": (
        Health(fetch=crashed(1, FETCH % ("ArtifactNotFound", "no manifest.json")), ready=False, stage=None),
        "ArtifactNotFound",
        "no manifest.json",
        "r2 rejected: ArtifactNotFound",
    ),
    "unusable configuration": (
        Health(fetch=crashed(1, FETCH % ("InvalidConfig", "maxBatchSize 128 > 64")), ready=False, stage=None),
        "InvalidConfig",
        "maxBatchSize 128 > 64",
        "r2 rejected: InvalidConfig",
    ),
    "crash loop": (
        Health(server=crashed(139, "Segmentation fault", restarts=3), ready=False, stage=None),
        "ServerCrashLoop",
        "exit code 139",
        "r2 rejected: ServerCrashLoop",
    ),
    "killed for memory": (
        Health(server=crashed(137, restarts=3, reason="OOMKilled"), ready=False, stage=None),
        "OutOfMemory",
        "outgrew",
        "r2 rejected: OutOfMemory",
    ),
}


@pytest.mark.parametrize(("health", "reason", "text", "rollout"), REJECTIONS.values(), ids=REJECTIONS)
def test_a_faulty_candidate_is_rejected_once_and_stable_never_notices(
    health: Health, reason: str, text: str, rollout: str
) -> None:
    world = serving_world()
    ready_before = next(c for c in world.status["conditions"] if c["type"] == "Ready")
    pod_before = dict(world.pods)
    world.health[2] = health
    world.job = a_job(DIGEST_B, uid="job-2")
    world.run()
    assert world.selected == 1
    assert world.replicas(2) == 0
    assert world.condition("Promoted") == ("False", "Rejected")
    assert world.condition("Progressing") == ("False", reason)
    assert text in world.message("Promoted")
    assert "r1 keeps all traffic" in world.message("Promoted")
    assert world.status["rollout"] == rollout
    assert world.status["phase"] == "Serving"
    assert world.status["history"][0]["result"] == "Rejected"
    assert next(c for c in world.status["conditions"] if c["type"] == "Ready") == ready_before
    assert {name: pod for name, pod in world.pods.items() if "-r1-" in name} == pod_before

    world.later(86_400)
    world.run()
    assert world.replicas(2) == 0, "a rejected fingerprint is not tried again by itself"
    assert world.names_of("ControllerRevision") == ["mlp-r1", "mlp-r2"]


def test_two_crashes_are_not_a_loop_yet() -> None:
    world = serving_world()
    world.health[2] = Health(server=crashed(139, restarts=2), ready=False, stage=None)
    world.job = a_job(DIGEST_B, uid="job-2")
    world.run()
    assert world.condition("Promoted") == ("Unknown", "RolloutInProgress")
    assert world.replicas(2) == 1


def test_a_model_that_does_not_answer_is_restarted_before_it_is_rejected() -> None:
    world = serving_world()
    silent = Health(ready=False, stage=VerdictStage.FAILED, reason="GoldenRequestFailed", says="500")
    world.health[2] = silent
    world.job = a_job(DIGEST_B, uid="job-2")
    world.run()
    assert world.condition("Progressing") == ("False", "GoldenRequestFailed")
    assert world.replicas(2) == 1
    world.health[2] = dataclasses.replace(silent, server=running() | {"restartCount": 3})
    world.kubelet()
    world.run()
    assert world.condition("Promoted") == ("False", "Rejected")
    assert world.status["rollout"] == "r2 rejected: golden request"


def test_a_verdict_against_a_pod_counts_more_than_its_readiness_of_a_moment_ago() -> None:
    world = serving_world()
    world.health[2] = Health(stage=VerdictStage.FAILED, reason="ParityFailed", says="sample 7 differs")
    world.job = a_job(DIGEST_B, uid="job-2")
    world.run()
    world.later(60)
    world.run()
    assert world.selected == 1
    assert world.condition("Promoted") == ("False", "Rejected")
    world.health[1] = world.health[2]
    world.kubelet()
    world.reconcile()
    assert world.status["replicas"]["summary"] == "0/1"


def test_the_model_s_own_fault_decides_also_when_the_deadline_has_passed() -> None:
    world = World(a_service(server={"startupDeadlineSeconds": 60}), a_job())
    world.health[1] = Health(ready=False, stage=None)
    world.run()
    world.later(3600)  # nobody looked
    world.health[1] = PARITY_FAILS
    world.kubelet()
    world.run()
    assert world.condition("Progressing") == ("False", "ParityFailed")
    assert world.condition("Promoted") == ("False", "Rejected")


def test_a_rejected_first_revision_leaves_a_failed_service_that_says_what_to_do() -> None:
    world = World(job=a_job())
    world.health[1] = PARITY_FAILS
    world.run()
    assert world.selected is None
    assert world.status["phase"] == "Failed"
    assert world.condition("Promoted") == ("False", "Rejected")
    assert world.condition("Ready") == ("False", "NoVerifiedRevision")
    assert world.condition("ModelVerified") == ("False", "ParityFailed")
    assert "nothing serves" in world.status["message"]
    assert [event.reason for event in world.events] == ["RevisionCreated", "Rejected"]


def test_a_loosened_gate_gives_a_rejected_model_another_try() -> None:
    world = World(job=a_job())
    world.health[1] = PARITY_FAILS
    world.run()
    world.change_spec(gates={"parity": {"absolute": 1.0}})
    world.run()
    assert world.selected == 2
    assert world.status["stable"]["digest"] == DIGEST_A


HOLD_UPS = {
    "no GPU free": (
        Health(scheduled=False, scheduler_says="0/2 nodes are available: 2 Insufficient nvidia.com/gpu."),
        "InsufficientGPU",
        "8 nvidia.com/gpu",
    ),
    "no node fits": (
        Health(scheduled=False, scheduler_says="0/2 nodes are available: 2 Insufficient memory."),
        "Unschedulable",
        "Insufficient memory",
    ),
    "the store's login is missing": (
        Health(fetch=waiting("CreateContainerConfigError", 'secret "s3-login" not found'), ready=False, stage=None),
        "StoreSecretMissing",
        "kubectl create secret generic s3-login -n ml",
    ),
    "the image does not exist": (
        Health(server=waiting("ImagePullBackOff", "Back-off pulling image triton:1"), ready=False, stage=None),
        "ImagePullFailed",
        "triton:1",
    ),
    "the store does not answer": (
        Health(fetch=crashed(1, FETCH % ("StoreUnreachable", "connection refused")), ready=False, stage=None),
        "StoreUnreachable",
        "connection refused",
    ),
    "the store refuses the keys": (
        Health(fetch=crashed(1, FETCH % ("StoreForbidden", "403")), ready=False, stage=None),
        "StoreForbidden",
        "rights",
    ),
    "fetch dies without a word": (
        Health(fetch=crashed(137, reason="OOMKilled"), ready=False, stage=None),
        "FetchFailed",
        "OOMKilled",
    ),
}


@pytest.mark.parametrize(("health", "reason", "text"), HOLD_UPS.values(), ids=HOLD_UPS)
def test_what_heals_by_itself_holds_a_candidate_up_and_is_not_its_end(health: Health, reason: str, text: str) -> None:
    server = {"resources": {"limits": {"nvidia.com/gpu": 8}}}
    world = World(a_service(server=server), a_job())
    world.health[1] = health
    world.run()
    assert world.condition("Progressing") == ("False", reason)
    assert text in world.message("Progressing")
    assert world.status["rollout"] == f"r1 {reason}"
    assert world.condition("Promoted") == ("Unknown", "RolloutInProgress")
    assert world.replicas(1) == 1
    assert [event.reason for event in world.events] == ["RevisionCreated", reason]

    world.health[1] = Health()
    world.run()
    assert world.condition("Ready") == ("True", "Serving")


def test_a_candidate_past_its_startup_deadline_is_given_up_and_tried_again_with_longer_pauses() -> None:
    world = serving_world(server={"startupDeadlineSeconds": 60})
    world.health[2] = Health(ready=False, stage=None)
    world.job = a_job(DIGEST_B, uid="job-2")
    world.run()
    for pause in (30, 60, 120):
        world.later(60)
        world.run()
        assert world.condition("Promoted") == ("False", "Aborted")
        assert world.condition("Progressing") == ("False", "StartupDeadlineExceeded")
        assert world.status["rollout"] == "r2 aborted: StartupDeadlineExceeded"
        assert world.replicas(2) == 0
        world.later(pause - 1)
        world.run()
        assert world.replicas(2) == 0
        world.later(1)
        world.run()
        assert world.replicas(2) == 1
        assert world.condition("Promoted") == ("Unknown", "RolloutInProgress")
    world.health[2] = Health()
    world.run()
    assert world.selected == 2


def test_a_rollout_that_takes_too_long_gives_way_but_the_first_revision_waits() -> None:
    nowhere = Health(scheduled=False, scheduler_says="2 Insufficient memory")
    world = World(a_service(rollout={"deadlineSeconds": 100}), a_job())
    world.health[1] = nowhere
    world.run()
    world.later(1000)
    world.run()
    assert world.replicas(1) == 1
    world.health[1] = Health()
    world.run()
    world.health[2] = nowhere
    world.change_spec(batching={"maxBatchSize": 8})
    world.run()
    world.later(100)
    world.run()
    assert world.condition("Progressing") == ("False", "RolloutDeadlineExceeded")
    assert "Insufficient memory" in world.message("Progressing")
    assert world.replicas(2) == 0


def test_the_last_spec_wins_in_the_middle_of_a_rollout() -> None:
    world = serving_world()
    world.health[2] = Health(ready=False)
    world.change_spec(batching={"maxBatchSize": 8})
    world.run()
    world.change_spec(batching={"maxBatchSize": 16})
    world.run()
    assert world.selected == 3
    assert world.outcome(2) == "Aborted"
    assert world.replicas(2) is None
    assert world.condition("Promoted") == ("True", "Promoted")


def test_changing_back_in_the_middle_of_a_rollout_keeps_stable_and_starts_nothing() -> None:
    world = serving_world()
    pods = set(world.pods)
    world.health[2] = Health(ready=False)
    world.change_spec(batching={"maxBatchSize": 8})
    world.run()
    world.change_spec(batching={})
    world.run()
    assert world.selected == 1
    assert set(world.pods) == pods
    assert world.names_of("Deployment") == ["mlp-r1"]
    assert world.condition("Promoted") == ("True", "Promoted")
    assert world.status["rollout"] == "-"


def test_changing_back_within_the_window_moves_the_address_and_starts_no_pod() -> None:
    world = serving_world()
    world.change_spec(batching={"maxBatchSize": 8})
    world.run()
    pods = set(world.pods)
    assert world.selected == 2
    world.change_spec(batching={})
    world.run()
    assert world.selected == 1
    assert set(world.pods) == pods
    assert world.names_of("ControllerRevision") == ["mlp-r1", "mlp-r2"], "a known fingerprint reuses its record"
    assert world.status["rollout"] == "r2 kept 5m"


def test_a_job_that_is_deleted_goes_on_serving_and_can_still_be_rolled_on() -> None:
    world = serving_world()
    world.job = None
    world.run()
    assert world.condition("SourceAvailable") == ("False", "JobNotFound")
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Promoted") == ("True", "Promoted")
    world.change_spec(batching={"maxBatchSize": 8})
    world.run()
    assert world.selected == 2
    assert world.status["stable"]["digest"] == DIGEST_A


def test_a_job_made_anew_is_waited_for_while_its_predecessor_serves() -> None:
    world = serving_world()
    world.job = a_training_job("10%", uid="job-2")
    world.run()
    assert world.condition("SourceAvailable") == ("False", "JobNotFinished")
    assert world.condition("Ready") == ("True", "Serving")
    assert world.selected == 1
    world.job = a_job(DIGEST_B, uid="job-2")
    world.run()
    assert world.selected == 2


@pytest.mark.parametrize(
    ("job", "reason", "text"),
    [
        (None, "JobNotFound", "apply it"),
        (
            a_job(conditions=[{"type": "Failed", "status": "True", "message": "rank 1: ValueError"}], artifact=None),
            "JobFailed",
            "rank 1: ValueError",
        ),
        (a_job(conditions=[{"type": "Complete", "status": "True"}], artifact=None), "ArtifactMissing", "recipe"),
        (a_job(conditions=[{"type": "Published", "status": "Unknown"}]), "JobNotFinished", "complete"),
        (a_job(resolved={}), "StoreNotSet", "chart's store"),
    ],
    ids=["no such job", "it failed", "it published nothing", "it is still verifying", "no store"],
)
def test_a_source_that_gives_nothing_says_why(job: dict[str, object] | None, reason: str, text: str) -> None:
    world = World(job=job)
    world.run()
    assert world.condition("SourceAvailable") == ("False", reason)
    assert text in world.message("SourceAvailable")
    assert world.status["message"] == world.message("SourceAvailable")
    assert world.objects == {}


def test_an_artefact_named_by_digest_needs_no_job() -> None:
    source = {"artifact": {"uri": "s3://models/x/", "digest": DIGEST_A, "store": {"s3": {"bucket": "models"}}}}
    world = World(a_service(model=source))
    world.run()
    assert world.condition("Ready") == ("True", "Serving")
    assert "job" not in world.status["stable"]


def test_scaling_follows_at_once_and_starts_no_rollout() -> None:
    world = serving_world()
    world.change_spec(server={"replicas": 3})
    world.run()
    assert world.replicas(1) == 3
    assert world.status["replicas"]["summary"] == "3/3"
    assert world.names_of("ControllerRevision") == ["mlp-r1"]
    assert world.names_of("PodDisruptionBudget") == ["mlp"]
    world.change_spec(server={"replicas": 1})
    world.run()
    assert world.replicas(1) == 1
    assert world.names_of("PodDisruptionBudget") == []


def test_zero_replicas_serve_nothing_start_nothing_and_come_back() -> None:
    world = serving_world()
    world.change_spec(server={"replicas": 0}, batching={"maxBatchSize": 8})
    world.run()
    assert world.replicas(1) == 0
    assert world.names_of("ControllerRevision") == ["mlp-r1"]
    assert world.condition("Ready") == ("False", "ScaledToZero")
    assert world.status["phase"] == "ScaledToZero"
    world.change_spec(server={"replicas": 1}, batching={})
    world.run()
    assert world.condition("Ready") == ("True", "Serving")


def test_a_paused_rollout_verifies_and_waits() -> None:
    world = serving_world()
    world.change_spec(batching={"maxBatchSize": 8}, rollout={"paused": True})
    world.run()
    assert world.selected == 1
    assert world.status["rollout"] == "r2 paused"
    assert world.condition("Progressing") == ("True", "Paused")
    world.change_spec(rollout={})
    world.run()
    assert world.selected == 2


def test_the_last_pod_lost_takes_ready_away_until_its_successor_is_verified() -> None:
    world = serving_world()
    world.health[1] = Health(fetch=crashed(1, FETCH % ("StoreUnreachable", "timed out")), ready=False, stage=None)
    world.delete_pod("mlp-r1-abc-0")
    world.kubelet()
    world.reconcile()
    assert world.condition("Ready") == ("False", "NoReadyEndpoint")
    assert "timed out" in world.message("Ready")
    assert world.condition("Promoted") == ("True", "Promoted")
    assert world.condition("Degraded") == ("True", "FewerReady")
    assert world.status["phase"] == "Degraded"
    world.health[1] = Health()
    world.run()
    assert world.condition("Ready") == ("True", "Serving")
    reasons = [event.reason for event in world.events]
    assert reasons == ["RevisionCreated", "Promoted", "NoReadyEndpoint", "Serving"]


def test_a_ready_pod_whose_verifier_does_not_answer_the_controller_is_promoted_after_a_moment() -> None:
    world = World(job=a_job())
    world.health[1] = Health(stage=None)
    world.run()
    assert world.selected is None
    world.later(5)
    world.run()
    assert world.selected == 1
    assert world.condition("ModelVerified") == ("True", "GoldenMatched")


def test_an_operator_with_other_images_changes_no_pod_and_uses_them_for_the_next_revision() -> None:
    world = serving_world()
    before = world.fingerprint()
    images = world.settings.images.model_copy(update={"triton": "triton:2", "server": "server:2"})
    world.settings = world.settings.model_copy(update={"images": images})
    world.run()
    assert world.fingerprint() == before
    world.change_spec(batching={"maxBatchSize": 8})
    world.run()
    template = world.objects["Deployment", "mlp-r2"]["spec"]["template"]["spec"]
    assert [c["image"] for c in (*template["initContainers"], *template["containers"])] == [
        "server:2",
        "triton:2",
        "server:2",
    ]


def test_an_invalid_spec_is_refused_in_a_condition_and_what_serves_goes_on() -> None:
    world = serving_world()
    good = dict(world.owner["spec"])
    world.change_spec(server={"replicas": -1})
    world.run()
    assert world.condition("Accepted") == ("False", "InvalidSpec")
    assert "spec.server.replicas" in world.message("Accepted")
    assert "'-1'" in world.message("Accepted")
    assert world.condition("Ready") == ("True", "Serving")
    assert {c["observedGeneration"] for c in world.status["conditions"]} == {2}
    world.owner["spec"] = good
    world.owner["metadata"]["generation"] = 3
    world.run()
    assert world.condition("Accepted") == ("True", "Accepted")
    assert world.replicas(1) == 1


def test_a_field_of_a_later_version_is_refused_in_a_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    row = not_yet.NotYet("spec.gates.contract", ("strict",), "use strict")
    monkeypatch.setattr(not_yet, "TABLE", (row,))  # its own rows go, one after the other
    world = World(a_service(gates={"contract": "ignore"}), a_job())
    world.run()
    assert world.condition("Accepted") == ("False", "NotServed")
    assert "spec.gates.contract" in world.status["message"]
    assert world.condition("Ready") == ("Unknown", "NotServed")
    assert world.objects == {}
    assert [event.reason for event in world.events] == ["NotServed"]


def test_a_source_must_be_named_once() -> None:
    world = World(a_service(model={}), a_job())
    world.run()
    assert world.condition("Accepted") == ("False", "InvalidSpec")
    assert "found none" in world.message("Accepted")


def test_every_condition_and_the_status_speak_of_the_current_generation() -> None:
    world = serving_world()
    world.change_spec(rollout={"rollbackWindowSeconds": 60})
    world.run()
    assert world.status["observedGeneration"] == 2
    assert {c["observedGeneration"] for c in world.status["conditions"]} == {2}
    assert all(c["message"] for c in world.status["conditions"])


def test_fetch_that_ended_well_is_read_although_it_ended() -> None:
    world = World(job=a_job())
    world.health[1] = Health(fetch=done("not json"), ready=False)
    world.run()
    assert world.condition("Progressing") == ("True", "Verifying")


def test_at_most_twenty_ended_records_are_kept() -> None:
    world = serving_world(rollout={"rollbackWindowSeconds": 0})
    for size in range(1, 26):
        world.change_spec(batching={"maxBatchSize": size})
        world.later(1)
        world.run()
    assert world.selected == 26
    assert len(world.names_of("ControllerRevision")) == 21
    assert world.names_of("Deployment") == ["mlp-r26"]
    assert len(world.status["history"]) == 5


def test_a_size_that_somebody_edits_on_the_deployment_is_restored() -> None:
    world = serving_world()
    world.objects["Deployment", "mlp-r1"]["spec"]["replicas"] = 0
    world.run()
    assert world.replicas(1) == 1
    assert world.events[-1].reason == "Restored"
    assert "Deployment mlp-r1" in world.events[-1].note


def test_an_address_that_somebody_points_elsewhere_is_restored_and_stays_the_truth() -> None:
    world = serving_world()
    world.change_spec(batching={"maxBatchSize": 8})
    world.run()
    assert world.selected == 2
    world.objects["Service", "mlp"]["spec"]["selector"]["bigmodel.io/revision"] = "1"
    world.run()
    assert world.selected == 2
    assert world.names_of("ControllerRevision") == ["mlp-r1", "mlp-r2"]
    assert world.status["stable"]["revision"] == 2
    world.objects["Service", "mlp-r2"]["spec"]["selector"] = {"app": "other"}
    world.run()
    assert world.objects["Service", "mlp-r2"]["spec"]["selector"]["bigmodel.io/revision"] == "2"


def test_a_record_goes_after_its_deployment_never_with_it() -> None:
    world = serving_world(rollout={"rollbackWindowSeconds": 0})
    record = copy.deepcopy(world.objects["ControllerRevision", "mlp-r1"])
    deployment = copy.deepcopy(world.objects["Deployment", "mlp-r1"])
    for size in range(1, 23):
        world.change_spec(batching={"maxBatchSize": size})
        world.later(1)
        world.run()
    assert "mlp-r1" not in world.names_of("ControllerRevision")
    world.objects["ControllerRevision", "mlp-r1"] = record  # a deletion that the cache has not seen, or a backup
    world.objects["Deployment", "mlp-r1"] = deployment
    passes = len(world.decisions)
    world.run()
    gone = [{(d.kind.kind, d.name) for d in decision.delete} for decision in world.decisions[passes:]]
    assert gone[:2] == [{("Deployment", "mlp-r1")}, {("ControllerRevision", "mlp-r1")}]


def test_promoted_is_said_once_requests_really_go_there() -> None:
    world = World(job=a_job())
    world.endpoints_lag = True
    world.run()
    assert world.selected == 1
    assert world.condition("Promoted") == ("Unknown", "RolloutInProgress")
    assert world.condition("Ready") == ("False", "EndpointsPending")
    assert world.status["phase"] == "Preparing"
    world.endpoints_lag = False
    world.run()
    assert world.condition("Promoted") == ("True", "Promoted")
    world.endpoints_lag = True
    world.change_spec(batching={"maxBatchSize": 8})
    world.run()
    assert world.selected == 2
    assert world.condition("Promoted") == ("Unknown", "RolloutInProgress"), "r1's pods still answer"
    assert world.condition("Ready") == ("True", "Serving")
    assert world.replicas(1) == 1
    world.endpoints_lag = False
    world.run()
    assert world.condition("Promoted") == ("True", "Promoted")
    assert [event.reason for event in world.events] == ["RevisionCreated", "Promoted"] * 2


def test_a_new_candidate_ends_the_window_of_the_revision_before() -> None:
    world = serving_world()
    world.change_spec(batching={"maxBatchSize": 8})
    world.run()
    assert world.replicas(1) == 1
    world.health[3] = Health(ready=False)
    world.change_spec(batching={"maxBatchSize": 16})
    world.run()
    assert world.names_of("Deployment") == ["mlp-r2", "mlp-r3"]
    assert world.selected == 2


def test_an_endpoint_that_lags_behind_its_pod_is_no_endpoint() -> None:
    world = serving_world()
    world.endpoints_lag = True
    world.slices()
    world.health[1] = Health(ready=False)
    world.kubelet()
    world.reconcile()
    assert world.condition("Ready") == ("False", "NoReadyEndpoint")


def test_what_was_only_overtaken_is_not_called_a_failure_while_nothing_may_start() -> None:
    world = serving_world()
    world.health[2] = world.health[3] = Health(ready=False)
    for size in (8, 16):
        world.change_spec(batching={"maxBatchSize": size})
        world.run()
    world.change_spec(batching={"maxBatchSize": 8}, server={"replicas": 0})
    world.run()
    assert world.outcome(2) == "Aborted"
    assert world.condition("Promoted") == ("Unknown", "ScaledToZero")
    world.change_spec(server={"replicas": 1})
    world.run()
    assert world.condition("Promoted") == ("Unknown", "RolloutInProgress")


@pytest.mark.parametrize("way", ["deleted", "evicted"])
def test_a_pod_on_its_way_out_is_not_counted(way: str) -> None:
    world = serving_world(server={"replicas": 2})
    pod = world.pods["mlp-r1-abc-0"]
    if way == "deleted":
        pod["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    else:
        pod["status"]["phase"] = "Failed"
    world.reconcile()
    assert world.status["replicas"]["summary"] == "1/2"
    assert world.condition("Ready") == ("True", "Serving")
