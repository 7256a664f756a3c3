"""What a candidate must pass before it has pods, told against a small cluster in memory."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bigmodel.controller.decision import Manifest
from tests.unit.controller.service.world import (
    DIGEST_B,
    SIGNATURE,
    START,
    World,
    a_job,
    crashed,
    done,
    inspected,
    refused,
    serving_world,
    time_text,
    waiting,
)

RENAMED = copy.deepcopy(SIGNATURE)
RENAMED["inputs"][0]["name"] = "features"
WORSE = [{"name": "val_mse", "value": "3500"}]
ACCURACY = {"metric": "val_mse", "goal": "minimize", "atMost": 3000}


def a_rollout(inspect: dict[str, Any], **gates: Any) -> World:
    """r1 serves; r2 comes, and its `inspect` pod ends so."""
    world = serving_world(gates=gates)
    world.errands["r2-inspect"] = inspect
    world.job = a_job(DIGEST_B, uid="job-2")
    world.run()
    return world


def asked_for_pods(world: World, revision: int) -> bool:
    return f"create Deployment/mlp-r{revision}" in world.writes


def test_no_pod_is_made_before_the_manifest_was_read() -> None:
    world = a_rollout(waiting("ContainerCreating"))
    assert world.names_of("Pod") == ["mlp-r2-inspect"]
    assert not asked_for_pods(world, 2)
    assert world.status["rollout"] == "r2 inspect"
    assert world.status["candidate"]["stage"] == "Preparing"
    assert world.condition("Progressing") == ("True", "Preparing")
    world.errands["r2-inspect"] = inspected()
    world.run()
    assert world.selected == 2
    assert world.names_of("Pod") == []


def test_the_pod_that_reads_the_manifest_asks_for_no_gpu_and_no_service_selects_it() -> None:
    world = serving_world(server={"resources": {"limits": {"nvidia.com/gpu": 1}}, "nodeSelector": {"gpu": "yes"}})
    world.errands["r2-inspect"] = waiting("ContainerCreating")
    world.job = a_job(DIGEST_B, uid="job-2")
    world.run()
    pod = world.objects["Pod", "mlp-r2-inspect"]
    (container,) = pod["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert "nodeSelector" not in pod["spec"]
    assert container["envFrom"] == [{"secretRef": {"name": "s3-login"}}]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["fetch-tmp"]
    services = [manifest for (kind, _), manifest in world.objects.items() if kind == "Service"]
    assert not any(s["spec"]["selector"].items() <= pod["metadata"]["labels"].items() for s in services)


CONTENT: dict[str, tuple[dict[str, Any], dict[str, Any], str, str, str]] = {
    "a digest that is not the manifest's": (
        refused("DigestMismatch", "manifest.json has digest sha256:1, wanted sha256:2"),
        {},
        "DigestMismatch",
        "r2 rejected: digest",
        "manifest.json has digest sha256:1",
    ),
    "an artefact that is not there": (
        refused("ArtifactNotFound", "no manifest.json"),
        {},
        "ArtifactNotFound",
        "r2 rejected: ArtifactNotFound",
        "no manifest.json",
    ),
    "batches that the program does not take": (
        refused("InvalidConfig", "spec.batching.maxBatchSize is 128, the program takes at most 64"),
        {},
        "InvalidConfig",
        "r2 rejected: InvalidConfig",
        "spec.batching",
    ),
    "a renamed input": (
        inspected(signature=RENAMED),
        {},
        "IncompatibleSignature",
        "r2 rejected: contract",
        "input x is gone; input features is new",
    ),
    "a worse model": (
        inspected(metrics=WORSE),
        {"accuracy": [ACCURACY]},
        "AccuracyFailed",
        "r2 rejected: accuracy",
        "val_mse 3500, the limit is at most 3000 (spec.gates.accuracy, atMost)",
    ),
    "a model that is worse than stable": (
        inspected(metrics=WORSE),
        {"accuracy": [{"metric": "val_mse", "goal": "minimize", "maxRelativeDrop": 0.02}]},
        "AccuracyFailed",
        "r2 rejected: accuracy",
        "val_mse 3500, r1 has 2871.4",
    ),
    "a model without the metric": (
        inspected(metrics=[]),
        {"accuracy": [ACCURACY]},
        "AccuracyFailed",
        "r2 rejected: accuracy",
        "no val_mse",
    ),
}


@pytest.mark.parametrize(("inspect", "gates", "reason", "column", "text"), CONTENT.values(), ids=CONTENT)
def test_a_bad_candidate_is_rejected_before_it_has_a_pod(
    inspect: dict[str, Any], gates: dict[str, Any], reason: str, column: str, text: str
) -> None:
    """B3, B4, B8, B8a."""
    world = a_rollout(inspect, **gates)
    assert not asked_for_pods(world, 2)
    assert world.selected == 1
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Progressing") == ("False", reason)
    assert world.condition("Promoted") == ("False", "Rejected")
    assert world.status["rollout"] == column
    assert text in world.message("Promoted")
    assert world.names_of("Pod") == []
    world.later(7200)
    world.run()
    assert world.outcome(2) == "Rejected"
    assert world.writes.count("create Pod/mlp-r2-inspect") == 1


def test_each_gate_leaves_a_row_in_status_and_in_the_record() -> None:
    world = a_rollout(inspected(metrics=[{"name": "val_mse", "value": "2900"}]), accuracy=[ACCURACY])
    rows = [(row["name"], row["verdict"], row["value"], row["limit"]) for row in world.status["gates"]]
    assert rows == [
        ("contract", "Pass", "takes every request that r1 takes", "every request that r1 takes"),
        ("accuracy", "Pass", "val_mse 2900", "at most 3000"),
        ("parity", "Pass", "3.0% of the tolerance, 64 samples", "|a - b| <= 0.0001 + 0.001*|b|"),
    ]
    annotations = world.objects["ControllerRevision", "mlp-r2"]["metadata"]["annotations"]
    assert json.loads(annotations["bigmodel.io/outcome"])["gates"] == world.status["gates"]
    summary = json.loads(annotations["bigmodel.io/inspected"])["summary"]
    assert summary["metrics"] == [{"name": "val_mse", "value": "2900"}]


def test_a_failed_gate_stays_in_sight_after_the_rejection() -> None:
    world = a_rollout(inspected(metrics=WORSE), accuracy=[ACCURACY])
    assert [(row["name"], row["verdict"]) for row in world.status["gates"]] == [
        ("contract", "Pass"),
        ("accuracy", "Fail"),
    ]
    assert world.status["history"][0] | {"message": "", "at": ""} == {
        "revision": 2, "digest": DIGEST_B, "result": "Rejected", "gate": "accuracy", "message": "", "at": ""
    }  # fmt: skip


def test_with_contract_ignore_another_signature_may_come() -> None:
    world = a_rollout(inspected(signature=RENAMED), contract="ignore")
    assert world.selected == 2


def test_the_first_revision_has_only_absolute_limits() -> None:
    world = World(job=a_job())
    world.owner["spec"]["gates"] = {"accuracy": [ACCURACY | {"maxRelativeDrop": 0.0}]}
    world.errands["r1-inspect"] = inspected(metrics=WORSE)
    world.run()
    assert world.condition("Promoted") == ("False", "Rejected")
    assert world.status["phase"] == "Failed"
    world = World(job=a_job())
    world.owner["spec"]["gates"] = {"accuracy": [ACCURACY]}
    world.run()
    assert world.status["phase"] == "Serving"


def test_going_back_to_a_revision_that_served_asks_no_static_gate() -> None:
    """What is newer must not keep an older one from coming back."""
    world = a_rollout(inspected(signature=RENAMED, metrics=[{"name": "val_mse", "value": "1"}]), contract="ignore")
    world.change_spec(gates={"contract": "strict", "accuracy": [ACCURACY | {"maxRelativeDrop": 0.0}]})
    world.job = a_job()
    world.run()
    assert world.selected == 1
    assert world.writes.count("create Pod/mlp-r1-inspect") == 1


HELD_UP: dict[str, tuple[dict[str, Any], str, str]] = {
    "a store that does not answer": (
        crashed(1, json.dumps({"ok": False, "reason": "StoreUnreachable", "message": "no answer from http://s3"})),
        "ErrandFailed",
        "no answer from http://s3",
    ),
    "a missing login": (
        waiting("CreateContainerConfigError", 'secret "s3-login" not found'),
        "StoreSecretMissing",
        "kubectl create secret generic s3-login -n ml",
    ),
    "a missing image": (waiting("ImagePullBackOff", "no such image"), "ImagePullFailed", "server:1"),
}


@pytest.mark.parametrize(("inspect", "reason", "text"), HELD_UP.values(), ids=HELD_UP)
def test_surroundings_only_hold_it_up(inspect: dict[str, Any], reason: str, text: str) -> None:
    world = a_rollout(inspect)
    assert world.condition("Progressing") == ("False", reason)
    assert text in world.message("Progressing")
    assert world.outcome(2) is None
    world.errands["r2-inspect"] = inspected()
    world.run()
    assert world.selected == 2


def test_an_inspection_whose_time_is_over_is_tried_again_with_back_off() -> None:
    late: Manifest = {"phase": "Failed", "reason": "DeadlineExceeded", "message": "Pod was active longer than 5 min"}
    world = a_rollout(late)
    assert world.outcome(2) == "Aborted"
    assert world.condition("Promoted") == ("False", "Aborted")
    assert "Pod was active longer" in world.message("Promoted")
    assert world.names_of("Pod") == []
    world.errands["r2-inspect"] = inspected()
    world.later(29)
    world.run()
    assert world.selected == 1
    world.later(1)
    world.run()
    assert world.selected == 2


def test_an_answer_that_nobody_can_read_is_no_pass() -> None:
    world = a_rollout(done("{}"))
    assert world.outcome(2) == "Aborted"
    assert not asked_for_pods(world, 2)


def test_a_pod_on_its_way_out_is_not_asked() -> None:
    world = a_rollout(waiting("ContainerCreating"))
    pod = world.objects["Pod", "mlp-r2-inspect"]
    pod["metadata"]["deletionTimestamp"] = time_text(START)
    world.errands["r2-inspect"] = refused("DigestMismatch", "old news")
    world.run()
    assert world.outcome(2) is None
