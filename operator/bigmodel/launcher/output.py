"""What ranks write: copied to the container's own output as it comes, and the end of it kept as evidence.

Each rank's stdout and stderr are one named pipe, so the order of its lines is kept, and whatever way it dies, what it
wrote is here. A thread copies, since writing waits: a container runtime that takes nothing holds up the ranks, as it
would if they wrote there themselves, and never the launcher's loop. Nothing is queued: the pipes are the only buffers.
"""

import contextlib
import os
import re
import select
import threading
from dataclasses import dataclass
from pathlib import Path

from bigmodel.launcher.message import LOG_BYTES, LOG_LINES, tail

CHUNK_BYTES = 65536  # as much as a pipe holds
KEPT_BYTES = 16384  # of each rank: its last lines, and the progress bars between them
FLUSH_SECONDS = 2.0


@dataclass
class _Stream:
    pipe: int
    kept: bytes = b""
    uncopied: bytes = b""  # read by the loop, which must not wait, for the thread to write
    open: bool = True

    def read(self) -> bytes:
        """What is there; closes at the end. Only under the lock."""
        if not self.open:
            return b""
        try:
            data = os.read(self.pipe, CHUNK_BYTES)
        except BlockingIOError:
            return b""
        if not data:  # every writer is gone
            os.close(self.pipe)
            self.open = False
        self.kept = (self.kept + data)[-KEPT_BYTES:]
        return data


class Output:
    """`sink` is the container's output. All methods are for the loop's thread."""

    def __init__(self, sink: int = 1) -> None:
        self._sink = sink
        self._streams: dict[Path, _Stream] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)
        self._thread = threading.Thread(target=self._copy, name="output", daemon=True)
        self._thread.start()

    def open(self, path: Path) -> None:
        """Make the pipe that a rank will open for writing, and copy what comes out of it."""
        os.mkfifo(path, 0o600)
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with self._lock:
            self._streams = {p: s for p, s in self._streams.items() if s.open or s.uncopied}
            self._streams[path] = _Stream(pipe)
        self._wake()

    def last_lines(self, path: Path, limit: int = LOG_BYTES) -> str | None:
        """The end of all that was written by now; None if that is nothing."""
        with self._lock:
            stream = self._streams.get(path)
            if stream is None:
                return None
            for _ in range(4):  # one that still writes must not keep us here
                if not (data := stream.read()):
                    break
                stream.uncopied += data
            kept = stream.kept
        self._wake()
        return readable(kept, limit)

    def close(self) -> None:
        """Copy what is there, if anybody takes it."""
        self._closing = True
        self._wake()
        self._thread.join(FLUSH_SECONDS)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has enough reasons to wake
            os.write(self._wake_writer, b"\0")

    def _copy(self) -> None:
        while True:
            closing = self._closing
            with self._lock:
                streams = [stream for stream in self._streams.values() if stream.open or stream.uncopied]
            poll = select.poll()
            poll.register(self._wake_reader, select.POLLIN)
            for stream in streams:
                if stream.open:
                    poll.register(stream.pipe, select.POLLIN)
            ready = {pipe for pipe, _ in poll.poll(0 if closing else None)}
            if self._wake_reader in ready:
                os.read(self._wake_reader, CHUNK_BYTES)
            for stream in streams:
                with self._lock:
                    data, stream.uncopied = stream.uncopied, b""
                    if stream.open and stream.pipe in ready:
                        data += stream.read()
                self._write(data)
            if closing:
                return

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._sink, view) :]
            except BlockingIOError:
                select.select([], [self._sink], [])
            except OSError:
                return  # nobody reads it any more; ranks write on


_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")


def readable(written: bytes, limit: int) -> str | None:
    """The last LOG_LINES lines of it, of each what a terminal would show at its end."""
    text = _ESCAPES.sub("", written.decode(errors="replace"))
    lines = (line.rstrip().rpartition("\r")[2] for line in text.split("\n"))
    last = "\n".join([line for line in lines if line][-LOG_LINES:])
    return tail(last, limit) if last else None
