"""What a dead or silent rank leaves behind: its exit status, error file, stack traces, state in the kernel."""

import json
import os
import re
import signal
from pathlib import Path

from bigmodel.launcher.culprit import is_connection_error
from bigmodel.launcher.environment import RankFiles
from bigmodel.launcher.message import MESSAGE_BYTES, STACKS_BYTES, TRACEBACK_BYTES, RankFailure, RankStack, head, tail

ERROR_FILE_BYTES = 1 << 20


def rank_failure(files: RankFiles, status: int, log: str | None = None) -> RankFailure | None:
    """From the wait status of a rank that ended by itself, and the last lines it wrote; None if it ended with 0."""
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    message, traceback = _error_file(files.error)
    if code > 0:
        return RankFailure(
            rank=files.rank,
            exit_code=code,
            message=head(message or "it left no error message; see its log", MESSAGE_BYTES),
            traceback=tail(traceback, TRACEBACK_BYTES) if traceback else None,
            log=log,
            connection_error=is_connection_error(message),
        )
    name = signal.Signals(-code).name if -code in signal.valid_signals() and -code < signal.SIGRTMIN else f"SIG{-code}"
    crash = _read(files.stacks)  # faulthandler's, for SIGSEGV and its like
    return RankFailure(
        rank=files.rank,
        exit_code=128 - code,
        signal=name,
        message=head(message or f"no message can be left on {name}", MESSAGE_BYTES),
        traceback=head(crash, TRACEBACK_BYTES) if crash else None,
        log=log,
    )


def _error_file(path: Path) -> tuple[str, str]:
    """(message, traceback) as torch.distributed.elastic writes them; message may also be a plain string. Empty where
    there is none."""
    try:
        message = json.loads(_read(path))["message"]
    except (ValueError, KeyError, TypeError):
        return "", ""
    if isinstance(message, str):
        return message, ""
    if not isinstance(message, dict):
        return "", ""
    extra = message.get("extraInfo")
    return str(message.get("message", "")), str(extra.get("py_callstack", "")) if isinstance(extra, dict) else ""


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(ERROR_FILE_BYTES).decode(errors="replace")
    except OSError:
        return ""


def can_tell_its_stacks(pid: int) -> bool:
    """Does it catch SIGUSR1? Another program would die of it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def rank_stack(
    files: RankFiles, pid: int, from_byte: int, limit: int = STACKS_BYTES, log: str | None = None
) -> RankStack:
    """What it wrote to its stacks file since it was asked."""
    text = _read(files.stacks)[from_byte:]
    return RankStack(
        rank=files.rank, stopped=_is_stopped(pid), waits=_waits(text), text=head(text, limit) if text else "", log=log
    )


# Where the main thread of a rank that waits for others is: in a collective, or in the backward pass whose hooks wait.
_WAITING = ("/torch/distributed/", "/torch/autograd/graph.py")


def _waits(stacks: str) -> bool:
    """faulthandler writes each thread's innermost frame right below its head line; the main thread comes last."""
    heads = re.split(r"^(?:Current thread|Thread) .*$", stacks, flags=re.MULTILINE)
    innermost = next((line for line in heads[-1].splitlines() if line.strip()), "")
    return any(place in innermost for place in _WAITING)


def _is_stopped(pid: int) -> bool:
    """Stopped by SIGSTOP or a debugger, or stuck in the kernel."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t", "D")
