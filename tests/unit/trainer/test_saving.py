"""When a rank saves, what it tells about it, and how it leaves."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bigmodel.api.job import Checkpoint
from bigmodel.api.names import ENV_NOTICE
from bigmodel.api.progress import Notice, RunPhase
from bigmodel.api.run import StoreLocation
from bigmodel.artifact.stores import Store, StoreUnreachable, open_store
from bigmodel.trainer.checkpoint.cadence import Cadence
from bigmodel.trainer.checkpoint.checkpoints import Checkpoints, checkpoint_group
from bigmodel.trainer.notices import Notices, outlive_sigterm
from bigmodel.trainer.report import Reporter
from bigmodel.trainer.saving import Saving, Wish

SAVE, LEAVE, NOTHING = Wish(save=True), Wish(save=True, leave=True), Wish()


@pytest.fixture(scope="module")
def group(alone: dist.ProcessGroup) -> dist.ProcessGroup:
    return checkpoint_group()


class Rank:
    """One rank with a clock that the test moves, and all reports it sends."""

    def __init__(self, directory: Path, group: dist.ProcessGroup, rank: int = 0, generation: int = 1) -> None:
        self.now = 100.0
        self.told: list[Any] = []
        self.notice = directory / "notice.json"
        self.store: Store = open_store(StoreLocation(uri=f"file://{directory}/store"), {})
        self.state = {"x": torch.zeros(3)}
        report = Reporter(rank, generation, "never opened", lambda: self.now)
        report._send = lambda sent, wait: self.told.append(sent)  # type: ignore[method-assign]
        self.checkpoints = Checkpoints(self.store, "checkpoint", group, 1, generation, 3, wall_clock=lambda: 7.0)
        cadence = Cadence(Checkpoint(every_seconds=60))
        self.saving = Saving(self.checkpoints, cadence, Notices(self.notice), report, lambda: self.now)
        self.report = report

    def ask(self, request: int, leave: bool = False) -> None:
        self.notice.write_text(Notice(request=request, leave=leave).model_dump_json(by_alias=True))

    def step(self, step: int, last: bool = False) -> Wish:
        """One step of a gang of one: what it wished."""
        wish = self.saving.wish(step)
        self.report.stepped(step, {})
        self.saving.obey(wish, self.state, step, last=last)
        return wish

    @property
    def saved(self) -> list[int]:
        return sorted(int(key.split("/")[2]) for key, _ in self.store.list("checkpoint") if key.endswith(".json"))

    def checkpoint_reports(self) -> list[tuple[RunPhase, int, int | None, str | None]]:
        return [
            (told.phase, told.step, told.checkpoint and told.checkpoint.step, told.checkpoint_error)
            for told in self.told
        ]


@pytest.fixture
def rank(tmp_path: Path, group: dist.ProcessGroup) -> Rank:
    rank = Rank(tmp_path, group)
    assert rank.saving.resume(rank.state) == 0
    return rank


def test_only_rank_0_looks_at_the_clock(tmp_path: Path, group: dist.ProcessGroup, rank: Rank):
    other = Rank(tmp_path, group, rank=1)
    other.saving.resume(other.state)
    for one in (rank, other):
        one.now += 60
    assert (rank.saving.wish(1), other.saving.wish(1)) == (SAVE, NOTHING)


def test_what_others_wish_is_obeyed(rank: Rank):
    assert rank.saving.wish(1) == NOTHING
    rank.saving.obey(SAVE, rank.state, 1, last=False)
    assert rank.saved == [1]


def test_each_request_is_answered_once(rank: Rank):
    assert rank.step(1) == NOTHING
    rank.ask(1)
    assert [rank.step(step) for step in (2, 3)] == [SAVE, NOTHING]
    rank.ask(2)
    assert [rank.step(step) for step in (4, 5)] == [SAVE, NOTHING]
    assert rank.saved == [2, 4]


def test_told_to_leave_it_saves_tells_and_exits_143(rank: Rank):
    rank.step(1)
    rank.ask(1, leave=True)
    with pytest.raises(SystemExit) as end:
        rank.step(2)
    assert end.value.code == 143
    assert rank.saved == [2]
    assert rank.checkpoint_reports()[-2:] == [
        (RunPhase.CHECKPOINTING, 2, None, None),
        (RunPhase.TRAINING, 2, 2, None),
    ]


def test_leaving_without_a_store_still_leaves(rank: Rank):
    saving = Saving(None, Cadence(Checkpoint()), Notices(rank.notice), rank.report, lambda: rank.now)
    assert saving.resume(rank.state) == 0
    with pytest.raises(SystemExit):
        saving.obey(LEAVE, rank.state, 1, last=False)


def test_after_the_last_step_the_model_itself_is_kept(rank: Rank):
    rank.now += 60
    assert rank.step(9, last=True) == SAVE
    assert rank.saved == []


def test_told_to_leave_at_the_last_step_it_saves(rank: Rank):
    """Publishing may take longer than the grace period."""
    rank.ask(1, leave=True)
    with pytest.raises(SystemExit):
        rank.step(9, last=True)
    assert rank.saved == [9]


def test_saves_that_fail_are_told_and_tried_at_the_next_interval(rank: Rank, monkeypatch: pytest.MonkeyPatch):
    """Fault 40: a full disk never stops training."""

    def full(*_: object) -> None:
        raise StoreUnreachable("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(rank.store, "write", full)
        rank.now += 60
        assert [rank.step(1), rank.step(2)] == [SAVE, NOTHING]
        assert "No space left on device" in (rank.told[-1].checkpoint_error or "")
    rank.now += 60
    assert rank.step(3) == SAVE
    assert rank.saved == [3]
    assert [told.checkpoint_error is None for told in rank.told[-3:]] == [False, False, True]


def test_what_blocks_is_measured(rank: Rank, monkeypatch: pytest.MonkeyPatch):
    save = rank.checkpoints.save

    def slow(*arguments: Any) -> Any:
        rank.now += 2.5
        return save(*arguments)

    monkeypatch.setattr(rank.checkpoints, "save", slow)
    for step in (1, 2):
        rank.now += 60
        rank.step(step)
    assert rank.told[-1].checkpoint_seconds == 5.0


def test_a_new_life_tells_what_it_goes_on_from(tmp_path: Path, group: dist.ProcessGroup, rank: Rank):
    rank.now += 60
    rank.step(5)
    late = Rank(tmp_path, group, generation=2)
    late.report.enter(RunPhase.STARTING)
    assert late.saving.resume(late.state) == 5
    late.step(6)
    assert late.checkpoint_reports() == [
        (RunPhase.STARTING, 0, None, None),
        (RunPhase.STARTING, 5, 5, None),
        (RunPhase.TRAINING, 6, None, None),
    ]
    assert late.told[1].checkpoint.saved_at == 7.0


def test_a_corrupt_checkpoint_is_told_until_a_save_succeeds(tmp_path: Path, group: dist.ProcessGroup, rank: Rank):
    for step in (5, 6):
        rank.now += 60
        rank.step(step)
    next((tmp_path / "store").rglob("6/rank-0.bin")).write_bytes(b"")
    late = Rank(tmp_path, group, generation=2)
    assert late.saving.resume(late.state) == 5
    late.step(6)
    assert "1.1/6 is corrupt" in (late.told[-1].checkpoint_error or "")
    late.now += 60
    late.step(7)
    assert late.told[-1].checkpoint_error is None


def test_what_is_no_notice_is_ignored(rank: Rank):
    for content in (b"", b"{", b'{"request": 0}', b"\xff" * 100):
        rank.notice.write_bytes(content)
        assert rank.saving.wish(1) == NOTHING


def test_sigterm_ends_no_rank_that_reads_notices(monkeypatch: pytest.MonkeyPatch):
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        outlive_sigterm({})
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        outlive_sigterm({ENV_NOTICE: "/x"})
        os.kill(os.getpid(), signal.SIGTERM)
        own = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        outlive_sigterm({ENV_NOTICE: "/x"})
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert own is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
