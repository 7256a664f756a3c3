"""How fast do jobs become pods, and what does it cost? The real controller, scheduler and API server, simulated nodes.

    python -m tests.bench.apply [--nodes 50] [--alone 20] [--at-once 100 300] [--json FILE]

A control plane of its own on loopback, nodes and kubelets by kwok, the controller as the process it is. Jobs of four
pods are created: some one by one, each when the pods of the one before run, then many at once. For each round: seconds
from a job's creation until all its pods exist, pods per second over all of them, and what a job cost the controller in
writes and CPU until it had nothing more to do.

No launcher runs in a simulated pod, so the jobs stay as they are when their pods run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel.api import names
from bigmodel.controller.decision import BIG_MODEL_JOB, NODE, POD, Manifest
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client, load_configuration
from tests.api.conftest import CRDS
from tests.api.controller import ControllerProcess
from tests.api.kubectl import Kubectl
from tests.cluster import build
from tests.cluster.api_server import api_server, bound_to_us
from tests.cluster.control_plane import FEATURES

PODS = 4  # of a job
CREATORS = 16  # jobs created at the same moment, when all are wanted at once
# The addresses that simulated pods get: on loopback, where the controller finds nobody to ask for progress.
POD_NETWORK = "127.90.0.1/16"
WRITES = ("create", "apply", "patch", "delete")  # the lease is updated, and no other object
QUIET_SECONDS = 5.0  # without a write of the controller: it has nothing more to do
BOUND_SECONDS = 300.0  # of a whole round
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Arrivals:
    """When each job had all its pods, and when all of them ran. Monotonic seconds, by name."""

    existed: dict[str, float] = field(default_factory=dict)
    ran: dict[str, float] = field(default_factory=dict)
    _pods: dict[str, set[str]] = field(default_factory=dict)
    _running: dict[str, set[str]] = field(default_factory=dict)

    def saw(self, pod: Manifest, now: float) -> None:
        job = pod["metadata"].get("labels", {}).get(names.LABEL_JOB)
        if job is None:
            return
        pods, running = self._pods.setdefault(job, set()), self._running.setdefault(job, set())
        pods.add(pod["metadata"]["name"])
        if pod.get("status", {}).get("phase") == "Running":
            running.add(pod["metadata"]["name"])
        if len(pods) == PODS:
            self.existed.setdefault(job, now)
        if len(running) == PODS:
            self.ran.setdefault(job, now)


@dataclass(frozen=True)
class Spent:
    """What the controller used so far."""

    cpu_seconds: float
    writes: float

    @classmethod
    def of(cls, controller: ControllerProcess) -> Spent:
        fields = Path(f"/proc/{controller.process.pid}/stat").read_text().rpartition(")")[2].split()
        writes = sum(
            controller.metric(f'bigmodel_api_requests_total{{code="{c}",verb="{v}"}}')
            for v in WRITES
            for c in (200, 201)
        )
        return cls((int(fields[11]) + int(fields[12])) / TICK, writes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--alone", type=int, default=20)
    parser.add_argument("--at-once", type=int, nargs="*", default=[100, 300])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kubeconfig = stack.enter_context(api_server())
        for command in _beside(kubeconfig):
            stack.enter_context(bound_to_us(command, folder / f"{Path(command[0]).name}.log"))
        kubectl = Kubectl(build.cluster_programs() / "kubectl", kubeconfig)
        kubectl("apply", "--server-side", "-f", str(CRDS))
        kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        controller = ControllerProcess(folder, kubeconfig, "controller")
        stack.callback(controller.kill)
        rounds = asyncio.run(measure(kubeconfig, controller, arguments.nodes, arguments.alone, arguments.at_once))
    print(_table(rounds))
    result = {
        "nodes": arguments.nodes,
        "pods_per_job": PODS,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "rounds": rounds,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def _beside(kubeconfig: Path) -> list[list[str]]:
    """Scheduler and simulated kubelets; nobody collects garbage here, nothing is deleted."""
    programs, certificates = build.cluster_programs(), kubeconfig.parent
    as_scheduler = f"{certificates}/kube-scheduler.kubeconfig"
    return [
        [
            str(programs / "kube-scheduler"), f"--kubeconfig={as_scheduler}",
            f"--authentication-kubeconfig={as_scheduler}",
            f"--authorization-kubeconfig={as_scheduler}", "--bind-address=127.0.0.1", "--secure-port=0",
            "--leader-elect=false", *FEATURES,
        ],
        [
            str(build.kwok()), f"--kubeconfig={kubeconfig}", "--manage-all-nodes=true", f"--cidr={POD_NETWORK}",
            "--node-ip=127.90.0.1", f"--config={Path(__file__).with_name('simulated-kubelet.yaml')}",
        ],
    ]  # fmt: skip


async def measure(
    kubeconfig: Path, controller: ControllerProcess, nodes: int, alone: int, at_once: list[int]
) -> list[dict[str, Any]]:
    client = Client(await load_configuration(kubeconfig))
    try:
        for number in range(nodes):
            node = await client.create(NODE, _node(f"node-{number}"))
            # A new node is tainted until a controller, which is not here, has seen it Ready.
            await client.merge_patch(NODE, None, node["metadata"]["name"], {"spec": {"taints": None}})
        await _until(lambda: controller.leads(), "the controller leads")
        async with _watched(client) as arrivals:
            await _one(client, arrivals, "warm-up")
            rounds = [await _round("one by one", client, controller, arrivals, "alone", alone, creators=1)]
            for count in at_once:
                label = f"{count} at once"
                rounds.append(await _round(label, client, controller, arrivals, f"of-{count}", count, CREATORS))
        return rounds
    finally:
        await client.close()


async def _round(
    label: str,
    client: Client,
    controller: ControllerProcess,
    arrivals: Arrivals,
    prefix: str,
    count: int,
    creators: int,
) -> dict[str, Any]:
    await _quiet(controller)
    before, began = Spent.of(controller), time.monotonic()
    created: dict[str, float] = {}
    wanted = iter(range(count))

    async def create() -> None:
        for number in wanted:
            name = f"{prefix}-{number}"
            created[name] = time.monotonic()
            await client.create(BIG_MODEL_JOB, _job(name))
            if creators == 1:
                await _until(lambda name=name: name in arrivals.ran, f"{name} runs")

    await asyncio.gather(*(create() for _ in range(creators)))
    await _until(lambda: created.keys() <= arrivals.existed.keys(), "all pods exist")
    last = max(arrivals.existed[name] for name in created)
    await _until(lambda: created.keys() <= arrivals.ran.keys(), "all pods run")
    await _quiet(controller)
    after = Spent.of(controller)
    seconds = sorted(arrivals.existed[name] - at for name, at in created.items())
    print(f"    {label}: done", file=sys.stderr)
    return {
        "round": label,
        "jobs": count,
        "p50_seconds": round(statistics.median(seconds), 3),
        "p95_seconds": round(seconds[int(0.95 * (len(seconds) - 1))], 3),
        "max_seconds": round(seconds[-1], 3),
        "pods_per_second": round(count * PODS / (last - began), 1),
        "all_run_seconds": round(max(arrivals.ran[name] for name in created) - began, 1),
        "writes_per_job": round((after.writes - before.writes) / count, 1),
        "cpu_seconds_per_job": round((after.cpu_seconds - before.cpu_seconds) / count, 4),
        "rss_mib": _rss_mib(controller.process.pid),
    }


async def _one(client: Client, arrivals: Arrivals, name: str) -> None:
    await client.create(BIG_MODEL_JOB, _job(name))
    await _until(lambda: name in arrivals.ran, f"{name} runs")


@asynccontextmanager
async def _watched(client: Client) -> AsyncIterator[Arrivals]:
    arrivals = Arrivals()

    async def watch() -> None:
        version = "0"
        while True:
            with suppress(errors.Unavailable):  # it fell silent: go on from where we were
                async for event in client.watch(POD, None, version, server_seconds=600, silence_seconds=120):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        arrivals.saw(event["object"], time.monotonic())

    watching = asyncio.create_task(watch())
    yield arrivals
    watching.cancel()
    await asyncio.wait({watching})


async def _until(holds: Any, what: str) -> None:
    deadline = time.monotonic() + BOUND_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"not within {BOUND_SECONDS:.0f} s: {what}")
        await asyncio.sleep(0.01)


async def _quiet(controller: ControllerProcess) -> None:
    """Until it has written nothing for QUIET_SECONDS."""
    writes, since = -1.0, time.monotonic()
    while time.monotonic() - since < QUIET_SECONDS:
        now = (await asyncio.to_thread(Spent.of, controller)).writes
        if now != writes:
            writes, since = now, time.monotonic()
        await asyncio.sleep(0.5)


def _rss_mib(pid: int) -> int:
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def _job(name: str) -> Manifest:
    spec = {"recipe": {"name": "mlp"}, "nodes": PODS}
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": names.API_VERSION, "kind": "BigModelJob", "metadata": metadata, "spec": spec}


def _node(name: str) -> Manifest:
    room = {"cpu": "64", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": "8"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"capacity": room, "allocatable": room},
    }


def _table(rounds: list[dict[str, Any]]) -> str:
    titles = ("round", "p50 s", "p95 s", "max s", "pods/s", "all run s", "writes/job", "CPU s/job", "RSS MiB")
    rows = [[str(value) for name, value in one.items() if name != "jobs"] for one in rounds]
    widths = [max(len(row[column]) for row in [list(titles), *rows]) for column in range(len(titles))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [titles, *rows]
    )


if __name__ == "__main__":
    main()
