"""A job against a real API server: names and owners as it sees them, columns and events as kubectl prints them.

The test plays the parts that need nodes: scheduler, kubelets, launchers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from bigmodel.api import names
from bigmodel.api.run import TrainingRun
from bigmodel.controller.decision import (
    BIG_MODEL_JOB,
    NETWORK_POLICY,
    POD,
    POD_GROUP,
    SERVICE,
    Key,
    Manifest,
    ResourceKind,
)
from bigmodel.controller.engine import Engine, related_key
from bigmodel.controller.job.progress import ProgressSource
from bigmodel.controller.job.reconciler import JobReconciler
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client, load_configuration, path
from bigmodel.controller.kube.discovery import ClusterFacts
from bigmodel.controller.kube.events import Recorder
from bigmodel.controller.kube.reflector import Reflector
from bigmodel.controller.workqueue import WorkQueue
from tests.api.kubectl import Kubectl
from tests.builders import DIGEST, SETTINGS, STORE, STORE_URI

CHILDREN = (POD, SERVICE, POD_GROUP, NETWORK_POLICY)
namespaces = (f"job-{number}" for number in itertools.count(1))
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

    def progress(self) -> dict[str, Any]:
        training = {"metrics": [{"name": "loss", "value": "0.2117"}], "firstStepAt": datetime.now(UTC).timestamp()}
        said = {"uid": self.run.uid, "attempt": self.run.attempt, "generation": 1, "totalSteps": 50, "updatedAt": 1.0}
        phase = {"phase": "Training", "step": self.step, **training} if self.step else {"phase": "Starting", "step": 0}
        return {**said, **phase}

    def last_word(self, exit_code: int, **fields: Any) -> str:
        said = {"uid": self.run.uid, "attempt": self.run.attempt, "generation": 1, "index": self.index}
        return json.dumps({**said, "exitCode": exit_code, "step": self.step, **fields})

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
    launchers: dict[str, Launcher] = field(default_factory=dict)  # by pod
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
            if metadata.get("deletionTimestamp"):
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
        launcher = self.launchers[name] = Launcher(run, index, await self.serve(name, address))
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


class Controller:
    """The engine with the job's rules, for one namespace; `kill` leaves whatever is half done half done."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client, self._namespace = client, namespace
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def kill(self) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        queue, facts = WorkQueue(), ClusterFacts()
        await facts.refresh(self._client)
        progress, jobs = ProgressSource(queue.add), Reflector(self._client, BIG_MODEL_JOB, (self._namespace,))
        reconciler = JobReconciler(SETTINGS, facts, progress)
        reflectors = {
            kind.kind: Reflector(self._client, kind, (self._namespace,), relation=related_key) for kind in CHILDREN
        }
        engine = Engine(self._client, queue, (reconciler,), reflectors, Recorder(self._client, "test"))

        async def trigger() -> None:
            async for change in jobs.changes():
                metadata = change.object["metadata"]
                queue.add(Key(BIG_MODEL_JOB.kind, metadata["namespace"], metadata["name"]))

        async with asyncio.TaskGroup() as group:
            for work in (trigger(), progress.run(), jobs.run(), engine.run()):
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

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self.kubectl_of_all, *arguments, "-n", self.nodes.namespace, stdin=stdin)

    async def apply(self, **spec: Any) -> None:
        spec = {"recipe": {"name": "mlp"}, "nodes": 2, "store": STORE} | spec
        spec = {name: value for name, value in spec.items() if value is not None}
        manifest = {"apiVersion": names.API_VERSION, "kind": "BigModelJob", "metadata": {"name": "mlp"}, "spec": spec}
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
        await self.until("all pods run", lambda s: _told(s, "Running")[0] == "True")
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


def _told(status: dict[str, Any], kind: str) -> tuple[str, str]:
    found = next((c for c in status.get("conditions", []) if c["type"] == kind), {})
    return found.get("status", ""), found.get("reason", "")


@pytest_asyncio.fixture
async def place(api_server: Path, kubectl: Kubectl) -> AsyncIterator[Place]:
    namespace = next(namespaces)
    kubectl("create", "namespace", namespace)
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    client = Client(await load_configuration(api_server))
    controller, nodes = Controller(client, namespace), Nodes(client, namespace)
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


