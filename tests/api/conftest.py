"""A real API server and etcd for the whole session, without nodes and controllers: what is created stays as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.api.controller import connections_closed
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


@pytest_asyncio.fixture(autouse=True)
async def connections_end_before_their_loop() -> AsyncIterator[None]:
    """Torn down last; a loop that ends first leaves open sockets to the collector, and to somebody else's test."""
    yield
    await connections_closed()
