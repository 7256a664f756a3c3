"""Lives of jobs and services, each played to its end with a controller behind a Door, and what must hold afterwards.

A life is played once with nothing in its way: the reference. Then again with a fault; the end must be the same end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bigmodel.api import names
from bigmodel.controller.decision import (
    BIG_MODEL_JOB,
    BIG_MODEL_SERVICE,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    NETWORK_POLICY,
    POD,
    POD_DISRUPTION_BUDGET,
    POD_GROUP,
    SERVICE,
    Manifest,
    ResourceKind,
)
from bigmodel.controller.kube.client import Client
from tests.api import serving, training
from tests.api.kubectl import Kubectl
from tests.api.training import told
from tests.builders import STORE
from tests.faults.proxy import Door, Proxy, Write

RESOURCES = {"training": BIG_MODEL_JOB, "serving": BIG_MODEL_SERVICE}
CHILDREN = {
    "training": (POD, SERVICE, POD_GROUP, NETWORK_POLICY),
    "serving": (CONTROLLER_REVISION, DEPLOYMENT, SERVICE, NETWORK_POLICY, POD_DISRUPTION_BUDGET),
}
QUIET_SECONDS = 0.4  # without a write
namespaces = (f"fault-{number}" for number in itertools.count(1))


@dataclass
class Stage:
    """One life's namespace, the controller in it and the door that it goes through."""

    what: str  # training | serving
    place: Any  # training.Place or serving.Place
    door: Door
    lives: int = 1  # of controllers so far
    revival: asyncio.Task[None] | None = None

    @property
    def client(self) -> Client:
        client: Client = self.place.client
        return client

    @property
    def namespace(self) -> str:
        name: str = self.place.nodes.namespace
        return name

    @property
    def writes(self) -> list[Write]:
        """Of its controllers; a Lease is no object of ours."""
        return [write for write in self.door.writes if write.call.resource != "leases"]

    @property
    def kind(self) -> ResourceKind:
        return RESOURCES[self.what]

    async def object(self) -> Manifest:
        return await self.client.get(self.kind, self.namespace, "mlp")

    async def submit(self, kind: ResourceKind, **spec: Any) -> Manifest:
        metadata = {"name": "mlp", "namespace": self.namespace}
        manifest = {"apiVersion": names.API_VERSION, "kind": kind.kind, "metadata": metadata, "spec": spec}
        return await self.client.create(kind, manifest)

    async def edit(self, **spec: Any) -> Manifest:
        return await self.client.merge_patch(self.kind, self.namespace, "mlp", {"spec": spec})

    async def train(self, **spec: Any) -> None:
        """A job of two nodes, up to its 31st step."""
        self.place.nodes.first_step = 31
        await self.submit(BIG_MODEL_JOB, recipe={"name": "mlp"}, nodes=2, store=STORE, **spec)
        await self.trains()

    async def trains(self, step: int = 31) -> None:
        self.place.nodes.first_step = step
        await self.place.trains(step)

    async def delete_pod(self, index: str) -> None:
        pod = (await self.place.pods())[index]["metadata"]
        await self.client.delete(POD, self.namespace, pod["name"], pod["uid"])

    async def publish(self, letter: str) -> None:
        """Job `mlp`, which this controller leaves alone, has published this artefact."""
        jobs = [job async for page, _ in self.client.pages(BIG_MODEL_JOB, self.namespace) for job in page]
        job = (
            jobs[0] if jobs else await self.submit(BIG_MODEL_JOB, recipe={"name": "mlp"}, managedBy="example.com/test")
        )
        job["status"] = serving.published(letter, datetime.now(UTC))
        await self.client.replace(BIG_MODEL_JOB, job, "status")

    async def children(self) -> list[Manifest]:
        kinds = CHILDREN[self.what]
        return [item for kind in kinds for item in await self.place.nodes.all(kind)]

    def killer(self) -> Callable[[], None]:
        """What kills the controller that runs now and has a new one started; a second call does nothing."""
        life = self.lives

        def kill() -> None:
            if self.lives == life:
                self.lives += 1
                self.place.controller.dies()
                self.revival = asyncio.create_task(self._revived())

        return kill

    async def _revived(self) -> None:
        await self.place.controller.kill()
        self.place.controller.start()


Life = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    what: str  # training | serving
    life: Life


async def _completes(stage: Stage) -> None:
    await stage.train()
    await stage.place.completes()


