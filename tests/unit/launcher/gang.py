"""Several launchers on this machine: processes of their own on 127.0.0.2, 127.0.0.3, …, as pods have addresses of their
own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from bigmodel.api.job import Checkpoint, FailureRule, Output, Parallelism, Script
from bigmodel.api.progress import LastWord, Progress
from bigmodel.api.run import Budgets, StoreLocation, TrainingRun

OPERATOR = Path(__file__).parents[3] / "operator"
PROGRAMS = Path(__file__).parent / "programs"


def a_run(nodes: int = 2, program: str = "steps.py", **changes: Any) -> TrainingRun:
    """A valid run of a program of tests/unit/launcher/programs; the default needs no torch."""
    budgets = {"max_restarts": 3, "max_hang_restarts": 3, "hang_timeout_seconds": 600, "rules": []}
    budgets |= changes.pop("budgets", {})
    values: dict[str, Any] = {
        "namespace": "ml",
        "job": "mlp",
        "uid": "0b8d7c2e-1111-4222-8333-444455556666",
        "attempt": 1,
        "nodes": nodes,
        "processes_per_node": 1,
        "coordinator": "127.0.0.2:1",
        "start_deadline_seconds": 900,
        "termination_grace_seconds": 30,
        "framework": "tensorflow",
        "script": Script(path=str(PROGRAMS), entrypoint=program),
        "parallelism": Parallelism(),
        "checkpoint": Checkpoint(),
        "output": Output(),
        "store": StoreLocation(uri="file:///nowhere"),
        "budgets": Budgets(**budgets),
        "image": "trainer:1",
    }
    return TrainingRun(**(values | changes))


def a_rule(action: str, *codes: int) -> FailureRule:
    return FailureRule(on_exit_codes=list(codes) or None, action=action)


class Pod:
    """One launcher process and what it leaves behind."""

    def __init__(self, gang: "LoopbackGang", index: int, incarnation: int, environment: dict[str, str]) -> None:
        self.index = index
        self.ip = gang.address(index, incarnation)
        self.termination_log = gang.directory / f"last-word-{index}-{incarnation}"
        self.output = gang.directory / f"log-{index}-{incarnation}"
        self._page = f"http://{self.ip}:{gang.progress_port}"
        variables = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(OPERATOR),
            "BIGMODEL_RUN": json.dumps(gang.run.wire()),
            "BIGMODEL_INDEX": str(index),
            "BIGMODEL_INCARNATION": str(incarnation),
            "BIGMODEL_POD_IP": self.ip,
            "BIGMODEL_BIND": self.ip,
            "BIGMODEL_COORDINATOR_PORT": str(gang.coordinator_port),
            "BIGMODEL_PROGRESS_PORT": str(gang.progress_port),
            "BIGMODEL_PEERS": ",".join(gang.newest_addresses(self)),
            "BIGMODEL_TERMINATION_LOG": str(self.termination_log),
            "DIARY": str(gang.directory / "diary"),
            **gang.environment,
            **environment,
        }
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bigmodel.launcher"],
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=gang.directory,
            )

    def kill(self) -> None:
        """As a node does that loses power: no last word."""
        self.process.kill()
        self.process.wait()

    def exit_code(self, timeout: float = 60) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"index {self.index} still runs after {timeout} s:\n{self.log}") from None

    @property
    def log(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def last_word(self) -> LastWord:
        return LastWord.model_validate_json(self.termination_log.read_bytes())

    def get(self, path: str, method: str = "GET") -> str:
        with urllib.request.urlopen(urllib.request.Request(self._page + path, method=method), timeout=5) as answer:
            return answer.read().decode()

    @property
    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return round(int(line.split()[1]) / 1024, 1)

    @property
    def progress(self) -> Progress:
        return Progress.model_validate_json(self.get("/v1/progress"))


class LoopbackGang:
    """`diary` is what the ranks wrote: one JSON line per event, with the time."""

    def __init__(self, directory: Path, run: TrainingRun, **environment: str) -> None:
        self.directory = directory
        self.coordinator_port, self.progress_port = _free_ports(run.nodes)
        self.run = run.model_copy(update={"coordinator": f"127.0.0.2:{self.coordinator_port}"})
        self.environment = environment
        self.pods: list[Pod] = []
        self._newest: dict[int, str] = {}

    @staticmethod
    def address(index: int, incarnation: int) -> str:
        """A replacement has another one. The coordinator's name keeps pointing to the first: DNS out of date."""
        return f"127.0.{incarnation}.{index + 2}"

    def newest_addresses(self, started: Pod) -> list[str]:
        self._newest[started.index] = started.ip
        newest = [self._newest.get(index, self.address(index, 0)) for index in range(self.run.nodes)]
        return [f"{ip}:{self.coordinator_port}" for ip in newest]

    def start(self, *indexes: int, incarnation: int = 0, **environment: str) -> list[Pod]:
        """All indexes, or those named."""
        started = [Pod(self, i, incarnation, environment) for i in (indexes or range(self.run.nodes))]
        self.pods += started
        return started

    def close(self) -> None:
        for pod in self.pods:
            if pod.process.poll() is None:
                pod.kill()

    def diary(self, event: str | None = None) -> list[dict[str, Any]]:
        path = self.directory / "diary"
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [e for e in entries if event is None or e["event"] == event]

    def wait_for(self, what: str, condition: Any, timeout: float = 60) -> Any:
        """The first true value of `condition()`."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError, IndexError):
                if value := condition():
                    return value
            time.sleep(0.02)
        logs = "\n".join(f"--- index {pod.index}\n{pod.log}" for pod in self.pods)
        raise AssertionError(f"not within {timeout} s: {what}\n{logs}\n--- diary ends with\n{self.diary()[-6:]}")

    def forget_diary(self) -> None:
        """All but the newest generation: a long run would read more and more."""
        newest = max(e["generation"] for e in self.diary())
        kept = [json.dumps(e) + "\n" for e in self.diary("start") if e["generation"] == newest]
        (self.directory / "diary").write_text("".join(kept))

    def wait_for_step(self, step: int, generation: int, timeout: float = 60) -> float:
        """When every rank had made that step in that generation or a later one; seconds of time.time()."""
        count = self.run.nodes * int(self.run.processes_per_node)

        def reached() -> float | None:
            hits = {
                e["rank"]: e["at"]
                for e in reversed(self.diary("step"))
                if e["generation"] >= generation and e["step"] >= step
            }
            return max(hits.values()) if len(hits) == count else None

        return float(self.wait_for(f"step {step} of generation {generation}", reached, timeout))

    def rank_pid(self, rank: int) -> int:
        """Of the newest generation."""
        return int([e for e in self.diary("start") if e["rank"] == rank][-1]["pid"])

    def kill_rank(self, rank: int, number: int = signal.SIGKILL) -> float:
        os.kill(self.rank_pid(rank), number)
        return time.time()


def _free_ports(nodes: int) -> tuple[int, int]:
    """Two ports that are free on all addresses of the gang."""
    found: list[int] = []
    while len(found) < 2:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.2", 0))
            port = first.getsockname()[1]
            try:
                for index in range(1, nodes):
                    stack.enter_context(socket.socket()).bind((f"127.0.0.{index + 2}", port))
            except OSError:
                continue
            found.append(port)
    return found[0], found[1]
