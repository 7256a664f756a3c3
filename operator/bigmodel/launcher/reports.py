"""The datagram socket on which this pod's ranks report. What they write is untrusted: bounded, validated, dropped if it
is not a report."""

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from bigmodel.api.progress import RankReport

DATAGRAM_BYTES = 65536
BUFFER_BYTES = 1 << 20

log = logging.getLogger(__name__)


class Reports:
    """`on_report` is called on the loop, once for each valid datagram, in order."""

    def __init__(self, path: Path, on_report: Callable[[RankReport], None]) -> None:
        self.path = path
        self._on_report = on_report
        self._complained = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._socket.bind(str(path))
        asyncio.get_running_loop().add_reader(self._socket, self.drain)

    def drain(self) -> None:
        """Read what is there. Called before a rank's end is looked at, too: its last report must not come after it."""
        while True:
            try:
                datagram = self._socket.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                return
            try:
                report = RankReport.model_validate_json(datagram)
            except ValidationError as error:
                if not self._complained:  # once: a rank may send it at every step
                    self._complained = True
                    log.warning("a rank sent no valid report (further ones are dropped silently): %s", error)
                continue
            self._on_report(report)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
