"""Is a share of bad requests too high? A sequential probability ratio test: it may be asked after every request. Pure.

Fixed windows cry wolf: two failed windows of 100 requests roll back an identical candidate in 3 to 41 % of rollouts
(simulated). This test bounds both mistakes however often it is looked at.

Source: Wald, Sequential Tests of Statistical Hypotheses, 1945, doi:10.1214/aoms/1177731118.
"""

import math
from dataclasses import dataclass
from typing import Literal

ALPHA = 0.01  # chance to fail a candidate whose share is the harmless one
BETA = 0.05  # chance to pass one whose share is the limit
FAIL = math.log((1 - BETA) / ALPHA)
PASS = math.log(BETA / (1 - ALPHA))
# A lower limit would want more requests than a rollout sees: 0 means "hardly ever", not "never in a million".
LOWEST_LIMIT, HIGHEST_LIMIT = 0.001, 0.99
BASELINE_REQUESTS = 100  # fewer say nothing of stable's own share

Verdict = Literal["Pass", "Fail", "Pending"]


@dataclass(frozen=True)
class Counts:
    """Requests seen, and those of them that were bad."""

    requests: int = 0
    bad: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.requests + other.requests, self.bad + other.bad)


@dataclass(frozen=True)
class Limits:
    """A share of `harmless` should pass, one of `limit` should fail."""

    harmless: float
    limit: float


def limits(max_ratio: float, max_increase: float, stable: Counts) -> Limits:
    """What a candidate is held to, given what stable's requests did in the same time.

    A stable that has errors of its own (a backend that both call) raises both shares: a candidate is not at fault for
    what its predecessor does as well.
    """
    limit = min(max(max_ratio, LOWEST_LIMIT), HIGHEST_LIMIT)
    own = stable.bad / stable.requests if stable.requests >= BASELINE_REQUESTS else 0.0
    harmless = max(limit / 4, min(own, HIGHEST_LIMIT))
    if harmless > limit / 2:
        limit = min(max(2 * harmless, harmless + max_increase), 1.0)
    return Limits(harmless, limit)


def verdict(counts: Counts, held_to: Limits) -> Verdict:
    """Pending while neither is sure enough, or where stable itself fails so often that nothing could be worse."""
    if held_to.limit >= 1.0:
        return "Pending"
    bad = min(counts.bad, counts.requests)
    good = counts.requests - bad
    ratio = bad * _gain_of_bad(held_to) + good * _gain_of_good(held_to)
    if ratio >= FAIL:
        return "Fail"
    return "Pass" if ratio <= PASS else "Pending"


def fails_at(requests: int, held_to: Limits) -> float:
    """Bad ones of so many requests that fail the test."""
    good = _gain_of_good(held_to)
    return (FAIL - requests * good) / (_gain_of_bad(held_to) - good)


def passes_at(bad: int, held_to: Limits) -> int:
    """Requests, with so many bad ones among them, that pass the test."""
    good = _gain_of_good(held_to)
    return math.ceil((PASS - bad * (_gain_of_bad(held_to) - good)) / good)


def _gain_of_bad(held_to: Limits) -> float:
    return math.log(held_to.limit / held_to.harmless)


def _gain_of_good(held_to: Limits) -> float:
    return math.log((1 - held_to.limit) / (1 - held_to.harmless))
