"""The local cluster with the operator installed (`make up`), and a namespace of its own for each test that asks."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
import yaml

from tests.cluster.kubectl import get, kubectl
from tests.demo.install import STORE_SECRET, SYSTEM_NAMESPACE, installed
from tests.e2e.user import Namespace


@pytest.fixture(scope="session", autouse=True)
def operator() -> None:
    """The tests run against what `make up` installed; without it nothing here means anything."""
    assert installed() is not None, "no operator on the local cluster: run `make up` first"


@pytest.fixture(scope="session")
def new_namespace() -> Iterator[Callable[[], Namespace]]:
    made: list[str] = []

    def make() -> Namespace:
        name = f"e2e-{uuid.uuid4().hex[:8]}"
        made.append(name)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        kubectl(
            "apply",
            "-f",
            "-",
            stdin=yaml.safe_dump(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
            ),
        )
        login = get(SYSTEM_NAMESPACE, "secret", STORE_SECRET)
        assert login is not None, "the embedded store has no login"
        namespace = Namespace(name)
        namespace.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": STORE_SECRET}, "data": login["data"]}
        )
        return namespace

    yield make
    for name in made:
        kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture
def namespace(new_namespace: Callable[[], Namespace]) -> Iterator[Namespace]:
    made = new_namespace()
    yield made
    kubectl(
        "delete", "namespace", made.name, "--wait=false"
    )  # at once: a job left behind would take the next one's CPU
