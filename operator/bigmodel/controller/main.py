"""The process: settings, connection, leadership, then reflectors, triggers and the engine until told to stop.

A standby holds nothing in memory but its wish to lead: what a leader watches, it lists within a second of taking over.
"""

import argparse
import asyncio
import functools
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

from bigmodel.api.names import FIELD_MANAGER
from bigmodel.controller import health, logs, metrics, trigger
from bigmodel.controller.decision import BIG_MODEL_JOB, POD, WORKLOAD, Manifest, Reconciler, ResourceKind
from bigmodel.controller.engine import Engine, related_key
from bigmodel.controller.job.inquiries import Inquiries
from bigmodel.controller.job.progress import ProgressSource
from bigmodel.controller.job.reconciler import JobReconciler
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client, load_configuration
from bigmodel.controller.kube.discovery import ClusterFacts
from bigmodel.controller.kube.events import Recorder
from bigmodel.controller.kube.lease import Elector, LeaseLost
from bigmodel.controller.kube.reflector import Change, Reflector, as_it_is
from bigmodel.controller.service.reconciler import ServiceReconciler
from bigmodel.controller.service.verdicts import VerdictSource
from bigmodel.controller.settings import DEFAULT_PATH, Settings, SettingsError, read_settings
from bigmodel.controller.workqueue import WorkQueue

LEASE_NAME = FIELD_MANAGER
CHILD_SELECTOR = f"app.kubernetes.io/managed-by={FIELD_MANAGER}"
DRAIN_SECONDS = 2.5  # for passes that have begun; with the release of the lease the process ends within 5 s of SIGTERM
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

logger = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bigmodel-controller", description="The controller of BigModel.")
    parser.add_argument("--settings", type=Path, default=DEFAULT_PATH, help="YAML file (default: %(default)s)")
    parser.add_argument("--kubeconfig", type=Path, help="reach the API server by this file (default: as a pod)")
    arguments = parser.parse_args()
    logs.configure()
    try:
        settings = read_settings(arguments.settings)
    except SettingsError as error:
        sys.exit(str(error))
    code = asyncio.run(run(settings, arguments.kubeconfig))
    logging.shutdown()
    # Not sys.exit: it would wait for kopf's thread or a name look-up that hangs, and a lost lease must not wait.
    os._exit(code)


