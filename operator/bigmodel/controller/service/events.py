"""The service's story as events: one for each transition that a user cares about, read off two statuses. Pure."""

from collections.abc import Mapping
from typing import Any, Literal

from bigmodel.api.condition import ServiceCondition
from bigmodel.controller.decision import Event
from bigmodel.controller.service.messages import Reason

STAGES = frozenset(
    {
        Reason.PREPARING,
        Reason.SCHEDULING,
        Reason.PULLING,
        Reason.FETCHING,
        Reason.LOADING,
        Reason.VERIFYING,
        Reason.EVALUATING,
        Reason.STEPPING,
        Reason.PROMOTING,
        Reason.QUIET,
        Reason.NO_DATA,
        Reason.GATE_UNDECIDED,
        Reason.ROUTE_PENDING,
    }
)
EventType = Literal["Normal", "Warning"]
QUIET = frozenset({Reason.ROLLOUT_COMPLETE, Reason.WAITING_FOR_SOURCE})


def events_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Event, ...]:
    """`about` holds what tells one occurrence from the next: the revision, or the moment the condition turned."""
    old, new = _conditions(before), _conditions(after)
    told = (
        _accepted(old, new),
        _source(old, new),
        _revision(before, after),
        _share(before, after),
        _progress(old, new, after),
        _outcome(old, new, after),
        _ready(old, new),
    )
    return tuple(event for event in told if event is not None)


Conditions = Mapping[str, Mapping[str, Any]]


def _conditions(status: Mapping[str, Any]) -> Conditions:
    return {condition["type"]: condition for condition in status.get("conditions") or ()}


def _turned(old: Conditions, new: Conditions, kind: ServiceCondition) -> bool:
    """Another status or reason than before."""
    was, now = old.get(kind, {}), new[kind]
    return (was.get("status"), was.get("reason")) != (now["status"], now["reason"])


def _accepted(old: Conditions, new: Conditions) -> Event | None:
    condition = new[ServiceCondition.ACCEPTED]
    if condition["status"] == "True" or not _turned(old, new, ServiceCondition.ACCEPTED):
        return None
    about = f"generation-{condition['observedGeneration']}-refused"
    return Event("Warning", condition["reason"], condition["message"], about)


def _source(old: Conditions, new: Conditions) -> Event | None:
    condition = new[ServiceCondition.SOURCE_AVAILABLE]
    if condition["status"] != "False" or not _turned(old, new, ServiceCondition.SOURCE_AVAILABLE):
        return None
    waits = condition["reason"] == Reason.JOB_NOT_FINISHED
    reason = Reason.WAITING_FOR_SOURCE if waits else condition["reason"]
    about = f"source-{condition['reason']}-{condition['lastTransitionTime']}"
    return Event("Normal" if waits else "Warning", reason, condition["message"], about)


def _revision(before: Mapping[str, Any], after: Mapping[str, Any]) -> Event | None:
    candidate = after.get("candidate")
    if candidate is None or (before.get("candidate") or {}).get("revision") == candidate["revision"]:
        return None
    if (before.get("stable") or {}).get("revision") == candidate["revision"]:
        return None
    note = f"r{candidate['revision']} is made for {candidate['digest'][:19]}; its pods start without traffic."
    return Event("Normal", "RevisionCreated", note, f"r{candidate['revision']}-created")


def _share(before: Mapping[str, Any], after: Mapping[str, Any]) -> Event | None:
    """Each step of a canary."""
    step, was = ((status.get("candidate") or {}).get("step") for status in (after, before))
    candidate = after.get("candidate")
    if step is None or candidate is None or (was or {}).get("startedAt") == step["startedAt"]:
        return None
    note = f"r{candidate['revision']} gets {step['weight']} % of the traffic."
    return Event("Normal", "TrafficShifted", note, f"r{candidate['revision']}-{step['weight']}-{step['startedAt']}")


def _progress(old: Conditions, new: Conditions, after: Mapping[str, Any]) -> Event | None:
    """Only what holds a candidate up: the stages themselves are the rollout column's."""
    condition = new[ServiceCondition.PROGRESSING]
    if condition["status"] == "Unknown" or condition["reason"] in STAGES | QUIET:
        return None
    if not _turned(old, new, ServiceCondition.PROGRESSING):
        return None
    candidate = after.get("candidate")
    if candidate is None and new[ServiceCondition.PROMOTED]["status"] == "False":
        return None  # told by the outcome
    subject = f"r{candidate['revision']}" if candidate else f"generation-{condition['observedGeneration']}"
    kind: EventType = (
        "Normal" if condition["reason"] in {Reason.PAUSED, Reason.SCALED_TO_ZERO, Reason.ROLLOUTS_QUEUED} else "Warning"
    )
    return Event(kind, condition["reason"], condition["message"], f"{subject}-{condition['reason']}")


def _outcome(old: Conditions, new: Conditions, after: Mapping[str, Any]) -> Event | None:
    condition = new[ServiceCondition.PROMOTED]
    if condition["status"] == "Unknown" or not after.get("history"):
        return None
    if not _turned(old, new, ServiceCondition.PROMOTED):
        return None
    newest = after["history"][0]
    kind: EventType = "Normal" if condition["status"] == "True" else "Warning"
    about = f"r{newest['revision']}-{condition['reason']}-{newest['at']}"
    return Event(kind, condition["reason"], condition["message"], about)


def _ready(old: Conditions, new: Conditions) -> Event | None:
    """Losing the last endpoint is news, and getting it back; the first time is told by Promoted."""
    condition, was = new[ServiceCondition.READY], old.get(ServiceCondition.READY)
    if was is None or was["status"] == condition["status"] or condition["reason"] == Reason.SCALED_TO_ZERO:
        return None
    if {was["reason"], condition["reason"]} & {Reason.NO_VERIFIED_REVISION, Reason.ENDPOINTS_PENDING}:
        return None
    kind: EventType = "Normal" if condition["status"] == "True" else "Warning"
    return Event(
        kind,
        condition["reason"],
        condition["message"],
        f"ready-{condition['status']}-{condition['lastTransitionTime']}",
    )
