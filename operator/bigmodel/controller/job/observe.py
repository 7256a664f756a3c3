"""What is there: the job, its pods and its other children, as immutable facts. Reads manifests, judges nothing."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from bigmodel.api import names
from bigmodel.api.job import JobSpec, JobStatus
from bigmodel.api.progress import LastWord, Progress
from bigmodel.controller.decision import (
    NETWORK_POLICY,
    POD,
    POD_GROUP,
    SERVICE,
    WORKLOAD,
    Children,
    Manifest,
    Rejection,
    ResourceKind,
)
from bigmodel.controller.job.capacity import NodeRoom
from bigmodel.controller.job.reports import last_word_of
from bigmodel.controller.job.workload import Queueing, queueing

CONTAINER = "trainer"


@dataclass(frozen=True)
class Waiting:
    """Why the container does not run yet, in the kubelet's words."""

    reason: str
    message: str


@dataclass(frozen=True)
class Ended:
    """How the container ended. `reason` is the kubelet's word: Completed, Error, OOMKilled."""

    exit_code: int
    reason: str
    message: str
    at: datetime | None
    started_at: datetime | None = None


@dataclass(frozen=True)
class ObservedPod:
    """One pod of the job. `attempt`, `index` and `replacement` come from its name, which nobody can edit."""

    name: str
    uid: str
    attempt: int
    index: int
    replacement: int
    labels: Mapping[str, str]
    phase: str
    created: datetime
    ready: bool = False
    node: str | None = None
    ip: str | None = None
    group: str | None = None  # its PodGroup; the API server drops the field where the feature is off
    bound_at: datetime | None = None  # None: no node yet
    unschedulable: str | None = None  # the scheduler's text
    deleted_until: datetime | None = None  # the end of its grace, once somebody deleted it
    disrupted: str | None = None  # reason of its DisruptionTarget condition
    told_to_stop_at: datetime | None = None  # disrupted or deleted, while its container ran
    unreachable: bool = False  # deleted, on a node that is not Ready: nobody there will end it
    reason: str | None = None  # status.reason, such as Evicted
    message: str | None = None
    waiting: Waiting | None = None
    ended: Ended | None = None
    running_since: datetime | None = None  # of the container
    last_word: LastWord | None = None  # of a launcher

    @property
    def bound(self) -> bool:
        return self.node is not None

    @property
    def running(self) -> bool:
        return self.phase == "Running"

    @property
    def succeeded(self) -> bool:
        """Not one that ended well because it was told to stop: only a launcher's last word says that it was done."""
        return self.phase == "Succeeded" and (self.told_to_stop_at is None or self.last_word is not None)

    @property
    def terminal(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True)
class ObservedPodGroup:
    name: str
    uid: str
    attempt: int
    scheduled: bool
    unschedulable: str | None  # the scheduler's text, with its numbers
    topology_key: str | None = None  # the API server drops it where the feature is off


@dataclass(frozen=True)
class ObservedChild:
    """A child that somebody may have edited."""

    uid: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Pulled:
    """What the pod of index 0 answered, or since when it does not."""

    pod_uid: str
    at: datetime
    progress: Progress | None
    failing_since: datetime | None = None
    failure: str = ""


@dataclass(frozen=True)
class Room:
    """What nodes have free, or why that is not known."""

    nodes: tuple[NodeRoom, ...]
    unknown: str = ""


@dataclass(frozen=True)
class Complaint:
    """The last warning about a pod that does not start."""

    pod_uid: str
    message: str


@dataclass(frozen=True)
class ObservedJob:
    """One BigModelJob and all that is of it. `spec` is None where it can't be read, with `problems` saying why."""

    namespace: str
    name: str
    uid: str
    generation: int
    created: datetime
    deleting: bool
    managed_by: str | None
    spec: JobSpec | None
    raw_spec: Mapping[str, Any]
    problems: tuple[str, ...]
    status: JobStatus
    pods: tuple[ObservedPod, ...] = ()
    pod_groups: tuple[ObservedPodGroup, ...] = ()
    services: Mapping[str, ObservedChild] = field(default_factory=dict)  # by name
    network_policies: Mapping[str, ObservedChild] = field(default_factory=dict)  # by name
    rejections: tuple[Rejection, ...] = ()
    pulled: Pulled | None = None
    pod_group_served: bool = False
    queueing: Queueing = field(default_factory=Queueing)
    room: Room | None = None  # of a gang that does not fit
    complaint: Complaint | None = None


