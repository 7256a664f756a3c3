"""The bridge between this machine and the nodes, the routes to their pods, and the rules that keep test traffic on this
machine.

Everything is in the machine's own network namespace. What is inside a node's namespace goes when the node goes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from tests.cluster.layout import BRIDGE, HOST_ADDRESS, MACHINE_NETWORK, POD_NETWORK, SERVICE_NETWORK

TABLE = "bigmodel"


def rules() -> str:
    """nftables commands: nothing is forwarded between the bridge and any other interface, in either direction.

    A node has a default route (the kubelet wants one) that ends here. There is no masquerading, so even a forwarded
    packet would get no answer; the rules make sure that none is sent.
    """
    return f"""\
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        iifname "{BRIDGE}" oifname != "{BRIDGE}" drop
        iifname != "{BRIDGE}" oifname "{BRIDGE}" drop
    }}
}}
"""


def routes(pod_networks: Sequence[tuple[str, str]]) -> str:
    """`ip -batch` commands. `pod_networks`: (network of a node's pods, the node's address).

    The whole service network goes to the bridge: without that, a call to a ClusterIP that kube-proxy does not know
    (yet) would follow the machine's default route out of the machine. For the same reason the pod network leads nowhere
    but to the nodes.
    """
    lines = [
        f"route replace {SERVICE_NETWORK} dev {BRIDGE} src {HOST_ADDRESS}",
        f"route replace unreachable {POD_NETWORK}",
        *(f"route replace {network} via {node} dev {BRIDGE}" for network, node in pod_networks),
    ]
    return "\n".join(lines) + "\n"


def ensure(pod_networks: Sequence[tuple[str, str]]) -> None:
    """Make bridge, routes and rules what they should be; nothing changes where they are."""
    if not exists(BRIDGE):
        _refuse_foreign_use()
        # Rules before the bridge: there is no moment in which it forwards.
        run(["nft", "-f", "-"], rules())
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    prefix = MACHINE_NETWORK.partition("/")[2]
    run(
        ["ip", "-batch", "-"],
        f"address replace {HOST_ADDRESS}/{prefix} dev {BRIDGE}\nlink set {BRIDGE} up\n" + routes(pod_networks),
    )
    run(["nft", "-f", "-"], rules())


def remove() -> None:
    """Take away all of it; routes through the bridge go with it."""
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True)
    subprocess.run(["ip", "route", "delete", "unreachable", POD_NETWORK], capture_output=True)
    # The tables of kube-proxy in this namespace: it leaves them behind so that services survive its restarts.
    for table in (f"inet {TABLE}", "ip kube-proxy", "ip6 kube-proxy"):
        subprocess.run(["nft", "delete", "table", *table.split()], capture_output=True)


def exists(link: str) -> bool:
    return subprocess.run(["ip", "link", "show", link], capture_output=True).returncode == 0


def _refuse_foreign_use() -> None:
    """Raise SystemExit if one of our networks is reached through somebody else's interface."""
    for network in (MACHINE_NETWORK, POD_NETWORK, SERVICE_NETWORK):
        found = subprocess.run(
            ["ip", "-4", "route", "show", "root", network], capture_output=True, text=True
        ).stdout.strip()
        if found and not found.startswith("unreachable"):
            raise SystemExit(
                f"network {network} is in use on this machine ({found}) and the cluster needs it: "
                "free it, or change tests/cluster/layout.py and nodes.py"
            )


def run(command: Sequence[str], stdin: str = "") -> str:
    """Run a short command; returns its standard output, raises SystemExit with its standard error."""
    result = subprocess.run(list(command), input=stdin, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"`{' '.join(command)}` failed: {result.stderr.strip()}\n{stdin}".rstrip())
    return result.stdout
