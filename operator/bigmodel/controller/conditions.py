"""Conditions of a status: set one, carry all to a generation, read one. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from bigmodel.api.condition import Condition

ConditionStatus = Literal["True", "False", "Unknown"]


def set_condition(
    conditions: Sequence[Condition],
    type: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> list[Condition]:
    """The conditions with this one set, at its old place or at the end. lastTransitionTime moves only with `status`."""
    old = find(conditions, type)
    condition = Condition(
        type=type,
        status=status,
        observed_generation=generation,
        last_transition_time=old.last_transition_time if old and old.status == status else whole_seconds(now),
        reason=reason,
        message=message,
    )
    if old is None:
        return [*conditions, condition]
    return [condition if c is old else c for c in conditions]


def carried_to(conditions: Sequence[Condition], generation: int) -> list[Condition]:
    """The same conditions, said of this generation: what a finished object needs when its TTL is edited."""
    return [condition.model_copy(update={"observed_generation": generation}) for condition in conditions]


def find(conditions: Sequence[Condition], type: str) -> Condition | None:
    return next((condition for condition in conditions if condition.type == type), None)


def is_true(conditions: Sequence[Condition], type: str) -> bool:
    return (condition := find(conditions, type)) is not None and condition.status == "True"


def whole_seconds(time: datetime) -> datetime:
    """As the API server writes times: UTC, without fractions. A time that is written and read back is then the same."""
    return time.astimezone(UTC).replace(microsecond=0)
