"""`python -m tests.demo install | run`."""

from __future__ import annotations

import sys

from tests.cluster.kubectl import CommandFailed
from tests.demo.install import AnotherVersionRuns, install
from tests.demo.run import DemoFailed, run

VERBS = {"install": install, "run": run}


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in VERBS:
        raise SystemExit(f"usage: python -m tests.demo {'|'.join(VERBS)}")
    try:
        VERBS[sys.argv[1]]()
    except (AnotherVersionRuns, CommandFailed, DemoFailed) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
