"""One launcher as a member of its gang: finds the coordinator, runs the ranks it is told to, tells what became of them.

Pure, like the coordinator: `handle(event, now)` returns commands. A member has ranks only while it has a coordinator.

    SEARCHING ─ connected ─▶ IDLE ─ start ─▶ RUNNING ─ stop ─▶ KILLING ─ reaped ─▶ IDLE
        ▲                     │                 │ coordinator lost     │
        └─────────────────────┴─── reaped ── ABANDONING ◀──────────────┘
"""

from dataclasses import dataclass, field
from enum import Enum

from bigmodel.api.names import gang_token
from bigmodel.api.progress import ArtifactSummary, CheckpointSummary, Incident, RankReport
from bigmodel.api.run import RestartCounts
from bigmodel.launcher.message import (
    FAILURES,
    HEARTBEAT_SECONDS,
    LEASE_SECONDS,
    Announcement,
    Beat,
    CoordinatorMessage,
    Done,
    Exit,
    Failed,
    Fenced,
    Heartbeat,
    Hello,
    Leaving,
    Message,
    RankFailure,
    RankStack,
    Refused,
    Save,
    Standing,
    Start,
    Stop,
    Stopped,
)

RECONNECT_SECONDS = 0.1
STACKS_SECONDS = 1.0  # between asking the ranks where they are and killing them
REAP_SECONDS = 30.0  # a killed process that stays that long is stuck in the kernel: the node is suspect
SPARE_SECONDS = 10.0  # of the grace period, to report and exit in
EXIT_FENCED = 78
EXIT_NOT_REAPED = 75
EXIT_ALONE = 75
EXIT_TERMINATED = 143


@dataclass(frozen=True)
class Place:
    """Who this launcher is."""

    uid: str
    attempt: int
    index: int
    incarnation: int
    processes: int
    grace_seconds: float
    start_deadline_seconds: float

    @property
    def token(self) -> str:
        return gang_token(self.uid, self.attempt)

    @property
    def patience_seconds(self) -> float:
        """How long after SIGTERM the ranks may still save: never longer than the grace period minus what we need
        ourselves."""
        return max(self.grace_seconds - SPARE_SECONDS, self.grace_seconds / 2)


# Events


@dataclass(frozen=True)
class Ready:
    """The fork server has imported what ranks need, or never will."""


@dataclass(frozen=True)
class Connected:
    pass


@dataclass(frozen=True)
class Disconnected:
    """Also: could not connect."""


@dataclass(frozen=True)
class Received:
    message: CoordinatorMessage


@dataclass(frozen=True)
class Announced:
    announcement: Announcement


@dataclass(frozen=True)
class Reported:
    report: RankReport


@dataclass(frozen=True)
class RankEnded:
    """`failure` is None when it ended with 0."""

    generation: int
    rank: int
    failure: RankFailure | None


@dataclass(frozen=True)
class Reaped:
    """No process of that generation is left: ranks and whatever they started."""

    generation: int


@dataclass(frozen=True)
class StacksTaken:
    stacks: tuple[RankStack, ...]


@dataclass(frozen=True)
class Terminating:
    """SIGTERM. A second one does not wait."""


@dataclass(frozen=True)
class SaveWanted:
    """Somebody asked by HTTP."""


@dataclass(frozen=True)
class Tick:
    pass


Event = (
    Ready
    | Connected
    | Disconnected
    | Received
    | Announced
    | Reported
    | RankEnded
    | Reaped
    | StacksTaken
    | Terminating
    | SaveWanted
    | Tick
)


# Commands


@dataclass(frozen=True)
class Connect:
    """`address` is host:port; None: what DNS says of index 0."""

    address: str | None


@dataclass(frozen=True)
class Disconnect:
    pass


@dataclass(frozen=True)
class Send:
    message: Message


@dataclass(frozen=True)
class StartRanks:
    generation: int
    env: dict[str, str]


@dataclass(frozen=True)
class TakeStacks:
    """Ask every rank where it is; StacksTaken follows within STACKS_SECONDS."""


@dataclass(frozen=True)
class KillRanks:
    """With SIGKILL, by process group; Reaped follows."""


@dataclass(frozen=True)
class NotifyRanks:
    leave: bool


@dataclass(frozen=True)
class Leave:
    """End this process with that outcome."""

    outcome: Exit


