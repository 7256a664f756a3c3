"""The part of a cluster that a training job needs and an API server alone lacks: scheduler, kubelets, launchers."""

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
from bigmodel.api.run import TrainingRun
from bigmodel.controller.decision import (
    BIG_MODEL_JOB,
    NETWORK_POLICY,
    POD,
    POD_GROUP,
    SERVICE,
    Manifest,
    ResourceKind,
)
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client, load_configuration, path
from bigmodel.controller.settings import Settings
from tests.api.controller import Controller
from tests.api.kubectl import Kubectl
from tests.builders import DIGEST, SETTINGS, STORE, STORE_URI

CHILDREN = (POD, SERVICE, POD_GROUP, NETWORK_POLICY)
NAMESPACE = ResourceKind("Namespace", "v1", "namespaces", namespaced=False)
addresses = (f"127.83.{number // 250}.{number % 250 + 1}" for number in itertools.count(1))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Launcher:
    """The process in one pod: what it is told, and what it answers to the controller."""

    run: TrainingRun
    index: int
    server: web.AppRunner
    step: int = 0
    resumed: dict[str, Any] | None = None  # the checkpoint that it found in the store and went on from
    ended: bool = False

    def progress(self) -> dict[str, Any]:
        training = {"metrics": [{"name": "loss", "value": "0.2117"}], "firstStepAt": datetime.now(UTC).timestamp()}
        said = {"uid": self.run.uid, "attempt": self.run.attempt, "generation": 1, "totalSteps": 50, "updatedAt": 1.0}
        phase = {"phase": "Training", "step": self.step, **training} if self.step else {"phase": "Starting", "step": 0}
        return {**said, **phase, **({"checkpoint": self.resumed} if self.resumed else {})}

    def last_word(self, exit_code: int, **fields: Any) -> str:
        said = {"uid": self.run.uid, "attempt": self.run.attempt, "generation": 1, "index": self.index}
        return json.dumps({**said, "exitCode": exit_code, "step": self.step, **fields})

    def checkpoint(self) -> dict[str, Any]:
        """The one it saves when it is told to leave."""
        home = f"{STORE_URI}/{self.run.namespace}/{self.run.job}/{self.run.uid}/checkpoint"
        saved = {"step": self.step, "digest": DIGEST, "savedAt": datetime.now(UTC).timestamp()}
        return {**saved, "uri": f"{home}/{self.run.attempt}.1/{self.step}"}

    def artifact(self) -> dict[str, Any]:
        uri = (
            f"{STORE_URI}/{self.run.namespace}/{self.run.job}/{self.run.uid}/artifact/{DIGEST.removeprefix('sha256:')}"
        )
        return {"uri": uri, "digest": DIGEST, "sizeBytes": 10_300_000, "variant": "default"}


@dataclass
class Nodes:
    """Scheduler and kubelets of one namespace: every pod gets a node, runs, and answers on an address of its own."""

    client: Client
    namespace: str
    holds: bool = False  # nothing is placed
    first_step: int = 0  # that a launcher tells; 0: it is still starting
    launchers: dict[str, Launcher] = field(default_factory=dict)  # by pod
    saved: dict[str, Any] | None = None  # the newest checkpoint
    trouble: str = ""  # the last, for the message of a failed test

    async def run(self) -> None:
        while True:
            try:
                await self.step()
            except errors.ApiError as error:  # a write of ours raced with one of the controller
                self.trouble = str(error)
            await asyncio.sleep(0.1)

    async def step(self) -> None:
        for pod in await self.all(POD):
            metadata = pod["metadata"]
            launcher = self.launchers.get(metadata["name"])
            if metadata.get("deletionTimestamp") and launcher is not None and launcher.step and not launcher.ended:
                self.saved = launcher.checkpoint()
                await self.end(metadata["name"], 143, reason="Terminated", checkpoint=self.saved)
            elif metadata.get("deletionTimestamp"):
                await self.stop(metadata["name"])
                await self.client.delete(POD, self.namespace, metadata["name"], metadata["uid"], 0)
            elif metadata["name"] not in self.launchers and not self.holds:
                await self.start(pod)

    async def start(self, pod: Manifest) -> None:
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]
        environment = {variable["name"]: variable.get("value", "") for variable in container["env"]}
        run = TrainingRun.model_validate_json(environment[names.ENV_TRAINING_RUN])
        index, address = int(environment[names.ENV_INDEX]), next(addresses)
        await self.bind(name, f"node-{index + 1}")
        launcher = self.launchers[name] = Launcher(
            run, index, await self.serve(name, address), self.first_step, self.saved
        )
        running = {"running": {"startedAt": _now()}}
        await self.report(name, "Running", running, podIP=address, podIPs=[{"ip": address}], startTime=_now())
        assert launcher.run.store.uri == STORE_URI

    async def bind(self, name: str, node: str) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        await self.client._object("bind", "POST", path(POD, self.namespace, name, "binding"), None, body)

    async def serve(self, name: str, address: str) -> web.AppRunner:
        async def answer(request: web.Request) -> web.Response:
            return web.json_response(self.launchers[name].progress())

        app = web.Application()
        app.router.add_get("/v1/progress", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, address, names.PORT_PROGRESS).start()
        return runner

    async def stop(self, name: str) -> None:
        if (launcher := self.launchers.pop(name, None)) is not None:
            await launcher.server.cleanup()

    async def end(self, name: str, exit_code: int, **word: Any) -> None:
        """The container ends; the launcher has its last word."""
        launcher = self.launchers[name]
        launcher.ended = True
        message = launcher.last_word(exit_code, **word)
        reason = "Completed" if exit_code == 0 else "Error"
        terminated = {"exitCode": exit_code, "reason": reason, "message": message, "finishedAt": _now()}
        await launcher.server.cleanup()
        await self.report(name, "Failed" if exit_code else "Succeeded", {"terminated": terminated})

    async def report(self, name: str, phase: str, state: dict[str, Any], **fields: Any) -> None:
        """A pod's status as its kubelet writes it."""
        pod = await self.client.get(POD, self.namespace, name)
        ready = "True" if phase == "Running" else "False"
        container = {"name": "trainer", "image": "x", "imageID": "x", "restartCount": 0, "ready": ready == "True"}
        pod["status"] |= {
            **fields,
            "phase": phase,
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": _now()},
                {"type": "Ready", "status": ready, "lastTransitionTime": _now()},
            ],
            "containerStatuses": [{**container, "state": state}],
        }
        await self.client.replace(POD, pod, "status")

    async def all(self, kind: ResourceKind) -> list[Manifest]:
        return [item async for page, _ in self.client.pages(kind, self.namespace) for item in page]


