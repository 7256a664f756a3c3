"""What a candidate must pass before it gets traffic. Pure.

In order: inspected, contract and accuracy, before it has a pod; verified, evaluation and change, before it has a share.

A revision that served before is not judged again: going back must not depend on what is newer.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from bigmodel.api.evaluation import EvaluateResult, EvaluationRun
from bigmodel.api.service import GateResult, Gates
from bigmodel.artifact.summary import InspectResult
from bigmodel.controller.service import accuracy, contract, errand, evaluation, messages
from bigmodel.controller.service.diagnosis import REJECTING_FETCHES, Diagnosis, Trouble, Verification
from bigmodel.controller.service.messages import Reason
from bigmodel.controller.service.observe import ObservedService
from bigmodel.controller.service.revision import Evaluation, Inspection, Record


@dataclass(frozen=True)
class Review:
    """Where a candidate stands before traffic. `diagnosis` holds what its gates found, too."""

    diagnosis: Diagnosis
    results: tuple[GateResult, ...] = ()
    errand: str | None = None  # the one that must run now
    may_load: bool = False  # it may have pods
    cleared: bool = False  # it may have traffic, as soon as its pods are verified
    question: EvaluationRun | None = None  # what that errand is asked
    inspection: Inspection | None = None  # news for the record
    evaluation: Evaluation | None = None  # the same


def review(
    service: ObservedService, stable: Record | None, candidate: Record, diagnosis: Diagnosis, now: datetime
) -> Review:
    """`diagnosis`: of its pods."""
    assert service.spec is not None
    if candidate.inspection is None:
        return _inspected(service, candidate, diagnosis, now)
    if candidate.attempt.served:
        return Review(diagnosis, may_load=True, cleared=True)
    rows, failure = _static(service.spec.gates, stable, candidate)
    if failure is not None:
        return Review(replace(diagnosis, trouble=failure), rows)
    question = evaluation.question(service.name, service.spec.gates, stable, candidate)
    known = _known(candidate, question)
    rows = results(service, stable, candidate, diagnosis.verification)
    if question is not None and known is None:
        return _evaluated(service, candidate, question, Review(diagnosis, rows, may_load=True), now)
    failure = evaluation.rows(service.spec.gates, known, candidate)[1] if known is not None else None
    if failure is not None:
        return Review(replace(diagnosis, trouble=failure), rows, may_load=True)
    return Review(diagnosis, rows, may_load=True, cleared=True)


def _known(candidate: Record, question: EvaluationRun | None) -> Evaluation | None:
    """What was found out about this very question in this attempt: a user who asks for a retry gets another look."""
    found, since = candidate.evaluation, candidate.attempt.since
    if found is None or found.asked != question:
        return None
    first = since == candidate.created  # the API server's clock, which ours is not compared with
    return found if first or found.at >= since else None


def _evaluated(
    service: ObservedService, candidate: Record, question: EvaluationRun, so_far: Review, now: datetime
) -> Review:
    """Once a pod of the candidate is verified, it is asked beside stable, without traffic."""
    if not so_far.diagnosis.verified:
        return so_far
    pod = service.errand(candidate.number, errand.EVALUATE)
    if pod is not None and pod.question != errand.question_hash(question):
        pod = None  # of an earlier question: it is on its way out
    evaluating = replace(so_far, errand=errand.EVALUATE, question=question)
    diagnosis = replace(so_far.diagnosis, stage=Reason.EVALUATING, since=None)
    said = errand.answer(pod)
    if pod is None or said is None:
        trouble = diagnosis.trouble or errand.trouble(candidate, pod, service.namespace)
        return replace(evaluating, diagnosis=replace(diagnosis, trouble=trouble))
    try:
        result = EvaluateResult.model_validate_json(said)
    except ValueError:
        result = EvaluateResult(ok=False, reason=Reason.INVALID_EVALUATION_DATA, message="its answer can't be read")
    if result.reason == Reason.INVALID_EVALUATION_DATA:  # not the model's fault
        message = messages.invalid_evaluation_data(pod.name, result.message)
        trouble = Trouble(Reason.INVALID_EVALUATION_DATA, message, "Aborted")
        return replace(evaluating, diagnosis=replace(diagnosis, trouble=trouble))
    found = Evaluation(asked=question, result=result, at=now)
    return replace(evaluating, diagnosis=diagnosis, evaluation=found)


def _inspected(service: ObservedService, candidate: Record, diagnosis: Diagnosis, now: datetime) -> Review:
    """No pod of the model before its manifest was read."""
    pod = service.errand(candidate.number, errand.INSPECT)
    preparing = replace(diagnosis, stage=Reason.PREPARING, since=None)
    said = errand.answer(pod)
    if pod is None or said is None:
        trouble = errand.trouble(candidate, pod, service.namespace)
        return Review(replace(preparing, trouble=trouble), errand=errand.INSPECT)
    try:
        result = InspectResult.model_validate_json(said)
    except ValueError:
        result = InspectResult(ok=False, message=f"its answer can't be read: {said[:200] or 'it is empty'}")
    if result.ok and result.summary is not None:
        return Review(preparing, errand=errand.INSPECT, inspection=Inspection(summary=result.summary, at=now))
    if result.reason in REJECTING_FETCHES:
        reason = Reason(result.reason)
        failed = Trouble(reason, messages.fetch_failed(pod.name, reason, result.message), "Rejected")
    else:
        message = messages.errand_failed(pod.name, errand.INSPECT, messages.quote(result.message))
        failed = Trouble(Reason.ERRAND_FAILED, message, "Aborted")
    return Review(replace(preparing, trouble=failed), errand=errand.INSPECT)


def results(
    service: ObservedService, stable: Record | None, candidate: Record, verification: Verification | None
) -> tuple[GateResult, ...]:
    """How a revision stands against the one before it, row by row."""
    assert service.spec is not None
    gates = service.spec.gates
    parity = (_parity(verification, candidate),) if verification else ()
    if candidate.inspection is None or candidate.attempt.served:
        return parity
    question = evaluation.question(service.name, gates, stable, candidate)
    compared = evaluation.rows(gates, _known(candidate, question), candidate)[0] if question is not None else ()
    return (*_static(gates, stable, candidate)[0], *parity, *compared)


def _parity(verification: Verification, candidate: Record) -> GateResult:
    parity = verification.verdict.parity if verification.verdict else None
    if parity is None:
        value, limit = "passed", "the verifier's"
    else:
        value = f"{parity.worst:.1%} of the tolerance, {parity.samples} samples"
        limit = f"|a - b| <= {parity.absolute:g} + {parity.relative:g}*|b|"
    return GateResult(name="parity", value=value, limit=limit, verdict="Pass", at=candidate.attempt.since)


def _static(gates: Gates, stable: Record | None, candidate: Record) -> tuple[tuple[GateResult, ...], Trouble | None]:
    """Contract and accuracy: from the records, in the order in which they are told."""
    assert candidate.inspection is not None
    summary, at = candidate.inspection.summary, candidate.inspection.at
    before = stable.inspection.summary if stable is not None and stable.inspection is not None else None
    name = f"r{stable.number}" if stable is not None else "stable"
    rows: list[GateResult] = []
    failure: Trouble | None = None
    if before is not None and gates.contract == "strict":
        broken = contract.differences(before, summary)
        value = messages.cut("; ".join(broken) or f"takes every request that {name} takes", 256)
        rows.append(_row("contract", value, f"every request that {name} takes", not broken, at))
        if broken:
            message = messages.incompatible_signature(candidate.number, name, "; ".join(broken))
            failure = Trouble(Reason.INCOMPATIBLE_SIGNATURE, message, "Rejected")
    for gate in gates.accuracy:
        found = accuracy.measure(gate, summary, before, name)
        rows.append(_row("accuracy", messages.cut(found.value, 256), found.limit, found.broken is None, at))
        if found.broken is not None and failure is None:
            message = messages.accuracy_failed(candidate.number, found.value, found.limit, found.broken)
            failure = Trouble(Reason.ACCURACY_FAILED, message, "Rejected")
    return tuple(rows), failure


def _row(name: str, value: str, limit: str, passed: bool, at: datetime) -> GateResult:
    return GateResult(name=name, value=value, limit=limit, verdict="Pass" if passed else "Fail", at=at)
