"""Where the time of a job went: a ledger in whole seconds that sums to the wall time since the first start. Pure.

Each status write books the time since the write before to what the job was doing then, as its conditions say. The
ledger needs no clock of its own: `since` plus its sum is the time up to which it is booked. What only launchers can
know (blocked by saves, steps made again, healed in place) they tell as sums of their attempt; `reported` remembers how
much of that is booked, in the same write, so that nothing is booked twice.
"""

from datetime import datetime, timedelta
from enum import StrEnum

from bigmodel.api.condition import JobCondition
from bigmodel.api.job import Goodput, JobStatus, Reported
from bigmodel.api.progress import Ledger, Progress, RunPhase
from bigmodel.controller.conditions import find
from bigmodel.controller.job.failure import Cause
from bigmodel.controller.job.incidents import clamped
from bigmodel.controller.job.messages import Reason


class Activity(StrEnum):
    """What a job can be doing; each is a field of Goodput."""

    QUEUED = "queued_seconds"
    SUSPENDED = "suspended_seconds"
    STARTING = "starting_seconds"
    PRODUCTIVE = "productive_seconds"
    RECOVERING = "recovering_seconds"
    PUBLISHING = "publishing_seconds"
    # Never read off the conditions: moved here from productive.
    CHECKPOINT = "checkpoint_seconds"
    LOST = "lost_seconds"


_OF_RUNNING = {
    Reason.TRAINING: Activity.PRODUCTIVE,
    Reason.PUBLISHING: Activity.PUBLISHING,
    Reason.RECOVERING: Activity.RECOVERING,
}
_TOLD_BY_LAUNCHERS = (Activity.CHECKPOINT, Activity.LOST, Activity.RECOVERING)
_OURS = frozenset(Cause)


def activity(status: JobStatus) -> Activity:
    """Read off the conditions."""
    running, admitted = find(status.conditions, JobCondition.RUNNING), find(status.conditions, JobCondition.ADMITTED)
    suspended = find(status.conditions, JobCondition.SUSPENDED)
    if suspended is not None and (suspended.status == "True" or suspended.reason == Reason.SUSPENDING):
        return Activity.SUSPENDED
    if running is not None and running.reason in _OF_RUNNING:
        return _OF_RUNNING[Reason(running.reason)]
    return Activity.STARTING if admitted is not None and admitted.status == "True" else Activity.QUEUED


def booked_until(status: JobStatus) -> datetime | None:
    """None before the first start."""
    if (since := _since(status)) is None:
        return None
    return since + timedelta(seconds=_sum(status.goodput or Goodput(summary="-")))


def _since(status: JobStatus) -> datetime | None:
    return status.goodput.since if status.goodput is not None and status.goodput.since else status.start_time


def booked(before: JobStatus, report: Progress | None, now: datetime) -> Goodput | None:
    """The ledger up to now. `before`: the status as last written. `report`: the newest of its attempt.

    The report's first step ends a start, and the recovery of a new attempt, exactly.
    """
    since = booked_until(before)
    if since is None:
        return before.goodput
    ledger = (before.goodput or Goodput(summary="-")).model_copy(update={"since": _since(before)})
    seconds = max(0, int((now - since).total_seconds()))
    doing = activity(before)
    stepped = 0
    first_step_at = clamped(report.first_step_at, now) if report is not None and report.first_step_at else None
    waits = (Activity.QUEUED, Activity.STARTING, Activity.RECOVERING)
    if doing in waits and first_step_at is not None and first_step_at >= since:
        stepped = min(seconds, int((now - first_step_at).total_seconds()))
        if doing is Activity.QUEUED:
            doing = Activity.STARTING
    told = _told(report)
    if doing is Activity.RECOVERING and _is_healed_in_place(before):
        # The launchers tell the same seconds, exactly, once they make steps again. Where a pod is replaced they do not.
        growth = told.recovering_seconds - ledger.reported.recovering_seconds
        recovering = min(seconds, growth) if growth > 0 and _makes_steps(report) else seconds
        stepped = seconds - recovering
        ledger = _remembered(ledger, Activity.RECOVERING, recovering)
    ledger = _add(_add(ledger, doing, seconds - stepped), Activity.PRODUCTIVE, stepped)
    for kind in _TOLD_BY_LAUNCHERS:
        growth = max(0, getattr(told, kind) - getattr(ledger.reported, kind))
        moved = min(growth, ledger.productive_seconds)
        ledger = _remembered(_moved(ledger, kind, moved), kind, moved)
    return _summed_up(ledger)


def without_lost_steps(status: JobStatus) -> JobStatus:
    """All pods go, and with them whoever knew what is made again: all steps since the newest checkpoint.

    Progress goes back to where training goes on from, so the same steps are not lost twice.
    """
    ledger, progress = status.goodput, status.progress
    kept = status.checkpoint.step if status.checkpoint is not None else 0
    if ledger is None or progress is None or progress.step <= kept:
        return status
    speed = float(progress.steps_per_second or 0)
    seconds = round((progress.step - kept) / speed) if speed > 0 else 0
    total = progress.total_steps
    back = {"step": kept, "summary": f"{100 * kept // total}%" if total else f"step {kept}", "eta_seconds": None}
    lost = _moved(ledger, Activity.LOST, min(seconds, ledger.productive_seconds))
    return status.model_copy(update={"goodput": _summed_up(lost), "progress": progress.model_copy(update=back)})


def of_new_attempt(ledger: Goodput | None) -> Goodput | None:
    """Its launchers count from zero."""
    return ledger.model_copy(update={"reported": Reported()}) if ledger is not None else None


def _told(report: Progress | None) -> Reported:
    """Whole seconds; what is left of one is told with the next."""
    ledger = report.ledger if report is not None else Ledger()
    return Reported(**{kind.value: int(getattr(ledger, kind)) for kind in _TOLD_BY_LAUNCHERS})


def _makes_steps(report: Progress | None) -> bool:
    return report is not None and report.phase is not RunPhase.STARTING


def _is_healed_in_place(status: JobStatus) -> bool:
    """What is recovered from now cost no pod."""
    last = status.incidents[-1] if status.incidents else None
    return last is not None and last.attempt == status.attempt and last.cause not in _OURS


def _moved(ledger: Goodput, kind: Activity, seconds: int) -> Goodput:
    return _add(_add(ledger, kind, seconds), Activity.PRODUCTIVE, -seconds)


def _remembered(ledger: Goodput, kind: Activity, seconds: int) -> Goodput:
    known = getattr(ledger.reported, kind)
    return ledger.model_copy(update={"reported": ledger.reported.model_copy(update={kind.value: known + seconds})})


def _add(ledger: Goodput, kind: Activity, seconds: int) -> Goodput:
    return ledger.model_copy(update={kind.value: getattr(ledger, kind) + seconds})


def _sum(ledger: Goodput) -> int:
    return sum(getattr(ledger, kind) for kind in Activity)


def _summed_up(ledger: Goodput) -> Goodput:
    """productive / (wall - queued - suspended)."""
    wall = _sum(ledger) - ledger.queued_seconds - ledger.suspended_seconds
    summary = f"{ledger.productive_seconds / wall:.1%}" if wall > 0 else "0.0%"
    return ledger.model_copy(update={"summary": summary})
