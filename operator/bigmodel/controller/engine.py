"""The loop: an object is looked at when it or a child changed, when it asked for it, and now and then.

GET the object live → children from the reflectors → observe → decide → execute. A pass knows nothing of why it runs, so
events may be lost, merged or repeated, and a crash anywhere is followed by the same pass again.
"""

import asyncio
import itertools
import logging
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bigmodel.api.names import GROUP, LABEL_JOB, LABEL_SERVICE
from bigmodel.controller import logs, metrics
from bigmodel.controller.decision import (
    BIG_MODEL_JOB,
    BIG_MODEL_SERVICE,
    Children,
    Key,
    Manifest,
    Reconciler,
    Rejection,
)
from bigmodel.controller.execute import Attempt, Executor
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client
from bigmodel.controller.kube.events import Recorder
from bigmodel.controller.kube.reflector import Change, Reflector, uid_of
from bigmodel.controller.workqueue import QueueClosed, WorkQueue

WORKERS = 16  # passes at once; they mostly wait for the API server
PASS_SECONDS = 60.0  # a pass that takes longer is given up and tried again
RESYNC_SECONDS = 300.0  # an object is looked at so often without any reason, as the reflectors list anew
ERROR_SECONDS, ERROR_LIMIT_SECONDS = 1.0, 60.0  # back-off; also: at most one refused write a second and object
# An API server that does not answer is no fault of the object, and when it is back nothing tells: so never much later.
AWAY_LIMIT_SECONDS = 8.0
CONFLICT_SECONDS, CONFLICT_LIMIT_SECONDS = 0.1, 5.0  # somebody else was writing: a second look mostly suffices
REPEATS = 10  # passes at once in a row; more is a rule that never settles, and must not take the machine

logger = logging.getLogger(__name__)


@dataclass
class Memory:
    """What the engine remembers of one object between passes. Losing it costs a few requests, nothing else."""

    uid: str = ""
    generation: int = 0
    errors: int = 0  # passes in a row that ended with one
    conflicts: int = 0
    repeats: int = 0  # passes in a row that asked for another at once
    refusals: int = 0  # passes in a row in which the API server refused a child
    rejections: dict[tuple[str, str], Rejection] = field(default_factory=dict)  # by kind and name of the child


