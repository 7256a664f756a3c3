"""An HTTP proxy between a controller and the real API server that goes wrong on command, at an exact request.

Each controller under test has a Door of its own. A door knows what was asked of it (every write, for the invariants)
and follows its rules: the first that matches a request decides what happens to it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
import yaml
from aiohttp import web
from kubernetes.aio.client import Configuration

from bigmodel.controller.kube.client import load_configuration

HOST = "127.0.0.1"
WRITES = ("create", "update", "apply", "patch", "delete")
FORWARDED = ("Accept", "Content-Type", "User-Agent")


@dataclass(frozen=True)
class Call:
    """One request, in the words of RBAC."""

    verb: str  # get | list | watch | create | update | apply | patch | delete
    resource: str  # with its subresource: bigmodeljobs/status
    namespace: str
    name: str

    @property
    def writes(self) -> bool:
        return self.verb in WRITES


@dataclass
class Write:
    """One request that would change something."""

    call: Call
    at: float  # event loop time
    code: int = 0  # what the API server answered; 0: it was never asked
    uid: str = ""  # of the object, where the answer tells it

    @property
    def applied(self) -> bool:
        return 200 <= self.code < 300


@dataclass(frozen=True)
class Answer:
    """What the API server says."""

    code: int
    body: bytes
    retry_after: str | None = None


Lines = AsyncIterator[bytes]
Fault = Callable[["Exchange"], Awaitable[web.StreamResponse]]


@dataclass
class Rule:
    """`fault` is done to calls that match, `times` times after the first `after`; None: for as long as it stands."""

    matches: Callable[[Call], bool]
    fault: Fault
    after: int = 0
    times: int | None = None
    met: int = 0  # matching calls so far
    done: int = 0  # of them, those that the fault was done to

    def meets(self, call: Call) -> bool:
        if not self.matches(call):
            return False
        self.met += 1
        wanted = self.met > self.after and (self.times is None or self.met <= self.after + self.times)
        self.done += wanted
        return wanted


class Exchange:
    """One request on its way; a fault does with it what it likes."""

    def __init__(self, door: Door, request: web.Request, call: Call, body: bytes) -> None:
        self.door, self.call = door, call
        self._request, self._body = request, body

    async def forwarded(self) -> Answer:
        """Ask the API server; whatever becomes of the one who asks, what was sent is done."""
        return await asyncio.shield(asyncio.ensure_future(self._forward()))

    async def answered(self, answer: Answer) -> web.StreamResponse:
        headers = {"Content-Type": "application/json"}
        if answer.retry_after is not None:
            headers["Retry-After"] = answer.retry_after
        return web.Response(status=answer.code, body=answer.body, headers=headers)

    async def passed_on(self) -> web.StreamResponse:
        """As if there were no proxy."""
        if self.call.verb == "watch":
            return await self.streamed(lambda lines: lines)
        return await self.answered(await self.forwarded())

    async def streamed(self, change: Callable[[Lines], Lines]) -> web.StreamResponse:
        """The watch, with its events as `change` makes them."""
        async with self._asked() as upstream:
            if upstream.status >= 300:
                return await self.answered(Answer(upstream.status, await upstream.read()))
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(self._request)
            async for line in change(_lines(upstream.content)):
                await response.write(line + b"\n")
            return response

    async def cut(self, answer: Answer | None = None) -> web.StreamResponse:
        """The connection breaks, after half of the answer where there is one."""
        if answer is not None:
            headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body))}
            response = web.StreamResponse(status=answer.code, headers=headers)
            await response.prepare(self._request)
            await response.write(answer.body[: len(answer.body) // 2])
        if self._request.transport is not None:
            self._request.transport.abort()
        return web.Response()

    def _asked(self) -> Any:
        headers = {name: value for name in FORWARDED if (value := self._request.headers.get(name))}
        url = f"{self.door.proxy.upstream}{self._request.raw_path}"
        return self.door.proxy.session.request(self._request.method, url, headers=headers, data=self._body or None)

    async def _forward(self) -> Answer:
        write = next((write for write in reversed(self.door.writes) if write.call is self.call), None)
        async with self._asked() as upstream:
            answer = Answer(upstream.status, await upstream.read(), upstream.headers.get("Retry-After"))
        if write is not None:
            write.code, write.uid = answer.code, _uid(answer.body)
        return answer


@dataclass
class Door:
    """One controller's way to the API server."""

    proxy: Proxy
    port: int
    rules: list[Rule] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)

    def configuration(self) -> Configuration:
        configuration = Configuration(host=f"http://{HOST}:{self.port}")
        configuration.client_session_kwargs = {"trust_env": False}
        configuration.connection_pool_maxsize = 128
        return configuration

    def kubeconfig(self, folder: Path) -> Path:
        """The same, for a process."""
        path = folder / f"door-{self.port}.kubeconfig"
        cluster = {"name": "c", "cluster": {"server": f"http://{HOST}:{self.port}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        content = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
        path.write_text(yaml.safe_dump({**content, "users": [{"name": "u", "user": {}}], "current-context": "c"}))
        return path

    def when(self, matches: Callable[[Call], bool], fault: Fault, *, after: int = 0, times: int | None = None) -> Rule:
        """Add a rule; `rules.remove` ends it."""
        rule = Rule(matches, fault, after, times)
        self.rules.append(rule)
        return rule

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = _call(request, body)
        if call.writes:
            self.writes.append(Write(call, asyncio.get_running_loop().time()))
        exchange = Exchange(self, request, call, body)
        rule = next((rule for rule in self.rules if rule.meets(call)), None)
        try:
            return await (rule.fault(exchange) if rule is not None else exchange.passed_on())
        except (aiohttp.ClientError, ConnectionError):  # one of both sides went away
            return await exchange.cut()


@dataclass
class Proxy:
    """All doors of one API server."""

    upstream: str
    session: aiohttp.ClientSession

    @asynccontextmanager
    async def door(self) -> AsyncIterator[Door]:
        door = Door(self, 0)
        application = web.Application(client_max_size=16 * 1024**2)
        application.router.add_route("*", "/{path:.*}", door.handle)
        # A watch ends with the one who watches, not with its next event.
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, 0).start()
            door.port = runner.addresses[0][1]
            yield door
        finally:
            await runner.cleanup()


@asynccontextmanager
async def proxied(kubeconfig: Path) -> AsyncIterator[Proxy]:
    """A proxy to the API server of an administrator's kubeconfig."""
    configuration = await load_configuration(kubeconfig)
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    context.load_cert_chain(configuration.cert_file, configuration.key_file)
    connector = aiohttp.TCPConnector(limit=0, ssl=context)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=True) as session:
        yield Proxy(configuration.host, session)


