"""What users' requests did in a window, from samples of counters."""

from __future__ import annotations

import pytest

from bigmodel.api.verdict import Question, Window
from bigmodel.server.history import OLDEST_SECONDS, History
from bigmodel.server.triton import summary_milliseconds


def at(history: History, second: float, requests: int = 0, errors: int = 0, *quantiles: float) -> None:
    history.users(requests, errors)
    history.sample(second, quantiles)


def window(history: History, seconds: float, now: float, slow: float | None = None) -> Window:
    return history.windows(Question((seconds,), slow), now)[0]


def test_a_window_holds_what_came_in_it() -> None:
    history = History()
    for second in range(11):
        at(history, second, requests=10, errors=1)
    assert window(history, 4, 10) == Window(seconds=4, requests=40, errors=4)
    assert window(history, 60, 10) == Window(seconds=10, requests=100, errors=10)


def test_before_the_first_sample_nothing_was_seen() -> None:
    assert window(History(), 60, 10) == Window(seconds=0, requests=0, errors=0)


def test_counts_never_fall_whatever_was_taken_out() -> None:
    history = History()
    at(history, 0)
    at(history, 1, requests=-3, errors=-1)
    at(history, 2, requests=2, errors=5)
    assert window(history, 10, 2) == Window(seconds=2, requests=2, errors=2)


@pytest.mark.parametrize(
    ("quantiles", "slow"),
    [((1, 2, 3, 4, 5), 0), ((1, 2, 3, 60, 70), 10), ((1, 2, 60, 60, 70), 50), ((60, 60, 60, 60, 60), 500), ((), 0)],
)
def test_slow_requests_are_at_least_as_many_as_the_quantiles_say(quantiles: tuple[float, ...], slow: int) -> None:
    history = History()
    at(history, 0)
    at(history, 1, 1000, 0, *quantiles)
    assert window(history, 10, 1, slow=50).slow == pytest.approx(slow, abs=1)


def test_golden_requests_are_counted_and_timed_apart() -> None:
    history = History()
    at(history, 0)
    history.golden(passed=True, seconds=0.01)
    history.golden(passed=False, seconds=0.2)
    at(history, 1)
    seen = window(history, 10, 1, slow=50)
    assert (seen.requests, seen.golden, seen.golden_errors, seen.golden_slow) == (0, 2, 1, 1)


def test_two_hours_are_kept_in_little_memory_and_no_request_is_lost_by_it() -> None:
    history = History()
    for tick in range(16_000):
        history.golden(passed=True, seconds=0.1)
        at(history, tick * 0.5, requests=1)
    assert len(history._samples) < 2500
    oldest = window(history, OLDEST_SECONDS * 2, 8000)
    assert oldest.requests == pytest.approx(2 * OLDEST_SECONDS, rel=0.01)
    seen = window(history, 3600, 8000, slow=50)
    assert seen.requests == pytest.approx(7200, rel=0.01)
    assert seen.golden_slow == pytest.approx(7200, rel=0.01)


def test_triton_s_summary_is_read_for_the_one_model_version() -> None:
    line = 'nv_inference_request_summary_us{{model="{}",version="{}",quantile="{}"}} {}\n'
    values = {0.5: 1000, 0.9: 2000, 0.95: 3000, 0.99: 4000, 0.999: 5000}
    text = "".join(line.format("mlp", 7, quantile, value) for quantile, value in values.items())
    text += line.format("mlp", 6, 0.5, 9e9) + 'nv_inference_request_summary_us_count{model="mlp",version="7"} 4\n'
    assert summary_milliseconds(text, "mlp", 7) == (1, 2, 3, 4, 5)
    assert summary_milliseconds(text.replace("1000", "Nan"), "mlp", 7) == ()
    assert summary_milliseconds("", "mlp", 7) == ()
