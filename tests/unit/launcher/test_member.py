"""What a member commands, event by event."""

from typing import Any

import pytest

from bigmodel.api.names import gang_token
from bigmodel.api.progress import ArtifactSummary, CheckpointSummary, Ledger, RankReport, RunPhase
from bigmodel.api.run import RestartCounts
from bigmodel.launcher.member import (
    Announced,
    Command,
    Connect,
    Connected,
    Disconnect,
    Disconnected,
    KillRanks,
    Leave,
    Member,
    NotifyRanks,
    Place,
    RankEnded,
    Ready,
    Reaped,
    Received,
    Reported,
    Send,
    StacksTaken,
    StartRanks,
    State,
    TakeStacks,
    Terminating,
    Tick,
)
from bigmodel.launcher.message import (
    Announcement,
    Done,
    Exit,
    Failed,
    Fenced,
    Heartbeat,
    Hello,
    Leaving,
    RankFailure,
    RankStack,
    Refused,
    Save,
    Standing,
    Start,
    Stop,
    Stopped,
)

TOKEN = gang_token("uid", 1)
ARTIFACT = ArtifactSummary(uri="s3://a/b", digest="sha256:" + "0" * 64, size_bytes=1, variant="default")
START = Start(generation=3, env={"MASTER_ADDR": "10.0.0.1"}, spent=RestartCounts(program=1))
CHECKPOINT = CheckpointSummary(step=5, uri="s3://a/c", digest="sha256:" + "1" * 64, saved_at=7.0)
STANDING = Standing(checkpoint=CHECKPOINT, ledger=Ledger(lost_seconds=3.0), first_step_at=2.0)
BOOM = RankFailure(rank=2, exit_code=5, message="boom")


class Trial:
    """The member of index 1, two ranks: 2 and 3."""

    def __init__(self, grace_seconds: float = 60) -> None:
        self.now = 50.0
        self.member = Member(Place("uid", 1, 1, 0, 2, grace_seconds, 900), self.now)

    def give(self, event: Any, after: float = 0.0) -> list[Command]:
        self.now += after
        return self.member.handle(event, self.now)

    def ticks(self, seconds: float) -> list[Command]:
        """What it commands meanwhile, heartbeats aside."""
        said = [command for _ in range(round(seconds * 10)) for command in self.give(Tick(), after=0.1)]
        return [c for c in said if not (isinstance(c, Send) and isinstance(c.message, Heartbeat))]

    def hear(self, message: Any) -> list[Command]:
        return self.give(Received(message))

    def connected(self) -> "Trial":
        self.give(Tick())
        self.give(Connected())
        return self

    def running(self) -> "Trial":
        self.connected().hear(START)
        assert self.member.state is State.RUNNING
        return self

    def report(self, rank: int, step: int = 1, **changes: Any) -> list[Command]:
        values = {"rank": rank, "generation": 3, "phase": RunPhase.TRAINING, "step": step}
        return self.give(Reported(RankReport(**(values | changes))))


def announcement(incarnation: int, **changes: Any) -> Announced:
    values = {"token": TOKEN, "attempt": 1, "incarnation": incarnation, "address": f"10.0.{incarnation}.1:8272"}
    return Announced(Announcement(**(values | changes)))


def test_it_looks_for_the_coordinator_every_tenth_of_a_second() -> None:
    it = Trial()
    assert it.give(Tick()) == [Connect(None)]
    assert it.give(Tick(), after=0.2) == []  # still trying
    it.give(Disconnected())
    assert it.give(Tick(), after=0.1) == [Connect(None)]


def test_it_introduces_itself_with_all_it_remembers() -> None:
    it = Trial().running()
    it.report(3, step=7)
    it.hear(Heartbeat(standing=STANDING))
    it.give(Disconnected(), after=0.25)
    it.give(Reaped(3))
    it.give(Tick(), after=0.25)
    (said,) = it.give(Connected())
    assert said == Send(
        Hello(
            token=TOKEN,
            index=1,
            incarnation=0,
            attempt=1,
            generation=3,
            processes=2,
            spent=RestartCounts(program=1),
            standing=STANDING,
            step=7,
            parted_seconds=0.5,
        )
    )


