"""What a rollout costs its users, on the local cluster: requests lost, how fast a bad candidate loses its share.

`make up`, then `python -m tests.bench.serving`. Load goes through the gateway by kept-alive HTTP and gRPC, as fast as
so many connections answer one after the other; prints one line for each figure.
"""

from __future__ import annotations

import argparse
import time
import uuid
from typing import Any

import yaml

from tests.cluster.gateway import GATEWAY
from tests.cluster.gateway import NAMESPACE as GATEWAY_NAMESPACE
from tests.cluster.kubectl import get, kubectl
from tests.demo.infer import golden_sample
from tests.demo.install import STORE_SECRET, SYSTEM_NAMESPACE
from tests.e2e.load import Load
from tests.e2e.test_canary import DIES
from tests.e2e.user import Namespace, a_job, a_service, eventually


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serving", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--connections", type=int, default=4, help="of each protocol (default: %(default)s)")
    parser.add_argument("--interval", type=int, default=45, help="seconds of a step (default: %(default)s)")
    parser.add_argument("--per-second", type=float, default=1000, help="limit for a connection (default: %(default)s)")
    arguments = parser.parse_args()
    namespace = _namespace()
    try:
        _measure(namespace, arguments.connections, arguments.interval, arguments.per_second)
    finally:
        kubectl("delete", "namespace", namespace.name, "--wait=false")


def _namespace() -> Namespace:
    namespace = Namespace(f"bench-{uuid.uuid4().hex[:8]}")
    metadata = {"name": namespace.name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
    login = get(SYSTEM_NAMESPACE, "secret", STORE_SECRET)
    assert login is not None, "the embedded store has no login"
    namespace.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": STORE_SECRET}, "data": login["data"]})
    return namespace


def _measure(namespace: Namespace, connections: int, interval: int, per_second: float) -> None:
    host = f"{namespace.name}.example.com"
    route = {"parentRefs": [{"name": GATEWAY, "namespace": GATEWAY_NAMESPACE}], "hostnames": [host]}
    rollout = {"steps": [5, 25, 50], "intervalSeconds": interval, "rollbackWindowSeconds": 600}
    spec: dict[str, Any] = {"route": route, "rollout": rollout}
    namespace.apply(a_service(**spec), a_job(nodes=1))
    namespace.wait("bms/mlp", "Promoted", 240)
    namespace.wait("bms/mlp", "Ready", 60)
    sample = golden_sample(namespace.get("bmj", "mlp"), namespace.name, STORE_SECRET)

    def status() -> dict[str, Any]:
        found: dict[str, Any] = namespace.get("bms", "mlp")["status"]
        return found

    def weight() -> int:
        return int((status().get("candidate") or {}).get("weight", 0))

    with Load(host, "mlp", sample, per_second, connections) as load:
        began = time.monotonic()
        namespace.apply(a_service(**spec, batching={"maxBatchSize": 32}))
        eventually("r2 serves", lambda: status()["stable"]["revision"] == 2, 4 * interval + 120)
        time.sleep(5)
        took = time.monotonic() - began
        for name, tally in (("HTTP", load.http), ("gRPC", load.grpc)):
            print(
                f"canary: {len(tally.lost)} of {tally.sent} {name} requests lost in {took:.0f} s, by {tally.versions}"
            )

        sent, lost = load.sent, len(load.lost)
        namespace.apply(a_service(**spec, batching={"maxBatchSize": 16}))
        eventually("r3 has a share", lambda: weight() == 25, 2 * interval + 120)
        asked = time.monotonic()
        namespace.kubectl("annotate", "bms", "mlp", "bigmodel.io/abort=3")
        eventually("r3 is given up", lambda: status()["history"][0]["revision"] == 3, 30)
        time.sleep(20)  # its pods drain
        last = max(tally.last.get("3", 0.0) for tally in (load.http, load.grpc))
        seconds = f"last answer after {last - asked:.2f} s"
        print(f"rollback: {len(load.lost) - lost} of {load.sent - sent} requests lost, {seconds}")

        lost = len(load.lost)
        namespace.apply(a_service(**spec, batching={"maxBatchSize": 8}))
        eventually("r4 has a share", lambda: weight() == 5, 120)
        (pod,) = (p["metadata"]["name"] for p in namespace.items("pods", "bigmodel.io/revision=4"))
        died = time.monotonic()
        namespace.kubectl("exec", pod, "-c", "server", "--", "python3", "-c", DIES)
        eventually("r4 has no share", lambda: weight() == 0, 30)
        time.sleep(5)
        last_lost = max(load.http.last_lost, load.grpc.last_lost)
        print(f"dead model at 5 %: {len(load.lost) - lost} errors, the last after {max(0, last_lost - died):.2f} s")
    for line in load.lost[:10]:
        print(line)


if __name__ == "__main__":
    main()
