"""A copy of all objects of one kind, kept by list and watch: what a reconciler observes its children from.

Deletions that happened while no watch ran are found by the next list; the controller's own writes are put in as they
are answered, so that the next pass sees them before the watch tells. Both rest on resourceVersions of one kind being
comparable numbers, which Kubernetes promises (KEP-5504) and has always kept.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bigmodel.controller.decision import Manifest, ResourceKind
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client

# A watch is renewed so often even when all is well. Shortly before it ends one the server sends a bookmark, so that a
# connection which is silent for longer is dead, and a renewal is never too old.
SERVER_SECONDS = 30
SILENCE_SECONDS = 35.0
# Everything is listed anew so often: an event that got lost, by whatever fault, is not missed for ever.
RELIST_SECONDS = 300.0
NOT_SERVED_SECONDS = 10.0  # between looks at a kind that the API server does not know
BACKOFF_SECONDS, BACKOFF_LIMIT_SECONDS = 0.2, 8.0
GHOSTS = 4096  # UIDs remembered after deletion

logger = logging.getLogger(__name__)


def as_it_is(manifest: Manifest) -> Manifest:
    return manifest


@dataclass(frozen=True, slots=True)
class Change:
    """One object came, changed or went; `object` is its last known state."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    object: Manifest


class Store:
    """The objects of one kind with two indexes; every method says what it changed. No IO.

    Objects are shared with readers and never changed in place.
    """

    def __init__(self, relation: Callable[[Manifest], Hashable | None] = lambda manifest: None) -> None:
        """`relation` names what an object belongs to when another object controls it (see `related_to`)."""
        self._relation = relation
        self._objects: dict[tuple[str, str], Manifest] = {}
        self._owned: dict[Hashable, dict[tuple[str, str], Manifest]] = {}
        self._related: dict[Hashable, dict[tuple[str, str], Manifest]] = {}
        self._ghosts: set[str] = set()  # UIDs of deleted objects: a late answer to a write must not bring one back
        self._ghost_order: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, namespace: str, name: str) -> Manifest | None:
        return self._objects.get((namespace, name))

    def all(self) -> tuple[Manifest, ...]:
        return tuple(self._objects.values())

    def owned_by(self, uid: str) -> tuple[Manifest, ...]:
        """Objects whose controller owner has this UID."""
        return tuple(self._owned.get(uid, {}).values())

    def related_to(self, relation: Hashable) -> tuple[Manifest, ...]:
        """Objects that belong to `relation` whoever controls them."""
        return tuple(self._related.get(relation, {}).values())

    def seen(self, manifest: Manifest) -> list[Change]:
        """The server's list or watch shows this object."""
        key = _key(manifest)
        before = self._objects.get(key)
        if before is not None and version(manifest) <= version(before):
            return []  # our own write was faster
        changes = []
        if before is not None and uid_of(before) != uid_of(manifest):
            changes = self.removed(before)
            before = None
        if before is not None:
            self._unindex(key, before)
        self._index(key, manifest)
        return [*changes, Change("ADDED" if before is None else "MODIFIED", manifest)]

    def written(self, manifest: Manifest) -> list[Change]:
        """The server answered a write of ours with this object. A late answer changes nothing."""
        return [] if uid_of(manifest) in self._ghosts else self.seen(manifest)

    def removed(self, manifest: Manifest) -> list[Change]:
        """The object of this UID is gone; one that has its name since stays."""
        key, uid = _key(manifest), uid_of(manifest)
        if uid not in self._ghosts:
            self._ghosts.add(uid)
            self._ghost_order.append(uid)
            if len(self._ghost_order) > GHOSTS:
                self._ghosts.discard(self._ghost_order.popleft())
        before = self._objects.get(key)
        if before is None or uid_of(before) != uid:
            return []
        self._unindex(key, before)
        del self._objects[key]
        return [Change("DELETED", before)]

    def listed(self, manifests: Iterable[Manifest], list_version: str, namespace: str | None = None) -> list[Change]:
        """This is all there is (in `namespace`) at `list_version`: what is not in it was deleted while nobody watched.

        Unless it is newer than the list: then it is a write of ours that the list does not know yet.
        """
        changes: list[Change] = []
        uids = set()
        for manifest in manifests:
            uids.add(uid_of(manifest))
            changes += self.seen(manifest)
        for manifest in self.all():
            here = namespace is None or manifest["metadata"].get("namespace") == namespace
            if here and uid_of(manifest) not in uids and version(manifest) <= int(list_version):
                changes += self.removed(manifest)
        return changes

    def _index(self, key: tuple[str, str], manifest: Manifest) -> None:
        self._objects[key] = manifest
        if (owner := controller_uid(manifest)) is not None:
            self._owned.setdefault(owner, {})[key] = manifest
        if (relation := self._relation(manifest)) is not None:
            self._related.setdefault(relation, {})[key] = manifest

    def _unindex(self, key: tuple[str, str], manifest: Manifest) -> None:
        for index, value in ((self._owned, controller_uid(manifest)), (self._related, self._relation(manifest))):
            if value is not None and (entries := index.get(value)) is not None:
                entries.pop(key, None)
                if not entries:
                    del index[value]


