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


@dataclass
class _Rank:
    beat: Beat
    moved_at: float
    trained: bool = False  # reported a step in this generation


@dataclass
class HangWatch:
    """Watches one generation. It judges only by what launchers said about their ranks, never by the silence of a
    launcher: the lease does that.

    Armed while every rank that reports is Training and has made a step: not at the start, nor in compile, save, load
    and publish.
    """

    hang_timeout_seconds: float
    _ranks: dict[int, _Rank] = field(default_factory=dict)
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=64))

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

    @property
    def limit_seconds(self) -> float:
        if len(self._steps) < SAMPLES:
            return self.hang_timeout_seconds
        return min(self.hang_timeout_seconds, max(SHORTEST_LIMIT_SECONDS, MEDIANS * median(self._steps)))

    def overdue_seconds(self) -> float | None:
        """How long the most silent rank has made no step, if that is too long; else None."""
        if not self._ranks or not all(
            r.trained and r.beat.report.phase is RunPhase.TRAINING for r in self._ranks.values()
        ):
            return None
        idle = max(r.beat.idle_seconds for r in self._ranks.values())
        return idle if idle > self.limit_seconds else None

    def culprit(self, stacks: Iterable[RankStack]) -> int:
        """The rank that the others wait for: stopped by a signal; else not in the collective; else behind; else the
        first."""
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