Command = Connect | Disconnect | Send | StartRanks | TakeStacks | KillRanks | NotifyRanks | Leave


class State(Enum):
    SEARCHING = "searching"
    IDLE = "idle"
    RUNNING = "running"
    KILLING = "killing"
    ABANDONING = "abandoning"  # killing, with nobody to tell


@dataclass
class _Rank:
    report: RankReport
    moved_at: float


@dataclass
class Member:
    place: Place
    started_at: float
    ready: bool = True  # ranks would start at once: a rank that is quicker than others waits for them, and may time out
    state: State = State.SEARCHING
    generation: int = 0
    spent: RestartCounts = field(default_factory=RestartCounts)
    incidents: list[Incident] = field(default_factory=list)
    standing: Standing = field(default_factory=Standing)
    _coordinator: Announcement | None = None  # the latest we heard of
    _following: int = -1  # incarnation of the one we are connected to, once it said so
    _attempts: int = 0
    _connecting: bool = False
    _tried_at: float = float("-inf")
    _heard_at: float = 0.0
    _beaten_at: float = float("-inf")
    _ticked_at: float = field(init=False)
    _ranks: dict[int, _Rank] = field(default_factory=dict)
    _running: set[int] = field(default_factory=set)
    _failures: list[tuple[RankFailure, float]] = field(default_factory=list)
    _stacks: tuple[RankStack, ...] = ()
    _artifact: ArtifactSummary | None = None
    _checkpoint: CheckpointSummary | None = None  # the newest that our rank 0 told in this generation
    _furthest: int = 0  # step of any rank of ours, in this generation
    _led_at: float = 0.0  # when a coordinator last said anything
    _kill_at: float | None = None  # stacks are being taken
    _killed_at: float | None = None
    _leave_at: float | None = None  # set by SIGTERM

    def __post_init__(self) -> None:
        self._ticked_at = self.started_at

    def handle(self, event: Event, now: float) -> list[Command]:
        match event:
            case Ready():
                self.ready = True
                return []
            case Connected():
                return self._connected(now)
            case Disconnected():
                return self._disconnected(now)
            case Received(message):
                return self._received(message, now) if self._is_connected else []
            case Announced(announcement):
                return self._announced(announcement, now)
            case Reported(report):
                return self._reported(report, now)
            case RankEnded(generation, rank, failure):
                return self._rank_ended(rank, failure, now) if generation == self.generation else []
            case Reaped(generation):
                return self._reaped(now) if generation == self.generation else []
            case StacksTaken(stacks):
                if self.state is State.KILLING:  # else the ranks were quicker, and these are of a life that is over
                    self._stacks = stacks
                return []
            case Terminating():
                return self._terminating(now)
            case SaveWanted():
                return [Send(Save())] if self.state is State.RUNNING else []
            case Tick():
                return self._tick(now)

    def follows(self, announcement: Announcement) -> bool:
        """False: that coordinator was replaced by one that we know."""
        return announcement.incarnation >= self._highest_coordinator

    @property
    def _highest_coordinator(self) -> int:
        return max(self._following, self._coordinator.incarnation if self._coordinator else 0)

    @property
    def _is_connected(self) -> bool:
        return self.state in (State.IDLE, State.RUNNING, State.KILLING)

    # The coordinator

    def _connected(self, now: float) -> list[Command]:
        self._connecting = False
        self.state = State.IDLE
        self._heard_at = self._beaten_at = now
        hello = Hello(
            token=self.place.token,
            index=self.place.index,
            incarnation=self.place.incarnation,
            attempt=self.place.attempt,
            generation=self.generation,
            processes=self.place.processes,
            coordinator_incarnation=self._highest_coordinator,
            spent=self.spent,
            incidents=self.incidents,
            standing=self.standing,
            step=self._furthest,
            parted_seconds=max(0.0, now - self._led_at) if self.generation else 0.0,
        )
        return [Send(hello)]

    def _disconnected(self, now: float) -> list[Command]:
        self._connecting = False
        match self.state:
            case State.RUNNING:
                self.state = State.ABANDONING
                return self._kill(now)
            case State.KILLING:
                self.state = State.ABANDONING
                return self._kill(now)
            case State.IDLE:
                self.state = State.SEARCHING
        return []

    def _drop_coordinator(self, now: float) -> list[Command]:
        return [Disconnect(), *self._disconnected(now)]

    def _announced(self, announcement: Announcement, now: float) -> list[Command]:
        if announcement.token != self.place.token or not self.follows(announcement):
            return []
        self._coordinator = announcement
        self._attempts = 0
        return self._drop_coordinator(now) if self._is_connected and announcement.incarnation > self._following else []

    def _received(self, message: CoordinatorMessage, now: float) -> list[Command]:
        self._heard_at = now
        match message:
            case Heartbeat(incarnation=incarnation, standing=standing):
                self._following = max(self._following, incarnation)
                self._led_at = now
                self.standing = standing or self.standing
            case Start():
                return self._start(message)
            case Stop(generation=generation, stacks=stacks) if generation == self.generation:
                return self._stop(stacks, now)
            case Save(leave=leave) if self.state is State.RUNNING:
                return [NotifyRanks(leave)]
            case Fenced(reason=reason):
                return [Leave(Exit(code=EXIT_FENCED, reason="Fenced", message=reason))]
            case Refused():
                return self._drop_coordinator(now)
            case Exit():
                return [Send(Leaving()), Leave(message)]
        return []

    # Ranks

    def _start(self, start: Start) -> list[Command]:
        if self.state is not State.IDLE or start.generation <= self.generation:
            return []
        self.state = State.RUNNING
        self.generation = start.generation
        self.spent = start.spent
        self.incidents = start.incidents
        self.standing = start.standing
        first = self.place.index * self.place.processes
        self._running = set(range(first, first + self.place.processes))
        self._ranks.clear()
        self._failures.clear()
        self._stacks = ()
        self._artifact = self._checkpoint = None
        self._furthest = 0
        return [StartRanks(start.generation, start.env)]

    def _stop(self, stacks: bool, now: float) -> list[Command]:
        if self.state is State.IDLE:  # all ranks had ended by themselves
            return [Send(self._stopped(now))]
        if self.state is not State.RUNNING:
            return []
        self.state = State.KILLING
        if stacks:
            self._kill_at = now + STACKS_SECONDS
            return [TakeStacks()]
        return self._kill(now)

    def _kill(self, now: float) -> list[Command]:
        self._kill_at = None
        self._killed_at = self._killed_at if self._killed_at is not None else now
        return [KillRanks()]

    def _reported(self, report: RankReport, now: float) -> list[Command]:
        if report.generation != self.generation or report.rank not in self._running:
            return []
        before = self._ranks.get(report.rank)
        if before is not None and (before.report.step, before.report.phase) == (report.step, report.phase):
            moved_at = before.moved_at
        else:
            moved_at = now
        self._furthest = max(self._furthest, report.step)
        news = before is None or before.report.phase is not report.phase
        if report.rank == 0:
            self._artifact = report.artifact or self._artifact
            news = news or report.checkpoint is not None
            # A rank tells its checkpoint once, and the next step may come before the next heartbeat.
            self._checkpoint = report.checkpoint or self._checkpoint
        # The artefact goes up once, in Done: it would be most of every heartbeat.
        report = report.model_copy(update={"artifact": None, "checkpoint": self._checkpoint})
        self._ranks[report.rank] = _Rank(report, moved_at)
        return [Send(Heartbeat(beats=self._beats(now)))] if news and self._is_connected else []

    def _rank_ended(self, rank: int, failure: RankFailure | None, now: float) -> list[Command]:
        self._running.discard(rank)
        beats = self._beats(now)  # with its own last step
        if rank != 0:  # rank 0's last word is the gang's; nothing more is expected of the others
            self._ranks.pop(rank, None)
        if self.state is not State.RUNNING:
            return []  # we killed it
        if failure is None:
            return []
        self._failures.append((failure, now))
        if len(self._failures) == 1:
            return [Send(Failed(generation=self.generation, failure=failure, beats=beats))]
        return []

    def _reaped(self, now: float) -> list[Command]:
        self._kill_at = self._killed_at = None
        leaving = self._leave_at is not None and now >= self._leave_at
        if leaving:
            return [Leave(self._terminated())]
        match self.state:
            case State.ABANDONING:
                self.state = State.SEARCHING
                return [Leave(self._terminated())] if self._leave_at is not None else []
            case State.KILLING:
                self.state = State.IDLE
                return [Send(self._stopped(now))]
            case State.RUNNING:  # all ended by themselves
                self.state = State.IDLE
                if self._failures or self._running:
                    return [Send(self._stopped(now))]
                done = Done(generation=self.generation, artifact=self._artifact, beats=self._beats(now))
                return [Send(done)]
        return []

    def _stopped(self, now: float) -> Stopped:
        """Only one of them brings all its evidence: a line is not endless."""
        own = [failure for failure, _ in self._failures if not failure.connection_error]
        first = own[0] if own else self._failures[0][0] if self._failures else None
        failures = [
            failure.model_copy(
                update={"age_seconds": now - at} | ({} if failure is first else {"traceback": None, "log": None})
            )
            for failure, at in sorted(self._failures, key=lambda failed: failed[0] is not first)[:FAILURES]
        ]
        return Stopped(generation=self.generation, failures=failures, stacks=list(self._stacks))

    def _beats(self, now: float) -> list[Beat]:
        return [
            Beat(report=rank.report, idle_seconds=max(0.0, now - rank.moved_at) if number in self._running else 0.0)
            for number, rank in sorted(self._ranks.items())
        ]

    # The end

    def _terminating(self, now: float) -> list[Command]:
        if self._leave_at is not None:
            self._leave_at = now
            return self._expire(now)
        self._leave_at = now + self.place.patience_seconds
        if self._is_connected:
            return [Send(Leaving())]  # the coordinator lets us go once the gang has saved
        return [Leave(self._terminated())] if self.state is State.SEARCHING else []

    def _expire(self, now: float) -> list[Command]:
        """The grace period is over for the ranks."""
        if self.state in (State.SEARCHING, State.IDLE):
            return [Leave(self._terminated())]
        return self._kill(now) if self._killed_at is None else []

    def _terminated(self) -> Exit:
        return Exit(code=EXIT_TERMINATED, reason="Terminated", message="the pod was told to stop")

    # Time

    def _tick(self, now: float) -> list[Command]:
        paused = now - self._ticked_at
        self._ticked_at = now
        if paused > HEARTBEAT_SECONDS:  # this process did not run: it has no right to call others silent for that time
            self._heard_at = min(now, self._heard_at + paused)
            self._led_at = min(now, self._led_at + paused)
            for rank in self._ranks.values():
                rank.moved_at = min(now, rank.moved_at + paused)
        commands: list[Command] = []
        if self._leave_at is not None and now >= self._leave_at:
            commands += self._expire(now)
        if self._kill_at is not None and now >= self._kill_at:
            commands += self._kill(now)
        if self._killed_at is not None and now - self._killed_at > REAP_SECONDS:
            message = f"ranks are still there {REAP_SECONDS:.0f} s after SIGKILL: look at this node"
            return [*commands, Leave(Exit(code=EXIT_NOT_REAPED, reason="NotReaped", message=message))]
        if self._is_connected:
            if now - self._heard_at > LEASE_SECONDS:
                return commands + self._drop_coordinator(now)
            if now - self._beaten_at >= HEARTBEAT_SECONDS:
                self._beaten_at = now
                commands.append(Send(Heartbeat(beats=self._beats(now))))
        if self.state is State.SEARCHING and self.generation and (alone := self._alone(now)):
            return [*commands, alone]
        searching = self.state is State.SEARCHING and self.ready and not self._connecting
        if searching and now - self._tried_at >= RECONNECT_SECONDS:
            commands.append(self._connect(now))
        return commands

    def _alone(self, now: float) -> Leave | None:
        """A coordinator that we had is not replaced in time, or is gone for good: the gang may have ended without us.
        One that we never met may wait for its node, which its controller knows better than we do."""
        limit = self.place.start_deadline_seconds
        if now - self._led_at <= limit:
            return None
        message = (
            f"index {self.place.index} lost index 0 and did not find it again in {limit:.0f} s"
            " (spec.scheduling.startDeadlineSeconds)"
        )
        return Leave(Exit(code=EXIT_ALONE, reason="CoordinatorLost", message=message))

    def _connect(self, now: float) -> Connect:
        """The announced address first, DNS every other time: either of them may be out of date."""
        self._connecting = True
        self._tried_at = now
        self._attempts += 1
        announced = self._coordinator is not None and self._attempts % 2 == 1
        return Connect(self._coordinator.address if announced and self._coordinator else None)
