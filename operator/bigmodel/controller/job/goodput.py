"""Where the time of a job went: a ledger in whole seconds that sums to the wall time. Pure.

Each status write books the time since the write before to what the job was doing then. The ledger needs no clock of its
own: startTime plus its sum is the time up to which it is booked. What cannot be known here yet (blocked by saves, steps
made again) is not claimed.
"""

from datetime import datetime, timedelta
from enum import StrEnum

from bigmodel.api.condition import JobCondition
from bigmodel.api.job import Goodput, JobStatus
from bigmodel.controller.conditions import find
from bigmodel.controller.job.messages import Reason


class Activity(StrEnum):
    """What a job can be doing; each is a field of Goodput."""

    QUEUED = "queued_seconds"
    SUSPENDED = "suspended_seconds"
    STARTING = "starting_seconds"
    PRODUCTIVE = "productive_seconds"
    RECOVERING = "recovering_seconds"
    PUBLISHING = "publishing_seconds"


_OF_RUNNING = {
    Reason.TRAINING: Activity.PRODUCTIVE,
    Reason.PUBLISHING: Activity.PUBLISHING,
    Reason.RECOVERING: Activity.RECOVERING,
}


def activity(status: JobStatus) -> Activity:
    """Read off the conditions."""
    running, admitted = find(status.conditions, JobCondition.RUNNING), find(status.conditions, JobCondition.ADMITTED)
    suspended = find(status.conditions, JobCondition.SUSPENDED)
    if suspended is not None and suspended.status == "True":
        return Activity.SUSPENDED
    if running is not None and running.reason in _OF_RUNNING:
        return _OF_RUNNING[Reason(running.reason)]
    return Activity.STARTING if admitted is not None and admitted.status == "True" else Activity.QUEUED


def booked_until(status: JobStatus) -> datetime | None:
    """None before the first start."""
    if status.start_time is None:
        return None
    return status.start_time + timedelta(seconds=_sum(status.goodput or Goodput(summary="-")))


def booked(before: JobStatus, first_step_at: datetime | None, now: datetime) -> Goodput | None:
    """The ledger up to now. `before`: the status as last written. `first_step_at` ends a start or recovery exactly."""
    since = booked_until(before)
    if since is None:
        return before.goodput
    ledger = before.goodput or Goodput(summary="-")
    seconds = max(0, int((now - since).total_seconds()))
    doing = activity(before)
    stepped = 0
    waits = (Activity.QUEUED, Activity.STARTING, Activity.RECOVERING)
    if doing in waits and first_step_at is not None and first_step_at >= since:
        stepped = min(seconds, int((now - first_step_at).total_seconds()))
        if doing is Activity.QUEUED:
            doing = Activity.STARTING
    ledger = _add(_add(ledger, doing, seconds - stepped), Activity.PRODUCTIVE, stepped)
    return ledger.model_copy(update={"summary": _summary(ledger)})


def _add(ledger: Goodput, doing: Activity, seconds: int) -> Goodput:
    return ledger.model_copy(update={doing.value: getattr(ledger, doing.value) + seconds})


def _sum(ledger: Goodput) -> int:
    return sum(getattr(ledger, doing.value) for doing in Activity)


def _summary(ledger: Goodput) -> str:
    """productive / (wall - queued - suspended)."""
    wall = _sum(ledger) - ledger.queued_seconds - ledger.suspended_seconds
    return f"{ledger.productive_seconds / wall:.1%}" if wall > 0 else "0.0%"
