"""A canary on the real gateway and real Triton, under constant load by kept-alive HTTP and gRPC: no request is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.gateway import GATEWAY, NAMESPACE
from tests.demo.infer import golden_sample
from tests.demo.install import STORE_SECRET
from tests.e2e.load import Load
from tests.e2e.user import Namespace, a_job, a_service, condition, eventually

PER_SECOND = 20.0  # by each protocol
ROLLOUT = {"steps": [25, 50], "intervalSeconds": 5, "rollbackWindowSeconds": 600}


class Served:
    """A service with a route of its own, under load."""

    def __init__(self, namespace: Namespace, load: Load, spec: dict[str, Any]) -> None:
        self.namespace, self.load, self._spec = namespace, load, spec

    def change(self, **spec: Any) -> None:
        self._spec |= spec
        self.namespace.apply(a_service(**self._spec))

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.namespace.get("bms", "mlp")["status"]
        return status

    def pods(self) -> dict[str, str]:
        """UID and restarts of the serving pods, by name."""
        return {
            pod["metadata"]["name"]: f"{pod['metadata']['uid']} "
            + " ".join(str(c["restartCount"]) for c in pod["status"].get("containerStatuses", []))
            for pod in self.namespace.items("pods", "bigmodel.io/service=mlp")
            if "deletionTimestamp" not in pod["metadata"]
        }


@pytest.fixture(scope="module")
def served(new_namespace: Callable[[], Namespace]) -> Iterator[Served]:
    namespace = new_namespace()
    host = f"{namespace.name}.example.com"
    route = {"parentRefs": [{"name": GATEWAY, "namespace": NAMESPACE}], "hostnames": [host]}
    spec: dict[str, Any] = {"route": route, "rollout": ROLLOUT}
    namespace.apply(a_service(**spec), a_job(nodes=1))
    namespace.wait("bms/mlp", "Promoted", 240)
    namespace.wait("bms/mlp", "Ready", 60)
    sample = golden_sample(namespace.get("bmj", "mlp"), namespace.name, STORE_SECRET)
    with Load(host, "mlp", sample, PER_SECOND) as load:
        eventually("requests are answered", lambda: load.http.versions and load.grpc.versions)
        yield Served(namespace, load, spec)


def test_a_canary_is_promoted_under_load_and_no_request_is_lost(served: Served) -> None:
    """B11, B12, B29: shares by HTTP and gRPC alike, no pod made or restarted at promotion."""
    assert served.status["url"].endswith(".example.com")
    served.change(batching={"maxBatchSize": 32})
    eventually("r2 has a share", lambda: (served.status.get("candidate") or {}).get("weight") == 50, 120)
    pods = served.pods()
    eventually("r2 serves", lambda: served.status["stable"]["revision"] == 2, 120)
    assert served.pods() == pods
    served.namespace.wait("bms/mlp", "Promoted", 60)
    for tally in (served.load.http, served.load.grpc):
        assert tally.versions["2"] > 0
    assert served.load.lost == []
    assert [e for e in served.namespace.events("mlp") if e == "TrafficShifted"] == ["TrafficShifted"] * 2


def test_a_change_back_moves_all_traffic_at_once_and_starts_no_pod(served: Served) -> None:
    """B15."""
    pods = served.pods()
    served.change(batching={"maxBatchSize": 64})
    eventually("r1 serves again", lambda: served.status["stable"]["revision"] == 1, 30)
    assert served.pods() == pods
    assert served.load.lost == []


def test_an_aborted_canary_loses_its_share_and_no_request(served: Served) -> None:
    """B23."""
    served.change(batching={"maxBatchSize": 16})
    eventually("r3 has a share", lambda: (served.status.get("candidate") or {}).get("weight") == 25, 120)
    served.namespace.kubectl("annotate", "bms", "mlp", "bigmodel.io/abort=3")
    status = eventually(
        "r3 is given up", lambda: s if (s := served.status)["history"][0]["revision"] == 3 else None, 30
    )
    assert status["history"][0]["result"] == "Aborted"
    eventually("its pods go", lambda: not any("-r3-" in name for name in served.pods()), 60)
    assert served.load.lost == []
    assert condition(served.namespace.get("bms", "mlp"), "Ready")["status"] == "True"


# Inside the server's container: the model's own process, not Triton's.
DIES = """
import os
for process in filter(str.isdigit, os.listdir("/proc")):
    if int(process) != os.getpid() and "python_backend_stub" in open(f"/proc/{process}/cmdline").read():
        os.kill(int(process), 9)
"""


def test_a_candidate_whose_model_dies_costs_few_requests(served: Served) -> None:
    """B6: Ready by Triton's own word, 500 for everything."""
    before = len(served.load.lost)
    served.change(batching={"maxBatchSize": 8})
    eventually("r4 has a share", lambda: (served.status.get("candidate") or {}).get("weight") == 25, 120)
    pod = next(name for name in served.pods() if "-r4-" in name)
    served.namespace.kubectl("exec", pod, "-c", "server", "--", "python3", "-c", DIES)
    eventually("it has no share", lambda: (served.status.get("candidate") or {}).get("weight", 0) == 0, 30)
    lost = served.load.lost[before:]
    assert len(lost) <= 2 * 10, lost  # 10 at 20 requests a second, and two protocols
    assert condition(served.namespace.get("bms", "mlp"), "Ready")["status"] == "True"
