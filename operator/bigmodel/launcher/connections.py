"""TCP connections between launchers: JSON lines in, JSON lines out, nothing decided."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from bigmodel.launcher.message import LINE_BYTES, BadMessage, Message, decode, encode

CONNECT_SECONDS = 1.0
FIRST_LINE_SECONDS = 5.0

log = logging.getLogger(__name__)


class Link:
    """One connection. Writing never waits: the other side's lease bounds what piles up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        peer = writer.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if peer else "?"

    def send(self, message: Message) -> None:
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    def close(self) -> None:
        """After what was sent has gone out."""
        with contextlib.suppress(RuntimeError):  # the loop may be gone
            self._writer.close()

    async def closed(self) -> None:
        """What was sent is out, or never will be."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def first(self) -> Message | None:
        """The first message; None if it is none, or does not come soon."""
        try:
            async with asyncio.timeout(FIRST_LINE_SECONDS):
                async for message in self.messages():
                    return message
        except TimeoutError:
            pass
        return None

    async def messages(self) -> AsyncIterator[Message]:
        """Until the other side hangs up or says something that is no message of ours."""
        while True:
            try:
                line = await self._reader.readline()
            except (OSError, ValueError):  # ValueError: a line longer than the reader's limit
                return
            if not line.endswith(b"\n"):
                return
            try:
                yield decode(line)
            except BadMessage as error:
                log.warning("%s said something that is no message: %s", self.peer, error)
                return


async def connect(address: str) -> Link | None:
    """None if nobody answers there within CONNECT_SECONDS."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), limit=LINE_BYTES)
    except (OSError, TimeoutError):
        return None
    return Link(reader, writer)
