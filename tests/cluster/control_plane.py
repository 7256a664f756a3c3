"""etcd, kube-apiserver, kube-controller-manager, kube-scheduler and CoreDNS: plain processes in the machine's own
network namespace."""

from __future__ import annotations

from pathlib import Path

from tests.cluster import processes
from tests.cluster.client import Client, wait_until
from tests.cluster.layout import (
    API_PORT,
    API_SERVICE_ADDRESS,
    CERTIFICATES,
    CLUSTER_DOMAIN,
    HOST_ADDRESS,
    SERVICE_NETWORK,
    STATE,
)  # fmt: skip

SERVER = f"https://{HOST_ADDRESS}:{API_PORT}"
SERVER_NAMES = (
    HOST_ADDRESS, API_SERVICE_ADDRESS, "127.0.0.1", "localhost", "kubernetes", "kubernetes.default",
    "kubernetes.default.svc", f"kubernetes.default.svc.{CLUSTER_DOMAIN}",
)  # fmt: skip
#: PodGroup, and pods that are only bound all together: beta in this release, so not on by itself.
FEATURES = ("--feature-gates=GenericWorkload=true",)
ETCD_PORTS = (23790, 23800)
#: The processes of this part, in the order in which they start.
NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "coredns")


def etcd_command(programs: Path, folder: Path, client_port: int, peer_port: int) -> list[str]:
    """etcd of one member on loopback.

    Not safe against a crash of the machine, and much quicker for it: `up` begins anew then.
    """
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [
        str(programs / "etcd"), "--name=etcd", f"--data-dir={folder}", "--unsafe-no-fsync", "--log-level=warn",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=etcd={peer}",
    ]  # fmt: skip


def apiserver_command(programs: Path, certificates: Path, etcd_port: int, address: str, port: int) -> list[str]:
    """The API server as tests/api needs it, alone; `up` adds what nodes need."""
    return [
        str(programs / "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        f"--bind-address={address}", f"--advertise-address={address}", f"--secure-port={port}",
        f"--tls-cert-file={certificates}/kube-apiserver.crt",
        f"--tls-private-key-file={certificates}/kube-apiserver.key",
        f"--client-ca-file={certificates}/ca.crt", "--authorization-mode=Node,RBAC", "--anonymous-auth=false",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        f"--service-account-key-file={certificates}/service-account.pub",
        f"--service-account-signing-key-file={certificates}/service-account.key",
        "--runtime-config=scheduling.k8s.io/v1beta1=true", *FEATURES,
    ]  # fmt: skip


def commands(programs: Path) -> dict[str, list[str]]:
    """Name -> command of every process of the control plane."""
    certificates = CERTIFICATES

    def as_user(name: str) -> list[str]:
        config = f"{certificates}/{name}.kubeconfig"
        return [
            str(programs / name), f"--kubeconfig={config}", f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}", "--bind-address=127.0.0.1", "--leader-elect=false", *FEATURES,
        ]  # fmt: skip

    return {
        "etcd": etcd_command(programs, STATE / "etcd", *ETCD_PORTS),
        "kube-apiserver": [
            *apiserver_command(programs, certificates, ETCD_PORTS[0], HOST_ADDRESS, API_PORT),
            "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
            "--kubelet-preferred-address-types=InternalIP", f"--kubelet-certificate-authority={certificates}/ca.crt",
            f"--kubelet-client-certificate={certificates}/kube-apiserver-client.crt",
            f"--kubelet-client-key={certificates}/kube-apiserver-client.key",
        ],
        "kube-controller-manager": [
            *as_user("kube-controller-manager"), "--use-service-account-credentials",
            f"--root-ca-file={certificates}/ca.crt",
            f"--service-account-private-key-file={certificates}/service-account.key",
        ],
        "kube-scheduler": as_user("kube-scheduler"),
        "coredns": [str(programs / "coredns"), f"-conf={STATE}/Corefile"],
    }  # fmt: skip


def corefile() -> str:
    """Names of the cluster only: nothing of a test may ask a name server outside of this machine."""
    return f"""\
.:53 {{
    bind {HOST_ADDRESS}
    errors
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {CERTIFICATES}/coredns.kubeconfig
        pods insecure
        ttl 1
    }}
}}
"""


def coredns_role() -> tuple[str, dict[str, object], str, dict[str, object]]:
    """Path and body of the ClusterRole and the ClusterRoleBinding by which CoreDNS may read what it answers from."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    metadata = {"name": "bigmodel:coredns"}
    role: dict[str, object] = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata,
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    }  # fmt: skip
    binding: dict[str, object] = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "bigmodel:coredns"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bigmodel:coredns"}],
    }  # fmt: skip
    return f"{rbac}/clusterroles/bigmodel:coredns", role, f"{rbac}/clusterrolebindings/bigmodel:coredns", binding


def start(programs: Path, client: Client) -> None:
    """Start what does not run; returns when the API server is ready. Raises SystemExit with the log of what failed."""
    (STATE / "Corefile").write_text(corefile())
    wanted = commands(programs)
    for name in ("etcd", "kube-apiserver"):
        processes.ensure(name, wanted[name])

    def ready() -> bool:
        for name in ("etcd", "kube-apiserver"):
            if processes.running(name) is None:
                raise SystemExit(f"{name} ended by itself:\n{processes.log_tail(name)}")
        return client.ready()

    wait_until("API server ready", ready, 60, lambda: processes.log_tail("kube-apiserver"))
    role_path, role, binding_path, binding = coredns_role()
    client.apply(role_path, role)
    client.apply(binding_path, binding)
    for name in ("kube-controller-manager", "kube-scheduler", "coredns"):
        processes.ensure(name, wanted[name])
