"""A service against a real API server: records that are immutable there, names that are taken there, columns that it
prints. The test plays the parts that need nodes: Deployment controller, kubelet, endpoint controller, verifiers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bigmodel.api import names
from bigmodel.api.run import ServingRun
from bigmodel.controller.decision import (
    BIG_MODEL_JOB,
    BIG_MODEL_SERVICE,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    POD,
    SERVICE,
    Key,
    Manifest,
    ResourceKind,
)
from bigmodel.controller.engine import Engine, related_key
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client, load_configuration
from bigmodel.controller.kube.events import Recorder
from bigmodel.controller.kube.reflector import Reflector
from bigmodel.controller.service.reconciler import ServiceReconciler
from bigmodel.controller.service.verdicts import VerdictSource
from bigmodel.controller.settings import Images, Settings
from bigmodel.controller.workqueue import WorkQueue
from tests.api.kubectl import Kubectl

DIGESTS = {letter: "sha256:" + letter * 64 for letter in "abcd"}
SETTINGS = Settings.model_validate(
    {
        "images": Images(trainer="trainer:1", server="server:1", triton="triton:1").wire(),
        "store": {"s3": {"bucket": "models", "endpoint": "http://store:9000", "secretName": "s3-login"}},
    }
)
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
# What `Controller.kill` cuts off is meant to be cut off.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

namespaces = (f"service-{number}" for number in itertools.count(1))
addresses = (f"127.82.{number // 250}.{number % 250 + 1}" for number in itertools.count(1))


@dataclass
class Nodes:
    """What nodes and Kubernetes' own controllers do in one namespace. Pods of a revision in `broken` fail parity."""

    client: Client
    namespace: str
    broken: set[int] = field(default_factory=set)
    verifiers: dict[str, web.AppRunner] = field(default_factory=dict)  # by pod
    trouble: str = ""  # the last, for the message of a failed test

    async def run(self) -> None:
        while True:
            try:
                await self.step()
            except errors.ApiError as error:  # a write of ours raced with one of the controller
                self.trouble = str(error)
            await asyncio.sleep(0.1)

    async def step(self) -> None:
        deployments = {d["metadata"]["name"]: d for d in await self.all(DEPLOYMENT)}
        pods = {pod["metadata"]["name"]: pod for pod in await self.all(POD)}
        wanted = {
            f"{name}-abc-{ordinal}": deployment
            for name, deployment in deployments.items()
            for ordinal in range(deployment["spec"]["replicas"])
        }
        for name in pods.keys() - wanted.keys():
            await self.client.delete(POD, self.namespace, name, pods[name]["metadata"]["uid"], 0)
            await self.verifiers.pop(name).cleanup()
        for name in wanted.keys() - pods.keys():
            await self.start(name, wanted[name])
        for service in await self.all(SERVICE):
            if "ownerReferences" in service["metadata"]:
                await self.publish(service, [pods[name] for name in pods.keys() & wanted.keys()])

    async def all(self, kind: ResourceKind) -> list[Manifest]:
        return [item async for page, _ in self.client.pages(kind, self.namespace) for item in page]

    async def start(self, name: str, deployment: Manifest) -> None:
        template = deployment["spec"]["template"]
        environment = template["spec"]["containers"][1]["env"]
        run = ServingRun.model_validate_json(next(e["value"] for e in environment if e["name"] == "BIGMODEL_SERVE"))
        good, address = run.revision not in self.broken, next(addresses)
        self.verifiers[name] = await verifier(run, good, address)
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{deployment['metadata']['name']}-abc"}
        pod = await self.client.create(
            POD,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": template["metadata"]
                | {
                    "name": name,
                    "namespace": self.namespace,
                    "ownerReferences": [owner | {"uid": deployment["metadata"]["uid"], "controller": True}],
                },
                "spec": template["spec"],
            },
        )
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        fetched = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
        running = {"state": {"running": {"startedAt": now}}, "image": "x", "imageID": "x", "restartCount": 0}
        pod["status"] = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "startTime": now,
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
                {"type": "Ready", "status": "True" if good else "False", "lastTransitionTime": now},
            ],
            "initContainerStatuses": [running | {"name": "fetch", "ready": True, "state": {"terminated": fetched}}],
            "containerStatuses": [
                running | {"name": "server", "ready": True},
                running | {"name": "verifier", "ready": good},
            ],
        }
        await self.client.replace(POD, pod, "status")

    async def publish(self, service: Manifest, pods: list[Manifest]) -> None:
        """The Service's only slice, as the endpoint controller writes it."""
        selector = service["spec"]["selector"].items()
        endpoints = [
            {
                "addresses": ["192.0.2.1"],  # a slice must not name loopback, where the pods of this test are
                "conditions": {"ready": pod["status"]["conditions"][1]["status"] == "True"},
                "targetRef": {"kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
            }
            for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))
            if selector <= pod["metadata"]["labels"].items() and pod.get("status", {}).get("podIP")
        ]
        name, owner = f"{service['metadata']['name']}-slice", service["metadata"]
        body = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": owner["labels"] | {"kubernetes.io/service-name": owner["name"]},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Service", "name": owner["name"], "uid": owner["uid"]}
                    | {"controller": True}
                ],
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [],
        }
        await self.client.apply(ENDPOINT_SLICE, body)


