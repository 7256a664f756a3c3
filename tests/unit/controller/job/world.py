"""A small cluster in memory: what the API server, the scheduler, the kubelets and the garbage collector do to a job's
children. No network, no clock: the test moves time, and says after which write the controller dies.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from bigmodel.api.names import ANNOTATION_HASH
from bigmodel.controller.decision import (
    Children,
    Decision,
    Event,
    Manifest,
    Rejection,
    ResourceKind,
    StatusApply,
    StatusPatch,
)
from bigmodel.controller.execute import stamped
from bigmodel.controller.job.decide import decide
from bigmodel.controller.job.gang import arrange
from bigmodel.controller.job.kueue import reads
from bigmodel.controller.job.observe import Complaint, ObservedJob, Pulled, Room, observed_job
from bigmodel.controller.job.reports import progress_of
from bigmodel.controller.settings import Settings
from tests.builders import JOB_UID, NOON, SETTINGS, AProgress, a_job, a_last_word, an_artifact, time_text

Rule = Callable[[Manifest], Rejection | None]


class Crash(Exception):
    """The controller died right after a write."""


@dataclass
class World:
    job: Manifest = field(default_factory=lambda: a_job().manifest)
    settings: Settings = SETTINGS
    pod_group_served: bool = True
    kueue: ResourceKind | None = None  # the Workload that is served
    cluster_wide: dict[tuple[str, str], Manifest | str] = field(default_factory=dict)  # by kind and name
    now: datetime = NOON
    children: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    rejections: tuple[Rejection, ...] = ()
    refuse: Rule = lambda manifest: None
    drops_scheduling_group: bool = False
    drops_topology: bool = False
    room: Room | None = None
    complaint: Complaint | None = None
    pulled: Pulled | None = None
    job_deleted: bool = False
    crash_after: int | None = None  # writes
    _uids: int = 0

    def __post_init__(self) -> None:
        self.job = copy.deepcopy(self.job)

    # The controller

    def observed(self) -> ObservedJob:
        by_kind: dict[str, tuple[Manifest, ...]] = {}
        for (kind, _), child in sorted(self.children.items()):
            by_kind[kind] = (*by_kind.get(kind, ()), child)
        children = Children(by_kind)
        job = observed_job(self.job, children, self.rejections, self.pulled, self.pod_group_served, self.kueue)
        absent = {(kind.kind, name): f"{kind.kind} {name} does not exist" for kind, name in reads(job)}
        read = {key: self.cluster_wide.get(key, text) for key, text in absent.items()}
        return replace(job, queueing=replace(job.queueing, read=read), room=self.room, complaint=self.complaint)

    def reconcile(self) -> Decision:
        """One pass. Raises Crash after the write it was told."""
        if self.job_deleted:
            return Decision()
        decision = decide(self.observed(), self.settings, self.now)
        self.decisions.append(decision)
        self._execute(decision)
        return decision

    def settle(self, passes: int = 20) -> World:
        """Passes until one of them neither writes nor asks for another. A crash is followed by the next pass.

        A child that is refused for the first time, or no longer, is news to the engine too.
        """
        for _ in range(passes):
            before, rejections = len(self.writes), self.rejections
            try:
                again = self.reconcile().again
            except Crash:
                continue
            if len(self.writes) == before and self.rejections == rejections and not again:
                return self
        raise AssertionError(f"not settled after {passes} passes: {self.writes[-10:]}")

    def after(self, seconds: float) -> World:
        self.now += timedelta(seconds=seconds)
        return self

    def _execute(self, decision: Decision) -> None:
        for relabel in decision.relabel:
            child = self._child(relabel.kind.kind, relabel.name, relabel.uid)
            if child is None:
                continue
            labels, annotations = (child["metadata"].setdefault(field, {}) for field in ("labels", "annotations"))
            if any(labels.get(name) != value for name, value in relabel.labels.items()) or any(
                annotations.get(name) != value for name, value in relabel.annotations.items()
            ):
                labels |= relabel.labels
                annotations |= relabel.annotations
                self._wrote(f"relabel {relabel.name}")
        self._create(decision)
        for manifest in decision.apply:
            known = self.children[manifest["kind"], manifest["metadata"]["name"]]
            if known["metadata"]["annotations"].get(ANNOTATION_HASH) != stamp(manifest):
                known["spec"] |= copy.deepcopy(manifest["spec"])
                self._default(known)
                known["metadata"]["annotations"] |= {ANNOTATION_HASH: stamp(manifest)}
                self._wrote(f"apply {manifest['kind']} {manifest['metadata']['name']}")
        for deletion in decision.delete:
            if deletion.kind.kind == "BigModelJob":
                self.job_deleted = True
                self._wrote("delete the job")
            elif (child := self._child(deletion.kind.kind, deletion.name, deletion.uid)) is not None:
                self._delete(child, deletion.grace_seconds)
                self._wrote(f"delete {deletion.name}")
        for said in decision.child_status:
            self._say(said)
        if decision.status is not None and decision.status != self.job.get("status"):
            self.job["status"] = copy.deepcopy(decision.status)
            self._wrote("status")
        self.events += decision.events

    def _say(self, said: StatusApply | StatusPatch) -> None:
        child = self.children["Workload", said.name]
        before = child.setdefault("status", {})
        if isinstance(said, StatusPatch):
            assert (said.uid, said.version) == (child["metadata"]["uid"], child["metadata"]["resourceVersion"])
            conditions = said.status["conditions"]
        else:
            ours = {condition["type"]: condition for condition in said.status["conditions"]}
            conditions = [c for c in before.get("conditions", []) if c["type"] not in ours] + list(ours.values())
        after = {**before, **said.status, "conditions": conditions}
        child["status"] = {name: value for name, value in after.items() if value is not None}
        self.changed(child)
        self._wrote(f"say {said.name}")

    def changed(self, child: Manifest) -> None:
        child["metadata"]["resourceVersion"] = str(int(child["metadata"].get("resourceVersion", "1")) + 1)

    def _create(self, decision: Decision) -> None:
        for manifest in decision.create:
            key = manifest["kind"], manifest["metadata"]["name"]
            # A rejection stands until its child is tried again.
            self.rejections = tuple(r for r in self.rejections if (r.manifest_kind, r.name) != key)
            if key in self.children:
                continue
            if (rejection := self.refuse(manifest)) is not None:
                self.rejections = (*self.rejections, rejection)
                return
            self._never_two_attempts(manifest)
            self._uids += 1
            child = copy.deepcopy(manifest)
            child["metadata"] |= {"uid": f"uid-{self._uids}", "creationTimestamp": time_text(self.now)}
            child["metadata"]["resourceVersion"] = "1"
            child["metadata"].setdefault("annotations", {})[ANNOTATION_HASH] = stamp(manifest)
            self._default(child)
            if self.drops_scheduling_group:
                child["spec"].pop("schedulingGroup", None)
            if self.drops_topology:
                child["spec"].pop("schedulingConstraints", None)
            self.children[key] = child
            self._wrote(f"create {' '.join(key)}")

    def _never_two_attempts(self, manifest: Manifest) -> None:
        """The rule of the launchers' store: two attempts would write checkpoints at once."""
        if manifest["kind"] not in ("Pod", "PodGroup"):
            return
        attempt = int(manifest["metadata"]["labels"]["bigmodel.io/attempt"])
        for (kind, name), pod in self.children.items():
            if kind == "Pod" and int(pod["metadata"]["labels"]["bigmodel.io/attempt"]) < attempt:
                assert not self._still_runs(pod), f"{manifest['metadata']['name']} is made while {name} runs"

    def _still_runs(self, pod: Manifest) -> bool:
        status, until = pod.get("status") or {}, pod["metadata"].get("deletionTimestamp")
        conditions = {(c["type"], c["status"], c["reason"]) for c in status.get("conditions", [])}
        lost = ("DisruptionTarget", "True", "DeletionByTaintManager") in conditions and until
        over = until is not None and datetime.fromisoformat(until) <= self.now
        return status.get("phase") not in ("Succeeded", "Failed") and not lost and not over

    def _default(self, child: Manifest) -> None:
        """As the API server does."""
        for port in child["spec"].get("ports", ()):
            port["targetPort"] = port["port"]

    def _wrote(self, what: str) -> None:
        self.writes.append(what)
        if self.crash_after is not None and len(self.writes) == self.crash_after:
            raise Crash(what)

    def _child(self, kind: str, name: str, uid: str) -> Manifest | None:
        child = self.children.get((kind, name))
        return child if child is not None and child["metadata"]["uid"] == uid else None

    def _delete(self, child: Manifest, grace_seconds: int | None = None) -> None:
        metadata = child["metadata"]
        phase = (child.get("status") or {}).get("phase", "Pending")
        if child["kind"] != "Pod" or phase in ("Succeeded", "Failed") or "nodeName" not in child["spec"]:
            del self.children[child["kind"], metadata["name"]]
        elif "deletionTimestamp" not in metadata:
            grace = child["spec"].get("terminationGracePeriodSeconds", 30) if grace_seconds is None else grace_seconds
            metadata["deletionTimestamp"] = time_text(self.now + timedelta(seconds=grace))
            metadata["deletionGracePeriodSeconds"] = grace

    # What is there

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.job.get("status") or {}
        return status

    def condition(self, kind: str) -> tuple[str, str]:
        return next(((c["status"], c["reason"]) for c in self.status["conditions"] if c["type"] == kind), ("", ""))

    def message(self, kind: str) -> str:
        return next((c["message"] for c in self.status["conditions"] if c["type"] == kind), "")

    @property
    def told(self) -> list[str]:
        return [event.reason for event in self.events]

    def names(self, kind: str = "Pod") -> list[str]:
        return sorted(name for child_kind, name in self.children if child_kind == kind)

    def pods(self) -> list[Manifest]:
        """Those of the current attempt that count, by index."""
        job = self.observed()
        return [self.children["Pod", pod.name] for pod in arrange(job, job.status).pods]

    def pod(self, index: int) -> Manifest:
        job = self.observed()
        return self.children["Pod", arrange(job, job.status).current[index].name]

    def running(self) -> list[str]:
        return [
            name
            for (kind, name), child in sorted(self.children.items())
            if kind == "Pod" and (child.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        ]

    def end_state(self) -> dict[str, Any]:
        """What two runs of one story must agree on: the status, and what is left of the children. UIDs differ."""
        return {
            "status": self.status,
            "children": sorted(self.children),
            "labels": {name: child["metadata"]["labels"] for (_, name), child in sorted(self.children.items())},
            "creations": Counter(write for write in self.writes if write.startswith("create")),
        }

    # The cluster

    def bind(self, *indexes: int) -> World:
        for pod in self._chosen(indexes):
            pod["spec"]["nodeName"] = f"node-{int(pod['metadata']['labels']['bigmodel.io/index']) + 1}"
            self._condition(pod, "PodScheduled", "True")
        return self

    def unplaced(self, index: int, message: str) -> World:
        self._condition(self.pod(index), "PodScheduled", "False", "Unschedulable", message)
        return self

    def start(self, *indexes: int) -> World:
        """Bound, running and ready."""
        self.bind(*indexes)
        for pod in self._chosen(indexes):
            index = pod["metadata"]["labels"]["bigmodel.io/index"]
            self._status(pod, phase="Running", podIP=f"10.0.0.{int(index) + 1}")
            self._container(pod, {"running": {"startedAt": time_text(self.now)}})
            self._condition(pod, "Ready", "True")
        return self

    def waits(self, index: int, reason: str, message: str) -> World:
        self.bind(index)
        self._status(self.pod(index), phase="Pending")
        self._container(self.pod(index), {"waiting": {"reason": reason, "message": message}})
        return self

    def ends(
        self, index: int, exit_code: int, message: str = "", reason: str | None = None, disrupted: str | None = None
    ) -> World:
        pod = self.pod(index)
        terminated = {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "message": message,
            "startedAt": self._started_at(pod),
            "finishedAt": time_text(self.now),
        }
        self._status(pod, phase="Succeeded" if exit_code == 0 else "Failed")
        self._container(pod, {"terminated": terminated})
        self._condition(pod, "Ready", "False")
        if disrupted:
            self._condition(pod, "DisruptionTarget", "True", disrupted)
        return self

    def _started_at(self, pod: Manifest) -> str:
        containers = (pod.get("status") or {}).get("containerStatuses") or [{}]
        started: str = containers[0].get("state", {}).get("running", {}).get("startedAt", time_text(self.now))
        return started

    def refused_by_node(self, index: int, reason: str, message: str) -> World:
        self.bind(index)
        self._status(self.pod(index), phase="Failed", reason=reason, message=message)
        return self

    def edit(self, **spec: Any) -> World:
        """As kubectl patch does; None removes a field."""
        self.job["spec"] = {name: value for name, value in (self.job["spec"] | spec).items() if value is not None}
        self.job["metadata"]["generation"] += 1
        return self

    def deleted(self, index: int) -> World:
        """As kubectl delete does."""
        self._delete(self.pod(index))
        return self

    def gone(self, index: int) -> World:
        """As kubectl delete --force does."""
        pod = self.pod(index)
        del self.children["Pod", pod["metadata"]["name"]]
        return self

    def node_lost(self, index: int) -> World:
        """The node controller saw no heartbeat, then evicted by taint; nobody is there to end the pod."""
        pod = self.pod(index)
        self._condition(pod, "Ready", "False")
        self._condition(pod, "DisruptionTarget", "True", "DeletionByTaintManager")
        pod["metadata"]["deletionTimestamp"] = time_text(self.now + timedelta(seconds=60))
        pod["metadata"]["deletionGracePeriodSeconds"] = 60
        return self

    def node_not_ready(self, index: int) -> World:
        """The node controller takes the word of a kubelet that is silent back: Ready, and nothing else."""
        pod = self.pod(index)
        self._condition(pod, "ContainersReady", "True")
        self._condition(pod, "Ready", "False")
        return self

    def terminated(self) -> World:
        """Kubelets end what was deleted."""
        for key, child in list(self.children.items()):
            if "deletionTimestamp" in child["metadata"]:
                del self.children[key]
        return self

    def group_says(self, status: str, reason: str, message: str) -> World:
        for (kind, _), child in self.children.items():
            if kind == "PodGroup":
                self._condition(child, "PodGroupInitiallyScheduled", status, reason, message)
        return self

    def tells(self, progress: AProgress) -> World:
        """Index 0 answers."""
        told = progress.with_(attempt=self.status["attempt"])
        parsed = progress_of(told.json(), JOB_UID, self.status["attempt"])
        self.pulled = Pulled(self.pod(0)["metadata"]["uid"], self.now, parsed)
        return self

    def completes(self, **artifact: Any) -> World:
        """Every pod ends with 0, index 0 last; it names the artefact."""
        attempt = self.status["attempt"]
        pods = self.pods()
        for pod in reversed(pods):
            index = int(pod["metadata"]["labels"]["bigmodel.io/index"])
            told = {"artifact": an_artifact(**artifact)} if index == 0 else {}
            self.ends(index, 0, a_last_word(index, attempt, **told))
        return self

    def _chosen(self, indexes: tuple[int, ...]) -> list[Manifest]:
        pods = self.pods()
        return [pod for pod in pods if not indexes or int(pod["metadata"]["labels"]["bigmodel.io/index"]) in indexes]

    def _status(self, child: Manifest, **fields: Any) -> None:
        child["status"] = {**(child.get("status") or {}), **fields}

    def _container(self, pod: Manifest, state: dict[str, Any]) -> None:
        self._status(pod, containerStatuses=[{"name": "trainer", "state": state}])

    def _condition(self, child: Manifest, kind: str, status: str, reason: str = "", message: str = "") -> None:
        conditions = [c for c in (child.get("status") or {}).get("conditions", []) if c["type"] != kind]
        condition = {"type": kind, "status": status, "reason": reason, "message": message}
        condition["lastTransitionTime"] = time_text(self.now)
        self._status(child, conditions=[*conditions, condition])


def stamp(manifest: Manifest) -> str:
    """The hash that the engine leaves on what it wrote, and by which it spares a write."""
    return str(stamped(manifest)["metadata"]["annotations"][ANNOTATION_HASH])


def training_world(**fields: Any) -> World:
    """Both pods run and make steps."""
    from tests.builders import a_progress

    world = World(**fields).settle()
    world.after(1).start().settle()
    world.after(3).tells(a_progress().training(40, first_step_at=world.now)).settle()
    return world
