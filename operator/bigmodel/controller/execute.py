"""A Decision becomes requests: idempotent, bounded in parallel; nothing is adopted, nothing deleted unseen."""

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, TypeVar

from bigmodel.api.names import ANNOTATION_HASH
from bigmodel.controller.decision import (
    Decision,
    Deletion,
    Manifest,
    Rejection,
    Relabel,
    ResourceKind,
    StatusApply,
    StatusPatch,
)
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client
from bigmodel.controller.kube.events import Recorder
from bigmodel.controller.kube.ownership import creation_as_apply
from bigmodel.controller.kube.reflector import Reflector, controller_uid, uid_of

PARALLEL_WRITES = 8  # of one decision

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """One child that was to be created or changed: `rejection` is None when it is as decided."""

    kind: str
    name: str
    rejection: Rejection | None


class Executor:
    """Executes decisions about any object; holds nothing but what spares requests."""

    def __init__(self, client: Client, reflectors: Mapping[str, Reflector], recorder: Recorder) -> None:
        """`reflectors` of the children's kinds, by kind: they are told what was written."""
        self._client = client
        self._reflectors = reflectors
        self._recorder = recorder
        # Where the API server keeps something else than what was applied (a default, a pruned field): what was applied
        # and what came of it, by UID, so that the difference is not written again and again.
        self._kept_as: dict[str, tuple[Manifest, Manifest]] = {}

    async def execute(self, kind: ResourceKind, owner: Manifest, decision: Decision, now: datetime) -> list[Attempt]:
        """Everything that `decision` wants. `owner` is the live object that it was decided from.

        Raises: Conflict when something changed since: observe again. Other ApiErrors: try again later.
        """
        await _together(self._relabel(owner, relabel) for relabel in decision.relabel)
        attempts = await self._create_in_order(owner, decision.create, now)
        attempts += await _together(self._apply(owner, manifest, now) for manifest in decision.apply)
        await _together(self._delete(owner, deletion) for deletion in decision.delete)
        await _together(self._say(owner, said) for said in decision.child_status)
        if decision.status is not None:
            await self._write_status(kind, owner, decision.status)
        for event in decision.events:
            await self._recorder.send(owner, event, now)
        return attempts

    def forget(self, uid: str) -> None:
        """The object of this UID is gone."""
        self._kept_as.pop(uid, None)

    async def _create_in_order(self, owner: Manifest, manifests: Iterable[Manifest], now: datetime) -> list[Attempt]:
        attempts: list[Attempt] = []
        for _, neighbours in groupby(manifests, key=lambda manifest: manifest["kind"]):
            attempts += await _together(self._create(owner, manifest, now) for manifest in neighbours)
            if any(attempt.rejection for attempt in attempts):
                break  # a pod without its group would start alone
        return attempts

    async def _create(self, owner: Manifest, manifest: Manifest, now: datetime) -> Attempt:
        reflector = self._reflectors[manifest["kind"]]
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        try:
            child = await self._client.create(reflector.kind, stamped(manifest))
        except errors.AlreadyExists:
            child = await self._still_there(reflector.kind, namespace, name)
            if controller_uid(child) != uid_of(owner):
                return Attempt(manifest["kind"], name, name_taken(owner, manifest, now))
        except (errors.Refused, errors.NotFound) as error:
            return Attempt(manifest["kind"], name, rejection(manifest, error, now))
        reflector.note_written(child)
        return Attempt(manifest["kind"], name, None)

    async def _apply(self, owner: Manifest, manifest: Manifest, now: datetime) -> Attempt:
        reflector = self._reflectors[manifest["kind"]]
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        done = Attempt(manifest["kind"], name, None)
        wanted = stamped(manifest)
        known = reflector.get(namespace, name)
        if known is not None and controller_uid(known) == uid_of(owner) and _hash_of(known) == _hash_of(wanted):
            return done
        live = await self._still_there(reflector.kind, namespace, name)
        if controller_uid(live) != uid_of(owner):
            return Attempt(manifest["kind"], name, name_taken(owner, manifest, now))
        try:
            if _hash_of(live) != _hash_of(wanted):
                await self._count_creation_as_apply(reflector.kind, live)
                wanted["metadata"] = {**wanted["metadata"], "uid": uid_of(live)}  # without it, apply takes any object
                live = await self._client.apply(reflector.kind, wanted)
        except errors.Refused as error:
            return Attempt(manifest["kind"], name, rejection(manifest, error, now))
        reflector.note_written(live)
        return done

    async def _relabel(self, owner: Manifest, relabel: Relabel) -> None:
        reflector = self._reflectors[relabel.kind.kind]
        namespace = owner["metadata"]["namespace"]
        known = reflector.get(namespace, relabel.name)
        if known is not None and uid_of(known) == relabel.uid:
            labels, annotations = (known["metadata"].get(field) or {} for field in ("labels", "annotations"))
            if all(labels.get(name) == value for name, value in relabel.labels.items()) and all(
                annotations.get(name) == value for name, value in relabel.annotations.items()
            ):
                return
        marks = {"labels": dict(relabel.labels), "annotations": dict(relabel.annotations)}
        patch = {"metadata": {"uid": relabel.uid} | {field: values for field, values in marks.items() if values}}
        try:
            reflector.note_written(await self._client.merge_patch(relabel.kind, namespace, relabel.name, patch))
        except errors.NotFound:
            reflector.note_removed(_named(namespace, relabel.name, relabel.uid))

    async def _delete(self, owner: Manifest, deletion: Deletion) -> None:
        if deletion.uid == uid_of(owner):
            await self._delete_itself(owner, deletion)
            return
        reflector = self._reflectors[deletion.kind.kind]
        namespace = owner["metadata"]["namespace"]
        gone = _named(namespace, deletion.name, deletion.uid)
        try:
            live = await self._client.get(deletion.kind, namespace, deletion.name)
            if uid_of(live) != deletion.uid:
                reflector.note_removed(gone)
                return
            if not _sooner(live, deletion.grace_seconds):
                reflector.note_written(live)
                return
            answer = await self._client.delete(
                deletion.kind, namespace, deletion.name, deletion.uid, deletion.grace_seconds
            )
        except errors.NotFound:
            reflector.note_removed(gone)
            return
        if _terminating(answer):
            reflector.note_written(answer)
        else:
            reflector.note_removed(gone)

    async def _say(self, owner: Manifest, said: StatusApply | StatusPatch) -> None:
        """Where the child went meanwhile, nobody needs to be told."""
        namespace = owner["metadata"]["namespace"]
        try:
            if isinstance(said, StatusApply):
                metadata = {"namespace": namespace, "name": said.name}
                body = {"apiVersion": said.kind.api_version, "kind": said.kind.kind, "metadata": metadata}
                live = await self._client.apply(said.kind, {**body, "status": said.status}, "status")
            else:
                patch = {"metadata": {"uid": said.uid, "resourceVersion": said.version}, "status": said.status}
                live = await self._client.merge_patch(said.kind, namespace, said.name, patch, "status")
        except errors.NotFound:
            return
        self._reflectors[said.kind.kind].note_written(live)

    async def _delete_itself(self, owner: Manifest, deletion: Deletion) -> None:
        """The end of its time to live. Nothing reflects it: the next pass finds it gone."""
        namespace, name = owner["metadata"]["namespace"], owner["metadata"]["name"]
        with contextlib.suppress(errors.NotFound):
            await self._client.delete(deletion.kind, namespace, name, deletion.uid, deletion.grace_seconds)

    async def _write_status(self, kind: ResourceKind, owner: Manifest, status: Manifest) -> None:
        """Raises Conflict when the object is not the one that was observed: an old leader writes nothing."""
        uid, metadata = uid_of(owner), owner["metadata"]
        live = owner.get("status") or {}
        if status == live or self._kept_as.get(uid) == (status, live):
            return
        body = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": {
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "status": status,
        }
        answer = await self._client.apply(kind, body, "status")
        if answer.get("status") != status:
            # Apply leaves fields that somebody else wrote. Replacing takes them away, and needs no right to the user's
            # own part of the object, as editing managedFields would.
            answer = await self._client.replace(kind, {**answer, "status": status}, "status")
        kept = answer.get("status") or {}
        if kept == status:
            self._kept_as.pop(uid, None)
        else:
            self._kept_as[uid] = (status, kept)
            different = sorted(name for name in status.keys() | kept.keys() if status.get(name) != kept.get(name))
            logger.warning("the API server keeps another status than was applied; fields: %s", ", ".join(different))

    async def _count_creation_as_apply(self, kind: ResourceKind, live: Manifest) -> None:
        metadata = live["metadata"]
        if (entries := creation_as_apply(metadata.get("managedFields") or [])) is not None:
            patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "managedFields": entries}}
            await self._client.merge_patch(kind, metadata["namespace"], metadata["name"], patch)

    async def _still_there(self, kind: ResourceKind, namespace: str, name: str) -> Manifest:
        """Raises Conflict where it went since it was observed."""
        try:
            return await self._client.get(kind, namespace, name)
        except errors.NotFound as error:
            raise errors.Conflict(f"{kind.kind} {namespace}/{name} went while it was looked at") from error


