"""The part of a cluster that a service needs and an API server alone lacks: Deployment controller, kubelet, endpoint
controller, verifiers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from bigmodel.api import names
from bigmodel.api.run import ServingRun
from bigmodel.artifact.summary import InspectResult
from bigmodel.controller.decision import (
    BIG_MODEL_SERVICE,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    POD,
    SERVICE,
    Manifest,
    ResourceKind,
)
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client, load_configuration
from bigmodel.controller.settings import Images, Settings
from tests.api.controller import Controller
from tests.api.kubectl import Kubectl
from tests.api.training import NAMESPACE, restricted_namespace, told
from tests.unit.controller.service.world import a_summary

DIGESTS = {letter: "sha256:" + letter * 64 for letter in "abcd"}
SETTINGS = Settings.model_validate(
    {
        "images": Images(trainer="trainer:1", server="server:1", triton="triton:1").wire(),
        "store": {"s3": {"bucket": "models", "endpoint": "http://store:9000", "secretName": "s3-login"}},
    }
)
WELL_INSPECTED = InspectResult(ok=True, message="read", summary=a_summary()).fitted()
addresses = (f"127.82.{number // 250}.{number % 250 + 1}" for number in itertools.count(1))


@dataclass
class Nodes:
    """What nodes and Kubernetes' own controllers do in one namespace. Pods of a revision in `broken` fail parity."""

    client: Client
    namespace: str
    broken: set[int] = field(default_factory=set)
    verifiers: dict[str, web.AppRunner] = field(default_factory=dict)  # by pod
    inspected: dict[int, str] = field(
        default_factory=dict
    )  # by revision: what its `inspect` pod says; default: all well
    seen: dict[int, tuple[int, int]] = field(default_factory=dict)  # requests and errors of each pod, by revision
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
        found = {pod["metadata"]["name"]: pod for pod in await self.all(POD)}
        errands = {name for name, pod in found.items() if names.LABEL_REVISION not in pod["metadata"]["labels"]}
        pods = {name: pod for name, pod in found.items() if name not in errands}
        wanted = {
            f"{name}-abc-{ordinal}": deployment
            for name, deployment in deployments.items()
            for ordinal in range(deployment["spec"]["replicas"])
        }
        for name in errands:
            await self.run_errand(found[name])
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
        self.verifiers[name] = await verifier(run, good, address, self.seen)
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

    async def run_errand(self, pod: Manifest) -> None:
        """An `inspect` pod comes to its end."""
        if "deletionTimestamp" in pod["metadata"]:
            await self.client.delete(POD, self.namespace, pod["metadata"]["name"], pod["metadata"]["uid"], 0)
            return
        if (pod.get("status") or {}).get("phase") == "Succeeded":
            return
        number = int(pod["metadata"]["name"].split("-r")[1].split("-")[0])
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
        ended["message"] = self.inspected.get(number, WELL_INSPECTED)
        container = {"name": "inspect", "image": "x", "imageID": "x", "restartCount": 0, "ready": False}
        pod["status"] = {"phase": "Succeeded", "containerStatuses": [container | {"state": {"terminated": ended}}]}
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


def published(letter: str, now: datetime) -> Manifest:
    """The status of a job that has published this artefact."""
    digest = DIGESTS[letter]
    condition = {"status": "True", "observedGeneration": 1, "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ")}
    artifact = {"uri": f"s3://models/{letter}/", "digest": digest, "shortDigest": digest[7:19]}
    return {
        "phase": "Complete",
        "conditions": [condition | {"type": "Published", "reason": "Published", "message": "x"}],
        "artifact": artifact | {"sizeBytes": 1, "variant": "default"},
    }


async def verifier(run: ServingRun, good: bool, address: str, seen: dict[int, tuple[int, int]]) -> web.AppRunner:
    """Answers as a serving pod's verifier would, on the pod's address; every window has seen the same."""
    parity = {"samples": 64, "absolute": 1e-4, "relative": 1e-3, "worst": 0.03, "compared": "values"}
    verdict = {"service": run.service, "revision": run.revision, "digest": run.digest}
    if good:
        verdict |= {"stage": "Verified", "message": "64 samples", "parity": parity}
    else:
        verdict |= {"stage": "Failed", "reason": "ParityFailed", "message": "sample 7 differs"}

    async def answer(request: web.Request) -> web.Response:
        requests, errors = seen.get(run.revision, (0, 0))
        windows = [
            {"seconds": float(age), "requests": requests, "errors": errors} for age in request.query.getall("window")
        ]
        return web.json_response(verdict | {"windows": windows})

    app = web.Application()
    app.router.add_get("/v1/verdict", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, address, names.PORT_VERDICT).start()
    return runner


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
        """Job `mlp` exists, left alone by our controller, and has published this artefact."""
        await self.apply("BigModelJob", recipe={"name": "mlp"}, managedBy="example.com/test")
        patch = json.dumps({"status": published(letter, datetime.now(UTC))})
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
            lambda s: s.get("stable", {}).get("revision") == revision and told(s, "Promoted") == ("True", "Promoted"),
        )

    async def selected(self) -> str | None:
        service = await self.get(SERVICE, "mlp")
        return service["spec"]["selector"][names.LABEL_REVISION] if service else None

    async def versions(self) -> dict[str, str]:
        kinds = (BIG_MODEL_SERVICE, CONTROLLER_REVISION, DEPLOYMENT, SERVICE)
        found = [(kind.kind, item["metadata"]) for kind in kinds for item in await self.nodes.all(kind)]
        return {f"{kind}/{metadata['name']}": metadata["resourceVersion"] for kind, metadata in found}


@asynccontextmanager
async def serving_place(
    api_server: Path, kubectl: Kubectl, namespace: str, door: Configuration | None = None
) -> AsyncIterator[Place]:
    """A new namespace that enforces Pod Security restricted, with a running controller, which has its own `door` to
    the API server where one is given."""
    configuration = await load_configuration(api_server)
    client = Client(configuration)
    await client.create(NAMESPACE, restricted_namespace(namespace))
    controller, nodes = Controller(door or configuration, namespace, SETTINGS), Nodes(client, namespace)
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