def test_it_starts_what_it_is_told_to_once() -> None:
    it = Trial().connected()
    assert it.hear(START) == [StartRanks(3, START.env)]
    assert it.hear(START) == []


def test_the_first_failure_is_told_at_once_and_all_of_them_when_stopped() -> None:
    it = Trial().running()
    assert it.give(RankEnded(3, 2, BOOM)) == [Send(Failed(generation=3, failure=BOOM))]
    echo = RankFailure(rank=3, exit_code=1, message="reset", traceback="long", connection_error=True)
    assert it.give(RankEnded(3, 3, echo), after=0.5) == []
    assert it.hear(Stop(generation=3)) == [KillRanks()]
    it.give(Tick(), after=0.5)
    (said,) = it.give(Reaped(3))
    first = BOOM.model_copy(update={"age_seconds": 1.0})
    second = echo.model_copy(update={"age_seconds": 0.5, "traceback": None})
    assert said == Send(Stopped(generation=3, failures=[first, second]))


def test_ranks_that_we_killed_are_no_failures() -> None:
    it = Trial().running()
    it.hear(Stop(generation=3))
    killed = RankFailure(rank=2, exit_code=137, signal="SIGKILL", message="-")
    assert it.give(RankEnded(3, 2, killed)) == []
    assert it.give(Reaped(3)) == [Send(Stopped(generation=3))]


def test_done_is_told_when_all_ended_well_with_what_rank_0_published() -> None:
    it = Trial()
    it.member.place = Place("uid", 1, 0, 0, 1, 60, 900)
    it.running()
    it.report(0, phase=RunPhase.DONE, artifact=ARTIFACT)
    it.give(RankEnded(3, 0, None))
    (said,) = it.give(Reaped(3))
    assert isinstance(said, Send)
    assert isinstance(said.message, Done)
    assert said.message.artifact == ARTIFACT
    assert it.hear(Stop(generation=3)) == [Send(Stopped(generation=3))]


def test_ranks_that_vanished_without_an_end_are_not_done() -> None:
    it = Trial().running()
    it.give(RankEnded(3, 2, None))
    assert it.give(Reaped(3)) == [Send(Stopped(generation=3))]


def test_stacks_are_taken_a_second_before_the_kill() -> None:
    it = Trial().running()
    assert it.hear(Stop(generation=3, stacks=True)) == [TakeStacks()]
    stacks = (RankStack(rank=2, text="f"), RankStack(rank=3, stopped=True))
    it.give(StacksTaken(stacks))
    assert it.ticks(1.1) == [KillRanks()]
    assert it.give(Reaped(3)) == [Send(Stopped(generation=3, stacks=list(stacks)))]


def test_stacks_of_ranks_that_ended_meanwhile_harm_no_later_ones() -> None:
    it = Trial().running()
    it.hear(Stop(generation=3, stacks=True))
    it.give(Reaped(3))
    it.hear(START.model_copy(update={"generation": 4}))
    it.give(StacksTaken((RankStack(rank=2, text="of another life"),)))
    assert it.ticks(1.5) == []
    it.hear(Stop(generation=4))
    assert it.give(Reaped(4)) == [Send(Stopped(generation=4))]


def test_a_lost_coordinator_costs_the_ranks_their_life_before_another_is_looked_for() -> None:
    it = Trial().running()
    assert it.give(Disconnected()) == [KillRanks()]
    assert it.ticks(0.5) == []
    assert it.give(Reaped(3)) == []
    assert it.give(Tick(), after=0.1) == [Connect(None)]


