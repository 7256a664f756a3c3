"""What index 0 tells the controller: the newest word of rank 0, the pace, and the incidents. Pure."""

from collections import deque
from dataclasses import dataclass, field

from bigmodel.api.progress import Incident, Progress, RankReport, RunPhase
from bigmodel.api.run import RestartCounts
from bigmodel.launcher.culprit import Failure
from bigmodel.launcher.message import INCIDENT_BYTES, Beat, head

INCIDENTS = 10
PACE_SECONDS = 30.0


@dataclass
class Board:
    """Times are the launcher's monotonic clock; `epoch` is what to add to get seconds since 1970."""

    uid: str
    attempt: int
    epoch: float
    incidents: list[Incident] = field(default_factory=list)
    first_step_at: float | None = None
    _newest: RankReport | None = None  # of rank 0
    _updated_at: float = 0.0
    _step: int = 0  # of rank 0
    _furthest: int = 0  # of any rank, this generation
    _made_a_step: bool = False  # any rank, this generation
    _pace: deque[tuple[float, int]] = field(default_factory=deque)  # (when, step) of rank 0, this generation
    _open: tuple[float, int] | None = None  # (when it failed, generation) of the incident not yet recovered from

    def started(self) -> None:
        self._furthest = 0
        self._made_a_step = False
        self._pace.clear()

    def observe(self, beat: Beat, now: float) -> None:
        report = beat.report
        moved_at = now - beat.idle_seconds
        self._furthest = max(self._furthest, report.step)
        if report.phase is RunPhase.TRAINING and not self._made_a_step:
            self._made_a_step = True
            self.first_step_at = self.first_step_at if self.first_step_at is not None else moved_at
            self._recovered(report.step, moved_at)
        if report.rank != 0:
            return
        self._newest = report
        self._updated_at = now
        if report.phase is not RunPhase.STARTING or report.step:  # a rank that has not loaded yet knows no step
            self._step = report.step
        if report.phase is RunPhase.TRAINING and (not self._pace or self._pace[-1][1] < report.step):
            self._pace.append((moved_at, report.step))
        while self._pace and self._pace[-1][0] - self._pace[0][0] > PACE_SECONDS:
            self._pace.popleft()

    def failed(self, failure: Failure, generation: int) -> None:
        self._open = (failure.at, generation)
        self.incidents = [
            *self.incidents,
            Incident(
                at=max(0.0, failure.at + self.epoch),
                generation=generation,
                cause=failure.cause,
                rank=failure.rank,
                exit_code=failure.exit_code if failure.rank is not None else None,
                message=head(f"{failure.message}\n{failure.evidence}", INCIDENT_BYTES),
            ),
        ][-INCIDENTS:]

    def _recovered(self, step: int, now: float) -> None:
        if self._open is None:
            return
        failed_at, generation = self._open
        self._open = None
        update = {"resumed_from_step": max(0, step - 1), "recovery_seconds": max(0.0, now - failed_at)}
        self.incidents = [i.model_copy(update=update) if i.generation == generation else i for i in self.incidents]

    @property
    def made_a_step(self) -> bool:
        return self._made_a_step

    @property
    def step(self) -> int:
        """Of rank 0, which is the gang's; without a word from it, the furthest of any rank."""
        return self._step if self._newest is not None else self._furthest

    def progress(self, generation: int, spent: RestartCounts) -> Progress:
        newest = self._newest
        return Progress(
            uid=self.uid,
            attempt=self.attempt,
            generation=generation,
            phase=newest.phase if newest is not None else RunPhase.STARTING,
            step=self.step,
            total_steps=newest.total_steps if newest is not None else 0,
            steps_per_second=self._steps_per_second(),
            metrics=newest.metrics if newest is not None else [],
            program_restarts=spent.program,
            hang_restarts=spent.hang,
            incidents=self.incidents,
            updated_at=max(0.0, self._updated_at + self.epoch) if newest is not None else 0.0,
            first_step_at=max(0.0, self.first_step_at + self.epoch) if self.first_step_at is not None else None,
        )

    def _steps_per_second(self) -> float:
        if len(self._pace) < 2:
            return 0.0
        (began, first), (ended, last) = self._pace[0], self._pace[-1]
        return round((last - first) / (ended - began), 4) if ended > began else 0.0
