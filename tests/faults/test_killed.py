"""A controller that is killed at any write leaves what its successor finishes: the same end, nothing made twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from tests.api.controller import ControllerProcess
from tests.api.kubectl import Kubectl
from tests.faults.proxy import Call, Exchange, Fault, Rule, proxied
from tests.faults.scenario import COMPLETES, SCENARIOS, Stage, differences, lived, stage_for

AT_ONCE = 8
SAMPLED = 17  # of the pairs of write and position, every 17th: each position in turn
POSITIONS = ("before it is sent", "before the answer", "after the answer")

# What a kill cuts off is meant to be cut off.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(3600),
]


def kills(stage: Stage, position: str) -> Fault:
    """Kill the controller at this request."""
    kill = stage.killer()

    async def dies_now(exchange: Exchange) -> web.StreamResponse:
        kill()
        return await exchange.cut()

    def end(rule: Rule) -> None:
        stage.door.rules.remove(rule)
        kill()

    async def fault(exchange: Exchange) -> web.StreamResponse:
        if position == "before it is sent":
            return await dies_now(exchange)
        answer = await exchange.forwarded()
        if position == "before the answer":
            kill()
            return await exchange.cut()
        # It dies at its next write, or of having none.
        rule = Rule(_writes, dies_now, times=1)
        stage.door.rules.insert(0, rule)
        asyncio.get_running_loop().call_later(0.05, end, rule)
        return await exchange.answered(answer)

    return fault


def _writes(call: Call) -> bool:
    return call.writes and call.resource != "leases"


@pytest.mark.parametrize("name", SCENARIOS)
async def test_killed_at_any_write_its_successor_comes_to_the_same_end(
    name: str, api_server: Path, kubectl: Kubectl, full: bool
) -> None:
    """C1, C2, C43: before a write is sent, after it is applied but not answered, after the answer. I1, I3, I4, I6."""
    scenario = SCENARIOS[name]
    async with proxied(api_server) as proxy:
        async with stage_for(scenario, api_server, kubectl, proxy) as stage:
            reference = await lived(stage, scenario)
        writes = range(reference.writes)
        cases = [(number, position) for number in writes for position in POSITIONS]
        cases = cases if full else cases[::SAMPLED]
        slots = asyncio.Semaphore(AT_ONCE)

        async def case(number: int, position: str) -> list[str]:
            async with slots, stage_for(scenario, api_server, kubectl, proxy) as stage:
                stage.door.when(_writes, kills(stage, position), after=number, times=1)
                try:
                    return differences(await lived(stage, scenario), reference)
                except (AssertionError, TimeoutError, pytest.fail.Exception) as error:
                    return [str(error) or type(error).__name__]

        found = await asyncio.gather(*(case(*one) for one in cases))
    problems = [
        f"killed at write {number}, {position}: {text}"
        for (number, position), texts in zip(cases, found, strict=True)
        for text in texts
    ]
    assert not problems, f"{len(problems)} of {len(cases)}:\n" + "\n".join(problems)


class Process:
    """The controller as the process that it is, under SIGKILL; it is started again like its container."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self._stage, self._folder = stage, folder
        self._now: ControllerProcess | None = None

    def start(self) -> None:
        kubeconfig = self._stage.door.kubeconfig(self._folder)
        name = f"life-{self._stage.lives}"
        self._now = ControllerProcess(self._folder, kubeconfig, name, (self._stage.namespace,))

    def dies(self) -> None:
        assert self._now is not None
        self._now.process.kill()

    async def kill(self) -> None:
        assert self._now is not None
        self._now.kill()


async def test_the_process_killed_at_its_writes_comes_to_the_same_end(
    api_server: Path, kubectl: Kubectl, tmp_path: Path, full: bool
) -> None:
    """C1, C2, with kopf, a Lease and SIGKILL: at three writes of one life, each of another position."""
    async with proxied(api_server) as proxy:
        async with stage_for(COMPLETES, api_server, kubectl, proxy) as stage:
            reference = await lived(stage, COMPLETES)
        async with stage_for(COMPLETES, api_server, kubectl, proxy) as stage:
            await stage.place.controller.kill()
            stage.place.controller = Process(stage, tmp_path)
            for number, position in zip((2, 8, 14), POSITIONS, strict=True) if full else [(3, POSITIONS[1])]:
                stage.door.when(_writes, _kills_whoever_lives(stage, position), after=number, times=1)
            stage.place.controller.start()
            try:
                assert differences(await lived(stage, COMPLETES), reference) == []
                assert all(rule.done for rule in stage.door.rules)
            finally:
                await stage.place.controller.kill()


def _kills_whoever_lives(stage: Stage, position: str) -> Fault:
    async def fault(exchange: Exchange) -> web.StreamResponse:
        return await kills(stage, position)(exchange)

    return fault
