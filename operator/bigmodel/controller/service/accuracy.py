"""The accuracy gate: the metrics that a model was published with, against limits and against stable's. Pure.

A value that is missing or is no number fails. Metrics on different validation data are not compared.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from bigmodel.api.model import Metric
from bigmodel.api.service import AccuracyGate
from bigmodel.artifact.summary import Summary


@dataclass(frozen=True)
class Measured:
    """One gate's finding. `broken` names the field that decided, None where it passed."""

    value: str
    limit: str
    broken: str | None = None


def number(metrics: Iterable[Metric], name: str) -> float | None:
    """The metric as a finite number, None where there is none."""
    text = next((metric.value for metric in metrics if metric.name == name), None)
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def relative_drop(goal: str, candidate: float, stable: float) -> float:
    """How much worse the candidate is, as a share of stable's value; negative where it is better."""
    worse = candidate - stable if goal == "minimize" else stable - candidate
    return worse / abs(stable) if stable else math.copysign(math.inf, worse) if worse else 0.0


def measure(gate: AccuracyGate, candidate: Summary, stable: Summary | None, stable_name: str) -> Measured:
    """`stable` is None for the first revision, or where nothing is known of stable's metrics."""
    value = number(candidate.metrics, gate.metric)
    limit = _limit(gate, stable_name if stable is not None else "stable")
    if value is None:
        return Measured(f"no {gate.metric}", limit, "metric")
    text = f"{gate.metric} {value:.6g}"
    if gate.at_most is not None and value > gate.at_most:
        return Measured(text, limit, "atMost")
    if gate.at_least is not None and value < gate.at_least:
        return Measured(text, limit, "atLeast")
    if gate.max_relative_drop is None or stable is None:
        return Measured(text, limit)
    before = number(stable.metrics, gate.metric)
    if before is None or candidate.validation is None or candidate.validation != stable.validation:
        return Measured(f"{text}, not compared with {stable_name}: other validation data", limit)
    drop = relative_drop(gate.goal, value, before)
    compared = f"{text}, {stable_name} has {before:.6g}"
    return Measured(compared, limit, "maxRelativeDrop" if drop > gate.max_relative_drop else None)


def _limit(gate: AccuracyGate, stable_name: str) -> str:
    limits = [
        f"at most {gate.at_most:.6g}" if gate.at_most is not None else "",
        f"at least {gate.at_least:.6g}" if gate.at_least is not None else "",
        f"at most {gate.max_relative_drop:.1%} worse than {stable_name}" if gate.max_relative_drop is not None else "",
    ]
    return ", ".join(filter(None, limits))
