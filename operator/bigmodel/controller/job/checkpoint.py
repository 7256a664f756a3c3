"""Which checkpoint a job goes on from, as its pods tell it, and whether saving works. Pure.

The trainer finds the newest by itself; what is here is for people and for the ledger of lost steps.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from bigmodel.api.condition import Condition
from bigmodel.api.job import CheckpointStatus, JobStatus
from bigmodel.api.progress import CheckpointSummary
from bigmodel.artifact.layout import join
from bigmodel.controller.job import messages
from bigmodel.controller.job.gang import Gang
from bigmodel.controller.job.incidents import clamped
from bigmodel.controller.job.messages import Reason
from bigmodel.controller.job.observe import ObservedJob
from bigmodel.controller.store_location import store_location

# <attempt>.<generation>/<step>, below the job's own directory of checkpoints
_PLACE = re.compile(r"(\d{1,9})\.(\d{1,9})/(\d{1,13})")


def newest(job: ObservedJob, gang: Gang, now: datetime) -> CheckpointStatus | None:
    """The one that is known, or a newer one.

    Newer is a higher step. A lower one of a later generation counts too: what was above it could not be read.
    """
    known, current = job.status.checkpoint, gang.reported
    for told in _of_last_words(job, gang):
        known = _newer(job, known, told, now)
    if current is None or current.checkpoint is None:
        return known
    read_back = current.checkpoint_error is not None and _is_corrupt(current.checkpoint_error)
    if known is None or read_back or _generation(job, current.checkpoint.uri) > _generation(job, known.uri):
        return _taken(job, current.checkpoint, now) or known
    return _newer(job, known, current.checkpoint, now)


def health(
    gang: Gang, status: JobStatus, before: Condition | None
) -> tuple[Literal["True", "False", "Unknown"], Reason, str]:
    """The condition CheckpointHealthy. While nobody reports, what was known still holds."""
    error = gang.reported.checkpoint_error if gang.reported is not None else None
    if error is not None:
        step = status.checkpoint.step if status.checkpoint is not None else None
        if _is_corrupt(error):
            return "False", Reason.CORRUPT, messages.checkpoint_corrupt(error, step)
        return "False", Reason.SAVE_FAILED, messages.save_failed(error, step)
    if gang.reported is None and before is not None and before.status == "False":
        return "False", Reason(before.reason), before.message
    if status.checkpoint is not None:
        return "True", Reason.SAVED, messages.saved(status.checkpoint.step)
    return "Unknown", Reason.NO_CHECKPOINT_YET, messages.no_checkpoint_yet()


def _of_last_words(job: ObservedJob, gang: Gang) -> Iterator[CheckpointSummary]:
    """Of this attempt; and of the one before while it leaves. Later a word of it is history: what it names may have
    been found corrupt.
    """
    words = gang.pods or [pod for pod in gang.earlier if pod.attempt == gang.attempt - 1]
    for pod in words:
        if pod.last_word is not None and pod.last_word.checkpoint is not None:
            yield pod.last_word.checkpoint


def _newer(
    job: ObservedJob, known: CheckpointStatus | None, told: CheckpointSummary, now: datetime
) -> CheckpointStatus | None:
    return known if known is not None and told.step <= known.step else _taken(job, told, now) or known


def _taken(job: ObservedJob, told: CheckpointSummary, now: datetime) -> CheckpointStatus | None:
    """None: it is not where this job's checkpoint of that step must be."""
    if _place(job, told.uri)[-1:] != (told.step,):
        return None
    return CheckpointStatus(step=told.step, uri=told.uri, digest=told.digest, saved_at=clamped(told.saved_at, now))


def _generation(job: ObservedJob, uri: str) -> tuple[int, ...]:
    return _place(job, uri)[:2]


def _place(job: ObservedJob, uri: str) -> tuple[int, ...]:
    """Attempt, generation and step; empty for any other place."""
    if job.status.resolved is None or job.status.resolved.store is None:
        return ()
    home = join(store_location(job.status.resolved.store).uri, f"{job.namespace}/{job.name}/{job.uid}/checkpoint/")
    place = _PLACE.fullmatch(uri.removeprefix(home)) if uri.startswith(home) else None
    return tuple(int(number) for number in place.groups()) if place is not None else ()


def _is_corrupt(error: str) -> bool:
    """The one word of the trainer's text that matters here: a save that failed is another trouble."""
    return re.search(r"\bcorrupt", error) is not None
