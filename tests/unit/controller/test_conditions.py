"""Conditions as metav1 means them."""

from __future__ import annotations

from bigmodel.controller.conditions import carried_to, find, is_true, set_condition, whole_seconds
from tests.builders import NOON, seconds


def test_the_time_moves_only_with_the_status() -> None:
    first = set_condition([], "Running", "False", "Pending", "soon", 1, NOON)
    same = set_condition(first, "Running", "False", "Pulling", "still", 2, NOON + seconds(60))
    assert same[0].last_transition_time == NOON
    assert (same[0].reason, same[0].message, same[0].observed_generation) == ("Pulling", "still", 2)
    turned = set_condition(same, "Running", "True", "Runs", "now", 2, NOON + seconds(61))
    assert turned[0].last_transition_time == NOON + seconds(61)
    assert first[0].status == "False", "the old list is as it was"


def test_a_condition_keeps_its_place_and_a_new_one_comes_last() -> None:
    conditions = set_condition([], "A", "True", "R", "m", 1, NOON)
    conditions = set_condition(conditions, "B", "True", "R", "m", 1, NOON)
    conditions = set_condition(conditions, "A", "False", "R", "m", 1, NOON)
    assert [c.type for c in conditions] == ["A", "B"]
    assert not is_true(conditions, "A")
    assert is_true(conditions, "B")
    assert find(conditions, "C") is None
    assert not is_true(conditions, "C")


def test_carried_to_a_generation_nothing_else_changes() -> None:
    conditions = set_condition([], "Complete", "True", "R", "m", 1, NOON)
    carried = carried_to(conditions, 5)
    assert carried[0].observed_generation == 5
    assert carried[0].model_copy(update={"observed_generation": 1}) == conditions[0]


def test_what_is_written_is_what_is_read_back() -> None:
    late = NOON.replace(microsecond=999_999)
    [condition] = set_condition([], "A", "True", "R", "m", 1, late)
    assert condition.wire()["lastTransitionTime"] == "2026-03-01T12:00:00Z"
    assert type(condition).model_validate(condition.wire()) == condition
    assert whole_seconds(late) == NOON
