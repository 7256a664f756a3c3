"""One release of the chart from its install to its end, by Helm itself on a real API server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigmodel.api.names import API_VERSION
from tests.api.kubectl import Kubectl
from tests.cluster.build import cluster_programs

CHART = Path(__file__).parents[2] / "charts/bigmodel-operator"
SYSTEM, USERS = "chart-system", "chart-users"
EMBEDDED = ("--set", "store.embedded.enabled=true", "--set", f"store.secretNamespaces={{{USERS}}}")
Helm = Callable[..., str]


@pytest.fixture(scope="module")
def helm(api_server: Path) -> Helm:
    def call(*arguments: str) -> str:
        result = subprocess.run(
            [str(cluster_programs() / "helm"), *arguments, "--namespace", SYSTEM],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "KUBECONFIG": str(api_server), "HOME": str(api_server.parent)},
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return call


@pytest.fixture(scope="module")
def release(kubectl: Kubectl, helm: Helm) -> Iterator[None]:
    for namespace in (SYSTEM, USERS):
        kubectl("create", "namespace", namespace)
    kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted")
    # The CRDs are there already, by kubectl.
    helm("install", "bigmodel", str(CHART), "--take-ownership", *EMBEDDED)
    yield
    helm("uninstall", "bigmodel", "--ignore-not-found")


def objects(kubectl: Kubectl, namespace: str, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(kubectl("get", kind, "-n", namespace, "-o", "json"))["items"]
    return found


@pytest.mark.usefixtures("release")
def test_its_pods_are_let_in_where_pod_security_restricted_is_enforced(kubectl: Kubectl) -> None:
    deployments = objects(kubectl, SYSTEM, "deployments")
    assert {item["metadata"]["name"] for item in deployments} == {"bigmodel-operator", "bigmodel-store"}
    for deployment in deployments:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": deployment["metadata"]["name"]},
            "spec": deployment["spec"]["template"]["spec"],
        }
        kubectl("create", "--dry-run=server", "-n", SYSTEM, "-f", "-", stdin=json.dumps(pod))


@pytest.mark.usefixtures("release")
def test_an_upgrade_keeps_the_login_that_the_install_made(kubectl: Kubectl, helm: Helm) -> None:
    def logins() -> set[str]:
        secrets = [*objects(kubectl, SYSTEM, "secrets"), *objects(kubectl, USERS, "secrets")]
        data = [item["data"] for item in secrets if item["metadata"]["name"] == "bigmodel-store"]
        assert len(data) == 2
        return {json.dumps(one, sort_keys=True) for one in data}

    before = logins()
    assert len(before) == 1
    helm("upgrade", "bigmodel", str(CHART), *EMBEDDED, "--set", "replicas=3")
    assert logins() == before


@pytest.mark.usefixtures("release")
def test_the_operator_may_not_read_the_login_it_made_nor_write_jobs(kubectl: Kubectl) -> None:
    def may(verb: str, resource: str, namespace: str) -> bool:
        question = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{SYSTEM}:bigmodel-operator",
                "resourceAttributes": {
                    "verb": verb,
                    "group": resource.partition(".")[2],
                    "resource": resource.partition(".")[0],
                    "namespace": namespace,
                },
            },
        }
        answer = json.loads(kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(question)))
        return bool(answer["status"]["allowed"])

    assert may("create", "pods", USERS)
    assert may("watch", "bigmodeljobs.bigmodel.io", USERS)
    assert not may("get", "secrets", SYSTEM)
    assert not may("list", "secrets", USERS)
    assert not may("patch", "bigmodeljobs.bigmodel.io", USERS)


@pytest.mark.usefixtures("release")
def test_an_uninstall_keeps_the_crds_and_what_users_declared(kubectl: Kubectl, helm: Helm) -> None:
    """The last of this file: the release is gone afterwards."""
    job = {"apiVersion": API_VERSION, "kind": "BigModelJob", "metadata": {"name": "stays", "namespace": USERS}}
    kubectl.apply({**job, "spec": {"recipe": {"name": "mlp"}}})
    helm("uninstall", "bigmodel")
    assert [item["metadata"]["name"] for item in objects(kubectl, USERS, "bmj")] == ["stays"]
    assert objects(kubectl, SYSTEM, "deployments") == []
