"""What training pods say, read as untrusted input: user code runs beside the launcher. Pure.

A report is taken whole or not at all. Sizes are bounded by whoever fetched it and by the models; here is what a model
cannot say: whose report it is, and that its numbers make sense.
"""

import math
import re

from pydantic import ValidationError

from bigmodel.api.model import Metric
from bigmodel.api.progress import ArtifactSummary, LastWord, Progress
from bigmodel.artifact.layout import artifact_key, join

# The kubelet's own limit; a message that FallbackToLogsOnError took from the log is shorter still.
TERMINATION_BYTES = 4096
MAX_RESTARTS_REPORTED = 100_000


class BadReport(ValueError):
    """A report that is not taken. The message says why."""


def progress_of(text: str | bytes, uid: str, attempt: int) -> Progress:
    """Raises BadReport."""
    try:
        progress = Progress.model_validate_json(text)
    except ValidationError as error:
        raise BadReport(_first(error)) from None
    check_progress(progress, uid, attempt)
    return progress


def check_progress(progress: Progress, uid: str, attempt: int) -> None:
    """Raises BadReport."""
    if (progress.uid, progress.attempt) != (uid, attempt):
        raise BadReport(f"it is of attempt {progress.attempt} of job {progress.uid}, not of attempt {attempt} of {uid}")
    if progress.total_steps and progress.step > progress.total_steps:
        raise BadReport(f"step {progress.step} is beyond totalSteps {progress.total_steps}")
    restarts = (progress.program_restarts, progress.hang_restarts, progress.generation)
    if not all(0 <= count <= MAX_RESTARTS_REPORTED for count in restarts):
        raise BadReport(f"programRestarts, hangRestarts and generation are {restarts}")
    _check_metrics(progress.metrics)


def last_word_of(message: str, uid: str, attempt: int, index: int) -> LastWord | None:
    """A pod's termination message as the launcher's; None where it is something else, such as the end of the log."""
    if len(message.encode()) > TERMINATION_BYTES:
        return None
    try:
        word = LastWord.model_validate_json(message)
        if (word.uid, word.attempt, word.index) != (uid, attempt, index):
            return None
        if word.progress is not None:
            check_progress(word.progress, uid, attempt)
        if word.artifact is not None:
            _check_metrics(word.artifact.metrics)
    except (ValidationError, BadReport):
        return None
    return word


def artifact_of(word: LastWord, store_uri: str, namespace: str, job: str) -> ArtifactSummary:
    """What index 0 says it published, if it is where this job's artefact must be. Raises BadReport."""
    if word.artifact is None:
        raise BadReport("its last word names no artefact")
    wanted = join(store_uri, artifact_key(namespace, job, word.uid, word.artifact.digest))
    if word.artifact.uri.rstrip("/") != wanted:
        raise BadReport(f"its artefact is at {word.artifact.uri}, and must be at {wanted}")
    return word.artifact


def camel_case(word: str, otherwise: str) -> str:
    """A word that a condition or an incident may carry."""
    return word if re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,62}", word) else otherwise


def _check_metrics(metrics: list[Metric]) -> None:
    for metric in metrics:
        try:
            finite = math.isfinite(float(metric.value))
        except ValueError:
            finite = False
        if not finite:
            raise BadReport(f"metric {metric.name} is {metric.value!r}, not a finite number")


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, detail['loc'])) or 'the report'}: {detail['msg']}"