async def _loses_a_pod(stage: Stage) -> None:
    await stage.train()
    pod = (await stage.place.pods())["1"]["metadata"]["name"]
    await stage.place.nodes.end(pod, 143, reason="Terminated")
    await stage.place.until("it is replaced", lambda s: s["replacements"] == [{"index": 1, "count": 1}])
    await stage.trains(40)
    await stage.place.completes()


async def _is_resized(stage: Stage) -> None:
    await stage.train()
    await stage.edit(nodes=1)
    await stage.place.until("a new attempt is counted", lambda s: s["attempt"] == 2)
    await stage.trains(40)
    await stage.place.completes()


async def _fails(stage: Stage) -> None:
    await stage.train()
    pod = (await stage.place.pods())["1"]["metadata"]["name"]
    error = {"rank": 1, "index": 1, "exitCode": 1, "message": "TypeError: beta"}
    await stage.place.nodes.end(pod, 1, reason="MaxRestartsExceeded", message="beta", error=error)
    await stage.place.until("it has failed", lambda s: told(s, "Failed")[0] == "True")
    await until(lambda: _ended(stage))


async def _ended(stage: Stage) -> bool:
    """No pod runs any more."""
    pods = await stage.place.nodes.all(POD)
    return all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in pods)


async def _serves(stage: Stage) -> None:
    await stage.publish("a")
    await stage.submit(BIG_MODEL_SERVICE, model={"fromJob": {"name": "mlp"}})
    await stage.place.until_serves(1)


async def _rolls_out(stage: Stage) -> None:
    await _serves(stage)
    await stage.publish("b")
    await stage.place.until_serves(2)


async def _rejects(stage: Stage) -> None:
    await _serves(stage)
    stage.place.nodes.broken.add(2)
    await stage.publish("b")
    await stage.place.until("r2 is rejected", lambda s: told(s, "Promoted") == ("False", "Rejected"))
    await until(lambda: _scaled_down(stage))


async def _scaled_down(stage: Stage) -> bool:
    deployment = await stage.place.get(DEPLOYMENT, "mlp-r2")
    return deployment is not None and deployment["spec"]["replicas"] == 0


COMPLETES = Scenario("training", _completes)
SCENARIOS = {
    "a job to its end": COMPLETES,
    "a job that loses a pod": Scenario("training", _loses_a_pod),
    "a job in its second attempt": Scenario("training", _is_resized),
    "a job that fails": Scenario("training", _fails),
    "a service with its second revision": Scenario("serving", _rolls_out),
    "a service that rejects its second revision": Scenario("serving", _rejects),
}


@asynccontextmanager
async def stage_for(scenario: Scenario, api_server: Path, kubectl: Kubectl, proxy: Proxy) -> AsyncIterator[Stage]:
    places: Any = {"training": training.training_place, "serving": serving.serving_place}
    async with (
        proxy.door() as door,
        places[scenario.what](api_server, kubectl, next(namespaces), door=door.configuration()) as place,
    ):
        yield Stage(scenario.what, place, door)


@dataclass(frozen=True)
class End:
    """What a life came to, without names, times and numbers that differ from run to run."""

    objects: dict[str, Any]
    made: Counter[str]  # kinds and names created, each time
    deleted: Counter[str]
    events: frozenset[str]
    writes: int


async def lived(stage: Stage, scenario: Scenario) -> End:
    """Play it, wait until nothing is written any more, check the invariants, and say what it came to."""
    await scenario.life(stage)
    await settled(stage)
    await check(stage)
    return await end_of(stage)


async def settled(stage: Stage) -> None:
    """I1: it converges: in the end one more look at the object, asked for by an annotation, writes nothing."""
    looks = itertools.count()

    async def quiet() -> bool:
        before = len(stage.writes)
        patch = {"metadata": {"annotations": {"look": str(next(looks))}}}
        await stage.client.merge_patch(stage.kind, stage.namespace, "mlp", patch)
        await asyncio.sleep(QUIET_SECONDS)
        return len(stage.writes) == before

    try:
        await until(quiet)
    except TimeoutError:
        raise AssertionError(f"I1: it does not settle: {stage.writes[-5:]}") from None


