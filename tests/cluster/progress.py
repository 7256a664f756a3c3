"""One line on standard error for each thing that takes long, with the seconds it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what begins, and how long it took once it is done (nothing when it failed: the error says more)."""
    say(what)
    begin = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - begin:.1f} s")


def say(what: str) -> None:
    print(f"  cluster | {what}", file=sys.stderr, flush=True)
