"""The parent of a pod's ranks: a process that imported torch once and forks, so that a rank is there in milliseconds,
not seconds.

    python -m bigmodel.trainer.forkserver serve --control FD --parent PID [--preload MODULE ...]
    python -m bigmodel.trainer.forkserver rank  --parent PID --request JSON      one rank without forking
    python -m bigmodel.trainer.forkserver store --parent PID --control FD        one store without forking

It must have exactly one thread when it forks: a fork after any OpenMP or MKL pool has started hangs in the child. So it
is started with OMP_NUM_THREADS=1 and the like, never calls torch.cuda or any operator, and says it is unfit if it has
more than one thread after its imports; the launcher then spawns instead. This module imports nothing but the standard
library at its top.

Control is a stream socket of JSON lines, all pids in this pod's namespace:
    launcher → {"do": "rank", "id", "env", "program", "errorFile", "stacksFile", "outputFile"}   {"do": "store", "id"}
    server   → {"ready": true} or {"unfit": why}, once; {"started": id, "pid"}; {"ended": pid, "status"}; {"listens":
    id, "port"}
`program` is {"module": "bigmodel.trainer.main"} for a recipe (its main() is called) or {"path", "args"} for a script.
"""

import argparse
import atexit
import builtins
import ctypes
import faulthandler
import gc
import importlib
import importlib.machinery
import io
import json
import os
import random
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
import types
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
STORE_TIMEOUT_SECONDS = 60
_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
_TORCH_SEED = 67280421310721  # what torch's generator starts with in a new process


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bigmodel.trainer.forkserver")
    parser.add_argument("role", choices=["serve", "rank", "store"])
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--control", type=int)
    parser.add_argument("--preload", action="append", default=[])
    parser.add_argument("--request")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    match arguments.role:
        case "serve":
            request = serve(socket.socket(fileno=arguments.control), arguments.preload)
            if request is not None:  # we are the fork
                run_rank(request, forked=True)
        case "rank":
            run_rank(json.loads(arguments.request), forked=False)
        case "store":
            run_store(arguments.control)


# The server


def serve(control: socket.socket, preload: list[str]) -> dict[str, Any] | None:
    """Fork on demand until the launcher hangs up. Returns a rank's request in the fork, None in the server at the end.

    In the fork it returns instead of running the rank, so that a rank's traceback holds nothing of the server.
    """
    if (reason := _unfit(preload)) is not None:
        _say(control, {"unfit": reason})
        return None
    gc.collect()
    gc.freeze()  # the collector of a fork must not touch, and so copy, every page it shares with us
    _say(control, {"ready": True})
    wake_reader, wake_writer = socket.socketpair()
    wake_reader.setblocking(False)
    wake_writer.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_writer.fileno(), warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(wake_reader, selectors.EVENT_READ)
    ports: dict[int, str] = {}  # pipe → id of the store that will write its port into it
    buffer = b""
    server = os.getpid()
    while True:
        for key, _ in selector.select():
            if key.fileobj is wake_reader:
                wake_reader.recv(4096)
                _reap(control)
            elif key.fileobj is control:
                data = control.recv(65536)
                if not data:
                    return None
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    request = json.loads(line)
                    reader, writer = os.pipe() if request["do"] == "store" else (-1, -1)
                    pid = os.fork()
                    if pid == 0:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        selector.close()
                        for file in (control, wake_reader, wake_writer):
                            file.close()
                        die_with_parent(server)
                        os.setsid()
                        if request["do"] == "store":
                            os.close(reader)
                            run_store(writer)
                        return dict(request)
                    if request["do"] == "store":
                        os.close(writer)
                        ports[reader] = request["id"]
                        selector.register(reader, selectors.EVENT_READ)
                    _say(control, {"started": request["id"], "pid": pid})
            else:
                assert isinstance(key.fileobj, int)
                if port := os.read(key.fileobj, 16):
                    _say(control, {"listens": ports[key.fileobj], "port": int(port)})
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                del ports[key.fileobj]


def _unfit(preload: list[str]) -> str | None:
    """Import everything a rank will need; None if forking is safe afterwards."""
    for name in preload:
        try:
            importlib.import_module(name)
        except Exception as error:
            return f"cannot import {name}: {error!r}"
    threads = len(os.listdir("/proc/self/task"))
    return None if threads == 1 else f"{threads} threads after importing {', '.join(preload)}"


def _say(control: socket.socket, message: dict[str, Any]) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")


