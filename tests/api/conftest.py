"""A real API server and etcd for the whole session, without nodes and controllers: what is created stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.kubectl import Kubectl
from tests.cluster import api_server as control_plane
from tests.cluster.build import cluster_programs

CRDS = Path(__file__).parents[2] / "crds"


@pytest.fixture(scope="session")
def api_server() -> Iterator[Path]:
    """The kubeconfig of an administrator."""
    with control_plane.api_server() as kubeconfig:
        yield kubeconfig


@pytest.fixture(scope="session")
def kubectl(api_server: Path) -> Kubectl:
    """With both CRDs of this checkout established."""
    kubectl = Kubectl(cluster_programs() / "kubectl", api_server)
    kubectl("apply", "--server-side", "-f", str(CRDS))
    kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    return kubectl
