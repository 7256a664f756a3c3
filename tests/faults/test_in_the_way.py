"""An API server that answers badly, late or not at all, and watches that lie: the same end as without."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from tests.api.kubectl import Kubectl
from tests.faults import proxy as faults
from tests.faults.proxy import Call, Door, Exchange, Fault, Lines, StaleLists, proxied
from tests.faults.scenario import SCENARIOS, differences, lived, stage_for

AT_ONCE = 8
LIVES = ("a job that loses a pod", "a service with its second revision")

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(1200),
]


def writes(call: Call) -> bool:
    return call.writes


def watches(call: Call) -> bool:
    return call.verb == "watch"


def _every(nth: int, matches: Callable[[Call], bool]) -> Callable[[Call], bool]:
    numbers = itertools.count(1)
    return lambda call: matches(call) and next(numbers) % nth == 0


def _once_for_each(verb: str) -> Callable[[Call], bool]:
    """The first request of this verb for each resource."""
    met: set[str] = set()

    def matches(call: Call) -> bool:
        first = call.verb == verb and call.resource not in met
        met.update({call.resource} if first else ())
        return first

    return matches


def _way(
    matches: Callable[[], Callable[[Call], bool]], fault: Fault, times: int | None = None
) -> Callable[[Door], None]:
    def put(door: Door) -> None:
        door.when(matches(), fault, times=times)

    return put


def _away(door: Door) -> None:
    """Everything is refused for three seconds after the fifth write."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        rule = door.when(lambda call: True, faults.refuses(503, "ServiceUnavailable"))
        door.rules.insert(0, door.rules.pop())
        asyncio.get_running_loop().call_later(3, door.rules.remove, rule)
        return await exchange.cut()

    door.when(writes, fault, after=5, times=1)


def _stale(door: Door) -> None:
    """Each watch breaks with 410 after a second, and the list that follows is an old one, every other time."""
    lists = StaleLists({"pods", "services", "deployments", "controllerrevisions"})

    async def tells_of_it(exchange: Exchange) -> web.StreamResponse:
        lists.stale = not lists.stale
        return await lists.fault(exchange)

    door.when(lists.matches, tells_of_it)
    door.when(watches, faults.watch(_a_second))


async def _a_second(lines: Lines) -> Lines:
    """What comes in a second, then 410."""
    loop = asyncio.get_running_loop()
    end, waiting = loop.time() + 1, asyncio.ensure_future(anext(lines))
    try:
        while (await asyncio.wait({waiting}, timeout=max(0.0, end - loop.time())))[0]:
            yield waiting.result()
            waiting = asyncio.ensure_future(anext(lines))
    except StopAsyncIteration:
        return
    finally:
        waiting.cancel()
    yield faults.GONE


async def _half_of_a_second(lines: Lines) -> Lines:
    drop = True
    async for line in _a_second(lines):
        drop = not drop or line == faults.GONE
        if not drop or line == faults.GONE:
            yield line


async def _is_silent_for_a_second(lines: Lines) -> Lines:
    """Events come late, all at once."""
    await asyncio.sleep(1)
    async for line in lines:
        yield line


WAYS: dict[str, Callable[[Door], None]] = {
    "C7: every second write meets a conflict": _way(
        lambda: _every(2, writes), faults.refuses(409, "Conflict", "the object has been modified")
    ),
    "C9: every fourth write is one too many": _way(
        lambda: _every(4, writes), faults.refuses(429, "TooManyRequests", retry_after="1")
    ),
    "C10: every third write is a server error": _way(
        lambda: _every(3, writes), faults.refuses(500, "InternalError", "etcdserver: request timed out")
    ),
    "C10: nothing is answered for a while": _away,
    "C11: a write hangs": _way(lambda: writes, faults.hangs, times=1),
    "C11: a list hangs": _way(
        lambda: lambda call: call.verb == "list" and call.resource == "pods", faults.hangs, times=1
    ),
    "C12: connections are reset": _way(lambda: _every(3, writes), faults.resets),
    "C2, C12: answers get lost": _way(lambda: _every(3, writes), faults.loses_the_answer),
    "C12: answers break off": _way(lambda: _every(3, writes), faults.breaks_off),
    "C12: answers are half of their JSON": _way(lambda: _every(3, writes), faults.truncates),
    "C12: lists are half of their JSON": _way(lambda: _once_for_each("list"), faults.truncates),
    "C13: each first watch is too old": _way(lambda: _once_for_each("watch"), faults.ends_with_error(410, "Expired")),
    "C14: each first watch fails with 500": _way(
        lambda: _once_for_each("watch"), faults.ends_with_error(500, "InternalError")
    ),
    "C14: each first watch fails with 504": _way(
        lambda: _once_for_each("watch"), faults.ends_with_error(504, "Timeout")
    ),
    "C16: lists are stale": _stale,
    "C17: every second event is lost": _way(lambda: watches, faults.watch(_half_of_a_second)),
    "C18: events come twice": _way(lambda: watches, faults.repeats_events),
    "C18: events come late": _way(lambda: watches, faults.delays_events),
    "C18: events come all at once": _way(lambda: watches, faults.watch(_is_silent_for_a_second)),
    "C18: events come in swapped pairs": _way(lambda: watches, faults.reorders_events),
}
SLOW_WAYS: dict[str, Callable[[Door], None]] = {
    "C15: each first watch falls silent": _way(lambda: _once_for_each("watch"), faults.falls_silent),
}


async def test_whatever_is_in_the_way_the_end_is_the_same(api_server: Path, kubectl: Kubectl, full: bool) -> None:
    """C2, C7, C9, C10, C11, C12, C13, C14, C15, C16, C17, C18, with I1, I3, I4, I6, I8, I9 after each."""
    slots = asyncio.Semaphore(AT_ONCE)
    async with proxied(api_server) as proxy:
        references = {}
        for name in LIVES:
            async with stage_for(SCENARIOS[name], api_server, kubectl, proxy) as stage:
                references[name] = await lived(stage, SCENARIOS[name])

        async def case(way: str, name: str) -> list[str]:
            async with slots, stage_for(SCENARIOS[name], api_server, kubectl, proxy) as stage:
                (WAYS | SLOW_WAYS)[way](stage.door)
                try:
                    end = await lived(stage, SCENARIOS[name])
                    assert any(rule.done for rule in stage.door.rules), "nothing was in the way"
                    return differences(end, references[name])
                except (AssertionError, TimeoutError, pytest.fail.Exception) as error:
                    return [str(error) or type(error).__name__]

        cases = list(itertools.product(WAYS | SLOW_WAYS, LIVES))
        if not full:
            cases = [(way, LIVES[number % 2]) for number, way in enumerate(WAYS)]
        found = await asyncio.gather(*(case(*one) for one in cases))
    problems = [f"{way}, {name}: {text}" for (way, name), texts in zip(cases, found, strict=True) for text in texts]
    assert not problems, f"{len(problems)} of {len(cases)}:\n" + "\n".join(problems)
