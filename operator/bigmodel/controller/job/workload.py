"""What Kueue says about a job: its Workload object as immutable facts. Reads manifests, judges nothing.

The contract is the Workload's API reference (kueue.x-k8s.io, v1beta1 and v1beta2) and what its documentation asks of
the controller of a custom job. In short: `QuotaReserved` and `Admitted` are Kueue's to give, `Evicted` is its wish that
the pods go, the reservation is the job controller's to give back, `PodsReady` and `Finished` are the job controller's.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigmodel.api import names
from bigmodel.controller.decision import Manifest, ResourceKind

LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_PRIORITY = "kueue.x-k8s.io/priority-class"
POD_SET = "main"
# What Kueue counts pods as that it placed by topology; without it their nodes would be counted as taken twice.
ANNOTATION_PLACED = "kueue.x-k8s.io/podset-unconstrained-topology"


@dataclass(frozen=True)
class Verdict:
    """A condition in Kueue's own words."""

    reason: str
    message: str


@dataclass(frozen=True)
class PodSetUpdate:
    """What one admission check adds to every pod."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Workload:
    """One Workload of the job: it lives through evictions and attempts, until the job ends, is suspended or resized."""

    name: str
    uid: str
    version: str  # resourceVersion
    number: int  # the attempt that it was made for
    deleting: bool
    queue: str
    priority_class: str | None
    pod_set: str  # fingerprint of what Kueue was asked for
    active: bool
    reserved: bool  # quota is held
    admitted: bool  # its pods may run, unless `evicted`
    evicted: Verdict | None
    waiting: str  # why it is not admitted, in Kueue's words; may be empty
    conditions: tuple[Manifest, ...]
    flavors: tuple[str, ...] = ()
    topology: tuple[Mapping[str, str], ...] = ()  # a node selector for each index; empty: anywhere
    updates: tuple[PodSetUpdate, ...] = ()

    @property
    def holds(self) -> bool:
        """Pods may run."""
        return self.admitted and self.active and self.evicted is None and not self.deleting

    @property
    def is_finished(self) -> bool:
        return any(condition["type"] == "Finished" and condition["status"] == "True" for condition in self.conditions)


@dataclass(frozen=True)
class Queueing:
    """All that Kueue has to do with one job.

    `read`: cluster-wide objects by kind and name, or the sentence why one can't be read.
    """

    kind: ResourceKind | None = None  # the Workload as the cluster serves it; None: it does not
    queue: str | None = None
    priority_class: str | None = None
    workloads: tuple[Workload, ...] = ()  # the newest last
    read: Mapping[tuple[str, str], Manifest | str] = field(default_factory=dict)

    @property
    def workload(self) -> Workload | None:
        return self.workloads[-1] if self.workloads else None


def queueing(owner: Manifest, workloads: Iterable[Manifest], kind: ResourceKind | None) -> Queueing:
    metadata = owner["metadata"]
    labels = metadata.get("labels") or {}
    found = [_workload(manifest, metadata["name"], metadata["uid"]) for manifest in workloads]
    known = sorted((workload for workload in found if workload is not None), key=lambda workload: workload.number)
    return Queueing(kind, labels.get(LABEL_QUEUE) or None, labels.get(LABEL_PRIORITY) or None, tuple(known))


def _workload(manifest: Manifest, job: str, uid: str) -> Workload | None:
    """None: a child of ours whose name is none of ours."""
    metadata, spec, status = manifest["metadata"], manifest.get("spec") or {}, manifest.get("status") or {}
    number = re.fullmatch(rf"{re.escape(names.job_service(job, uid))}-a(\d+)", metadata["name"])
    if number is None:
        return None
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    assignments = (status.get("admission") or {}).get("podSetAssignments") or ()
    assignment: Mapping[str, Any] = next((one for one in assignments if one.get("name", POD_SET) == POD_SET), {})
    checks = status.get("admissionChecks") or ()
    evicted = conditions.get("Evicted", {})
    return Workload(
        name=metadata["name"],
        uid=metadata["uid"],
        version=str(metadata.get("resourceVersion") or ""),
        number=int(number[1]),
        deleting=metadata.get("deletionTimestamp") is not None,
        queue=spec.get("queueName") or "",
        # v1beta2 and v1beta1
        priority_class=(spec.get("priorityClassRef") or {}).get("name") or spec.get("priorityClassName") or None,
        pod_set=(metadata.get("annotations") or {}).get(names.ANNOTATION_POD_SET, ""),
        active=spec.get("active", True) is not False,
        reserved=_is_true(conditions, "QuotaReserved"),
        admitted=_is_true(conditions, "Admitted"),
        # The condition stays after the reservation was given back: then it is history, and Kueue decides anew.
        evicted=_verdict(evicted)
        if _is_true(conditions, "Evicted") and _is_true(conditions, "QuotaReserved")
        else None,
        waiting=_waiting(spec, conditions, checks),
        conditions=tuple(conditions.values()),
        flavors=tuple(sorted(set((assignment.get("flavors") or {}).values()))),
        topology=tuple(_topology(assignment.get("topologyAssignment") or {})),
        updates=tuple(_updates(checks)),
    )


def _is_true(conditions: Mapping[str, Manifest], kind: str) -> bool:
    return conditions.get(kind, {}).get("status") == "True"


def _verdict(condition: Mapping[str, Any]) -> Verdict:
    return Verdict(condition.get("reason") or "", condition.get("message") or "")


def _waiting(spec: Mapping[str, Any], conditions: Mapping[str, Manifest], checks: Sequence[Manifest]) -> str:
    """What keeps it from being admitted: the first of what stands in its way that Kueue has words for."""
    if spec.get("active", True) is False:
        evicted = conditions.get("Evicted", {})
        return evicted.get("message") or "The workload is deactivated"
    if not _is_true(conditions, "QuotaReserved"):
        return str(conditions.get("QuotaReserved", {}).get("message") or "")
    pending = [check for check in checks if check.get("state") != "Ready"]
    if pending:
        return "; ".join(f"{check.get('name')}: {check.get('message') or check.get('state')}" for check in pending)
    return str(conditions.get("Admitted", {}).get("message") or "")


def _updates(checks: Sequence[Manifest]) -> Iterator[PodSetUpdate]:
    for check in checks:
        for update in check.get("podSetUpdates") or ():
            if update.get("name", POD_SET) == POD_SET:
                yield PodSetUpdate(
                    update.get("labels") or {},
                    update.get("annotations") or {},
                    update.get("nodeSelector") or {},
                    tuple(update.get("tolerations") or ()),
                )


def _topology(assignment: Mapping[str, Any]) -> Iterator[Mapping[str, str]]:
    """Domain after domain, as many selectors as it takes pods: neighbours by rank are neighbours by place."""
    levels = assignment.get("levels") or ()
    for domain in assignment.get("domains") or ():  # v1beta1
        yield from [dict(zip(levels, domain["values"], strict=True))] * domain["count"]
    for piece in assignment.get("slices") or ():  # v1beta2, where what domains have in common is told once
        number = piece["domainCount"]
        values = [_spread(level, number) for level in piece["valuesPerLevel"]]
        counts = piece["podCounts"].get("individual") or [piece["podCounts"]["universal"]] * number
        for place, count in zip(zip(*values, strict=True), counts, strict=True):
            yield from [dict(zip(levels, place, strict=True))] * count


def _spread(level: Mapping[str, Any], number: int) -> list[str]:
    if (individual := level.get("individual")) is None:
        return [level["universal"]] * number
    prefix, suffix = individual.get("prefix") or "", individual.get("suffix") or ""
    return [f"{prefix}{root}{suffix}" for root in individual["roots"]]
