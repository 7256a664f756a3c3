"""How a controller is started for a test: as the process that it is, or inside the test's own, where it dies exactly
when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio.client import Configuration

from bigmodel.controller import main
from bigmodel.controller.decision import BIG_MODEL_JOB, BIG_MODEL_SERVICE, Key
from bigmodel.controller.health import Health
from bigmodel.controller.kube.client import Client
from bigmodel.controller.kube.reflector import Reflector
from bigmodel.controller.settings import Settings
from bigmodel.controller.workqueue import WorkQueue
from tests.builders import SETTINGS
from tests.cluster import api_server

ROOT = Path(__file__).parents[2]


class Controller:
    """What the leader does, for one namespace; `kill` leaves whatever is half done half done.

    Its trigger is a reflector of each kind instead of kopf, whose thread could not be killed at an exact write.
    """

    def __init__(self, configuration: Configuration, namespace: str, settings: Settings) -> None:
        self._configuration = configuration
        self._settings = settings.model_copy(update={"watch_namespaces": (namespace,)})
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def kill(self) -> None:
        assert self._task is not None
        self.dies()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def dies(self) -> None:
        """From inside a request of its own: not one more step is taken."""
        assert self._task is not None
        self._task.cancel()

    async def _run(self) -> None:
        client, queue = Client(self._configuration), WorkQueue()
        kinds = [
            Reflector(client, kind, self._settings.watch_namespaces) for kind in (BIG_MODEL_JOB, BIG_MODEL_SERVICE)
        ]

        async def watch() -> None:
            async with asyncio.TaskGroup() as group:
                for kind in kinds:
                    group.create_task(_queue_changes(kind, queue))
                    group.create_task(kind.run())

        try:
            await main.act(client, self._settings, queue, Health(queue), "test", watch)
        finally:
            await client.close()


async def _queue_changes(kind: Reflector, queue: WorkQueue) -> None:
    async for change in kind.changes():
        metadata = change.object["metadata"]
        queue.add(Key(kind.kind.kind, metadata["namespace"], metadata["name"]))


async def connections_closed() -> None:
    """A connection whose request was cancelled still says farewell by TLS; the loop must not end before."""
    loop: Any = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        while any(transport._protocol is not None for transport in loop._transports.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    gc.collect()  # a pass that was killed leaves coroutines that never ran: here, not in somebody else's test


class ControllerProcess:
    """One replica."""

    def __init__(self, folder: Path, kubeconfig: Path, name: str, watch_namespaces: tuple[str, ...] = ()) -> None:
        self.health_port, self.metrics_port = api_server.free_ports(2)
        settings = {
            "images": SETTINGS.images.wire(),
            "store": {"s3": {"bucket": "models", "endpoint": "http://s3.test", "secretName": "s3-login"}},
            "watchNamespaces": list(watch_namespaces),
            "healthPort": self.health_port,
            "metricsPort": self.metrics_port,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bigmodel.controller", "--settings", str(path), "--kubeconfig", str(kubeconfig)],
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT / "operator"),
                    "POD_NAMESPACE": next(iter(watch_namespaces), "default"),
                },
                stderr=log,
            )

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def said(self, text: str) -> bool:
        return any(text in line["message"] for line in self.log())

    def get(self, path: str) -> tuple[int, str]:
        port = self.metrics_port if path == "/metrics" else self.health_port
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, series: str) -> float:
        """The sum over all series that begin so."""
        lines = [line.rsplit(" ", 1) for line in self.get("/metrics")[1].splitlines()]
        return sum(float(value) for name, value in lines if name.startswith(series))

    def leads(self) -> bool:
        return self.metric("bigmodel_leader") == 1

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
