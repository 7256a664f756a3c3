"""What a job's status says: derived at each pass from facts and counters. Pure.

One function for each condition. Counters, incidents and times are facts of their own: they are handed in, raised.
From the conditions before, only lastTransitionTime is taken, and what was known of a running gang while nothing new is.
"""

import re
from datetime import datetime, timedelta
from typing import Any, Literal

from bigmodel.api import names
from bigmodel.api.condition import Condition, JobCondition
from bigmodel.api.job import ArtifactStatus, JobIncident, JobStatus, NodeCounts
from bigmodel.api.job import Progress as ProgressStatus
from bigmodel.api.progress import ArtifactSummary, Progress, RunPhase
from bigmodel.controller.conditions import carried_to, find, is_true, set_condition, whole_seconds
from bigmodel.controller.decision import Rejection
from bigmodel.controller.job import avoidance, checkpoint, goodput, kueue, messages
from bigmodel.controller.job.accept import Problem, processes_per_node
from bigmodel.controller.job.capacity import lack
from bigmodel.controller.job.failure import Failure, total
from bigmodel.controller.job.gang import Gang, arrange, still_here, still_runs
from bigmodel.controller.job.incidents import clamped, merged, proven
from bigmodel.controller.job.messages import POD_TROUBLES, Reason
from bigmodel.controller.job.observe import ObservedJob, ObservedPod, Pulled

Told = tuple[Literal["True", "False", "Unknown"], Reason, str]  # status, reason, message of a condition

SHORT_DIGEST = 12
# At most one write in so many seconds for what changes all the time: progress, goodput, counts of nodes.
YOUNG_SECONDS = 60
WRITE_SECONDS_YOUNG = 2
WRITE_SECONDS = 10
LONGEST_SECONDS = 10**9  # of an estimate
UNREACHABLE_SECONDS = 30  # without an answer of a running index 0 before we speak of it

IMAGE_WAITS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
CONFIG_WAITS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


def of_problem(job: ObservedJob, problem: Problem, now: datetime) -> JobStatus:
    """A spec that is not taken: everything else stays as it was last known."""
    told: dict[JobCondition, Told] = {JobCondition.ACCEPTED: ("False", problem.reason, problem.message)}
    unknown: Told = ("Unknown", problem.reason, "Not known while the spec is not accepted.")
    for kind in list(JobCondition)[:7]:
        if kind is not JobCondition.ACCEPTED and find(job.status.conditions, kind) is None:
            told[kind] = unknown
    conditions = _conditions(carried_to(job.status.conditions, job.generation), told, job.generation, now)
    return _summed_up(job, job.status, conditions)


def of_gang(job: ObservedJob, counters: JobStatus, now: datetime) -> JobStatus:
    """A job that is under way. `counters` may be raised against what is written."""
    gang = arrange(job, counters)
    status = with_reports(job, counters, gang, now)
    if gang.all_run and status.running_time is None:
        status = status.model_copy(update={"running_time": whole_seconds(now)})
    told: dict[JobCondition, Told] = {
        JobCondition.ACCEPTED: ("True", Reason.ACCEPTED, messages.accepted(gang.size)),
        JobCondition.ADMITTED: _admitted(job, gang, now),
        JobCondition.RUNNING: _running(job, status, gang, now),
        JobCondition.SUSPENDED: _not_suspended(job, status),
        JobCondition.CHECKPOINT_HEALTHY: _checkpoint_healthy(job, status, gang),
        JobCondition.DEGRADED: _degraded(job, status, gang, now),
        JobCondition.PUBLISHED: ("Unknown", Reason.NOT_YET_PUBLISHED, messages.not_yet_published()),
    }
    update: dict[str, Any] = {
        "pods_created": max(counters.pods_created, len(gang.current)),
        "nodes": _nodes(gang),
        "selector": f"{names.LABEL_JOB}={job.name}",
        "avoided_nodes": avoidance.still_avoided(counters.avoided_nodes, now),
    }
    conditions = _conditions(job.status.conditions, told, job.generation, now)
    return _summed_up(job, status.model_copy(update=update), conditions)


