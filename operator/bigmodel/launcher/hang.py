"""When does a gang count as hung, and whose fault is it? Pure; the evidence comes from the members' heartbeats."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from bigmodel.api.progress import RunPhase
from bigmodel.launcher.message import Beat, RankStack

SHORTEST_LIMIT_SECONDS = 5.0
MEDIANS = 10  # a step that takes ten times the usual is a hang
SAMPLES = 5  # fewer steps tell nothing about what is usual: the first ones compile and fill caches
LONG_WORK_SECONDS = 1800.0  # a save, an export and its upload, an evaluation: nobody knows how long they may take


@dataclass
class _Rank:
    beat: Beat
    moved_at: float
    trained: bool = False  # reported a step in this generation


@dataclass(frozen=True)
class Overdue:
    """A rank that did not move for longer than its phase allows."""

    rank: int
    phase: RunPhase
    seconds: float
    limit_seconds: float

    def message(self) -> str:
        limit = f"for {self.seconds:.1f} s, the limit is {self.limit_seconds:.1f} s"
        match self.phase:
            case RunPhase.TRAINING:
                return f"no step {limit}"
            case RunPhase.STARTING:
                return f"rank {self.rank} did not get to its first step {limit} (spec.scheduling.startDeadlineSeconds)"
            case RunPhase.CHECKPOINTING:
                return f"rank {self.rank} is saving a checkpoint {limit}"
            case RunPhase.PUBLISHING:
                return f"rank {self.rank} is publishing {limit}"
            case RunPhase.DONE:
                return f"rank {self.rank} is done and does not end {limit}"


@dataclass
class HangWatch:
    """Watches one generation. It judges only by what launchers said about their ranks, never by the silence of a
    launcher: the lease does that.

    The step time is watched while every rank that reports is Training and has made a step. Whatever else a rank does
    has a limit too: until its first step max(startDeadlineSeconds, hangTimeoutSeconds), else max(LONG_WORK_SECONDS,
    hangTimeoutSeconds). A program that reports nothing is not watched, but `expected` ranks must report: a recipe's do.
    """

    hang_timeout_seconds: float
    start_deadline_seconds: float = LONG_WORK_SECONDS
    started_at: float = 0.0
    expected: int = 0
    _ranks: dict[int, _Rank] = field(default_factory=dict)
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    _finished: set[int] = field(default_factory=set)

    def observe(self, beat: Beat, now: float) -> None:
        moved_at = now - beat.idle_seconds
        before = self._ranks.get(beat.report.rank)
        training = beat.report.phase is RunPhase.TRAINING
        if before is None or beat.report.phase is RunPhase.STARTING:
            self._ranks[beat.report.rank] = _Rank(beat, moved_at, trained=training)
            return
        steps = beat.report.step - before.beat.report.step
        if training and before.trained and before.beat.report.phase is RunPhase.TRAINING and steps > 0:
            self._steps.append(max(0.0, moved_at - before.moved_at) / steps)
        self._ranks[beat.report.rank] = _Rank(beat, moved_at, trained=before.trained or training)

    def finished(self, rank: int) -> None:
        """The rank ended with 0: nothing more is expected of it."""
        self._ranks.pop(rank, None)
        self._finished.add(rank)

    @property
    def limit_seconds(self) -> float:
        """Of a step."""
        if len(self._steps) < SAMPLES:
            return self.hang_timeout_seconds
        return min(self.hang_timeout_seconds, max(SHORTEST_LIMIT_SECONDS, MEDIANS * median(self._steps)))

    def overdue(self, now: float) -> Overdue | None:
        """The rank that is furthest beyond its limit, if any is."""
        start_limit = max(self.start_deadline_seconds, self.hang_timeout_seconds)
        in_step = all(r.trained and r.beat.report.phase is RunPhase.TRAINING for r in self._ranks.values())
        found = [
            Overdue(number, RunPhase.STARTING, now - self.started_at, start_limit)
            for number in range(self.expected)
            if number not in self._ranks and number not in self._finished
        ]
        for number, rank in self._ranks.items():
            phase = rank.beat.report.phase
            if phase is RunPhase.STARTING:
                limit = start_limit
            elif phase is RunPhase.TRAINING and in_step:
                limit = self.limit_seconds
            else:  # a rank in Training waits for one that is not
                limit = max(LONG_WORK_SECONDS, self.hang_timeout_seconds)
            found.append(Overdue(number, phase, rank.beat.idle_seconds, limit))
        late = [one for one in found if one.seconds > one.limit_seconds]
        return max(late, key=lambda one: (one.seconds - one.limit_seconds, -one.rank), default=None)

    def culprit(self, overdue: Overdue, stacks: Iterable[RankStack]) -> int:
        """The rank that the others wait for. In a step: stopped by a signal; else not in the collective; else behind;
        else the first. Elsewhere the one that is overdue itself."""
        if overdue.phase is not RunPhase.TRAINING:
            return overdue.rank
        stacks = list(stacks)
        stopped = {stack.rank for stack in stacks if stack.stopped}
        # A rank says at most every 100 ms that it enters a collective, so fast steps may hide it: its stack does not.
        waiting = {stack.rank for stack in stacks if stack.waits}
        return min(
            self._ranks,
            key=lambda rank: (
                rank not in stopped,
                rank in waiting or self._ranks[rank].beat.report.in_collective,
                self._ranks[rank].beat.report.step,
                rank,
            ),
        )
