"""What does a fault cost a job on real nodes? Seconds from the fault to the next step, and steps made twice.

    python -m tests.bench.faults [--trials 20] [--case NAME ...] [--json FILE]

On the local cluster (`make up`), two pods on two nodes, a small model with a checkpoint every 500 steps. The step comes
from the launchers themselves, asked at their pods' addresses, not from the job's status, which is seconds behind.
`node-lost` and `link-down` (not part of the default) take a node of the cluster away for a minute and a half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import cluster, network, nodes
from tests.cluster.client import Client
from tests.cluster.control_plane import SERVER
from tests.cluster.kubectl import get, kubectl
from tests.cluster.layout import CERTIFICATES
from tests.demo.install import STORE_SECRET, SYSTEM_NAMESPACE
from tests.e2e.user import Namespace, a_job, signals_its_rank

RECIPE = {"name": "mlp", "parameters": {"hidden": [16]}, "steps": 10_000_000}
BUDGETS = {"maxRestarts": 1000, "maxInfrastructureRestarts": 10_000, "maxHangRestarts": 1000}
LOSSES = 3  # of one job: after these, its controller pauses before the next successor
BOUND_SECONDS = 240.0


class Gang:
    """One running job, as its launchers tell of it."""

    def __init__(self, namespace: Namespace, client: Client) -> None:
        self.namespace, self._client = namespace, client

    def pod(self, index: int) -> dict[str, Any] | None:
        selector = f"bigmodel.io%2Fjob%3Dmlp%2Cbigmodel.io%2Findex%3D{index}%2Cbigmodel.io%2Factive%3Dtrue"
        found = self._client.request("GET", f"/api/v1/namespaces/{self.namespace.name}/pods?labelSelector={selector}")
        living = [pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]]
        return living[0] if living else None

    def progress(self) -> dict[str, Any] | None:
        """What the coordinator says; None while there is none to ask."""
        address = ((self.pod(0) or {}).get("status") or {}).get("podIP")
        if not address:
            return None
        with (
            suppress(OSError, ValueError),
            urllib.request.urlopen(f"http://{address}:8270/v1/progress", timeout=1) as a,
        ):
            found: dict[str, Any] = json.load(a)
            return found
        return None

    def exec(self, index: int, program: str) -> None:
        pod = self.pod(index)
        assert pod is not None
        self.namespace.kubectl("exec", pod["metadata"]["name"], "--", "python3", "-c", program)

    def trains(self, since: float = 0.0) -> dict[str, Any]:
        """The first progress with a step of a generation that began after `since`, seconds since 1970."""

        def stepped() -> dict[str, Any] | None:
            told = self.progress()
            if told is None or told["phase"] != "Training":
                return None
            began = max(
                [
                    told.get("firstStepAt", 0.0),
                    *(i["at"] + i["recoverySeconds"] for i in told.get("incidents", []) if "recoverySeconds" in i),
                ]
            )
            return {**told, "began": began} if began >= since else None

        return _until("a step", stepped)


def _until(what: str, holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + BOUND_SECONDS
    while not (answer := holds()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {BOUND_SECONDS:.0f} s: {what}")
        time.sleep(0.02)
    return answer


def _after(gang: Gang, fault: Callable[[], None]) -> dict[str, float]:
    """From the fault to the next step of the new generation."""
    before = gang.trains()
    at = time.time()
    fault()
    told = gang.trains(since=at)
    resumed = [i["resumedFromStep"] for i in told.get("incidents", []) if i["at"] >= at - 1 and "resumedFromStep" in i]
    lost = max(0, before["step"] - min(resumed)) if resumed else 0
    return {"seconds": told["began"] - at, "steps_lost": lost, "steps_per_second": before["stepsPerSecond"]}


def rank_killed(gang: Gang) -> dict[str, float]:
    """Told by the launchers, since an exec takes longer than the recovery. Beyond the step of the last death: three at
    one step are a crash loop.
    """
    died_at = max((i.get("step", 0) for i in gang.trains().get("incidents", [])), default=0)
    _until(f"a step beyond {died_at}", lambda: gang.trains()["step"] > died_at)
    at = time.time()
    gang.exec(1, signals_its_rank("SIGKILL"))
    incident = gang.trains(since=at)["incidents"][-1]
    return {"seconds": incident["recoverySeconds"], "steps_lost": incident.get("step", 0) - incident["resumedFromStep"]}


def pod_deleted(gang: Gang, index: int = 1) -> dict[str, float]:
    pod = gang.pod(index)
    assert pod is not None
    path = f"/api/v1/namespaces/{gang.namespace.name}/pods/{pod['metadata']['name']}"
    return _after(gang, lambda: gang._client.request("DELETE", path))


def first_pod_deleted(gang: Gang) -> dict[str, float]:
    return pod_deleted(gang, 0)


def pod_killed(gang: Gang) -> dict[str, float]:
    """Without grace: nothing is saved."""
    pod = gang.pod(1)
    assert pod is not None
    path = f"/api/v1/namespaces/{gang.namespace.name}/pods/{pod['metadata']['name']}?gracePeriodSeconds=0"
    return _after(gang, lambda: gang._client.request("DELETE", path))


def hang(gang: Gang) -> dict[str, float]:
    """From the last step to acting, and to the next step."""
    gang.trains()
    at = time.time()
    gang.exec(1, signals_its_rank("SIGSTOP"))
    told = gang.trains(since=at)
    incident = told["incidents"][-1]
    lost = incident.get("step", 0) - incident["resumedFromStep"]
    return {"seconds": told["began"] - at, "acting_seconds": incident["at"] - at, "steps_lost": lost}


def suspended(gang: Gang) -> dict[str, float]:
    namespace = gang.namespace
    before = gang.trains()["step"]
    at = time.time()
    namespace.kubectl("patch", "bmj", "mlp", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    _until("pods gone", lambda: not namespace.items("pods", "bigmodel.io/job=mlp"))
    gone = time.time()
    saved = _until("checkpoint", lambda: namespace.get("bmj", "mlp")["status"].get("checkpoint"))["step"]
    again = time.time()
    namespace.kubectl("patch", "bmj", "mlp", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    told = gang.trains(since=again)
    return {"seconds": told["began"] - again, "gone_seconds": gone - at, "steps_lost": max(0, before - saved)}


def node_lost(gang: Gang) -> dict[str, float]:
    """The machine of index 1 dies without a word. Counted from NotReady on: before is the cluster's patience."""
    return _without_node(gang, nodes.stop_node)