async def run(settings: Settings, kubeconfig: Path | None = None) -> int:
    """The exit code: 0 after SIGTERM or SIGINT, 1 when the lease is lost or a part of this process failed."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    queue = WorkQueue()
    state = health.Health(queue)

    def on_request(verb: str, code: int) -> None:
        metrics.API_REQUESTS.labels(verb, str(code)).inc()
        state.ready = state.ready or 200 <= code < 300

    configuration = await load_configuration(kubeconfig)
    # Its own connections: a renewal must not wait behind a hundred writes that hang.
    electing = Client(configuration, on_request)
    identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    election = settings.leader_election
    elector = Elector(electing, _namespace(), LEASE_NAME, identity, election.lease_seconds, election.renew_seconds)
    client = Client(configuration, on_request, elector.valid)
    async with health.served(state, settings.health_port, settings.metrics_port):
        if not await _unless_stopped(elector.acquire(), stop):
            logger.info("told to stop while standing by")
            return 0
        metrics.LEADER.set(1)
        leading = asyncio.create_task(elector.hold())
        watched = functools.partial(trigger.run, client, configuration, settings.watch_namespaces, queue.add)
        acting = asyncio.create_task(act(client, settings, queue, state, identity, watched))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({leading, acting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if leading.done():
            acting.cancel()  # not one more write
            _log_end(leading)
            return 1
        if stopping.done():
            logger.info("told to stop: finishing %d passes, leaving %d objects", queue.working, len(queue))
            queue.close()
            await asyncio.wait({acting}, timeout=DRAIN_SECONDS)
        failed = acting.done() and not stopping.done()
        if acting.done():
            _log_end(acting)
        acting.cancel()
        leading.cancel()
        await asyncio.wait({acting, leading}, timeout=0.5)
        await elector.release()
        await client.close()
        await electing.close()
    return 1 if failed else 0


async def act(
    client: Client,
    settings: Settings,
    queue: WorkQueue,
    state: health.Health,
    identity: str,
    watch: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """What the leader does, until the queue is closed. `watch` queues the objects of both kinds, until cancelled."""
    await trigger.installed(client)  # before anything is listed, so that all is known when the first event comes
    facts = ClusterFacts()
    await _until_it_answers(lambda: facts.refresh(client))
    jobs = Reflector(client, BIG_MODEL_JOB, settings.watch_namespaces)
    progress, verdicts = ProgressSource(queue.add), VerdictSource(queue.add)
    inquiries = Inquiries(client, settings.watch_namespaces, queue.add)
    services = ServiceReconciler(settings, facts, jobs, verdicts)
    job_rules = JobReconciler(settings, facts, progress, inquiries, client)
    reconcilers: tuple[Reconciler, ...] = (job_rules, services)
    reflectors = _child_reflectors(client, settings, reconcilers)
    follow_version(reflectors, facts)
    services.cached = lambda kind: reflectors[kind.kind].all()
    state.reflectors = {**reflectors, BIG_MODEL_JOB.kind: jobs}
    engine = Engine(client, queue, reconcilers, reflectors, Recorder(client, identity))
    job_changes = jobs.changes()
    async with asyncio.TaskGroup() as group:
        background = [
            group.create_task(facts.keep_fresh(client, lambda: follow_version(reflectors, facts))),
            group.create_task(progress.run()),
            group.create_task(inquiries.run()),
            group.create_task(verdicts.run()),
            group.create_task(_queue_followers(job_changes, services, queue)),
            *(group.create_task(reflector.run()) for reflector in state.reflectors.values()),
        ]
        await jobs.synced()  # a service that follows a job must not be judged before the job is known
        background.append(group.create_task(watch()))
        await engine.run()
        for task in background:
            task.cancel()


def _child_reflectors(client: Client, settings: Settings, reconcilers: Iterable[Reconciler]) -> dict[str, Reflector]:
    """One for each kind, shared by both reconcilers."""
    kinds = {kind.kind: kind for reconciler in reconcilers for kind in (*reconciler.children, *reconciler.related)}
    return {
        name: Reflector(
            client,
            kind,
            settings.watch_namespaces,
            CHILD_SELECTOR,
            related_key,
            LEAN.get(kind, as_it_is),
        )
        for name, kind in kinds.items()
    }


def follow_version(reflectors: dict[str, Reflector], facts: ClusterFacts) -> None:
    """Kueue may come, or be upgraded, while we run: its Workloads are listed in the version that is served then."""
    if facts.workload is not None and (reflector := reflectors.get(facts.workload.kind)) is not None:
        reflector.kind = facts.workload


def pod_without_template(pod: Manifest) -> Manifest:
    """What became of a pod, without what we wrote into its containers and volumes: half its size, read by nobody."""
    spec = {name: value for name, value in pod["spec"].items() if name not in ("volumes", "tolerations", "affinity")}
    for containers in ("initContainers", "containers"):
        if containers in spec:
            spec[containers] = [{name: one[name] for name in ("name", "image")} for one in spec[containers]]
    return {**pod, "spec": spec}


def workload_without_pods(workload: Manifest) -> Manifest:
    """What Kueue made of a request, without the request."""
    return {**workload, "spec": {name: value for name, value in workload["spec"].items() if name != "podSets"}}


LEAN: Mapping[ResourceKind, Callable[[Manifest], Manifest]] = {
    POD: pod_without_template,
    WORKLOAD: workload_without_pods,
}


async def _queue_followers(changes: AsyncIterator[Change], services: ServiceReconciler, queue: WorkQueue) -> None:
    """A job changed: look at the services that follow it."""
    async for change in changes:
        for key in services.followers_of(change.object):
            queue.add(key)


async def _until_it_answers(ask: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            return await ask()
        except errors.ApiError as error:
            logger.warning("waiting for the API server: %s", error)
            await asyncio.sleep(1.0)


async def _unless_stopped(wish: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Whether the wish came true before `stop` was set."""
    wishing, stopping = asyncio.create_task(wish), asyncio.create_task(stop.wait())
    await asyncio.wait({wishing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not wishing.done():
        wishing.cancel()
        return False
    wishing.result()
    return True


def _log_end(task: asyncio.Task[None]) -> None:
    """Why a part of the process ended, loud enough to be the last thing read."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, LeaseLost):
        logger.critical("%s", error)
    elif error is not None:
        logger.critical("this process ends: a part of it failed", exc_info=error)


def _namespace() -> str:
    """Where the lease lives: this pod's namespace."""
    if namespace := os.environ.get("POD_NAMESPACE"):
        return namespace
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else "default"
