"""One launcher: its member, its coordinator if it is index 0, and the sockets, processes and files that both need, on
one loop.

Nothing is decided here. Everything that happens becomes an event of the member or the coordinator, and their commands
are carried out at once; no command waits, so events never overtake each other.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Coroutine, Mapping
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any

from bigmodel.api.progress import Notice, Progress, RankReport
from bigmodel.launcher import coordinator as coordination
from bigmodel.launcher import member as membership
from bigmodel.launcher import web
from bigmodel.launcher.board import Board
from bigmodel.launcher.connections import Link, connect
from bigmodel.launcher.coordinator import Coordinator, Gang
from bigmodel.launcher.environment import (
    TRAINER,
    RankFiles,
    process_count,
    processor_count,
    program,
    rank_environment,
    tensorflow_cluster,
)
from bigmodel.launcher.evidence import can_tell_its_stacks, rank_failure, rank_stack
from bigmodel.launcher.last_word import last_word, written
from bigmodel.launcher.member import Member, Place
from bigmodel.launcher.message import (
    LINE_BYTES,
    LOG_BYTES,
    STACKS_BYTES,
    Announcement,
    Exit,
    Fenced,
    Hello,
    Message,
    RankStack,
)
from bigmodel.launcher.output import Output
from bigmodel.launcher.processes import Processes
from bigmodel.launcher.reports import Reports
from bigmodel.launcher.settings import Settings

TICK_SECONDS = 0.1
ANSWER_STACKS_SECONDS = 0.3
ANNOUNCE_AT_ONCE = 32  # connections
LOGS_BYTES = 2 * LOG_BYTES  # of all ranks of a pod, beside their stacks

# What a rank of a torch job imports anyway: the first optimizer alone pulls in torch._dynamo, 1 to 1.5 s.
TORCH_MODULES = ("numpy", "torch", "torch.distributed", "torch.nn.parallel", "torch.optim", "torch._dynamo")

log = logging.getLogger(__name__)


class Node:
    """`run()` is the life of the launcher; it returns the exit code of the process."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        run = settings.run
        self.settings = settings
        self._environment = environment
        self._epoch = time.time() - time.monotonic()
        self._processes_per_node = process_count(run.processes_per_node)
        self._processors = processor_count()
        self._place = Place(
            uid=run.uid,
            attempt=run.attempt,
            index=settings.index,
            incarnation=settings.incarnation,
            processes=self._processes_per_node,
            grace_seconds=run.termination_grace_seconds,
            start_deadline_seconds=run.start_deadline_seconds,
        )
        self._member = Member(self._place, self._now(), ready=not settings.preload)
        self._coordinator: Coordinator | None = None
        if settings.index == 0:
            gang = Gang(
                uid=run.uid,
                attempt=run.attempt,
                nodes=run.nodes,
                incarnation=settings.incarnation,
                pod_ip=settings.pod_ip,
                budgets=run.budgets,
                start_deadline_seconds=run.start_deadline_seconds,
                artifact_promised=run.recipe is not None,
                store=run.framework == "pytorch",
            )
            self._coordinator = Coordinator(gang, self._epoch, self._now())
        self._directory = Path(tempfile.mkdtemp(prefix="bigmodel-"))
        torch = run.framework == "pytorch"
        self._workers = () if torch else tensorflow_cluster(settings.peers, self._processes_per_node)
        preload = (*(TORCH_MODULES if torch else ()), *((TRAINER,) if run.recipe is not None else ()))
        self._processes = Processes(
            program=program(run), preload=preload, fork=settings.preload, environment=environment, watcher=self
        )
        self._output = Output()
        self._link: Link | None = None  # to the coordinator
        self._links: dict[int, Link] = {}  # of the members, by connection number
        self._numbers = count(1)
        self._notices = 0
        self._leaving_told = False  # the ranks of this generation are to save and leave
        self._board = Board(
            run.uid, run.attempt, self._epoch
        )  # what this pod knows by itself; index 0's coordinator knows more
        self._outcome: Exit | None = None
        self._leaving: asyncio.Event = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        settings = self.settings
        self._reports = Reports(self._directory / "report", self._reported)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminating)
        self._processes.open()
        server = await asyncio.start_server(
            self._accepted, settings.bind or None, settings.coordinator_port, limit=LINE_BYTES
        )
        page = await web.serve(self._routes(), settings.bind, settings.progress_port)
        self._spawn(self._ticking())
        log.info(
            "index %d, incarnation %d, %d processes", settings.index, settings.incarnation, self._processes_per_node
        )
        try:
            await self._leaving.wait()
            assert self._outcome is not None
            self._write_last_word(self._outcome)
            self._processes.close()
            links = [*self._links.values(), *([self._link] if self._link is not None else [])]
            for link in links:
                link.close()
            with contextlib.suppress(TimeoutError):  # the last messages go out, if anybody takes them
                async with asyncio.timeout(1):
                    for link in links:
                        await link.closed()
            self._output.close()
            log.info("exit %d: %s", self._outcome.code, self._outcome.message or self._outcome.reason or "done")
            return self._outcome.code
        finally:
            server.close()
            page.close()
            for task in self._tasks:
                task.cancel()
            self._reports.close()
            shutil.rmtree(self._directory, ignore_errors=True)

    def _now(self) -> float:
        return time.monotonic()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ticking(self) -> None:
        while True:
            self._reports.drain()
            self._to_member(membership.Tick())
            self._to_coordinator(coordination.Tick())
            await asyncio.sleep(TICK_SECONDS)

    # Member

    def _to_member(self, event: membership.Event) -> None:
        for command in self._member.handle(event, self._now()):
            self._do(command)

    def _do(self, command: membership.Command) -> None:
        match command:
            case membership.Connect(address):
                self._spawn(self._connect(address))
            case membership.Disconnect():
                if self._link is not None:
                    self._link.close()
                    self._link = None
            case membership.Send(message):
                if self._link is not None:
                    self._link.send(message)
            case membership.StartRanks(generation, env):
                self._start_ranks(generation, env)
            case membership.TakeStacks():
                self._spawn(self._take_stacks())
            case membership.KillRanks():
                self._processes.kill_ranks()
            case membership.NotifyRanks(leave):
                self._notify_ranks(leave)
            case membership.Leave(outcome):
                self._leave(outcome)

    async def _connect(self, address: str | None) -> None:
        settings = self.settings
        # Index 0 coordinates itself, whatever DNS still says about its predecessor.
        own = f"{settings.pod_ip}:{settings.coordinator_port}" if settings.index == 0 else None
        link = await connect(own or address or settings.run.coordinator)
        if link is None:
            self._to_member(membership.Disconnected())
            return
        self._link = link
        self._to_member(membership.Connected())
        async for message in link.messages():
            if self._link is not link:
                return
            if message.type in ("fenced", "refused"):
                log.warning("%s by %s: %s", message.type, link.peer, getattr(message, "reason", ""))
            self._to_member(membership.Received(message))  # type: ignore[arg-type]
        link.close()
        if self._link is link:
            self._link = None
            self._to_member(membership.Disconnected())

    def _start_ranks(self, generation: int, env: Mapping[str, str]) -> None:
        for old in self._directory.glob("g*"):
            old.unlink()
        self._notices = 0
        self._leaving_told = False
        self._board.started()
        first = self.settings.index * self._processes_per_node
        ranks = []
        for rank in range(first, first + self._processes_per_node):
            files = RankFiles(self._directory, generation, rank)
            self._output.open(files.output)
            environment = rank_environment(
                self._environment,
                env,
                files,
                self._reports.path,
                index=self.settings.index,
                nodes=self.settings.run.nodes,
                processes=self._processes_per_node,
                processors=self._processors,
                workers=self._workers,
            )
            ranks.append((files, environment))
        log.info("generation %d: starting ranks %d to %d", generation, first, first + self._processes_per_node - 1)
        self._processes.start_ranks(generation, ranks)

    def _notify_ranks(self, leave: bool) -> None:
        """A file, since a rank inside a collective runs no Python signal handler; and SIGTERM, which programs that know
        no file understand."""
        self._notices += 1
        self._leaving_told = leave
        notice = json.dumps(Notice(request=self._notices, leave=leave).wire())
        for files in self._processes.files:
            part = files.notice.with_suffix(".part")
            part.write_text(notice)
            part.rename(files.notice)
        for _, pid in self._processes.ranks if leave else ():
            self._tell_to_leave(pid)

    def _tell_to_leave(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    async def _take_stacks(self) -> None:
        stacks = await self._stacks(membership.STACKS_SECONDS * 0.8)
        for stack in stacks:
            log.warning("rank %d %s:\n%s", stack.rank, "is stopped" if stack.stopped else "is here", stack.text)
        self._to_member(membership.StacksTaken(tuple(stacks)))

    async def _stacks(self, seconds: float) -> list[RankStack]:
        asked = []
        for files, pid in self._processes.ranks:
            with contextlib.suppress(OSError):  # it may end at any time
                if can_tell_its_stacks(pid):
                    size = files.stacks.stat().st_size
                    os.kill(pid, signal.SIGUSR1)
                    asked.append((files, pid, size))
        await asyncio.sleep(seconds)
        share = max(1, len(asked))
        log_bytes = min(LOG_BYTES, LOGS_BYTES // share)
        return [
            rank_stack(files, pid, size, STACKS_BYTES // share, self._output.last_lines(files.output, log_bytes))
            for files, pid, size in asked
        ]

    def _reported(self, report: RankReport) -> None:
        self._to_member(membership.Reported(report))

    def _terminating(self) -> None:
        log.info("told to stop; the ranks may save for %.0f s", self._place.patience_seconds)
        self._to_member(membership.Terminating())

    # Watcher of the processes

    def rank_ended(self, files: RankFiles, status: int) -> None:
        self._reports.drain()
        failure = rank_failure(files, status, self._output.last_lines(files.output))
        if failure is not None and self._member.state is membership.State.RUNNING:
            log.error("rank %d ended with %d: %s", files.rank, failure.exit_code, failure.message)
        self._to_member(membership.RankEnded(files.generation, files.rank, failure))

    def reaped(self, generation: int) -> None:
        self._to_member(membership.Reaped(generation))

    def ready(self) -> None:
        self._to_member(membership.Ready())

    def rank_started(self, files: RankFiles, pid: int) -> None:
        if self._leaving_told:  # it was not there yet when the others heard of it
            self._tell_to_leave(pid)

    def store_listens(self, generation: int, port: int) -> None:
        self._to_coordinator(coordination.StoreListens(generation, port))

    def store_failed(self, generation: int, message: str) -> None:
        self._to_coordinator(coordination.StoreFailed(generation, message))

    # Coordinator

    def _to_coordinator(self, event: coordination.Event) -> None:
        if self._coordinator is None:
            return
        before = self._coordinator.phase
        for command in self._coordinator.handle(event, self._now()):
            self._do_coordinate(command)
        if self._coordinator.phase is not before:
            log.info("generation %d: %s", self._coordinator.generation, self._coordinator.phase.value)

    def _do_coordinate(self, command: coordination.Command) -> None:
        match command:
            case coordination.Send(connection, message):
                if (link := self._links.get(connection)) is not None:
                    link.send(message)
            case coordination.Close(connection):
                if (link := self._links.pop(connection, None)) is not None:
                    link.close()
            case coordination.OpenStore(generation):
                self._processes.open_store(generation)
            case coordination.CloseStore():
                self._processes.close_store()
            case coordination.Announce(indexes):
                for index in indexes[:ANNOUNCE_AT_ONCE]:
                    self._spawn(self._announce(self.settings.peers[index]))
            case coordination.Decided(outcome):
                self._write_last_word(outcome)
            case coordination.Leave(outcome):
                self._leave(outcome)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        try:
            match await link.first():
                case Hello() as hello if self._coordinator is not None:
                    await self._serve_member(link, hello)
                case Announcement() as announcement:
                    self._announced(link, announcement)
                case None:
                    log.warning("%s connected and said nothing of ours", link.peer)
                case message:
                    log.warning("%s said %s, which is not for this index", link.peer, message.type)
        except asyncio.CancelledError:
            pass  # the loop ends; a cancelled connection handler would be logged as an error
        finally:
            link.close()

    async def _serve_member(self, link: Link, hello: Hello) -> None:
        number = next(self._numbers)
        self._links[number] = link
        self._heard(number, hello)
        async for message in link.messages():
            if number not in self._links:
                return
            self._heard(number, message)
        self._links.pop(number, None)
        self._to_coordinator(coordination.Lost(number))

    def _heard(self, number: int, message: Message) -> None:
        if isinstance(message, Hello):
            log.info("index %d, incarnation %d said hello", message.index, message.incarnation)
        self._to_coordinator(coordination.Received(number, message))  # type: ignore[arg-type]

    def _announced(self, link: Link, announcement: Announcement) -> None:
        if announcement.token == self._place.token and not self._member.follows(announcement):
            link.send(Fenced(reason="a later incarnation of index 0 coordinates"))
            return
        self._to_member(membership.Announced(announcement))

    async def _announce(self, peer: str) -> None:
        link = await connect(peer)
        if link is None:
            return
        settings = self.settings
        link.send(
            Announcement(
                token=self._place.token,
                attempt=settings.run.attempt,
                incarnation=settings.incarnation,
                address=f"{settings.pod_ip}:{settings.coordinator_port}",
            )
        )
        if isinstance(await link.first(), Fenced):
            self._to_coordinator(coordination.AnnouncementAnswered())
        link.close()

    # The end

    def _leave(self, outcome: Exit) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self._leaving.set()

    def fail(self, message: str) -> None:
        """The launcher itself broke."""
        self._write_last_word(Exit(code=70, reason="LauncherError", message=message))

    def _write_last_word(self, outcome: Exit) -> None:
        run = self.settings.run
        word = last_word(
            outcome,
            uid=run.uid,
            attempt=run.attempt,
            generation=self._member.generation,
            index=self.settings.index,
            progress=self._progress(),
        )
        try:
            self.settings.termination_log.write_bytes(written(word))
        except OSError as error:
            log.error("cannot write the last word to %s: %s", self.settings.termination_log, error)

    def _progress(self) -> Progress:
        if self._coordinator is not None:
            return self._coordinator.progress()
        return self._board.progress(self._member.generation, self._member.spent)

    # HTTP

    def _routes(self) -> web.Routes:
        async def healthz() -> web.Answer:
            return web.Answer(HTTPStatus.OK, "ok\n")

        async def stacks() -> web.Answer:
            taken = await self._stacks(ANSWER_STACKS_SECONDS)
            text = "\n".join(f"rank {s.rank}{' (stopped)' if s.stopped else ''}\n{s.text}" for s in taken)
            return web.Answer(HTTPStatus.OK, text or "no rank is running\n")

        async def progress() -> web.Answer:
            if self._coordinator is None:
                return web.Answer(HTTPStatus.NOT_FOUND, "ask index 0\n")
            body = json.dumps(self._coordinator.progress().wire(), ensure_ascii=False)
            return web.Answer(HTTPStatus.OK, body, "application/json")

        async def checkpoint() -> web.Answer:
            if self._member.state is not membership.State.RUNNING:
                return web.Answer(HTTPStatus.CONFLICT, "no rank is running\n")
            self._to_member(membership.SaveWanted())
            return web.Answer(HTTPStatus.ACCEPTED, "the gang is asked to save\n")

        async def metrics() -> web.Answer:
            return web.Answer(HTTPStatus.OK, self._metrics(), "text/plain; version=0.0.4; charset=utf-8")

        return {
            ("GET", "/healthz"): healthz,
            ("GET", "/metrics"): metrics,
            ("GET", "/v1/progress"): progress,
            ("GET", "/v1/stacks"): stacks,
            ("POST", "/v1/checkpoint"): checkpoint,
        }

    def _metrics(self) -> str:
        progress = self._progress()
        rows: list[tuple[str, str, str, float]] = [
            ("generation", "gauge", "Lives of all ranks in this attempt.", progress.generation),
            ("ranks", "gauge", "Living ranks of this pod.", len(self._processes.ranks)),
            ("program_restarts_total", "counter", "Restarts after faults of the program.", progress.program_restarts),
            ("hang_restarts_total", "counter", "Restarts after hangs.", progress.hang_restarts),
        ]
        if self._coordinator is not None:
            rows += [
                ("step", "gauge", "Updates made.", progress.step),
                ("steps_per_second", "gauge", "Updates per second over the last 30 s.", progress.steps_per_second),
            ]
        return "".join(
            f"# HELP bigmodel_training_{name} {text}\n# TYPE bigmodel_training_{name} {kind}\n"
            f"bigmodel_training_{name} {value}\n"
            for name, kind, text, value in rows
        )
