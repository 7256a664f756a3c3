"""The smallest honest reconciler: as many pods as the spec says, a status that counts them; and its running engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from bigmodel.controller.decision import (
    BIG_MODEL_JOB,
    POD,
    Children,
    Decision,
    Deletion,
    Key,
    Manifest,
    Rejection,
)
from bigmodel.controller.engine import Engine, related_key
from bigmodel.controller.kube.events import Recorder
from bigmodel.controller.kube.reflector import Reflector
from bigmodel.controller.workqueue import WorkQueue

START = datetime(2026, 1, 1, tzinfo=UTC)


class Seen(NamedTuple):
    owner: Manifest
    pods: tuple[Manifest, ...]
    rejections: tuple[Rejection, ...]


class GangReconciler:
    kind = BIG_MODEL_JOB
    children = (POD,)
    related = ()

    def __init__(self) -> None:
        self.passes: list[Seen] = []

    async def observe(self, owner: Manifest, children: Children, rejections: tuple[Rejection, ...]) -> Seen:
        return Seen(owner, children.of(POD), rejections)

    def decide(self, snapshot: Seen, now: datetime) -> Decision:
        self.passes.append(snapshot)
        owner, have = snapshot.owner, {pod["metadata"]["name"]: pod for pod in snapshot.pods}
        wanted = [f"{owner['metadata']['name']}-{index}" for index in range(owner["spec"]["nodes"])]
        status: dict[str, Any] = {"observedGeneration": owner["metadata"].get("generation", 0), "pods": len(have)}
        if snapshot.rejections:
            status["refused"] = sorted(f"{one.name} {one.code}" for one in snapshot.rejections)
        return Decision(
            create=tuple(pod(owner, name) for name in wanted if name not in have),
            delete=tuple(
                Deletion(POD, name, one["metadata"]["uid"]) for name, one in have.items() if name not in wanted
            ),
            status=status,
        )


def job(name: str = "mlp", nodes: int = 2, namespace: str = "ml") -> Manifest:
    return {
        "apiVersion": "bigmodel.io/v1alpha1",
        "kind": "BigModelJob",
        "metadata": {"name": name, "namespace": namespace, "generation": 1},
        "spec": {"nodes": nodes},
    }


def pod(owner: Manifest, name: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": owner["metadata"]["namespace"],
            "labels": {"app.kubernetes.io/managed-by": "bigmodel-operator"},
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": {"containers": [{"name": "trainer", "image": "none"}]},
    }


def owner_reference(owner: Manifest) -> Manifest:
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


KEY = Key("BigModelJob", "ml", "mlp")


class Running(NamedTuple):
    engine: Engine
    queue: WorkQueue
    pods: Reflector


@asynccontextmanager
async def engine_of(api: Any, reconciler: Any) -> AsyncIterator[Running]:
    """An engine with its reflectors, running; the clock for people follows the event loop's."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    queue = WorkQueue()
    kinds = {kind.kind: kind for kind in (*reconciler.children, *reconciler.related)}
    reflectors = {name: Reflector(api, kind, relation=related_key) for name, kind in kinds.items()}
    engine = Engine(
        api,
        queue,
        (reconciler,),
        reflectors,
        Recorder(api, "test"),
        lambda: START + timedelta(seconds=loop.time() - began),
    )
    tasks = [asyncio.create_task(reflector.run()) for reflector in reflectors.values()]
    running = asyncio.create_task(engine.run())
    try:
        yield Running(engine, queue, reflectors["Pod"])
    finally:
        queue.close()
        await asyncio.wait({running}, timeout=5)
        for task in (running, *tasks):
            task.cancel()
        await asyncio.gather(running, *tasks, return_exceptions=True)