def of_suspended(job: ObservedJob, now: datetime) -> JobStatus:
    """A job that is to hold no pods: suspended once none that was told to leave is there any more."""
    assert job.spec is not None
    gang = arrange(job, job.status)
    status = with_reports(job, job.status, gang, now)
    leaving = [pod.name for pod in job.pods if still_here(pod, now)]
    reason = Reason.SUSPENDING if leaving else Reason.SUSPENDED
    step = status.checkpoint.step if status.checkpoint is not None else None
    text = (
        messages.suspending(leaving)
        if leaving
        else messages.suspended(job.name, job.namespace, step, has_run=status.start_time is not None)
    )
    rests: Told = ("False", reason, messages.not_run_while_suspended())
    told: dict[JobCondition, Told] = {
        JobCondition.ACCEPTED: ("True", Reason.ACCEPTED, messages.accepted(job.spec.nodes)),
        JobCondition.ADMITTED: rests,
        JobCondition.RUNNING: rests,
        JobCondition.SUSPENDED: ("False" if leaving else "True", reason, text),
        JobCondition.CHECKPOINT_HEALTHY: _checkpoint_healthy(job, status, gang),
        JobCondition.DEGRADED: rests,
        JobCondition.PUBLISHED: ("Unknown", Reason.NOT_YET_PUBLISHED, messages.not_yet_published()),
    }
    none = NodeCounts(desired=job.spec.nodes, summary=f"0/{job.spec.nodes}")
    update = {"nodes": _nodes(gang) if leaving else none, "selector": f"{names.LABEL_JOB}={job.name}"}
    conditions = _conditions(job.status.conditions, told, job.generation, now)
    return _summed_up(job, status.model_copy(update=update), conditions)


def is_suspended(status: JobStatus) -> bool:
    """Told to be, whether or not its pods are gone yet: it goes on as a new attempt."""
    condition = find(status.conditions, JobCondition.SUSPENDED)
    return condition is not None and (condition.status == "True" or condition.reason == Reason.SUSPENDING)


def of_complete(job: ObservedJob, counters: JobStatus, artifact: ArtifactSummary | None, now: datetime) -> JobStatus:
    """`artifact`: None where none was promised."""
    status = of_gang(job, counters, now)
    update: dict[str, Any] = {"completion_time": whole_seconds(now), "finished": "True"}
    if artifact is None:
        published: Told = ("False", Reason.NOTHING_PROMISED, messages.nothing_promised())
        complete = _complete_without_artifact(job, status)
    else:
        short = artifact.digest.removeprefix("sha256:")[:SHORT_DIGEST]
        update["artifact"] = ArtifactStatus(**artifact.model_dump(), short_digest=short)
        published = ("True", Reason.PUBLISHED, messages.published(artifact.uri, artifact.digest))
        complete = ("True", Reason.COMPLETE, messages.complete(short))
    told: dict[JobCondition, Told] = {
        JobCondition.RUNNING: ("False", Reason.JOB_FINISHED, messages.job_finished()),
        JobCondition.DEGRADED: ("False", Reason.JOB_FINISHED, messages.job_finished()),
        JobCondition.PUBLISHED: published,
        JobCondition.COMPLETE: complete,
        JobCondition.FINISHED: complete,
    }
    return _ended(job, status, update, told, now)


def _complete_without_artifact(job: ObservedJob, status: JobStatus) -> Told:
    """Exit code 0 is not yet success: some programs end so because they found no GPU."""
    gang = arrange(job, status)
    first = gang.current.get(0)
    word = first.last_word if first is not None else None
    steps = max(word.step if word is not None else 0, gang.reported.step if gang.reported is not None else 0)
    if gang.launched and not steps:
        return "True", Reason.NO_STEP_REPORTED, messages.no_step_reported(job.name, job.namespace)
    return "True", Reason.COMPLETE, messages.complete_without_artifact(gang.size)


