"""Revisions: what makes two of them the same, and the immutable records that remember them. Pure.

A record is a ControllerRevision `<svc>-r<n>`, created before anything else of its revision. It holds the rendered pod
template, so that a new version of the operator, with other images or another template, restarts no pod: what an upgrade
brings applies from the service's next own revision on. Annotations on the record tell how the revision fared; together
with the selector of Service `<svc>` they are the only state of a rollout. `status` can be deleted at any time.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from bigmodel.api import names
from bigmodel.api.evaluation import EvaluateResult, EvaluationRun
from bigmodel.api.model import Digest, LongText, Metric, Model, Text, VariantName
from bigmodel.api.pod import LocalObject, Resources, Toleration
from bigmodel.api.service import Batching, GateResult, ParityGate, ServiceSpec, Timings
from bigmodel.api.store import Store
from bigmodel.artifact.summary import Summary
from bigmodel.controller.decision import Manifest
from bigmodel.controller.service.source import Artifact

Finding = TypeVar("Finding", bound=Model)

ANNOTATION_OUTCOME = f"{names.GROUP}/outcome"  # Outcome as JSON; absent while the revision is on its way
ANNOTATION_ATTEMPT = f"{names.GROUP}/attempt"  # Attempt as JSON; absent at the first
RECORDS_KEPT = 20
ANNOTATION_INSPECTED = f"{names.GROUP}/inspected"  # Inspection as JSON; absent until the manifest was read
ANNOTATION_EVALUATED = f"{names.GROUP}/evaluated"  # Evaluation as JSON; absent until candidate and stable were asked
BACKOFF_SECONDS = 30
LONGEST_BACKOFF_SECONDS = 1800


class RevisionInputs(Model):
    """Everything a user decides that a serving pod depends on. Its hash is the fingerprint: equal inputs, equal pods.

    Left out: what changes no pod (replicas, route, rollout, gates other than parity) and what the chart decides
    (default images, templates). Parity is in, because the verifier in the pod applies it; the deadline is in, so that
    raising it after it was exceeded is a new try.
    """

    model: Text
    artifact_uri: LongText
    digest: Digest
    variant: VariantName
    store: Store
    backend: Text = "auto"
    image: Text | None = None
    image_pull_secrets: list[LocalObject] = Field(default_factory=list)
    resources: Resources = Resources()
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    service_account_name: Text | None = None
    startup_deadline_seconds: int = 1800
    max_request_seconds: int = 20
    batching: Batching = Batching()
    parity: ParityGate = ParityGate()

    def fingerprint(self) -> str:
        """Fields at their default do not count: a field that a later version adds must not make every service roll."""
        decided = self.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
        return hashlib.sha256(json.dumps(decided, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def inputs(service: str, spec: ServiceSpec, artifact: Artifact) -> RevisionInputs:
    server = spec.server
    return RevisionInputs(
        model=spec.model.name or service,
        artifact_uri=artifact.uri,
        digest=artifact.digest,
        variant=artifact.variant,
        store=artifact.store,
        backend=server.backend,
        image=server.image,
        image_pull_secrets=server.image_pull_secrets,
        resources=_quantities_as_text(server.resources or Resources()),
        node_selector=server.node_selector,
        tolerations=server.tolerations,
        service_account_name=server.service_account_name,
        startup_deadline_seconds=server.startup_deadline_seconds,
        max_request_seconds=server.max_request_seconds,
        batching=spec.batching,
        parity=spec.gates.parity,
    )


def _quantities_as_text(resources: Resources) -> Resources:
    """`cpu: 8` and `cpu: "8"` are the same wish."""

    def text(quantities: Mapping[str, int | str] | None) -> dict[str, int | str] | None:
        return None if quantities is None else {name: str(value) for name, value in quantities.items()}

    return Resources(limits=text(resources.limits), requests=text(resources.requests))


class ChosenImages(Model):
    """What the revision runs, the chart's defaults of its day included."""

    triton: Text
    server: Text


class RevisionData(Model):
    """The immutable part of a record."""

    fingerprint: Text
    inputs: RevisionInputs
    images: ChosenImages
    job: Text | None = None
    job_uid: Text | None = None
    published_at: datetime | None = None
    selected_by: dict[str, str] | None = None  # the labels of spec.model.fromJobs that found the job
    metrics: list[Metric] = Field(default_factory=list)  # of the variant, as its job told them
    validation: Digest | None = None  # digest of the data that they were measured on
    pod_template: dict[str, Any]  # core/v1 PodTemplateSpec, as it was rendered when the record was made

    def artifact(self) -> Artifact:
        known = self.inputs
        return Artifact(
            known.artifact_uri,
            known.digest,
            known.variant,
            known.store,
            self.job,
            self.job_uid,
            self.published_at,
            self.selected_by,
            self.metrics,
            self.validation,
        )


