"""Where the model comes from: what a service's `spec.model` resolves to right now, and why where it doesn't. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from bigmodel.api.job import ArtifactStatus
from bigmodel.api.model import Metric
from bigmodel.api.service import ModelSource
from bigmodel.api.store import Store
from bigmodel.controller.decision import Manifest
from bigmodel.controller.service import messages
from bigmodel.controller.service.messages import Reason

TRAINED_VARIANT = "default"


@dataclass(frozen=True)
class Artifact:
    """One published model: everything a revision needs to know of its origin."""

    uri: str
    digest: str
    variant: str
    store: Store
    job: str | None = None
    job_uid: str | None = None
    published_at: datetime | None = None
    selected_by: Mapping[str, str] | None = None  # the labels of spec.model.fromJobs that found the job
    metrics: Sequence[Metric] = ()  # of the variant, as its job told them
    validation: str | None = None  # digest of the data that they were measured on


@dataclass(frozen=True)
class Source:
    """What the source says at this moment. `artifact` is None where there is nothing to serve."""

    reason: Reason
    message: str
    artifact: Artifact | None = None
    job: str | None = None  # the job that is followed
    waiting: str | None = None  # how far that job is, for the rollout column: "62%"
    again_at: datetime | None = None  # when time alone changes the answer

    @property
    def available(self) -> bool:
        return self.reason is Reason.ARTIFACT_AVAILABLE


def resolve(
    model: ModelSource, jobs: Sequence[Manifest], known: Iterable[Artifact], default_store: Store | None
) -> Source:
    """What `artifact` or `fromJob` name; `fromJobs` is `selection`'s.

    `jobs`: the followed BigModelJobs, here one or none; `known`: earlier revisions' artefacts, newest first.

    A job that is gone, failed or made anew and still training does not take away what its name published before: the
    newest known artefact of that name stays wanted, so that a changed spec can roll out on it.
    """
    if model.artifact is not None:
        return _named(model, default_store)
    assert model.from_job is not None  # observe.parsed_spec saw to it
    name = model.from_job.name
    last_known = next((artifact for artifact in known if artifact.job == name), None)
    if last_known is not None and model.variant is not None and model.variant != last_known.variant:
        last_known = None  # another variant of it can't be checked without the job
    return _followed(name, model, next(iter(jobs), None), last_known, default_store)


def _named(model: ModelSource, default_store: Store | None) -> Source:
    named = model.artifact
    assert named is not None
    store = named.store or default_store
    if store is None:
        return Source(Reason.STORE_NOT_SET, messages.store_not_set())
    artifact = Artifact(named.uri, named.digest, model.variant or TRAINED_VARIANT, store)
    return _available(artifact)


def _followed(
    name: str, model: ModelSource, job: Manifest | None, last_known: Artifact | None, default_store: Store | None
) -> Source:
    if job is None:
        return Source(
            Reason.JOB_NOT_FOUND, messages.job_not_found(name, last_known is not None), last_known, name, "not found"
        )
    status: dict[str, Any] = job.get("status") or {}
    published = published_artifact(status)
    if published is None:
        return unpublished(name, status, last_known)
    return offer(job, published, model.variant, last_known, default_store)


def offer(
    job: Manifest, published: ArtifactStatus, variant: str | None, last_known: Artifact | None, store: Store | None
) -> Source:
    """What a job published, in the variant that is asked for (None: the job's own choice). `store`: the default one."""
    name, status = job["metadata"]["name"], job.get("status") or {}
    variant = variant or published.variant
    offered = (TRAINED_VARIANT, *(v.name for v in published.variants if v.name != TRAINED_VARIANT))
    if variant not in offered and variant != published.variant:
        return Source(
            Reason.VARIANT_NOT_FOUND, messages.variant_not_found(variant, offered), last_known, name, "no variant"
        )
    raw_store = (status.get("resolved") or {}).get("store") or job["spec"].get("store")
    store = Store.model_validate(raw_store) if raw_store else store
    if store is None:
        return Source(Reason.STORE_NOT_SET, messages.store_not_set(), last_known, name, "no store")
    return _available(
        Artifact(
            published.uri,
            published.digest,
            variant,
            store,
            name,
            job["metadata"]["uid"],
            _published_at(status),
            metrics=_metrics(published, variant),
            validation=published.validation_digest,
        )
    )


def _published_at(status: Mapping[str, Any]) -> datetime | None:
    """When the artefact was there, by the job's own condition."""
    text = _condition(status, "Published").get("lastTransitionTime")
    return datetime.fromisoformat(text) if text else None


def _metrics(published: ArtifactStatus, variant: str) -> Sequence[Metric]:
    named = next((one.metrics for one in published.variants if one.name == variant), None)
    return named or (published.metrics if variant == published.variant else [])


def _available(artifact: Artifact) -> Source:
    message = messages.artifact_available(artifact.digest, artifact.variant, artifact.job)
    return Source(Reason.ARTIFACT_AVAILABLE, message, artifact, artifact.job)


def published_artifact(status: dict[str, Any]) -> ArtifactStatus | None:
    """What the job published, once it says that it is written and verified."""
    if not status.get("artifact") or _condition(status, "Published").get("status") != "True":
        return None
    try:
        return ArtifactStatus.model_validate(status["artifact"])
    except ValidationError:
        return None  # written by a version that this one can't read


def unpublished(name: str, status: dict[str, Any], last_known: Artifact | None) -> Source:
    """Why a job that is there offers nothing."""
    failed = _condition(status, "Failed")
    if failed.get("status") == "True":
        return Source(
            Reason.JOB_FAILED, messages.job_failed(name, failed.get("message", "")), last_known, name, "failed"
        )
    if _condition(status, "Complete").get("status") == "True":
        return Source(Reason.ARTIFACT_MISSING, messages.artifact_missing(name), last_known, name, "no artefact")
    how_far = (status.get("progress") or {}).get("summary") or str(status.get("phase") or "pending").lower()
    return Source(Reason.JOB_NOT_FINISHED, messages.job_not_finished(name, how_far), last_known, name, how_far)


def _condition(status: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in status.get("conditions") or [] if c.get("type") == kind), {})
