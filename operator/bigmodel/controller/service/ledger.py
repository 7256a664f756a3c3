"""Who is who among the revisions: stable, candidate, previous, and what to write into the records next. Pure.

Rebuilt at each pass from the selector of Service `<svc>` and the records; no memory, no status.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bigmodel.api.service import GateResult
from bigmodel.controller.service import messages, orders
from bigmodel.controller.service.diagnosis import Diagnosis, diagnose
from bigmodel.controller.service.gates import Review, results, review
from bigmodel.controller.service.messages import Reason
from bigmodel.controller.service.observe import ObservedService
from bigmodel.controller.service.revision import (
    Attempt,
    Evaluation,
    Inspection,
    Outcome,
    Record,
    RevisionInputs,
    inputs,
    next_number,
)
from bigmodel.controller.service.selection import select
from bigmodel.controller.service.source import Artifact, Source, resolve
from bigmodel.controller.service.stepping import Ending, Move, cooling_failure, next_move, rollback_window_seconds
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
    review: Review | None = None  # of the candidate, until it is stable
    move: Move | None = None  # what to do with the candidate, from when it may have pods until it is stable
    cooling: Ending | None = None  # why stable must give way to the one before, which is still warm

    @property
    def falling_back(self) -> bool:
        """Stable failed after its promotion; the address goes back to the one before."""
        ended = self.stable.outcome if self.stable is not None else None
        return ended is not None and ended.result != "Promoted" and self.previous is not None

    @property
    def promoting(self) -> bool:
        """The selector has moved, the outcome is not written yet."""
        return self.candidate is not None and self.candidate is self.stable

    def results(self, service: ObservedService) -> tuple[GateResult, ...]:
        """How the candidate stands, gate by gate."""
        if self.review is not None:
            return (*self.review.results, *(self.move.results if self.move is not None else ()))
        if self.candidate is None or service.spec is None:
            return ()
        verification = self.diagnoses[self.candidate.number].verification
        return results(service, self.previous, self.candidate, verification)

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
    inspection: Inspection | None = None  # None: as it is
    evaluation: Evaluation | None = None


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
    wanted_record = next((record for record in same if record is stable), None) or next(iter(same), None)
    pin = service.spec.rollout.pin
    if pin is not None:
        wanted_record = service.record(pin.revision) or stable
        wanted = _as_recorded(wanted_record) if wanted_record else None
    diagnoses = {
        record.number: diagnose(
            record, service.pods_of(record.number), service.deployments.get(record.number), service.namespace, now
        )
        for record in (stable, candidate)
        if record is not None
    }
    previous = _previous(service, stable, candidate, now)
    reviewed, move = None, None
    if candidate is not None and candidate is not stable:
        reviewed = review(service, stable, candidate, diagnoses[candidate.number], now)
        diagnoses[candidate.number] = reviewed.diagnosis
        if reviewed.may_load:
            move = next_move(service, stable, candidate, reviewed.diagnosis, now)
            move = move if reviewed.cleared else move.dark()
    return Ledger(
        source=source,
        wanted=wanted,
        stable=stable,
        candidate=candidate,
        previous=previous,
        wanted_record=wanted_record,
        diagnoses=diagnoses,
        review=reviewed,
        move=move,
        cooling=cooling_failure(service, stable) if stable and not stable.open and previous else None,
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


def _as_recorded(record: Record) -> Wanted:
    return Wanted(record.data.inputs, record.data.artifact(), record.data.fingerprint)


def _previous(
    service: ObservedService, stable: Record | None, candidate: Record | None, now: datetime
) -> Record | None:
    """What served before stable: until the switch is written down, then while its window lasts.

    A new candidate ends the window: two revisions at most have pods. Not so once stable failed in it.
    """
    assert service.spec is not None
    if stable is None:
        return None
    failed = stable.outcome is not None and stable.outcome.result != "Promoted"
    if candidate is not None and candidate is not stable and not failed:
        return None
    window = timedelta(seconds=rollback_window_seconds(service))
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
        or next_order(service, ledger, now)
        or _found_out(ledger)
        or (None if service.spec.server.replicas == 0 else _ended(service, ledger, now) or _reopened(ledger, now))
    )


def needs_record(service: ObservedService, ledger: Ledger) -> int | None:
    """The number of the record to make for what is wanted and was never recorded."""
    assert service.spec is not None
    if ledger.wanted is None or ledger.wanted_record is not None or service.spec.server.replicas == 0:
        return None
    if ledger.falling_back:
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
    reason, message = _how_promoted(service, stable)
    outcome = Outcome(
        result="Promoted",
        reason=reason,
        message=message,
        at=now,
        verified=verification.message if verification else None,
        verified_reason=verification.reason if verification else None,
        gates=list(ledger.results(service)),
        timings=diagnosis.timings,
    )
    return RecordWrite(stable, outcome, stable.attempt)


def _how_promoted(service: ObservedService, stable: Record) -> tuple[Reason, str]:
    if stable.attempt.approved:
        return Reason.PROMOTED, messages.promoted_by_user(stable.number)
    split = service.route.split if service.route is not None else None
    if split is not None and split.stable == stable.number and split.synthetic:
        return Reason.ON_SYNTHETIC_TRAFFIC, messages.promoted_on_synthetic_traffic(stable.number)
    return Reason.PROMOTED, messages.promoted(stable.number)


def _superseded(service: ObservedService, ledger: Ledger, now: datetime) -> RecordWrite | None:
    """The last spec wins: a candidate that is no longer wanted ends at once."""
    for record in service.records:
        if record.open and record is not ledger.stable and record is not ledger.wanted_record:
            message = messages.superseded(record.number)
            outcome = Outcome(result="Aborted", reason=Reason.SUPERSEDED, message=message, at=now)
            return RecordWrite(record, outcome, record.attempt)
    return None


def next_order(service: ObservedService, ledger: Ledger, now: datetime) -> RecordWrite | None:
    """The first annotation of the user that has not had its effect yet, or whose mark may go."""
    for order, number in service.orders.items():
        record = service.record(number)
        if record is None or order in record.attempt.acted:
            continue
        rolling = record is ledger.candidate and not ledger.promoting
        if order == orders.PROMOTE and rolling:
            return RecordWrite(record, None, orders.approved(record))
        cools = record is ledger.stable and ledger.previous is not None and not record.open
        if order == orders.ABORT and (rolling or cools) and not ledger.falling_back:
            return RecordWrite(record, *orders.aborted(record, now))
        ended = record.outcome is not None and record.outcome.result != "Promoted" and record is not ledger.stable
        if order == orders.RETRY and ended and record is ledger.wanted_record:
            return RecordWrite(record, None, orders.retried(record, now))
    for record in service.records:
        attempt = orders.forgotten(record, dict(service.orders))
        if attempt is not None:
            return RecordWrite(record, record.outcome, attempt)
    return None


def _found_out(ledger: Ledger) -> RecordWrite | None:
    """What an errand found: from then on its pod is not needed any more."""
    candidate, reviewed = ledger.candidate, ledger.review
    if candidate is None or reviewed is None or (reviewed.inspection is None and reviewed.evaluation is None):
        return None
    return RecordWrite(candidate, None, candidate.attempt, reviewed.inspection, reviewed.evaluation)


def _ended(service: ObservedService, ledger: Ledger, now: datetime) -> RecordWrite | None:
    """A candidate whose trouble or gate ends its attempt, or that took too long; a stable that fails while it cools."""
    if ledger.cooling is not None and ledger.stable is not None and not ledger.falling_back and not ledger.promoting:
        known = ledger.stable.outcome.gates if ledger.stable.outcome is not None else []
        return _ending(ledger.stable, ledger.cooling, now, known)
    candidate = ledger.candidate
    if candidate is None or ledger.promoting:
        return None
    trouble = ledger.diagnoses[candidate.number].trouble
    if trouble is not None and trouble.ends is not None:
        outcome = Outcome(
            result=trouble.ends,
            reason=trouble.reason,
            message=trouble.message,
            at=now,
            gate=trouble.gate,
            gates=list(ledger.results(service)),
        )
        return RecordWrite(candidate, outcome, candidate.attempt)
    if ledger.move is not None and ledger.move.ends is not None:
        return _ending(candidate, ledger.move.ends, now, ledger.results(service))
    return _too_long(service, ledger, candidate, now)


def _ending(record: Record, ending: Ending, now: datetime, gates: Sequence[GateResult]) -> RecordWrite:
    outcome = Outcome(
        result=ending.result,
        reason=ending.reason,
        message=ending.message,
        at=now,
        gate=ending.gate,
        gates=list(gates),
    )
    return RecordWrite(record, outcome, record.attempt)


def _too_long(service: ObservedService, ledger: Ledger, candidate: Record, now: datetime) -> RecordWrite | None:
    """`rollout.deadlineSeconds` ends a rollout beside a stable revision; the first has nothing to give way to."""
    assert service.spec is not None
    rollout = service.spec.rollout
    if ledger.stable is None or rollout.paused or rollout.on_deadline == "hold" or waits_for_slot(service, ledger):
        return None
    if now < candidate.attempt.since + timedelta(seconds=rollout.deadline_seconds):
        return None
    diagnosis = ledger.diagnoses[candidate.number]
    if rollout.on_deadline == "promote" and diagnosis.verified:
        return None  # the next move does it
    waits = ledger.move.waits if ledger.move else None
    doing = waits[1] if waits else f"it was {diagnosis.stage.lower()}."
    doing = diagnosis.trouble.message if diagnosis.trouble else doing
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
    acted = record.attempt.acted
    if record.outcome.result == "Promoted":
        return RecordWrite(record, None, Attempt(since=now, back=record is ledger.previous, acted=acted, served=True))
    retry_at = record.retry_at()
    if retry_at is None or now < retry_at:
        return None
    nothing_was_wrong = record.outcome.reason == Reason.SUPERSEDED
    number = record.attempt.number if nothing_was_wrong else record.attempt.number + 1
    return RecordWrite(record, None, Attempt(number=number, since=now, acted=acted, served=record.attempt.served))


def may_promote(service: ObservedService, ledger: Ledger) -> bool:
    """Full size before the switch: no pod gets more load than stable's pods did. The first revision needs one pod."""
    if ledger.candidate is None or ledger.move is None:
        return False
    trouble = ledger.diagnoses[ledger.candidate.number].trouble
    return (
        ledger.move.promote
        and not waits_for_slot(service, ledger)
        and not (trouble is not None and trouble.ends is not None)
    )


def waits_for_slot(service: ObservedService, ledger: Ledger) -> bool:
    """A candidate beside stable that has no pods yet, while as many rollouts as allowed are under way elsewhere."""
    candidate = ledger.candidate
    if candidate is None or ledger.stable is None or ledger.promoting or service.surroundings.slot:
        return False
    return candidate.number not in service.deployments


def short_digest(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
