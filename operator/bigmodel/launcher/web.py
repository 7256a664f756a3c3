"""A small HTTP/1.1 responder: one request per connection, headers of at most 8 KiB, bodies ignored.

Written by hand so that PID 1 of every training pod stays small; it serves five fixed answers to the controller,
Prometheus and kubelet.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

REQUEST_SECONDS = 5.0
REQUEST_BYTES = 8192


@dataclass(frozen=True)
class Answer:
    status: HTTPStatus
    body: str
    content_type: str = "text/plain; charset=utf-8"


Handler = Callable[[], Awaitable[Answer]]
Routes = dict[tuple[str, str], Handler]  # (method, path) → handler


async def serve(routes: Routes, host: str, port: int) -> asyncio.Server:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(_bytes(await _answer(routes, request)))
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    return await asyncio.start_server(connected, host or None, port, limit=REQUEST_BYTES)


async def _answer(routes: Routes, request: bytes) -> Answer:
    words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return Answer(HTTPStatus.BAD_REQUEST, "this is an HTTP/1.1 server\n")
    method, path = words[0], words[1].partition("?")[0]
    if handler := routes.get((method, path)):
        return await handler()
    if allowed := sorted(m for m, p in routes if p == path):
        return Answer(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {', '.join(allowed)}\n")
    return Answer(HTTPStatus.NOT_FOUND, f"there is {', '.join(sorted(p for _, p in routes))}\n")


def _bytes(answer: Answer) -> bytes:
    body = answer.body.encode()
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