class Reflector(Store):
    """A Store that `run` keeps up to date."""

    def __init__(
        self,
        client: Client,
        kind: ResourceKind,
        namespaces: Sequence[str] = (),
        label_selector: str = "",
        relation: Callable[[Manifest], Hashable | None] = lambda manifest: None,
        keep: Callable[[Manifest], Manifest] = as_it_is,
        *,
        server_seconds: int = SERVER_SECONDS,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        """`namespaces`: list and watch in each of them; empty: in all at once. `keep`: what to hold of an object."""
        super().__init__(relation)
        self.kind = kind
        self.relists = 0  # lists that a 410 or an expired page asked for
        self._client = client
        self._scopes: tuple[str | None, ...] = tuple(namespaces) if namespaces and kind.namespaced else (None,)
        self._label_selector = label_selector
        self._keep = keep
        self._server_seconds = server_seconds
        self._silence_seconds = silence_seconds
        self._subscribers: list[asyncio.Queue[Change]] = []
        self._unlisted = set(self._scopes)
        self._synced = asyncio.Event()
        self._contacts = dict.fromkeys(self._scopes, 0.0)
        self._turns = dict.fromkeys(self._scopes, 0.0)

    # Reading

    async def synced(self) -> None:
        """Returns when everything was listed once; a kind that is not served counts as empty."""
        await self._synced.wait()

    def changes(self) -> AsyncIterator[Change]:
        """Every change from now on, own writes included. Subscribe before `run` to miss none."""
        subscriber: asyncio.Queue[Change] = asyncio.Queue()
        self._subscribers.append(subscriber)

        async def drain() -> AsyncIterator[Change]:
            try:
                while True:
                    yield await subscriber.get()
            finally:
                self._subscribers.remove(subscriber)

        return drain()

    def contact_age(self, now: float) -> float:
        """Seconds of event loop time since the API server was last heard of, in the scope where it is longest."""
        return now - min(self._contacts.values())

    def turn_age(self, now: float) -> float:
        """Seconds since the loop last did anything, a failed attempt included: long is a fault of this process."""
        return now - min(self._turns.values())

    # Keeping up

    def note_written(self, manifest: Manifest) -> None:
        """Put in what the server answered to a create, apply or patch of ours."""
        self._publish(self.written(self._lean(manifest)))

    def note_removed(self, manifest: Manifest) -> None:
        """Take out an object that the server says is gone."""
        self._publish(self.removed(manifest))

    async def run(self) -> None:
        """Until cancelled."""
        now = asyncio.get_running_loop().time()
        self._contacts = dict.fromkeys(self._scopes, now)
        self._turns = dict.fromkeys(self._scopes, now)
        async with asyncio.TaskGroup() as group:
            for scope in self._scopes:
                group.create_task(self._follow(scope), name=f"{self.kind.plural} in {scope or 'all namespaces'}")

    def _lean(self, manifest: Manifest) -> Manifest:
        """What is kept of an object: never managedFields, a third of a pod's size that nobody here reads."""
        manifest["metadata"].pop("managedFields", None)
        lean: Manifest = _compact(self._keep(manifest))
        return lean

    async def _follow(self, scope: str | None) -> None:
        loop = asyncio.get_running_loop()
        cursor = _Cursor()
        while True:
            self._turns[scope] = began = loop.time()
            cursor.fresh = False
            try:
                if not cursor.version or loop.time() >= cursor.relist_at:
                    cursor.version = await self._list(scope)
                    cursor.relist_at = loop.time() + RELIST_SECONDS
                    cursor.fresh = True
                await self._watch(scope, cursor)
            except errors.Gone:
                logger.info("watch of %s fell too far behind, listing anew", self.kind.plural)
                cursor.version = ""
                self.relists += 1
            except errors.NotFound:
                self._not_served(scope)
                cursor.version = ""
                await asyncio.sleep(NOT_SERVED_SECONDS)
            except errors.ApiError as error:
                cursor.failures += 1
                level = logging.ERROR if isinstance(error, errors.Refused) else logging.WARNING
                logger.log(level, "can't follow %s (attempt %d): %s", self.kind.plural, cursor.failures, error)
            if cursor.fresh:
                cursor.failures = 0
            elif loop.time() - began < 1.0:  # neither news nor patience: the server must not be hammered
                cursor.failures += 1
            if cursor.failures:
                wait = min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2 ** min(cursor.failures, 10))
                self._turns[scope] = loop.time() + wait
                await asyncio.sleep(wait)

    async def _list(self, scope: str | None) -> str:
        manifests: list[Manifest] = []
        list_version = "0"
        async for page, page_version in self._client.pages(self.kind, scope, self._label_selector):
            manifests += [self._lean(manifest) for manifest in page]
            list_version = page_version  # the same on every page
            self._heard(scope)
        self._publish(self.listed(manifests, list_version, scope))
        self._listed(scope)
        return list_version

    async def _watch(self, scope: str | None, cursor: "_Cursor") -> None:
        async for event in self._client.watch(
            self.kind,
            scope,
            cursor.version,
            self._label_selector,
            server_seconds=self._server_seconds,
            silence_seconds=self._silence_seconds,
        ):
            manifest = event["object"]
            cursor.version = manifest["metadata"]["resourceVersion"]
            cursor.fresh = True
            self._heard(scope)
            if event["type"] == "DELETED":
                self._publish(self.removed(self._lean(manifest)))
            elif event["type"] != "BOOKMARK":
                self._publish(self.seen(self._lean(manifest)))

    def _not_served(self, scope: str | None) -> None:
        for manifest in self.all():
            if scope is None or manifest["metadata"].get("namespace") == scope:
                self._publish(self.removed(manifest))
        self._heard(scope)
        self._listed(scope)
        self._turns[scope] += NOT_SERVED_SECONDS

    def _heard(self, scope: str | None) -> None:
        self._contacts[scope] = self._turns[scope] = asyncio.get_running_loop().time()

    def _listed(self, scope: str | None) -> None:
        self._unlisted.discard(scope)
        if not self._unlisted:
            self._synced.set()

    def _publish(self, changes: list[Change]) -> None:
        for change in changes:
            for subscriber in self._subscribers:
                subscriber.put_nowait(change)