def stamped(manifest: Manifest) -> Manifest:
    """The manifest with its own hash as an annotation: an equal one need not be applied again."""
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), ANNOTATION_HASH: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def rejection(manifest: Manifest, error: errors.ApiError, now: datetime) -> Rejection:
    return Rejection(manifest["kind"], manifest["metadata"]["name"], error.code, str(error), now)


def name_taken(owner: Manifest, manifest: Manifest, now: datetime) -> Rejection:
    """Never adopted: its UID is not ours, whatever its labels say."""
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    message = (
        f"{kind} {name} exists and belongs to somebody else, not to this {owner['kind']}; "
        f"rename or delete it, or give the {owner['kind']} another name"
    )
    return Rejection(kind, name, 409, message, now)


async def _together(tasks: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; every one is run to its end before the first error is raised."""
    slots = asyncio.Semaphore(PARALLEL_WRITES)

    async def one(task: Coroutine[Any, Any, T]) -> T:
        async with slots:
            return await task

    results = await asyncio.gather(*(one(task) for task in tasks), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


def _hash_of(manifest: Manifest) -> str | None:
    digest: str | None = (manifest["metadata"].get("annotations") or {}).get(ANNOTATION_HASH)
    return digest


def _named(namespace: str, name: str, uid: str) -> Manifest:
    return {"metadata": {"namespace": namespace, "name": name, "uid": uid}}


def _sooner(live: Manifest, grace_seconds: int | None) -> bool:
    """Whether a delete would change anything: the object is not terminating, or would have more time than wanted."""
    metadata = live["metadata"]
    if not metadata.get("deletionTimestamp"):
        return True
    return grace_seconds is not None and grace_seconds < int(metadata.get("deletionGracePeriodSeconds") or 0)


def _terminating(answer: Manifest) -> bool:
    """Whether the answer to a delete says that the object is still there for a while."""
    metadata = answer.get("metadata") or {}
    return bool(
        metadata.get("deletionTimestamp")
        and (metadata.get("finalizers") or int(metadata.get("deletionGracePeriodSeconds") or 0) > 0)
    )
