"""The pods of a job, arranged by what the counters in its status say about them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from bigmodel.api import names
from bigmodel.api.job import JobStatus
from bigmodel.api.progress import Progress
from bigmodel.controller.job.observe import ObservedJob, ObservedPod, ObservedPodGroup, Pulled


@dataclass(frozen=True)
class Gang:
    """The current attempt, and what is left of earlier ones."""

    attempt: int
    size: int
    replacements: Mapping[int, int]  # by index; 0 where none
    current: Mapping[int, ObservedPod]  # by index, the newest replacement that was counted
    superseded: tuple[ObservedPod, ...]  # predecessors of replaced pods
    earlier: tuple[ObservedPod, ...]  # of earlier attempts
    group: ObservedPodGroup | None
    earlier_groups: tuple[ObservedPodGroup, ...]
    created: int  # status.podsCreated
    reported: Progress | None  # of this attempt: pulled from index 0, or its last word's
    pulled: Pulled | None  # from the pod that is index 0 now
    launched: bool  # its pods have launchers, which heal ranks and tell how far they are; a command's have none
    memory_limit: str | None  # of each pod

    @property
    def pods(self) -> tuple[ObservedPod, ...]:
        return tuple(self.current[index] for index in sorted(self.current))

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(index for index in range(self.size) if index not in self.current)

    @property
    def vanished(self) -> tuple[int, ...]:
        """Indexes whose pod existed and is gone: more are missing than were still to be created."""
        return self.missing if len(self.missing) > self.size - self.created else ()

    @property
    def complete(self) -> bool:
        return not self.missing

    @property
    def all_bound(self) -> bool:
        return self.complete and all(pod.bound for pod in self.pods)

    @property
    def all_bound_at(self) -> datetime | None:
        """Since when the whole gang has nodes."""
        times = [pod.bound_at for pod in self.pods if pod.bound_at is not None]
        return max(times) if self.complete and len(times) == self.size else None

    @property
    def all_run(self) -> bool:
        return self.complete and all((pod.running and pod.deleted_until is None) or pod.succeeded for pod in self.pods)

    @property
    def unplaced(self) -> bool:
        """The scheduler looked, and found no room."""
        return any(pod.unschedulable for pod in self.pods) or bool(
            not self.all_bound and self.group is not None and self.group.unschedulable
        )

    @property
    def all_run_since(self) -> datetime | None:
        """Of a gang that is complete, whether or not its containers have ended since."""
        times = [pod.running_since or (pod.ended.started_at if pod.ended else None) for pod in self.pods]
        known = [time for time in times if time is not None]
        return max(known) if self.complete and len(known) == self.size else None

    @property
    def has_started(self) -> bool:
        """This attempt had all its pods once."""
        return self.created >= self.size or bool(self.replacements)

    def names_wanted(self, job: ObservedJob) -> frozenset[str]:
        """Of children that are made or changed now: what was refused under another name is no longer asked for."""
        pods = (
            names.node_pod(job.name, job.uid, self.attempt, index, self.replacements.get(index, 0))
            for index in self.missing
        )
        group = names.pod_group(job.name, job.uid, self.attempt)
        return frozenset((names.job_service(job.name, job.uid), group, *pods))


def still_runs(pod: ObservedPod, now: datetime) -> bool:
    """It may make steps or save a checkpoint yet. Past its grace, or on a node that is not Ready, it is fenced."""
    ended = pod.terminal or pod.unreachable
    return not ended and (pod.deleted_until is None or now < pod.deleted_until)


def still_here(pod: ObservedPod, now: datetime) -> bool:
    """It runs, or it has ended in its grace period and the kubelet has yet to take it away."""
    return still_runs(pod, now) or (pod.deleted_until is not None and now < pod.deleted_until and not pod.unreachable)


def size_of(job: ObservedJob, status: JobStatus) -> int:
    """Pods of the current attempt: fixed when it was counted, so that an edit of spec.nodes is a new attempt."""
    if status.nodes is not None and status.attempt:
        return status.nodes.desired
    return job.spec.nodes if job.spec is not None else 0


def arrange(job: ObservedJob, status: JobStatus) -> Gang:
    """`status`: the job's own, or one whose counters were raised and are about to be written."""
    replacements = {r.index: r.count for r in status.replacements if r.count}
    of_attempt = [pod for pod in job.pods if pod.attempt == status.attempt]
    current = {pod.index: pod for pod in of_attempt if pod.replacement == replacements.get(pod.index, 0)}
    size = size_of(job, status)
    first = current.get(0)
    pulled = job.pulled if job.pulled is not None and first is not None and job.pulled.pod_uid == first.uid else None
    return Gang(
        attempt=status.attempt,
        size=size,
        replacements=replacements,
        current={index: pod for index, pod in current.items() if index < size},
        superseded=tuple(pod for pod in of_attempt if pod.replacement < replacements.get(pod.index, 0)),
        earlier=tuple(pod for pod in job.pods if pod.attempt < status.attempt),
        group=next((group for group in job.pod_groups if group.attempt == status.attempt), None),
        earlier_groups=tuple(group for group in job.pod_groups if group.attempt < status.attempt),
        created=status.pods_created,
        reported=_reported(first, pulled),
        pulled=pulled,
        launched=not job.raw_spec.get("command"),
        memory_limit=_memory_limit(job),
    )


def _memory_limit(job: ObservedJob) -> str | None:
    resources = job.spec.resources if job.spec is not None else None
    limit = (resources.limits or {}).get("memory") if resources is not None else None
    return str(limit) if limit is not None else None


def _reported(first: ObservedPod | None, pulled: Pulled | None) -> Progress | None:
    """A last word is later than anything that was pulled; where it had to be cut, it still says the step."""
    told = pulled.progress if pulled is not None else None
    word = first.last_word if first is not None else None
    if word is None:
        return told
    if word.progress is not None:
        return word.progress
    return told.model_copy(update={"step": max(told.step, word.step)}) if told is not None else None
