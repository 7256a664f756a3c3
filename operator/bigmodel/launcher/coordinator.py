"""The coordinator of a gang: numbers its generations, starts and ends them, decides when it is over. Lives at index 0.

Pure: `handle(event, now)` returns commands and does nothing else. `now` is a monotonic clock in seconds. A member is a
launcher, index 0's own too; a seat is the place of one member; a connection is one TCP connection, known by a number.

    GATHERING ─ every seat taken and idle ─▶ PREPARING ─ store listens ─▶ RUNNING ─ all done ─▶ ENDING
        ▲                                                                  │ │ ▲
        │                                            a member is leaving   │ ▼ │
        └── every seat idle: judge the first cause ── STOPPING ◀───────────┴─ SAVING
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from bigmodel.api.names import gang_token
from bigmodel.api.progress import ArtifactSummary, Progress
from bigmodel.api.run import Budgets, RestartCounts
from bigmodel.launcher.board import Board
from bigmodel.launcher.budget import GiveUp, Streak, after_failure
from bigmodel.launcher.culprit import EXIT_HANG, Cause, Failure, first_cause
from bigmodel.launcher.hang import HangWatch, Overdue
from bigmodel.launcher.message import (
    HEARTBEAT_SECONDS,
    LEASE_SECONDS,
    MESSAGE_BYTES,
    TRACEBACK_BYTES,
    Beat,
    Done,
    Exit,
    Failed,
    Fenced,
    Heartbeat,
    Hello,
    Leaving,
    MemberMessage,
    Message,
    RankFailure,
    RankStack,
    Refused,
    Save,
    Start,
    Stop,
    Stopped,
    head,
)

ANNOUNCE_SECONDS = 1.0
FAREWELL_SECONDS = 5.0  # index 0 goes last, but not later than this
# Generations name checkpoint paths, so none may come twice in an attempt: each life of index 0 has numbers of its own.
GENERATIONS_OF_A_LIFE = 10_000
EXIT_FENCED = 78
EXIT_INCOMPLETE = 75
EXIT_TERMINATED = 143

Connection = int


@dataclass(frozen=True)
class Gang:
    """What the coordinator knows before anybody said hello."""

    uid: str
    attempt: int
    nodes: int
    incarnation: int  # of index 0's pod
    pod_ip: str  # MASTER_ADDR: the data plane is this very pod
    budgets: Budgets
    start_deadline_seconds: float
    artifact_promised: bool
    store: bool  # ranks meet in a torch store that we serve

    @property
    def token(self) -> str:
        return gang_token(self.uid, self.attempt)


# Events


@dataclass(frozen=True)
class Received:
    connection: Connection
    message: MemberMessage


@dataclass(frozen=True)
class Lost:
    connection: Connection


@dataclass(frozen=True)
class StoreListens:
    generation: int
    port: int


@dataclass(frozen=True)
class StoreFailed:
    generation: int
    message: str


@dataclass(frozen=True)
class AnnouncementAnswered:
    """A member that we announced ourselves to follows a later coordinator."""


@dataclass(frozen=True)
class SaveWanted:
    """Somebody asked by HTTP."""


@dataclass(frozen=True)
class Tick:
    pass


Event = Received | Lost | StoreListens | StoreFailed | AnnouncementAnswered | SaveWanted | Tick


# Commands


@dataclass(frozen=True)
class Send:
    connection: Connection
    message: Message


@dataclass(frozen=True)
class Close:
    """After everything sent before."""

    connection: Connection


@dataclass(frozen=True)
class OpenStore:
    generation: int


@dataclass(frozen=True)
class CloseStore:
    pass


@dataclass(frozen=True)
class Announce:
    indexes: tuple[int, ...]


@dataclass(frozen=True)
class Decided:
    """The gang's outcome, before the others are told: write it down now."""

    outcome: Exit


@dataclass(frozen=True)
class Leave:
    """End this process with that outcome."""

    outcome: Exit


Command = Send | Close | OpenStore | CloseStore | Announce | Decided | Leave


