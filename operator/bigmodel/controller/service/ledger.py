"""Who is who among the revisions: stable, candidate, previous, and what to write into the records next. Pure.

Rebuilt at each pass from the selector of Service `<svc>` and the records; no memory, no status.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from bigmodel.controller.service import messages
from bigmodel.controller.service.diagnosis import Diagnosis, diagnose
from bigmodel.controller.service.messages import Reason
from bigmodel.controller.service.observe import ObservedService
from bigmodel.controller.service.revision import Attempt, Outcome, Record, RevisionInputs, inputs, next_number
from bigmodel.controller.service.selection import select
from bigmodel.controller.service.source import Artifact, Source, resolve
from bigmodel.controller.settings import Settings


@dataclass(frozen=True)
class Wanted:
    """What the spec and the source ask for now."""

    inputs: RevisionInputs
    artifact: Artifact
    fingerprint: str


@dataclass(frozen=True)
class Ledger:
    source: Source
    wanted: Wanted | None
    stable: Record | None  # what Service `<svc>` selects
    candidate: Record | None  # on its way; also the one just selected, until its promotion is written down
    previous: Record | None  # stable before, still warm
    wanted_record: Record | None  # the record of what is wanted, whatever became of it
    diagnoses: dict[int, Diagnosis]  # of stable and candidate

    @property
    def promoting(self) -> bool:
        """The selector has moved, the outcome is not written yet."""
        return self.candidate is not None and self.candidate is self.stable

    def kept_until(self, window_seconds: int) -> datetime | None:
        """When the previous revision is taken away."""
        if self.stable is None or self.stable.outcome is None:
            return None
        return self.stable.outcome.at + timedelta(seconds=window_seconds)


@dataclass(frozen=True)
class RecordWrite:
    """One change of one record: nothing else happens in that pass, so a crash leaves the old story or the new."""

    record: Record
    outcome: Outcome | None
    attempt: Attempt


def read_ledger(service: ObservedService, settings: Settings, now: datetime) -> Ledger:
    assert service.spec is not None
    newest_first = service.records[::-1]
    source = _source(service, settings, now)
    wanted = None
    if source.artifact is not None:
        decided = inputs(service.name, service.spec, source.artifact)
        wanted = Wanted(decided, source.artifact, decided.fingerprint())
    stable = service.record(service.selected)
    candidate = next((record for record in newest_first if record.open), None)
    same = [record for record in newest_first if wanted and record.data.fingerprint == wanted.fingerprint]
    return Ledger(
        source=source,
        wanted=wanted,
        stable=stable,
        candidate=candidate,
        previous=_previous(service, stable, candidate, now),
        wanted_record=next((record for record in same if record is stable), None) or next(iter(same), None),
        diagnoses={
            record.number: diagnose(
                record,
                service.pods_of(record.number),
                service.deployments.get(record.number),
                service.namespace,
                now,
            )
            for record in (stable, candidate)
            if record is not None
        },
    )


def _source(service: ObservedService, settings: Settings, now: datetime) -> Source:
    assert service.spec is not None
    spec, newest_first = service.spec, service.records[::-1]
    if spec.model.from_jobs is None:
        return resolve(spec.model, service.jobs, [r.data.artifact() for r in newest_first], settings.store)
    rejected = {r.data.fingerprint for r in newest_first if r.outcome and r.outcome.result == "Rejected"}

    def is_rejected(artifact: Artifact) -> bool:
        return inputs(service.name, spec, artifact).fingerprint() in rejected

    return select(spec.model, service.jobs, newest_first, is_rejected, settings.store, now)


def _previous(
    service: ObservedService, stable: Record | None, candidate: Record | None, now: datetime
) -> Record | None:
    """What served before stable: until the switch is written down, then while its window lasts.

    A new candidate ends the window: two revisions at most have pods.
    """
    assert service.spec is not None
    if stable is None or (candidate is not None and candidate is not stable):
        return None
    window = timedelta(seconds=service.spec.rollout.rollback_window_seconds)
    if stable.outcome is not None and now >= stable.outcome.at + window:
        return None
    former = [
        (record.outcome.at, record.number, record)
        for record in service.records
        if record is not stable and record.outcome is not None and record.outcome.result == "Promoted"
    ]
    record = max(former, default=(None, 0, None), key=lambda entry: entry[:2])[2] if former else None
    running = service.deployments.get(record.number) if record else None
    return record if running is not None and running.replicas > 0 else None


def next_record_write(service: ObservedService, ledger: Ledger, now: datetime) -> RecordWrite | None:
    """The first thing that the records don't say yet, in the order in which things become true."""
    assert service.spec is not None
    return (
        _promoted(service, ledger, now)
        or _superseded(service, ledger, now)
        or (None if service.spec.server.replicas == 0 else _ended(service, ledger, now) or _reopened(ledger, now))
    )