async def verifier(run: ServingRun, good: bool, address: str) -> web.AppRunner:
    """Answers as a serving pod's verifier would, on the pod's address."""
    parity = {"samples": 64, "absolute": 1e-4, "relative": 1e-3, "worst": 0.03, "compared": "values"}
    verdict = {"service": run.service, "revision": run.revision, "digest": run.digest}
    if good:
        verdict |= {"stage": "Verified", "message": "64 samples", "parity": parity}
    else:
        verdict |= {"stage": "Failed", "reason": "ParityFailed", "message": "sample 7 differs"}

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(verdict)

    app = web.Application()
    app.router.add_get("/v1/verdict", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, address, names.PORT_VERDICT).start()
    return runner


class Controller:
    """The engine with the service's rules; `kill` leaves whatever is half done half done."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def kill(self) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        queue = WorkQueue()
        jobs, services = Reflector(self._client, BIG_MODEL_JOB), Reflector(self._client, BIG_MODEL_SERVICE)
        verdicts = VerdictSource(queue.add)
        reconciler = ServiceReconciler(SETTINGS, None, jobs, verdicts)
        reflectors = {
            kind.kind: Reflector(self._client, kind, relation=related_key)
            for kind in (*reconciler.children, *reconciler.related)
        }
        engine = Engine(self._client, queue, (reconciler,), reflectors, Recorder(self._client, "test"))

        async def trigger() -> None:
            async for change in services.changes():
                metadata = change.object["metadata"]
                queue.add(Key(BIG_MODEL_SERVICE.kind, metadata["namespace"], metadata["name"]))

        async def followers() -> None:
            async for change in jobs.changes():
                metadata = change.object["metadata"]
                for key in reconciler.followers_of(metadata["namespace"], metadata["name"]):
                    queue.add(key)

        async with asyncio.TaskGroup() as group:
            for work in (trigger(), followers(), verdicts.run(), jobs.run(), services.run(), engine.run()):
                group.create_task(work)
            for reflector in reflectors.values():
                group.create_task(reflector.run())


@dataclass
class Place:
    """One namespace with its nodes and a running controller."""

    client: Client
    controller: Controller
    nodes: Nodes
    kubectl_of_all: Kubectl

    @property
    def namespace(self) -> str:
        return self.nodes.namespace

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self.kubectl_of_all, *arguments, "-n", self.namespace, stdin=stdin)

    async def apply(self, kind: str, **spec: Any) -> None:
        manifest = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": "mlp"}, "spec": spec}
        await self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))

    async def service(self, **spec: Any) -> None:
        await self.apply("BigModelService", **({"model": {"fromJob": {"name": "mlp"}}} | spec))

    async def publish(self, letter: str) -> None:
        """Job `mlp` exists and has published this artefact."""
        await self.apply("BigModelJob", recipe={"name": "mlp"})
        digest, now = DIGESTS[letter], datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {"status": "True", "observedGeneration": 1, "lastTransitionTime": now, "message": "x"}
        status = {
            "phase": "Complete",
            "conditions": [condition | {"type": "Published", "reason": "Published"}],
            "artifact": {
                "uri": f"s3://models/{letter}/",
                "digest": digest,
                "shortDigest": digest[7:19],
                "sizeBytes": 1,
                "variant": "default",
            },
        }
        patch = json.dumps({"status": status})
        await self.kubectl("patch", "bmj", "mlp", "--subresource=status", "--type=merge", "-p", patch)

    async def get(self, kind: ResourceKind, name: str) -> Manifest | None:
        try:
            return await self.client.get(kind, self.namespace, name)
        except errors.NotFound:
            return None

    async def status(self) -> dict[str, Any]:
        service = await self.client.get(BIG_MODEL_SERVICE, self.namespace, "mlp")
        return service.get("status") or {}

    async def condition(self, kind: str) -> tuple[str, str]:
        found = next((c for c in (await self.status()).get("conditions", []) if c["type"] == kind), {})
        return found.get("status", ""), found.get("reason", "")

    async def until(self, what: str, holds: Callable[[dict[str, Any]], bool], seconds: float = 20) -> dict[str, Any]:
        """The status that makes it true."""
        status: dict[str, Any] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    status = await self.status()
                    if holds(status):
                        return status
                    await asyncio.sleep(0.05)
        pytest.fail(f"not within {seconds} s: {what}\n{json.dumps(status, indent=1)}\n{self.nodes.trouble}")

    async def until_serves(self, revision: int) -> dict[str, Any]:
        return await self.until(
            f"r{revision} serves",
            lambda s: s.get("stable", {}).get("revision") == revision and _told(s, "Promoted") == ("True", "Promoted"),
        )

    async def selected(self) -> str | None:
        service = await self.get(SERVICE, "mlp")
        return service["spec"]["selector"][names.LABEL_REVISION] if service else None

    async def versions(self) -> dict[str, str]:
        kinds = (BIG_MODEL_SERVICE, CONTROLLER_REVISION, DEPLOYMENT, SERVICE)
        found = [(kind.kind, item["metadata"]) for kind in kinds for item in await self.nodes.all(kind)]
        return {f"{kind}/{metadata['name']}": metadata["resourceVersion"] for kind, metadata in found}


def _told(status: dict[str, Any], kind: str) -> tuple[str, str]:
    found = next((c for c in status.get("conditions", []) if c["type"] == kind), {})
    return found.get("status", ""), found.get("reason", "")


@pytest.fixture
async def place(api_server: Path, kubectl: Kubectl) -> AsyncIterator[Place]:
    namespace = next(namespaces)
    kubectl("create", "namespace", namespace)
    kubectl("label", "namespace", namespace, *(f"{label}={value}" for label, value in RESTRICTED.items()))
    client = Client(await load_configuration(api_server))
    controller, nodes = Controller(client), Nodes(client, namespace)
    controller.start()
    working = asyncio.create_task(nodes.run())
    try:
        yield Place(client, controller, nodes, kubectl)
    finally:
        await controller.kill()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        for runner in nodes.verifiers.values():
            await runner.cleanup()
        await client.close()
        # A connection whose request was cancelled still says farewell by TLS; the loop must not end before.
        loop: Any = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            while any(transport._protocol is not None for transport in loop._transports.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        gc.collect()  # a pass that was killed leaves coroutines that never ran: here, not in somebody else's test


async def test_from_a_waiting_service_to_answers_and_what_kubectl_shows(place: Place) -> None:
    await place.service()
    await place.until("it waits", lambda s: _told(s, "SourceAvailable") == ("False", "JobNotFound"))
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
    status = await place.until("r3 is rejected", lambda s: _told(s, "Promoted") == ("False", "Rejected"))
    assert await place.selected() == "2"
    assert status["rollout"] == "r3 rejected: parity"
    assert _told(status, "Ready") == ("True", "Serving")
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
    await place.until("none", lambda s: _told(s, "Ready") == ("False", "ScaledToZero"))


async def test_a_service_of_somebody_else_is_left_alone(place: Place) -> None:
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "mlp"}, "spec": {"ports": [{"port": 80}]}}
    await place.kubectl("apply", "-f", "-", stdin=json.dumps(foreign))
    await place.service()
    await place.publish("a")
    status = await place.until("it says so", lambda s: _told(s, "Progressing") == ("False", "NameTaken"))
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
