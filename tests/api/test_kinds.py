"""Scripts and commands against a real API server, and what it and kubelets say where something of theirs is missing.

The test plays scheduler and kubelets by hand.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bigmodel.api import names
from bigmodel.api.job import JobSpec
from bigmodel.controller.decision import BIG_MODEL_JOB, NODE, POD, POD_GROUP, Key
from bigmodel.controller.job.capacity import lack
from bigmodel.controller.job.inquiries import Inquiries
from bigmodel.controller.kube.client import Client, load_configuration
from bigmodel.controller.kube.events import EVENT
from tests.api.controller import connections_closed
from tests.api.kubectl import Kubectl
from tests.api.training import Place, told, training_place

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
namespaces = (f"kinds-{number}" for number in itertools.count(1))
COMMAND: dict[str, Any] = {"recipe": None, "store": None, "command": ["torchrun", "train.py"], "image": "foreign:1"}
SCRIPT: dict[str, Any] = {"recipe": None, "script": {"configMap": "my-code", "entrypoint": "train.py"}}
BEGAN = "2026-03-01T12:00:00Z"


@pytest_asyncio.fixture
async def place(api_server: Path, kubectl: Kubectl) -> AsyncIterator[Place]:
    async with training_place(api_server, kubectl, next(namespaces)) as place:
        place.nodes.holds = True
        yield place


async def gang(place: Place, attempt: int = 1) -> list[str]:
    """Both pods of an attempt, once they are there; each gets a node."""
    pods: list[str] = []
    async with asyncio.timeout(30):
        while len(pods) < 2:
            await asyncio.sleep(0.05)
            pods = sorted(
                pod["metadata"]["name"]
                for pod in await place.nodes.all(POD)
                if pod["metadata"]["labels"][names.LABEL_ATTEMPT] == str(attempt)
            )
    for index, pod in enumerate(pods):
        await place.nodes.bind(pod, f"node-{index + 1}")
    return pods


async def run(place: Place, pods: list[str]) -> None:
    for index, pod in enumerate(pods):
        await place.nodes.report(pod, "Running", {"running": {"startedAt": BEGAN}}, podIP=f"10.9.0.{index + 1}")
    await place.until("all run", lambda s: told(s, "Running")[0] == "True")


async def end(place: Place, pod: str, exit_code: int, log: str = "") -> None:
    reason = "Completed" if exit_code == 0 else "Error"
    ended = {"exitCode": exit_code, "reason": reason, "message": log, "startedAt": BEGAN, "finishedAt": BEGAN}
    await place.nodes.report(pod, "Failed" if exit_code else "Succeeded", {"terminated": ended})


async def warn(place: Place, pod: str, note: str) -> None:
    """As a kubelet does."""
    found = await place.client.get(POD, place.nodes.namespace, pod)
    event = {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": f"{pod}.1", "namespace": place.nodes.namespace},
        "eventTime": "2026-03-01T12:00:00.000000Z",
        "type": "Warning",
        "reason": "FailedMount",
        "note": note,
        "action": "Mount",
        "reportingController": "kubelet",
        "reportingInstance": "node-1",
        "regarding": {"kind": "Pod", "name": pod, "namespace": place.nodes.namespace, "uid": found["metadata"]["uid"]},
    }
    await place.client.create(EVENT, event)


async def test_a_command_fails_once_is_tried_again_as_a_whole_and_completes(place: Place) -> None:
    """A1, A2, A3, A10, A18; in a namespace that enforces Pod Security restricted."""
    await place.apply(**COMMAND)
    first = await gang(place)
    environment = {
        e["name"]: e["value"]
        for e in (await place.client.get(POD, place.nodes.namespace, first[1]))["spec"]["containers"][0]["env"]
    }
    host = first[0].removesuffix("-a1-0")
    assert environment["PET_MASTER_ADDR"] == environment["MASTER_ADDR"] == f"mlp-0.{host}"
    assert (environment["RANK"], environment["PET_NODE_RANK"]) == ("1", "1")
    await run(place, first)
    await end(place, first[1], 3, "step 7\nValueError: bad shard")
    second = await gang(place, attempt=2)
    assert first[0] not in [pod["metadata"]["name"] for pod in await place.nodes.all(POD)], "the old gang is gone first"
    await run(place, second)
    for pod in second:
        await end(place, pod, 0)
    await place.until("it has finished", lambda s: s.get("finished") == "True")
    await place.kubectl("wait", "--for=condition=Complete", "bmj/mlp", "--timeout=10s")
    status = await place.status()
    assert told(status, "Published") == ("False", "NothingPromised")
    assert status["restarts"] == {"program": 1, "infrastructure": 0, "hang": 0, "total": 1}
    [incident] = status["incidents"]
    assert (incident["index"], incident["exitCode"], incident["node"]) == (1, 3, "node-2")
    assert incident["log"] == "step 7\nValueError: bad shard"


async def test_a_missing_script_is_named_as_soon_as_its_kubelet_complains(place: Place) -> None:
    """C31: nothing in the pod's own status says it, and no restart is counted."""
    await place.apply(**SCRIPT)
    pods = await gang(place)
    await place.nodes.report(pods[0], "Pending", {"waiting": {"reason": "ContainerCreating"}})
    await warn(place, pods[0], 'MountVolume.SetUp failed for volume "bigmodel-script" : configmap "my-code" not found')
    status = await place.until("it is named", lambda s: told(s, "Running") == ("False", "ScriptMissing"), 15)
    assert f"kubectl create configmap my-code -n {place.nodes.namespace} --from-file=train.py" in status["message"]
    assert "ScriptMissing" in await place.story()
    await run(place, pods)
    assert (await place.status())["restarts"]["total"] == 0


