"""Conditions of a status, as JSON: set one, carry all to a generation, read one. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from bigmodel.controller.decision import Manifest

ConditionStatus = Literal["True", "False", "Unknown"]


def set_condition(
    conditions: Sequence[Manifest],
    type: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> list[Manifest]:
    """The conditions with this one set, at its old place or at the end. lastTransitionTime moves only with `status`."""
    old = find(conditions, type)
    condition = {
        "type": type,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": old["lastTransitionTime"] if old and old["status"] == status else timestamp(now),
        "reason": reason,
        "message": message,
    }
    if old is None:
        return [*conditions, condition]
    return [condition if c is old else c for c in conditions]


def carried_to(conditions: Sequence[Manifest], generation: int) -> list[Manifest]:
    """The same conditions, said of this generation: what a finished object needs when its TTL is edited."""
    return [{**condition, "observedGeneration": generation} for condition in conditions]


def find(conditions: Sequence[Manifest], type: str) -> Manifest | None:
    return next((condition for condition in conditions if condition["type"] == type), None)


def is_true(conditions: Sequence[Manifest], type: str) -> bool:
    return (condition := find(conditions, type)) is not None and condition["status"] == "True"


def timestamp(time: datetime) -> str:
    """metav1.Time: UTC, whole seconds, as the API server itself writes it."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """Any RFC 3339 time; metav1.MicroTime too. Raises ValueError."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return time
