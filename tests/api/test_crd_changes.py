"""What of a job may change when, and what never: enforced by the API server, on /scale too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bigmodel.api import crd, rules
from bigmodel.api.names import API_VERSION
from tests.api.kubectl import Kubectl, Refused

SPEC = {"recipe": {"name": "mlp", "parameters": {"hidden": [8]}}, "resources": {"limits": {"cpu": 1}}}
STARTED = {"startTime": "2026-01-01T00:00:00Z"}
FINISHED = {**STARTED, "finished": "True"}

SUSPEND_FIRST = "set spec.suspend: true first, or make a new job"

# One allowed change of every field of JobSpec, as somebody would make it.
CHANGES: dict[str, Any] = {
    "framework": "tensorflow",
    "recipe": {"parameters": {"hidden": [16]}},
    "script": {"path": "/code", "entrypoint": "train.py"},
    "command": ["python"],
    "args": ["--lr"],
    "store": {"s3": {"bucket": "other"}},
    "output": {"golden": "random"},
    "image": "other:1",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "login"}],
    "workingDir": "/code",
    "processesPerNode": 2,
    "resources": {"limits": {"cpu": 2}},
    "parallelism": {"data": 7},
    "env": [{"name": "A", "value": "1"}],
    "envFrom": [{"configMapRef": {"name": "a"}}],
    "volumes": [{"name": "a", "emptyDir": {}}],
    "volumeMounts": [{"name": "a", "mountPath": "/a"}],
    "nodeSelector": {"a": "b"},
    "tolerations": [{"operator": "Exists"}],
    "priorityClassName": "high",
    "schedulerName": "other",
    "serviceAccountName": "other",
    "sharedMemory": "2Gi",
    "terminationGracePeriodSeconds": 90,
    "runAsUser": 2000,
    "fsGroup": 2000,
    "podMetadata": {"labels": {"a": "b"}},
    "scheduling": {"gang": "none"},
    "checkpoint": {"keep": 4},
    "nodes": 2,
    "suspend": True,
    "activeDeadlineSeconds": 60,
    "failurePolicy": {"maxRestarts": 9},
    "ttlSecondsAfterFinished": 60,
    "managedBy": "other",
}


@pytest.fixture
def job(kubectl: Kubectl, request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], str]:
    """Makes a job with a status; returns its name."""

    def make(status: dict[str, Any]) -> str:
        name = f"changed-{abs(hash(request.node.name)) % 10**9}"
        kubectl.apply({"apiVersion": API_VERSION, "kind": "BigModelJob", "metadata": {"name": name}, "spec": SPEC})
        if status:
            kubectl.write_status("bmj", name, status)
        return name

    return make


def refusal(kubectl: Kubectl, name: str, change: dict[str, Any]) -> str:
    """What the API server says to a change; empty if it takes it."""
    try:
        kubectl.patch("bmj", name, {"spec": change}, "--dry-run=server")
    except Refused as refused:
        return str(refused)
    return ""


def frozen(text: str) -> list[str]:
    """The refusals that say a field is frozen, sorted. Others are about values, not about the change."""
    lines = (line.removeprefix("* ").rpartition("is invalid: ")[2] for line in text.splitlines())
    return sorted(line for line in lines if line.startswith("spec: Forbidden: "))


def test_every_field_of_a_job_has_its_time_to_change() -> None:
    times = (rules.WORK, rules.PLACEMENT, rules.UNTIL_FINISHED, rules.ALWAYS, rules.NEVER)
    fields = [field for time in times for field in time]
    assert sorted(fields) == sorted(crd.structural(crd.JOB.spec)["properties"])
    assert sorted(CHANGES) == sorted(fields)


def test_before_the_start_all_but_managed_by_may_change(kubectl: Kubectl, job: Callable[[dict[str, Any]], str]) -> None:
    assert frozen(refusal(kubectl, job({"phase": "Pending"}), CHANGES)) == [
        "spec: Forbidden: managedBy never changes; make a new job"
    ]


def test_while_it_runs_work_and_placement_are_frozen(kubectl: Kubectl, job: Callable[[dict[str, Any]], str]) -> None:
    assert frozen(refusal(kubectl, job(STARTED), CHANGES)) == [
        f"spec: Forbidden: [ {' '.join(rules.WORK)} ]: frozen once the job has started; make a new job",
        f"spec: Forbidden: [ {' '.join(rules.PLACEMENT)} ]: frozen while the job runs; {SUSPEND_FIRST}",
        "spec: Forbidden: managedBy never changes; make a new job",
    ]


@pytest.fixture(scope="module")
def running(kubectl: Kubectl) -> str:
    kubectl.apply({"apiVersion": API_VERSION, "kind": "BigModelJob", "metadata": {"name": "running"}, "spec": SPEC})
    kubectl.write_status("bmj", "running", STARTED)
    return "running"


def test_while_it_runs_size_time_and_budgets_may_change(kubectl: Kubectl, running: str) -> None:
    change = {field: CHANGES[field] for field in (*rules.UNTIL_FINISHED, *rules.ALWAYS) if field != "suspend"}
    assert refusal(kubectl, running, change) == ""


def test_while_suspended_placement_may_change(kubectl: Kubectl, running: str) -> None:
    """A30. Work never, once it has begun; on /scale the same rules run."""
    placement = {"image": "other:1", "nodeSelector": {"a": "b"}}
    way_out = f"frozen while the job runs; {SUSPEND_FIRST}"
    assert way_out in refusal(kubectl, running, placement)
    assert way_out in refusal(kubectl, running, placement | {"suspend": True})
    kubectl.patch("bmj", running, {"spec": {"suspend": True}})
    assert refusal(kubectl, running, placement) == ""
    assert refusal(kubectl, running, placement | {"suspend": False}) == ""
    assert frozen(refusal(kubectl, running, {"recipe": CHANGES["recipe"]})) == [
        "spec: Forbidden: [ recipe ]: frozen once the job has started; make a new job"
    ]
    kubectl("scale", "bmj", running, "--replicas=3", "--dry-run=server")
    kubectl.patch("bmj", running, {"spec": {"suspend": False}})
    assert way_out in refusal(kubectl, running, placement)


def test_once_finished_only_the_ttl_may_change(kubectl: Kubectl, job: Callable[[dict[str, Any]], str]) -> None:
    name = job(FINISHED)
    assert frozen(refusal(kubectl, name, CHANGES)) == [
        f"spec: Forbidden: [ {' '.join(rules.WORK)} ]: frozen once the job has started; make a new job",
        f"spec: Forbidden: [ {' '.join(rules.PLACEMENT)} ]: frozen while the job runs; {SUSPEND_FIRST}",
        f"spec: Forbidden: [ {' '.join(rules.UNTIL_FINISHED)} ]: frozen once the job has finished; make a new job",
        "spec: Forbidden: managedBy never changes; make a new job",
    ]
    assert refusal(kubectl, name, {"ttlSecondsAfterFinished": 60}) == ""
    with pytest.raises(Refused, match=r"\[ nodes \]: frozen once the job has finished; make a new job"):
        kubectl("scale", "bmj", name, "--replicas=2")


def test_a_frozen_job_still_takes_status_labels_and_deletion(
    kubectl: Kubectl, job: Callable[[dict[str, Any]], str]
) -> None:
    name = job(FINISHED)
    kubectl.write_status("bmj", name, {"message": "done"})
    kubectl("label", "bmj", name, "a=b")
    kubectl("delete", "bmj", name)


def test_a_service_keeps_the_name_its_clients_call(kubectl: Kubectl) -> None:
    spec = {"model": {"name": "a", "fromJob": {"name": "mlp"}}}
    kubectl.apply({"apiVersion": API_VERSION, "kind": "BigModelService", "metadata": {"name": "named"}, "spec": spec})
    kubectl.patch("bms", "named", {"spec": {"model": {"fromJob": {"name": "other"}}}})
    for change in ("b", None):
        with pytest.raises(Refused, match="clients call the model by its name, it never changes; make a new service"):
            kubectl.patch("bms", "named", {"spec": {"model": {"name": change}}})
