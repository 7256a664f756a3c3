"""How long does a gang stand still after a fault? Real launchers and torch ranks over gloo on loopback.

    python -m tests.bench.launcher [--rank-kills 50] [--pod-losses 20] [--hangs 10] [--nodes 2] [--json FILE]

* rank killed: SIGKILL of one rank, each in turn, to the first step of all ranks of the next generation.
* index N lost: SIGKILL of its launcher, whose successor starts at once, to the same. Import of torch included.
* rank stopped: SIGSTOP of one rank to the moment when the coordinator acts, beyond the limit of a step.
* output: what a rank's log costs on its way through the launcher.

Faults come at random moments of training. A trial that takes longer than --bound seconds counts as a hang and ends its
case.
"""

import argparse
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.launcher.gang import LoopbackGang, Pod, a_run

HANG_SECONDS = 2


@dataclass
class Case:
    """`trial` brings one fault about in a training gang and gives back how long it took, in seconds."""

    name: str
    trials: int
    trial: Callable[["Bench", int], float]
    seconds: list[float] = field(default_factory=list)
    hangs: int = 0

    def row(self) -> dict[str, object]:
        ordered = sorted(self.seconds)
        if not ordered:
            return {"fault": self.name, "trials": 0, "hangs": self.hangs}
        return {
            "fault": self.name,
            "trials": len(ordered),
            "hangs": self.hangs,
            "median": round(statistics.median(ordered), 3),
            "p99": round(ordered[max(0, -(-len(ordered) * 99 // 100) - 1)], 3),
            "worst": round(ordered[-1], 3),
        }


class Bench:
    """One gang that trains until it is closed."""

    def __init__(self, directory: Path, nodes: int, bound_seconds: float, seed: int, hang_seconds: int = 600) -> None:
        budgets = {"max_restarts": 100_000, "max_hang_restarts": 100_000, "hang_timeout_seconds": hang_seconds}
        run = a_run(nodes, "torch_steps.py", framework="pytorch", budgets=budgets)
        self.gang = LoopbackGang(directory, run, STEPS="1000000000", PAUSE="0.01")
        self.bound_seconds = bound_seconds
        self.chance = random.Random(seed)
        began = time.monotonic()
        self.pods: list[Pod] = self.gang.start()
        self.gang.wait_for_step(1, generation=1, timeout=120)
        self.first_step_seconds = time.monotonic() - began

    @property
    def generation(self) -> int:
        return int(max(entry["generation"] for entry in self.gang.diary("start")))

    def at_a_random_moment(self) -> None:
        self.gang.forget_diary()
        time.sleep(self.chance.uniform(0.1, 0.4))

    def next_step_after(self, generation: int) -> float:
        return self.gang.wait_for_step(1, generation + 1, timeout=self.bound_seconds)

    def rank_killed(self, trial: int) -> float:
        generation = self.generation
        killed_at = self.gang.kill_rank(trial % self.gang.run.nodes)
        return self.next_step_after(generation) - killed_at

    def pod_lost(self, index: int) -> float:
        generation, old = self.generation, self.pods[index]
        lost_at = time.time()
        old.kill()
        (self.pods[index],) = self.gang.start(index, incarnation=int(old.ip.split(".")[2]) + 1)
        return self.next_step_after(generation) - lost_at

    def rank_stopped(self, trial: int) -> float:
        generation = self.generation
        stopped_at = self.gang.kill_rank(trial % self.gang.run.nodes, signal.SIGSTOP)
        self.next_step_after(generation)
        return float(self.pods[0].progress.incidents[-1].at) - stopped_at - HANG_SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank-kills", type=int, default=50)
    parser.add_argument("--pod-losses", type=int, default=20)
    parser.add_argument("--hangs", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--bound", type=float, default=60.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    last = arguments.nodes - 1
    cases = [
        Case("rank killed → next step", arguments.rank_kills, Bench.rank_killed),
        Case(f"index {last} lost → next step", arguments.pod_losses, lambda bench, _: bench.pod_lost(last)),
        Case("index 0 lost → next step", arguments.pod_losses, lambda bench, _: bench.pod_lost(0)),
        Case(f"rank stopped → acting, beyond the limit of {HANG_SECONDS} s", arguments.hangs, Bench.rank_stopped),
    ]
    load = os.getloadavg()[0]
    first_step_seconds: list[float] = []
    for case in cases:
        with tempfile.TemporaryDirectory() as directory:
            hang_seconds = HANG_SECONDS if case.trial is Bench.rank_stopped else 600
            first_step_seconds.append(
                measure(case, Path(directory), arguments.nodes, arguments.bound, arguments.seed, hang_seconds)
            )
    result = {
        "bench": "launcher",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} processors, load {load:.1f} at the start",
        "nodes": arguments.nodes,
        "seed": arguments.seed,
        "first_step_seconds": round(statistics.median(first_step_seconds), 2),
        "output_mib_per_second": output_speed(),
        "cases": [case.row() for case in cases],
    }
    print(json.dumps(result, indent=2))
    print(table(cases))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(1 if any(case.hangs for case in cases) else 0)


def measure(case: Case, directory: Path, nodes: int, bound_seconds: float, seed: int, hang_seconds: int) -> float:
    """Seconds from nothing to the first step."""
    bench = Bench(directory, nodes, bound_seconds, seed, hang_seconds)
    try:
        for trial in range(case.trials):
            bench.at_a_random_moment()
            try:
                case.seconds.append(case.trial(bench, trial))
            except AssertionError as error:
                case.hangs += 1
                print(error, file=sys.stderr)
                break
    finally:
        bench.gang.close()
    return bench.first_step_seconds


def output_speed(mebibytes: int = 256) -> dict[str, float]:
    """Of a rank that does nothing but write, through its launcher; and straight into a file, to compare."""
    with tempfile.TemporaryDirectory() as directory:
        gang = LoopbackGang(Path(directory), a_run(1), STEPS="0", FLOOD_MIB=str(mebibytes))
        (pod,) = gang.start()
        pod.exit_code(300)
        (flood,) = gang.diary("flood")
        through = flood["seconds"]
        line = b"y" * ((1 << 20) - 1) + b"\n"
        began = time.monotonic()
        with (Path(directory) / "straight").open("wb", buffering=0) as file:
            for _ in range(mebibytes):
                file.write(line)
        straight = time.monotonic() - began
    return {"through the launcher": round(mebibytes / through), "straight": round(mebibytes / straight)}


def table(cases: list[Case]) -> str:
    rows = ["| Fault | trials | hangs | median | p99 | worst |", "|---|---|---|---|---|---|"]
    for case in cases:
        row = case.row()
        figures = (f"{row[name]} s" if name in row else "–" for name in ("median", "p99", "worst"))
        rows.append(f"| {row['fault']} | {row['trials']} | {row['hangs']} | {' | '.join(figures)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
