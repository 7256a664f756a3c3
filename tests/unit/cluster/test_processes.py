"""What was started is found again, and nothing else is ever killed."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster import processes
from tests.cluster.processes import Record, parse_start_time


@pytest.fixture(autouse=True)
def own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PROCESSES", tmp_path / "processes")
    monkeypatch.setattr(processes, "LOGS", tmp_path / "logs")


def stat(state: str, name: str = "etcd", started: int = 4711) -> str:
    return (
        f"812 ({name}) {state} 1 812 812 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 {started} 123456 99 18446744073709551615"
    )


STAT_LINES = {
    "a process has a start time": (stat("S"), 4711),
    "a name may hold spaces and parentheses": (stat("R", name="a) R (b 1 2"), 4711),
    "a zombie runs no more": (stat("Z"), None),
    "nor does a dead process": (stat("X"), None),
}


@pytest.mark.parametrize(("line", "expected"), STAT_LINES.values(), ids=STAT_LINES)
def test_start_time(line: str, expected: int | None) -> None:
    assert parse_start_time(line) == expected


def test_a_process_runs_until_it_is_stopped_with_its_children(tmp_path: Path) -> None:
    child_file = tmp_path / "child"
    processes.start(
        "worker", ["sh", "-c", f"sleep 1000 & echo $! > {child_file}.new; mv {child_file}.new {child_file}; wait"]
    )
    while not child_file.exists():
        time.sleep(0.01)
    child = int(child_file.read_text())
    assert processes.running("worker") is not None
    assert processes.recorded() == ["worker"]

    processes.stop(["worker"])

    assert processes.running("worker") is None
    assert processes.recorded() == []
    deadline = time.monotonic() + 5
    while processes.start_time(child) is not None and time.monotonic() < deadline:
        time.sleep(0.01)  # its signal came with the parent's, but nobody waits for it
    assert processes.start_time(child) is None


def test_one_that_does_not_listen_is_killed_after_the_grace(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    processes.start("deaf", ["sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.1; done"])
    while not ready.exists():
        time.sleep(0.01)
    processes.stop(["deaf"], grace_seconds=0.2)
    assert processes.running("deaf") is None


STRANGERS = {
    "its process id belongs to somebody else now": {"started": 1},
    "the machine was started anew": {"boot": "another boot"},
}


@pytest.mark.parametrize("difference", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_not_killed(difference: dict[str, object]) -> None:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as stranger:
        known = processes.record_of(stranger.pid, ["sleep"])
        processes.write_record("ours", Record(**{**known.__dict__, **difference}))

        processes.stop(["ours"], grace_seconds=0)

        assert stranger.poll() is None
        assert processes.recorded() == []
        stranger.kill()


def test_ensure_keeps_what_runs_and_replaces_what_changed() -> None:
    assert processes.ensure("service", ["sleep", "1000"]) is True
    first = processes.running("service")
    assert processes.ensure("service", ["sleep", "1000"]) is False
    assert processes.running("service") == first
    assert processes.ensure("service", ["sleep", "2000"]) is True
    second = processes.running("service")
    assert second is not None
    assert second != first
    processes.stop(["service"])


def test_a_process_that_ended_cannot_be_recorded() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ProcessLookupError, match="ended while it was being recorded"):
        processes.record_of(process.pid, ["true"])