class Outcome(Model):
    """How a revision ended. Aborted: not its fault, tried again. Rejected: its fault, never tried again by itself."""

    result: Literal["Promoted", "Rejected", "Aborted"]
    reason: Text
    message: LongText
    at: datetime
    gate: Text | None = None  # one word for the rollout column, for example parity
    verified: LongText | None = None  # what its verification found, where it got that far
    verified_reason: Text | None = None
    gates: Annotated[list[GateResult], Field(max_length=16)] = Field(default_factory=list)  # as they last stood
    timings: Timings | None = None  # of the start of its pods


class Attempt(Model):
    """Which try of the revision this is, and since when."""

    number: int = 1
    since: datetime
    back: bool = False  # to what served before and is still warm: an immediate switch
    approved: bool = False  # by the user: no more steps, no more evidence
    acted: list[Text] = Field(default_factory=list, max_length=8)  # annotations of the user that have had their effect
    served: bool = False  # it was promoted before: static gates do not keep it from coming back


class Inspection(Model):
    """What the `inspect` pod read, and when."""

    summary: Summary
    at: datetime


class Evaluation(Model):
    """What the `evaluate` pod was asked and found, and when. Another question makes it void."""

    asked: EvaluationRun
    result: EvaluateResult
    at: datetime


@dataclass(frozen=True)
class Record:
    """One revision as its ControllerRevision tells it."""

    number: int
    uid: str
    created: datetime
    data: RevisionData
    outcome: Outcome | None
    attempt: Attempt
    inspection: Inspection | None = None
    evaluation: Evaluation | None = None

    @property
    def open(self) -> bool:
        return self.outcome is None

    def retry_at(self) -> datetime | None:
        """When an aborted revision may try again; None where it may not."""
        if self.outcome is None or self.outcome.result != "Aborted":
            return None
        if self.outcome.reason == "Superseded":
            return self.outcome.at  # nothing was wrong with it
        if self.outcome.reason == "AbortedByUser":
            return None
        backoff = min(BACKOFF_SECONDS * 2 ** min(self.attempt.number - 1, 16), LONGEST_BACKOFF_SECONDS)
        return self.outcome.at + timedelta(seconds=backoff)


def record_of(manifest: Manifest) -> Record | None:
    """None for a ControllerRevision that this version can't read: its number stays taken, nothing else of it counts."""
    metadata = manifest["metadata"]
    annotations = metadata.get("annotations") or {}
    try:
        data = RevisionData.model_validate(manifest.get("data"))
        outcome = annotations.get(ANNOTATION_OUTCOME)
        attempt = annotations.get(ANNOTATION_ATTEMPT)
        created = datetime.fromisoformat(metadata["creationTimestamp"])
        return Record(
            number=int(manifest["revision"]),
            uid=metadata["uid"],
            created=created,
            data=data,
            outcome=Outcome.model_validate_json(outcome) if outcome else None,
            attempt=Attempt.model_validate_json(attempt) if attempt else Attempt(since=created),
            inspection=_read(Inspection, annotations.get(ANNOTATION_INSPECTED)),
            evaluation=_read(Evaluation, annotations.get(ANNOTATION_EVALUATED)),
        )
    except (ValidationError, KeyError, TypeError, ValueError):
        return None


def _read(kind: type[Finding], text: str | None) -> Finding | None:
    try:
        return kind.model_validate_json(text) if text else None
    except ValidationError:
        return None  # written by a version that this one can't read: it is found out anew


def findings(inspection: Inspection | None, evaluation: Evaluation | None) -> dict[str, str | None]:
    """The annotations that hold what errands found; None: they stay as they are."""
    told = {ANNOTATION_INSPECTED: inspection, ANNOTATION_EVALUATED: evaluation}
    return {name: _json(finding) for name, finding in told.items() if finding is not None}


def story(record: Record, outcome: Outcome | None, attempt: Attempt) -> dict[str, str | None]:
    """A record's annotations. They are patched, not applied with the rest: `data` is immutable to the byte, and
    server-side apply writes its JSON anew.
    """
    return {
        ANNOTATION_OUTCOME: _json(outcome) if outcome is not None else None,
        ANNOTATION_ATTEMPT: _json(attempt) if attempt != Attempt(since=record.created) else None,
    }


def _json(model: Model) -> str:
    return json.dumps(model.wire(), sort_keys=True, separators=(",", ":"))


def next_number(service: str, taken: Iterable[str]) -> int:
    """1 + the highest revision that any of these object names is made of."""
    pattern = re.compile(re.escape(service) + r"-r([1-9]\d*)")
    numbers = [int(match[1]) for name in taken if (match := pattern.fullmatch(name))]
    return 1 + max(numbers, default=0)
