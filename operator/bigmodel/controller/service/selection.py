"""Which of many jobs a service takes its model from: `spec.model.fromJobs`. Pure.

What was taken last counts as well when its job is gone: an older job must not come back because a newer one was
cleaned up. The records remember it, its metrics included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from bigmodel.api.service import Best, FromJobs, ModelSource
from bigmodel.api.store import Store
from bigmodel.controller.decision import Manifest
from bigmodel.controller.service import messages
from bigmodel.controller.service.accuracy import number
from bigmodel.controller.service.messages import Reason
from bigmodel.controller.service.revision import Record
from bigmodel.controller.service.source import Artifact, Source, offer, published_artifact, unpublished

LONG_AGO = datetime.min.replace(tzinfo=UTC)


def select(
    model: ModelSource,
    jobs: Sequence[Manifest],
    newest_first: Sequence[Record],
    rejected: Callable[[Artifact], bool],
    default_store: Store | None,
    now: datetime,
) -> Source:
    """`jobs` have the labels; `newest_first`: all records; `rejected`: whether an artefact was tried in vain before."""
    follow = model.from_jobs
    assert follow is not None
    labels = follow.selector.match_labels
    taken = [record for record in newest_first if record.data.selected_by == labels]
    current = taken[0].data.artifact() if taken else None
    found = [
        offer(job, published, model.variant, current, default_store)
        for job in jobs
        if (published := published_artifact(job.get("status") or {})) is not None
    ]
    offers = [replace(one.artifact, selected_by=labels) for one in found if one.available and one.artifact is not None]
    if not offers:
        return next(iter(found), None) or _nothing_offered(labels, jobs, current)
    if follow.best is None:
        newest = max([*offers, *([current] if current else [])], key=_age)
        return _in_time(_available(newest), follow, taken, now)
    serving = next((r for r in taken if r.outcome is None or r.outcome.result == "Promoted"), None)
    chosen = _best(follow.best, offers, serving.data.artifact() if serving else None, current, rejected, labels)
    return _in_time(chosen, follow, taken, now)


def _age(artifact: Artifact) -> tuple[datetime, str]:
    return artifact.published_at or LONG_AGO, artifact.job or ""


def _nothing_offered(labels: Mapping[str, str], jobs: Sequence[Manifest], current: Artifact | None) -> Source:
    """The newest job says why; none: they are all gone, or never were."""
    if not jobs:
        message = messages.no_job_selected(_listed(labels), current is not None)
        return Source(Reason.JOB_NOT_FOUND, message, current, waiting="not found")
    newest = max(jobs, key=lambda job: (job["metadata"].get("creationTimestamp") or "", job["metadata"]["name"]))
    return unpublished(newest["metadata"]["name"], newest.get("status") or {}, current)


def _available(artifact: Artifact, message: str | None = None) -> Source:
    text = message or messages.artifact_available(artifact.digest, artifact.variant, artifact.job)
    return Source(Reason.ARTIFACT_AVAILABLE, text, artifact, artifact.job)


def _best(
    best: Best,
    offers: Sequence[Artifact],
    current: Artifact | None,
    last: Artifact | None,
    rejected: Callable[[Artifact], bool],
    labels: Mapping[str, str],
) -> Source:
    """The best that is comparable with `current`, which serves or is on its way, and better by enough.

    One that was rejected stays wanted while it is the `last` that was tried, so that status goes on saying so.
    """
    sign = 1.0 if best.goal == "minimize" else -1.0
    costs = {
        artifact.digest: sign * value
        for artifact in (*offers, *([current] if current else []))
        if artifact.validation is not None and (value := number(artifact.metrics, best.metric)) is not None
    }
    measured = sorted((one for one in offers if one.digest in costs), key=_age, reverse=True)
    if current is not None and current.digest not in costs:
        return _available(current, messages.not_comparable(current.job or "", best.metric))
    if not measured:
        return Source(
            Reason.METRIC_NOT_FOUND,
            messages.metric_not_found(best.metric, _listed(labels)),
            current,
            offers[0].job,
            "no metric",
        )
    validation = current.validation if current is not None else measured[0].validation
    comparable = sorted(
        (one for one in measured if one.validation == validation and not (current and _same(one, current))),
        key=lambda one: costs[one.digest],
    )
    least = max(best.min_improvement, 0.0)
    better = [
        one
        for one in comparable
        if current is None
        or (costs[current.digest] > costs[one.digest] and costs[current.digest] - costs[one.digest] >= least)
    ]
    worth_it = next((one for one in better if not rejected(one)), None)
    if worth_it is not None or current is None:
        return _available(worth_it or better[0])
    tried = next((one for one in better if last is not None and _same(one, last)), None)
    if tried is not None:
        return _available(tried)
    if not comparable:
        return _available(current)
    message = messages.best_is_current(
        current.job or "", best.metric, sign * costs[current.digest], sign * costs[comparable[0].digest]
    )
    return _available(current, message)


def _same(one: Artifact, other: Artifact) -> bool:
    return (one.digest, one.variant) == (other.digest, other.variant)


def _in_time(chosen: Source, follow: FromJobs, taken: Sequence[Record], now: datetime) -> Source:
    """A new model waits until `minIntervalSeconds` after the last rollout began."""
    if chosen.artifact is None or not taken or any(_same(chosen.artifact, r.data.artifact()) for r in taken):
        return chosen
    at = max(record.attempt.since for record in taken) + timedelta(seconds=follow.min_interval_seconds)
    if now >= at:
        return chosen
    current = taken[0].data.artifact()
    message = messages.held_back(chosen.artifact.job or "", chosen.artifact.digest, at)
    return replace(chosen, artifact=current, job=current.job, message=message, again_at=at)


def _listed(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())
