"""The evaluation and change gates: what the `evaluate` pod is asked, and whether what it found passes. Pure."""

import math

from bigmodel.api import names
from bigmodel.api.evaluation import Contender, EvaluationRun
from bigmodel.api.service import EvaluationGate, GateResult, Gates
from bigmodel.controller.service import messages
from bigmodel.controller.service.accuracy import relative_drop
from bigmodel.controller.service.diagnosis import Trouble
from bigmodel.controller.service.messages import Reason
from bigmodel.controller.service.revision import Evaluation, Record

EVALUATION, CHANGE = "evaluation", "change"


def question(service: str, gates: Gates, stable: Record | None, candidate: Record) -> EvaluationRun | None:
    """What the pod is to find out; None where no gate asks, or nothing serves yet that could be compared with."""
    if stable is None or (gates.evaluation is None and gates.change is None):
        return None
    return EvaluationRun(
        candidate=_contender(service, candidate),
        stable=_contender(service, stable),
        data=gates.evaluation.data.uri if gates.evaluation is not None else None,
        metric=gates.evaluation.metric if gates.evaluation is not None else None,
        absolute=gates.parity.absolute,
        relative=gates.parity.relative,
        max_batch_size=min(record.data.inputs.batching.max_batch_size for record in (stable, candidate)),
    )


def claim(question: EvaluationRun) -> str | None:
    """The PersistentVolumeClaim that holds the data, None where it is elsewhere."""
    uri = question.data or ""
    return uri.removeprefix("pvc://").partition("/")[0] if uri.startswith("pvc://") else None


def rows(gates: Gates, known: Evaluation | None, candidate: Record) -> tuple[tuple[GateResult, ...], Trouble | None]:
    """Both gates; Pending while nothing is `known`. The first that fails is the trouble."""
    found: list[GateResult] = []
    trouble: Trouble | None = None
    at = known.at if known is not None else candidate.attempt.since
    for name, limit in _limits(gates, known):
        if known is None:
            found.append(GateResult(name=name, value="not asked yet", limit=limit, verdict="Pending", at=at))
            continue
        value, passed = _judged(name, gates, known)
        verdict = "Pass" if passed else "Fail"
        found.append(GateResult(name=name, value=messages.cut(value, 256), limit=limit, verdict=verdict, at=at))
        if not passed and trouble is None:
            reason = Reason.EVALUATION_FAILED if name == EVALUATION else Reason.CHANGE_FAILED
            trouble = Trouble(reason, messages.evaluation_failed(candidate.number, name, value, limit), "Rejected")
    return tuple(found), trouble


def _contender(service: str, record: Record) -> Contender:
    address = f"{names.revision_name(service, record.number)}:{names.PORT_TRITON_HTTP}"
    return Contender(revision=record.number, address=address)


def _limits(gates: Gates, known: Evaluation | None) -> list[tuple[str, str]]:
    stable = f"r{known.asked.stable.revision}" if known is not None else "stable"
    found = []
    if gates.evaluation is not None:
        found.append((EVALUATION, f"at most {gates.evaluation.max_relative_drop:.1%} worse than {stable}"))
    if gates.change is not None:
        found.append((CHANGE, f"at most {gates.change.max_changed_share:.1%} of the answers differ from {stable}'s"))
    return found


def _judged(name: str, gates: Gates, known: Evaluation) -> tuple[str, bool]:
    """What is missing or no number fails."""
    result = known.result
    if not result.ok:
        return result.message, False
    if name == EVALUATION:
        assert gates.evaluation is not None
        return _scored(gates.evaluation, known)
    assert gates.change is not None
    if result.change is None or not result.samples:
        return "no answers were compared", False
    share = result.change.changed / result.samples
    largest = f"; the largest: {result.change.largest}" if result.change.largest else ""
    value = f"{share:.1%}, {result.change.changed} of {result.samples} answers differ{largest}"
    return value, share <= gates.change.max_changed_share


def _scored(gate: EvaluationGate, known: Evaluation) -> tuple[str, bool]:
    result, metric = known.result, gate.metric
    if result.scores is None:
        return f"no {metric}", False
    try:
        candidate, stable = float(result.scores.candidate), float(result.scores.stable)
    except ValueError:
        return f"{metric} is no number", False
    value = f"{metric} {candidate:.6g} over {result.samples} samples, r{known.asked.stable.revision} has {stable:.6g}"
    if not (math.isfinite(candidate) and math.isfinite(stable)):
        return value, False
    return value, relative_drop(gate.goal, candidate, stable) <= gate.max_relative_drop