class Phase(Enum):
    GATHERING = "gathering"
    PREPARING = "preparing"
    RUNNING = "running"
    SAVING = "saving"
    STOPPING = "stopping"
    ENDING = "ending"


@dataclass
class Seat:
    connection: Connection
    incarnation: int
    processes: int
    heard_at: float
    idle: bool = True
    done: bool = False
    leaving: bool = False
    released: bool = False


@dataclass
class _Store:
    """Of which generation, and where it listens once it does. There is at most one."""

    generation: int = 0
    port: int | None = None


@dataclass
class Coordinator:
    gang: Gang
    epoch: float  # seconds since 1970 at monotonic 0
    started_at: float
    phase: Phase = Phase.GATHERING
    generation: int = 0
    spent: RestartCounts = field(init=False)
    board: Board = field(init=False)
    artifact: ArtifactSummary | None = None
    seats: dict[int, Seat] = field(default_factory=dict)
    outcome: Exit | None = None
    _incarnations: dict[int, int] = field(default_factory=dict)  # highest ever seen, by index
    _watch: HangWatch = field(init=False)
    _failures: list[Failure] = field(default_factory=list)
    _stacks: list[RankStack] = field(default_factory=list)
    _overdue: Overdue | None = None  # of the generation, if it hung
    _overriding: Failure | None = None  # why we ended the generation ourselves; what ranks died of then is our doing
    _store: _Store = field(default_factory=_Store)
    _streak: Streak = field(default_factory=Streak)
    _has_led: bool = False  # a generation began in this life of index 0
    _not_before: float = 0.0
    _processes: int = 1  # of each index
    _beaten_at: float = field(init=False)
    _announced_at: float = field(init=False)
    _ticked_at: float = field(init=False)
    _ends_at: float = 0.0
    _untold: set[int] = field(default_factory=set)  # indexes that did not say yet that they heard the outcome

    def __post_init__(self) -> None:
        self.spent = self.gang.budgets.spent
        self.board = Board(self.gang.uid, self.gang.attempt, self.epoch)
        self._watch = self._new_watch(self.started_at)
        self._beaten_at = self._announced_at = self._ticked_at = self.started_at

    def handle(self, event: Event, now: float) -> list[Command]:
        match event:
            case Received(connection, Hello() as hello):
                return self._hello(connection, hello, now)
            case Received(connection, message):
                index = self._index_of(connection)
                return self._message(index, message, now) if index is not None else []
            case Lost(connection):
                index = self._index_of(connection)
                return self._lost(index, f"the launcher of index {index} hung up", now) if index is not None else []
            case StoreListens(generation, port):
                return self._store_listens(generation, port, now)
            case StoreFailed(generation, message):
                return self._store_failed(generation, message, now)
            case AnnouncementAnswered():
                return self._fenced("a member follows a later coordinator")
            case SaveWanted():
                return self._to_all(Save()) if self.phase is Phase.RUNNING else []
            case Tick():
                return self._tick(now)

    def progress(self) -> Progress:
        return self.board.progress(self.generation, self.spent)

    # Members come and go

    def _hello(self, connection: Connection, hello: Hello, now: float) -> list[Command]:
        gang = self.gang
        if hello.token != gang.token:
            if hello.token != gang_token(gang.uid, hello.attempt):
                return _turn_away(connection, Refused(reason="the token is of another gang"))
            if hello.attempt < gang.attempt:
                return _turn_away(connection, Fenced(reason=f"attempt {hello.attempt} is over, this is {gang.attempt}"))
            return self._fenced(f"attempt {hello.attempt} has begun, this is {gang.attempt}")
        if hello.index >= gang.nodes:
            return _turn_away(connection, Refused(reason=f"index {hello.index} of a gang of {gang.nodes}"))
        if hello.coordinator_incarnation > gang.incarnation:
            return self._fenced(f"incarnation {hello.coordinator_incarnation} of index 0 coordinates now")
        highest = self._incarnations.get(hello.index, 0)
        if hello.incarnation < highest:
            reason = f"incarnation {hello.incarnation} of index {hello.index} was replaced by incarnation {highest}"
            return _turn_away(connection, Fenced(reason=reason))
        commands: list[Command] = []
        if hello.incarnation > highest:
            self.board.pod_replaced()
        self._incarnations[hello.index] = hello.incarnation
        seat = self.seats.get(hello.index)
        heard_at = seat.heard_at if seat is not None else now
        if seat is not None:
            if hello.incarnation > seat.incarnation:
                fenced = Fenced(reason=f"incarnation {hello.incarnation} of index {hello.index} took over")
                commands.append(Send(seat.connection, fenced))
            commands.append(Close(seat.connection))
            del self.seats[hello.index]
        message = f"the launcher of index {hello.index} came anew"
        commands += self._end_generation(_pod_lost(hello.index, message, heard_at, now))
        self.seats[hello.index] = Seat(connection, hello.incarnation, hello.processes, heard_at=now)
        if self.outcome is not None:
            return [*commands, Send(connection, self.outcome)]
        self._learn(hello, now)
        commands.append(Send(connection, self._heartbeat()))
        return commands + self._advance(now)

    def _learn(self, hello: Hello, now: float) -> None:
        """A coordinator that is new to a running gang knows only what its members remember."""
        self.generation = max(self.generation, hello.generation)
        self.spent = RestartCounts(
            program=max(self.spent.program, hello.spent.program), hang=max(self.spent.hang, hello.spent.hang)
        )
        self.board.learn(hello, now)

    def _lost(self, index: int, message: str, now: float) -> list[Command]:
        seat = self.seats.pop(index)
        commands: list[Command] = [Close(seat.connection)]
        return commands + self._end_generation(_pod_lost(index, message, seat.heard_at, now)) + self._advance(now)

    # What they say

    def _message(self, index: int, message: MemberMessage, now: float) -> list[Command]:
        seat = self.seats[index]
        seat.heard_at = now
        match message:
            case Heartbeat(beats=beats):
                self._observe(beats, now)
            case Failed(generation=generation) if generation == self.generation:
                self._observe(message.beats, now)
                failure = _failure(index, message.failure, now)
                # While the gang saves, 143 is the answer we asked for, and broken connections are its echo.
                if self.phase is Phase.SAVING and (failure.exit_code == EXIT_TERMINATED or failure.connection_error):
                    return []
                return self._end_generation(failure)
            case Stopped(generation=generation) if generation == self.generation:
                seat.idle = True
                if self.phase is not Phase.ENDING:
                    self._failures += [_failure(index, failure, now) for failure in message.failures]
                    self._stacks += message.stacks
            case Done(generation=generation) if generation == self.generation:
                self._observe(message.beats, now)
                for rank in range(index * self._processes, (index + 1) * self._processes):
                    self._watch.finished(rank)
                seat.idle = seat.done = True
                if index == 0:
                    self.artifact = message.artifact
            case Leaving():
                return self._leaving(index, now)
            case Save():
                return self._to_all(Save()) if self.phase is Phase.RUNNING else []
            case _:  # of a generation that is over
                pass
        return self._advance(now)

    def _observe(self, beats: Sequence[Beat], now: float) -> None:
        for beat in beats:
            if beat.report.generation == self.generation and self.phase in (Phase.RUNNING, Phase.SAVING):
                self._watch.observe(beat, now)
                self.board.observe(beat, now)
            elif beat.report.generation == self.generation:
                self.board.saved(beat.report)

    def _leaving(self, index: int, now: float) -> list[Command]:
        self._untold.discard(index)
        self.seats[index].leaving = True
        leaving = Failure(Cause.LEAVING, now, index, EXIT_TERMINATED, f"the pod of index {index} was told to stop")
        # A recipe that made no step has nothing to save, and its ranks read no notice yet.
        if self.phase is Phase.RUNNING and (self.board.made_a_step or not self.gang.artifact_promised):
            self.phase = Phase.SAVING
            self._overriding = leaving
            return self._to_all(Save(leave=True))
        if self.phase is Phase.SAVING:  # as it was told already
            return self._advance(now)
        return self._end_generation(leaving) + self._advance(now)

    # Generations

    def _advance(self, now: float) -> list[Command]:
        """Whatever follows from where everybody is now."""
        commands: list[Command] = []
        idle = all(seat.idle for seat in self.seats.values())
        complete = len(self.seats) == self.gang.nodes
        all_done = complete and all(seat.done for seat in self.seats.values())
        # Ranks that were told to leave may save and call it 0.
        if all_done and (self.phase is Phase.RUNNING or (self.phase is Phase.SAVING and self._has_ended)):
            commands += self._all_done(now)
        if self.phase is Phase.SAVING and idle:
            self.phase = Phase.STOPPING
        if self.phase is Phase.STOPPING and idle:
            commands += self._judge(now)
        if self.phase is Phase.GATHERING:
            commands += self._let_go()
            ready = complete and idle and not any(seat.leaving for seat in self.seats.values())
            if ready and now >= self._not_before:
                commands += self._prepare(now)
        if self.phase is Phase.ENDING:
            commands += self._farewell(now)
        return commands

    def _let_go(self) -> list[Command]:
        """The gang has saved: who was told to stop may exit. Index 0 goes last, since all others need it to be told."""
        leaving = [index for index in sorted(self.seats) if self.seats[index].leaving]
        commands: list[Command] = []
        for index in leaving:
            seat = self.seats[index]
            if not seat.released and (index != 0 or leaving == [0]):
                seat.released = True
                terminated = Exit(code=EXIT_TERMINATED, reason="Terminated", checkpoint=self.board.checkpoint)
                commands.append(Send(seat.connection, terminated))
        return commands

    def _prepare(self, now: float) -> list[Command]:
        processes = {index: seat.processes for index, seat in sorted(self.seats.items())}
        if len(set(processes.values())) > 1:
            other = next(index for index, n in processes.items() if n != processes[0])
            return self._decide(
                Exit(
                    code=1,
                    reason="UnequalNodes",
                    message=f"index 0 runs {processes[0]} processes and index {other} runs {processes[other]};"
                    " set spec.processesPerNode or give every pod the same number of GPUs",
                ),
                now,
            )
        self._processes = processes[0]
        if self.generation == 0:  # a new gang, or one in which nobody is left who remembers the last generation
            self.generation = self.gang.incarnation * GENERATIONS_OF_A_LIFE
        self.generation += 1
        self.phase = Phase.PREPARING
        self._failures, self._stacks, self._overriding = [], [], None
        if not self.gang.store:
            return self._start(None, now)
        if self._store.generation != self.generation:
            return self._open_store(self.generation)
        return self._start(self._store.port, now) if self._store.port is not None else []

    def _open_store(self, generation: int) -> list[Command]:
        """It takes the place of any store before it."""
        self._store = _Store(generation)
        return [OpenStore(generation)]

    def _store_listens(self, generation: int, port: int, now: float) -> list[Command]:
        if self._store.generation != generation:
            return []
        self._store.port = port
        return self._start(port, now) if self.phase is Phase.PREPARING and self.generation == generation else []

    def _start(self, port: int | None, now: float) -> list[Command]:
        self.phase = Phase.RUNNING
        self._has_led = True
        self._watch = self._new_watch(now)
        self.board.started()
        self.artifact = None
        for seat in self.seats.values():
            seat.idle = seat.done = False
        env = {
            "MASTER_ADDR": self.gang.pod_ip,
            "TORCHELASTIC_RUN_ID": f"{self.gang.uid}-{self.gang.attempt}-{self.generation}",
            "TORCHELASTIC_RESTART_COUNT": str(self.generation - 1),
            "TORCHELASTIC_MAX_RESTARTS": str(self.gang.budgets.max_restarts),
        }
        if port is not None:
            env |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        return self._to_all(
            Start(
                generation=self.generation,
                env=env,
                spent=self.spent,
                incidents=self.board.incidents,
                standing=self.board.standing(),
            )
        )

    def _new_watch(self, now: float) -> HangWatch:
        gang = self.gang
        ranks = gang.nodes * self._processes if gang.artifact_promised else 0
        return HangWatch(gang.budgets.hang_timeout_seconds, gang.start_deadline_seconds, now, expected=ranks)

    def _store_failed(self, generation: int, message: str, now: float) -> list[Command]:
        if self._store.generation != generation:
            return []
        self._store = _Store()
        if self.phase is not Phase.PREPARING or self.generation != generation:
            return []  # it is asked for again when it is needed
        self.phase = Phase.STOPPING
        self._failures.append(Failure(Cause.PROGRAM, now, 0, exit_code=1, message=head(message, MESSAGE_BYTES)))
        return self._advance(now)

    def _end_generation(self, failure: Failure, stacks: bool = False) -> list[Command]:
        """Every rank of the gang is killed; the cause is judged when all launchers told what they saw."""
        if self.phase is Phase.STOPPING:
            self._failures.append(failure)
        if self.phase not in (Phase.PREPARING, Phase.RUNNING, Phase.SAVING):
            return []
        self.phase = Phase.STOPPING
        self._failures.append(failure)
        commands: list[Command] = [
            Send(seat.connection, Stop(generation=self.generation, stacks=stacks))
            for seat in self.seats.values()
            if not seat.idle
        ]
        # The next store starts while ranks are reaped; not beside stacks, whose ranks shall be found where they are.
        if self.gang.store and not stacks:
            commands += self._open_store(self.generation + 1)
        return commands

    def _judge(self, now: float) -> list[Command]:
        """All ranks are gone and all evidence is in."""
        self.phase = Phase.GATHERING
        failure = self._overriding or first_cause(self._failures)
        if failure.cause is Cause.HANG:
            failure = self._suspect(failure)
        if failure.cause is Cause.PROGRAM:
            self._streak = self._streak.after(failure.exit_code, self.board.furthest)
        self.board.failed(failure, self.generation)
        verdict = after_failure(failure, self._streak, self.spent, self.gang.budgets)
        if isinstance(verdict, GiveUp):
            error = failure.report()
            outcome = Exit(code=failure.exit_code, reason=verdict.reason, message=verdict.message, error=error)
            return self._decide(outcome, now)
        self.spent = verdict.spent
        self._not_before = now + verdict.pause_seconds
        return []

    def _suspect(self, hang: Failure) -> Failure:
        assert self._overdue is not None
        rank = self._watch.culprit(self._overdue, self._stacks)
        stacks = sorted(self._stacks, key=lambda stack: (stack.rank != rank, stack.rank))
        suspect = stacks[0] if stacks and stacks[0].rank == rank else RankStack(rank=rank)
        detail = "its process is stopped" if suspect.stopped else "the others wait for it"
        return replace(
            hang,
            index=rank // self._processes,
            message=f"{hang.message}; rank {rank} is the first suspect: {detail}",
            rank=rank,
            traceback=suspect.text[:TRACEBACK_BYTES] or None,
            evidence="\n".join(f"rank {stack.rank}:\n{stack.text}" for stack in stacks),
            log=suspect.log,
        )

    @property
    def _has_ended(self) -> bool:
        """All that was to be done is done, as far as a gang can tell that was also told to leave."""
        return self.artifact is not None if self.gang.artifact_promised else self.board.has_ended

    def _all_done(self, now: float) -> list[Command]:
        if self.gang.artifact_promised and self.artifact is None:
            return self._decide(
                Exit(
                    code=1,
                    reason="NoArtifact",
                    message="every rank ended with exit code 0, but rank 0 published no artefact",
                ),
                now,
            )
        told_nothing = not self.gang.artifact_promised and self.board.first_step_at is None
        message = "no step was reported" if told_nothing else None
        return self._decide(Exit(code=0, message=message, artifact=self.artifact), now)

    # The end

    def _decide(self, outcome: Exit, now: float) -> list[Command]:
        self.phase = Phase.ENDING
        outcome = self.outcome = outcome.model_copy(update={"checkpoint": self.board.checkpoint})
        self._ends_at = now + FAREWELL_SECONDS
        self._untold = set(self.seats) - {0}
        commands: list[Command] = [CloseStore()] if self.gang.store else []
        # Written down first: a pod killed from here on still tells its controller the truth.
        commands.append(Decided(outcome))
        return commands + [Send(seat.connection, outcome) for index, seat in self.seats.items() if index != 0]

    def _farewell(self, now: float) -> list[Command]:
        """Index 0 goes last: as long as it is there, a member that lost its connection can come back and be told."""
        assert self.outcome is not None
        return [Leave(self.outcome)] if not self._untold or now >= self._ends_at else []

    def _fenced(self, reason: str) -> list[Command]:
        return [Leave(Exit(code=EXIT_FENCED, reason="Fenced", message=reason))]

    # Time

    def _tick(self, now: float) -> list[Command]:
        commands: list[Command] = []
        paused = now - self._ticked_at
        self._ticked_at = now
        if paused > HEARTBEAT_SECONDS:  # this process did not run: it has no right to call others silent for that time
            for seat in self.seats.values():
                seat.heard_at = min(now, seat.heard_at + paused)
            self._watch.started_at += paused
        for index, seat in list(self.seats.items()):
            silent = now - seat.heard_at
            if silent > LEASE_SECONDS and index in self.seats:
                commands += self._lost(index, f"the launcher of index {index} was silent for {silent:.1f} s", now)
        if self.phase is Phase.RUNNING and (overdue := self._watch.overdue(now)) is not None:
            self._overdue = overdue
            self._overriding = Failure(Cause.HANG, now, 0, EXIT_HANG, overdue.message())
            commands += self._end_generation(self._overriding, stacks=True)
        if now - self._beaten_at >= HEARTBEAT_SECONDS:
            self._beaten_at = now
            commands += self._to_all(self._heartbeat())
        if now - self._announced_at >= ANNOUNCE_SECONDS and self.phase is not Phase.ENDING:
            self._announced_at = now
            if missing := tuple(index for index in range(1, self.gang.nodes) if index not in self.seats):
                commands.append(Announce(missing))
        if self.gang.incarnation and not self._has_led and now - self.started_at > self.gang.start_deadline_seconds:
            return [*commands, self._alone()]
        return commands + self._advance(now)

    def _alone(self) -> Leave:
        """Those that our predecessor led may have gone home: it may have been lost after it told them the end."""
        missing = ", ".join(str(index) for index in range(self.gang.nodes) if index not in self.seats) or "none"
        message = (
            f"index 0 was replaced, and no generation began within {self.gang.start_deadline_seconds:.0f} s"
            f" (spec.scheduling.startDeadlineSeconds); missing: index {missing}"
        )
        return Leave(Exit(code=EXIT_INCOMPLETE, reason="MembersLost", message=message))

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(incarnation=self.gang.incarnation, standing=self.board.standing())

    def _to_all(self, message: Message) -> list[Command]:
        return [Send(seat.connection, message) for seat in self.seats.values()]

    def _index_of(self, connection: Connection) -> int | None:
        return next((index for index, seat in self.seats.items() if seat.connection == connection), None)


def _pod_lost(index: int, message: str, heard_at: float, now: float) -> Failure:
    """It was there a lease before its last word, which may have waited in a buffer."""
    return Failure(Cause.LOST, now, index, exit_code=1, message=message, since=heard_at - LEASE_SECONDS)


def _turn_away(connection: Connection, message: Fenced | Refused) -> list[Command]:
    return [Send(connection, message), Close(connection)]


def _failure(index: int, failure: RankFailure, now: float) -> Failure:
    how = f"was killed by {failure.signal}" if failure.signal else f"exited with {failure.exit_code}"
    return Failure(
        Cause.PROGRAM,
        now - failure.age_seconds,
        index,
        exit_code=failure.exit_code,
        message=head(f"rank {failure.rank} (index {index}) {how}: {failure.message}", MESSAGE_BYTES),
        rank=failure.rank,
        signal=failure.signal,
        traceback=failure.traceback,
        connection_error=failure.connection_error,
        log=failure.log,
    )
