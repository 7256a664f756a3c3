"""Gates under real traffic: what the pods of two revisions saw, judged by the sequential test. Pure.

A pod that gives no answer is no data: its errors may be missing, so nothing passes without it, and what is known of the
others still fails. Golden requests stand in where users are quiet, and run beside them always, because Triton counts an
error that a model returns as a success.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from bigmodel.api.service import GateResult, OnlineGate
from bigmodel.controller.service import sprt
from bigmodel.controller.service.observe import ObservedPod
from bigmodel.controller.service.sprt import Counts

QUIET_REQUESTS = 10  # users' requests in a step; fewer: golden requests decide
GOLDEN_REQUESTS = 200  # of a step that golden requests decide
# So many requests should have reached the candidate: if none did, chance is out of the question (1 in 20 000).
EXPECTED_REQUESTS = 10
SLOW_SHARE = 0.01  # what a 99th percentile leaves

STEP, WHOLE = 0, 1  # places of the windows in a question: this step's, the whole rollout's


@dataclass(frozen=True)
class Seen:
    """One revision in one window, over all its pods. `complete`: every Ready pod answered."""

    requests: int = 0
    errors: int = 0
    slow: int = 0
    golden: int = 0
    golden_errors: int = 0
    golden_slow: int = 0
    summary: bool = False  # Triton said how slow; else only golden requests were timed
    complete: bool = False

    @property
    def timed(self) -> Counts:
        """Requests whose time is known, and those that were too slow."""
        return Counts(self.requests, self.slow) if self.summary else Counts(self.golden, self.golden_slow)


def seen(pods: Iterable[ObservedPod], window: int) -> Seen:
    ready = [pod for pod in pods if pod.ready_since is not None]
    told = [pod.verdict for pod in ready if pod.verdict is not None and len(pod.verdict.windows) > window]
    windows = [verdict.windows[window] for verdict in told]
    return Seen(
        requests=sum(one.requests for one in windows),
        errors=sum(min(one.errors, one.requests) for one in windows),
        slow=sum(min(one.slow, one.requests) for one in windows),
        golden=sum(one.golden for one in windows),
        golden_errors=sum(min(one.golden_errors, one.golden) for one in windows),
        golden_slow=sum(min(one.golden_slow, one.golden) for one in windows),
        summary=any(verdict.p99_milliseconds is not None for verdict in told),
        complete=bool(ready) and len(told) == len(ready),
    )


@dataclass(frozen=True)
class Judgement:
    """`failed` is the first gate that fails; `passed` that users' requests are enough to pass every gate."""

    results: tuple[GateResult, ...]
    failed: GateResult | None
    passed: bool
    synthetic: bool  # golden requests of this step are enough to pass
    quiet: bool  # hardly any user in this step


def judge(
    gate: OnlineGate, step: Seen, whole: Seen, stable_step: Seen, stable_whole: Seen, since: datetime
) -> Judgement:
    """A candidate beside stable; with `Seen()` for stable the limits are absolute. `since`: when the step began."""
    errors = _gate(
        "errors",
        gate,
        [(_errors(step), _errors(stable_step)), (_errors(whole), _errors(stable_whole))],
        since,
        "",
    )
    # Alone, because Triton calls returned errors successes; with users' requests, because they fail of the same fault.
    golden_pairs = [(_any_error(whole), _errors(stable_whole)), (Counts(whole.golden, whole.golden_errors), Counts())]
    golden = _gate("golden requests", gate, golden_pairs, since, "")
    results = [errors, golden]
    if gate.p99_milliseconds is not None:
        source = "Triton's summary" if whole.summary else "golden requests"
        held = OnlineGate(max_error_ratio=SLOW_SHARE, max_error_increase=SLOW_SHARE)
        pairs = [(step.timed, stable_step.timed), (whole.timed, stable_whole.timed)]
        note = f" slower than {gate.p99_milliseconds:g} ms by {source}"
        results.append(_gate("p99", held, pairs, since, note))
    failed = next((result for result in results if result.verdict == "Fail"), None)
    users = [result for result in results if result is not golden]
    return Judgement(
        results=tuple(results),
        failed=failed,
        passed=whole.complete and all(result.verdict == "Pass" for result in users),
        synthetic=step.complete and failed is None and step.golden - step.golden_errors >= GOLDEN_REQUESTS,
        quiet=step.requests + stable_step.requests < QUIET_REQUESTS,
    )


def _errors(seen: Seen) -> Counts:
    return Counts(seen.requests, seen.errors)


def _any_error(seen: Seen) -> Counts:
    """Users' and golden requests, once one of the latter fails: the same fault, seen sooner."""
    if seen.golden_errors == 0:
        return Counts()
    return Counts(seen.golden + seen.requests, seen.golden_errors + seen.errors)


def _gate(name: str, gate: OnlineGate, pairs: list[tuple[Counts, Counts]], since: datetime, note: str) -> GateResult:
    """Each pair is the candidate's counts and stable's, of one window; the last is the whole rollout's."""
    judged = [
        (counts, held := sprt.limits(gate.max_error_ratio, gate.max_error_increase, stable), sprt.verdict(counts, held))
        for counts, stable in pairs
    ]
    counts, held, verdict = next((one for one in judged if one[2] == "Fail"), judged[-1])
    return GateResult(
        name=name,
        value=f"{counts.bad} of {counts.requests}{note}",
        limit=f"pass needs ≥ {sprt.passes_at(counts.bad, held)} requests, "
        f"fail ≥ {sprt.fails_at(counts.requests, held):.1f} {'slow' if note else 'errors'}"
        if held.limit < 1
        else "stable itself fails too often to compare",
        verdict=verdict,
        at=since,
    )
