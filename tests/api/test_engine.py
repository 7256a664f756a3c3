"""The engine's promises against a real API server: what tests/unit assumes of it, and what only it can show."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bigmodel.controller.decision import (
    BIG_MODEL_JOB,
    POD,
    SERVICE,
    Children,
    Decision,
    Deletion,
    Event,
    Key,
    Manifest,
    Rejection,
    Relabel,
    ResourceKind,
)
from bigmodel.controller.engine import Engine, related_key
from bigmodel.controller.execute import Executor
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client, load_configuration
from bigmodel.controller.kube.discovery import ClusterFacts
from bigmodel.controller.kube.events import EVENT, Recorder
from bigmodel.controller.kube.reflector import Reflector
from bigmodel.controller.workqueue import WorkQueue
from tests.api.kubectl import Kubectl

NAMESPACE = ResourceKind("Namespace", "v1", "namespaces", namespaced=False)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SELECTOR = "app.kubernetes.io/managed-by=bigmodel-operator"


class Workplace:
    """A namespace with one job, a client that counts its requests, reflectors, and an executor."""

    def __init__(self, client: Client, namespace: str, requests: list[str]) -> None:
        self.client, self.namespace, self.requests = client, namespace, requests
        self.pods = Reflector(client, POD, (namespace,), SELECTOR, related_key)
        self.services = Reflector(client, SERVICE, (namespace,), SELECTOR, related_key)
        self.executor = Executor(client, {"Pod": self.pods, "Service": self.services}, Recorder(client, "test"))

    async def job(self, name: str = "mlp") -> Manifest:
        return await self.client.get(BIG_MODEL_JOB, self.namespace, name)

    async def new_job(self, name: str = "mlp") -> Manifest:
        manifest = {
            "apiVersion": BIG_MODEL_JOB.api_version,
            "kind": BIG_MODEL_JOB.kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"recipe": {"name": "mlp"}},
        }
        return await self.client.create(BIG_MODEL_JOB, manifest)

    async def execute(self, decision: Decision, owner: Manifest | None = None) -> list[Any]:
        return await self.executor.execute(BIG_MODEL_JOB, owner or await self.job(), decision, NOW)


def child(owner: Manifest, kind: ResourceKind, name: str, spec: Manifest) -> Manifest:
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {
            "name": name,
            "namespace": owner["metadata"]["namespace"],
            "labels": {"app.kubernetes.io/managed-by": "bigmodel-operator"},
            "ownerReferences": [reference],
        },
        "spec": spec,
    }


def pod(owner: Manifest, name: str) -> Manifest:
    return child(owner, POD, name, {"containers": [{"name": "trainer", "image": "none"}]})


def service(owner: Manifest, **spec: Any) -> Manifest:
    return child(owner, SERVICE, "mlp", {"ports": [{"port": 8000}], **spec})


@pytest.fixture
async def place(api_server: Path, kubectl: Kubectl) -> AsyncIterator[Workplace]:
    requests: list[str] = []
    client = Client(await load_configuration(api_server), lambda verb, code: requests.append(verb))
    namespace = f"engine-{uuid.uuid4().hex[:8]}"
    await client.create(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    try:
        workplace = Workplace(client, namespace, requests)
        await workplace.new_job()
        yield workplace
    finally:
        await client.close()
        # A connection whose request was cancelled still says farewell by TLS; the loop must not end before.
        loop: Any = asyncio.get_running_loop()
        await until(lambda: all(one.is_closing() for one in loop._transports.values()))


@asynccontextmanager
async def reflecting(*reflectors: Reflector) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(reflector.run()) for reflector in reflectors]
    try:
        for reflector in reflectors:
            await reflector.synced()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 (what is waited for sets no event)
            await asyncio.sleep(0.02)


def names(reflector: Reflector) -> list[str]:
    return sorted(one["metadata"]["name"] for one in reflector.all())


def uid(place: Workplace, pod_name: str) -> str | None:
    """Of the pod as the reflector knows it."""
    known = place.pods.get(place.namespace, pod_name)
    return known["metadata"]["uid"] if known else None


# Children


async def test_creating_twice_makes_one_child_and_both_times_is_success(place: Workplace) -> None:
    owner = await place.job()
    decision = Decision(create=tuple(pod(owner, f"mlp-{index}") for index in range(3)))
    first, second = await place.execute(decision), await place.execute(decision)
    assert [attempt.rejection for attempt in (*first, *second)] == [None] * 6
    assert names(place.pods) == ["mlp-0", "mlp-1", "mlp-2"]  # known by the answers: no reflector runs


async def test_a_foreign_object_of_that_name_is_reported_and_left_as_it_is(place: Workplace) -> None:
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "mlp", "namespace": place.namespace},
        "spec": {"ports": [{"port": 1}]},
    }
    before = await place.client.create(SERVICE, foreign)
    wanted = service(await place.job())
    for decision in (Decision(create=(wanted,)), Decision(apply=(wanted,))):
        (attempt,) = await place.execute(decision)
        assert attempt.rejection.code == 409
        assert "Service mlp exists and belongs to somebody else" in attempt.rejection.message
    after = await place.client.get(SERVICE, place.namespace, "mlp")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_what_the_server_refuses_comes_back_with_its_words(place: Workplace) -> None:
    owner = await place.job()
    bad = child(owner, POD, "mlp-0", {"containers": []})
    (attempt,) = await place.execute(Decision(create=(bad,)))
    assert (attempt.rejection.code, "spec.containers: Required value" in attempt.rejection.message) == (422, True)
    quota = ResourceKind("ResourceQuota", "v1", "resourcequotas")
    limits = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": place.namespace},
        "spec": {"hard": {"pods": "0"}},
    }
    await place.client.create(quota, limits)
    # No controller counts here; the quota's status is what admission reads.
    await place.client.apply(quota, {**limits, "status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}, "status")
    async with asyncio.timeout(20):
        while True:
            (attempt,) = await place.execute(Decision(create=(pod(owner, "mlp-1"),)))
            if attempt.rejection:
                break
            await place.client.delete(POD, place.namespace, "mlp-1", str(uid(place, "mlp-1")))
            await asyncio.sleep(0.2)
    assert attempt.rejection.code == 403
    assert "exceeded quota: none" in attempt.rejection.message


async def test_a_field_that_a_later_manifest_leaves_out_goes_though_it_came_by_create(place: Workplace) -> None:
    owner = await place.job()
    await place.execute(Decision(create=(service(owner, selector={"a": "1", "b": "2"}),)))
    await place.execute(Decision(apply=(service(owner, selector={"a": "3"}),)))
    assert (await place.client.get(SERVICE, place.namespace, "mlp"))["spec"]["selector"] == {"a": "3"}
    place.requests.clear()
    await place.execute(Decision(apply=(service(owner, selector={"a": "3"}),)), owner)
    assert place.requests == []  # the hash says that it is so


async def test_an_apply_to_an_object_that_was_made_anew_meanwhile_is_a_conflict(place: Workplace) -> None:
    owner = await place.job()
    await place.execute(Decision(create=(service(owner, selector={"a": "1"}),)))
    old = await place.client.get(SERVICE, place.namespace, "mlp")
    await place.client.delete(SERVICE, place.namespace, "mlp", old["metadata"]["uid"])
    manifest = service(owner, selector={"a": "2"})
    manifest["metadata"]["uid"] = old["metadata"]["uid"]
    with pytest.raises(errors.Conflict):  # gone: an apply without UID would create it
        await place.client.apply(SERVICE, manifest)
    await place.client.create(SERVICE, service(owner, selector={"a": "1"}))
    with pytest.raises(errors.Conflict):
        await place.client.apply(SERVICE, manifest)


async def test_a_deletion_is_sent_once_and_only_to_its_uid(place: Workplace) -> None:
    owner = await place.job()
    finalized = pod(owner, "mlp-0")
    finalized["metadata"]["finalizers"] = ["bigmodel.io/test"]
    await place.execute(Decision(create=(finalized, pod(owner, "mlp-1"))))
    uids = {name: str(uid(place, name)) for name in ("mlp-0", "mlp-1")}
    for _ in range(2):
        await place.execute(Decision(delete=tuple(Deletion(POD, name, uid) for name, uid in uids.items())))
    assert place.requests.count("delete") == 2
    assert names(place.pods) == ["mlp-0"]  # terminating is still there
    assert "deletionTimestamp" in (place.pods.get(place.namespace, "mlp-0") or {})["metadata"]
    await place.execute(Decision(create=(pod(owner, "mlp-1"),)))
    await place.execute(Decision(delete=(Deletion(POD, "mlp-1", uids["mlp-1"]),)))
    assert (await place.client.get(POD, place.namespace, "mlp-1"))["metadata"]["uid"] != uids["mlp-1"]
    await place.client.merge_patch(POD, place.namespace, "mlp-0", {"metadata": {"finalizers": None}})


async def test_labels_are_set_once_and_only_on_their_uid(place: Workplace) -> None:
    owner = await place.job()
    await place.execute(Decision(create=(pod(owner, "mlp-0"),)))
    known = str(uid(place, "mlp-0"))
    for _ in range(2):
        await place.execute(Decision(relabel=(Relabel(POD, "mlp-0", known, {"bigmodel.io/active": "false"}),)))
    assert place.requests.count("patch") == 1
    live = await place.client.get(POD, place.namespace, "mlp-0")
    assert live["metadata"]["labels"]["bigmodel.io/active"] == "false"
    with pytest.raises(errors.Conflict):
        await place.execute(Decision(relabel=(Relabel(POD, "mlp-0", "another", {"bigmodel.io/active": "true"}),)))


# Status and events


async def test_status_is_written_only_when_it_differs(place: Workplace) -> None:
    status = {"observedGeneration": 1, "message": "2 pods"}
    for _ in range(3):
        await place.execute(Decision(status=status))
    assert place.requests.count("apply") == 1
    await place.execute(Decision(status={"observedGeneration": 1}))
    assert (await place.job())["status"] == {"observedGeneration": 1}  # what is no longer said is taken away


async def test_what_somebody_else_wrote_into_status_is_taken_away(place: Workplace, kubectl: Kubectl) -> None:
    status = {"observedGeneration": 1, "message": "ours"}
    await place.execute(Decision(status=status))
    foreign = {"status": {"phase": "Complete", "message": "theirs", "attempt": 7}}
    kubectl(
        "patch", "bmj", "mlp", "-n", place.namespace, "--subresource=status", "--type=merge", "-p", json.dumps(foreign)
    )
    await place.execute(Decision(status=status))
    assert (await place.job())["status"] == status
    place.requests.clear()
    for message in ("ours", "ours again"):
        await place.execute(Decision(status={**status, "message": message}))
        assert (await place.job())["status"] == {**status, "message": message}
    assert (place.requests.count("apply"), place.requests.count("update")) == (1, 0)


async def test_a_status_from_an_old_observation_is_refused_by_the_server(place: Workplace) -> None:
    owner = await place.job()
    await place.execute(Decision(status={"observedGeneration": 1}))
    with pytest.raises(errors.Conflict):  # an old leader
        await place.execute(Decision(status={"observedGeneration": 1, "message": "stale"}), owner)
    live = await place.job()
    await place.client.delete(BIG_MODEL_JOB, place.namespace, "mlp", live["metadata"]["uid"])
    await place.new_job()
    with pytest.raises(errors.Conflict):  # another object of that name
        await place.execute(Decision(status={"observedGeneration": 1, "message": "stale"}), live)
    assert "status" not in await place.job()


async def test_an_event_is_told_once_by_any_number_of_processes(place: Workplace) -> None:
    event = Event("Normal", "Started", "ä" * 2000, about="a1-started")
    for _ in range(2):
        executor = Executor(place.client, {}, Recorder(place.client, "a pod"))
        await executor.execute(BIG_MODEL_JOB, await place.job(), Decision(events=(event,)), NOW)
    events = [one async for page, _ in place.client.pages(EVENT, place.namespace) for one in page]
    assert [(one["reason"], one["regarding"]["name"], len(one["note"].encode()) <= 1024) for one in events] == [
        ("Started", "mlp", True)
    ]


# Reflector and client


async def test_deletions_in_a_gap_that_the_watch_cannot_bridge_are_found_by_a_new_list(place: Workplace) -> None:
    class LosesTrack(Client):
        """Its watches ask for a resourceVersion from before the kind was there: 410, until `found` again."""

        found = asyncio.Event()

        def watch(self, kind: ResourceKind, namespace: str | None, version: str, *args: Any, **options: Any) -> Any:
            return super().watch(kind, namespace, version if self.found.is_set() else "1", *args, **options)

    for name in "abc":
        await place.new_job(name)
    client = LosesTrack(place.client._api.configuration)
    jobs = Reflector(client, BIG_MODEL_JOB, (place.namespace,))
    changes = jobs.changes()
    async with reflecting(jobs):
        for _ in range(4):
            assert (await anext(changes)).type == "ADDED"
        victim = await place.job("b")
        await place.client.delete(BIG_MODEL_JOB, place.namespace, "b", victim["metadata"]["uid"])
        change = await asyncio.wait_for(anext(changes), 20)
        assert (change.type, change.object["metadata"]["name"], jobs.relists > 0) == ("DELETED", "b", True)
        client.found.set()
        await place.new_job("d")
        change = await asyncio.wait_for(anext(changes), 20)
        assert (change.type, names(jobs)) == ("ADDED", ["a", "c", "d", "mlp"])
    await client.close()


async def test_a_reflector_that_stopped_finds_what_went_meanwhile_when_it_runs_again(place: Workplace) -> None:
    owner = await place.job()
    await place.execute(Decision(create=tuple(pod(owner, f"mlp-{index}") for index in range(3))))
    assert names(place.pods) == ["mlp-0", "mlp-1", "mlp-2"]
    live = await place.client.get(POD, place.namespace, "mlp-2")
    await place.client.delete(POD, place.namespace, "mlp-2", live["metadata"]["uid"], grace_seconds=0)
    changes = place.pods.changes()
    async with reflecting(place.pods):
        change = await asyncio.wait_for(anext(changes), 20)
        assert (change.type, change.object["metadata"]["name"], len(place.pods)) == ("DELETED", "mlp-2", 2)


async def test_a_list_of_many_pages_is_whole(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigmodel.controller.kube.client.PAGE_OBJECTS", 3)
    owner = await place.job()
    await place.execute(Decision(create=tuple(pod(owner, f"mlp-{index}") for index in range(10))))
    fresh = Reflector(place.client, POD, (place.namespace,), SELECTOR)
    place.requests.clear()
    async with reflecting(fresh):
        assert (len(fresh), place.requests.count("list")) == (10, 4)
        assert {one["kind"] for one in fresh.all()} == {"Pod"}


async def test_objects_without_the_label_are_not_held(place: Workplace) -> None:
    stranger = pod(await place.job(), "stranger")
    stranger["metadata"]["labels"] = {}
    async with reflecting(place.pods):
        await place.client.create(POD, stranger)
        await place.execute(Decision(create=(pod(await place.job(), "mlp-0"),)))
        await asyncio.sleep(0.5)
        assert names(place.pods) == ["mlp-0"]


async def test_a_dead_address_is_unavailable_and_a_silent_server_too(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client gives up
        writer.close()

    monkeypatch.setattr("bigmodel.controller.kube.client.TIMEOUT_SECONDS", 0.3)
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    for port in (9, server.sockets[0].getsockname()[1]):
        elsewhere = copy(place.client._api.configuration)
        elsewhere.host = f"http://127.0.0.1:{port}"
        client = Client(elsewhere)
        with pytest.raises(errors.Unavailable):
            await client.get(POD, "ml", "x")
        await client.close()
    server.close()
    await server.wait_closed()


async def test_discovery_tells_what_is_served(place: Workplace) -> None:
    facts = ClusterFacts()
    await facts.refresh(place.client)
    assert (facts.pod_group_served, facts.http_route_served) == (True, False)


# The whole loop


class Gang:
    """Two pods, and a status that counts them."""

    kind = BIG_MODEL_JOB
    children = (POD,)
    related = ()

    def __init__(self) -> None:
        self.passes = 0

    async def observe(self, owner: Manifest, children: Children, rejections: tuple[Rejection, ...]) -> Any:
        return owner, children.of(POD)

    def decide(self, snapshot: Any, now: datetime) -> Decision:
        self.passes += 1
        owner, pods = snapshot
        have = {pod["metadata"]["name"] for pod in pods}
        wanted = [f"{owner['metadata']['name']}-{index}" for index in range(2)]
        return Decision(
            create=tuple(pod(owner, name) for name in wanted if name not in have),
            status={"observedGeneration": owner["metadata"]["generation"], "message": f"{len(have)} pods"},
        )


async def test_jobs_get_their_pods_keep_them_and_then_nothing_is_written(place: Workplace) -> None:
    queue, gang = WorkQueue(), Gang()
    engine = Engine(place.client, queue, (gang,), {"Pod": place.pods}, Recorder(place.client, "test"))
    for index in range(20):
        await place.new_job(f"job-{index}")
    async with reflecting(place.pods):
        running = asyncio.create_task(engine.run())
        for index in range(20):
            queue.add(Key("BigModelJob", place.namespace, f"job-{index}"))
        await until(lambda: len(place.pods) == 40 and not len(queue) and not queue.working)
        jobs = [await place.job(f"job-{index}") for index in range(20)]
        assert {job["status"]["message"] for job in jobs} == {"2 pods"}
        assert place.requests.count("create") == 62  # namespace, 21 jobs, 40 pods
        victim = (await place.client.get(POD, place.namespace, "job-7-1"))["metadata"]["uid"]
        await place.client.delete(POD, place.namespace, "job-7-1", victim, grace_seconds=0)
        await until(lambda: uid(place, "job-7-1") not in (None, victim))
        await until(lambda: not len(queue) and not queue.working)
        await asyncio.sleep(0.5)
        place.requests.clear()
        passes = gang.passes
        for index in range(20):
            queue.add(Key("BigModelJob", place.namespace, f"job-{index}"))
        await until(lambda: gang.passes == passes + 20 and not queue.working)
        assert set(place.requests) == {"get"}
        queue.close()
        await asyncio.wait_for(running, 10)