def of_failed(job: ObservedJob, counters: JobStatus, failure: Failure, now: datetime) -> JobStatus:
    status = of_gang(job, counters, now)
    update = {"completion_time": whole_seconds(now), "finished": "True"}
    told: dict[JobCondition, Told] = {
        JobCondition.RUNNING: ("False", Reason.JOB_FINISHED, messages.job_finished()),
        JobCondition.DEGRADED: ("False", Reason.JOB_FINISHED, messages.job_finished()),
        JobCondition.PUBLISHED: ("False", Reason.NOT_PUBLISHED, messages.not_published()),
        JobCondition.FAILED: ("True", failure.reason, failure.message),
        JobCondition.FINISHED: ("True", failure.reason, failure.message),
    }
    return _ended(job, status, update, told, now)


def of_finished(job: ObservedJob) -> JobStatus:
    """Nothing is taken back and nothing is added; only the generation moves on."""
    update = {"conditions": carried_to(job.status.conditions, job.generation), "observed_generation": job.generation}
    return job.status.model_copy(update=update)


def throttled(job: ObservedJob, wanted: JobStatus, now: datetime) -> tuple[JobStatus | None, float | None]:
    """What to write now, None for nothing; and in how many seconds what is held back may be written."""
    before = job.status
    if _without_volatile(wanted) != _without_volatile(before):
        return wanted, None
    known = wanted.nodes == before.nodes and wanted.checkpoint == before.checkpoint
    if known and _news(wanted.progress) == _news(before.progress):
        return None, None  # goodput alone is no news
    booked_until = goodput.booked_until(before)
    age = (now - job.created).total_seconds()
    pause = WRITE_SECONDS_YOUNG if age < YOUNG_SECONDS else WRITE_SECONDS
    rest = pause - (now - booked_until).total_seconds() if booked_until is not None else 0.0
    return (None, rest) if rest > 0 else (wanted, None)


def _without_volatile(status: JobStatus) -> JobStatus:
    """A new checkpoint is no more urgent than a new step; that saving fails, or works again, is."""
    conditions = [
        condition.model_copy(update={"message": ""}) if condition.type == JobCondition.CHECKPOINT_HEALTHY else condition
        for condition in status.conditions
    ]
    update = {"progress": None, "goodput": None, "nodes": None, "checkpoint": None, "conditions": conditions}
    return status.model_copy(update=update)


def _news(progress: ProgressStatus | None) -> dict[str, Any] | None:
    return progress.model_dump(exclude={"updated_at"}) if progress is not None else None


# The conditions


def _not_suspended(job: ObservedJob, status: JobStatus) -> Told:
    before = find(job.status.conditions, JobCondition.SUSPENDED)
    if is_suspended(job.status):
        step = status.checkpoint.step if status.checkpoint is not None else None
        return "False", Reason.RESUMED, messages.resumed(status.attempt, step)
    if before is not None and before.reason == Reason.RESUMED:
        return "False", Reason.RESUMED, before.message
    return "False", Reason.NOT_SUSPENDED, messages.not_suspended()


def _checkpoint_healthy(job: ObservedJob, status: JobStatus, gang: Gang) -> Told:
    return checkpoint.health(gang, status, find(job.status.conditions, JobCondition.CHECKPOINT_HEALTHY))