@dataclass
class _Cursor:
    """Where one scope's watch is."""

    version: str = ""  # resourceVersion to go on from; empty: list first
    relist_at: float = 0.0  # event loop time from which a renewal begins with a list
    fresh: bool = False  # this turn brought something
    failures: int = 0  # turns in a row that brought nothing


def uid_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["uid"])


def version(manifest: Manifest) -> int:
    """The resourceVersion as the number it is."""
    return int(manifest["metadata"]["resourceVersion"])


def controller_uid(manifest: Manifest) -> str | None:
    """UID of the owner that controls this object, None if nothing does."""
    for owner in manifest["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return str(owner["uid"])
    return None


def _key(manifest: Manifest) -> tuple[str, str]:
    metadata = manifest["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


_strings: dict[str, str] = {}  # one copy of each short string; not sys.intern, which newer Pythons never free
STRINGS, STRING_CHARACTERS = 4096, 64


def _compact(value: Any) -> Any:
    """The same JSON in half the memory: objects of a kind consist of the same keys and mostly the same short values."""
    if isinstance(value, dict):
        return {_shared(name): _compact(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_compact(one) for one in value]
    return _shared(value) if isinstance(value, str) else value


def _shared(text: str) -> str:
    if len(text) > STRING_CHARACTERS:
        return text
    if len(_strings) > STRINGS:
        _strings.clear()
    return _strings.setdefault(text, text)
