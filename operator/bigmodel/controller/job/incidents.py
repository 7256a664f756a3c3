"""The last ten failures of a job: those that cost pods, as we saw them, and those that launchers healed. Pure."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from bigmodel.api.job import JobIncident, JobStatus
from bigmodel.api.progress import Incident, Progress
from bigmodel.controller.conditions import whole_seconds
from bigmodel.controller.job import failure
from bigmodel.controller.job.gang import Gang
from bigmodel.controller.job.messages import cut
from bigmodel.controller.job.reports import camel_case

KEPT = 10
# Causes a launcher gives where a pod went: we saw that too, and know more.
OF_PODS = ("PodLost", "Terminated")
SAME_INCIDENT = timedelta(minutes=2)  # from a launcher's view of a lost pod to ours: its grace period lies between


def of_loss(loss: failure.Loss, attempt: int, now: datetime) -> JobIncident:
    return JobIncident(
        at=whole_seconds(now),
        attempt=attempt,
        cause=loss.cause,
        index=loss.index,
        node=loss.node,
        exit_code=loss.exit_code,
        message=cut(loss.message),
    )


def of_attempt(cause: failure.Cause, message: str, attempt: int, now: datetime) -> JobIncident:
    """One that no single pod explains."""
    return JobIncident(at=whole_seconds(now), attempt=attempt, cause=cause, message=cut(message))


def added(incidents: Sequence[JobIncident], incident: JobIncident) -> list[JobIncident]:
    return [*incidents, incident][-KEPT:]


def merged(status: JobStatus, gang: Gang, progress: Progress, processes: int, now: datetime) -> list[JobIncident]:
    """With what the launchers report: their own incidents, and how ours ended."""
    ours = {(i.at, i.attempt, i.cause): i for i in status.incidents}
    for reported in progress.incidents:
        if reported.cause in OF_PODS:
            continue
        incident = _of_report(reported, gang, processes, now)
        key = (incident.at, incident.attempt, incident.cause)
        if key in ours:  # its pod may have been replaced since: where it ran is as first seen
            incident = incident.model_copy(update={"node": ours[key].node})
        ours[key] = incident
    known = [ours[key] for key in sorted(ours)][-KEPT:]
    return [_with_recovery(incident, gang.attempt, progress, now) for incident in known]


def _of_report(incident: Incident, gang: Gang, processes: int, now: datetime) -> JobIncident:
    index = incident.rank // processes if incident.rank is not None else None
    pod = gang.current.get(index) if index is not None else None
    return JobIncident(
        at=clamped(incident.at, now),
        attempt=gang.attempt,
        cause=camel_case(incident.cause, "ProgramError"),
        rank=incident.rank,
        index=index,
        node=pod.node if pod is not None else None,
        exit_code=incident.exit_code,
        message=cut(incident.message),
        resumed_from_step=incident.resumed_from_step,
        recovery_seconds=round(incident.recovery_seconds) if incident.recovery_seconds is not None else None,
    )


def _with_recovery(incident: JobIncident, attempt: int, progress: Progress, now: datetime) -> JobIncident:
    """Ours say nothing of the step that ended them; the launchers do."""
    if incident.recovery_seconds is not None:
        return incident
    for reported in _of_pods(progress.incidents):
        gap = incident.at - clamped(reported.at, now)
        if incident.attempt == attempt and reported.recovery_seconds is not None and abs(gap) <= SAME_INCIDENT:
            return incident.model_copy(
                update={
                    "resumed_from_step": reported.resumed_from_step,
                    "recovery_seconds": round(reported.recovery_seconds),
                }
            )
    # A new coordinator remembers no step before its own first one.
    stepped = clamped(progress.first_step_at, now) if progress.first_step_at is not None else None
    if stepped is not None and stepped >= incident.at:
        return incident.model_copy(update={"recovery_seconds": round((stepped - incident.at).total_seconds())})
    return incident


def _of_pods(incidents: Iterable[Incident]) -> Iterable[Incident]:
    return (incident for incident in incidents if incident.cause in OF_PODS)


def clamped(epoch: float, now: datetime) -> datetime:
    """A pod's clock, never ahead of ours."""
    return whole_seconds(min(datetime.fromtimestamp(min(epoch, now.timestamp()), UTC), now))
