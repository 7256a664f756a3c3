"""What this rank tells its launcher: one JSON datagram at each step (at most every 100 ms) and at each change of phase.

The step in a report is the heartbeat that the launcher's hang watch reads; a rank without a launcher (debugging)
reports nothing.
"""

import math
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from bigmodel.api.model import Metric
from bigmodel.api.progress import ArtifactSummary, CheckpointSummary, RankReport, RunPhase

INTERVAL_SECONDS = 0.1
ERROR_CHARACTERS = 1024  # stands in every heartbeat


def metric_list(values: Mapping[str, float]) -> list[Metric]:
    """Six significant digits, as strings; the first eight, for that is what a status holds."""
    return [Metric(name=name, value=f"{value:.6g}") for name, value in list(values.items())[:8]]


@dataclass
class Reporter:
    """`clock` is monotonic, in seconds. `path` is the launcher's socket, None without a launcher."""

    rank: int
    generation: int
    path: str | None
    clock: Callable[[], float]
    total_steps: int = 0
    checkpoint_error: str | None = None  # told until a save succeeds
    checkpoint_seconds: float = 0.0  # training was blocked by saves, in this process
    _step: int = 0
    _phase: RunPhase = RunPhase.STARTING
    _metrics: dict[str, float] = field(default_factory=dict)
    # When a step, and when a collective, was last told: kept apart, else the one would always hide the other.
    _told_at: dict[bool, float] = field(default_factory=dict)
    _socket: socket.socket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def enter(
        self,
        phase: RunPhase,
        artifact: ArtifactSummary | None = None,
        checkpoint: CheckpointSummary | None = None,
    ) -> None:
        """Always goes out, and waits for room in the launcher's queue: artefact and checkpoint are told once."""
        self._phase = phase
        self._send(self._report(artifact=artifact, checkpoint=checkpoint), wait=True)

    def resumed(self, step: int, checkpoint: CheckpointSummary) -> None:
        """`step` updates were made by an earlier process and loaded; still Starting, until one is made here."""
        self._step = step
        self.enter(self._phase, checkpoint=checkpoint)

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        """`step` updates are made. The first one of a process is what Training begins with."""
        self._step = step
        self._metrics.update(values)
        if self._phase is not RunPhase.TRAINING:
            self.enter(RunPhase.TRAINING)
        else:
            self._send_if_due(self._report())

    def in_collective(self) -> None:
        """From here until the step ends this rank waits for others; one that has not come here is the culprit."""
        if self._phase is RunPhase.TRAINING:
            self._send_if_due(self._report(in_collective=True))

    def _report(
        self,
        in_collective: bool = False,
        artifact: ArtifactSummary | None = None,
        checkpoint: CheckpointSummary | None = None,
    ) -> RankReport:
        return RankReport(
            rank=self.rank,
            generation=self.generation,
            phase=self._phase,
            step=self._step,
            total_steps=self.total_steps,
            in_collective=in_collective,
            metrics=metric_list(self._metrics),
            artifact=artifact,
            checkpoint=checkpoint,
            checkpoint_error=self.checkpoint_error and self.checkpoint_error[:ERROR_CHARACTERS],
            checkpoint_seconds=self.checkpoint_seconds,
        )

    def _send_if_due(self, report: RankReport) -> None:
        now = self.clock()
        if now - self._told_at.get(report.in_collective, -math.inf) >= INTERVAL_SECONDS:
            self._told_at[report.in_collective] = now
            self._send(report, wait=False)

    def _send(self, report: RankReport, wait: bool) -> None:
        if self.path is None:
            return
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.connect(self.path)
        datagram = report.model_dump_json(by_alias=True, exclude_none=True).encode()
        with suppress(BlockingIOError):  # the launcher is behind: a heartbeat more or less tells it nothing new
            self._socket.send(datagram, 0 if wait else socket.MSG_DONTWAIT)
