"""The API server, its store or the controller's own process goes away for a while, and costs no pod."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from bigmodel.controller.decision import POD, ResourceKind
from bigmodel.controller.kube.lease import LEASE
from tests.api.conftest import CRDS
from tests.api.controller import ControllerProcess
from tests.api.kubectl import Kubectl
from tests.cluster.api_server import ControlPlane, control_plane
from tests.cluster.build import cluster_programs
from tests.faults.proxy import Door, Proxy, hangs, proxied
from tests.faults.scenario import COMPLETES, Stage, check, settled, stage_for, until

CRD = ResourceKind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False)

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """One that these tests may break."""
    with control_plane() as plane:
        kubectl = Kubectl(cluster_programs() / "kubectl", plane.kubeconfig)
        kubectl("apply", "--server-side", "-f", str(CRDS))
        kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        yield plane


@pytest_asyncio.fixture
async def proxy(plane: ControlPlane) -> AsyncIterator[Proxy]:
    async with proxied(plane.kubeconfig) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def job(plane: ControlPlane, kubectl: Kubectl, proxy: Proxy) -> AsyncIterator[Stage]:
    async with stage_for(COMPLETES, plane.kubeconfig, kubectl, proxy) as stage:
        yield stage


async def uids(stage: Stage) -> set[str]:
    return {pod["metadata"]["uid"] for pod in await stage.place.nodes.all(POD)}


async def _sees_and_mends_what_is_lost(stage: Stage) -> None:
    """The controller works: a pod that ends is replaced."""
    pod = (await stage.place.pods())["1"]["metadata"]["name"]
    await stage.place.nodes.end(pod, 143, reason="Terminated")
    await stage.place.until("it is replaced", lambda s: s["replacements"] == [{"index": 1, "count": 1}])
    await stage.trains(40)
    await stage.place.completes()
    await settled(stage)
    await check(stage)


@pytest.mark.parametrize("part", ["etcd", "kube-apiserver"])
async def test_a_part_of_the_control_plane_that_is_away_costs_no_pod(
    part: str, plane: ControlPlane, job: Stage, full: bool
) -> None:
    """C19, C20: training goes on meanwhile; when it is back nothing is deleted, and all is seen again."""
    await job.train()
    before, writes = await uids(job), len(job.writes)
    plane.kill(part)
    await asyncio.sleep(60 if full else 4)
    plane.start(part)
    await asyncio.to_thread(plane.wait)
    await settled(job)
    assert await uids(job) == before
    again = {(write.call.verb, write.call.resource) for write in job.writes[writes:]}
    assert again <= {("apply", "bigmodeljobs/status"), ("create", "events")}
    await _sees_and_mends_what_is_lost(job)


async def test_a_new_version_of_the_crd_under_a_running_job_restarts_nothing(job: Stage) -> None:
    """C34: a field more; what the watch of our kind was, is again."""
    await job.train()
    before = await uids(job)
    name = "bigmodeljobs.bigmodel.io"
    crd = next(
        one
        for path in CRDS.glob("*.yaml")
        for one in [yaml.safe_load(path.read_text())]
        if one["metadata"]["name"] == name
    )
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["later"] = {"type": "string", "maxLength": 10}
    await job.client.apply(CRD, crd)
    await until(lambda: _keeps(job, "x"))
    assert (await job.object())["spec"]["later"] == "x"
    generation = (await job.object())["metadata"]["generation"]
    await job.place.until("the edit is seen", lambda s: s["observedGeneration"] == generation)
    assert await uids(job) == before
    await _sees_and_mends_what_is_lost(job)


async def _keeps(stage: Stage, value: str) -> bool:
    return bool((await stage.edit(later=value))["spec"].get("later") == value)


# The process


@asynccontextmanager
async def processes(job: Stage, doors: list[Door], folder: Path) -> AsyncIterator[list[ControllerProcess]]:
    """A controller behind each door, instead of the one inside the test."""
    await job.place.controller.kill()
    started: list[ControllerProcess] = []
    try:
        for door in doors:
            kubeconfig = door.kubeconfig(folder)
            started.append(ControllerProcess(folder, kubeconfig, f"door-{door.port}", (job.namespace,)))
            await _until(started[-1].leads if len(started) == 1 else lambda: started[-1].get("/readyz")[0] == 200)
        yield started
    finally:
        for one in started:
            one.kill()


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(true):  # noqa: ASYNC110 (what is waited for sets no event)
            await asyncio.sleep(0.1)


async def test_told_to_stop_in_the_middle_of_a_write_it_ends_and_gives_the_lease_back(
    job: Stage, proxy: Proxy, tmp_path: Path
) -> None:
    """C3: a write that hangs for ever does not hold it, and the lease is free."""
    async with proxy.door() as door, processes(job, [door], tmp_path) as (one,):
        rule = door.when(lambda call: (call.verb, call.resource) == ("create", "pods"), hangs)
        submitted = asyncio.create_task(job.train())
        await _until(lambda: rule.done > 0)
        one.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(one.process.wait, 5) == 0
        lease = await job.client.get(LEASE, job.namespace, "bigmodel-operator")
        assert not lease["spec"].get("holderIdentity")
        submitted.cancel()


async def test_a_leader_that_is_paused_past_its_lease_writes_nothing_when_it_wakes_up(
    job: Stage, proxy: Proxy, tmp_path: Path
) -> None:
    """C22, C23, C24: one of two acts; the other takes over, and the first ends by itself."""
    async with proxy.door() as one, proxy.door() as other, processes(job, [one, other], tmp_path) as (first, second):
        await job.train()
        assert [write for write in other.writes if write.call.resource != "leases"] == []
        first.process.send_signal(signal.SIGSTOP)
        await _until(second.leads)
        pod = (await job.place.pods())["1"]["metadata"]["name"]
        await job.place.nodes.end(pod, 143, reason="Terminated")
        await job.place.until("it is replaced", lambda s: s["replacements"] == [{"index": 1, "count": 1}])
        before = len(one.writes)
        await job.client.merge_patch(job.kind, job.namespace, "mlp", {"metadata": {"annotations": {"look": "now"}}})
        first.process.send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(first.process.wait, 30) == 1
        late = [write for write in one.writes[before:] if write.call.resource != "leases"]
        assert late == []
        assert not any(write.applied for write in one.writes[before:])
        await job.trains(40)
        await job.place.completes()
