"""The life of a job on real nodes: told to stop, to go on, to be larger or smaller, to leave its node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.user import Namespace, a_job, condition, eventually, signals_its_rank

SMALL = {"name": "mlp", "parameters": {"hidden": [16]}, "steps": 200_000}
SAVING = {"recipe": SMALL, "checkpoint": {"everySteps": 500}}


def _status(namespace: Namespace) -> dict[str, Any]:
    status: dict[str, Any] = namespace.get("bmj", "mlp").get("status", {})
    return status


def _trains_beyond(namespace: Namespace, step: int, seconds: float = 90) -> int:
    """The step it is at, once that is beyond `step`."""
    found: int = eventually(
        f"it trains beyond step {step}",
        lambda: next((s for s in [_status(namespace).get("progress", {}).get("step", 0)] if s > step), None),
        seconds,
    )
    return found


def _patch(namespace: Namespace, spec: dict[str, Any]) -> None:
    namespace.kubectl("patch", "bmj", "mlp", "--type=merge", "-p", json.dumps({"spec": spec}))


def test_a_suspended_job_gives_its_pods_back_and_goes_on_at_its_step(namespace: Namespace) -> None:
    """A4, A24, A29: no budget, no step."""
    namespace.apply(a_job(**SAVING))
    before = _trains_beyond(namespace, 500)
    started = _status(namespace)["startTime"]
    _patch(namespace, {"suspend": True})
    namespace.wait("bmj/mlp", "Suspended", 60)
    assert namespace.items("pods", "bigmodel.io/job=mlp") == []
    suspended = _status(namespace)
    saved = suspended["checkpoint"]["step"]
    assert saved >= before, "everything that was done is saved"
    assert suspended["nodes"]["ready"] == 0
    _patch(namespace, {"suspend": False})
    _trains_beyond(namespace, saved)
    resumed = _status(namespace)
    assert condition({"status": resumed}, "Suspended")["status"] == "False"
    assert condition({"status": resumed}, "Running")["status"] == "True"
    assert resumed["startTime"] > started
    assert resumed["restarts"]["total"] == 0, resumed.get("incidents")


def test_kubectl_scale_makes_the_gang_anew_at_a_checkpoint(namespace: Namespace) -> None:
    """Ranks are shared out anew, at nobody's cost."""
    namespace.apply(a_job(**SAVING))
    before = _trains_beyond(namespace, 500)
    namespace.kubectl("scale", "bmj", "mlp", "--replicas=1")

    def one_node() -> bool:
        status = _status(namespace)
        return status["nodes"]["summary"] == "1/1" and status["attempt"] == 2

    eventually("one pod is left", one_node, 90)
    _trains_beyond(namespace, before)
    status = _status(namespace)
    assert status["restarts"]["total"] == 0
    assert status["checkpoint"]["step"] >= before


def test_an_evicted_pod_saves_first_and_costs_no_step(namespace: Namespace) -> None:
    """A16, C27."""
    namespace.apply(a_job(**SAVING, failurePolicy={"maxRestarts": 0}))
    _trains_beyond(namespace, 500)
    pod = namespace.items("pods", "bigmodel.io/job=mlp,bigmodel.io/index=1")[0]["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace.name}}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{pod}/eviction"
    namespace.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    incident: dict[str, Any] = eventually(
        "it has recovered",
        lambda: next((i for i in _status(namespace).get("incidents", []) if "recoverySeconds" in i), None),
        90,
    )
    assert incident["cause"] == "Evicted"
    assert incident["resumedFromStep"] >= 500
    assert incident["resumedFromStep"] >= incident.get("step", 0), "no step was made twice"
    status = _status(namespace)
    assert status["restarts"] == {"program": 0, "infrastructure": 1, "hang": 0, "total": 1}


def test_a_silent_hang_leaves_stacks_and_is_restarted(namespace: Namespace) -> None:
    """C26: found by the steps that are not made, in seconds."""
    namespace.apply(a_job(**SAVING))
    before = _trains_beyond(namespace, 500)
    pod = namespace.items("pods", "bigmodel.io/job=mlp,bigmodel.io/index=1")[0]["metadata"]["name"]
    namespace.kubectl("exec", pod, "--", "python3", "-c", signals_its_rank("SIGSTOP"))
    eventually("the hang is counted", lambda: _status(namespace)["restarts"]["hang"] == 1, 60)
    _trains_beyond(namespace, before)
    hang = next(i for i in _status(namespace)["incidents"] if i["cause"] == "Hang")
    assert hang["rank"] == 1
    assert "stopped" in hang["message"]


def test_a_job_is_suspended_before_it_ever_ran(namespace: Namespace) -> None:
    """A28."""
    namespace.apply(a_job(suspend=True))
    namespace.wait("bmj/mlp", "Suspended", 30)
    assert namespace.items("pods", "bigmodel.io/job=mlp") == []
    _patch(namespace, {"suspend": False})
    namespace.wait("bmj/mlp", "Complete", 180)


def test_a_deadline_ends_the_job_and_its_time_to_live_removes_it(namespace: Namespace) -> None:
    """A23, A26, A27."""
    namespace.apply(a_job(recipe=SMALL, activeDeadlineSeconds=15, ttlSecondsAfterFinished=10))
    namespace.wait("bmj/mlp", "Failed", 60)
    assert condition(namespace.get("bmj", "mlp"), "Failed")["reason"] == "DeadlineExceeded"
    eventually("it is gone", lambda: namespace.items("bmj,pods", "") == [], 60)


def test_the_example_of_an_own_script_trains_and_publishes(namespace: Namespace) -> None:
    """Five lines of ours in a plain loop: progress, checkpoints, an artefact."""
    namespace.apply(*yaml.safe_load_all(Path("examples/own-script/job.yaml").read_text()))
    namespace.wait("bmj/own-script", "Complete", 180)
    status = namespace.get("bmj", "own-script")["status"]
    assert status["progress"]["step"] == 600
    assert status["checkpoint"]["step"] >= 500
    assert condition({"status": status}, "Published")["status"] == "True"
    assert status["artifact"]["digest"].startswith("sha256:")
