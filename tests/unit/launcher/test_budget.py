import pytest

from bigmodel.api.run import Budgets, RestartCounts
from bigmodel.launcher.budget import GiveUp, GoOn, Streak, after_failure
from bigmodel.launcher.culprit import Cause, Failure
from tests.unit.launcher.gang import a_rule

NONE = RestartCounts()


def failed(exit_code: int = 1, cause: Cause = Cause.PROGRAM) -> Failure:
    return Failure(cause, at=7.0, index=1, exit_code=exit_code, message="rank 1 broke", rank=1)


def budgets(restarts: int = 3, hangs: int = 3, *rules: object) -> Budgets:
    return Budgets(max_restarts=restarts, max_hang_restarts=hangs, hang_timeout_seconds=600, rules=list(rules))


CASES = {
    "inside the budget it goes on and counts": (failed(), 1, NONE, budgets(), GoOn(RestartCounts(program=1))),
    "the last restart of the budget is still taken": (
        failed(),
        1,
        RestartCounts(program=2),
        budgets(),
        GoOn(RestartCounts(program=3)),
    ),
    "a spent budget ends it": (failed(), 1, RestartCounts(program=3), budgets(), "MaxRestartsExceeded"),
    "a budget of 0 is one try": (failed(), 1, NONE, budgets(0), "MaxRestartsExceeded"),
    "the third failure in a row without a step ends it early": (
        failed(),
        3,
        RestartCounts(program=2),
        budgets(9),
        "CrashLoop",
    ),
    "a spent budget is named even when it loops": (
        failed(),
        3,
        RestartCounts(program=2),
        budgets(2),
        "MaxRestartsExceeded",
    ),
    "FailJob by code": (failed(42), 1, NONE, budgets(3, 3, a_rule("FailJob", 42)), "FailJob"),
    "a rule for another code does not match": (
        failed(1),
        1,
        NONE,
        budgets(3, 3, a_rule("FailJob", 42)),
        GoOn(RestartCounts(program=1)),
    ),
    "the first match wins": (
        failed(42),
        1,
        NONE,
        budgets(3, 3, a_rule("Restart", 42, 43), a_rule("FailJob", 42)),
        GoOn(RestartCounts(program=1)),
    ),
    "a rule without codes matches every failure": (failed(9), 1, NONE, budgets(3, 3, a_rule("FailJob")), "FailJob"),
    "a retryable code beyond the budget ends it": (
        failed(42),
        1,
        NONE,
        budgets(0, 3, a_rule("Restart", 42)),
        "MaxRestartsExceeded",
    ),
    "RestartAndIgnore costs nothing": (failed(42), 1, NONE, budgets(0, 3, a_rule("RestartAndIgnore", 42)), GoOn(NONE)),
    "RestartAndIgnore without a step slows down": (
        failed(42),
        4,
        NONE,
        budgets(0, 3, a_rule("RestartAndIgnore", 42)),
        GoOn(NONE, pause_seconds=7.0),
    ),
    "and is bounded": (
        failed(42),
        5000,
        NONE,
        budgets(0, 3, a_rule("RestartAndIgnore", 42)),
        GoOn(NONE, pause_seconds=30.0),
    ),
    "a hang has a budget of its own": (
        failed(124, Cause.HANG),
        1,
        RestartCounts(program=3),
        budgets(0, 1),
        GoOn(RestartCounts(program=3, hang=1)),
    ),
    "which ends too": (
        failed(124, Cause.HANG),
        1,
        RestartCounts(hang=1),
        budgets(9, 1),
        "MaxHangRestartsExceeded",
    ),
    "rules are not for hangs": (
        failed(124, Cause.HANG),
        1,
        NONE,
        budgets(0, 1, a_rule("FailJob")),
        GoOn(RestartCounts(hang=1)),
    ),
    "a lost pod costs nothing, whatever was spent": (
        failed(1, Cause.LOST),
        9,
        RestartCounts(program=3),
        budgets(0, 0, a_rule("FailJob")),
        GoOn(RestartCounts(program=3)),
    ),
    "nor does a pod told to stop": (failed(143, Cause.LEAVING), 9, NONE, budgets(0, 0, a_rule("FailJob")), GoOn(NONE)),
}


@pytest.mark.parametrize(("failure", "in_a_row", "spent", "given", "want"), CASES.values(), ids=CASES)
def test_after_failure(failure: Failure, in_a_row: int, spent: RestartCounts, given: Budgets, want: GoOn | str) -> None:
    verdict = after_failure(failure, Streak(failure.exit_code, 7, in_a_row), spent, given)
    if isinstance(want, GoOn):
        assert verdict == want
    else:
        assert isinstance(verdict, GiveUp)
        assert verdict.reason == want
        assert "rank 1 broke" in verdict.message


def test_a_streak_is_of_one_exit_code_at_one_step() -> None:
    """A11, C29: whether it never got to a step, or dies again where it died before."""
    streak = Streak().after(1, step=0)
    assert streak == Streak(1, 0, 1)
    assert streak.after(1, step=0) == Streak(1, 0, 2)
    assert streak.after(1, step=5) == Streak(1, 5, 1)
    assert Streak(1, 5, 2).after(1, step=5) == Streak(1, 5, 3)
    assert Streak(1, 5, 2).after(2, step=5) == Streak(2, 5, 1)
