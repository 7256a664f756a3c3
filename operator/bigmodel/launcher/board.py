"""What index 0 tells the controller: the newest word of rank 0, the pace, the incidents, where time was lost. Pure."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from bigmodel.api.progress import CheckpointSummary, Incident, Ledger, Progress, RankReport, RunPhase
from bigmodel.api.run import RestartCounts
from bigmodel.launcher.culprit import Cause, Failure
from bigmodel.launcher.message import INCIDENT_BYTES, INCIDENTS_BYTES, Beat, Hello, Standing, head
from bigmodel.launcher.track import Track

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
    checkpoint: CheckpointSummary | None = None
    ledger: Ledger = field(default_factory=Ledger)
    _newest: RankReport | None = None  # of rank 0
    _updated_at: float = 0.0
    _step: int = 0  # of rank 0
    _made_a_step: bool = False  # any rank, this generation
    _pace: deque[tuple[float, int]] = field(default_factory=deque)  # (when, step) of rank 0, this generation
    _unrecovered: tuple[float, int] | None = None  # (when it failed, generation) of the newest incident
    _track: Track = field(default_factory=Track)
    _standstill: float | None = None  # since when no step is made, because of a failure
    _in_place: bool = True  # no pod was replaced since the last step: where one is, its controller counts the time
    _blocked_seconds: float = 0.0  # by saves, as rank 0 told in this generation
    _heard_of_checkpoint: bool = False  # from rank 0 itself, which knows better than any memory

    def started(self) -> None:
        self._made_a_step = False
        self._blocked_seconds = 0.0
        self._pace.clear()

    def observe(self, beat: Beat, now: float) -> None:
        report = beat.report
        moved_at = now - beat.idle_seconds
        if report.phase is RunPhase.TRAINING and not self._made_a_step:
            self._made_a_step = True
            self.first_step_at = self.first_step_at if self.first_step_at is not None else moved_at
            self._recovered(max(0, report.step - 1), moved_at)
        if report.phase is not RunPhase.STARTING:
            self._track.reached(report.step, moved_at)
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
        self.saved(report)

    def saved(self, report: RankReport) -> None:
        """What rank 0 says of checkpoints, which counts even while its generation is being ended."""
        if report.rank != 0:
            return
        if report.checkpoint is not None:
            self.checkpoint = report.checkpoint
            self._heard_of_checkpoint = True
        if (growth := report.checkpoint_seconds - self._blocked_seconds) > 0:
            self._blocked_seconds = report.checkpoint_seconds
            self._book(checkpoint_seconds=growth)

    def failed(self, failure: Failure, generation: int) -> None:
        self._unrecovered = (failure.at, generation)
        if self._standstill is None and self.first_step_at is not None:
            # A gang that hangs stands still since its last step, not only since somebody noticed.
            moved_at = self._track.moved_at if failure.cause is Cause.HANG else None
            self._standstill = moved_at if moved_at is not None else failure.at
        incident = Incident(
            at=max(0.0, failure.at + self.epoch),
            generation=generation,
            cause=failure.cause,
            rank=failure.rank,
            exit_code=failure.exit_code if failure.rank is not None else None,
            message=head(f"{failure.message}\n{failure.evidence}", INCIDENT_BYTES),
            log=failure.log,
            step=self._track.furthest,
        )
        self.incidents = _bounded([*self.incidents, incident][-INCIDENTS:])

    def pod_replaced(self) -> None:
        self._in_place = False

    def _recovered(self, step: int, now: float) -> None:
        """The first step after `step` was made."""
        if self._standstill is not None:
            if step < self._track.furthest:
                self._book(lost_seconds=self._track.seconds_between(step, self._standstill))
                self._track.go_back(step, now)
            if self._in_place:
                self._book(recovering_seconds=now - self._standstill)
        self._standstill = None
        self._in_place = True
        if self._unrecovered is not None:
            failed_at, generation = self._unrecovered
            self._unrecovered = None
            update = {"resumed_from_step": step, "recovery_seconds": max(0.0, now - failed_at)}
            self.incidents = [i.model_copy(update=update) if i.generation == generation else i for i in self.incidents]

    def _book(self, **seconds: float) -> None:
        grown = {name: getattr(self.ledger, name) + max(0.0, amount) for name, amount in seconds.items()}
        self.ledger = self.ledger.model_copy(update=grown)

    # What a replaced coordinator learns from the members

    def standing(self) -> Standing:
        first_step_at = max(0.0, self.first_step_at + self.epoch) if self.first_step_at is not None else None
        return Standing(checkpoint=self.checkpoint, ledger=self.ledger, first_step_at=first_step_at)

    def learn(self, hello: Hello, now: float) -> None:
        standing, ledger = hello.standing, hello.standing.ledger
        if len(hello.incidents) > len(self.incidents):
            self.incidents = list(hello.incidents)
        self.ledger = Ledger(
            **{name: max(getattr(self.ledger, name), getattr(ledger, name)) for name in Ledger.model_fields}
        )
        known = [c for c in (self.checkpoint, standing.checkpoint) if c is not None]
        if known and not self._heard_of_checkpoint:
            self.checkpoint = max(known, key=lambda checkpoint: (checkpoint.step, checkpoint.saved_at))
        if standing.first_step_at is None or self._made_a_step:
            return
        first_step_at = standing.first_step_at - self.epoch
        if self.first_step_at is None:  # we took this gang over: its pod of index 0 was replaced
            self.first_step_at = first_step_at
            self._standstill = now - hello.parted_seconds
            self._in_place = False
            self._track.reached(0, first_step_at)
        if self.checkpoint is not None:
            self._track.reached(self.checkpoint.step, self.checkpoint.saved_at - self.epoch)
        self._track.reached(hello.step, now - hello.parted_seconds)

    @property
    def made_a_step(self) -> bool:
        """In this generation."""
        return self._made_a_step

    @property
    def furthest(self) -> int:
        """Step of any rank: how far the attempt came before it was last stopped, or is by now."""
        return self._track.furthest

    @property
    def has_ended(self) -> bool:
        """By its own account."""
        newest = self._newest
        if newest is None:
            return False
        return newest.phase is RunPhase.DONE or 0 < newest.total_steps <= newest.step

    @property
    def step(self) -> int:
        """Of rank 0, which is the gang's; without a word from it, the furthest of any rank."""
        return self._step if self._newest is not None else self._track.furthest

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
            first_step_at=self.standing().first_step_at,
            checkpoint=self.checkpoint,
            checkpoint_error=newest.checkpoint_error if newest is not None else None,
            ledger=self.ledger,
        )

    def _steps_per_second(self) -> float:
        if len(self._pace) < 2:
            return 0.0
        (began, first), (ended, last) = self._pace[0], self._pace[-1]
        return round((last - first) / (ended - began), 4) if ended > began else 0.0


def _bounded(incidents: Sequence[Incident]) -> list[Incident]:
    """They travel in one line, and in one answer to the controller: the oldest logs go first."""
    bounded = list(incidents)
    for number, incident in enumerate(incidents):
        if sum(len(i.model_dump_json().encode()) for i in bounded) <= INCIDENTS_BYTES:
            break
        bounded[number] = incident.model_copy(update={"log": None})
    return bounded
