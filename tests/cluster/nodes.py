"""The nodes: each a set of namespaces with its own containerd, kubelet and kube-proxy, and the ways in which a test may
lose one."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.cluster import processes
from tests.cluster.client import ApiError, Client, wait_until
from tests.cluster.layout import (
    BRIDGE,
    CERTIFICATES,
    CLUSTER_DOMAIN,
    GPUS_PER_NODE,
    HOST_ADDRESS,
    LOGS,
    MACHINE_NETWORK,
    POD_NETWORK,
    STATE,
)  # fmt: skip
from tests.cluster.network import run

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


@dataclass(frozen=True)
class Node:
    """One node; everything about it follows from its number, which counts from 1."""

    number: int

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        return f"172.30.0.{10 + self.number}"

    @property
    def pod_network(self) -> str:
        return f"10.85.{self.number}.0/24"

    @property
    def link(self) -> str:
        """The machine's end of the cable between bridge and node (at most 15 characters)."""
        return f"bigmodel-{self.name}"

    @property
    def folder(self) -> Path:
        return STATE / "nodes" / self.name

    @property
    def process_names(self) -> tuple[str, str, str, str]:
        """Records of this node: process 1, which takes the others with it, comes first."""
        return (self.name, f"{self.name}-containerd", f"{self.name}-kubelet", f"{self.name}-kube-proxy")

    def enter(self) -> list[str]:
        """The command prefix that runs a program inside this node.

        Raises:
            SystemExit: the node is down.
        """
        init = processes.running(self.name)
        if init is None:
            raise SystemExit(f"{self.name} is down: start the cluster with `python -m tests.cluster up`")
        return ["nsenter", f"--target={init.pid}", "--mount", "--net", "--uts", "--pid", "--"]


NODES = (Node(1), Node(2))
POD_NETWORKS = [(node.pod_network, node.address) for node in NODES]


def containerd_config(node: Node, pause_image: str) -> str:
    """containerd's configuration: sockets and container state in the node's own /run, images and snapshots on disk."""
    return f"""\
version = 2
root = "{node.folder}/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{node.folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image}"
  # A machine that is itself a container often may not raise a process's priority for the out-of-memory killer.
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{node.folder}/cni-config"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    discard_unpacked_layers = true
"""


def cni_config(node: Node) -> dict[str, Any]:
    """One routed cable per pod. Not a bridge: between two pods of one bridge the answer to a call of a ClusterIP would
    go straight back, past the address translation of kube-proxy, and be refused.
    """
    return {
        "cniVersion": "0.4.0", "name": "bigmodel",
        "plugins": [{
            "type": "ptp", "ipMasq": False, "mtu": 1500,
            # Leases end with the node, as its pods do: /run is the node's own.
            "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": node.pod_network}]],
                     "routes": [{"dst": "0.0.0.0/0"}]},
        }],
    }  # fmt: skip


