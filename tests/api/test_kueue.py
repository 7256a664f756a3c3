"""A job in a queue of Kueue, against a real API server with stand-ins of Kueue's CRDs (A32); the test plays Kueue's
controller, with server-side apply under its own name, as the real one writes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bigmodel.api import names
from bigmodel.controller.decision import BIG_MODEL_JOB, POD, WORKLOAD, Manifest
from bigmodel.controller.kube.client import APPLY, path
from bigmodel.controller.settings import Kueue
from tests.api.kubectl import Kubectl
from tests.api.training import Place, told, training_place
from tests.builders import SETTINGS

# What `Controller.kill` cuts off is meant to be cut off.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
namespaces = (f"queue-{number}" for number in itertools.count(1))
STAND_INS = Path(__file__).parent / "kueue"
QUEUE = "kueue.x-k8s.io/queue-name"
NO_ROOM = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor spot, 2 more needed"


@pytest.fixture(scope="module")
def kueue_served(kubectl: Kubectl) -> None:
    kubectl("apply", "--server-side", "-f", str(STAND_INS / "crds.yaml"))
    kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    kubectl("apply", "--server-side", "-f", str(STAND_INS / "flavors.yaml"))


@pytest_asyncio.fixture
async def place(api_server: Path, kubectl: Kubectl, kueue_served: None) -> AsyncIterator[Place]:
    settings = SETTINGS.model_copy(update={"kueue": Kueue(enabled=True)})
    async with training_place(api_server, kubectl, next(namespaces), settings) as place:
        yield place


class KueuesController:
    """Says what is to be said of the one Workload in a namespace."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.conditions: dict[str, Manifest] = {}

    async def workload(self) -> Manifest:
        async with asyncio.timeout(10):
            while not (found := await self.place.nodes.all(WORKLOAD)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        [workload] = found
        return workload

    async def told(self) -> dict[str, tuple[str, str]]:
        conditions = (await self.workload()).get("status", {}).get("conditions", [])
        return {condition["type"]: (condition["status"], condition["reason"]) for condition in conditions}

    async def until(self, kind: str, *wanted: str) -> Manifest:
        async with asyncio.timeout(20):
            while (await self.told()).get(kind) != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return await self.workload()

    async def waits(self) -> None:
        await self.apply(QuotaReserved=("False", "Pending", NO_ROOM))

    async def admits(self) -> None:
        evicted = {"Evicted": ("False", "QuotaReserved", "")} if "Evicted" in await self.told() else {}
        admitted = {"QuotaReserved": ("True", "QuotaReserved", ""), "Admitted": ("True", "Admitted", "")}
        await self.apply(**admitted, **evicted)

    async def evicts(self) -> None:
        kept = {kind: ("True", kind, "") for kind in ("QuotaReserved", "Admitted")}
        await self.apply(**kept, Evicted=("True", "Preempted", "Preempted to accommodate a more urgent workload"))

    async def apply(self, **conditions: tuple[str, str, str]) -> None:
        """As Kueue does: all that is its own, by server-side apply, by force."""
        workload = await self.workload()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        told = [
            {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now}
            for kind, (status, reason, message) in conditions.items()
        ]
        status: dict[str, Any] = {"conditions": told}
        if conditions["QuotaReserved"][0] == "True":
            flavors = {"cpu": "spot", "memory": "spot"}
            assignment = {"name": "main", "flavors": flavors, "count": workload["spec"]["podSets"][0]["count"]}
            status["admission"] = {"clusterQueue": "gpus", "podSetAssignments": [assignment]}
        name, namespace = workload["metadata"]["name"], workload["metadata"]["namespace"]
        body = {"apiVersion": WORKLOAD.api_version, "kind": "Workload", "metadata": {"name": name}, "status": status}
        await self.place.client._object(
            "apply",
            "PATCH",
            path(WORKLOAD, namespace, name, "status"),
            {"fieldManager": "kueue-admission", "force": "true"},
            body,
            APPLY,
        )


async def queued(place: Place, **spec: Any) -> KueuesController:
    """Labelled before the controller sees it first, as a user's manifest is."""
    await place.apply(labels={QUEUE: "team-a", "kueue.x-k8s.io/priority-class": "urgent"}, **spec)
    return KueuesController(place)


async def test_the_whole_cycle_from_queue_to_quota(place: Place) -> None:
    """A32: queue, admission with a flavour, a replaced pod, eviction, admission again, the end."""
    kueue = await queued(place, activeDeadlineSeconds=3600)
    workload = await kueue.workload()
    assert workload["spec"] | {"podSets": []} == {
        "active": True,
        "queueName": "team-a",
        "priority": 1000,
        "priorityClassRef": {"group": "kueue.x-k8s.io", "kind": "WorkloadPriorityClass", "name": "urgent"},
        "maximumExecutionTimeSeconds": 3600,
        "podSets": [],
    }
    [owner] = workload["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("BigModelJob", "mlp", True)
    await kueue.waits()
    status = await place.until("Kueue's words are told", lambda s: NO_ROOM in s.get("message", ""))
    assert (status["phase"], told(status, "Admitted")) == ("Queued", ("False", "Queued"))
    assert await place.nodes.all(POD) == []

    await kueue.admits()
    await place.trains()
    for pod in (await place.pods()).values():
        assert pod["spec"]["nodeSelector"] == {"gpu": "h200"}
        assert {"key": "spot", "operator": "Exists", "effect": "NoSchedule"} in pod["spec"]["tolerations"]
        assert QUEUE not in pod["metadata"]["labels"]
    await kueue.until("PodsReady", "True", "Started")

    await place.kubectl("delete", "pod", (await place.pods())["1"]["metadata"]["name"], "--wait=false")
    await place.until("the lost pod is counted", lambda s: s["restarts"]["infrastructure"] == 1)
    await place.until("all run again", lambda s: told(s, "Running")[0] == "True")
    assert (await place.pods())["1"]["spec"]["nodeSelector"] == {"gpu": "h200"}
    assert (await kueue.workload())["metadata"]["uid"] == workload["metadata"]["uid"]

    await kueue.evicts()
    await place.until("it queues again", lambda s: s["phase"] == "Queued")
    evicted = await kueue.until("QuotaReserved", "False", "Pending")
    assert await place.pods() == {}, "quota is given back only then"
    assert "admission" not in evicted["status"]
    status = await place.status()
    assert (status["attempt"], status["restarts"]["infrastructure"]) == (2, 1)
    assert status["incidents"][-1]["cause"] == "QuotaTaken"

    await kueue.admits()
    await place.until("it trains again", lambda s: told(s, "Running")[0] == "True")
    assert {pod["metadata"]["labels"][names.LABEL_ATTEMPT] for pod in (await place.pods()).values()} == {"2"}
    await place.trains(40)
    assert told(await place.completes(), "Complete") == ("True", "Complete")
    ended = await kueue.until("Finished", "True", "Succeeded")
    assert ended["metadata"]["uid"] == workload["metadata"]["uid"]
    assert {"Accepted", "QuotaTaken", "Complete"} <= set(await place.story())


async def test_what_is_ours_in_its_status_is_ours_alone(place: Place) -> None:
    """Kueue's conditions keep their owner while the job runs, or the next decision of Kueue would meet a conflict."""
    kueue = await queued(place)
    await kueue.workload()
    await kueue.admits()
    await place.trains()
    workload = await kueue.until("PodsReady", "True", "Started")
    owned = {
        entry["manager"]: sorted(entry["fieldsV1"]["f:status"]["f:conditions"])
        for entry in workload["metadata"]["managedFields"]
        if entry.get("subresource") == "status"
    }
    assert owned == {
        "kueue-admission": ['k:{"type":"Admitted"}', 'k:{"type":"QuotaReserved"}'],
        names.FIELD_MANAGER: ['k:{"type":"PodsReady"}'],
    }


async def test_a_queue_that_changes_while_the_job_waits_moves_its_workload(place: Place) -> None:
    kueue = await queued(place)
    await kueue.workload()
    await kueue.waits()
    await place.kubectl("label", "bmj", "mlp", f"{QUEUE}=team-b", "--overwrite")
    async with asyncio.timeout(20):
        while (await kueue.workload())["spec"]["queueName"] != "team-b":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (await kueue.told())["QuotaReserved"] == ("False", "Pending"), "the same Workload"


async def test_suspending_a_queued_job_gives_its_place_back(place: Place) -> None:
    """A32, A29"""
    kueue = await queued(place)
    await kueue.workload()
    await kueue.admits()
    await place.trains()
    await place.kubectl("patch", "bmj", "mlp", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    await place.until("it is suspended", lambda s: told(s, "Suspended")[0] == "True")
    async with asyncio.timeout(20):
        while await place.nodes.all(WORKLOAD):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await place.kubectl("patch", "bmj", "mlp", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    await kueue.workload()
    status = await place.until("it queues again", lambda s: s["phase"] == "Queued")
    assert told(status, "Admitted") == ("False", "Queued")
    await place.kubectl("delete", "bmj", "mlp")
    assert await place.nodes.all(BIG_MODEL_JOB) == []
