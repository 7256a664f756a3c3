"""The candidate asked beside stable, before it has traffic: told against a small cluster in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bigmodel.api.evaluation import EvaluationRun
from tests.unit.controller.service.world import (
    DIGEST_B,
    Health,
    World,
    a_job,
    crashed,
    done,
    serving_world,
    waiting,
)

EVALUATION = {
    "data": {"uri": "s3://data/test.safetensors"},
    "metric": "mse",
    "goal": "minimize",
    "maxRelativeDrop": 0.02,
}
CHANGE = {"maxChangedShare": 0.05}
BOTH = {"evaluation": EVALUATION, "change": CHANGE}


def found(candidate: str = "2900", stable: str = "2871.4", changed: int = 3, **more: Any) -> dict[str, Any]:
    """The container of an `evaluate` pod that asked both 100 samples."""
    result = {"ok": True, "message": "100 samples asked", "samples": 100, "change": {"changed": changed}}
    return done(json.dumps(result | {"scores": {"candidate": candidate, "stable": stable}} | more))


def a_rollout(evaluate: dict[str, Any], gates: dict[str, Any] = BOTH, health: Health | None = None) -> World:
    """r1 serves; r2 comes, and its `evaluate` pod ends so."""
    world = serving_world(gates=gates)
    world.errands["r2-evaluate"] = evaluate
    world.health[2] = health or Health()
    world.job = a_job(DIGEST_B, uid="job-2")
    world.run()
    return world


def row(world: World, name: str) -> dict[str, Any]:
    return next(row for row in world.status["gates"] if row["name"] == name)


def test_a_verified_candidate_is_asked_beside_stable_and_has_no_traffic_meanwhile() -> None:
    world = a_rollout(waiting("ContainerCreating"))
    assert world.selected == 1
    assert world.replicas(2) == 1
    assert world.status["rollout"] == "r2 evaluating"
    assert world.status["candidate"]["stage"] == "Verifying"
    assert [row(world, name)["verdict"] for name in ("contract", "parity", "evaluation", "change")] == [
        "Pass", "Pass", "Pending", "Pending"
    ]  # fmt: skip
    (container,) = world.objects["Pod", "mlp-r2-evaluate"]["spec"]["containers"]
    asked = next(entry["value"] for entry in container["env"] if entry["name"] == "BIGMODEL_EVALUATE")
    run = EvaluationRun.model_validate_json(asked)
    assert (run.candidate.address, run.candidate.revision) == ("mlp-r2:8000", 2)
    assert (run.stable.address, run.stable.revision) == ("mlp-r1:8000", 1)
    assert (run.data, run.metric) == ("s3://data/test.safetensors", "mse")
    assert container["command"] == ["python", "-m", "bigmodel.server.evaluate"]
    world.errands["r2-evaluate"] = found()
    world.run()
    assert world.selected == 2
    assert row(world, "evaluation")["value"] == "mse 2900 over 100 samples, r1 has 2871.4"
    assert row(world, "change")["value"] == "3.0%, 3 of 100 answers differ"
    assert world.names_of("Pod") == []


def test_it_is_not_asked_before_it_is_verified() -> None:
    world = a_rollout(found(), health=Health(ready=False))
    assert world.names_of("Pod") == []
    assert row(world, "evaluation")["verdict"] == "Pending"


NO_SCORE = done('{"ok": true, "message": "x", "samples": 1, "change": {"changed": 0}}')
FAILURES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "worse on the user's data": (found("2930"), "EvaluationFailed", "evaluation", "mse 2930 over 100 samples"),
    "no number": (found("nan"), "EvaluationFailed", "evaluation", "mse nan"),
    "no score": (NO_SCORE, "EvaluationFailed", "evaluation", "no mse"),
    "too many changed answers": (found(changed=6), "ChangeFailed", "change", "6.0%, 6 of 100 answers differ"),
    "it does not answer": (
        done('{"ok": false, "reason": "EvaluationFailed", "message": "r2 does not answer: Triton answered 500: boom"}'),
        "EvaluationFailed",
        "evaluation",
        "Triton answered 500: boom",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("evaluate", "reason", "gate", "text"), FAILURES.values(), ids=FAILURES)
def test_a_candidate_that_fails_gets_no_request_of_a_user(
    evaluate: dict[str, Any], reason: str, gate: str, text: str
) -> None:
    world = a_rollout(evaluate)
    assert world.selected == 1
    assert world.condition("Progressing") == ("False", reason)
    assert world.status["rollout"] == f"r2 rejected: {gate}"
    assert text in world.message("Promoted")
    assert f"spec.gates.{gate}" in world.message("Promoted")
    assert world.replicas(2) == 0
    assert world.condition("Ready") == ("True", "Serving")


def test_the_change_gate_alone_needs_no_data() -> None:
    world = a_rollout(done('{"ok": true, "message": "x", "samples": 20, "change": {"changed": 1}}'), {"change": CHANGE})
    assert world.selected == 2
    assert row(world, "change")["value"] == "5.0%, 1 of 20 answers differ"


def test_the_first_revision_has_nobody_beside_it() -> None:
    world = serving_world(gates=BOTH)
    assert not [write for write in world.writes if "evaluate" in write]


def test_another_question_makes_the_answer_void() -> None:
    world = a_rollout(waiting("ContainerCreating"))
    other = EVALUATION | {"data": {"uri": "pvc://claim/folder/test.safetensors"}}
    world.change_spec(gates={"evaluation": other})
    world.reconcile()
    world.reconcile()
    assert world.writes.count("create Pod/mlp-r2-evaluate") == 2
    pod = world.objects["Pod", "mlp-r2-evaluate"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "claim", "readOnly": True}} in pod["spec"]["volumes"]
    world.errands["r2-evaluate"] = found()
    world.run()
    assert world.selected == 2


def test_bad_data_is_not_the_models_fault() -> None:
    data = done('{"ok": false, "reason": "InvalidEvaluationData", "message": "output/y has shape [3]"}')
    world = a_rollout(data)
    assert world.outcome(2) == "Aborted"
    assert "output/y has shape [3]" in world.message("Promoted")
    world.errands["r2-evaluate"] = found()
    world.later(30)
    world.run()
    assert world.selected == 2


def test_what_can_not_be_reached_holds_it_up() -> None:
    unreachable = crashed(1, '{"ok": false, "reason": "ErrandFailed", "message": "mlp-r1:8000 does not answer"}')
    world = a_rollout(unreachable)
    assert world.condition("Progressing") == ("False", "ErrandFailed")
    assert "mlp-r1:8000 does not answer" in world.message("Progressing")
    assert world.outcome(2) is None


def test_a_retry_asks_again() -> None:
    world = a_rollout(found("9000"))
    assert world.outcome(2) == "Rejected"
    world.errands["r2-evaluate"] = found()
    world.later(60)
    world.owner["metadata"]["annotations"] = {"bigmodel.io/retry": "2"}
    world.run(20)
    assert world.selected == 2
    assert row(world, "evaluation")["value"].startswith("mse 2900 ")
