"""Where everything of the cluster lies, and its addresses. Fixed for the machine, never below a checkout."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
#: What is expensive to make and worth keeping between clusters: binaries, base images, downloads. Named by
#: content.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bigmodel"
#: What the running cluster writes: etcd, containerd's images and snapshots, kubelet state, certificates, logs.
STATE = Path("/var/lib/bigmodel/cluster")
#: What ends with the machine: sockets, process records, the lock. A tmpfs on most machines.
RUN = Path("/run/bigmodel")

PROCESSES = RUN / "processes"
CERTIFICATES = STATE / "certificates"
LOGS = STATE / "logs"
#: For an administrator on this machine; what `python -m tests.cluster env` exports.
KUBECONFIG = CERTIFICATES / "admin.kubeconfig"

BRIDGE = "bigmodel0"
HOST_ADDRESS = "172.30.0.1"
MACHINE_NETWORK = "172.30.0.0/24"
POD_NETWORK = "10.85.0.0/16"
SERVICE_NETWORK = "10.96.0.0/16"
#: The first address of the service network, by which pods reach the API server.
API_SERVICE_ADDRESS = "10.96.0.1"
CLUSTER_DOMAIN = "cluster.local"
API_PORT = 6443
GPUS_PER_NODE = 4
