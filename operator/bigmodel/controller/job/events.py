"""The job's story as events: one for each transition that a user cares about, read off two statuses. Pure."""

from bigmodel.api import names
from bigmodel.api.condition import Condition, JobCondition
from bigmodel.api.job import JobIncident, JobStatus
from bigmodel.controller.conditions import find, is_true
from bigmodel.controller.decision import Event
from bigmodel.controller.job import messages
from bigmodel.controller.job.failure import Cause
from bigmodel.controller.job.messages import GANG_TROUBLES, POD_TROUBLES, Reason
from bigmodel.controller.job.observe import ObservedJob


def events_between(job: ObservedJob, after: JobStatus) -> tuple[Event, ...]:
    """`about` holds what tells one occurrence from the next: attempt, replacement, or when the condition turned."""
    before = job.status
    return (
        *_accepted(before, after),
        *_gang(before, after),
        *_attempt(before, after),
        *_replaced(job, before, after),
        *_restarted(before, after),
        *_checkpointed(before, after),
        *_suspended(before, after),
        *_trouble(before, after, JobCondition.ADMITTED, GANG_TROUBLES),
        *_running(before, after),
        *_trouble(before, after, JobCondition.RUNNING, POD_TROUBLES),
        *_trouble(before, after, JobCondition.DEGRADED, frozenset({Reason.PROGRESS_UNREACHABLE})),
        *_ended(before, after),
    )


def _accepted(before: JobStatus, after: JobStatus) -> tuple[Event, ...]:
    condition = _turned(before, after, JobCondition.ACCEPTED)
    if condition is None:
        return ()
    if condition.status == "True":
        return (Event("Normal", Reason.ACCEPTED, condition.message, "accepted"),)
    return (
        Event("Warning", condition.reason, condition.message, f"generation-{condition.observed_generation}-refused"),
    )


def _gang(before: JobStatus, after: JobStatus) -> tuple[Event, ...]:
    """Once an attempt: a successor of a lost pod is told as such."""
    if after.nodes is None or after.replacements:
        return ()
    was = before.pods_created if before.attempt == after.attempt else 0
    if not was < after.pods_created == after.nodes.desired:
        return ()
    note = messages.gang_created(after.nodes.desired, after.attempt)
    return (Event("Normal", Reason.GANG_CREATED, note, f"a{after.attempt}-created"),)


def _attempt(before: JobStatus, after: JobStatus) -> tuple[Event, ...]:
    if not 0 < before.attempt < after.attempt or before.start_time != after.start_time:
        return ()  # none before, or the job was resumed
    last = _last(after)
    about = f"a{before.attempt}-over"
    if last is not None and last.cause == Cause.QUOTA_TAKEN:
        return (Event("Normal", Reason.QUOTA_TAKEN, last.message, about),)
    if last is not None and last.cause == Cause.RESIZED:
        return (Event("Normal", Reason.RESIZED, last.message, about),)
    why, log = (last.message, last.log) if last is not None else ("its pods are gone", None)
    return (Event("Warning", Reason.ATTEMPT_FAILED, messages.attempt_failed(before.attempt, why, log), about),)


def _suspended(before: JobStatus, after: JobStatus) -> tuple[Event, ...]:
    """Reached, and left again."""
    condition = _turned(before, after, JobCondition.SUSPENDED)
    if condition is None or condition.reason not in (Reason.SUSPENDED, Reason.RESUMED):
        return ()
    about = f"a{after.attempt}-{condition.reason}-{condition.last_transition_time:%Y%m%d%H%M%S}"
    return (Event("Normal", condition.reason, condition.message, about),)


