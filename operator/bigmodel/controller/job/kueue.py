"""A job that carries Kueue's queue label: no pod before its Workload is admitted, none after it is evicted. Pure.

    no Workload → made → Kueue reserves quota and admits → pods, on the nodes of its flavours
                    ↑                                         ↓ evicted: counted as a new attempt, pods save and leave
                    └── decided anew ← reservation given back ┘
    suspended, resized, label taken away → pods leave → Workload deleted; the end → pods gone → Finished: quota free

The Workload outlives attempts: a pod that fails is replaced without queueing. Its pods name it in a label, so a gang
that started without a queue is not judged by one. A changed label counts from the next time that the job queues.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from bigmodel.api import names
from bigmodel.api.condition import JobCondition
from bigmodel.api.job import JobStatus
from bigmodel.controller.conditions import find, is_true
from bigmodel.controller.decision import (
    PRIORITY_CLASS,
    RESOURCE_FLAVOR,
    WORKLOAD_PRIORITY_CLASS,
    Decision,
    Deletion,
    Manifest,
    ResourceKind,
    StatusApply,
    StatusPatch,
)
from bigmodel.controller.job import build, messages
from bigmodel.controller.job.gang import Gang, arrange, still_runs
from bigmodel.controller.job.messages import Reason
from bigmodel.controller.job.observe import ObservedJob
from bigmodel.controller.job.workload import ANNOTATION_PLACED, LABEL_QUEUE, PodSetUpdate, Verdict, Workload
from bigmodel.controller.settings import Settings

# What Kueue is asked for: a change of it is another request.
ASKED = ("nodes", "resources", "nodeSelector", "tolerations", "priorityClassName", "schedulerName")
# Evictions after which a Workload queues again at once; after others Kueue itself says when: back-off, a queue that is
# started again, a Workload that is made active again.
QUEUES_AGAIN = ("Preempted", "NodeFailures")
UNWATCHED_SECONDS = 60.0


@dataclass(frozen=True)
class Hold:
    """Why no pod may be made now."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Admission:
    """What admission adds to pods."""

    workload: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    topology: tuple[Mapping[str, str], ...] = ()  # by index


class AdmissionError(Exception):
    """The admission can't be followed; the message says what to correct."""


# Judging


def hold(job: ObservedJob, gang: Gang) -> Hold | None:
    """None: no queue has a say in this, or the gang is admitted."""
    queueing, workload = job.queueing, job.queueing.workload
    if gang.pods and not _may_stay(job, gang):
        return Hold(Reason.QUOTA_TAKEN, messages.quota_taken(*_why_taken(workload)))
    if gang.pods:
        return _misplaced(job, gang) if gang.missing else None
    if queueing.queue is None:
        return None
    if queueing.kind is None:
        return Hold(Reason.KUEUE_NOT_SERVED, messages.kueue_not_served(queueing.queue))
    if workload is None or workload.deleting or not _is_asked(job, workload):
        try:
            _priority(job)
        except AdmissionError as error:
            return Hold(Reason.QUEUE_MISCONFIGURED, str(error))
        return Hold(Reason.QUEUED, messages.joins_queue(queueing.queue))
    if not workload.holds:
        text = workload.evicted.message if workload.evicted is not None else workload.waiting
        return Hold(Reason.QUEUED, messages.in_queue(workload.queue, workload.name, text, workload.active))
    return _misplaced(job, gang)


def _misplaced(job: ObservedJob, gang: Gang) -> Hold | None:
    try:
        admission(job, gang)
    except AdmissionError as error:
        return Hold(Reason.QUEUE_MISCONFIGURED, str(error))
    return None


def look_again(held: Hold | None) -> float | None:
    """Seconds, where nothing that is watched tells that the cause is gone."""
    return (
        UNWATCHED_SECONDS
        if held is not None and held.reason in (Reason.KUEUE_NOT_SERVED, Reason.QUEUE_MISCONFIGURED)
        else None
    )


def waits(status: JobStatus) -> bool:
    """Whether the job was last seen waiting for quota."""
    running = find(status.conditions, JobCondition.RUNNING)
    return running is not None and running.reason == Reason.WAITING_FOR_QUOTA