# What can go wrong with a request


def refuses(code: int, reason: str, message: str = "by the test", retry_after: str | None = None) -> Fault:
    """The API server is not asked."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason}
    answer = Answer(code, json.dumps({**status, "code": code}).encode(), retry_after)
    return lambda exchange: exchange.answered(answer)


async def resets(exchange: Exchange) -> web.StreamResponse:
    """The connection breaks before anything was sent on."""
    return await exchange.cut()


async def loses_the_answer(exchange: Exchange) -> web.StreamResponse:
    """Done, and nobody hears of it."""
    await exchange.forwarded()
    return await exchange.cut()


async def breaks_off(exchange: Exchange) -> web.StreamResponse:
    """Done, and half of the answer arrives."""
    return await exchange.cut(await exchange.forwarded())


async def truncates(exchange: Exchange) -> web.StreamResponse:
    """Done, and the answer is JSON that ends in the middle."""
    answer = await exchange.forwarded()
    return await exchange.answered(Answer(answer.code, answer.body[: len(answer.body) // 2]))


async def hangs(exchange: Exchange) -> web.StreamResponse:
    """Accepted, and never answered."""
    await asyncio.Event().wait()
    raise AssertionError


# What can go wrong with a watch


def watch(change: Callable[[Lines], Lines]) -> Fault:
    return lambda exchange: exchange.streamed(change)


def error_event(code: int, reason: str) -> bytes:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "by the test", "reason": reason}
    return json.dumps({"type": "ERROR", "object": {**status, "code": code}}).encode()


GONE = error_event(410, "Expired")


def ends_with_error(code: int, reason: str) -> Fault:
    """An ERROR event instead of any other."""

    async def change(lines: Lines) -> Lines:
        yield error_event(code, reason)

    return watch(change)


async def _twice(lines: Lines) -> Lines:
    async for line in lines:
        yield line
        yield line


async def _late(lines: Lines) -> Lines:
    async for line in lines:
        await asyncio.sleep(0.3)
        yield line


async def _in_swapped_pairs(lines: Lines) -> Lines:
    """Each event after its successor, or after a moment without one."""
    waiting = asyncio.ensure_future(anext(lines))
    try:
        while True:
            first = await waiting
            waiting = asyncio.ensure_future(anext(lines))
            done, _ = await asyncio.wait({waiting}, timeout=0.2)
            if done:
                yield waiting.result()
                waiting = asyncio.ensure_future(anext(lines))
            yield first
    except StopAsyncIteration:
        pass
    finally:
        waiting.cancel()


async def _nothing(lines: Lines) -> Lines:
    await asyncio.Event().wait()
    yield b""


repeats_events = watch(_twice)
delays_events = watch(_late)
reorders_events = watch(_in_swapped_pairs)
falls_silent = watch(_nothing)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in content.iter_any():  # not by line: an object is longer than aiohttp's limit
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


class StaleLists:
    """An API server that lags: from `age` on, a list is what it was when last asked before."""

    def __init__(self, resources: Iterable[str]) -> None:
        self._resources = frozenset(resources)
        self._told: dict[str, Answer] = {}
        self.stale = False

    def matches(self, call: Call) -> bool:
        return call.verb == "list" and call.resource in self._resources

    async def fault(self, exchange: Exchange) -> web.StreamResponse:
        resource = exchange.call.resource
        if not self.stale or resource not in self._told:
            self._told[resource] = await exchange.forwarded()
        return await exchange.answered(self._told[resource])


# Reading requests


def _call(request: web.Request, body: bytes) -> Call:
    parts = [unquote(part) for part in request.path.strip("/").split("/")]
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource, name, subresource = (*rest, "", "", "")[:3]
    verb = _verb(request, name)
    if verb == "create" and not name:
        name = str(yaml.safe_load(body)["metadata"].get("name", ""))  # JSON is YAML
    return Call(verb, f"{resource}/{subresource}" if subresource else resource, namespace, name)


def _verb(request: web.Request, name: str) -> str:
    match request.method:
        case "GET" if request.query.get("watch") == "true":
            return "watch"
        case "GET":
            return "get" if name else "list"
        case "POST":
            return "create"
        case "PUT":
            return "update"
        case "PATCH":
            return "apply" if "apply-patch" in request.content_type else "patch"
        case _:
            return "delete"


def _uid(body: bytes) -> str:
    answer = json.loads(body)
    told: str = (answer.get("metadata") or {}).get("uid") or (answer.get("details") or {}).get("uid") or ""
    return told