def _checkpointed(before: JobStatus, after: JobStatus) -> tuple[Event, ...]:
    """The first, the first after a trouble, and the trouble; not each."""
    condition = _turned(before, after, JobCondition.CHECKPOINT_HEALTHY)
    if condition is None or condition.status == "Unknown":
        return ()
    about = f"checkpoint-{condition.reason}-{condition.last_transition_time:%Y%m%d%H%M%S}"
    if condition.status == "True":
        return (Event("Normal", Reason.CHECKPOINTED, condition.message, about),)
    return (Event("Warning", condition.reason, condition.message, about),)


def _replaced(job: ObservedJob, before: JobStatus, after: JobStatus) -> tuple[Event, ...]:
    if before.attempt != after.attempt:
        return ()
    was = {replacement.index: replacement.count for replacement in before.replacements}
    last = _last(after)
    why, log = (last.message, last.log) if last is not None else ("it is gone", None)
    return tuple(
        Event(
            "Warning",
            Reason.POD_REPLACED,
            messages.pod_replaced(names.node_pod(job.name, job.uid, after.attempt, new.index, new.count), why, log),
            f"a{after.attempt}-{new.index}-r{new.count}",
        )
        for new in after.replacements
        if new.count > was.get(new.index, 0)
    )


def _restarted(before: JobStatus, after: JobStatus) -> tuple[Event, ...]:
    """Ranks that were healed in place, as the launchers count them."""
    if before.attempt != after.attempt or before.replacements != after.replacements:
        return ()
    was, now = before.restarts, after.restarts
    if (now.program, now.hang) == (was.program, was.hang):
        return ()
    last = _last(after)
    why, log = (last.message, last.log) if last is not None else ("a rank failed", None)
    return (Event("Warning", Reason.RESTARTED, messages.restarted(why, log), f"restart-{now.program}-{now.hang}"),)


def _trouble(before: JobStatus, after: JobStatus, kind: JobCondition, reasons: frozenset[Reason]) -> tuple[Event, ...]:
    condition = _turned(before, after, kind)
    if condition is None or condition.reason not in reasons:
        return ()
    about = f"{kind}-{condition.reason}-{condition.last_transition_time:%Y%m%d%H%M%S}"
    return (Event("Warning", condition.reason, condition.message, about),)


def _running(before: JobStatus, after: JobStatus) -> tuple[Event, ...]:
    """All pods run: the first time, and again after a loss."""
    if is_true(before.conditions, JobCondition.RUNNING) or not is_true(after.conditions, JobCondition.RUNNING):
        return ()
    condition, size = find(after.conditions, JobCondition.RUNNING), after.nodes.desired if after.nodes else 0
    assert condition is not None
    about = f"a{after.attempt}-running-{condition.last_transition_time:%Y%m%d%H%M%S}"
    return (Event("Normal", Reason.RUNNING, messages.running(size), about),)


def _ended(before: JobStatus, after: JobStatus) -> tuple[Event, ...]:
    told = []
    for kind, reason, type_ in (
        (JobCondition.PUBLISHED, Reason.PUBLISHED, "Normal"),
        (JobCondition.COMPLETE, Reason.COMPLETE, "Normal"),
        (JobCondition.FAILED, Reason.FAILED, "Warning"),
    ):
        condition = find(after.conditions, kind)
        if condition is None or condition.status != "True" or is_true(before.conditions, kind):
            continue
        note = condition.message if reason is not Reason.FAILED else f"{condition.reason}: {condition.message}"
        doubtful = condition.reason == Reason.NO_STEP_REPORTED
        told.append(Event("Normal" if type_ == "Normal" and not doubtful else "Warning", reason, note, reason.lower()))
    return tuple(told)


def _last(status: JobStatus) -> JobIncident | None:
    return status.incidents[-1] if status.incidents else None


def _turned(before: JobStatus, after: JobStatus, kind: JobCondition) -> Condition | None:
    """The condition, where its status or reason is another than before."""
    was, now = find(before.conditions, kind), find(after.conditions, kind)
    if now is None or (was is not None and (was.status, was.reason) == (now.status, now.reason)):
        return None
    return now