def _admitted(job: ObservedJob, gang: Gang, now: datetime) -> Told:
    assert job.spec is not None
    scheduling = job.spec.scheduling
    if rejection := next((r for r in job.rejections if r.name in gang.names_wanted(job)), None):
        return "False", *_rejected(rejection)
    if (held := kueue.hold(job, gang)) is not None:
        return "False", held.reason, held.message
    if gang.group is None and not gang.has_started and scheduling.gang == "podGroup" and not job.pod_group_served:
        return "False", Reason.POD_GROUP_NOT_SERVED, messages.pod_group_not_served()
    together = all(pod.group for pod in gang.pods)
    if gang.all_bound:
        return "True", Reason.ADMITTED, messages.admitted(gang.size, together, _place(job, gang))
    if waits_for := _waits_for(gang, now):
        return "Unknown", Reason.NOT_YET_CREATED, messages.waits_for_earlier(waits_for)
    if not gang.current and not gang.has_started:
        return "Unknown", Reason.NOT_YET_CREATED, messages.not_yet_created()
    if (claim := _missing_claim(gang)) is not None:
        return "False", Reason.CLAIM_MISSING, messages.claim_missing(job.namespace, claim)
    texts = [pod.unschedulable for pod in gang.pods if pod.unschedulable]
    text = next(iter(texts), None)
    if gang.group is not None and (whole := gang.group.unschedulable) and together:
        # Most pods only repeat the group's verdict; the one that found no node says what the nodes lack.
        lacking = next((text for text in texts if whole not in text), None)
        text = "; ".join(filter(None, (lacking, whole)))
        return "False", Reason.UNSCHEDULABLE, messages.unschedulable(_in_numbers(job, gang, text))
    if text and together:
        return "False", Reason.UNSCHEDULABLE, messages.unschedulable(_in_numbers(job, gang, text))
    if text:
        text = _in_numbers(job, gang, text)
        return "False", Reason.UNSCHEDULABLE, messages.unschedulable_alone(text, scheduling.start_deadline_seconds)
    if gang.replacements:  # only the successor of a lost pod has no node yet
        return "True", Reason.ADMITTED, messages.admitted(gang.size, together, _place(job, gang))
    return "False", Reason.QUEUED, messages.queued(len(gang.current), gang.size)


def _in_numbers(job: ObservedJob, gang: Gang, text: str) -> str:
    """What it lacks, node by node where that is known, then `text`: the scheduler's.

    Of pods that a queue admitted it is not known: their flavour says too which nodes they may use.
    """
    if job.spec is None or job.room is None or any(names.LABEL_WORKLOAD in pod.labels for pod in gang.pods):
        return text
    if job.room.unknown:
        return f"{text} (what is free on which node is not shown: {job.room.unknown})"
    told = lack(job.spec, gang.size, job.uid, job.room.nodes)
    return f"{told}. The scheduler: {text}" if told is not None else text


def _missing_claim(gang: Gang) -> str | None:
    for pod in gang.pods:
        if found := re.search(r'persistentvolumeclaim "([^"]+)" not found', pod.unschedulable or ""):
            return found[1]
    return None


def _place(job: ObservedJob, gang: Gang) -> str | None:
    key = job.spec.scheduling.topology_key if job.spec is not None else None
    if key is None:
        return None
    by_group = gang.group is not None and gang.group.topology_key == key
    return messages.placed_by_group(key) if by_group else messages.placed_by_affinity(key)


def _rejected(rejection: Rejection) -> tuple[Reason, str]:
    if rejection.code == 409:
        return Reason.NAME_TAKEN, messages.name_taken(rejection.manifest_kind, rejection.name)
    if rejection.code == 403 and "exceeded quota" in rejection.message:
        return Reason.QUOTA_EXCEEDED, messages.quota_exceeded(rejection.message)
    return Reason.CHILD_REJECTED, messages.child_rejected(rejection.manifest_kind, rejection.name, rejection.message)


def _waits_for(gang: Gang, now: datetime) -> list[str]:
    """Pods of earlier attempts that must end before this one's are made."""
    return [] if gang.current else [pod.name for pod in gang.earlier if still_runs(pod, now)]