def needs_record(service: ObservedService, ledger: Ledger) -> int | None:
    """The number of the record to make for what is wanted and was never recorded."""
    assert service.spec is not None
    if ledger.wanted is None or ledger.wanted_record is not None or service.spec.server.replicas == 0:
        return None
    return next_number(service.name, service.taken_names)


def _promoted(service: ObservedService, ledger: Ledger, now: datetime) -> RecordWrite | None:
    """Written once requests really reach the new revision, and only it."""
    stable = ledger.stable
    if stable is None or not stable.open:
        return None
    diagnosis = ledger.diagnoses[stable.number]
    pods = {pod.uid for pod in service.pods_of(stable.number)}
    if not service.endpoints or not service.endpoints <= pods:
        return None
    verification = diagnosis.verification
    outcome = Outcome(
        result="Promoted",
        reason=Reason.PROMOTED,
        message=messages.promoted(stable.number),
        at=now,
        verified=verification.message if verification else None,
        verified_reason=verification.reason if verification else None,
    )
    return RecordWrite(stable, outcome, stable.attempt)


def _superseded(service: ObservedService, ledger: Ledger, now: datetime) -> RecordWrite | None:
    """The last spec wins: a candidate that is no longer wanted ends at once."""
    for record in service.records:
        if record.open and record is not ledger.stable and record is not ledger.wanted_record:
            message = messages.superseded(record.number)
            outcome = Outcome(result="Aborted", reason=Reason.SUPERSEDED, message=message, at=now)
            return RecordWrite(record, outcome, record.attempt)
    return None


def _ended(service: ObservedService, ledger: Ledger, now: datetime) -> RecordWrite | None:
    """A candidate whose trouble ends its attempt, or that took too long."""
    candidate = ledger.candidate
    if candidate is None or ledger.promoting:
        return None
    trouble = ledger.diagnoses[candidate.number].trouble
    if trouble is not None and trouble.ends is not None:
        outcome = Outcome(
            result=trouble.ends, reason=trouble.reason, message=trouble.message, at=now, gate=trouble.gate
        )
        return RecordWrite(candidate, outcome, candidate.attempt)
    return _too_long(service, ledger, candidate, now)


def _too_long(service: ObservedService, ledger: Ledger, candidate: Record, now: datetime) -> RecordWrite | None:
    """`rollout.deadlineSeconds` ends a rollout beside a stable revision; the first has nothing to give way to."""
    assert service.spec is not None
    rollout = service.spec.rollout
    if ledger.stable is None or rollout.paused or rollout.on_deadline == "hold":
        return None
    if now < candidate.attempt.since + timedelta(seconds=rollout.deadline_seconds):
        return None
    diagnosis = ledger.diagnoses[candidate.number]
    doing = diagnosis.trouble.message if diagnosis.trouble else f"it was {diagnosis.stage.lower()}."
    message = messages.rollout_deadline_exceeded(rollout.deadline_seconds, doing)
    outcome = Outcome(
        result="Aborted", reason=Reason.ROLLOUT_DEADLINE_EXCEEDED, message=message, at=now, gate="deadline"
    )
    return RecordWrite(candidate, outcome, candidate.attempt)


def _reopened(ledger: Ledger, now: datetime) -> RecordWrite | None:
    """A revision that is wanted again: one that served before, at once; an aborted one, when its back-off is over."""
    record = ledger.wanted_record
    if record is None or record is ledger.stable or record.outcome is None:
        return None
    if record.outcome.result == "Promoted":
        return RecordWrite(record, None, Attempt(number=1, since=now))
    retry_at = record.retry_at()
    if retry_at is None or now < retry_at:
        return None
    nothing_was_wrong = record.outcome.reason == Reason.SUPERSEDED
    number = record.attempt.number if nothing_was_wrong else record.attempt.number + 1
    return RecordWrite(record, None, Attempt(number=number, since=now))


def may_promote(service: ObservedService, ledger: Ledger) -> bool:
    """Full size before the switch: no pod gets more load than stable's pods did. The first revision needs one pod."""
    assert service.spec is not None
    candidate, replicas = ledger.candidate, service.spec.server.replicas
    if candidate is None or ledger.promoting or service.spec.rollout.paused or replicas == 0:
        return False
    diagnosis = ledger.diagnoses[candidate.number]
    if diagnosis.trouble is not None and diagnosis.trouble.ends is not None:
        return False
    return len(diagnosis.verified) >= (1 if service.selected is None else replicas)


def short_digest(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
