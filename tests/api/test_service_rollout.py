"""A service against a real API server: records that are immutable there, names that are taken there, columns that it
prints."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bigmodel.api import names
from bigmodel.controller.decision import CONTROLLER_REVISION, DEPLOYMENT, POD, SERVICE
from tests.api.kubectl import Kubectl
from tests.api.serving import Place, serving_place
from tests.api.training import told

# What `Controller.kill` cuts off is meant to be cut off.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
namespaces = (f"service-{number}" for number in itertools.count(1))


@pytest.fixture
async def place(api_server: Path, kubectl: Kubectl) -> AsyncIterator[Place]:
    async with serving_place(api_server, kubectl, next(namespaces)) as place:
        yield place


async def test_from_a_waiting_service_to_answers_and_what_kubectl_shows(place: Place) -> None:
    await place.service()
    await place.until("it waits", lambda s: told(s, "SourceAvailable") == ("False", "JobNotFound"))
    await place.publish("a")
    await place.until_serves(1)
    await place.kubectl("wait", "--for=condition=Promoted", "bms/mlp", "--timeout=20s")
    await place.kubectl("wait", "--for=condition=Ready", "bms/mlp", "--timeout=20s")
    header, row = (await place.kubectl("get", "bms", "mlp")).splitlines()
    assert header.split() == ["NAME", "READY", "SERVING", "ROLLOUT", "REPLICAS", "URL", "AGE"]
    url = f"http://mlp.{place.namespace}.svc.cluster.local:8000"
    assert row.split()[:6] == ["mlp", "True", "r1", "-", "1/1", url]
    events = json.loads(await place.kubectl("get", "events.events.k8s.io", "-o", "json"))["items"]
    story = [e["reason"] for e in sorted(events, key=lambda e: str(e["eventTime"])) if e["regarding"]["name"] == "mlp"]
    assert story == ["JobNotFound", "WaitingForSource", "RevisionCreated", "Promoted"]
    record = await place.get(CONTROLLER_REVISION, "mlp-r1")
    assert record is not None
    assert json.loads(record["metadata"]["annotations"]["bigmodel.io/outcome"])["result"] == "Promoted"


async def test_pods_pass_pod_security_restricted(place: Place) -> None:
    """The namespace enforces it: the pods of every other test would not exist either."""
    await place.service(server={"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}})
    await place.publish("a")
    await place.until_serves(1)
    assert len(await place.nodes.all(POD)) == 1


async def test_a_successor_takes_over_and_a_faulty_one_never_does(place: Place) -> None:
    await place.service()
    await place.publish("a")
    await place.until_serves(1)
    await place.publish("b")
    status = await place.until_serves(2)
    assert status["rollout"] == "r1 kept 5m" or status["rollout"] == "r1 kept 4m"
    assert await place.selected() == "2"
    place.nodes.broken.add(3)
    await place.publish("c")
    status = await place.until("r3 is rejected", lambda s: told(s, "Promoted") == ("False", "Rejected"))
    assert await place.selected() == "2"
    assert status["rollout"] == "r3 rejected: parity"
    assert told(status, "Ready") == ("True", "Serving")
    await place.until("its pods go", lambda s: not any("-r3-" in name for name in place.nodes.verifiers))


async def test_a_settled_service_causes_no_writes(place: Place) -> None:
    await place.service(rollout={"rollbackWindowSeconds": 0})
    await place.publish("a")
    await place.until_serves(1)
    await asyncio.sleep(0.5)
    before = await place.versions()
    await place.kubectl("annotate", "bms", "mlp", "someone=looks")
    await asyncio.sleep(2)
    after = await place.versions()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {"BigModelService/mlp"}


async def test_scaling_with_kubectl_scales_stable(place: Place) -> None:
    await place.service()
    await place.publish("a")
    await place.until_serves(1)
    await place.kubectl("scale", "bms/mlp", "--replicas=2")
    status = await place.until("two pods", lambda s: s["replicas"]["summary"] == "2/2")
    assert status["selector"] == "bigmodel.io/service=mlp,bigmodel.io/revision=1"
    assert status["stable"]["revision"] == 1
    await place.kubectl("scale", "bms/mlp", "--replicas=0")
    await place.until("none", lambda s: told(s, "Ready") == ("False", "ScaledToZero"))


async def test_a_service_of_somebody_else_is_left_alone(place: Place) -> None:
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "mlp"}, "spec": {"ports": [{"port": 80}]}}
    await place.kubectl("apply", "-f", "-", stdin=json.dumps(foreign))
    await place.service()
    await place.publish("a")
    status = await place.until("it says so", lambda s: told(s, "Progressing") == ("False", "NameTaken"))
    assert "Service mlp" in status["message"]
    found = await place.get(SERVICE, "mlp")
    assert found is not None
    assert "ownerReferences" not in found["metadata"]
    await place.kubectl("delete", "service", "mlp")
    await place.until_serves(1)


async def test_a_deleted_status_is_rebuilt_and_no_pod_is_touched(place: Place) -> None:
    await place.service()
    await place.publish("a")
    await place.until_serves(1)
    pods = {pod["metadata"]["uid"] for pod in await place.nodes.all(POD)}
    await place.kubectl("patch", "bms", "mlp", "--subresource=status", "--type=json", "-p", _REMOVE_STATUS)
    await place.until_serves(1)
    assert {pod["metadata"]["uid"] for pod in await place.nodes.all(POD)} == pods


_REMOVE_STATUS = json.dumps([{"op": "remove", "path": "/status"}])


async def test_a_controller_killed_again_and_again_ends_where_one_that_lives_does(place: Place) -> None:
    await place.service()
    await place.publish("a")
    for pause in (0.02, 0.05, 0.1, 0.2, 0.3):
        await asyncio.sleep(pause)
        await place.controller.kill()
        place.controller.start()
    await place.until_serves(1)
    await place.publish("b")
    for pause in (0.1, 0.2, 0.05, 0.15):
        await asyncio.sleep(pause)
        await place.controller.kill()
        place.controller.start()
    await place.until_serves(2)
    assert sorted(d["metadata"]["name"] for d in await place.nodes.all(DEPLOYMENT)) == ["mlp-r1", "mlp-r2"]
    assert len(await place.nodes.all(CONTROLLER_REVISION)) == 2


async def test_children_that_a_user_edits_are_restored(place: Place) -> None:
    await place.service()
    await place.publish("a")
    await place.until_serves(1)
    await place.kubectl("scale", "deployment/mlp-r1", "--replicas=0")
    selector = {"spec": {"selector": {names.LABEL_REVISION: "7"}}}
    await place.kubectl("patch", "service", "mlp", "--type=merge", "-p", json.dumps(selector))

    async def restored() -> bool:
        deployment = await place.get(DEPLOYMENT, "mlp-r1")
        return deployment is not None and deployment["spec"]["replicas"] == 1 and await place.selected() == "1"

    async with asyncio.timeout(20):
        while not await restored():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await place.kubectl("delete", "service", "mlp-r1")
    async with asyncio.timeout(20):
        while await place.get(SERVICE, "mlp-r1") is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await place.until_serves(1)
