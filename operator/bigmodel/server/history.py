"""What users' requests and golden requests did lately: samples of counters, and the differences over any window.

Triton counts since its own start and everybody's requests; here the verifier's own are taken out, and a restart goes on
where the counters before it ended. Memory is bounded: samples get sparser with age.
"""

from collections import deque
from dataclasses import dataclass, field

from bigmodel.api.verdict import Question, Window

RECENT_SECONDS = 120.0  # every sample is kept so long
SPARSE_SECONDS = 5.0  # older ones stand this far apart
OLDEST_SECONDS = 7500.0  # the default deadline of a rollout, twice
# Which share of requests is slower at least, if this quantile is above the limit.
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class Sample:
    """The sums so far at one moment; `quantiles` in milliseconds of the requests before it, in the order above."""

    at: float
    requests: int = 0
    errors: int = 0
    golden: int = 0
    golden_errors: int = 0
    quantiles: tuple[float, ...] = ()
    golden_milliseconds: tuple[float, ...] = ()  # of the golden requests since the sample before


@dataclass
class History:
    _samples: deque[Sample] = field(default_factory=deque)
    _golden: int = 0
    _golden_errors: int = 0
    _golden_milliseconds: list[float] = field(default_factory=list)
    _requests: int = 0
    _errors: int = 0

    def users(self, requests: int, errors: int) -> None:
        """So many more requests of users, and errors among them."""
        self._requests += max(0, requests)
        self._errors += max(0, min(errors, requests))

    def golden(self, passed: bool, seconds: float) -> None:
        """One golden request was answered, or not."""
        self._golden += 1
        self._golden_errors += not passed
        self._golden_milliseconds.append(1000 * seconds)

    def sample(self, at: float, quantiles: tuple[float, ...]) -> None:
        """Remember the sums as they are now. `at` on a clock that never goes back."""
        timed, self._golden_milliseconds = tuple(self._golden_milliseconds), []
        self._samples.append(
            Sample(at, self._requests, self._errors, self._golden, self._golden_errors, quantiles, timed)
        )
        self._thin(at)

    def windows(self, question: Question, now: float) -> list[Window]:
        return [self._window(seconds, question.slow_milliseconds, now) for seconds in question.windows]

    def _window(self, seconds: float, slow_milliseconds: float | None, now: float) -> Window:
        """From the newest sample that is not younger than the window: nothing of it is left out."""
        if not self._samples:
            return Window(seconds=0, requests=0, errors=0)
        begin = self._samples[0]
        slow, golden_slow, last = 0.0, 0, begin
        for sample in self._samples:
            if sample.at <= now - seconds:
                begin = last = sample
                slow, golden_slow = 0.0, 0
                continue
            if slow_milliseconds is not None:
                slow += (sample.requests - last.requests) * _slower_share(sample.quantiles, slow_milliseconds)
                golden_slow += sum(one > slow_milliseconds for one in sample.golden_milliseconds)
            last = sample
        return Window(
            seconds=round(now - begin.at, 1),
            requests=last.requests - begin.requests,
            errors=last.errors - begin.errors,
            slow=int(slow),
            golden=last.golden - begin.golden,
            golden_errors=last.golden_errors - begin.golden_errors,
            golden_slow=golden_slow,
        )

    def _thin(self, now: float) -> None:
        """Old samples go, unless they stand apart: the one in the middle of three that are close together."""
        while self._samples and self._samples[0].at < now - OLDEST_SECONDS:
            self._samples.popleft()
        aged = [index for index, sample in enumerate(self._samples) if sample.at < now - RECENT_SECONDS]
        if len(aged) < 3:
            return
        middle = aged[-2]
        before, this, after = (self._samples[index] for index in (middle - 1, middle, middle + 1))
        if after.at - before.at <= SPARSE_SECONDS:
            joined = (*this.golden_milliseconds, *after.golden_milliseconds)
            self._samples[middle + 1] = Sample(
                after.at, after.requests, after.errors, after.golden, after.golden_errors, after.quantiles, joined
            )
            del self._samples[middle]


def _slower_share(quantiles: tuple[float, ...], limit_milliseconds: float) -> float:
    """At least this share of requests took longer than the limit."""
    above = (q for q, value in zip(QUANTILES, quantiles, strict=False) if value > limit_milliseconds)
    return 1 - next(above, 1.0)
