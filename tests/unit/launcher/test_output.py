"""What ranks write, between their pipes, the container's output and the evidence."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bigmodel.launcher.message import LOG_BYTES
from bigmodel.launcher.output import KEPT_BYTES, Output, readable


class Trial:
    """An Output whose sink is a pipe that the test reads, or not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reader, sink = os.pipe()
        self.output = Output(sink)
        self.sink = sink

    def a_rank(self, name: str = "r0") -> int:
        path = self.directory / name
        self.output.open(path)
        return os.open(path, os.O_WRONLY)

    def last_lines(self, name: str = "r0") -> str | None:
        return self.output.last_lines(self.directory / name)

    def reading(self) -> Callable[[], bytes]:
        """Begins to take what comes out; the result waits for its end."""
        out: list[bytes] = []

        def read() -> None:
            with os.fdopen(self.reader, "rb") as file:
                out.append(file.read())

        thread = threading.Thread(target=read)
        thread.start()

        def all_of_it() -> bytes:
            thread.join()
            return out[0]

        return all_of_it

    def copied(self) -> bytes:
        """All that comes out until everything is closed."""
        self.output.close()
        os.close(self.sink)
        with os.fdopen(self.reader, "rb") as file:
            return file.read()


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def test_everything_is_copied_unchanged_and_in_order(trial: Trial) -> None:
    rank = trial.a_rank()
    lines = b"".join(b"line %d \xff\r\x1b[31m\n" % number for number in range(500)) + b"no end"
    os.write(rank, lines)
    os.close(rank)
    assert trial.last_lines() == "\n".join([f"line {number} \ufffd" for number in range(481, 500)] + ["no end"])
    assert trial.copied() == lines


def test_what_a_rank_wrote_last_is_known_the_moment_it_ends(trial: Trial) -> None:
    """Whether the thread that copies came to it or not, and though the output takes nothing."""
    rank = trial.a_rank()
    wrote = b""
    for number in range(100):
        part = b"%d %s\n" % (number, b"x" * 997)
        wrote += part
        os.write(rank, part)
        assert trial.last_lines().splitlines()[-1].startswith(f"{number} x"[:8])
    os.close(rank)
    out = trial.reading()
    trial.output.close()
    os.close(trial.sink)
    assert out() == wrote


def test_ranks_write_on_when_nobody_reads_the_containers_output(trial: Trial) -> None:
    os.close(trial.reader)
    rank = trial.a_rank()
    for _ in range(100):
        os.write(rank, b"x" * 60_000 + b"\n")
    os.close(rank)
    assert trial.last_lines() == "x" * LOG_BYTES
    trial.output.close()


def test_two_generations_do_not_mix(trial: Trial) -> None:
    for name in ("g1-r0", "g2-r0"):
        rank = trial.a_rank(name)
        os.write(rank, f"{name}\n".encode())
        os.close(rank)
        assert trial.last_lines(name) == name
    assert trial.last_lines("g3-r0") is None
    assert trial.copied() == b"g1-r0\ng2-r0\n"


def test_only_the_end_is_kept(trial: Trial) -> None:
    rank = trial.a_rank()
    out = trial.reading()
    for _ in range(64):
        os.write(rank, b"z" * (1 << 16))
    trial.last_lines()
    assert len(trial.output._streams[trial.directory / "r0"].kept) == KEPT_BYTES
    os.close(rank)
    trial.output.close()
    os.close(trial.sink)
    assert len(out()) == 64 << 16


READABLE = {
    "nothing": (b"", None),
    "blank lines": (b"\n\n  \n", None),
    "the last twenty": (b"".join(b"%d\n" % n for n in range(30)), "\n".join(map(str, range(10, 30)))),
    "a progress bar shows its last state": (b"epoch 1\n 10%\r 50%\r100%\ndone\n", "epoch 1\n100%\ndone"),
    "windows line ends": (b"a\r\nb\r\n", "a\nb"),
    "colours are no text": (b"\x1b[1;31merror\x1b[0m\n", "error"),
    "the end of a long line": (b"x" * 5000 + b"end\n", "x" * (LOG_BYTES - 3) + "end"),
    "half a character": (b"\xe2\x82\xac \xe2\x82", "\u20ac \ufffd"),
}


@pytest.mark.parametrize(("written", "want"), READABLE.values(), ids=READABLE)
def test_readable(written: bytes, want: str | None) -> None:
    assert readable(written, LOG_BYTES) == want