class Engine:
    """Runs the reconcilers of both kinds."""

    def __init__(
        self,
        client: Client,
        queue: WorkQueue,
        reconcilers: Iterable[Reconciler],
        reflectors: Mapping[str, Reflector],
        recorder: Recorder,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`reflectors`: of every child kind, by kind; somebody else runs them."""
        self._client = client
        self._queue = queue
        self._reconcilers = {reconciler.kind.kind: reconciler for reconciler in reconcilers}
        self._reflectors = reflectors
        self._executor = Executor(client, reflectors, recorder)
        self._now = now
        self._memories: dict[Key, Memory] = {}
        self._passes = itertools.count(1)

    async def run(self, workers: int = WORKERS) -> None:
        """Work until the queue is closed; passes that have begun are finished."""
        subscriptions = [reflector.changes() for reflector in self._reflectors.values()]
        for reflector in self._reflectors.values():
            await reflector.synced()
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(self._queue_owners(changes)) for changes in subscriptions]
            async with asyncio.TaskGroup() as working:
                for number in range(workers):
                    working.create_task(self._work(), name=f"worker {number}")
            for task in watching:
                task.cancel()

    async def _queue_owners(self, changes: AsyncIterator[Change]) -> None:
        """A child changed: look at its owner. Says nothing of what changed."""
        async for change in changes:
            key = owner_key(change.object) or related_key(change.object)
            if key is not None and key.kind in self._reconcilers:
                self._queue.add(key)

    async def _work(self) -> None:
        while True:
            try:
                key = await self._queue.get()
            except QueueClosed:
                return
            try:
                await self.visit(key)
            finally:
                self._queue.done(key)

    async def visit(self, key: Key) -> None:
        """One pass, and when the next one is due. Raises nothing but cancellation."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        context = {"kind": key.kind, "namespace": key.namespace, "name": key.name, "reconcile": next(self._passes)}
        token = logs.reconciled.set(context)
        memory = self._memories.setdefault(key, Memory())
        try:
            outcome, wait = await self._guarded(key, memory, context)
        finally:
            logs.reconciled.reset(token)
            metrics.RECONCILE_SECONDS.labels(key.kind).observe(loop.time() - began)
        metrics.RECONCILES.labels(key.kind, outcome).inc()
        if wait is None:
            self._memories.pop(key, None)
        elif wait > 0:
            self._queue.add_after(key, wait)
        else:
            self._queue.add(key)

    async def _guarded(self, key: Key, memory: Memory, context: dict[str, Any]) -> tuple[str, float | None]:
        """How the pass ended, and the seconds until the next one (None: never, the object is gone)."""
        try:
            async with asyncio.timeout(PASS_SECONDS):
                outcome, wait = await self._pass(key, memory, context)
        except errors.Conflict as error:
            logger.info("something changed meanwhile, looking again: %s", error)
            memory.conflicts += 1
            return "conflict", _backoff(CONFLICT_SECONDS, memory.conflicts, CONFLICT_LIMIT_SECONDS)
        except errors.TooManyRequests as error:
            memory.errors += 1
            wait = max(error.retry_after, _backoff(ERROR_SECONDS, memory.errors, ERROR_LIMIT_SECONDS))
            logger.warning("the API server is busy, again in %.0f s: %s", wait, error)
            return "error", wait
        except (errors.ApiError, TimeoutError) as error:
            memory.errors += 1
            limit = AWAY_LIMIT_SECONDS if isinstance(error, errors.Unavailable) else ERROR_LIMIT_SECONDS
            wait = _backoff(ERROR_SECONDS, memory.errors, limit)
            text = str(error) or f"the pass took longer than {PASS_SECONDS:.0f} s"
            logger.warning("pass failed (%d in a row), again in %.0f s: %s", memory.errors, wait, text)
            return "error", wait
        except Exception:  # a mistake of ours must not stop the other objects
            memory.errors += 1
            wait = _backoff(ERROR_SECONDS, memory.errors, ERROR_LIMIT_SECONDS)
            logger.exception(
                "pass failed by a fault of this program (%d in a row), again in %.0f s", memory.errors, wait
            )
            return "error", wait
        memory.errors = memory.conflicts = 0
        return outcome, wait

    async def _pass(self, key: Key, memory: Memory, context: dict[str, Any]) -> tuple[str, float | None]:
        reconciler = self._reconcilers[key.kind]
        try:
            owner = await self._client.get(reconciler.kind, key.namespace, key.name)
        except errors.NotFound:
            self._executor.forget(memory.uid)
            return "ok", None
        self._recognise(memory, owner)
        context |= {"uid": memory.uid, "generation": memory.generation}
        if (attempt := (owner.get("status") or {}).get("attempt")) is not None:
            context["attempt"] = attempt
        if owner["metadata"].get("deletionTimestamp"):
            return "ok", _spread(key)  # its children die by their owner references; a new one would hang the deletion
        snapshot = await reconciler.observe(
            owner, self._children(reconciler, key, owner), tuple(memory.rejections.values())
        )
        decision = reconciler.decide(snapshot, self._now())
        attempts = await self._executor.execute(reconciler.kind, owner, decision, self._now())
        news = self._remember(memory, attempts)
        outcome, wait = "ok", _spread(key) if decision.requeue_after is None else max(decision.requeue_after, 0.001)
        if any(attempt.rejection for attempt in attempts):
            memory.refusals += 1
            outcome, wait = "refused", min(wait, _backoff(ERROR_SECONDS, memory.refusals, ERROR_LIMIT_SECONDS))
        else:
            memory.refusals = 0
        if not (decision.again or news):
            memory.repeats = 0
            return outcome, wait
        memory.repeats += 1
        if memory.repeats <= REPEATS:
            return outcome, 0.0
        wait = _backoff(ERROR_SECONDS, memory.repeats - REPEATS, ERROR_LIMIT_SECONDS)
        logger.warning("%d passes in a row ask for another at once, the next is in %.0f s", memory.repeats, wait)
        return outcome, wait

    def _recognise(self, memory: Memory, owner: Manifest) -> None:
        """A re-created object starts with an empty memory, a changed spec without the old spec's rejections."""
        uid, generation = uid_of(owner), int(owner["metadata"].get("generation") or 0)
        if memory.uid != uid:
            self._executor.forget(memory.uid)
        if (memory.uid, memory.generation) != (uid, generation):
            memory.uid, memory.generation, memory.refusals = uid, generation, 0
            memory.rejections.clear()

    def _children(self, reconciler: Reconciler, key: Key, owner: Manifest) -> Children:
        uid = uid_of(owner)
        return Children(
            {kind.kind: self._reflectors[kind.kind].owned_by(uid) for kind in reconciler.children},
            {kind.kind: self._reflectors[kind.kind].related_to(key) for kind in reconciler.related},
        )

    @staticmethod
    def _remember(memory: Memory, attempts: Iterable[Attempt]) -> bool:
        """Keep what was refused, drop what succeeded. True where the reconciler should see the difference at once.

        A rejection of a child that was not tried again stands. A new text alone is no news: it may hold a counter.
        """
        before = {place: rejection.code for place, rejection in memory.rejections.items()}
        for attempt in attempts:
            if attempt.rejection is None:
                memory.rejections.pop((attempt.kind, attempt.name), None)
            else:
                memory.rejections[attempt.kind, attempt.name] = attempt.rejection
        return before != {place: rejection.code for place, rejection in memory.rejections.items()}


def owner_key(manifest: Manifest) -> Key | None:
    """The resource of ours that controls this object."""
    for owner in manifest["metadata"].get("ownerReferences") or ():
        if owner.get("controller") and owner["apiVersion"].startswith(f"{GROUP}/"):
            return Key(owner["kind"], manifest["metadata"].get("namespace", ""), owner["name"])
    return None


def related_key(manifest: Manifest) -> Key | None:
    """The resource of ours that this object names by label while another object controls it."""
    metadata = manifest["metadata"]
    labels = metadata.get("labels") or {}
    if owner_key(manifest) is not None:
        return None
    for label, kind in ((LABEL_SERVICE, BIG_MODEL_SERVICE), (LABEL_JOB, BIG_MODEL_JOB)):
        if name := labels.get(label):
            return Key(kind.kind, metadata.get("namespace", ""), name)
    return None


def _backoff(first_seconds: float, times: int, limit_seconds: float) -> float:
    """first, twice that, and so on up to the limit, for the first, second, … time in a row."""
    return float(min(limit_seconds, first_seconds * 2 ** min(times - 1, 16)))


def _spread(key: Key) -> float:
    """When to look again without a reason: objects made together don't come back together."""
    return RESYNC_SECONDS * (0.75 + 0.5 * (zlib.crc32(f"{key.namespace}/{key.name}".encode()) % 1000) / 1000)