def test_a_silent_coordinator_is_a_lost_one() -> None:
    it = Trial().running()
    assert it.ticks(1.9) == []
    it.hear(Heartbeat())
    assert it.ticks(1.9) == []
    assert it.ticks(0.3) == [Disconnect(), KillRanks()]


def test_a_launcher_that_did_not_run_calls_nobody_silent() -> None:
    it = Trial().running()
    it.report(2, step=7)
    said = it.give(Tick(), after=60)
    assert it.member.state is State.RUNNING
    (beats,) = [c.message.beats for c in said if isinstance(c, Send) and isinstance(c.message, Heartbeat)]
    assert beats[0].idle_seconds == 0


def test_heartbeats_say_since_when_a_rank_made_no_step() -> None:
    it = Trial().running()
    assert len(it.report(2, step=7)) == 1  # its first word goes out at once
    assert it.report(2, step=8) == []
    it.give(Tick(), after=0.4)
    it.report(2, step=8, in_collective=True)
    (said,) = it.give(Tick(), after=0.2)
    assert isinstance(said, Send)
    (beat,) = said.message.beats
    assert (beat.report.step, beat.report.in_collective, round(beat.idle_seconds, 3)) == (8, True, 0.6)


REPORTS = {
    "another generation": {"rank": 2, "generation": 2},
    "another pod's rank": {"rank": 0},
}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_reports_that_are_not_of_our_ranks_are_dropped(report: dict[str, Any]) -> None:
    assert Trial().running().report(**report) == []


def test_an_announced_coordinator_is_tried_first_and_dns_every_other_time() -> None:
    it = Trial()
    it.give(announcement(1))
    assert it.give(Tick()) == [Connect("10.0.1.1:8272")]
    it.give(Disconnected())
    assert it.give(Tick(), after=0.1) == [Connect(None)]
    it.give(Disconnected())
    assert it.give(Tick(), after=0.1) == [Connect("10.0.1.1:8272")]


def test_a_later_coordinator_is_followed_and_an_earlier_one_not() -> None:
    it = Trial().running()
    it.hear(Heartbeat(incarnation=1))
    assert it.give(announcement(1)) == []
    assert it.give(announcement(0)) == []
    assert it.give(announcement(2, token="of another gang")) == []
    assert it.give(announcement(2)) == [Disconnect(), KillRanks()]
    assert not it.member.follows(announcement(1).announcement)


LAST_WORDS = {
    "the end of the gang": (Exit(code=42, reason="FailJob"), 42),
    "fenced": (Fenced(reason="replaced"), 78),
}


@pytest.mark.parametrize(("message", "code"), LAST_WORDS.values(), ids=LAST_WORDS)
def test_it_leaves_when_told_to(message: Any, code: int) -> None:
    said = Trial().running().hear(message)
    assert isinstance(said[-1], Leave)
    assert said[-1].outcome.code == code


def test_refused_it_looks_elsewhere() -> None:
    it = Trial().connected()
    assert it.hear(Refused(reason="no")) == [Disconnect()]
    assert it.member.state is State.SEARCHING


def test_ranks_that_cannot_be_reaped_end_the_launcher() -> None:
    it = Trial().running()
    it.give(Disconnected())
    assert it.ticks(29.9) == []
    (leave,) = it.ticks(0.2)[:1]
    assert isinstance(leave, Leave)
    assert (leave.outcome.code, leave.outcome.reason) == (75, "NotReaped")


def test_sigterm_asks_the_gang_to_save_and_waits_for_the_coordinator() -> None:
    it = Trial().running()
    assert it.give(Terminating()) == [Send(Leaving())]
    assert it.hear(Save(leave=True)) == [NotifyRanks(leave=True)]
    for rank in (2, 3):
        it.give(RankEnded(3, rank, RankFailure(rank=rank, exit_code=143, message="saved")))
    it.give(Reaped(3))
    said = it.hear(Exit(code=143, reason="Terminated"))
    assert said[-1] == Leave(Exit(code=143, reason="Terminated"))


