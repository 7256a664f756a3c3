"""The chart on the local cluster, with images built from this checkout and the embedded store."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster.images import load
from tests.cluster.kubectl import helm, kubectl
from tests.demo.terminal import step

CHART = Path(__file__).resolve().parents[2] / "charts" / "bigmodel-operator"
RELEASE = "bigmodel"
SYSTEM_NAMESPACE = "bigmodel-system"
DEMO_NAMESPACE = "demo"
STORE_SECRET = "bigmodel-store"
IMAGES = ("operator", "trainer", "server", "triton", "store")
CRDS = ("bigmodeljobs.bigmodel.io", "bigmodelservices.bigmodel.io")


class AnotherVersionRuns(RuntimeError):
    """The local cluster carries an operator of other sources and its users' objects: it is not replaced under them."""


def values(images: dict[str, str]) -> dict[str, object]:
    return {
        "images": images,
        "imagePullPolicy": "Never",
        # Triton 2.51 (24.10) is what the local image's wheel carries; the chart's own floor is higher, for its CVEs.
        "triton": {"minimumVersion": "24.10"},
        "store": {"embedded": {"enabled": True}, "secretNamespaces": [DEMO_NAMESPACE]},
    }


def install() -> None:
    """Install or upgrade the release. Again with the same sources it changes nothing.

    Raises:
        AnotherVersionRuns: other images run there and the cluster has jobs or services.
    """
    with step("images"):
        wanted = values(load(IMAGES))
    running = installed()
    if running is not None and running.get("images") != wanted["images"] and (users := _users()):
        raise AnotherVersionRuns(
            f"the local cluster runs an operator of another version beside {', '.join(users)}: "
            "look at them with that checkout, then `make down` and run this again"
        )
    for namespace in (SYSTEM_NAMESPACE, DEMO_NAMESPACE):
        kubectl("apply", "-f", "-", stdin=f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}")
    with step("helm upgrade --install"):
        helm(
            *("upgrade", "--install", RELEASE, str(CHART), "--namespace", SYSTEM_NAMESPACE),
            *_set(wanted),
            *("--wait", "--timeout", "180s"),
        )


def installed() -> dict[str, object] | None:
    """The values of the running release, None where there is none."""
    releases = json.loads(helm("list", "--namespace", SYSTEM_NAMESPACE, "--deployed", "--output", "json"))
    if not any(release["name"] == RELEASE for release in releases):
        return None
    found: dict[str, object] = json.loads(helm("get", "values", RELEASE, "-n", SYSTEM_NAMESPACE, "-o", "json"))
    return found


def _set(tree: dict[str, object]) -> list[str]:
    return [argument for key, value in tree.items() for argument in ("--set-json", f"{key}={json.dumps(value)}")]


def _users() -> list[str]:
    """Jobs and services of people, as namespace/kind/name."""
    found = json.loads(kubectl("get", ",".join(CRDS), "--all-namespaces", "--output", "json"))["items"]
    return [f"{o['metadata']['namespace']}/{o['kind']}/{o['metadata']['name']}" for o in found]
