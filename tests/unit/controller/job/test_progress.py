"""Asking index 0 over real sockets on loopback: what is taken, what is refused, how often, and that nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web

from bigmodel.controller.decision import Key
from bigmodel.controller.job import progress as module
from bigmodel.controller.job.progress import NoAnswer, ProgressSource, Target, fetch_progress
from tests.builders import JOB_UID, NOON, a_progress

KEY = Key("BigModelJob", "ml", "mlp")
TARGET = Target(pod_uid="pod-0", ip="127.0.0.1", job_uid=JOB_UID, attempt=1)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def pod(handler: Handler) -> AsyncIterator[int]:
    """A pod of index 0; yields its port."""
    app = web.Application()
    app.router.add_get("/v1/progress", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def answers(text: str, status: int = 200) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=text, status=status)

    return handler


async def hangs(request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response(text=a_progress().json())


async def drips(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(600):
        await response.write(b" ")
        await asyncio.sleep(0.1)
    return response


async def floods(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(10 * 16):
        await response.write(b" " * 65536)
    return response


async def sends_elsewhere(request: web.Request) -> web.Response:
    raise web.HTTPFound("http://169.254.169.254/latest/meta-data")


BAD: dict[str, tuple[Handler, str]] = {
    "no JSON": (answers("hello"), "makes no sense"),
    "another pod's answer": (answers(a_progress().with_(uid="another").json()), "not of attempt 1"),
    "101 %": (answers(a_progress().with_(step=2020).json()), "beyond totalSteps"),
    "10 MB": (floods, "longer than 65536 bytes"),
    "an error": (answers("no", 500), "status 500"),
    "a redirect": (sends_elsewhere, "status 302"),
    "a hang": (hangs, "no answer within"),
    "a byte now and then": (drips, "no answer within"),
}


@pytest.mark.parametrize(("handler", "why"), BAD.values(), ids=BAD)
async def test_a_bad_answer_is_none(handler: Handler, why: str) -> None:
    timeout = aiohttp.ClientTimeout(total=0.3)
    async with pod(handler) as port, aiohttp.ClientSession(timeout=timeout) as session:
        with pytest.raises(NoAnswer, match=why):
            await fetch_progress(session, TARGET, port)


async def test_a_pod_that_is_not_there_is_no_answer() -> None:
    async with pod(answers("")) as port:
        pass
    async with aiohttp.ClientSession() as session:
        with pytest.raises(NoAnswer, match="no answer"):
            await fetch_progress(session, TARGET, port)


@asynccontextmanager
async def followed(source: ProgressSource) -> AsyncIterator[None]:
    task = asyncio.create_task(source.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_news_queue_the_job_once() -> None:
    news: list[Key] = []
    now = [NOON]
    async with pod(answers(a_progress().training(40, NOON).json())) as port:
        source = ProgressSource(news.append, port=port, now=lambda: now[0])
        source.follow(KEY, TARGET)
        async with followed(source):
            await eventually(lambda: len(news) == 1)
            source.follow(KEY, replace(TARGET, formation=("pod-0", "pod-1")))  # asked at once again: the same answer
            told = source.latest(KEY)
            assert told is not None
            assert told.progress is not None, "what was told still stands"
            now[0] = NOON.replace(hour=13)
            await eventually(lambda: (p := source.latest(KEY)) is not None and p.at == now[0])
    assert news == [KEY]
    pulled = source.latest(KEY)
    assert pulled is not None
    assert pulled.progress is not None
    assert (pulled.pod_uid, pulled.progress.step, pulled.failing_since) == ("pod-0", 40, None)


async def test_what_another_pod_said_is_forgotten() -> None:
    async with pod(answers(a_progress().json())) as port:
        source = ProgressSource(lambda key: None, port=port)
        source.follow(KEY, TARGET)
        async with followed(source):
            await eventually(lambda: source.latest(KEY) is not None)
            source.follow(KEY, replace(TARGET, pod_uid="pod-0-r1"))
            assert source.latest(KEY) is None
            await eventually(lambda: source.latest(KEY) is not None)
            source.follow(KEY, None)
            assert source.latest(KEY) is None


async def test_silence_keeps_the_last_answer_and_is_news_only_when_it_lasts() -> None:
    news: list[Key] = []
    talks = [True]
    now = [NOON]
    clock = [0.0]

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=a_progress().json()) if talks[0] else web.Response(status=503)

    async with pod(handler) as port:
        source = ProgressSource(news.append, port=port, clock=lambda: clock[0], now=lambda: now[0])
        source.follow(KEY, TARGET)
        async with followed(source):
            await eventually(lambda: len(news) == 1)
            talks[0] = False
            clock[0] += 2
            await eventually(lambda: (p := source.latest(KEY)) is not None and p.failing_since == NOON)
            assert len(news) == 1
            now[0] = NOON.replace(minute=1)
            clock[0] += 2
            await eventually(lambda: len(news) == 2)
    pulled = source.latest(KEY)
    assert pulled is not None
    assert pulled.progress is not None
    assert pulled.failure == "GET /v1/progress is answered with status 503"


async def test_pods_that_hang_hold_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.3)
    heard: set[Key] = set()
    good, bad = replace(TARGET, ip="127.0.0.1"), replace(TARGET, ip="127.0.0.2")
    app_hangs = web.Application()
    app_hangs.router.add_get("/v1/progress", hangs)
    runner = web.AppRunner(app_hangs, shutdown_timeout=0.1)
    async with pod(answers(a_progress().json())) as port:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.2", port).start()
        source = ProgressSource(heard.add, port=port)
        for number in range(2 * module.PARALLEL):
            source.follow(Key("BigModelJob", "ml", f"bad-{number}"), bad)
        wanted = {Key("BigModelJob", "ml", f"good-{number}") for number in range(5)}
        for key in wanted:
            source.follow(key, good)
        async with followed(source):
            await eventually(lambda: wanted <= heard)
        await runner.cleanup()


@pytest.mark.parametrize(("age", "pause"), [(0, 2), (59, 2), (61, 10)])
async def test_often_in_the_first_minute_less_often_later(age: float, pause: float) -> None:
    asked: list[float] = []
    clock = [0.0]

    async def handler(request: web.Request) -> web.Response:
        asked.append(clock[0])
        return web.Response(text=a_progress().json())

    async with pod(handler) as port:
        source = ProgressSource(lambda key: None, port=port, clock=lambda: clock[0])
        source.follow(KEY, TARGET)
        clock[0] = age
        async with followed(source):
            await eventually(lambda: len(asked) == 1 and source.latest(KEY) is not None)
            clock[0] = age + pause - 0.1
            await asyncio.sleep(3 * module.TICK_SECONDS)
            assert len(asked) == 1
            clock[0] = age + pause
            await eventually(lambda: len(asked) == 2)


async def test_a_job_that_nobody_follows_any_more_is_forgotten() -> None:
    clock = [0.0]
    async with pod(answers(a_progress().json())) as port:
        source = ProgressSource(lambda key: None, port=port, clock=lambda: clock[0])
        source.follow(KEY, TARGET)
        async with followed(source):
            await eventually(lambda: source.latest(KEY) is not None)
            clock[0] = module.FORGET_SECONDS + 1
            await eventually(lambda: source.latest(KEY) is None)
