"""Locks between processes: what one command makes, a second one waits for, and says so."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.progress import step


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock of this file; the kernel frees it of a killed process. `busy`: what somebody who holds it does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"waiting: another command {busy}"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
