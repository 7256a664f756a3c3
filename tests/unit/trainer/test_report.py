import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bigmodel.api.progress import ArtifactSummary, RankReport, RunPhase
from bigmodel.trainer.report import Reporter, metric_list


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Callable[[], list[RankReport]]]:
    """The launcher's end of the socket; a call returns what came since the last one."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(tmp_path / "report"))
    server.setblocking(False)

    def received() -> list[RankReport]:
        reports = []
        while True:
            try:
                reports.append(RankReport.model_validate_json(server.recv(65536)))
            except BlockingIOError:
                return reports

    yield received
    server.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reporter(tmp_path: Path, launcher: object, clock: Clock) -> Iterator[Reporter]:
    with closing(
        Reporter(rank=1, generation=2, path=str(tmp_path / "report"), clock=clock, total_steps=50)
    ) as reporter:
        yield reporter


def test_training_begins_with_the_first_step_made(reporter: Reporter, launcher: Callable[[], list[RankReport]]):
    reporter.enter(RunPhase.STARTING)
    reporter.in_collective()  # of the first step, which compiles and fills caches: nothing to watch yet
    reporter.stepped(1, {"loss": 0.25})
    assert [(report.phase, report.step) for report in launcher()] == [(RunPhase.STARTING, 0), (RunPhase.TRAINING, 1)]


def test_a_report_says_who_and_how_far(reporter: Reporter, launcher: Callable[[], list[RankReport]]):
    reporter.stepped(7, {"loss": 1 / 3, "val_mse": 2871.4321})
    want = RankReport(
        rank=1,
        generation=2,
        phase=RunPhase.TRAINING,
        step=7,
        total_steps=50,
        metrics=metric_list({"loss": 1 / 3, "val_mse": 2871.4321}),
    )
    assert launcher() == [want]
    assert [metric.value for metric in want.metrics] == ["0.333333", "2871.43"]


def test_steps_are_told_every_100_ms_at_most_and_collectives_apart_from_them(
    reporter: Reporter, launcher: Callable[[], list[RankReport]], clock: Clock
):
    reporter.stepped(1, {})
    told = launcher()
    for step in range(2, 102):
        clock.seconds += 0.01
        reporter.in_collective()
        clock.seconds += 0.01
        reporter.stepped(step, {})
        told += launcher()
    assert 18 <= sum(report.in_collective for report in told) <= 21
    assert 18 <= sum(not report.in_collective for report in told) <= 21
    assert [report.step for report in told] == sorted(report.step for report in told)


def test_newest_metrics_stay_until_there_are_newer_ones(
    reporter: Reporter, launcher: Callable[[], list[RankReport]], clock: Clock
):
    reporter.stepped(1, {"loss": 3.0, "val_mse": 9.0})
    clock.seconds = 1
    reporter.stepped(2, {"loss": 2.0})
    assert [{m.name: m.value for m in report.metrics} for report in launcher()] == [
        {"loss": "3", "val_mse": "9"},
        {"loss": "2", "val_mse": "9"},
    ]


def test_the_artefact_goes_out_with_the_end_whatever_the_clock_says(
    reporter: Reporter, launcher: Callable[[], list[RankReport]]
):
    artifact = ArtifactSummary(uri="s3://models/x", digest="sha256:" + "0" * 64, size_bytes=1, variant="default")
    reporter.stepped(1, {})
    reporter.enter(RunPhase.PUBLISHING)
    reporter.enter(RunPhase.DONE, artifact=artifact)
    assert [(report.phase, report.artifact) for report in launcher()[1:]] == [
        (RunPhase.PUBLISHING, None),
        (RunPhase.DONE, artifact),
    ]


def test_a_launcher_that_does_not_read_never_stops_training(
    reporter: Reporter, launcher: Callable[[], list[RankReport]], clock: Clock
):
    for step in range(1, 2000):
        clock.seconds += 1
        reporter.stepped(step, {})
    assert launcher()[0].step == 1


def test_without_a_launcher_nothing_is_sent(clock: Clock):
    reporter = Reporter(rank=0, generation=1, path=None, clock=clock)
    reporter.enter(RunPhase.STARTING)
    reporter.stepped(1, {"loss": 1.0})
