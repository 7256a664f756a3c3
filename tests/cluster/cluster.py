"""The whole cluster: up, down, and what is the matter with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tests.cluster import control_plane, gateway, images, network, nodes, processes
from tests.cluster.build import cluster_programs, prepare
from tests.cluster.certificates import issue_all
from tests.cluster.client import ApiError, Client
from tests.cluster.delivery import deliver
from tests.cluster.layout import BRIDGE, CERTIFICATES, KUBECONFIG, RUN, STATE
from tests.cluster.locks import locked
from tests.cluster.progress import step

#: kube-proxy in the machine's own network namespace, through which this machine reaches ClusterIPs.
HOST_PROXY = "kube-proxy"
BOOT = STATE / "boot"


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock of the machine's cluster, so that no two commands start or stop it at once."""
    if os.geteuid() != 0:
        raise SystemExit("the local cluster needs root: it makes namespaces, mounts and links")
    with locked(RUN / "lock", "starts or stops the cluster"):
        yield


def up() -> None:
    """Start what does not run, repair what is broken; returns when both nodes are Ready and have their GPUs.

    Quick when all is well.
    """
    with alone():
        programs = prepare()
        if healthy(programs):
            return
        with step("cluster up"):
            _start(programs)


def _start(programs: Path) -> None:
    if _other_boot():
        _clear()  # etcd may be torn, for it runs without fsync; nothing that ran then runs now
    STATE.mkdir(parents=True, exist_ok=True)
    BOOT.write_text(processes.boot_id())
    node_addresses = {node.name: node.address for node in nodes.NODES}
    issue_all(CERTIFICATES, control_plane.SERVER, control_plane.SERVER_NAMES, node_addresses)
    network.ensure(nodes.POD_NETWORKS)
    with ThreadPoolExecutor() as pool:
        pause = pool.submit(images.build, "pause")
        client = _client()
        with step("control plane"):
            control_plane.start(programs, client)
        with step("nodes"):
            reference = pause.result()
            begin = datetime.now(UTC)
            starts = {node: pool.submit(nodes.start_node, node, programs, reference) for node in nodes.NODES}
            since = {node: begin if start.result() else None for node, start in starts.items()}
            processes.ensure(HOST_PROXY, nodes.proxy_command(programs, "host"))
            deliver([reference], images.in_storage)
            gateway.start(programs, client)
            for node in nodes.NODES:
                nodes.wait_ready(client, node, since[node])
    for name in process_names():  # what starts with a bad flag ends within the seconds that the nodes need
        if processes.running(name) is None:
            raise SystemExit(f"{name} ended by itself:\n{processes.log_tail(name)}")


def down() -> None:
    """Stop everything of the cluster and forget its objects; images and certificates stay.

    Also after a killed run, or a reboot.
    """
    with alone():
        _clear()


def _clear() -> None:
    with ThreadPoolExecutor() as pool:
        for stopped in [pool.submit(nodes.stop_node, node) for node in nodes.NODES]:
            stopped.result()
    processes.stop([name for name in processes.recorded() if name != "etcd"], grace_seconds=2)
    processes.stop(["etcd"], grace_seconds=2)
    network.remove()
    nodes.remove_cgroups()
    for node in nodes.NODES:
        nodes.wipe(node)
    shutil.rmtree(STATE / "etcd", ignore_errors=True)
    gateway.forget()
    BOOT.unlink(missing_ok=True)


def _other_boot() -> bool:
    """Whether the state on disk was left by a machine that has been started anew since."""
    return BOOT.exists() and BOOT.read_text() != processes.boot_id()


def _client() -> Client:
    return Client(control_plane.SERVER, CERTIFICATES)


def process_names() -> list[str]:
    """Records of all processes of a complete cluster."""
    of_nodes = (name for node in nodes.NODES for name in node.process_names)
    return [*control_plane.NAMES, *of_nodes, HOST_PROXY, gateway.NAME]


def healthy(programs: Path) -> bool:
    """Whether all runs with the commands of this checkout, and both nodes are Ready with their GPUs."""
    if not KUBECONFIG.exists() or any(processes.running(name) is None for name in process_names()):
        return False
    if any(not Path("/sys/class/net", link).exists() for link in (BRIDGE, *(node.link for node in nodes.NODES))):
        return False
    wanted = control_plane.commands(programs)
    if any(processes.running(name).command != tuple(command) for name, command in wanted.items()):  # type: ignore[union-attr]
        return False
    client = _client()
    try:
        observed = client.request("GET", "/api/v1/nodes")["items"]
    except (OSError, ApiError):
        return False
    by_name = {node["metadata"]["name"]: node for node in observed}
    return all(
        node.name in by_name and nodes.is_ready(by_name[node.name]) and nodes.has_gpus(by_name[node.name])
        for node in nodes.NODES
    )


def environment() -> str:
    """Lines for a shell that make kubectl and helm speak to this cluster."""
    return f"export KUBECONFIG={KUBECONFIG}\nexport PATH={cluster_programs()}:$PATH\n"


def status() -> str:
    """A short table: every process, and the nodes as the API server sees them."""
    lines = [f"{'PROCESS':<26}{'STATE':<8}PID"]
    for name in process_names():
        record = processes.running(name)
        lines.append(f"{name:<26}{'runs':<8}{record.pid}" if record else f"{name:<26}{'-':<8}-")
    lines.append("")
    if processes.running("kube-apiserver"):
        kubectl = [str(cluster_programs() / "kubectl"), f"--kubeconfig={KUBECONFIG}", "get", "nodes", "-o", "wide"]
        answer = subprocess.run(kubectl, capture_output=True, text=True)
        lines.append((answer.stdout + answer.stderr).rstrip())
    else:
        lines.append("the cluster is down: start it with `python -m tests.cluster up`")
    return "\n".join(lines)
