"""BigModelJob as the engine calls it: facts from caches and from index 0, then `decide`."""

from dataclasses import replace
from datetime import datetime
from typing import Protocol

from bigmodel.controller.decision import (
    BIG_MODEL_JOB,
    NETWORK_POLICY,
    POD,
    POD_GROUP,
    PRIORITY_CLASS,
    RESOURCE_FLAVOR,
    SERVICE,
    WORKLOAD,
    WORKLOAD_PRIORITY_CLASS,
    Children,
    Decision,
    Key,
    Manifest,
    Rejection,
    ResourceKind,
)
from bigmodel.controller.job import kueue
from bigmodel.controller.job.decide import decide
from bigmodel.controller.job.gang import arrange
from bigmodel.controller.job.inquiries import Stuck
from bigmodel.controller.job.observe import Complaint, ObservedJob, Pulled, Room, observed_job
from bigmodel.controller.job.progress import Target
from bigmodel.controller.kube import errors
from bigmodel.controller.settings import Settings

# What queueing needs beside, where Kueue is switched on: a child of each job, and what is read of the whole cluster.
QUEUED_CHILDREN = (WORKLOAD,)
QUEUED_READS = (RESOURCE_FLAVOR, WORKLOAD_PRIORITY_CLASS, PRIORITY_CLASS)


class Facts(Protocol):
    """What the cluster can do."""

    pod_group_served: bool
    workload: ResourceKind | None


class Reader(Protocol):
    """What `kube.client.Client` offers."""

    async def get(self, kind: ResourceKind, namespace: str | None, name: str) -> Manifest: ...


class ProgressReports(Protocol):
    """What `progress.ProgressSource` offers."""

    def follow(self, key: Key, target: Target | None) -> None: ...
    def latest(self, key: Key) -> Pulled | None: ...


class Questions(Protocol):
    """What `inquiries.Inquiries` offers."""

    def room(self, key: Key) -> Room | None: ...
    def complaint(self, key: Key, stuck: Stuck) -> Complaint | None: ...
    def placed(self, key: Key) -> None: ...
    def started(self, key: Key) -> None: ...


class JobReconciler:
    kind: ResourceKind = BIG_MODEL_JOB
    children: tuple[ResourceKind, ...] = (POD, SERVICE, POD_GROUP, NETWORK_POLICY)
    related: tuple[ResourceKind, ...] = ()

    def __init__(
        self, settings: Settings, facts: Facts, progress: ProgressReports, inquiries: Questions, reader: Reader
    ) -> None:
        if settings.kueue.enabled:
            self.children = (*self.children, *QUEUED_CHILDREN)
        self._settings = settings
        self._reader = reader
        self._facts = facts
        self._progress = progress
        self._inquiries = inquiries

    async def observe(self, owner: Manifest, children: Children, rejections: tuple[Rejection, ...]) -> ObservedJob:
        metadata = owner["metadata"]
        key = Key(self.kind.kind, metadata["namespace"], metadata["name"])
        workload = self._facts.workload if self._settings.kueue.enabled else None
        served = self._facts.pod_group_served
        job = observed_job(owner, children, rejections, self._progress.latest(key), served, workload)
        self._progress.follow(key, _target(job))
        read = {(kind.kind, name): await self._read(kind, name) for kind, name in kueue.reads(job)}
        job = replace(job, queueing=replace(job.queueing, read=read)) if read else job
        return self._with_answers(key, job)

    def _with_answers(self, key: Key, job: ObservedJob) -> ObservedJob:
        """With what is known of a gang that does not fit, or of a pod that does not start."""
        room = complaint = None
        gang = arrange(job, job.status)
        over = job.status.finished is not None or job.managed_by is not None
        if not over and gang.unplaced:
            room = self._inquiries.room(key)
        else:
            self._inquiries.placed(key)
        stuck = next((pod for pod in gang.pods if pod.bound and not pod.terminal and pod.running_since is None), None)
        if not over and stuck is not None:
            complaint = self._inquiries.complaint(key, Stuck(job.namespace, stuck.name, stuck.uid))
        else:
            self._inquiries.started(key)
        return replace(job, room=room, complaint=complaint)

    async def _read(self, kind: ResourceKind, name: str) -> Manifest | str:
        """Of the whole cluster; or the sentence why it can't be had."""
        try:
            return await self._reader.get(kind, None, name)
        except errors.NotFound:
            return f"{kind.kind} {name} does not exist"
        except errors.Refused as error:
            return f"{kind.kind} {name} may not be read: {error}"

    def decide(self, snapshot: ObservedJob, now: datetime) -> Decision:
        return decide(snapshot, self._settings, now)


def _target(job: ObservedJob) -> Target | None:
    """The pod that coordinates the current attempt, while it runs."""
    if job.status.finished is not None or job.managed_by is not None:
        return None
    gang = arrange(job, job.status)
    if not gang.launched:
        return None
    first = gang.current.get(0)
    if first is None or not first.running or first.ip is None:
        return None
    formation = tuple(pod.uid for pod in gang.pods if pod.running)
    return Target(first.uid, first.ip, job.uid, first.attempt, formation)
