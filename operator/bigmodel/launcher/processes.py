"""The processes of this pod: the fork server, the ranks, the store. Starts them, kills them by group, reaps them and
every orphan.

Nothing here decides: what happens goes out through the callbacks of `Watcher`, on the loop.
"""

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bigmodel.launcher.environment import RankFiles

FORK_SERVER = "bigmodel.trainer.forkserver"
STORE_SECONDS = 120.0  # a spawned one imports torch first, from a cold disk perhaps
PR_SET_CHILD_SUBREAPER = 36
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

log = logging.getLogger(__name__)


class Watcher(Protocol):
    def ready(self) -> None:
        """Ranks start at once from now on, or one by one: the fork server told, or ended."""

    def rank_started(self, files: RankFiles, pid: int) -> None: ...

    def rank_ended(self, files: RankFiles, status: int) -> None:
        """A rank's own process ended, with that wait status."""

    def reaped(self, generation: int) -> None:
        """No rank of that generation is left, nor anything a rank started."""

    def store_listens(self, generation: int, port: int) -> None: ...

    def store_failed(self, generation: int, message: str) -> None: ...


@dataclass
class _Rank:
    files: RankFiles
    env: Mapping[str, str]
    pid: int | None = None  # None: asked for, not there yet
    ended: bool = False


@dataclass
class _Store:
    generation: int
    timeout: asyncio.TimerHandle | None = None  # runs from when it was asked for
    pid: int | None = None
    port: int | None = None