async def test_a_missing_priority_class_is_named_and_nothing_is_half_made(place: Place) -> None:
    """C31."""
    await place.apply(priorityClassName="no-such")
    status = await place.until("it is refused", lambda s: told(s, "Admitted") == ("False", "ChildRejected"))
    assert "no-such" in status["message"]
    assert await place.nodes.all(POD) == []


async def test_one_place_for_all_is_asked_of_the_pods_where_the_api_server_drops_the_constraint(place: Place) -> None:
    """Its gate TopologyAwareWorkloadScheduling is off, as it is by default."""
    zone = "topology.kubernetes.io/zone"
    await place.apply(scheduling={"topologyKey": zone})
    pods = [await place.client.get(POD, place.nodes.namespace, name) for name in await gang(place)]
    [group] = await place.nodes.all(POD_GROUP)
    assert "schedulingConstraints" not in group["spec"]
    for pod in pods:
        [term] = pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == zone
        assert pod["spec"]["schedulingGroup"]["podGroupName"] == group["metadata"]["name"]


async def test_nodes_that_failed_a_job_are_avoided_by_a_term_that_the_api_server_takes(place: Place) -> None:
    await place.apply(**COMMAND)
    pods = await gang(place)
    await run(place, pods)
    pod = await place.client.get(POD, place.nodes.namespace, pods[1])
    pod["status"] = {"phase": "Failed", "reason": "OutOfcpu", "message": "not enough cpu"}
    await place.client.replace(POD, pod, "status")
    second = await gang(place, attempt=2)
    successor = await place.client.get(POD, place.nodes.namespace, second[0])
    [term] = successor["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["preference"]["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["node-2"]}]
    assert [node["name"] for node in (await place.status())["avoidedNodes"]] == ["node-2"]


async def test_what_is_free_is_read_off_real_nodes_and_pods(api_server: Path, kubectl: Kubectl) -> None:
    """A25: by the field selectors that the API server has."""
    client = Client(await load_configuration(api_server))
    namespace = next(namespaces)
    kubectl("create", "namespace", namespace)
    gpus = {"nvidia.com/gpu": "8", "pods": "10"}
    for name in ("gpu-1", "gpu-2"):
        await client.create(NODE, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        node = await client.get(NODE, None, name)
        node["status"] = {"capacity": gpus, "allocatable": gpus}
        await client.replace(NODE, node, "status")
        kubectl("patch", "node", name, "--type=json", "-p", '[{"op": "remove", "path": "/spec/taints"}]')
    for name, node_name in (("bound", "gpu-1"), ("waits", None)):
        resources = {"limits": {"nvidia.com/gpu": "3"}}
        spec = {"nodeName": node_name, "containers": [{"name": "c", "image": "x", "resources": resources}]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
        await client.create(POD, body)
    try:
        inquiries = Inquiries(client, (), lambda key: None)
        key = Key(BIG_MODEL_JOB.kind, namespace, "mlp")
        assert inquiries.room(key) is None
        await inquiries.turn()
        room = inquiries.room(key)
        assert room is not None
        spec = JobSpec.model_validate({"nodes": 2, "resources": {"limits": {"nvidia.com/gpu": 8}}})
        known = [node for node in room.nodes if node.name in ("gpu-1", "gpu-2")]
        assert lack(spec, 2, "", known) == "needs 2 × 8 nvidia.com/gpu; free: 5 on gpu-1, 8 on gpu-2"
    finally:
        for name in ("gpu-1", "gpu-2"):
            kubectl("delete", "node", name)
        await client.close()
        await connections_closed()
