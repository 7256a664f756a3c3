"""BigModelJob as the engine calls it: facts from caches and from index 0, then `decide`."""

from datetime import datetime
from typing import Protocol

from bigmodel.controller.decision import (
    BIG_MODEL_JOB,
    NETWORK_POLICY,
    POD,
    POD_GROUP,
    SERVICE,
    Children,
    Decision,
    Key,
    Manifest,
    Rejection,
    ResourceKind,
)
from bigmodel.controller.job.decide import decide
from bigmodel.controller.job.gang import arrange
from bigmodel.controller.job.observe import ObservedJob, Pulled, observed_job
from bigmodel.controller.job.progress import Target
from bigmodel.controller.settings import Settings


class Facts(Protocol):
    """What the cluster can do."""

    pod_group_served: bool


class ProgressReports(Protocol):
    """What `progress.ProgressSource` offers."""

    def follow(self, key: Key, target: Target | None) -> None: ...
    def latest(self, key: Key) -> Pulled | None: ...


class JobReconciler:
    kind: ResourceKind = BIG_MODEL_JOB
    children: tuple[ResourceKind, ...] = (POD, SERVICE, POD_GROUP, NETWORK_POLICY)
    related: tuple[ResourceKind, ...] = ()

    def __init__(self, settings: Settings, facts: Facts, progress: ProgressReports) -> None:
        self._settings = settings
        self._facts = facts
        self._progress = progress

    async def observe(self, owner: Manifest, children: Children, rejections: tuple[Rejection, ...]) -> ObservedJob:
        metadata = owner["metadata"]
        key = Key(self.kind.kind, metadata["namespace"], metadata["name"])
        job = observed_job(owner, children, rejections, self._progress.latest(key), self._facts.pod_group_served)
        self._progress.follow(key, _target(job))
        return job

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