@dataclass
class Processes:
    """`program` and `preload` are the fork server's words. `environment` is the container's."""

    program: dict[str, Any]
    preload: Sequence[str]
    fork: bool
    environment: Mapping[str, str]
    watcher: Watcher
    _server: "subprocess.Popen[bytes] | None" = None
    _control: socket.socket | None = None
    _ready: bool = False
    _buffer: bytes = b""
    _ranks: list[_Rank] = field(default_factory=list)
    _generation: int = 0
    _killing: bool = False
    _store: _Store | None = None
    _children: "dict[int, subprocess.Popen[bytes]]" = field(default_factory=dict)
    _checking: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Take over as the reaper of this process tree, and let the fork server import what it needs meanwhile."""
        # As PID 1 we get all orphans anyway; elsewhere we ask for them.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        if self.fork:
            self._start_server()

    def close(self) -> None:
        """Kill everything, wait for nothing: as PID 1 our own end takes the rest along, elsewhere the death signal
        does."""
        self.kill_ranks()
        self.close_store()
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
        for pid in list(self._children):
            _kill(pid)

    # Ranks

    @property
    def files(self) -> list[RankFiles]:
        """Of all ranks that have not ended, those included that are still to come."""
        return [rank.files for rank in self._ranks if not rank.ended]

    @property
    def ranks(self) -> list[tuple[RankFiles, int]]:
        """The living ones, with their pids."""
        return [(rank.files, rank.pid) for rank in self._ranks if rank.pid is not None and not rank.ended]

    def start_ranks(self, generation: int, ranks: Sequence[tuple[RankFiles, Mapping[str, str]]]) -> None:
        assert not self._ranks
        self._generation = generation
        self._killing = False
        self._ranks = [_Rank(files, env) for files, env in ranks]
        if self.fork and self._server is None:  # it died with the last generation
            self._start_server()
        self._ask()

    def kill_ranks(self) -> None:
        self._killing = True
        if self.fork and not self._ready:  # the fork server is still importing: who has no pid was never asked for
            self._ranks = [rank for rank in self._ranks if rank.pid is not None or rank.ended]
        for rank in self._ranks:
            if rank.pid is not None:
                _kill_rank(rank)
        self._check_reaped()

    def _ask(self) -> None:
        """Have the ranks started as soon as the fork server can."""
        if self.fork and not self._ready:
            return
        for rank in self._ranks:
            if self.fork:
                self._say(
                    {
                        "do": "rank",
                        "id": _id(rank),
                        "env": dict(rank.env),
                        "program": self.program,
                        "errorFile": str(rank.files.error),
                        "stacksFile": str(rank.files.stacks),
                        "outputFile": str(rank.files.output),
                    }
                )
            else:
                request = {
                    "program": self.program,
                    "errorFile": str(rank.files.error),
                    "stacksFile": str(rank.files.stacks),
                }
                output = os.open(rank.files.output, os.O_WRONLY)  # not only from run_rank on: also a broken import
                child = _spawn(["rank", "--request", json.dumps(request)], rank.env, output=output)
                os.close(output)
                self._children[child.pid] = child
                rank.pid = child.pid
                self.watcher.rank_started(rank.files, child.pid)

    def _rank_started(self, name: str, pid: int) -> None:
        for rank in self._ranks:
            if _id(rank) == name:
                rank.pid = pid
                if self._killing:
                    _kill_rank(rank)
                self.watcher.rank_started(rank.files, pid)

    def _ended(self, pid: int, status: int) -> None:
        for rank in self._ranks:
            if rank.pid == pid and not rank.ended:
                rank.ended = True
                _kill_group(pid)  # what it left behind: data loaders and the like
                self.watcher.rank_ended(rank.files, status)
                self._check_reaped()
                return
        if self._store is not None and self._store.pid == pid:
            if self._store.port is None:
                self._store_lost(f"the store ended with {os.waitstatus_to_exitcode(status)} before it listened")
            else:
                log.error("the store of generation %d ended by itself", self._store.generation)

    def _check_reaped(self) -> None:
        """A generation is over when no process group of it has a member left, zombies included."""
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None
        if not self._killing and not self._ranks:
            return
        if any(not rank.ended for rank in self._ranks):
            return
        if any(rank.pid is not None and _group_lives(rank.pid) for rank in self._ranks):
            for rank in self._ranks:
                assert rank.pid is not None
                _kill_group(rank.pid)
            self._checking = asyncio.get_running_loop().call_later(0.005, self._check_reaped)
            return
        self._ranks = []
        self._killing = False
        generation = self._generation
        asyncio.get_running_loop().call_soon(self.watcher.reaped, generation)

    # The store

    def open_store(self, generation: int) -> None:
        self.close_store()
        self._store = _Store(generation)
        if self.fork and self._server is None:
            self._start_server()
        self._ask_store()

    def close_store(self) -> None:
        if self._store is not None:
            if self._store.timeout is not None:
                self._store.timeout.cancel()
            if self._store.pid is not None:
                _kill(self._store.pid)
            self._store = None

    def _ask_store(self) -> None:
        store = self._store
        if store is None or (self.fork and not self._ready):
            return
        store.timeout = asyncio.get_running_loop().call_later(
            STORE_SECONDS, self._store_lost, f"the store did not listen within {STORE_SECONDS:.0f} s"
        )
        if self.fork:
            self._say({"do": "store", "id": f"store {store.generation}"})
            return
        reader, writer = os.pipe()
        child = _spawn(["store", "--control", str(writer)], {**self.environment, **ONE_THREAD}, pass_fds=(writer,))
        os.close(writer)
        self._children[child.pid] = child
        store.pid = child.pid
        loop = asyncio.get_running_loop()

        def readable() -> None:
            loop.remove_reader(reader)
            port = os.read(reader, 16)
            os.close(reader)
            if port:
                self._store_listens(store.generation, int(port))

        loop.add_reader(reader, readable)

    def _store_listens(self, generation: int, port: int) -> None:
        if self._store is not None and self._store.generation == generation:
            if self._store.timeout is not None:
                self._store.timeout.cancel()
            self._store.port = port
            self.watcher.store_listens(generation, port)

    def _store_lost(self, message: str) -> None:
        if self._store is not None:
            generation = self._store.generation
            self.close_store()
            self.watcher.store_failed(generation, message)

    # The fork server

    def _start_server(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        arguments = ["serve", "--control", str(theirs.fileno())]
        arguments += [word for module in self.preload for word in ("--preload", module)]
        self._server = _spawn(arguments, {**self.environment, **ONE_THREAD}, pass_fds=(theirs.fileno(),))
        theirs.close()
        self._children[self._server.pid] = self._server
        self._control = ours
        self._ready = False
        self._buffer = b""
        asyncio.get_running_loop().add_reader(ours, self._heard)

    def _heard(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._server_lost()
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, message: dict[str, Any]) -> None:
        match message:
            case {"ready": True}:
                self._ready = True
                self._ask()
                self._ask_store()
                self.watcher.ready()
            case {"unfit": reason}:
                log.warning("ranks are started one by one instead of forked: %s", reason)
                self.fork = False
                self._ask()
                self._ask_store()
                self.watcher.ready()
            case {"started": name, "pid": pid}:
                if str(name).startswith("store "):
                    self._store_started(str(name), pid)
                else:
                    self._rank_started(name, pid)
            case {"ended": pid, "status": status}:
                self._ended(pid, status)
            case {"listens": name, "port": port}:
                self._store_listens(int(str(name).removeprefix("store ")), port)

    def _store_started(self, name: str, pid: int) -> None:
        if self._store is not None and name == f"store {self._store.generation}":
            self._store.pid = pid
        else:  # not wanted any more
            _kill(pid)

    def _server_lost(self) -> None:
        """Its ranks got the death signal and are ours to reap now. The next generation starts a new one."""
        assert self._control is not None
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        self._control = self._server = None
        self._ready = False
        if not self.fork:
            return  # it told us so, and ended
        log.error("the fork server ended; its ranks end with it")
        self.watcher.ready()  # the next one is started when ranks are, and whatever ends it again is their failure
        for rank in self._ranks:
            if rank.pid is None and not rank.ended:  # asked for in vain
                rank.ended = True
                self.watcher.rank_ended(rank.files, signal.SIGKILL)
        if self._store is not None and self._store.port is None:
            self._store_lost("the fork server ended before the store listened")
        self._check_reaped()

    def _say(self, message: dict[str, Any]) -> None:
        assert self._control is not None
        data = json.dumps(message).encode() + b"\n"
        self._control.setblocking(True)  # a few kB to a process that does nothing else than read them
        with contextlib.suppress(OSError):  # it is gone: _heard says so
            self._control.sendall(data)
        self._control.setblocking(False)

    def _reap(self) -> None:
        """Every dead child, ours or an orphan that fell to us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (child := self._children.pop(pid, None)) is not None:
                child.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
            self._ended(pid, status)


def _id(rank: _Rank) -> str:
    return f"{rank.files.generation}/{rank.files.rank}"


def _spawn(
    arguments: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int] = (), output: int | None = None
) -> "subprocess.Popen[bytes]":
    """`output`: in place of ours, for stdout and stderr."""
    command = [sys.executable, "-m", FORK_SERVER, arguments[0], "--parent", str(os.getpid()), *arguments[1:]]
    return subprocess.Popen(  # noqa: S603  our own module, no shell
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def _kill_rank(rank: _Rank) -> None:
    assert rank.pid is not None
    if not rank.ended:
        _kill(rank.pid)  # it may not have made its group yet
    _kill_group(rank.pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _group_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