async def check(stage: Stage) -> None:
    """What must hold after every case: I4, I6, I8, I9."""
    owner = await stage.object()
    for child in await stage.children():
        controllers = [one["uid"] for one in child["metadata"].get("ownerReferences", ()) if one.get("controller")]
        assert controllers == [owner["metadata"]["uid"]], f"I4: an orphan: {child['kind']} {child['metadata']['name']}"
    status = owner["status"]
    generations = {status["observedGeneration"], *(one["observedGeneration"] for one in status["conditions"])}
    assert generations == {owner["metadata"]["generation"]}, "I6: a condition speaks of another spec"
    outside = [write for write in stage.writes if write.call.namespace != stage.namespace]
    assert outside == [], "I8: a write outside of the namespace"
    refused = [write for write in stage.writes if not write.applied]
    for place, same in itertools.groupby(sorted(refused, key=_place), key=_place):
        times = [write.at for write in same]
        assert _most_in_a_second(times) <= 4, f"I9: {place} is tried again without patience: {times}"


def _place(write: Write) -> tuple[str, str, str]:
    return write.call.verb, write.call.resource, write.call.name


def _most_in_a_second(times: list[float]) -> int:
    return max(sum(start <= time < start + 1 for time in times) for start in times)


async def end_of(stage: Stage) -> End:
    owner = await stage.object()
    objects = {f"{one['kind']} {one['metadata']['name']}": _lasting(one) for one in [owner, *await stage.children()]}
    writes = stage.writes
    made = Counter(_named(write) for write in writes if write.call.verb == "create" and write.applied)
    deleted = Counter(_named(write) for write in writes if write.call.verb == "delete" and write.applied)
    events = frozenset(name for name in made if name.startswith("events "))
    end = {
        "objects": objects,
        "made": {name: count for name, count in made.items() if name not in events},
        "deleted": deleted,
    }
    same = json.loads(_normal(json.dumps(end, sort_keys=True), owner["metadata"]))
    return End(same["objects"], Counter(same["made"]), Counter(same["deleted"]), events, len(writes))


def differences(end: End, reference: End) -> list[str]:
    """In what a life with a fault ended otherwise: I3 and the end state. An event may be lost, never told twice."""
    ours, theirs = dict(_leaves(end.objects)), dict(_leaves(reference.objects))
    found = [
        f"{path}: {ours.get(path)} instead of {theirs.get(path)}"
        for path in sorted(ours.keys() | theirs.keys())
        if ours.get(path) != theirs.get(path)
    ]
    if end.made != reference.made:
        found.append(f"I3: made {end.made - reference.made} too often, {reference.made - end.made} not")
    if end.deleted != reference.deleted:
        found.append(f"I3: deleted {end.deleted - reference.deleted} too often, {reference.deleted - end.deleted} not")
    return found


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(one, f"{path}.{name}")
    else:
        yield path, value


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 (what is waited for sets no event)
            await asyncio.sleep(0.05)


def _named(write: Write) -> str:
    return f"{write.call.resource} {write.call.name}"


METADATA = ("name", "labels", "annotations", "finalizers", "generation")
# How long things took, and what only the API server or a player of the test decides.
VARYING = (
    "goodput",
    "progress",
    "recoverySeconds",
    "timings",
    "clusterIP",
    "clusterIPs",
    "nodeName",
    names.ANNOTATION_HASH,
    "look",
    "data",
)


def _lasting(manifest: Manifest) -> Manifest:
    kept: Manifest = {name: value for name, value in manifest.items() if name not in ("metadata", "status")}
    kept["metadata"] = {name: manifest["metadata"][name] for name in METADATA if name in manifest["metadata"]}
    if manifest["apiVersion"] == names.API_VERSION:
        kept["status"] = manifest["status"]
    return _without(kept)


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(one) for name, one in value.items() if name not in VARYING}
    return [_without(one) for one in value] if isinstance(value, list) else value


UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
HASH = re.compile(r"\b[0-9a-f]{16,64}\b")
ADDRESS = re.compile(r"\b127\.\d+\.\d+\.\d+\b")
LASTING = re.compile(r"\b\d+(\.\d+)? ?(ms|s|m|min|minutes|seconds)\b")
TIMINGS = re.compile(r'\\"timings\\":\{[^}]*\},?')  # within an annotation, which is JSON in a string


def _normal(text: str, metadata: Manifest) -> str:
    text = text.replace(metadata["namespace"], "NAMESPACE")
    text = text.replace(names.short_uid(metadata["uid"]), "short")
    text = TIMINGS.sub("", text)
    for pattern, word in ((UUID, "UID"), (TIME, "TIME"), (HASH, "HASH"), (ADDRESS, "IP"), (LASTING, "A WHILE")):
        text = pattern.sub(word, text)
    return text
