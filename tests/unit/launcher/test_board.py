"""Where an attempt lost time, and what index 0 knows of checkpoints."""

from typing import Any

import pytest

from bigmodel.api.progress import CheckpointSummary, Incident, Ledger, Progress, RankReport, RunPhase
from bigmodel.api.run import RestartCounts
from bigmodel.launcher.board import Board
from bigmodel.launcher.culprit import Cause, Failure
from bigmodel.launcher.message import LINE_BYTES, LOG_BYTES, Beat, Hello, Standing, Start, decode, encode

EPOCH = 1000.0


def a_checkpoint(step: int, saved_at: float = 0.0) -> CheckpointSummary:
    return CheckpointSummary(step=step, uri=f"s3://a/{step}", digest="sha256:" + "1" * 64, saved_at=saved_at)


class Trial:
    """A board that hears of one gang; times are seconds of its clock."""

    def __init__(self) -> None:
        self.board = Board("uid", 1, EPOCH)
        self.generation = 0
        self.started()

    def started(self) -> "Trial":
        self.generation += 1
        self.board.started()
        return self

    def step(self, step: int, at: float, rank: int = 0, idle: float = 0.0, **changes: Any) -> "Trial":
        values: dict[str, Any] = {"phase": RunPhase.TRAINING, "total_steps": 100} | changes
        report = RankReport(rank=rank, generation=self.generation, step=step, **values)
        self.board.observe(Beat(report=report, idle_seconds=idle), at + idle)
        return self

    def fails(self, at: float, cause: Cause = Cause.PROGRAM, **changes: Any) -> "Trial":
        self.board.failed(Failure(cause, at, 1, 1, "boom", rank=1, **changes), self.generation)
        return self.started()

    @property
    def progress(self) -> Progress:
        return self.board.progress(self.generation, RestartCounts())


def test_steps_that_are_made_again_are_lost_and_the_time_to_the_next_one_is_recovery() -> None:
    it = Trial().step(1, at=10).step(10, at=19).step(20, at=29).fails(at=30)
    it.step(16, at=33)  # from a checkpoint at step 15, made at 24
    assert it.progress.ledger == Ledger(lost_seconds=6, recovering_seconds=3)
    (incident,) = it.progress.incidents
    assert (incident.step, incident.resumed_from_step, incident.recovery_seconds) == (20, 15, 3)


def test_no_step_lost_is_no_second_lost() -> None:
    it = Trial().step(1, at=10).step(20, at=29).fails(at=30).step(21, at=31)
    assert it.progress.ledger == Ledger(recovering_seconds=1)


def test_the_second_failure_counts_from_where_the_first_was_taken_up() -> None:
    it = Trial().step(1, at=10).step(20, at=29).fails(at=30).step(11, at=32).step(13, at=34).fails(at=35)
    it.step(11, at=36)
    assert it.progress.ledger == Ledger(lost_seconds=11 + 3, recovering_seconds=2 + 1)


def test_failures_without_a_step_between_are_one_stand_still() -> None:
    it = Trial().step(1, at=10).step(20, at=29).fails(at=30).fails(at=40).fails(at=50).step(16, at=60)
    assert it.progress.ledger == Ledger(lost_seconds=6, recovering_seconds=30)


def test_a_gang_that_hangs_stands_still_since_its_last_step() -> None:
    it = Trial().step(1, at=10).step(20, at=29).fails(at=629, cause=Cause.HANG).step(20, at=631)
    assert it.progress.ledger == Ledger(lost_seconds=1, recovering_seconds=602)


def test_before_the_first_step_nothing_recovers_it_still_starts() -> None:
    it = Trial().fails(at=5).step(1, at=9)
    assert it.progress.ledger == Ledger()


def test_the_time_of_a_replaced_pod_is_its_controllers_to_count() -> None:
    """The controller sees a pod go and its successor come; what was lost, only launchers know."""
    it = Trial().step(1, at=10).step(20, at=29)
    it.board.pod_replaced()
    it.fails(at=30, cause=Cause.LOST).step(11, at=50).step(12, at=51).fails(at=52).step(13, at=53)
    assert it.progress.ledger == Ledger(lost_seconds=11, recovering_seconds=1)