def _reap(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say(control, {"ended": pid, "status": status})


# The children


def run_rank(request: dict[str, Any], forked: bool) -> NoReturn:
    """Become the rank: environment, threads, seeds, evidence of failure, then the program. Never returns."""
    if forked:
        output = os.open(request["outputFile"], os.O_WRONLY)
        for standard in (1, 2):
            os.dup2(output, standard)
        os.close(output)
        os.environ.clear()
        os.environ.update(request["env"])
        _like_a_new_process()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a killed rank's log ends with its last line
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    stacks = open(request["stacksFile"], "w")  # noqa: SIM115  kept open for the life of the process
    faulthandler.enable(stacks)  # a segmentation fault leaves a traceback too
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    _end(_run(request["program"], request["errorFile"]))


def _like_a_new_process() -> None:
    """Undo what a fork shares: state of random generators, thread counts."""
    random.seed()
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed()  # the legacy generator is what user code draws from
    if "torch" in sys.modules:
        import torch

        torch.default_generator.manual_seed(_TORCH_SEED)
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))


def _run(program: dict[str, Any], error_file: str) -> int:
    try:
        if "module" in program:
            sys.argv = [program["module"]]
            importlib.import_module(program["module"]).main()
            return 0
        sys.argv = [program["path"], *program["args"]]
        if program["path"].endswith(".py"):
            _run_python(program["path"])
        else:
            _execute(program["path"])
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)  # noqa: T201  as the interpreter does
        return 1
    except BaseException as error:
        _leave_error(error_file, error)
        traceback.print_exc()
        return 1
    return 0


def _run_python(path: str) -> None:
    """As `python path` does; in a module that stays, for threads and exit handlers still use it after its last line."""
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    _meet_where_told()
    script = types.ModuleType("__main__")
    script.__file__ = path
    script.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    script.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = script
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec")
    exec(code, script.__dict__)  # noqa: S102  the user's own program


def _execute(path: str) -> NoReturn:
    """Any other program. Files of a ConfigMap are not executable: then its first line names the interpreter."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would pass that on
        signal.signal(number, signal.SIG_DFL)
    command = sys.argv
    if not os.access(path, os.X_OK):
        with open(path, "rb") as file:
            first = file.readline(256)
        if first.startswith(b"#!"):
            interpreter = [os.fsdecode(word.strip()) for word in first[2:].split(maxsplit=1)]
            command = [*interpreter, *sys.argv]
    os.execv(command[0], command)  # noqa: S606  the user's own program, no shell


def _meet_where_told() -> None:
    """Let a program open stores of its own, and its children too.

    While TORCHELASTIC_USE_AGENT_STORE is set, torch joins *every* store as a client: one that the program means to
    serve by its own rank 0, at another port, would be waited for by all and served by none. So only the launcher's
    port is joined like that, and the variable does not reach the program's children.
    """
    if _AGENT_STORE not in os.environ:
        return
    try:
        rendezvous = importlib.import_module("torch.distributed.rendezvous")
        create = rendezvous._create_c10d_store
    except (ImportError, AttributeError):  # no torch, or one that does it otherwise: then all is as under torchrun
        return
    port = int(os.environ["MASTER_PORT"])
    del os.environ[_AGENT_STORE]

    def create_or_join(host: str, at: int, *arguments: Any, **named: Any) -> Any:
        if at != port:
            return create(host, at, *arguments, **named)
        os.environ[_AGENT_STORE] = "True"
        try:
            return create(host, at, *arguments, **named)
        finally:
            del os.environ[_AGENT_STORE]

    rendezvous._create_c10d_store = create_or_join  # type: ignore[attr-defined]


def _leave_error(path: str, error: BaseException) -> None:
    """In the format of torch.distributed.elastic's error file; its @record may have written it already."""
    if os.path.exists(path):
        return
    lines = traceback.format_exception(error)
    message = {
        "message": "".join(traceback.format_exception_only(error)).strip(),
        "extraInfo": {"py_callstack": "".join(lines), "timestamp": str(int(time.time()))},
    }
    with open(f"{path}.part", "w") as file:
        json.dump({"message": message}, file)
    os.rename(f"{path}.part", path)


def _end(code: int) -> NoReturn:
    """End as the interpreter would, but without taking down modules: destructors of a broken process group can hang."""
    try:
        atexit._run_exitfuncs()
        threading._shutdown()  # type: ignore[attr-defined]  # waits for non-daemon threads, as at any exit
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            code = code or 1
    ctypes.CDLL(None).fflush(None)
    os._exit(code & 0xFF)


def run_store(port_writer: int) -> NoReturn:
    """Serve the rendezvous of one generation on a port of the kernel's choice, until killed."""
    try:
        from datetime import timedelta

        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        store = TCPStore(
            "127.0.0.1",
            0,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=STORE_TIMEOUT_SECONDS),
        )
        os.write(port_writer, str(store.port).encode())
        os.close(port_writer)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while True:
            signal.pause()
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def die_with_parent(parent: int) -> None:
    """SIGKILL this process when its parent goes, however it goes. If it is gone already, now."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