@dataclass
class Place:
    """One namespace with its nodes and a running controller."""

    client: Client
    controller: Controller
    nodes: Nodes
    kubectl_of_all: Kubectl

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self.kubectl_of_all, *arguments, "-n", self.nodes.namespace, stdin=stdin)

    async def apply(self, labels: dict[str, str] | None = None, **spec: Any) -> None:
        spec = {"recipe": {"name": "mlp"}, "nodes": 2, "store": STORE} | spec
        spec = {name: value for name, value in spec.items() if value is not None}
        metadata = {"name": "mlp", "labels": labels or {}}
        manifest = {"apiVersion": names.API_VERSION, "kind": "BigModelJob", "metadata": metadata, "spec": spec}
        await self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))

    async def status(self) -> dict[str, Any]:
        job = await self.client.get(BIG_MODEL_JOB, self.nodes.namespace, "mlp")
        return job.get("status") or {}

    async def until(self, what: str, holds: Callable[[dict[str, Any]], bool], seconds: float = 30) -> dict[str, Any]:
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

    async def pods(self) -> dict[str, Manifest]:
        """Those in the DNS, by index."""
        return {
            pod["metadata"]["labels"][names.LABEL_INDEX]: pod
            for pod in await self.nodes.all(POD)
            if pod["metadata"]["labels"][names.LABEL_ACTIVE] == "true" and not pod["metadata"].get("deletionTimestamp")
        }

    async def trains(self, step: int = 31) -> dict[str, Any]:
        await self.until("all pods run", lambda s: told(s, "Running")[0] == "True")
        for launcher in self.nodes.launchers.values():
            launcher.step = step
        return await self.until("it trains", lambda s: s.get("progress", {}).get("step") == step)

    async def completes(self) -> dict[str, Any]:
        pods = await self.pods()
        for index, pod in sorted(pods.items(), reverse=True):
            launcher = self.nodes.launchers[pod["metadata"]["name"]]
            launcher.step = 50
            artifact = {"artifact": launcher.artifact()} if index == "0" else {}
            await self.nodes.end(pod["metadata"]["name"], 0, **artifact)
        return await self.until("it has finished", lambda s: s.get("finished") == "True")

    async def story(self) -> list[str]:
        events = json.loads(await self.kubectl("get", "events.events.k8s.io", "-o", "json"))["items"]
        return [e["reason"] for e in sorted(events, key=lambda e: str(e["eventTime"]))]

    async def versions(self) -> dict[str, str]:
        found = [(kind.kind, item["metadata"]) for kind in CHILDREN for item in await self.nodes.all(kind)]
        job = await self.client.get(BIG_MODEL_JOB, self.nodes.namespace, "mlp")
        found.append((BIG_MODEL_JOB.kind, job["metadata"]))
        return {f"{kind}/{metadata['name']}": metadata["resourceVersion"] for kind, metadata in found}


def told(status: dict[str, Any], kind: str) -> tuple[str, str]:
    found = next((c for c in status.get("conditions", []) if c["type"] == kind), {})
    return found.get("status", ""), found.get("reason", "")


def restricted_namespace(name: str) -> Manifest:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


@asynccontextmanager
async def training_place(
    api_server: Path,
    kubectl: Kubectl,
    namespace: str,
    settings: Settings = SETTINGS,
    door: Configuration | None = None,
) -> AsyncIterator[Place]:
    """A new namespace that enforces Pod Security restricted, with a running controller, which has its own `door` to
    the API server where one is given."""
    configuration = await load_configuration(api_server)
    client = Client(configuration)
    await client.create(NAMESPACE, restricted_namespace(namespace))
    controller, nodes = Controller(door or configuration, namespace, settings), Nodes(client, namespace)
    controller.start()
    working = asyncio.create_task(nodes.run())
    try:
        yield Place(client, controller, nodes, kubectl)
    finally:
        await controller.kill()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        for name in list(nodes.launchers):
            await nodes.stop(name)
        await client.close()