def observed_job(
    owner: Manifest,
    children: Children,
    rejections: tuple[Rejection, ...],
    pulled: Pulled | None,
    pod_group_served: bool,
    workload_kind: ResourceKind | None = None,
) -> ObservedJob:
    """`workload_kind`: Kueue's Workload in the version that is served, None where it is not."""
    metadata = owner["metadata"]
    namespace, name, uid = metadata["namespace"], metadata["name"], metadata["uid"]
    raw_spec = owner.get("spec") or {}
    spec, problems = _spec(raw_spec)
    launched = not raw_spec.get("command")
    pods = [pod for manifest in children.of(POD) if (pod := _pod(manifest, name, uid, launched)) is not None]
    groups = [group for manifest in children.of(POD_GROUP) if (group := _pod_group(manifest, name, uid)) is not None]
    return ObservedJob(
        namespace=namespace,
        name=name,
        uid=uid,
        generation=metadata.get("generation", 0),
        created=_time(metadata["creationTimestamp"]),
        deleting=metadata.get("deletionTimestamp") is not None,
        managed_by=raw_spec.get("managedBy") or None,
        spec=spec,
        raw_spec=raw_spec,
        problems=problems,
        status=_status(owner.get("status") or {}, pods),
        pods=tuple(sorted(pods, key=lambda pod: (pod.attempt, pod.index, pod.replacement))),
        pod_groups=tuple(sorted(groups, key=lambda group: group.attempt)),
        services=_by_name(children.of(SERVICE)),
        network_policies=_by_name(children.of(NETWORK_POLICY)),
        rejections=rejections,
        pulled=pulled,
        pod_group_served=pod_group_served,
        queueing=queueing(owner, children.of(WORKLOAD), workload_kind),
    )


def _by_name(children: Iterable[Manifest]) -> dict[str, ObservedChild]:
    return {
        child["metadata"]["name"]: ObservedChild(child["metadata"]["uid"], child.get("spec") or {})
        for child in children
    }


def _spec(raw: Mapping[str, Any]) -> tuple[JobSpec | None, tuple[str, ...]]:
    try:
        return JobSpec.model_validate(raw), ()
    except ValidationError as error:
        return None, tuple(
            f"spec.{'.'.join(map(str, detail['loc']))}: {detail['msg']}, got {str(detail['input'])[:80]!r}"
            for detail in error.errors(include_url=False)
        )


def _status(raw: Mapping[str, Any], pods: list[ObservedPod]) -> JobStatus:
    """The counters as written. A status that was lost while pods live on is begun at their attempt, not at none."""
    try:
        status = JobStatus.model_validate(raw)
    except ValidationError:  # written by another version under another schema: only what was counted matters
        status = JobStatus(attempt=raw["attempt"]) if isinstance(raw.get("attempt"), int) else JobStatus()
    attempt = max((pod.attempt for pod in pods), default=0)
    return status if status.attempt >= attempt else status.model_copy(update={"attempt": attempt})


