"""An API server in memory with what the engine relies on: UIDs, resourceVersions, preconditions, apply, watches.

It has the methods of `kube.client.Client`, and can be told to fail. tests/api shows that the real one behaves so.
"""

import asyncio
import copy
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from bigmodel.controller.decision import Manifest, ResourceKind
from bigmodel.controller.kube import errors

Fault = Callable[[str, ResourceKind, str], Exception | None]


class MemoryApi:
    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Manifest] = {}  # by kind, namespace, name
        self.calls: list[tuple[str, str, str]] = []  # verb, kind, name
        self.latency = 0.0  # seconds that every request takes
        self.fault: Fault = lambda verb, kind, name: None
        self.watch_open = asyncio.Event()
        self.watch_open.set()
        self.compacted = 0  # a watch from before this resourceVersion is Gone
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)
        self._log: list[tuple[int, str, Manifest]] = []
        self._news = asyncio.Condition()

    def count(self, *verbs: str) -> int:
        return sum(verb in verbs for verb, _, _ in self.calls)

    def writes(self) -> Counter[tuple[str, str]]:
        return Counter((verb, kind) for verb, kind, _ in self.calls if verb not in ("get", "list", "watch"))

    async def put(self, kind: ResourceKind, manifest: Manifest) -> Manifest:
        """Somebody else creates or changes an object."""
        key = (kind.kind, manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"])
        before = self.objects.get(key)
        manifest = copy.deepcopy(manifest)
        manifest["metadata"]["uid"] = before["metadata"]["uid"] if before else f"uid-{next(self._uids)}"
        return await self._keep(key, "MODIFIED" if before else "ADDED", manifest)

    async def remove(self, kind: ResourceKind, namespace: str, name: str) -> None:
        """Somebody else deletes an object, at once."""
        key = (kind.kind, namespace, name)
        await self._keep(key, "DELETED", self.objects[key])
        del self.objects[key]

    # What Client offers

    async def get(self, kind: ResourceKind, namespace: str | None, name: str) -> Manifest:
        await self._request("get", kind, name)
        return copy.deepcopy(self._there(kind, namespace, name))

    async def create(self, kind: ResourceKind, manifest: Manifest) -> Manifest:
        await self._request("create", kind, manifest["metadata"]["name"])
        if (kind.kind, manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]) in self.objects:
            raise errors.AlreadyExists("already exists", 409)
        return await self.put(kind, manifest)

    async def replace(self, kind: ResourceKind, manifest: Manifest, subresource: str = "") -> Manifest:
        return await self._change("update", kind, manifest, subresource)

    async def apply(self, kind: ResourceKind, manifest: Manifest, subresource: str = "") -> Manifest:
        return await self._change("apply", kind, manifest, subresource)

    async def merge_patch(self, kind: ResourceKind, namespace: str | None, name: str, patch: Manifest) -> Manifest:
        await self._request("patch", kind, name)
        live = copy.deepcopy(self._there(kind, namespace, name))
        self._preconditions(live, patch["metadata"])
        live["metadata"].setdefault("labels", {}).update(patch["metadata"].get("labels") or {})
        return await self.put(kind, live)

    async def delete(
        self, kind: ResourceKind, namespace: str, name: str, uid: str, grace_seconds: int | None = None
    ) -> Manifest:
        await self._request("delete", kind, name)
        live = self._there(kind, namespace, name)
        self._preconditions(live, {"uid": uid})
        await self.remove(kind, namespace, name)
        return {"kind": "Status", "status": "Success"}

    async def pages(
        self, kind: ResourceKind, namespace: str | None, label_selector: str = ""
    ) -> AsyncIterator[tuple[list[Manifest], str]]:
        await self._request("list", kind, "")
        items = [
            copy.deepcopy(o) for (k, ns, _), o in self.objects.items() if k == kind.kind and namespace in (None, ns)
        ]
        yield items, str(self._now())

    async def watch(
        self, kind: ResourceKind, namespace: str | None, resource_version: str, label_selector: str = "", **_: Any
    ) -> AsyncIterator[Manifest]:
        await self._request("watch", kind, "")
        position = int(resource_version)
        if position < self.compacted:
            raise errors.Gone("too old resource version", 410)
        while True:
            if not self.watch_open.is_set():
                raise errors.Unavailable("connection reset")
            for number, event, manifest in self._log:
                if number > position and manifest["kind"] == kind.kind:
                    position = number
                    yield {"type": event, "object": copy.deepcopy(manifest)}
            async with self._news:
                await self._news.wait()

    async def break_watches(self) -> None:
        """Every watch ends, and none comes up until `watch_open` is set."""
        self.watch_open.clear()
        async with self._news:
            self._news.notify_all()

    async def _request(self, verb: str, kind: ResourceKind, name: str) -> None:
        self.calls.append((verb, kind.kind, name))
        await asyncio.sleep(self.latency)
        if (error := self.fault(verb, kind, name)) is not None:
            raise error

    async def _change(self, verb: str, kind: ResourceKind, manifest: Manifest, subresource: str) -> Manifest:
        metadata = manifest["metadata"]
        await self._request(f"{verb} {subresource}".strip(), kind, metadata["name"])
        live = copy.deepcopy(self._there(kind, metadata.get("namespace"), metadata["name"]))
        self._preconditions(live, metadata)
        if subresource:
            changed = {**live, subresource: manifest[subresource]}
        else:
            changed = {**live, **manifest, "metadata": {**live["metadata"], **metadata}}
        return live if changed == live else await self.put(kind, changed)

    def _there(self, kind: ResourceKind, namespace: str | None, name: str) -> Manifest:
        try:
            return self.objects[kind.kind, namespace or "", name]
        except KeyError:
            raise errors.NotFound(f"{kind.kind} {name} not found", 404) from None

    @staticmethod
    def _preconditions(live: Manifest, wanted: Manifest) -> None:
        for field in ("uid", "resourceVersion"):
            if field in wanted and wanted[field] != live["metadata"][field]:
                raise errors.Conflict(f"{field} differs", 409)

    async def _keep(self, key: tuple[str, str, str], event: str, manifest: Manifest) -> Manifest:
        number = next(self._versions)
        manifest = copy.deepcopy(manifest)
        manifest["metadata"]["resourceVersion"] = str(number)
        manifest.setdefault("kind", key[0])
        if event != "DELETED":
            self.objects[key] = manifest
        self._log.append((number, event, manifest))
        async with self._news:
            self._news.notify_all()
        return copy.deepcopy(manifest)

    def _now(self) -> int:
        return self._log[-1][0] if self._log else 0
