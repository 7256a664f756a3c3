"""HTTP for the kubelet and Prometheus: /healthz, /readyz, /metrics.

Alive means that this process does its work, not that the API server answers: a restart would not help against that.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from bigmodel.controller import metrics
from bigmodel.controller.kube.reflector import Reflector
from bigmodel.controller.workqueue import WorkQueue

TURN_LIMIT_SECONDS = 90.0  # a reflector's loop turns at least this often: twice the silence that ends a watch
QUEUE_LIMIT_SECONDS = 180.0  # an object waits for a worker at most this long: three passes that were given up

logger = logging.getLogger(__name__)


@dataclass
class Health:
    """What the answers are made of; `main` fills it in as it gets on."""

    queue: WorkQueue
    reflectors: Mapping[str, Reflector] = field(default_factory=dict)  # of the leader, by kind
    ready: bool = False  # this process has reached the API server: it leads, or stands by to

    def problems(self) -> list[str]:
        """Why this process should be restarted; empty when it should not."""
        now = asyncio.get_running_loop().time()
        found = [
            f"the watch of {kind} has not moved for {age:.0f} s"
            for kind, reflector in self.reflectors.items()
            if (age := reflector.turn_age(now)) > TURN_LIMIT_SECONDS
        ]
        if (age := self.queue.oldest_seconds()) > QUEUE_LIMIT_SECONDS:
            found.append(f"an object has waited {age:.0f} s for a worker")
        return found

    def measure(self) -> None:
        """Renew the metrics that nobody sets when they change."""
        now = asyncio.get_running_loop().time()
        metrics.QUEUE_DEPTH.set(len(self.queue))
        metrics.QUEUE_OLDEST_SECONDS.set(self.queue.oldest_seconds())
        for kind, reflector in self.reflectors.items():
            metrics.WATCHED_OBJECTS.labels(kind).set(len(reflector))
            metrics.WATCH_AGE_SECONDS.labels(kind).set(reflector.contact_age(now))
            metrics.RELISTS.labels(kind).set(reflector.relists)


@asynccontextmanager
async def served(health: Health, health_port: int, metrics_port: int, host: str | None = None) -> AsyncIterator[None]:
    """Answer while the block runs; one server where both ports are the same. `host` None: all addresses, v4 and v6."""

    async def healthz(request: web.Request) -> web.Response:
        problems = health.problems()
        for problem in problems:
            logger.error("not healthy: %s", problem)
        return web.Response(text="\n".join(problems) or "ok", status=500 if problems else 200)

    async def readyz(request: web.Request) -> web.Response:
        if health.ready:
            return web.Response(text="ok")
        return web.Response(text="the API server was not reached yet", status=503)

    async def metrics_page(request: web.Request) -> web.Response:
        health.measure()
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    probes = [web.get("/healthz", healthz), web.get("/readyz", readyz)]
    pages = [web.get("/metrics", metrics_page)]
    sites = {health_port: probes, metrics_port: pages} if health_port != metrics_port else {health_port: probes + pages}
    runners = []
    try:
        for port, routes in sites.items():
            application = web.Application()
            application.add_routes(routes)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, host, port).start()
        yield
    finally:
        for runner in runners:
            await runner.cleanup()
