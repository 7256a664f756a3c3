"""A whole gang in virtual time: the real member and coordinator state machines, and everything around them made up.

Made up: the clock, TCP connections with latency, resets and silent losses, DNS that is late, rank processes that step
together, die of each other and exit, launchers that are paused, killed, replaced and told to stop.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bigmodel.api.progress import ArtifactSummary, RankReport, RunPhase
from bigmodel.launcher import coordinator as coordination
from bigmodel.launcher import member as membership
from bigmodel.launcher.coordinator import Coordinator, Gang
from bigmodel.launcher.member import Member, Place
from bigmodel.launcher.message import Announcement, Exit, Message, RankFailure, RankStack, decode, encode

ARTIFACT = ArtifactSummary(uri="file:///a", digest="sha256:" + "0" * 64, size_bytes=1, variant="default")
TICK_SECONDS = 0.1
STEP_SECONDS = 0.2
DNS_SECONDS = 5.0


@dataclass
class Rank:
    number: int
    generation: int
    launcher: "Launcher"
    step: int
    trained: bool = False
    hangs: bool = False
    alive: bool = True


@dataclass
class Wire:
    """One connection; `ends` hang up for themselves."""

    number: int
    member: "Launcher"
    coordinator: "Launcher"
    open: dict[str, bool] = field(default_factory=lambda: {"member": True, "coordinator": True})
    arrives_at: dict[str, float] = field(default_factory=lambda: {"member": 0.0, "coordinator": 0.0})


class Launcher:
    def __init__(self, world: "World", index: int, incarnation: int) -> None:
        self.world = world
        self.index = index
        self.incarnation = incarnation
        self.place = Place(world.gang.uid, 1, index, incarnation, world.processes, world.grace_seconds, 900)
        self.member = Member(self.place, world.now)
        self.coordinator: Coordinator | None = None
        if index == 0:
            gang = Gang(**(vars(world.gang) | {"incarnation": incarnation}))
            self.coordinator = Coordinator(gang, epoch=0.0, started_at=world.now)
        self.wire: Wire | None = None
        self.outcome: Exit | None = None
        self.decided_at = self.exited_at = 0.0
        self.paused_until = 0.0
        self.unreachable_until = 0.0
        self.told_to_stop_at: float | None = None
        world.after(0.0, self.tick)

    @property
    def alive(self) -> bool:
        return self.outcome is None

    def tick(self) -> None:
        if self.alive:
            self.to_member(membership.Tick())
            self.to_coordinator(coordination.Tick())
            self.world.after(TICK_SECONDS, self.tick)

    def when_awake(self, act: Callable[[], None]) -> bool:
        """A stopped process finds everything in its buffers when it goes on. True: it is stopped, `act` will come."""
        if self.alive and self.world.now < self.paused_until:
            self.world.at(self.paused_until, act)
            return True
        return False

    # Events in, commands out

    def to_member(self, event: membership.Event) -> None:
        if not self.alive or self.when_awake(lambda: self.to_member(event)):
            return
        for command in self.member.handle(event, self.world.now):
            if self.alive:
                self.do(command)

    def to_coordinator(self, event: coordination.Event) -> None:
        if not self.alive or self.coordinator is None or self.when_awake(lambda: self.to_coordinator(event)):
            return
        for command in self.coordinator.handle(event, self.world.now):
            if self.alive:
                self.do_coordinate(command)

    def do(self, command: membership.Command) -> None:
        world = self.world
        match command:
            case membership.Connect(address):
                world.connect(self, address)
            case membership.Disconnect():
                if self.wire is not None:
                    world.hang_up(self.wire, "member")
                    self.wire = None
            case membership.Send(message):
                if self.wire is not None:
                    world.send(self.wire, "coordinator", message)
            case membership.StartRanks(generation, _):
                world.start_ranks(self, generation)
            case membership.TakeStacks():
                stacks = tuple(RankStack(rank=r.number, stopped=r.hangs) for r in world.ranks_of(self))
                world.after(0.8, lambda: self.to_member(membership.StacksTaken(stacks)))
            case membership.KillRanks():
                world.kill_ranks(self)
            case membership.NotifyRanks(leave):
                for rank in world.ranks_of(self) if leave else []:
                    if not rank.hangs:
                        world.after(0.05, lambda rank=rank: world.end_rank(rank, 143))
            case membership.Leave(outcome):
                self.leave(outcome)

    def do_coordinate(self, command: coordination.Command) -> None:
        world = self.world
        match command:
            case coordination.Send(connection, message):
                world.send(world.wires[connection], "member", message)
            case coordination.Close(connection):
                world.hang_up(world.wires[connection], "coordinator")
            case coordination.OpenStore(generation):
                world.after(0.01, lambda: self.to_coordinator(coordination.StoreListens(generation, 4711)))
            case coordination.Announce(indexes):
                for index in indexes:
                    world.announce(self, index)
            case coordination.Decided():
                self.decided_at = world.now
            case coordination.Leave(outcome):
                self.leave(outcome)

    def leave(self, outcome: Exit) -> None:
        self.world.end_launcher(self, outcome, silently=False)


class World:
    def __init__(
        self, nodes: int, seed: int, steps: int, gang: Gang, grace_seconds: float = 30.0, processes: int = 1
    ) -> None:
        self.now = 0.0
        self.gang = gang
        self.processes = processes
        self.grace_seconds = grace_seconds
        self.steps = steps
        self.random = random.Random(seed)
        self.launchers: dict[int, Launcher] = {}
        self.ranks: list[Rank] = []
        self.wires: dict[int, Wire] = {}
        self.checkpoint = 0
        self.generations: list[int] = []  # in the order their first rank started
        self.dns: list[Launcher] = []  # (the newest entry of index 0 is last)
        self.ended: list[Launcher] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        for index in range(nodes):
            self.after(self.random.uniform(0, 3), lambda index=index: self.launch(index, 0))
        self.after(STEP_SECONDS, self._step)

    # Time

    def at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(time, self.now), next(self._order), act))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.at(self.now + seconds, act)

    def run_until(self, time: float, done: Callable[[], bool] = lambda: False) -> None:
        while self._events and self._events[0][0] <= time and not done():
            self.now, _, act = heapq.heappop(self._events)
            act()
            self.check()
        if not done():
            self.now = time

    def check(self) -> None:
        """At no time do ranks of two generations live side by side."""
        alive = {rank.generation for rank in self.ranks}
        assert len(alive) <= 1, f"generations {alive} side by side at {self.now:.3f} s"

    # Launchers

    def launch(self, index: int, incarnation: int) -> None:
        launcher = Launcher(self, index, incarnation)
        self.launchers[index] = launcher
        if index == 0:
            if self.dns:
                self.after(DNS_SECONDS, lambda: self.dns.append(launcher))
            else:
                self.dns.append(launcher)

    def end_launcher(self, launcher: Launcher, outcome: Exit, silently: bool) -> None:
        """With all its processes. `silently`: its node is gone, so nobody gets a reset."""
        launcher.outcome = outcome
        launcher.exited_at = self.now
        self.ended.append(launcher)
        for rank in self.ranks_of(launcher):
            self._bury(rank)
        for wire in self.wires.values():
            for end, owner in (("member", wire.member), ("coordinator", wire.coordinator)):
                if owner is launcher and wire.open[end]:
                    if silently:
                        wire.open[end] = False
                    else:
                        self.hang_up(wire, end)

    def replace(self, index: int, seconds: float) -> None:
        successor = self.launchers[index].incarnation + 1
        self.after(seconds, lambda: self.launch(index, successor))

    @property
    def finished(self) -> bool:
        """Every index has a launcher that ended with 0."""
        codes = [launcher.outcome.code for launcher in self.launchers.values() if launcher.outcome is not None]
        return codes == [0] * self.gang.nodes

    # Ranks

    def ranks_of(self, launcher: Launcher) -> list[Rank]:
        return [rank for rank in self.ranks if rank.launcher is launcher]

    def start_ranks(self, launcher: Launcher, generation: int) -> None:
        if generation not in self.generations[-1:]:
            assert not self.generations or generation > self.generations[-1], "generations only grow"
            self.generations.append(generation)
        first = launcher.index * self.processes
        for number in range(first, first + self.processes):
            self.ranks.append(Rank(number, generation, launcher, self.checkpoint))
            self._report(self.ranks[-1], RunPhase.STARTING)

    def end_rank(self, rank: Rank, code: int, connection_error: bool = False) -> None:
        """It ends by itself, or somebody kills it who is not its launcher."""
        if rank not in self.ranks:
            return
        self._bury(rank)
        failure = None
        if code:
            failure = RankFailure(
                rank=rank.number, exit_code=code, message=f"exit {code}", connection_error=connection_error
            )
        launcher = rank.launcher
        launcher.to_member(membership.RankEnded(rank.generation, rank.number, failure))
        if not any(other.generation == rank.generation for other in self.ranks_of(launcher)):
            self.after(0.005, lambda: launcher.to_member(membership.Reaped(rank.generation)))
        if code:
            for other in self.ranks:
                if other.generation == rank.generation and not other.hangs:
                    self.after(0.02, lambda other=other: self.end_rank(other, 1, connection_error=True))

    def kill_ranks(self, launcher: Launcher) -> None:
        generation = launcher.member.generation
        for rank in self.ranks_of(launcher):
            self._bury(rank)
        self.after(0.01, lambda: launcher.to_member(membership.Reaped(generation)))

    def _bury(self, rank: Rank) -> None:
        rank.alive = False
        self.ranks.remove(rank)

    def _step(self) -> None:
        """All ranks of a complete generation step together; one that hangs holds all."""
        self.after(STEP_SECONDS, self._step)
        complete = len(self.ranks) == self.gang.nodes * self.processes and not any(rank.hangs for rank in self.ranks)
        if not complete:
            return
        for rank in list(self.ranks):
            rank.step += 1
            rank.trained = True
            self._report(rank, RunPhase.TRAINING)
        self.checkpoint = max(self.checkpoint, self.ranks[0].step)
        if self.checkpoint >= self.steps:
            for rank in list(self.ranks):
                self._report(rank, RunPhase.DONE, ARTIFACT if rank.number == 0 else None)
                self.end_rank(rank, 0)

    def _report(self, rank: Rank, phase: RunPhase, artifact: ArtifactSummary | None = None) -> None:
        report = RankReport(
            rank=rank.number,
            generation=rank.generation,
            phase=phase,
            step=rank.step,
            in_collective=not rank.hangs,
            artifact=artifact,
        )
        rank.launcher.to_member(membership.Reported(report))

    # The network

    def reachable(self, *launchers: Launcher) -> bool:
        return all(launcher.alive and launcher.unreachable_until <= self.now for launcher in launchers)

    def connect(self, launcher: Launcher, address: str | None) -> None:
        if launcher.index == 0:
            target = launcher
        elif address is not None:
            target = next(c for c in [*self.launchers.values(), *self.ended] if _address(c) == address)
        else:
            target = self.dns[-1] if self.dns else None
        if target is None or not self.reachable(target, launcher) or target.coordinator is None:
            self.after(
                self.random.choice([0.001, 1.0]),
                lambda: launcher.to_member(membership.Disconnected()),
            )
            return

        def connected() -> None:
            if not self.reachable(target, launcher):
                launcher.to_member(membership.Disconnected())
                return
            wire = Wire(len(self.wires), launcher, target)
            self.wires[wire.number] = wire
            launcher.wire = wire
            launcher.to_member(membership.Connected())

        self.after(self._latency(), connected)

    def send(self, wire: Wire, to: str, message: Message) -> None:
        sender = "coordinator" if to == "member" else "member"
        if wire.open[sender]:
            line = encode(message)  # what cannot be sent in reality cannot be sent here
            self._deliver(wire, to, lambda: self._receive(wire, to, decode(line)))

    def hang_up(self, wire: Wire, end: str) -> None:
        """What was sent before still arrives."""
        if wire.open[end]:
            wire.open[end] = False
            other = "coordinator" if end == "member" else "member"
            self._deliver(wire, other, lambda: self._lost(wire, other))

    def _deliver(self, wire: Wire, to: str, act: Callable[[], None]) -> None:
        """In order. What meets a cut network is sent again until it comes back."""
        arrives_at = max(self.now + self._latency(), wire.arrives_at[to])
        wire.arrives_at[to] = arrives_at

        def arrive() -> None:
            until = max(wire.member.unreachable_until, wire.coordinator.unreachable_until)
            if self.now < until:
                self.at(until, arrive)
            elif wire.open[to]:
                act()

        self.at(arrives_at, arrive)

    def _receive(self, wire: Wire, to: str, message: Any) -> None:
        if to == "coordinator":
            wire.coordinator.to_coordinator(coordination.Received(wire.number, message))
        elif wire.member.wire is wire:
            wire.member.to_member(membership.Received(message))

    def _lost(self, wire: Wire, at: str) -> None:
        wire.open[at] = False
        if at == "coordinator":
            wire.coordinator.to_coordinator(coordination.Lost(wire.number))
        elif wire.member.wire is wire:
            wire.member.wire = None
            wire.member.to_member(membership.Disconnected())

    def announce(self, coordinator: Launcher, index: int) -> None:
        def arrive() -> None:
            peer = self.launchers.get(index)
            if peer is None or not self.reachable(peer, coordinator):
                return
            announcement = Announcement(
                token=coordinator.place.token,
                attempt=1,
                incarnation=coordinator.incarnation,
                address=_address(coordinator),
            )
            if peer.member.follows(announcement):
                peer.to_member(membership.Announced(announcement))
            else:
                coordinator.to_coordinator(coordination.AnnouncementAnswered())

        self.after(self._latency(), arrive)

    def _latency(self) -> float:
        return self.random.uniform(0.0005, 0.03)


def _address(launcher: Launcher) -> str:
    return f"{launcher.index}.{launcher.incarnation}:1"