def kubelet_config(node: Node) -> dict[str, Any]:
    """The kubelet's configuration: cgroup v1 or v2, no cgroups per quality of service, never short of disk."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "clusterDNS": [HOST_ADDRESS], "clusterDomain": CLUSTER_DOMAIN, "resolvConf": "",
        "failCgroupV1": False, "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False, "enforceNodeAllocatable": [],
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True},
                           "x509": {"clientCAFile": f"{CERTIFICATES}/ca.crt"}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{CERTIFICATES}/{node.name}.crt", "tlsPrivateKeyFile": f"{CERTIFICATES}/{node.name}.key",
        # Images come from this machine and from nowhere else: one that was collected would be gone.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "volumeStatsAggPeriod": "0s",
    }  # fmt: skip


def start_node(node: Node, programs: Path, pause_image: str) -> bool:
    """Start the node unless all of it runs; a node of which only a part runs is taken down first, as by a loss of
    power.

    Returns whether it was started now; `wait_ready` waits for it. Its disk (images, pods' folders) is what it was
    before; the kubelet sorts that out.
    """
    if all(processes.running(name) for name in node.process_names):
        return False
    stop_node(node)
    for name in ("log", "cni", "cni-config", "kubelet"):
        (node.folder / name).mkdir(parents=True, exist_ok=True)
    Path("/var/lib/cni").mkdir(exist_ok=True)
    (node.folder / "containerd.toml").write_text(containerd_config(node, pause_image))
    (node.folder / "cni-config" / "10-bigmodel.conflist").write_text(json.dumps(cni_config(node), indent=1))
    (node.folder / "kubelet.yaml").write_text(json.dumps(kubelet_config(node), indent=1))
    _start_init(node)
    _connect(node)
    _inside(node, "containerd", ["/usr/bin/containerd", "--config", f"{node.folder}/containerd.toml"])
    endpoint = Path(f"/proc/{_init_pid(node)}/root{CONTAINERD_SOCKET}")
    wait_until(
        f"containerd of {node.name}",
        lambda: _accepts(endpoint),
        30,
        lambda: processes.log_tail(f"{node.name}-containerd"),
    )
    _inside(node, "kubelet", [
        str(programs / "kubelet"), f"--config={node.folder}/kubelet.yaml",
        f"--kubeconfig={CERTIFICATES}/{node.name}.kubeconfig",
        f"--root-dir={node.folder}/kubelet", f"--hostname-override={node.name}", f"--node-ip={node.address}",
    ])  # fmt: skip
    _inside(node, "kube-proxy", proxy_command(programs, node.name))
    return True


def proxy_command(programs: Path, name: str) -> list[str]:
    """kube-proxy for one network namespace: of a node, or of this machine, so that a test can call a ClusterIP from
    here."""
    return [
        str(programs / "kube-proxy"), f"--kubeconfig={CERTIFICATES}/kube-proxy.kubeconfig",
        f"--hostname-override={name}",
        "--proxy-mode=nftables", f"--cluster-cidr={POD_NETWORK}",
        "--healthz-bind-address=", "--metrics-bind-address=",
        # The machine's own table is not ours to size: 0 leaves it.
        "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
    ]  # fmt: skip


def stop_node(node: Node) -> None:
    """Lose the node at once, as by a loss of power: every process on it is killed, its link is gone.

    `start_node` brings it back.
    """
    processes.stop(node.process_names, grace_seconds=0)  # nothing on the node may notice
    # The link goes with its other end, but the kernel takes its time; the next start must not meet it.
    subprocess.run(["ip", "link", "delete", node.link], capture_output=True)


def link_down(node: Node) -> None:
    """Cut the node's cable: its pods run on, nobody reaches them."""
    run(["ip", "link", "set", node.link, "down"])


def link_up(node: Node) -> None:
    """Mend the cable."""
    run(["ip", "link", "set", node.link, "up"])


def wait_ready(client: Client, node: Node, since: datetime | None) -> None:
    """Wait until the node is Ready, and give it its GPUs.

    `since`: when it was started just now; None for one that runs on. One that was lost and came back still looks Ready
    from before for the better part of a minute, so only the word of the new kubelet counts.
    """

    def ready() -> bool:
        try:
            return is_ready(client.request("GET", f"/api/v1/nodes/{node.name}"), since)
        except ApiError as error:
            if error.status == 404:  # not registered yet
                return False
            raise

    wait_until(f"{node.name} Ready", ready, 60, lambda: processes.log_tail(f"{node.name}-kubelet"))
    ensure_gpus(client, node)


def is_ready(observed: dict[str, Any], since: datetime | None = None) -> bool:
    """Whether this Node object says Ready, and its kubelet said so at or after `since` (to the second)."""
    for condition in observed["status"].get("conditions", []):
        if condition["type"] == "Ready" and condition["status"] == "True":
            heartbeat = datetime.fromisoformat(condition["lastHeartbeatTime"])
            return since is None or heartbeat >= since.replace(microsecond=0)
    return False


def has_gpus(observed: dict[str, Any]) -> bool:
    return bool(observed["status"].get("capacity", {}).get("nvidia.com/gpu") == str(GPUS_PER_NODE))


def ensure_gpus(client: Client, node: Node) -> None:
    """Let the scheduler count GPUs on this node: an extended resource of its capacity.

    The kubelet of a fresh node forgets it.
    """
    path = f"/api/v1/nodes/{node.name}"
    if not has_gpus(client.request("GET", path)):
        patch = [{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(GPUS_PER_NODE)}]
        client.request("PATCH", f"{path}/status", patch, "application/json-patch+json")


def _start_init(node: Node) -> None:
    """Make the node's namespaces, and record the process that holds them."""
    LOGS.mkdir(parents=True, exist_ok=True)
    command = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--", "sh",
               str(Path(__file__).with_name("node-init.sh")), node.name, str(node.folder)]  # fmt: skip
    with (LOGS / f"{node.name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            cwd="/",
            text=True,
        )
    process.returncode = 0  # meant to outlive us
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        answer = process.stdout.readline().strip()
        if not answer:
            raise SystemExit(f"{node.name} could not be furnished:\n{processes.log_tail(node.name)}")
        processes.write_record(node.name, processes.record_of(int(answer), command))
        process.stdin.write("recorded\n")


def _connect(node: Node) -> None:
    """Lay the cable from the bridge into the node, and the node's routes to the other nodes' pods."""
    prefix = MACHINE_NETWORK.partition("/")[2]
    run(["ip", "link", "add", node.link, "type", "veth", "peer", "name", "eth0", "netns", str(_init_pid(node))])
    run(["ip", "link", "set", node.link, "master", BRIDGE, "up"])
    others = [other for other in NODES if other != node]
    lines = [
        f"address add {node.address}/{prefix} dev eth0",
        "link set eth0 up",
        f"route add default via {HOST_ADDRESS}",  # the kubelet wants one; it ends at this machine
        f"route add unreachable {POD_NETWORK}",
        *(f"route add {other.pod_network} via {other.address}" for other in others),
    ]
    run([*node.enter(), "ip", "-batch", "-"], "\n".join(lines) + "\n")


def _inside(node: Node, component: str, command: list[str]) -> None:
    processes.start(f"{node.name}-{component}", [*node.enter(), *command])


def _init_pid(node: Node) -> int:
    init = processes.running(node.name)
    if init is None:
        raise SystemExit(f"{node.name} died while it started:\n{processes.log_tail(node.name)}")
    return init.pid


def _accepts(socket_path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(socket_path))
        except OSError:
            return False
    return True


def wipe(node: Node) -> None:
    """Forget the pods of a past cluster, and keep the images, which are expensive."""
    shutil.rmtree(node.folder / "kubelet", ignore_errors=True)
    shutil.rmtree(node.folder / "log", ignore_errors=True)


def remove_cgroups() -> None:
    """Remove the control groups of containers that died with their node; the kernel refuses where a process lives."""
    root = Path("/sys/fs/cgroup")
    for folder in [*root.glob("k8s.io/*/"), *root.glob("*/k8s.io/*/")]:  # cgroup version 2, version 1
        with suppress(OSError):
            folder.rmdir()
