"""When the kubelet should start this process anew, and what Prometheus reads."""

import asyncio

import aiohttp
import pytest

from bigmodel.controller.decision import POD, Key
from bigmodel.controller.health import Health, served
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.reflector import Reflector
from bigmodel.controller.workqueue import WorkQueue
from tests.cluster.api_server import free_ports
from tests.unit.controller.engine.memory_api import MemoryApi
from tests.unit.controller.engine.virtual_time import run


def test_an_api_server_that_is_down_is_no_reason_to_start_anew_but_a_stuck_watch_is() -> None:
    async def main() -> None:
        api = MemoryApi()
        reflector = Reflector(api, POD)  # type: ignore[arg-type]
        health = Health(WorkQueue(), {"Pod": reflector})
        task = asyncio.create_task(reflector.run())
        await reflector.synced()
        api.fault = lambda verb, kind, name: errors.Unavailable("connection refused")
        await api.break_watches()
        await asyncio.sleep(3600)
        assert health.problems() == []
        task.cancel()
        await asyncio.sleep(600)
        assert [problem.split(" has not")[0] for problem in health.problems()] == ["the watch of Pod"]

    run(main())


def test_an_object_that_no_worker_takes_is_a_reason() -> None:
    async def main() -> None:
        health = Health(WorkQueue())
        health.queue.add(Key("BigModelJob", "ml", "mlp"))
        await asyncio.sleep(100)
        assert health.problems() == []
        await asyncio.sleep(100)
        assert health.problems() == ["an object has waited 200 s for a worker"]

    run(main())


@pytest.mark.parametrize("same_port", [True, False])
async def test_the_pages(same_port: bool) -> None:
    health = Health(WorkQueue())
    first, second = free_ports(2)
    metrics_port = first if same_port else second
    async with served(health, first, metrics_port, "127.0.0.1"), aiohttp.ClientSession() as session:

        async def page(port: int, path: str) -> tuple[int, str]:
            async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, await answer.text()

        assert await page(first, "/healthz") == (200, "ok")
        assert (await page(first, "/readyz"))[0] == 503
        health.ready = True
        assert await page(first, "/readyz") == (200, "ok")
        assert "bigmodel_queue_depth 0.0" in (await page(metrics_port, "/metrics"))[1]