def _running(job: ObservedJob, status: JobStatus, gang: Gang, now: datetime) -> Told:
    if kueue.hold(job, gang) is not None:
        return "False", Reason.WAITING_FOR_QUOTA, messages.waiting_for_quota()
    if not gang.current and not gang.has_started and gang.attempt <= 1:
        return "Unknown", Reason.NOT_YET_CREATED, messages.not_yet_created()
    if waits_for := _waits_for(gang, now):
        reason = Reason.RECOVERING if _incident(status) is not None else Reason.PODS_PENDING
        return "False", reason, messages.waits_for_earlier(waits_for)
    if (trouble := _trouble(job, gang)) is not None:
        return "False", *trouble
    if gang.all_run:
        return _running_gang(status, gang, find(job.status.conditions, JobCondition.RUNNING))
    if (why := _why_not_whole(status, gang)) is not None:
        return "False", Reason.RECOVERING, messages.recovering(why, [node.name for node in status.avoided_nodes])
    waiting = [index for index in range(gang.size) if index not in gang.current or not gang.current[index].running]
    return "False", Reason.PODS_PENDING, messages.pods_pending(waiting, gang.size)


def _running_gang(status: JobStatus, gang: Gang, before: Condition | None) -> Told:
    if not gang.launched:
        return "True", Reason.TRAINING, messages.program_runs(gang.size)
    if gang.reported is None and before is not None and before.status == "True":
        return "True", Reason(before.reason), before.message  # nobody answered yet; what was known still holds
    match gang.reported.phase if gang.reported is not None and not _is_stale(status, gang) else RunPhase.STARTING:
        case RunPhase.TRAINING | RunPhase.CHECKPOINTING:
            return "True", Reason.TRAINING, messages.training(gang.size)
        case RunPhase.PUBLISHING | RunPhase.DONE:
            return "True", Reason.PUBLISHING, messages.publishing()
    if (incident := _incident(status)) is not None:
        return "True", Reason.RECOVERING, messages.recovering(incident.message)
    return "True", Reason.PODS_RUNNING, messages.pods_running(gang.size)


def _is_stale(status: JobStatus, gang: Gang) -> bool:
    """Told before the last loss: the ranks of that time are gone."""
    return bool(status.incidents) and gang.pulled is not None and gang.pulled.at < status.incidents[-1].at


def _degraded(job: ObservedJob, status: JobStatus, gang: Gang, now: datetime) -> Told:
    if kueue.hold(job, gang) is not None:
        return "Unknown", Reason.WAITING_FOR_QUOTA, messages.waiting_for_quota()
    if not gang.all_run and (why := _why_not_whole(status, gang)) is not None:
        return "True", Reason.RECOVERING, messages.recovering(why, [node.name for node in status.avoided_nodes])
    first, pulled = gang.current.get(0), gang.pulled
    if gang.all_run and first is not None and first.ready and pulled is not None and _is_silent(pulled, now):
        text = messages.progress_unreachable(first.name, pulled.failure, names.PORT_PROGRESS)
        return "True", Reason.PROGRESS_UNREACHABLE, text
    if gang.all_run:
        return "False", Reason.AS_WANTED, messages.as_wanted(gang.size)
    return "Unknown", Reason.PODS_PENDING, messages.not_yet_created()


def _is_silent(pulled: Pulled, now: datetime) -> bool:
    since = pulled.failing_since
    return since is not None and now - since >= timedelta(seconds=UNREACHABLE_SECONDS)


def _why_not_whole(status: JobStatus, gang: Gang) -> str | None:
    """Why a gang that was there is not: None for one that is only being made."""
    leaving = [pod.name for pod in gang.pods if pod.deleted_until is not None and not pod.terminal]
    if leaving:
        return messages.leaving(leaving)
    incident = _incident(status)
    return incident.message if incident is not None else "a pod is replaced" if gang.replacements else None


def _incident(status: JobStatus) -> JobIncident | None:
    """The last one, which training recovers from; what was before a suspension is over."""
    last = status.incidents[-1] if status.incidents else None
    return last if last is not None and status.start_time is not None and last.at >= status.start_time else None


