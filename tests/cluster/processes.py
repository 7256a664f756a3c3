"""Processes that outlive the command that started them, found again by a record of process id, start time and boot.

A process id alone is not an identity: after a reboot, or after enough other processes, it belongs to somebody else.
With the start time in clock ticks and the id of the boot it does not, and so nothing is ever killed that was not
started here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster.layout import LOGS, PROCESSES


@dataclass(frozen=True)
class Record:
    """One started process."""

    pid: int
    #: Clock ticks from boot to the start of the process, field 22 of /proc/<pid>/stat.
    started: int
    #: /proc/sys/kernel/random/boot_id when it was started.
    boot: str
    #: What it runs, so that a changed command is noticed and the process replaced.
    command: tuple[str, ...]

    def alive(self) -> bool:
        """Whether exactly this process still runs. A zombie does not."""
        return self.boot == boot_id() and start_time(self.pid) == self.started


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of this process; None when there is none, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return parse_start_time(stat)


def parse_start_time(stat: str) -> int | None:
    """Field 22 of a line of /proc/<pid>/stat, None for a zombie or a dead process. See proc(5)."""
    fields = stat.rpartition(")")[2].split()  # the name in parentheses may hold spaces and parentheses itself
    state, started = fields[0], fields[19]
    return None if state in "ZX" else int(started)


def record_of(pid: int, command: Sequence[str]) -> Record:
    """The identity of a process that runs now.

    Raises:
        ProcessLookupError: it has ended already.
    """
    started = start_time(pid)
    if started is None:
        raise ProcessLookupError(f"process {pid} ({command[0]}) ended while it was being recorded")
    return Record(pid, started, boot_id(), tuple(command))


def write_record(name: str, record: Record) -> None:
    PROCESSES.mkdir(parents=True, exist_ok=True)
    partial = PROCESSES / f"{name}.partial"
    partial.write_text(json.dumps(asdict(record)))
    partial.rename(PROCESSES / f"{name}.json")


def read_record(name: str) -> Record | None:
    """The record of this name, whether the process lives or not; None when there is none."""
    try:
        fields = json.loads((PROCESSES / f"{name}.json").read_text())
    except FileNotFoundError:
        return None
    return Record(fields["pid"], fields["started"], fields["boot"], tuple(fields["command"]))


def recorded() -> list[str]:
    """Names of all records, also of dead processes."""
    return sorted(path.stem for path in PROCESSES.glob("*.json"))


def running(name: str) -> Record | None:
    """The record of this name if that very process still runs."""
    record = read_record(name)
    return record if record is not None and record.alive() else None


def start(name: str, command: Sequence[str]) -> Record:
    """Start a process of its own session, its output appended to LOGS/<name>.log, and record it under that name."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    process.returncode = 0  # silences the interpreter's warning: it is meant to outlive us
    record = record_of(process.pid, command)
    write_record(name, record)
    return record


def ensure(name: str, command: Sequence[str]) -> bool:
    """Start the process unless this very command runs already under this name; True if it was started now."""
    record = running(name)
    if record is not None and record.command == tuple(command):
        return False
    stop([name])
    start(name, command)
    return True


def stop(names: Sequence[str], grace_seconds: float = 5.0) -> None:
    """End these processes and their groups, all at once, and forget them: SIGTERM, then SIGKILL to what is left after
    the grace.

    A grace of 0 is SIGKILL at once. Raises SystemExit if one survives even that.
    """
    records = [record for name in names if (record := running(name)) is not None]
    if grace_seconds > 0:
        _signal(records, signal.SIGTERM)
    if not _ended(records, grace_seconds):
        _signal(records, signal.SIGKILL)
        if not _ended(records, 15):
            alive = [f"{record.pid} ({record.command[0]})" for record in records if record.alive()]
            raise SystemExit(f"these processes outlive SIGKILL, so the kernel holds them: {', '.join(alive)}")
    for name in names:
        (PROCESSES / f"{name}.json").unlink(missing_ok=True)


def _ended(records: Sequence[Record], seconds: float) -> bool:
    """True as soon as none of them runs, False when one still does after these seconds."""
    deadline = time.monotonic() + seconds
    while any(record.alive() for record in records):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def _signal(records: Sequence[Record], number: signal.Signals) -> None:
    for record in records:
        if record.alive():
            with suppress(ProcessLookupError):  # it ended in this very moment
                # The whole group, which is ours alone: `start` gave it a session. Of a process in a node's namespaces
                # the record names the program that entered them, and the group has the one that runs there.
                os.killpg(os.getpgid(record.pid), number)


def log_tail(name: str, lines: int = 15) -> str:
    """The last lines of a process's log, for the message that says it failed."""
    try:
        return "\n".join((LOGS / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"
