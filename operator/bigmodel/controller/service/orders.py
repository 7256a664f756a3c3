"""What a user tells about one revision: the annotations bigmodel.io/promote, abort and retry, with its number. Pure.

Each acts once: the record remembers that it did for as long as the annotation stands. To say it again, take it away
first.
"""

from datetime import datetime

from bigmodel.controller.service import messages
from bigmodel.controller.service.messages import Reason
from bigmodel.controller.service.revision import Attempt, Outcome, Record

PROMOTE, ABORT, RETRY = "promote", "abort", "retry"


def acted_on(attempt: Attempt, order: str) -> Attempt:
    return attempt.model_copy(update={"acted": sorted({*attempt.acted, order})})


def approved(record: Record) -> Attempt:
    """promote: no more steps, no more evidence; still only once all its pods are verified."""
    return acted_on(record.attempt, PROMOTE).model_copy(update={"approved": True})


def aborted(record: Record, now: datetime) -> tuple[Outcome, Attempt]:
    """abort: given up, and not tried again by itself."""
    message = messages.aborted_by_user(record.number)
    outcome = Outcome(result="Aborted", reason=Reason.ABORTED_BY_USER, message=message, at=now, gate="user")
    return outcome, acted_on(record.attempt, ABORT)


def retried(record: Record, now: datetime) -> Attempt:
    """retry: as if it had never been tried."""
    return acted_on(Attempt(since=now, acted=record.attempt.acted), RETRY)


def forgotten(record: Record, orders: dict[str, int]) -> Attempt | None:
    """Without the marks of annotations that are gone; None where there is nothing to forget."""
    kept = [order for order in record.attempt.acted if orders.get(order) == record.number]
    return None if kept == record.attempt.acted else record.attempt.model_copy(update={"acted": kept})
