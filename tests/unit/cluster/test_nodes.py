"""Nodes do not collide, and a node is Ready only by the word of the kubelet that was started last."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.cluster import layout, network
from tests.cluster.nodes import NODES, POD_NETWORKS, is_ready

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def a_node(status: str = "True", heartbeat: str = "2026-01-01T12:00:00Z") -> dict[str, Any]:
    return {"status": {"conditions": [{"type": "Ready", "status": status, "lastHeartbeatTime": heartbeat}]}}


CONDITIONS = {
    "Ready": (a_node(), None, True),
    "not Ready": (a_node(status="False"), None, False),
    "nobody has heard of it": (a_node(status="Unknown"), None, False),
    "registered a moment ago": ({"status": {}}, None, False),
    "Ready from before its restart": (a_node(heartbeat="2026-01-01T11:59:59Z"), NOON, False),
    "Ready in the second of its restart": (a_node(), NOON.replace(microsecond=900_000), True),
    "Ready since": (a_node(heartbeat="2026-01-01T12:00:03Z"), NOON, True),
}


@pytest.mark.parametrize(("observed", "since", "expected"), CONDITIONS.values(), ids=CONDITIONS)
def test_is_ready(observed: dict[str, Any], since: datetime | None, expected: bool) -> None:
    assert is_ready(observed, since) is expected


def test_addresses_are_apart_and_inside_their_networks() -> None:
    machines = ipaddress.ip_network(layout.MACHINE_NETWORK)
    pods = ipaddress.ip_network(layout.POD_NETWORK)
    addresses = {ipaddress.ip_address(address) for address in (layout.HOST_ADDRESS, *(node.address for node in NODES))}
    assert len(addresses) == 1 + len(NODES)
    assert all(address in machines for address in addresses)
    networks = [ipaddress.ip_network(node.pod_network) for node in NODES]
    assert not any(one.overlaps(other) for one in networks for other in networks if one is not other)
    assert all(one.subnet_of(pods) for one in networks)  # type: ignore[arg-type]
    assert all(len(node.link) <= 15 for node in NODES), "the kernel refuses longer names of links"


def test_no_route_leads_out_of_the_machine() -> None:
    assert network.routes(POD_NETWORKS).splitlines() == [
        "route replace 10.96.0.0/16 dev bigmodel0 src 172.30.0.1",
        "route replace unreachable 10.85.0.0/16",
        "route replace 10.85.1.0/24 via 172.30.0.11 dev bigmodel0",
        "route replace 10.85.2.0/24 via 172.30.0.12 dev bigmodel0",
    ]
