"""The verifier's three answers on port 8271: /v1/verdict, /readyz, /livez. GET only, one request a connection."""

import asyncio
from http import HTTPStatus
from typing import Protocol

from bigmodel.api.serving import PATH_LIVE, PATH_READY, PATH_VERDICT
from bigmodel.api.verdict import Question, Verdict

REQUEST_BYTES = 8 << 10
REQUEST_SECONDS = 5.0


class Subject(Protocol):
    """What the answers are about."""

    restart_wanted: bool

    @property
    def verified(self) -> bool: ...

    def verdict(self, question: Question = ...) -> Verdict: ...


def answer(subject: Subject, method: str, path: str) -> tuple[HTTPStatus, str, str]:
    """Status, content type and body."""
    path, _, query = path.partition("?")
    try:
        verdict = subject.verdict(Question.parse(query))
    except ValueError as error:
        return HTTPStatus.BAD_REQUEST, "text/plain", f"{error}\n"
    text = f"{verdict.stage}: {verdict.message}\n"
    if method != "GET":
        return HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", "GET only\n"
    match path:
        case p if p == PATH_VERDICT:
            return HTTPStatus.OK, "application/json", verdict.model_dump_json(by_alias=True, exclude_none=True)
        case p if p == PATH_READY:
            return HTTPStatus.OK if subject.verified else HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", text
        case p if p == PATH_LIVE:
            return HTTPStatus.SERVICE_UNAVAILABLE if subject.restart_wanted else HTTPStatus.OK, "text/plain", text
    return HTTPStatus.NOT_FOUND, "text/plain", f"only {PATH_VERDICT}, {PATH_READY}, {PATH_LIVE}\n"


async def serve(subject: Subject, host: str | None, port: int) -> asyncio.Server:
    """Listening when it returns. `host` None: on all addresses."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
                status, kind, body = answer(subject, method, path)
                payload = body.encode()
                lines = [
                    f"HTTP/1.1 {status.value} {status.phrase}",
                    f"content-type: {kind}; charset=utf-8",
                    f"content-length: {len(payload)}",
                    "connection: close",
                ]
                writer.write("\r\n".join([*lines, "", ""]).encode() + payload)
                await writer.drain()
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError):
            pass  # a client that is slow, gone or speaks something else
        finally:
            writer.close()

    return await asyncio.start_server(handle, host, port, limit=REQUEST_BYTES)
