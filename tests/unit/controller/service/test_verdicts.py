"""Asking verifiers, over real sockets on loopback. What a pod answers is untrusted."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import aiohttp
import pytest
from aiohttp import web

from bigmodel.api.verdict import Verdict, VerdictStage
from bigmodel.controller.decision import Key
from bigmodel.controller.service import verdicts
from bigmodel.controller.service.verdicts import Asked, Target, VerdictError, VerdictSource, fetch_verdict
from tests.unit.controller.service.world import DIGEST_A, DIGEST_B

KEY = Key("BigModelService", "ml", "mlp")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _target(**changes: object) -> Target:
    return Target(
        **(
            {
                "uid": "p1",
                "ip": "127.0.0.1",
                "service": "mlp",
                "revision": 1,
                "digest": DIGEST_A,
                "ready": False,
                "asked": Asked(300),
            }
            | changes
        )
    )  # type: ignore[arg-type]


def _verdict(**changes: object) -> dict[str, object]:
    verdict = {"service": "mlp", "revision": 1, "digest": DIGEST_A, "stage": "Verified", "message": "64 samples"}
    return verdict | changes


@contextlib.asynccontextmanager
async def _verifier(handler: Handler) -> AsyncIterator[int]:
    """A verifier on loopback; its port."""
    app = web.Application()
    app.router.add_get("/v1/verdict", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)  # a handler that hangs is meant to
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    try:
        yield site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    finally:
        await runner.cleanup()


def _answers(body: object, status: int = 200, **headers: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(text=text, status=status, headers=headers)

    return handler


async def test_a_verdict_on_the_revision_asked_about_is_taken() -> None:
    async with _verifier(_answers(_verdict())) as port, aiohttp.ClientSession() as session:
        verdict = await fetch_verdict(session, _target(), port)
    assert verdict.stage is VerdictStage.VERIFIED


async def _hangs(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" " * 4096)
    return response


REFUSED: dict[str, tuple[Handler, str]] = {
    "not JSON": (_answers("<html>"), "not a verdict"),
    "another shape": (_answers({"service": "mlp"}), "not a verdict"),
    "another service": (_answers(_verdict(service="other")), "speaks of"),
    "another revision": (_answers(_verdict(revision=2)), "speaks of"),
    "another artefact": (_answers(_verdict(digest=DIGEST_B)), "speaks of"),
    "an error": (_answers(_verdict(), status=500), "status 500"),
    "a redirect": (_answers("", status=302, Location="http://127.0.0.1:1/"), "status 302"),
    "too much": (_answers(_verdict(message="x" * 4096)), "more than 4096 bytes"),
    "without end": (_endless, "more than 4096 bytes"),
    "nothing": (_hangs, "no answer"),
}


@pytest.mark.parametrize(("handler", "why"), REFUSED.values(), ids=REFUSED)
async def test_anything_else_is_no_data(handler: Handler, why: str) -> None:
    timeout = aiohttp.ClientTimeout(total=0.5)
    async with _verifier(handler) as port, aiohttp.ClientSession(timeout=timeout) as session:
        with pytest.raises(VerdictError, match=why):
            await fetch_verdict(session, _target(), port)


async def test_a_pod_that_is_not_there_is_no_data() -> None:
    async with _verifier(_answers(_verdict())) as port:
        pass
    async with aiohttp.ClientSession() as session:
        with pytest.raises(VerdictError, match="no answer"):
            await fetch_verdict(session, _target(), port)


@contextlib.asynccontextmanager
async def _running(source: VerdictSource) -> AsyncIterator[None]:
    task = asyncio.create_task(source.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_only_news_wake_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "TICK_SECONDS", 0.01)
    asked = 0
    says = _verdict(stage="Replaying")

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.json_response(says)

    news: list[Key] = []
    async with _verifier(handler) as port:
        source = VerdictSource(news.append, port)
        async with _running(source):
            source.follow(KEY, (_target(asked=Asked(0.05)),))
            await _until(lambda: asked >= 4)
            assert news == [KEY]
            says = _verdict()
            await _until(lambda: _stage(source) is VerdictStage.VERIFIED)
            assert news == [KEY, KEY]


def _stage(source: VerdictSource) -> VerdictStage | None:
    verdict: Verdict | None = source.of("p1")
    return verdict.stage if verdict else None


async def test_a_pod_that_stops_answering_has_no_verdict_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "TICK_SECONDS", 0.01)
    status = 200

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response(_verdict(), status=status)

    async with _verifier(handler) as port:
        source = VerdictSource(lambda key: None, port)
        async with _running(source):
            source.follow(KEY, (_target(asked=Asked(0.05)),))
            await _until(lambda: source.of("p1") is not None)
            status = 503
            await _until(lambda: source.of("p1") is None)


async def test_a_ready_pod_is_waited_for_until_it_was_asked_once_and_others_never() -> None:
    async with _verifier(_answers(_verdict())) as port:
        source = VerdictSource(lambda key: None, port)
        source.follow(KEY, (_target(asked=Asked(300), ready=True), _target(asked=Asked(300), uid="p2", ready=False)))
        async with _running(source):
            assert (await source.first_asked(KEY), _stage(source)) == (True, VerdictStage.VERIFIED)
            assert not await source.first_asked(KEY)


async def test_a_pod_that_hangs_is_not_waited_for_longer_than_its_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "TIMEOUT_SECONDS", 0.05)
    async with _verifier(_hangs) as port:
        source = VerdictSource(lambda key: None, port)
        source.follow(KEY, (_target(asked=Asked(300), ready=True),))
        async with _running(source):
            assert await source.first_asked(KEY)
    assert source.of("p1") is None


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_pod_is_asked_when_followed_when_due_and_at_once_when_it_turns_ready() -> None:
    clock = Clock()
    source = VerdictSource(lambda key: None, clock=clock)

    def due() -> list[str]:
        found = [pod.target.uid for pod in source._due()]
        for pod in source._pods.values():
            pod.due = clock.now + pod.target.asked.every_seconds if pod.target.uid in found else pod.due
        return found

    source.follow(KEY, (_target(asked=Asked(300)),))
    assert due() == ["p1"]
    assert due() == []
    source.follow(KEY, (_target(asked=Asked(2)),))  # a rollout began
    clock.now = 1.9
    assert due() == []
    clock.now = 2.0
    assert due() == ["p1"]
    source.follow(KEY, (_target(asked=Asked(300), ready=True),))
    assert due() == ["p1"]
    source.follow(KEY, (_target(asked=Asked(300), uid="p2"),))
    assert due() == ["p2"]
    assert source.of("p1") is None


def test_a_service_that_nobody_looks_at_any_more_is_forgotten() -> None:
    clock = Clock()
    source = VerdictSource(lambda key: None, clock=clock)
    source.follow(KEY, (_target(asked=Asked(2)),))
    clock.now = verdicts.FORGET_SECONDS + 1
    assert source._due() == []
    assert source._pods == {}


def test_many_pods_are_asked_in_turns() -> None:
    source = VerdictSource(lambda key: None, clock=Clock())
    source.follow(KEY, tuple(_target(uid=f"p{i}") for i in range(100)))
    first = source._due()
    assert len(first) == verdicts.PARALLEL
    for pod in first:
        pod.asking = True
    assert source._due() == []


def _windows(requests: int, errors: int) -> list[dict[str, float]]:
    return [{"seconds": 5.0, "requests": requests, "errors": errors}] * 2


async def test_errors_wake_the_service_at_once_and_good_requests_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verdicts, "TICK_SECONDS", 0.01)
    asked, errors = 0, 0
    queries: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        queries.append(request.query_string)
        return web.json_response(_verdict(windows=_windows(100 * asked, errors)))

    news: list[Key] = []
    since = (datetime.now(UTC), datetime.now(UTC))
    async with _verifier(handler) as port:
        source = VerdictSource(news.append, port)
        async with _running(source):
            source.follow(KEY, (_target(asked=Asked(0.05, since, 50, 4)),))
            await _until(lambda: asked >= 4)
            assert news == [KEY], "the first answer is news, that more requests went well is not"
            errors = 1
            await _until(lambda: len(news) == 2)
    assert queries[0].count("window=") == 2
    assert "slow=50&replay=4" in queries[0]


async def test_counts_of_an_older_step_are_forgotten_when_the_step_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "TICK_SECONDS", 0.01)
    first, second = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)
    async with _verifier(_answers(_verdict(windows=_windows(100, 0)))) as port:
        source = VerdictSource(lambda key: None, port)
        async with _running(source):
            source.follow(KEY, (_target(asked=Asked(300, (first,))),))
            await _until(lambda: source.of("p1") is not None)
        source.follow(KEY, (_target(asked=Asked(300, (second,))),))
        verdict = source.of("p1")
    assert verdict is not None
    assert (verdict.stage, verdict.windows) == (VerdictStage.VERIFIED, [])