async def test_from_apply_to_an_artefact_and_what_kubectl_shows(place: Place) -> None:
    await place.apply()
    status = await place.trains()
    assert status["phase"] == "Training"
    header, row = (await place.kubectl("get", "bmj", "mlp")).splitlines()
    assert header.split() == ["NAME", "PHASE", "NODES", "PROGRESS", "LOSS", "GOODPUT", "RESTARTS", "CHECKPOINT", "AGE"]
    assert row.split()[:5] == ["mlp", "Training", "2/2", "62%", "0.2117"]
    await place.completes()
    for condition in ("Complete", "Finished", "Published"):
        await place.kubectl("wait", f"--for=condition={condition}", "bmj/mlp", "--timeout=10s")
    status = await place.status()
    assert status["artifact"]["digest"] == DIGEST
    assert status["nodes"] == {"desired": 2, "ready": 0, "succeeded": 2, "failed": 0, "summary": "0/2"}
    assert {c["observedGeneration"] for c in status["conditions"]} == {1}
    story = await place.story()
    assert sorted(story) == sorted(["Accepted", "GangCreated", "Running", "Published", "Complete"])
    assert story.index("GangCreated") < story.index("Running") < story.index("Complete")


async def test_the_children_are_owned_labelled_and_restricted(place: Place) -> None:
    await place.apply()
    await place.trains()
    [group] = await place.nodes.all(POD_GROUP)
    [service] = await place.nodes.all(SERVICE)
    [policy] = await place.nodes.all(NETWORK_POLICY)
    pods = (await place.pods()).values()
    assert group["spec"]["schedulingPolicy"]["gang"]["minCount"] == 2
    for child in (group, service, policy, *pods):
        [owner] = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["controller"], owner["blockOwnerDeletion"]) == ("BigModelJob", True, True)
        assert child["metadata"]["labels"]["bigmodel.io/job"] == "mlp"
    for pod in pods:
        assert pod["spec"]["schedulingGroup"]["podGroupName"] == group["metadata"]["name"], "the API server kept it"
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


async def test_a_program_error_fails_with_rank_exit_code_and_traceback(place: Place) -> None:
    await place.apply()
    await place.trains()
    error = {"rank": 1, "index": 1, "exitCode": 1, "message": "TypeError: beta", "traceback": "line 7\nTypeError: beta"}
    message = "rank 1 (index 1) exited with 1: TypeError: beta; 3 of 3 restarts are used"
    for pod in (await place.pods()).values():
        word = {"reason": "MaxRestartsExceeded", "message": message, "error": error}
        await place.nodes.end(pod["metadata"]["name"], 1, **word)
    status = await place.until("it has failed", lambda s: _told(s, "Failed")[0] == "True")
    assert _told(status, "Failed") == ("True", "MaxRestartsExceeded")
    assert "rank 1, exit code 1" in status["message"]
    assert "node node-2" in status["message"]
    assert status["message"].endswith("TypeError: beta")
    assert "Failed" in await place.story()


async def test_a_deleted_pod_is_replaced_with_the_same_host_name(place: Place) -> None:
    await place.apply()
    await place.trains()
    old = (await place.pods())["1"]
    await place.kubectl("delete", "pod", old["metadata"]["name"], "--wait=false")
    status = await place.until("it is counted", lambda s: s["restarts"]["infrastructure"] == 1)
    assert status["replacements"] == [{"index": 1, "count": 1}]
    status = await place.until("all run again", lambda s: _told(s, "Running")[0] == "True")
    new = (await place.pods())["1"]
    assert new["metadata"]["name"] == f"{old['metadata']['name']}-r1"
    assert new["spec"]["hostname"] == old["spec"]["hostname"]
    assert "PodReplaced" in await place.story()
    await place.trains(40)
    assert _told(await place.completes(), "Complete") == ("True", "Complete")


async def test_a_controller_that_is_killed_again_and_again_changes_nothing(place: Place) -> None:
    await place.apply()
    for _ in range(6):
        await asyncio.sleep(0.15)
        await place.controller.kill()
        place.controller.start()
    await place.trains()
    assert len(await place.pods()) == 2
    await place.controller.kill()
    place.controller.start()
    status = await place.completes()
    assert _told(status, "Complete") == ("True", "Complete")
    assert status["attempt"] == 1
    assert status["restarts"]["total"] == 0
    assert len(await place.nodes.all(POD)) == 2


