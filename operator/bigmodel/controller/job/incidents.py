"""The last ten failures of a job: those that cost pods, as we saw them, and those that launchers healed. Pure."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from bigmodel.api.job import JobIncident, JobStatus
from bigmodel.api.progress import Incident, Progress, RunPhase
from bigmodel.controller.conditions import whole_seconds
from bigmodel.controller.job import failure
from bigmodel.controller.job.gang import Gang
from bigmodel.controller.job.messages import cut
from bigmodel.controller.job.reports import camel_case

KEPT = 10
# Causes a launcher gives where a pod went: we saw that too, and know more.
OF_PODS = ("PodLost", "Terminated")
AHEAD = timedelta(days=1)  # a pod's clock may be wrong, but not like this
_OURS = frozenset(failure.Cause)
SAME_INCIDENT = timedelta(minutes=2)  # from a launcher's view of a lost pod to ours: its grace period lies between


def of_loss(loss: failure.Loss, attempt: int, step: int | None, now: datetime) -> JobIncident:
    """`step`: the furthest made by then, None where nobody told."""
    return JobIncident(
        at=whole_seconds(now),
        attempt=attempt,
        step=step,
        cause=loss.cause,
        index=loss.index,
        node=loss.node,
        exit_code=loss.exit_code,
        message=cut(loss.message),
        log=loss.log,
    )


def of_attempt(cause: failure.Cause, message: str, attempt: int, now: datetime) -> JobIncident:
    """One that no single pod explains."""
    return JobIncident(at=whole_seconds(now), attempt=attempt, cause=cause, message=cut(message))


def added(incidents: Sequence[JobIncident], incident: JobIncident) -> list[JobIncident]:
    return [*incidents, incident][-KEPT:]


def merged(status: JobStatus, gang: Gang, progress: Progress, processes: int, now: datetime) -> list[JobIncident]:
    """With what the launchers report: their own incidents, and how ours ended."""
    ours = [incident for incident in status.incidents if incident.cause in _OURS]
    theirs = {_key(incident): incident for incident in status.incidents if incident.cause not in _OURS}
    for reported in progress.incidents:
        if reported.cause in OF_PODS or reported.at > (now + AHEAD).timestamp():
            continue
        incident = _of_report(reported, gang, processes)
        if (known := theirs.get(_key(incident))) is not None:
            incident = incident.model_copy(update={"node": known.node})  # its pod may have been replaced since
        theirs[_key(incident)] = incident
    everything = sorted([*ours, *theirs.values()], key=lambda incident: (incident.at, incident.attempt))
    return [_with_recovery(incident, gang.attempt, progress, now) for incident in everything[-KEPT:]]


def proven(incidents: Sequence[JobIncident], gang: Gang, now: datetime) -> list[JobIncident]:
    """Of a gang without launchers, for PROVEN_SECONDS of running end the incidents before: there are no steps to see.

    Until the first of its pods ended, or now.
    """
    since = gang.all_run_since
    ends = [
        pod.ended.at for pod in gang.pods if pod.ended is not None and pod.ended.at is not None and not pod.succeeded
    ]
    if since is None or min([*ends, now]) - since < timedelta(seconds=failure.PROVEN_SECONDS):
        return list(incidents)
    return [
        incident
        if incident.recovery_seconds is not None or incident.at > since
        else incident.model_copy(update={"recovery_seconds": round((since - incident.at).total_seconds())})
        for incident in incidents
    ]


def _key(incident: JobIncident) -> tuple[datetime, int, str]:
    """Launchers report the same incident again and again, and have no number for it that survives an attempt."""
    return incident.at, incident.attempt, incident.cause


def _of_report(incident: Incident, gang: Gang, processes: int) -> JobIncident:
    index = incident.rank // processes if incident.rank is not None else None
    pod = gang.current.get(index) if index is not None else None
    return JobIncident(
        at=datetime.fromtimestamp(int(incident.at), UTC),  # as told: it is what the same incident is known by
        attempt=gang.attempt,
        cause=_their_cause(incident.cause),
        rank=incident.rank,
        index=index,
        node=pod.node if pod is not None else None,
        exit_code=incident.exit_code,
        message=cut(incident.message),
        log=incident.log,
        step=incident.step or None,
        resumed_from_step=incident.resumed_from_step,
        recovery_seconds=round(incident.recovery_seconds) if incident.recovery_seconds is not None else None,
    )


def _their_cause(word: str) -> str:
    cause = camel_case(word, "ProgramError")
    return cause if cause not in _OURS else "ProgramError"


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
    first = clamped(progress.first_step_at, now) if progress.first_step_at is not None else None
    if first is not None and first > incident.at:  # of a new attempt
        return incident.model_copy(update={"recovery_seconds": round((first - incident.at).total_seconds())})
    told = clamped(progress.updated_at, now)
    took_over = incident.cause in _OURS and incident.index == 0 and incident.attempt == attempt
    if took_over and progress.phase is not RunPhase.STARTING and told > incident.at:  # the new coordinator says so
        return incident.model_copy(update={"recovery_seconds": round((told - incident.at).total_seconds())})
    return incident


def _of_pods(incidents: Iterable[Incident]) -> Iterable[Incident]:
    return (incident for incident in incidents if incident.cause in OF_PODS)


def clamped(epoch: float, now: datetime) -> datetime:
    """A pod's clock, never ahead of ours."""
    return whole_seconds(min(datetime.fromtimestamp(min(epoch, now.timestamp()), UTC), now))