def link_down(gang: Gang) -> dict[str, float]:
    """The same, but its processes live on, cut off."""
    return _without_node(gang, nodes.link_down)


def _without_node(gang: Gang, lose: Callable[[nodes.Node], None]) -> dict[str, float]:
    pod = gang.pod(1)
    assert pod is not None
    node = next(node for node in nodes.NODES if node.name == pod["spec"]["nodeName"])
    before = gang.trains()
    at = time.time()
    lose(node)
    try:
        told = gang.trains(since=at)
    finally:
        if network.exists(node.link):  # it is gone where the whole node went
            nodes.link_up(node)
    ready = gang._client.request("GET", f"/api/v1/nodes/{node.name}")["status"]["conditions"]
    not_ready = next(datetime.fromisoformat(c["lastTransitionTime"]) for c in ready if c["type"] == "Ready").timestamp()
    resumed = [i["resumedFromStep"] for i in told.get("incidents", []) if i["at"] >= at - 1 and "resumedFromStep" in i]
    lost = max(0, before["step"] - min(resumed)) if resumed else 0
    return {"seconds": told["began"] - not_ready, "from_fault_seconds": told["began"] - at, "steps_lost": lost}


CASES: dict[str, tuple[Callable[[Gang], dict[str, float]], int]] = {  # trials of one job
    "rank-killed": (rank_killed, 60),
    "pod-deleted": (pod_deleted, LOSSES),
    "pod-0-deleted": (first_pod_deleted, LOSSES),
    "pod-killed": (pod_killed, LOSSES),
    "hang": (hang, 60),
    "suspended": (suspended, 60),
    "node-lost": (node_lost, 1),
    "link-down": (link_down, 1),
}
ON_DEMAND = ("node-lost", "link-down")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--case", nargs="*", choices=list(CASES), default=[c for c in CASES if c not in ON_DEMAND])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    client = Client(SERVER, CERTIFICATES)
    results: dict[str, list[dict[str, float]]] = {}
    for case in arguments.case:
        trial, of_one_job = CASES[case]
        found = results.setdefault(case, [])
        while len(found) < arguments.trials:
            with _job(client) as gang:
                gang.trains()
                time.sleep(3)  # past the first checkpoint
                for _ in range(min(of_one_job, arguments.trials - len(found))):
                    found.append(trial(gang))
                    print(f"    {case} {len(found)}: {found[-1]}", file=sys.stderr)
            if case in ON_DEMAND:
                cluster.up()
    print(_table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


@contextmanager
def _job(client: Client) -> Iterator[Gang]:
    namespace = Namespace(f"bench-{uuid.uuid4().hex[:8]}")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.name, "labels": labels}}
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    try:
        login = get(SYSTEM_NAMESPACE, "secret", STORE_SECRET)
        assert login is not None
        namespace.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": STORE_SECRET}, "data": login["data"]},
            a_job(recipe=RECIPE, checkpoint={"everySteps": 500}, failurePolicy=BUDGETS),
        )
        yield Gang(namespace, client)
    except TimeoutError as error:
        print(namespace.kubectl("get", "bmj,pods", "-o", "yaml"), file=sys.stderr)
        sys.exit(f"HANG: {error}")
    finally:
        kubectl("delete", "namespace", namespace.name, "--wait=false")


def _table(results: dict[str, list[dict[str, float]]]) -> str:
    lines = [f"{'case':<14} {'measure':<20} {'n':>4} {'median':>9} {'p99':>9} {'worst':>9}"]
    for case, found in results.items():
        for measure in found[0]:
            values = sorted(one[measure] for one in found)
            p99 = values[min(len(values) - 1, int(0.99 * len(values)))]
            numbers = " ".join(f"{value:>9.2f}" for value in (statistics.median(values), p99, values[-1]))
            lines.append(f"{case:<14} {measure:<20} {len(values):>4} {numbers}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
