"""What a person sees while the demo runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

BOLD, GREEN, RESET = ("\033[1m", "\033[32m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what begins and, once it is done, how many seconds it took."""
    print(f"{BOLD}==> {what}{RESET}", flush=True)
    begin = time.monotonic()
    yield
    print(f"    {GREEN}done{RESET} in {time.monotonic() - begin:.1f} s", flush=True)