def loss_of_quota(job: ObservedJob, gang: Gang) -> str | None:
    """Why the pods of this attempt have to go; None: they may stay, or there are none."""
    held = hold(job, gang)
    return held.message if held is not None and held.reason is Reason.QUOTA_TAKEN else None


def out_of_time(job: ObservedJob) -> bool:
    """Kueue ended it by maximumExecutionTimeSeconds, and activeDeadlineSeconds was not raised since."""
    workload = job.queueing.workload
    if workload is None or workload.evicted is None or not _is_asked(job, workload):
        return False
    return "MaximumExecutionTimeExceeded" in workload.evicted.reason


def _may_stay(job: ObservedJob, gang: Gang) -> bool:
    used = {pod.labels.get(names.LABEL_WORKLOAD) for pod in gang.pods}
    if None in used or job.queueing.kind is None:
        return True  # started without a queue, or Kueue was uninstalled: nobody counts quota
    workload = job.queueing.workload
    return workload is not None and used == {workload.name} and workload.holds


def _why_taken(workload: Workload | None) -> tuple[str, str]:
    if workload is None or workload.deleting:
        return "its Workload was deleted", ""
    verdict = workload.evicted or Verdict("NotAdmitted", workload.waiting)
    return verdict.reason, verdict.message


def _is_asked(job: ObservedJob, workload: Workload) -> bool:
    return workload.pod_set == pod_set(job)


def pod_set(job: ObservedJob) -> str:
    """Fingerprint of what Kueue is asked for, of the user's fields alone: an upgrade of the operator queues nothing."""
    assert job.spec is not None
    wire = job.spec.wire()
    asked = {name: wire[name] for name in (*ASKED, "activeDeadlineSeconds") if name in wire}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


# Admitted pods


def reads(job: ObservedJob) -> tuple[tuple[ResourceKind, str], ...]:
    """The cluster-wide objects that the next decision needs."""
    queueing, workload, gang = job.queueing, job.queueing.workload, arrange(job, job.status)
    if queueing.kind is None or job.spec is None or job.status.finished is not None:
        return ()
    wanted = [(kind, name) for kind, name in (_priority_class(job),) if name and not (workload and workload.reserved)]
    if workload is not None and workload.holds and gang.missing:
        wanted += [(RESOURCE_FLAVOR, flavor) for flavor in workload.flavors]
    return tuple((_served_with(kind, queueing.kind), name) for kind, name in wanted)


def _served_with(kind: ResourceKind, workload: ResourceKind) -> ResourceKind:
    return kind if kind is PRIORITY_CLASS else replace(kind, api_version=workload.api_version)


def admission(job: ObservedJob, gang: Gang) -> Admission | None:
    """None: this gang is not in a queue. Raises AdmissionError."""
    workload = job.queueing.workload
    if workload is None or not workload.holds or job.queueing.kind is None:
        return None
    used = {pod.labels.get(names.LABEL_WORKLOAD) for pod in gang.pods}
    if workload.name not in used and (used or job.queueing.queue is None):
        return None
    assert job.spec is not None
    user = job.spec.pod_metadata
    labels, annotations = dict((user and user.labels) or {}), dict((user and user.annotations) or {})
    selector: dict[str, str] = dict(job.spec.node_selector)
    tolerations: list[Mapping[str, Any]] = []
    flavors = [_flavor(job, name) for name in workload.flavors]
    for update in (*flavors, *workload.updates):
        _add(labels, update.labels, "labels")
        _add(annotations, update.annotations, "annotations")
        _add(selector, update.node_selector, "nodeSelector")
        tolerations += [toleration for toleration in update.tolerations if toleration not in tolerations]
    labels.pop(LABEL_QUEUE, None)  # Kueue would take the pods over
    if workload.topology:
        annotations[ANNOTATION_PLACED] = "true"
    return Admission(workload.name, labels, annotations, selector, tuple(tolerations), workload.topology)


def _flavor(job: ObservedJob, name: str) -> PodSetUpdate:
    spec = _read(job, RESOURCE_FLAVOR, name).get("spec") or {}
    return PodSetUpdate(node_selector=spec.get("nodeLabels") or {}, tolerations=tuple(spec.get("tolerations") or ()))


def _read(job: ObservedJob, kind: ResourceKind, name: str) -> Manifest:
    found = job.queueing.read.get((kind.kind, name), f"{kind.kind} {name} was not read")
    if isinstance(found, str):
        raise AdmissionError(messages.queue_misconfigured(found))
    return found


