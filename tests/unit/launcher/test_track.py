import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel.launcher.track import MARKS, Track


def a_track(*marks: tuple[int, float]) -> Track:
    track = Track()
    for step, at in marks:
        track.reached(step, at)
    return track


SECONDS = {
    "since a step that was seen": (10, 25.0, 15.0),
    "between two that were seen, evenly": (15, 25.0, 10.0),
    "since before the first": (0, 25.0, 24.0),
    "since the furthest": (20, 25.0, 5.0),
    "never less than none": (20, 1.0, 0.0),
}


@pytest.mark.parametrize(("step", "end", "want"), SECONDS.values(), ids=SECONDS)
def test_seconds_since_a_step(step: int, end: float, want: float) -> None:
    assert a_track((1, 1.0), (10, 10.0), (20, 20.0)).seconds_between(step, end) == want


def test_going_back_moves_what_lies_before_along() -> None:
    """Else going back again, further, would count the same lost seconds twice."""
    track = a_track((1, 1.0), (10, 10.0), (20, 20.0))
    track.go_back(15, 100.0)
    assert (track.furthest, track.moved_at) == (15, 100.0)
    assert track.seconds_between(10, 100.0) == 5.0
    track.reached(16, 101.0)
    assert track.seconds_between(15, 101.0) == 1.0


def test_an_empty_track_and_one_that_goes_nowhere() -> None:
    assert (Track().furthest, Track().moved_at, Track().seconds_between(3, 9.0)) == (0, None, 0.0)
    track = a_track((5, 1.0))
    track.go_back(5, 9.0)
    assert track.moved_at == 1.0


@settings(deadline=None)
@given(st.integers(MARKS, 3 * MARKS))
def test_a_long_run_is_thinned_out(steps: int) -> None:
    track = a_track(*((step, float(step)) for step in range(1, steps + 1)))
    assert len(track._steps) <= MARKS
    assert track.seconds_between(steps // 2, float(steps)) == pytest.approx(steps - steps // 2)
    assert track.furthest == steps
