"""The loop around the store: gaps, compaction, silence, kinds that come later."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bigmodel.controller.decision import POD, Manifest, ResourceKind
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.reflector import RELIST_SECONDS, Reflector
from tests.unit.controller.engine.memory_api import MemoryApi
from tests.unit.controller.engine.virtual_time import elapsed, run


def pod(name: str, namespace: str = "ml") -> Manifest:
    return {"kind": "Pod", "metadata": {"name": name, "namespace": namespace, "managedFields": [{"manager": "x"}]}}


def names(reflector: Reflector) -> list[str]:
    return sorted(one["metadata"]["name"] for one in reflector.all())


async def started(api: Any, *namespaces: str) -> tuple[Reflector, asyncio.Task[None]]:
    reflector = Reflector(api, POD, namespaces)
    task = asyncio.create_task(reflector.run())
    await asyncio.wait_for(reflector.synced(), 60)
    await asyncio.sleep(0.01)
    return reflector, task


def test_what_is_deleted_while_the_watch_is_down_and_compacted_is_told_as_deleted() -> None:
    async def main() -> None:
        api = MemoryApi()
        for name in "abc":
            await api.put(POD, pod(name))
        reflector, task = await started(api)
        changes = reflector.changes()
        await api.break_watches()
        await asyncio.sleep(0.01)
        await api.remove(POD, "ml", "b")
        await api.put(POD, pod("d"))
        api.compacted = 10**6
        api.watch_open.set()
        told = [await asyncio.wait_for(anext(changes), 60) for _ in range(2)]
        assert sorted((one.type, one.object["metadata"]["name"]) for one in told) == [("ADDED", "d"), ("DELETED", "b")]
        assert (names(reflector), reflector.relists > 0) == (["a", "c", "d"], True)
        task.cancel()

    run(main())


def test_a_broken_watch_goes_on_where_it_was_without_a_new_list() -> None:
    async def main() -> None:
        api = MemoryApi()
        await api.put(POD, pod("a"))
        reflector, task = await started(api)
        await api.break_watches()
        await api.put(POD, pod("b"))
        await api.remove(POD, "ml", "a")
        api.watch_open.set()
        await asyncio.sleep(60)
        assert (names(reflector), api.count("list")) == (["b"], 1)
        task.cancel()

    run(main())


def test_an_api_server_that_is_down_is_asked_ever_more_rarely() -> None:
    async def main() -> None:
        api = MemoryApi()
        reflector, task = await started(api)
        api.fault = lambda verb, kind, name: errors.Unavailable("connection refused")
        await api.break_watches()
        before = len(api.calls)
        await asyncio.sleep(600)
        assert len(api.calls) - before <= 600 / 8 + 5
        now = asyncio.get_running_loop().time()
        assert reflector.contact_age(now) == pytest.approx(600, abs=1)
        assert reflector.turn_age(now) < 20  # this process is all right
        api.fault = lambda verb, kind, name: None
        api.watch_open.set()
        await api.put(POD, pod("a"))
        await asyncio.sleep(10)
        assert names(reflector) == ["a"]
        task.cancel()

    run(main())


def test_a_kind_that_is_not_served_counts_as_empty_until_it_is() -> None:
    async def main() -> None:
        api = MemoryApi()
        api.fault = lambda verb, kind, name: errors.NotFound("the server could not find the requested resource", 404)
        reflector, task = await started(api)
        assert (len(reflector), elapsed() < 1) == (0, True)
        api.fault = lambda verb, kind, name: None
        await api.put(POD, pod("a"))
        await asyncio.sleep(30)
        assert names(reflector) == ["a"]
        task.cancel()

    run(main())


def test_with_namespaces_each_is_listed_by_itself() -> None:
    async def main() -> None:
        api = MemoryApi()
        for namespace in ("ml", "web", "secret"):
            await api.put(POD, pod(f"in-{namespace}", namespace))
        reflector, task = await started(api, "ml", "web")
        assert (names(reflector), api.count("list")) == (["in-ml", "in-web"], 2)
        task.cancel()

    run(main())


def test_managed_fields_are_not_kept() -> None:
    async def main() -> None:
        api = MemoryApi()
        await api.put(POD, pod("a"))
        reflector, task = await started(api)
        await api.put(POD, pod("b"))
        reflector.note_written({**pod("c"), "metadata": {**pod("c")["metadata"], "uid": "c", "resourceVersion": "99"}})
        await asyncio.sleep(1)
        assert [("managedFields" in one["metadata"]) for one in reflector.all()] == [False] * 3
        task.cancel()

    run(main())


def test_what_is_not_kept_is_never_held_and_equal_strings_are_held_once() -> None:
    async def main() -> None:
        api = MemoryApi()
        for name in "ab":
            await api.put(POD, {**pod(name), "spec": {"nodeName": "node-" + "1", "volumes": [{"name": "tmp"}]}})

        def without_volumes(manifest: Manifest) -> Manifest:
            return {**manifest, "spec": {"nodeName": manifest["spec"]["nodeName"]}}

        reflector = Reflector(api, POD, keep=without_volumes)  # type: ignore[arg-type]
        task = asyncio.create_task(reflector.run())
        await reflector.synced()
        one, other = reflector.all()
        assert one["spec"] == other["spec"] == {"nodeName": "node-1"}
        assert one["spec"]["nodeName"] is other["spec"]["nodeName"]
        task.cancel()

    run(main())


def test_a_watch_that_ends_at_once_every_time_does_not_spin() -> None:
    class Hasty(MemoryApi):
        async def watch(self, kind: ResourceKind, *args: Any, **kwargs: Any) -> AsyncIterator[Manifest]:
            await self._request("watch", kind, "")
            for nothing in ():
                yield nothing

    async def main() -> None:
        api = Hasty()
        _, task = await started(api)
        await asyncio.sleep(600)
        assert api.count("watch") <= 600 / 8 + 10
        task.cancel()

    run(main())


def test_an_event_that_got_lost_is_made_up_for_by_a_new_list() -> None:
    """C17: the watch ends as it should, every 30 s, and one of its events never came."""

    class Lossy(MemoryApi):
        async def watch(self, kind: ResourceKind, *args: Any, **kwargs: Any) -> AsyncIterator[Manifest]:
            await self._request("watch", kind, "")
            await asyncio.sleep(30)
            bookmark = {"metadata": {"resourceVersion": str(self._now())}}
            yield {"type": "BOOKMARK", "object": bookmark}

    async def main() -> None:
        api = Lossy()
        await api.put(POD, pod("a"))
        reflector, task = await started(api)
        await api.remove(POD, "ml", "a")
        await api.put(POD, pod("b"))
        await asyncio.sleep(RELIST_SECONDS + 31)
        assert (names(reflector), reflector.relists, api.count("list")) == (["b"], 0, 2)
        task.cancel()

    run(main())
