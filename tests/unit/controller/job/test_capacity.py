"""What a gang lacks, in numbers and with the nodes' names."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from bigmodel.api.job import JobSpec
from bigmodel.controller.job.capacity import Tally, lack, quantity, requests

GPU = "nvidia.com/gpu"


def a_node(name: str, gpus: int = 8, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    allocatable = {"cpu": "32", "memory": "256Gi", "pods": "110", **({GPU: str(gpus)} if gpus else {})}
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": spec,
        "status": {"allocatable": allocatable},
    }


def a_pod(node: str | None, job: str = "", phase: str = "Running", **asked: str) -> dict[str, Any]:
    resources = {"requests": {name.replace("gpu", GPU): amount for name, amount in asked.items()}}
    return {
        "metadata": {"name": "p", "labels": {"bigmodel.io/job-uid": job} if job else {}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "resources": resources}]},
        "status": {"phase": phase},
    }


def a_spec(nodes: int = 2, gpus: int = 8, **fields: Any) -> JobSpec:
    limits = {GPU: gpus, **fields.pop("limits", {})}
    return JobSpec.model_validate({"nodes": nodes, "resources": {"limits": limits}, **fields})


def lacking(spec: JobSpec, nodes: list[dict[str, Any]], pods: list[dict[str, Any]]) -> str | None:
    tally = Tally()
    tally.add_nodes(nodes)
    tally.add_pods(pods)
    return lack(spec, spec.nodes, "ours", tally.rooms())


TWO = [a_node("gpu-2"), a_node("gpu-1")]
TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
NOT_TOGETHER = (
    "needs 1 × (8 nvidia.com/gpu, 20 cpu), each on one node; enough is free of each in all, but not of all of them on "
    "the same nodes"
)
NO_NODE = (
    "no node may be used: of 4, 2 do not match spec.nodeSelector, 1 are cordoned, 1 have the taint gpu, which "
    "spec.tolerations does not tolerate"
)
CASES: dict[str, tuple[JobSpec, list[dict[str, Any]], list[dict[str, Any]], str | None]] = {
    "the issue's own words": (
        a_spec(), TWO, [a_pod("gpu-1", gpu="3")],
        "needs 2 × 8 nvidia.com/gpu; free: 5 on gpu-1, 8 on gpu-2",
    ),
    "it fits: something else holds it": (a_spec(), TWO, [], None),
    "no node is known": (a_spec(), [], [], None),
    "what ended and what is not bound takes nothing": (
        a_spec(), TWO, [a_pod("gpu-1", phase="Succeeded", gpu="3"), a_pod(None, gpu="3"), a_pod("gone", gpu="8")], None,
    ),
    "its own pods that are placed already do not count against it": (
        a_spec(), TWO, [a_pod("gpu-1", job="ours", gpu="8"), a_pod("gpu-2", job="other", gpu="1")],
        "needs 2 × 8 nvidia.com/gpu; free: 8 on gpu-1, 7 on gpu-2",
    ),
    "two of its pods may share a node": (a_spec(gpus=4), [a_node("gpu-1")], [], None),
    "none is free": (
        a_spec(1, 1), TWO, [a_pod("gpu-1", gpu="8"), a_pod("gpu-2", gpu="8")],
        "needs 1 × 1 nvidia.com/gpu; free: none on 2 nodes",
    ),
    "a resource that no node has": (
        a_spec(1, 1), [a_node("cpu-1", gpus=0)], [], "needs 1 × 1 nvidia.com/gpu; free: none on cpu-1",
    ),
    "GPUs fit, memory does not": (
        a_spec(2, 1, limits={"memory": "200Gi"}), TWO, [a_pod("gpu-2", memory="100Gi")],
        "needs 2 × 200Gi memory; free: 256Gi on gpu-1, 156Gi on gpu-2",
    ),
    "cpu in thousandths": (
        a_spec(1, 1, limits={"cpu": "31500m"}), [a_node("gpu-1")], [a_pod("gpu-1", cpu="600m")],
        "needs 1 × 31.5 cpu; free: 31.4 on gpu-1",
    ),
    "a request below the limit is what counts": (
        a_spec(1, 1, resources={"limits": {"cpu": "64"}, "requests": {"cpu": "1"}}), TWO, [], None,
    ),
    "enough of each, but not together": (
        a_spec(1, 8, limits={"cpu": 20}), TWO, [a_pod("gpu-1", gpu="1"), a_pod("gpu-2", cpu="20")],
        NOT_TOGETHER,
    ),
    "at most five nodes are named, those with most room": (
        a_spec(9), [a_node(f"gpu-{n}", gpus=n) for n in range(1, 8)], [],
        "needs 9 × 8 nvidia.com/gpu; free: 3 on gpu-3, 4 on gpu-4, 5 on gpu-5, 6 on gpu-6, 7 on gpu-7 and 2 more",
    ),
    "only nodes that the selector takes": (
        a_spec(nodeSelector={"gpu": "h100"}), [a_node("gpu-1", labels={"gpu": "h100"}), a_node("gpu-2")], [],
        "needs 2 × 8 nvidia.com/gpu; free: 8 on gpu-1",
    ),
    "only nodes whose taints are tolerated": (
        a_spec(tolerations=[{"key": "gpu", "operator": "Exists"}]),
        [a_node("gpu-1", taints=[TAINT]), a_node("gpu-2", taints=[TAINT, {"key": "down", "effect": "NoExecute"}])], [],
        "needs 2 × 8 nvidia.com/gpu; free: 8 on gpu-1",
    ),
    "no node may be used": (
        a_spec(nodeSelector={"gpu": "h100"}),
        [
            a_node("a", labels={"gpu": "h100"}, unschedulable=True), a_node("b"), a_node("c"),
            a_node("d", labels={"gpu": "h100"}, taints=[TAINT]),
        ],
        [],
        NO_NODE,
    ),
    "a taint that only asks is no obstacle": (
        a_spec(1), [a_node("gpu-1", taints=[{"key": "x", "effect": "PreferNoSchedule"}])], [], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "nodes", "pods", "text"), CASES.values(), ids=CASES)
def test_what_a_gang_lacks(
    spec: JobSpec, nodes: list[dict[str, Any]], pods: list[dict[str, Any]], text: str | None
) -> None:
    """A25, C30."""
    assert lacking(spec, nodes, pods) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8", "8"), ("500m", "0.5"), ("64Gi", "68719476736"), ("2k", "2000"), ("1e3", "1000"), ("100n", "1e-7"),
        ("x", None), ("inf", None),
    ],
)  # fmt: skip
def test_quantities(text: str, number: str | None) -> None:
    assert quantity(text) == (Decimal(number) if number is not None else None)


def test_init_containers_count_by_the_largest_and_side_cars_like_containers() -> None:
    def container(cpu: str, **fields: str) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu}}, **fields}

    spec = {
        "containers": [container("1"), container("2")],
        "initContainers": [container("1", restartPolicy="Always"), container("7")],
        "overhead": {"cpu": "500m"},
    }
    assert requests(spec) == {"pods": 1, "cpu": Decimal("7.5")}
