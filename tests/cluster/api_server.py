"""A control plane without nodes for tests/api: one etcd and one kube-apiserver on loopback, gone with the process that
asked for them.

Any number of them run at once, beside the full cluster or without it. There is no controller-manager: nobody makes
service accounts, and a deleted namespace stays Terminating.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.cluster.build import build_programs
from tests.cluster.certificates import issue_all
from tests.cluster.client import Client, wait_until
from tests.cluster.control_plane import apiserver_command, etcd_command

ADDRESS = "127.0.0.1"


class ControlPlane:
    """etcd and kube-apiserver, each of which can be killed and started again; what etcd holds stays."""

    def __init__(self, folder: Path) -> None:
        programs = build_programs()
        etcd_port, peer_port, api_port = free_ports(3)
        certificates = folder / "certificates"
        server = f"https://{ADDRESS}:{api_port}"
        issue_all(certificates, server, [ADDRESS, "localhost"], nodes={})
        self.kubeconfig = certificates / "admin.kubeconfig"
        self._folder = folder
        self._client = Client(server, certificates)
        self._running: dict[str, tuple[ExitStack, subprocess.Popen[bytes]]] = {}
        self._commands = {
            "etcd": etcd_command(programs, folder / "etcd", etcd_port, peer_port),
            "kube-apiserver": [
                *apiserver_command(programs, certificates, etcd_port, ADDRESS, api_port),
                "--endpoint-reconciler-type=none",  # loopback may not be the endpoint of a Service
                "--disable-admission-plugins=ServiceAccount",  # nobody would make the account that it insists on
            ],
        }

    def start(self, name: str) -> None:
        stack = ExitStack()
        self._running[name] = stack, stack.enter_context(bound_to_us(self._commands[name], self._log(name)))

    def kill(self, name: str) -> None:
        if name in self._running:
            self._running.pop(name)[0].close()

    def wait(self) -> None:
        """Until the API server is ready. Raises SystemExit: not in 30 s; the message has the end of the log."""

        def log_end() -> str:
            return "\n".join(self._log("kube-apiserver").read_text(errors="replace").splitlines()[-15:])

        def ready() -> bool:
            process = self._running["kube-apiserver"][1]
            if process.poll() is not None:
                raise SystemExit(f"kube-apiserver ended with {process.returncode}:\n{log_end()}")
            return self._client.ready()

        wait_until("API server ready", ready, 30, log_end)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


@contextmanager
def control_plane() -> Iterator[ControlPlane]:
    """Both run and are ready, with a folder of their own that is deleted at the end.

    Call it from the main thread: the kernel kills both as soon as the *thread* that started them ends, so that nothing
    is left even of a killed test run.

    Raises:
        SystemExit: not ready in 30 s; the message has the end of the log.
    """
    with tempfile.TemporaryDirectory(prefix="bigmodel-api-") as temporary:
        plane = ControlPlane(Path(temporary))
        try:
            plane.start("etcd")
            plane.start("kube-apiserver")
            plane.wait()
            yield plane
        finally:
            plane.kill("kube-apiserver")
            plane.kill("etcd")


@contextmanager
def api_server() -> Iterator[Path]:
    """The path of an administrator's kubeconfig of a control plane that lasts as long as the block."""
    with control_plane() as plane:
        yield plane.kubeconfig


def free_ports(count: int) -> list[int]:
    """Ports of loopback that were free a moment ago, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((ADDRESS, 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def bound_to_us(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with this block, its output in `log`; the kernel kills it should this process be killed."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
        )
    try:
        yield process
    finally:
        process.kill()  # its data is thrown away: there is nothing to end in order
        process.wait()
