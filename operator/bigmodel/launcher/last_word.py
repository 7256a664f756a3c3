"""A pod's termination message, cut by us: the kubelet cuts at 4096 bytes, in the middle of the JSON. Pure."""

import json
from collections.abc import Callable, Iterator

from bigmodel.api.progress import LAST_WORD_BYTES, LastWord, Progress
from bigmodel.launcher.message import LOG_BYTES, Exit, head, tail

TRACEBACK_BYTES = 1536


def last_word(
    outcome: Exit,
    *,
    uid: str,
    attempt: int,
    generation: int,
    index: int,
    progress: Progress,
) -> LastWord:
    return LastWord(
        uid=uid,
        attempt=attempt,
        generation=generation,
        index=index,
        exit_code=outcome.code,
        reason=outcome.reason,
        message=outcome.message,
        step=progress.step,
        program_restarts=progress.program_restarts,
        hang_restarts=progress.hang_restarts,
        error=outcome.error,
        artifact=outcome.artifact,
        checkpoint=outcome.checkpoint or progress.checkpoint,
        progress=progress,
    )


def written(word: LastWord) -> bytes:
    """At most LAST_WORD_BYTES of JSON. What explains the end is cut last; the artefact's address and the exit code
    never, the checkpoint only where nothing else is left."""
    line = _line(word)
    for shorter in _cuts(word):
        if len(line) <= LAST_WORD_BYTES:
            break
        line = _line(shorter)
    return line


def _line(word: LastWord) -> bytes:
    return json.dumps(word.wire(), ensure_ascii=False, separators=(",", ":")).encode()


def _cuts(word: LastWord) -> Iterator[LastWord]:
    """The same word, less and less of it."""
    cuts: list[Callable[[LastWord], LastWord]] = [
        lambda w: _error(w, TRACEBACK_BYTES, 1024),
        lambda w: _incident(w, 512, LOG_BYTES),
        lambda w: _error(w, TRACEBACK_BYTES // 2, 512),
        lambda w: _incident(w, 256, LOG_BYTES // 2),
        lambda w: w.model_copy(update={"progress": w.progress and w.progress.model_copy(update={"incidents": []})}),
        lambda w: w.model_copy(update={"progress": None}),
        lambda w: w.model_copy(update={"message": head(w.message, 512) if w.message else None}),
        lambda w: _artifact_without_metrics(w),
        lambda w: _error(w, 0, 256),
        lambda w: w.model_copy(update={"message": head(w.message, 128) if w.message else None}),
        lambda w: w.model_copy(update={"error": None}),
        lambda w: w.model_copy(update={"checkpoint": None}),  # a suspended job is told by it what was saved
    ]
    for cut in cuts:
        word = cut(word)
        yield word


def _error(word: LastWord, traceback_bytes: int, message_bytes: int) -> LastWord:
    if word.error is None:
        return word
    traceback = tail(word.error.traceback, traceback_bytes) if word.error.traceback and traceback_bytes else None
    message = head(word.error.message, message_bytes)
    return word.model_copy(update={"error": word.error.model_copy(update={"traceback": traceback, "message": message})})


def _incident(word: LastWord, message_bytes: int, log_bytes: int) -> LastWord:
    """Only the last one, which explains the end; the others were told before."""
    if word.progress is None or not word.progress.incidents:
        return word
    incident = word.progress.incidents[-1]
    log = tail(incident.log, log_bytes) if incident.log else None
    update = {"message": head(incident.message, message_bytes), "log": log}
    progress = word.progress.model_copy(update={"incidents": [incident.model_copy(update=update)]})
    return word.model_copy(update={"progress": progress})


def _artifact_without_metrics(word: LastWord) -> LastWord:
    if word.artifact is None:
        return word
    variants = [v.model_copy(update={"metrics": [], "message": None}) for v in word.artifact.variants]
    return word.model_copy(update={"artifact": word.artifact.model_copy(update={"variants": variants, "metrics": []})})
