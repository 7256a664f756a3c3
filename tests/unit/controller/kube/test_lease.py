"""Leadership on a virtual clock: take-over times are exact, and two never act at once."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bigmodel.controller.decision import Manifest, ResourceKind
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.lease import HOLD_SHARE, LEASE, Elector, LeaseLost
from tests.unit.controller.engine.memory_api import MemoryApi
from tests.unit.controller.engine.virtual_time import elapsed, run

LEASE_SECONDS, RENEW_SECONDS = 5.0, 1.0


def candidate(api: Any, name: str) -> Elector:
    return Elector(api, "system", "operator", name, LEASE_SECONDS, RENEW_SECONDS)


def lease_of(api: MemoryApi) -> Manifest:
    return dict(api.objects["Lease", "system", "operator"]["spec"])


async def lead(elector: Elector) -> asyncio.Task[None]:
    await elector.acquire()
    return asyncio.create_task(elector.hold())


def test_the_first_takes_a_lease_that_does_not_exist_and_keeps_it() -> None:
    async def main() -> None:
        api = MemoryApi()
        holding = await lead(candidate(api, "a"))
        standby = asyncio.create_task(candidate(api, "b").acquire())
        await asyncio.sleep(300)
        assert (lease_of(api)["holderIdentity"], holding.done(), standby.done()) == ("a", False, False)
        assert lease_of(api)["leaseTransitions"] == 0
        holding.cancel()
        standby.cancel()

    run(main())


def test_a_holder_that_vanishes_is_replaced_after_the_lease_and_one_look() -> None:
    async def main() -> None:
        api = MemoryApi()
        holding = await lead(candidate(api, "a"))
        standby = asyncio.create_task(candidate(api, "b").acquire())
        await asyncio.sleep(20)
        holding.cancel()  # SIGKILL
        vanished = elapsed()
        await asyncio.wait_for(standby, 60)
        assert LEASE_SECONDS - RENEW_SECONDS <= elapsed() - vanished <= LEASE_SECONDS + 2 * RENEW_SECONDS
        assert (lease_of(api)["holderIdentity"], lease_of(api)["leaseTransitions"]) == ("b", 1)

    run(main())


def test_a_released_lease_is_taken_at_the_next_look() -> None:
    async def main() -> None:
        api = MemoryApi()
        first = candidate(api, "a")
        holding = await lead(first)
        standby = asyncio.create_task(candidate(api, "b").acquire())
        await asyncio.sleep(20)
        holding.cancel()
        await first.release()
        released = elapsed()
        await asyncio.wait_for(standby, 60)
        assert elapsed() - released <= RENEW_SECONDS + 0.01

    run(main())


def outage(api: MemoryApi, who: Callable[[], bool]) -> None:
    api.fault = lambda verb, kind, name: errors.Unavailable("connection refused") if who() else None


def test_a_holder_that_is_cut_off_gives_up_before_anybody_may_take_over() -> None:
    async def main() -> None:
        api = MemoryApi()
        cut_off = HangingLink(api)
        holding = await lead(candidate(cut_off, "a"))
        standby = asyncio.create_task(candidate(api, "b").acquire())
        await asyncio.sleep(20)
        cut_off.down = True
        with pytest.raises(LeaseLost, match="no renewal succeeded"):
            await asyncio.wait_for(holding, 60)
        gave_up = elapsed()
        assert not standby.done()
        await asyncio.wait_for(standby, 60)
        assert elapsed() > gave_up

    run(main())


class HangingLink:
    """The same API server through a link that can hang: requests neither succeed nor fail."""

    def __init__(self, api: MemoryApi) -> None:
        self._api = api
        self.down = False

    def __getattr__(self, name: str) -> Any:
        async def request(*args: Any, **kwargs: Any) -> Any:
            if self.down:
                await asyncio.sleep(10)
                raise errors.Unavailable("no answer in time")
            return await getattr(self._api, name)(*args, **kwargs)

        return request


def test_short_outages_cost_nothing() -> None:
    async def main() -> None:
        api = MemoryApi()
        holding = await lead(candidate(api, "a"))
        loop = asyncio.get_running_loop()
        outage(api, lambda: loop.time() % 20 < 2.5)
        await asyncio.sleep(600)
        assert not holding.done()
        holding.cancel()

    run(main())


def test_a_holder_that_finds_another_name_ends() -> None:
    async def main() -> None:
        api = MemoryApi()
        holding = await lead(candidate(api, "a"))
        await asyncio.sleep(20)
        live = api.objects["Lease", "system", "operator"]
        await api.put(LEASE, {**live, "spec": {**live["spec"], "holderIdentity": "b"}})
        with pytest.raises(LeaseLost, match="b holds it now"):
            await asyncio.wait_for(holding, 60)

    run(main())


def test_an_annotation_by_somebody_else_or_a_deleted_lease_does_not_cost_it() -> None:
    async def main() -> None:
        api = MemoryApi()
        holding = await lead(candidate(api, "a"))
        live = api.objects["Lease", "system", "operator"]
        await api.put(LEASE, {**live, "metadata": {**live["metadata"], "annotations": {"note": "hi"}}})
        await asyncio.sleep(10)
        await api.remove(LEASE, "system", "operator")
        await asyncio.sleep(10)
        assert (lease_of(api)["holderIdentity"], holding.done()) == ("a", False)
        holding.cancel()

    run(main())


def test_an_answer_that_got_lost_does_not_cost_it() -> None:
    async def main() -> None:
        api = MemoryApi()
        lost = False

        async def replace(kind: ResourceKind, manifest: Manifest, subresource: str = "") -> Manifest:
            nonlocal lost
            answer = await MemoryApi.replace(api, kind, manifest, subresource)
            if lost:
                lost = False
                raise errors.Unavailable("the answer broke off")
            return answer

        api.replace = replace  # type: ignore[method-assign]
        holding = await lead(candidate(api, "a"))
        for _ in range(10):
            lost = True
            await asyncio.sleep(7)
        assert not holding.done()
        holding.cancel()

    run(main())


@pytest.mark.parametrize("latency", [0.0, 0.3, 0.9])
def test_of_many_candidates_exactly_one_leads_at_any_time(latency: float) -> None:
    """Leaders are killed in turn; each candidate writes down when it leads."""

    async def main() -> None:
        api = MemoryApi()
        api.latency = latency
        leading: list[str] = []
        terms: list[str] = []

        async def live(name: str) -> None:
            elector = candidate(api, name)
            await elector.acquire()
            assert leading == []
            leading.append(name)
            terms.append(name)
            try:
                await elector.hold()
            finally:
                leading.remove(name)

        tasks = {name: asyncio.create_task(live(name)) for name in "abcdef"}
        for _ in range(6):
            await asyncio.sleep(30)
            tasks[leading[0]].cancel()
            await asyncio.sleep(0)
        assert sorted(terms) == list("abcdef")

    run(main())


def test_a_holder_that_was_paused_may_not_write_before_it_has_renewed() -> None:
    """C24: whatever its other tasks do first when the process wakes up; C21: by the clock that does not jump."""

    async def main() -> None:
        api = MemoryApi()
        elector = candidate(api, "a")
        assert not elector.valid()
        await elector.acquire()
        assert elector.valid()
        await asyncio.sleep(LEASE_SECONDS * HOLD_SHARE + 0.1)  # nobody renews: SIGSTOP
        assert not elector.valid()

    run(main())