def _add(known: dict[str, str], more: Mapping[str, str], what: str) -> None:
    """Additions only, as Kueue demands it of admission checks."""
    for name, value in more.items():
        if known.setdefault(name, value) != value:
            raise AdmissionError(messages.admission_contradicts(what, name, known[name], value))


def admitted_pod(pod: Manifest, admission: Admission, index: int) -> Manifest:
    """The pod with what its admission adds. What is ours stays ours, by name."""
    metadata, spec = pod["metadata"], pod["spec"]
    place = admission.topology[index] if index < len(admission.topology) else {}
    labels = {**admission.labels, **metadata["labels"], names.LABEL_WORKLOAD: admission.workload}
    annotations = {**admission.annotations, **metadata["annotations"]}
    added = {
        "nodeSelector": {**spec.get("nodeSelector", {}), **admission.node_selector, **place},
        "tolerations": [*spec.get("tolerations", []), *map(dict, admission.tolerations)],
    }
    return {
        **pod,
        "metadata": {**metadata, "labels": labels, "annotations": annotations},
        "spec": {**spec, **{name: value for name, value in added.items() if value}},
    }


# The Workload


def upkeep(job: ObservedJob, gang: Gang, settings: Settings, now: datetime) -> Decision:
    """What is to be done about the Workload of a job that has not ended."""
    kind, current = job.queueing.kind, job.queueing.workload
    if kind is None or job.spec is None:
        return Decision()
    wanted = job.queueing.queue is not None and not job.spec.suspend
    keep = current if current is not None and _is_kept(job, gang, current, wanted) else None
    gone = tuple(
        Deletion(kind, workload.name, workload.uid)
        for workload in job.queueing.workloads
        if workload is not keep and not workload.deleting and not _is_used(job, workload.name, now)
    )
    if keep is not None:
        return replace(_kept(job, gang, keep, settings, now), delete=gone)
    free = not job.queueing.workloads and not gang.pods and not _is_used(job, None, now)
    if not (wanted and free):
        return Decision(delete=gone)
    try:
        request = _request(job, max(1, job.status.attempt))
    except AdmissionError:
        return Decision(delete=gone)  # told by `hold`
    return Decision(create=(build.workload(job, settings, kind, request),), delete=gone)


def _is_kept(job: ObservedJob, gang: Gang, workload: Workload, wanted: bool) -> bool:
    """Also without the label while its pods run: what is changed there counts from the next admission."""
    if workload.deleting or (job.spec is not None and job.spec.suspend):
        return False
    if any(pod.labels.get(names.LABEL_WORKLOAD) == workload.name for pod in gang.pods):
        return True
    return wanted and _is_asked(job, workload)


def _kept(job: ObservedJob, gang: Gang, workload: Workload, settings: Settings, now: datetime) -> Decision:
    kind = job.queueing.kind
    assert kind is not None
    if workload.evicted is not None:
        if _is_used(job, workload.name, now):
            return Decision()
        return Decision(child_status=(_given_back(kind, workload, workload.evicted, now),))
    ready = _pods_ready(gang, workload)
    said = (_said(kind, workload, now, ready),) if ready is not None else ()
    if workload.reserved or (workload.queue, workload.priority_class) == (job.queueing.queue, _priority_class(job)[1]):
        return Decision(child_status=said)
    try:
        request = replace(_request(job, workload.number), active=workload.active)
    except AdmissionError:
        return Decision(child_status=said)
    return Decision(apply=(build.workload(job, settings, kind, request),), child_status=said)


def _request(job: ObservedJob, attempt: int) -> build.WorkloadRequest:
    """Raises AdmissionError where the priority class can't be read."""
    assert job.queueing.queue is not None
    return build.WorkloadRequest(attempt, job.queueing.queue, pod_set(job), _priority(job))


def _priority_class(job: ObservedJob) -> tuple[ResourceKind, str | None]:
    """Kueue's own class by label goes before the class of the pods."""
    assert job.spec is not None
    if job.queueing.priority_class is not None:
        return WORKLOAD_PRIORITY_CLASS, job.queueing.priority_class
    return PRIORITY_CLASS, job.spec.priority_class_name