def _pod(manifest: Manifest, job: str, uid: str, launched: bool) -> ObservedPod | None:
    """None: a child of ours whose name is none of ours. `launched`: its last word is a launcher's."""
    metadata, spec, status = manifest["metadata"], manifest.get("spec") or {}, manifest.get("status") or {}
    place = re.fullmatch(rf"{re.escape(names.job_service(job, uid))}-a(\d+)-(\d+)(?:-r(\d+))?", metadata["name"])
    if place is None:
        return None
    attempt, index, replacement = (int(number or 0) for number in place.groups())
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    disruption = conditions.get("DisruptionTarget", {})
    disrupted = disruption.get("reason") or "Disrupted" if disruption.get("status") == "True" else None
    # The node controller marks the pods of a node that is not Ready: Ready alone, ContainersReady stays as the kubelet
    # left it. Then it evicts them by taint. A pod that a live kubelet ends stays Ready until its process goes.
    ready, containers_ready = (
        conditions.get(kind, {}).get("status") == "True" for kind in ("Ready", "ContainersReady")
    )
    by_taint = disrupted == "DeletionByTaintManager"
    container: Mapping[str, Any] = next(
        (c for c in status.get("containerStatuses") or () if c.get("name") == CONTAINER), {}
    )
    state = container.get("state") or {}
    ended = _ended(state.get("terminated"))
    deleted = metadata.get("deletionTimestamp")
    told_to_stop_at = _told_to_stop_at(metadata, disruption)
    if ended is not None and ended.at is not None and told_to_stop_at is not None and ended.at < told_to_stop_at:
        told_to_stop_at = None  # what has ended can be deleted without harm
    return ObservedPod(
        name=metadata["name"],
        uid=metadata["uid"],
        attempt=attempt,
        index=index,
        replacement=replacement,
        labels=metadata.get("labels") or {},
        phase=status.get("phase") or "Pending",
        created=_time(metadata["creationTimestamp"]),
        ready=ready,
        node=spec.get("nodeName"),
        ip=status.get("podIP"),
        group=(spec.get("schedulingGroup") or {}).get("podGroupName"),
        bound_at=_bound_at(scheduled, metadata) if spec.get("nodeName") else None,
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else None,
        deleted_until=_time(deleted) if deleted else None,
        disrupted=disrupted,
        told_to_stop_at=told_to_stop_at,
        unreachable=bool(deleted) and "running" in state and not ready and (by_taint or containers_ready),
        reason=status.get("reason"),
        message=status.get("message"),
        waiting=_waiting(state.get("waiting")),
        ended=ended,
        running_since=_time_or_none((state.get("running") or {}).get("startedAt")),
        last_word=last_word_of(ended.message, uid, attempt, index) if ended and launched else None,
    )


def _bound_at(scheduled: Mapping[str, Any], metadata: Mapping[str, Any]) -> datetime:
    known = scheduled.get("status") == "True" and scheduled.get("lastTransitionTime")
    return _time(known or metadata["creationTimestamp"])


def _told_to_stop_at(metadata: Mapping[str, Any], disruption: Mapping[str, Any]) -> datetime | None:
    """The earlier of its disruption and its deletion."""
    times = []
    if disruption.get("status") == "True" and disruption.get("lastTransitionTime"):
        times.append(_time(disruption["lastTransitionTime"]))
    if ends := metadata.get("deletionTimestamp"):
        times.append(_time(ends) - timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0))
    return min(times, default=None)


def _waiting(waiting: Mapping[str, Any] | None) -> Waiting | None:
    return Waiting(waiting.get("reason") or "", waiting.get("message") or "") if waiting else None


def _ended(terminated: Mapping[str, Any] | None) -> Ended | None:
    if not terminated:
        return None
    return Ended(
        terminated.get("exitCode", 0),
        terminated.get("reason") or "",
        terminated.get("message") or "",
        _time_or_none(terminated.get("finishedAt")),
        _time_or_none(terminated.get("startedAt")),
    )


def _pod_group(manifest: Manifest, job: str, uid: str) -> ObservedPodGroup | None:
    metadata = manifest["metadata"]
    attempt = re.fullmatch(rf"{re.escape(names.job_service(job, uid))}-a(\d+)", metadata["name"])
    if attempt is None:
        return None
    conditions = (manifest.get("status") or {}).get("conditions") or ()
    constraints = ((manifest.get("spec") or {}).get("schedulingConstraints") or {}).get("topology") or ()
    scheduled: Mapping[str, Any] = next((c for c in conditions if c["type"] == "PodGroupInitiallyScheduled"), {})
    return ObservedPodGroup(
        name=metadata["name"],
        uid=metadata["uid"],
        attempt=int(attempt[1]),
        scheduled=scheduled.get("status") == "True",
        unschedulable=(scheduled.get("message") or None) if scheduled.get("status") == "False" else None,
        topology_key=next((constraint.get("key") for constraint in constraints), None),
    )


def _time_or_none(text: str | None) -> datetime | None:
    return _time(text) if text else None


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