def _trouble(job: ObservedJob, gang: Gang) -> tuple[Reason, str] | None:
    """What keeps a container from running, and heals by itself once its cause is gone."""
    for pod in gang.pods:
        if pod.waiting is None:
            continue
        if pod.waiting.reason in IMAGE_WAITS:
            image = job.status.resolved.image if job.status.resolved is not None else ""
            return Reason.IMAGE_PULL_FAILED, messages.image_pull_failed(pod.name, image, pod.waiting.message)
        if pod.waiting.reason in CONFIG_WAITS:
            return _config_trouble(job, pod, pod.waiting.message)
    for pod in gang.pods:
        if job.complaint is not None and job.complaint.pod_uid == pod.uid and pod.running_since is None:
            return _config_trouble(job, pod, job.complaint.message)
    return None


def _config_trouble(job: ObservedJob, pod: ObservedPod, text: str) -> tuple[Reason, str]:
    store = job.status.resolved.store if job.status.resolved is not None else None
    secret = store.s3.secret_name if store is not None and store.s3 is not None else None
    if secret is not None and f'secret "{secret}" not found' in text:
        return Reason.STORE_SECRET_MISSING, messages.store_secret_missing(job.namespace, secret)
    script = job.spec.script if job.spec is not None else None
    if script is not None and script.config_map is not None and f'configmap "{script.config_map}" not found' in text:
        message = messages.script_missing(job.namespace, script.config_map, script.entrypoint)
        return Reason.SCRIPT_MISSING, message
    return Reason.CONTAINER_CONFIG_ERROR, messages.container_config_error(pod.name, text)


def _conditions(
    before: list[Condition], told: dict[JobCondition, Told], generation: int, now: datetime
) -> list[Condition]:
    conditions = before
    for kind, (status, reason, message) in told.items():
        conditions = set_condition(conditions, kind, status, reason, message, generation, now)
    order = list(JobCondition)
    known = [condition for condition in conditions if condition.type in set(JobCondition)]
    return sorted(known, key=lambda condition: order.index(JobCondition(condition.type)))


# The rest of the status


def _summed_up(job: ObservedJob, status: JobStatus, conditions: list[Condition]) -> JobStatus:
    """With what is read off the conditions."""
    update = {
        "conditions": conditions,
        "observed_generation": job.generation,
        "phase": phase(conditions),
        "message": _message(conditions),
    }
    return status.model_copy(update=update)


def _ended(
    job: ObservedJob, status: JobStatus, update: dict[str, Any], told: dict[JobCondition, Told], now: datetime
) -> JobStatus:
    return _summed_up(job, status.model_copy(update=update), _conditions(status.conditions, told, job.generation, now))


_PHASES = {
    Reason.TRAINING: "Training",
    Reason.PUBLISHING: "Publishing",
    Reason.RECOVERING: "Recovering",
}


def phase(conditions: list[Condition]) -> str:
    for ended in (JobCondition.COMPLETE, JobCondition.FAILED):
        if is_true(conditions, ended):
            return str(ended)
    suspended = find(conditions, JobCondition.SUSPENDED)
    if suspended is not None and suspended.reason in (Reason.SUSPENDED, Reason.SUSPENDING):
        return "Suspended"
    running, admitted = find(conditions, JobCondition.RUNNING), find(conditions, JobCondition.ADMITTED)
    if not is_true(conditions, JobCondition.ACCEPTED) or running is None or admitted is None:
        return "Pending"
    if running.reason in _PHASES:
        return _PHASES[Reason(running.reason)]
    if admitted.status == "True":
        return "Starting"
    return "Queued" if admitted.status == "False" else "Pending"


