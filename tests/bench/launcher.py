"""How long does a gang stand still after a rank was killed? Real launchers and torch ranks over gloo on loopback.

    python -m tests.bench.launcher [--trials 200] [--nodes 2] [--json FILE]

One trial: SIGKILL one rank, each in turn, at a random moment of training; the time until every rank of the next
generation has made its first step. A trial that takes longer than --bound seconds counts as a hang and ends the bench.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.unit.launcher.gang import LoopbackGang, a_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--bound", type=float, default=30.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = measure(Path(directory), arguments.trials, arguments.nodes, arguments.bound, arguments.seed)
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(1 if result["hangs"] else 0)


def measure(directory: Path, trials: int, nodes: int, bound_seconds: float, seed: int) -> dict[str, object]:
    run = a_run(nodes, "torch_steps.py", framework="pytorch", budgets={"max_restarts": trials})
    gang = LoopbackGang(directory, run, STEPS="1000000", PAUSE="0.01")
    chance = random.Random(seed)
    seconds: list[float] = []
    hangs = 0
    try:
        began = time.monotonic()
        pods = gang.start()
        gang.wait_for_step(1, generation=1, timeout=120)
        first_step_seconds = time.monotonic() - began
        for trial in range(trials):
            time.sleep(chance.uniform(0.05, 0.3))
            killed_at = gang.kill_rank(trial % nodes)
            try:
                seconds.append(gang.wait_for_step(1, generation=trial + 2, timeout=bound_seconds) - killed_at)
            except AssertionError as error:
                hangs += 1
                print(error, file=sys.stderr)
                break
            gang.forget_diary()
        memory = {f"index {pod.index}": pod.resident_mib for pod in pods}
    finally:
        gang.close()
    ordered = sorted(seconds)
    return {
        "bench": "launcher: rank killed → next step of all ranks",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} processors",
        "nodes": nodes,
        "trials": len(seconds),
        "seed": seed,
        "hangs": hangs,
        "median_seconds": round(statistics.median(ordered), 3) if ordered else None,
        "p99_seconds": round(ordered[max(0, -(-len(ordered) * 99 // 100) - 1)], 3) if ordered else None,
        "worst_seconds": round(ordered[-1], 3) if ordered else None,
        "first_step_seconds": round(first_step_seconds, 2),
        "launcher_resident_mib": memory,
    }


if __name__ == "__main__":
    main()
