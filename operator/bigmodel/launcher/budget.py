"""What a failure costs, and whether the gang may go on in place. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bigmodel.api.job import FailureRule
from bigmodel.api.run import Budgets, RestartCounts
from bigmodel.launcher.culprit import Cause, Failure

CRASH_LOOP = 3
LONGEST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class Streak:
    """Failures in a row with the same exit code at the same step: the next try would end the same way."""

    exit_code: int = 0
    step: int = 0
    length: int = 0

    def after(self, exit_code: int, step: int) -> "Streak":
        if (exit_code, step) != (self.exit_code, self.step):
            return Streak(exit_code, step, 1)
        return replace(self, length=self.length + 1)


@dataclass(frozen=True)
class GoOn:
    """Start the next generation, not before `pause_seconds` from now."""

    spent: RestartCounts
    pause_seconds: float = 0.0


@dataclass(frozen=True)
class GiveUp:
    """End the attempt. `reason` is one CamelCase word, `message` for people."""

    reason: str
    message: str


def after_failure(failure: Failure, streak: Streak, spent: RestartCounts, budgets: Budgets) -> GoOn | GiveUp:
    """`streak` includes this failure. A lost or leaving pod costs nothing here: its controller counts the
    replacement."""
    match failure.cause:
        case Cause.LOST | Cause.LEAVING:
            return GoOn(spent)
        case Cause.HANG:
            if spent.hang >= budgets.max_hang_restarts:
                return GiveUp(
                    "MaxHangRestartsExceeded",
                    f"{failure.message}; {spent.hang} of {budgets.max_hang_restarts} restarts after hangs are used"
                    " (spec.failurePolicy.maxHangRestarts)",
                )
            return GoOn(spent.model_copy(update={"hang": spent.hang + 1}))
        case Cause.PROGRAM:
            return _after_program_error(failure, streak, spent, budgets)


def _after_program_error(failure: Failure, streak: Streak, spent: RestartCounts, budgets: Budgets) -> GoOn | GiveUp:
    number, action = _matching_rule(failure.exit_code, budgets.rules)
    if action == "FailJob":
        return GiveUp("FailJob", f"{failure.message}; spec.failurePolicy.rules[{number}] ends the job on it")
    if action == "RestartAndIgnore":
        # Nothing bounds these, so a program that never gets to a step must not spin.
        return GoOn(spent, pause_seconds=min(LONGEST_PAUSE_SECONDS, 2.0 ** min(streak.length - 1, 10) - 1))
    if spent.program >= budgets.max_restarts:
        return GiveUp(
            "MaxRestartsExceeded",
            f"{failure.message}; {spent.program} of {budgets.max_restarts} restarts are used"
            " (spec.failurePolicy.maxRestarts)",
        )
    if streak.length >= CRASH_LOOP:
        return GiveUp(
            "CrashLoop",
            f"{failure.message}; {CRASH_LOOP} times in a row with this exit code, and no further than step"
            f" {streak.step}: fix the program",
        )
    return GoOn(spent.model_copy(update={"program": spent.program + 1}))


def _matching_rule(exit_code: int, rules: Sequence[FailureRule]) -> tuple[int, str]:
    for number, rule in enumerate(rules):
        if rule.on_exit_codes is None or exit_code in rule.on_exit_codes:
            return number, rule.action
    return -1, "Restart"