def _message(conditions: list[Condition]) -> str:
    """The one sentence that matters most: how it ended, else what is wrong, else what is going on."""
    told = {condition.type: condition for condition in conditions}
    for ended in (JobCondition.COMPLETE, JobCondition.FAILED):
        if ended in told:
            return told[ended].message
    accepted, admitted, running, suspended = (
        told[kind]
        for kind in (JobCondition.ACCEPTED, JobCondition.ADMITTED, JobCondition.RUNNING, JobCondition.SUSPENDED)
    )
    if accepted.status != "True":
        return accepted.message
    if suspended.reason in (Reason.SUSPENDED, Reason.SUSPENDING):
        return suspended.message
    if admitted.status == "False" and not (admitted.reason == Reason.QUEUED and running.reason in POD_TROUBLES):
        return admitted.message
    if running.status == "Unknown":
        return accepted.message
    degraded = told[JobCondition.DEGRADED]
    return degraded.message if running.status == "True" and degraded.status == "True" else running.message


def _nodes(gang: Gang) -> NodeCounts:
    ready = sum(pod.ready and pod.running for pod in gang.pods)
    return NodeCounts(
        desired=gang.size,
        ready=ready,
        succeeded=sum(pod.succeeded for pod in gang.pods),
        failed=sum(pod.phase == "Failed" for pod in gang.pods),
        summary=f"{ready}/{gang.size}",
    )


def with_reports(job: ObservedJob, counters: JobStatus, gang: Gang, now: datetime) -> JobStatus:
    """With all that its pods told, and the ledger up to now. What raises a counter raises it from here."""
    known = {
        "checkpoint": checkpoint.newest(job, gang, now),
        "goodput": goodput.booked(counters, gang.reported, now),
        "progress": _progress(gang, now) or counters.progress,  # who starts anew has nothing to tell yet
    }
    return _with_incidents(job, counters.model_copy(update=known), gang, now)


def _with_incidents(job: ObservedJob, counters: JobStatus, gang: Gang, now: datetime) -> JobStatus:
    """With what index 0 reports: restarts as maxima, since a coordinator counts on from what it was told."""
    progress = gang.reported
    if not gang.launched:
        return counters.model_copy(update={"incidents": proven(counters.incidents, gang, now)})
    if progress is None or job.spec is None:
        return counters
    restarts = counters.restarts.model_copy(
        update={
            "program": max(counters.restarts.program, progress.program_restarts),
            "hang": max(counters.restarts.hang, progress.hang_restarts),
        }
    )
    update: dict[str, Any] = {
        "restarts": total(restarts),
        "incidents": merged(counters, gang, progress, processes_per_node(job.spec) or 1, now),
    }
    first_step_at = _first_step_at(gang, now)
    if counters.first_step_time is None and first_step_at is not None:
        update["first_step_time"] = max(first_step_at, counters.start_time or first_step_at)
    return counters.model_copy(update=update)


def _first_step_at(gang: Gang, now: datetime) -> datetime | None:
    progress = gang.reported
    return clamped(progress.first_step_at, now) if progress is not None and progress.first_step_at else None


def _progress(gang: Gang, now: datetime) -> ProgressStatus | None:
    progress = gang.reported
    if progress is None or progress.phase is RunPhase.STARTING:
        return None
    speed, left = progress.steps_per_second, progress.total_steps - progress.step
    loss = next((metric.value for metric in progress.metrics if metric.name in ("loss", "train_loss")), None)
    return ProgressStatus(
        step=progress.step,
        total_steps=progress.total_steps or None,
        summary=_share(progress),
        steps_per_second=f"{speed:.1f}" if speed > 0 else None,
        eta_seconds=min(LONGEST_SECONDS, round(left / speed)) if speed > 0 and left > 0 else None,
        metrics=progress.metrics,
        loss=loss,
        updated_at=whole_seconds(gang.pulled.at if gang.pulled is not None else now),
    )


def _share(progress: Progress) -> str:
    return f"{100 * progress.step // progress.total_steps}%" if progress.total_steps else f"step {progress.step}"