@pytest.mark.parametrize(("grace", "patience"), [(60, 50), (30, 20), (15, 7.5), (2, 1)])
def test_it_never_waits_into_the_last_seconds_of_the_grace_period(grace: float, patience: float) -> None:
    it = Trial(grace).running()
    it.give(Terminating())
    for _ in range(round(patience * 10) - 1):
        it.hear(Heartbeat())
        assert [c for c in it.give(Tick(), after=0.1) if not isinstance(c, Send)] == []
    it.hear(Heartbeat())
    assert KillRanks() in it.give(Tick(), after=0.11)
    (leave,) = it.give(Reaped(3))
    assert isinstance(leave, Leave)
    assert leave.outcome.code == 143


def test_a_second_sigterm_does_not_wait() -> None:
    it = Trial().running()
    it.give(Terminating())
    assert it.give(Terminating()) == [KillRanks()]


def test_sigterm_without_a_coordinator_ends_it_at_once() -> None:
    (leave,) = Trial().give(Terminating())
    assert isinstance(leave, Leave)
    assert leave.outcome.code == 143


def test_a_checkpoint_goes_up_at_once_and_with_every_heartbeat() -> None:
    """Rank 0 tells it once, and its next step may come before the next heartbeat."""
    it = Trial()
    it.member.place = Place("uid", 1, 0, 0, 1, 60, 900)
    it.running()
    it.report(0, step=5)
    (told,) = it.report(0, step=5, checkpoint=CHECKPOINT)
    assert told.message.beats[0].report.checkpoint == CHECKPOINT
    it.report(0, step=6)
    (beat,) = it.give(Tick(), after=0.6)
    assert (beat.message.beats[0].report.step, beat.message.beats[0].report.checkpoint) == (6, CHECKPOINT)


def test_all_evidence_goes_up_for_the_rank_that_died_by_itself() -> None:
    it = Trial().running()
    echo = RankFailure(rank=2, exit_code=1, message="reset", traceback="t", log="l", connection_error=True)
    own = RankFailure(rank=3, exit_code=139, message="-", signal="SIGSEGV", traceback="t", log="l")
    it.give(RankEnded(3, 2, echo))
    it.give(RankEnded(3, 3, own))
    it.hear(Stop(generation=3))
    (said,) = it.give(Reaped(3))
    assert [(f.rank, f.traceback, f.log) for f in said.message.failures] == [(3, "t", "l"), (2, None, None)]


def test_who_lost_its_coordinator_for_good_leaves_after_the_start_deadline() -> None:
    """The gang may have ended while it was cut off."""
    it = Trial().running()
    it.hear(Heartbeat())
    it.give(Disconnected())
    it.give(Reaped(3))
    it.give(Connected())  # something answers at the old address, and says nothing
    it.give(Disconnected())
    assert [c for c in it.ticks(899) if not isinstance(c, Connect | Disconnect)] == []
    (leave,) = [c for c in it.ticks(3) if isinstance(c, Leave)][:1]
    assert (leave.outcome.code, leave.outcome.reason) == (75, "CoordinatorLost")
    assert "startDeadlineSeconds" in leave.outcome.message


def test_who_never_had_a_coordinator_waits_for_it() -> None:
    """Index 0 may still queue for a node: its controller counts that time."""
    it = Trial()
    for _ in range(20):
        assert [c for c in it.give(Tick(), after=100) if isinstance(c, Leave)] == []
        it.give(Disconnected())


def test_it_introduces_itself_only_when_its_ranks_can_start_at_once() -> None:
    """Else the ranks of the others would wait for its imports, under a time-out of their own."""
    it = Trial()
    it.member.ready = False
    assert it.ticks(5) == []
    assert it.give(Ready()) == []
    assert it.give(Tick(), after=0.1) == [Connect(None)]