def test_what_saves_block_adds_up_over_generations() -> None:
    it = Trial().step(1, at=10, checkpoint_seconds=0.5).step(2, at=11, checkpoint_seconds=0.75)
    it.step(2, at=11, rank=1, checkpoint_seconds=99)
    it.fails(at=12).step(3, at=13, checkpoint_seconds=0.25)
    assert it.progress.ledger.checkpoint_seconds == 1.0


def test_the_newest_checkpoint_is_what_rank_0_said_last() -> None:
    """Also an older one: it found the newest corrupt."""
    it = Trial().step(9, at=10, checkpoint=a_checkpoint(8)).step(10, at=11, checkpoint_error="disk full")
    it.step(10, at=11, rank=1, checkpoint=a_checkpoint(99))
    assert it.progress.checkpoint == a_checkpoint(8)
    assert it.progress.checkpoint_error == "disk full"
    it.fails(at=12).step(0, at=13, phase=RunPhase.STARTING, checkpoint=a_checkpoint(4), checkpoint_error="8 is torn")
    assert it.progress.checkpoint == a_checkpoint(4)
    it.board.learn(a_hello(checkpoint=a_checkpoint(8)), 14)
    assert it.progress.checkpoint == a_checkpoint(4)
    assert it.step(5, at=15).progress.checkpoint_error is None


def a_hello(step: int = 0, parted: float = 0.0, **standing: Any) -> Hello:
    place = {"token": "t", "index": 1, "incarnation": 0, "attempt": 1, "generation": 3, "processes": 1}
    return Hello(**place, standing=Standing(**standing), step=step, parted_seconds=parted)


def test_a_replaced_coordinator_goes_on_from_what_the_members_remember() -> None:
    """The ledger and the newest checkpoint as a maximum; the steps lost with index 0 since that checkpoint."""
    it = Trial()
    ledger = Ledger(checkpoint_seconds=1, lost_seconds=2, recovering_seconds=3)
    known = {"checkpoint": a_checkpoint(15, saved_at=EPOCH + 70), "first_step_at": EPOCH + 10}
    it.board.learn(a_hello(step=20, parted=5, ledger=ledger, **known), 80)
    it.board.learn(a_hello(step=19, parted=5, ledger=Ledger(lost_seconds=1), first_step_at=EPOCH + 10), 80)
    assert it.progress.first_step_at == EPOCH + 10
    it.step(0, at=85, phase=RunPhase.STARTING, checkpoint=a_checkpoint(15, saved_at=EPOCH + 70)).step(16, at=90)
    assert it.progress.ledger == Ledger(checkpoint_seconds=1, lost_seconds=2 + 5, recovering_seconds=3)


def test_without_a_checkpoint_a_replaced_coordinator_lost_everything_since_the_first_step() -> None:
    it = Trial()
    it.board.learn(a_hello(step=20, parted=5, first_step_at=EPOCH + 10), 80)
    it.step(1, at=90)
    assert it.progress.ledger == Ledger(lost_seconds=65)


def test_a_coordinator_that_lives_learns_nothing_from_who_comes_back() -> None:
    it = Trial().step(1, at=10).step(20, at=29)
    it.board.learn(a_hello(step=20, parted=1, first_step_at=EPOCH + 10), 30)
    it.fails(at=30).step(21, at=31)
    assert it.progress.ledger == Ledger(recovering_seconds=1)


@pytest.mark.parametrize("text", ["x", '"\\\n'])
def test_ten_incidents_with_their_logs_still_fit_into_a_line(text: str) -> None:
    """The oldest logs go first."""
    it = Trial().step(1, at=1)
    for number in range(12):
        it.fails(at=number, log=(text * LOG_BYTES)[:LOG_BYTES], evidence=(text * LOG_BYTES)[:LOG_BYTES])
    incidents = it.progress.incidents
    start = Start(generation=1, env={}, spent=RestartCounts(), incidents=incidents, standing=it.board.standing())
    assert len(encode(start)) < LINE_BYTES
    assert decode(encode(start)) == start
    kept = [incident.log is not None for incident in incidents]
    assert kept == sorted(kept)
    assert len(kept) == 10
    assert kept[-1]


def test_an_incident_holds_the_log_and_the_furthest_step() -> None:
    it = Trial().step(7, at=5, rank=1).fails(at=6, log="the end")
    assert it.progress.incidents == [
        Incident(
            at=EPOCH + 6, generation=1, cause="ProgramError", rank=1, exit_code=1, message="boom", log="the end", step=7
        )
    ]