async def test_a_settled_job_causes_no_writes(place: Place) -> None:
    await place.apply()
    await place.trains()
    await place.completes()
    await asyncio.sleep(1)
    before = await place.versions()
    await place.apply()  # the same again
    await place.kubectl("label", "bmj", "mlp", "someone=looks")
    await asyncio.sleep(3)
    after = await place.versions()
    assert {name for name in after if before.get(name) != after[name]} == {"BigModelJob/mlp"}


async def test_a_ttl_set_after_the_end_is_observed_and_removes_the_job(place: Place) -> None:
    await place.apply()
    await place.trains()
    await place.completes()
    await place.apply(ttlSecondsAfterFinished=3600)
    status = await place.until("it is observed", lambda s: s["observedGeneration"] == 2)
    assert {c["observedGeneration"] for c in status["conditions"]} == {2}
    await place.apply(ttlSecondsAfterFinished=1)
    async with asyncio.timeout(30):
        while await place.nodes.all(BIG_MODEL_JOB):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_a_used_up_quota_is_told_with_its_numbers_and_heals(place: Place) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "pods"}, "spec": {"hard": {"pods": "1"}}}
    await place.kubectl("create", "-f", "-", stdin=json.dumps(quota))

    async def counted(hard: str) -> None:
        """As the controller-manager does, of which there is none."""
        patch = {"spec": {"hard": {"pods": hard}}, "status": {"hard": {"pods": hard}, "used": {"pods": "0"}}}
        await place.kubectl("patch", "quota", "pods", "--type=merge", "-p", json.dumps(patch))
        await place.kubectl("patch", "quota", "pods", "--subresource=status", "--type=merge", "-p", json.dumps(patch))

    place.nodes.holds = True
    await counted("1")
    await place.apply()
    status = await place.until("it says so", lambda s: _told(s, "Admitted") == ("False", "QuotaExceeded"))
    assert "limited: pods=1" in status["message"]
    await counted("5")
    place.nodes.holds = False
    await place.until("it runs", lambda s: _told(s, "Running")[0] == "True", seconds=60)


async def test_an_object_of_somebody_else_is_never_taken_over(place: Place) -> None:
    await place.controller.kill()
    await place.apply()
    job = await place.client.get(BIG_MODEL_JOB, place.nodes.namespace, "mlp")
    name = names.job_service("mlp", job["metadata"]["uid"])
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}
    await place.kubectl("apply", "-f", "-", stdin=json.dumps(foreign))
    place.controller.start()
    status = await place.until("it says so", lambda s: _told(s, "Admitted") == ("False", "NameTaken"))
    assert name in status["message"]
    assert await place.pods() == {}, "no half-made gang"


async def test_an_edited_service_is_restored_and_then_left_alone(place: Place) -> None:
    await place.apply()
    await place.trains()
    [service] = await place.nodes.all(SERVICE)
    name, wanted = service["metadata"]["name"], service["spec"]["selector"]
    edit = '[{"op": "replace", "path": "/spec/selector", "value": {"app": "mine"}}]'
    await place.kubectl("patch", "service", name, "--type=json", "-p", edit)
    async with asyncio.timeout(20):
        while (await place.nodes.all(SERVICE))[0]["spec"]["selector"] != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(1)
    before = {name: version for name, version in (await place.versions()).items() if not name.startswith("BigModelJob")}
    await asyncio.sleep(3)
    after = await place.versions()
    assert {name: after[name] for name in before} == before, "what the API server adds to children is no difference"


async def test_what_the_schema_lets_through_is_refused_in_the_status(place: Place) -> None:
    await place.apply(store=None)
    status = await place.until("it says so", lambda s: _told(s, "Accepted")[0] == "False")
    assert _told(status, "Accepted") == ("False", "StoreNotSet")
    assert "startTime" not in status, "the spec can still be corrected"
    await place.apply()
    await place.until("it is accepted", lambda s: _told(s, "Accepted") == ("True", "Accepted"))