def _priority(job: ObservedJob) -> dict[str, Any]:
    """As fields of the Workload's spec, in the words of its version. Raises AdmissionError."""
    kind, name = _priority_class(job)
    assert job.queueing.kind is not None
    if name is None:
        return {}
    value, group = _read(job, kind, name)["value"], kind.api_version.split("/")[0]
    if job.queueing.kind.api_version.endswith("/v1beta1"):
        source = f"{group}/{kind.kind.lower()}"
        return {"priorityClassName": name, "priorityClassSource": source, "priority": value}
    return {"priorityClassRef": {"group": group, "kind": kind.kind, "name": name}, "priority": value}


def _is_used(job: ObservedJob, workload: str | None, now: datetime) -> bool:
    """Whether a pod still runs that uses its quota (None: any Workload's)."""
    users = (pod for pod in job.pods if still_runs(pod, now))
    used = {pod.labels.get(names.LABEL_WORKLOAD) for pod in users} - {None}
    return bool(used) if workload is None else workload in used


# What is ours to say in its status


def finished(job: ObservedJob, now: datetime) -> Decision:
    """The job has ended: once no pod runs, its quota is free."""
    kind, workload = job.queueing.kind, job.queueing.workload
    if kind is None or workload is None or workload.is_finished or _is_used(job, workload.name, now):
        return Decision()
    complete = is_true(job.status.conditions, JobCondition.COMPLETE)
    reason = "Succeeded" if complete else "Failed"
    condition = ("Finished", "True", reason, job.status.message or reason)
    return Decision(child_status=(_said(kind, workload, now, condition),))


Told = tuple[str, str, str, str]  # type, status, reason, message


def _pods_ready(gang: Gang, workload: Workload) -> Told | None:
    """For Kueue's waitForPodsReady, with its own reasons; None: nothing new."""
    told = next((condition for condition in workload.conditions if condition["type"] == "PodsReady"), None)
    started = told is not None and told["reason"] in ("Started", "Recovered", "WaitForRecovery")
    recovers = told is not None and told["reason"] in ("WaitForRecovery", "Recovered")
    ready = gang.complete and all((pod.running and pod.ready) or pod.succeeded for pod in gang.pods)
    if workload.holds and ready:
        says = ("PodsReady", "True", "Recovered" if recovers else "Started", "All pods are ready or have succeeded")
    elif workload.holds and started:
        says = ("PodsReady", "False", "WaitForRecovery", "At least one pod is lost and is replaced")
    else:
        says = ("PodsReady", "False", "WaitForStart", "Not all pods are ready or have succeeded")
    if (says[1:3] == ("False", "WaitForStart")) if told is None else (told["status"], told["reason"]) == says[1:3]:
        return None
    return says


def _said(kind: ResourceKind, workload: Workload, now: datetime, told: Told) -> StatusApply:
    """With what we said before: apply would take away what is no longer mentioned."""
    ours = [
        dict(one) for one in workload.conditions if one["type"] in ("PodsReady", "Finished") and one["type"] != told[0]
    ]
    return StatusApply(kind, workload.name, {"conditions": [*ours, _condition(told, now)]})


def _given_back(kind: ResourceKind, workload: Workload, evicted: Verdict, now: datetime) -> StatusPatch:
    """The reservation, as the controller of a job must after an eviction: Kueue then decides anew."""
    again = "True" if evicted.reason in QUEUES_AGAIN else "False"
    says: Sequence[Told] = (
        ("QuotaReserved", "False", "Pending", evicted.message),
        ("Admitted", "False", "NoReservation", "The workload has no reservation"),
        ("Requeued", again, evicted.reason, evicted.message),
        ("PodsReady", "False", "WaitForStart", "Not all pods are ready or have succeeded"),
    )
    kept = [dict(one) for one in workload.conditions if one["type"] not in {told[0] for told in says}]
    status = {"admission": None, "conditions": [*kept, *(_condition(told, now) for told in says)]}
    return StatusPatch(kind, workload.name, workload.uid, workload.version, status)


def _condition(told: Told, now: datetime) -> Manifest:
    kind, status, reason, message = told
    return {
        "type": kind,
        "status": status,
        "reason": reason or "Evicted",
        "message": messages.cut(message),
        "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
