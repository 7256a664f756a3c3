"""What the coordinator commands, event by event. Orders and races are test_simulated_gang's."""

from collections.abc import Sequence
from typing import Any

import pytest

from bigmodel.api.names import gang_token
from bigmodel.api.progress import ArtifactSummary, CheckpointSummary, Incident, RankReport, RunPhase
from bigmodel.api.run import Budgets, RestartCounts
from bigmodel.launcher.coordinator import (
    AnnouncementAnswered,
    Close,
    CloseStore,
    Command,
    Coordinator,
    Decided,
    Gang,
    Leave,
    Lost,
    OpenStore,
    Phase,
    Received,
    SaveWanted,
    Send,
    StoreFailed,
    StoreListens,
    Tick,
)
from bigmodel.launcher.message import (
    Beat,
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
from tests.unit.launcher.gang import a_rule

UID = "0b8d7c2e"
CHECKPOINT = CheckpointSummary(step=5, uri="s3://a/c", digest="sha256:" + "1" * 64, saved_at=7.0)
ARTIFACT = ArtifactSummary(uri="s3://a/b", digest="sha256:" + "0" * 64, size_bytes=1, variant="default")


def hello(index: int, **changes: Any) -> Hello:
    values = {
        "token": gang_token(UID, 2),
        "index": index,
        "incarnation": 0,
        "attempt": 2,
        "generation": 0,
        "processes": 1,
    }
    return Hello(**(values | changes))


HEARTBEAT = Heartbeat(incarnation=0, standing=Standing())


class Trial:
    """A coordinator of attempt 2 and what it said since asked last. A member's connection is 10 + its index."""

    def __init__(self, nodes: int = 2, **changes: Any) -> None:
        budgets = {"max_restarts": 3, "max_hang_restarts": 3, "hang_timeout_seconds": 5} | changes.pop("budgets", {})
        gang = {"incarnation": 0, "pod_ip": "10.0.0.1", "artifact_promised": False, "store": True} | changes
        gang = {"start_deadline_seconds": 900} | gang
        self.now = 100.0
        self.coordinator = Coordinator(Gang(UID, 2, nodes, budgets=Budgets(**budgets), **gang), 0.0, self.now)
        self.nodes = nodes

    def give(self, event: Any, after: float = 0.0) -> list[Command]:
        self.now += after
        return self.coordinator.handle(event, self.now)

    def hear(self, index: int, message: Any) -> list[Command]:
        return self.give(Received(10 + index, message))

    def running(self) -> "Trial":
        for index in range(self.nodes):
            self.hear(index, hello(index))
        self.give(StoreListens(1, 4711))
        assert self.coordinator.phase is Phase.RUNNING
        return self

    def stop_all(self, but: Sequence[int] = ()) -> list[Command]:
        generation = self.coordinator.generation
        said: list[Command] = []
        for index in range(self.nodes):
            if index not in but:
                said += self.hear(index, Stopped(generation=generation))
        return said


def failure(rank: int, code: int = 1, age: float = 0.0, **changes: Any) -> RankFailure:
    return RankFailure(rank=rank, exit_code=code, message="boom", age_seconds=age, **changes)


def start(generation: int, **changes: Any) -> Start:
    env = {
        "MASTER_ADDR": "10.0.0.1",
        "TORCHELASTIC_RUN_ID": f"{UID}-2-{generation}",
        "TORCHELASTIC_RESTART_COUNT": str(generation - 1),
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "MASTER_PORT": "4711",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    return Start(**({"generation": generation, "env": env, "spent": RestartCounts()} | changes))


def to(index: int, message: Any) -> Send:
    return Send(10 + index, message)


def test_a_generation_starts_when_all_are_there_and_the_store_listens() -> None:
    it = Trial()
    assert it.hear(1, hello(1)) == [to(1, HEARTBEAT)]
    assert it.hear(0, hello(0)) == [to(0, HEARTBEAT), OpenStore(1)]
    assert it.give(StoreListens(1, 4711)) == [to(1, start(1)), to(0, start(1))]


def test_without_a_store_it_starts_at_once() -> None:
    it = Trial(1, store=False)
    env = {name: value for name, value in start(1).env.items() if name[:11] not in ("MASTER_PORT", "TORCHELASTI")}
    (_, sent) = it.hear(0, hello(0))
    assert isinstance(sent, Send)
    assert isinstance(sent.message, Start)
    assert env.items() <= sent.message.env.items()
    assert "MASTER_PORT" not in sent.message.env


def test_a_new_coordinator_goes_on_from_what_the_members_remember() -> None:
    it = Trial(2, incarnation=1)
    incident = Incident(at=1.0, generation=4, cause="ProgramError", message="boom")
    it.hear(0, hello(0, incarnation=1))
    it.hear(1, hello(1, generation=6, spent=RestartCounts(program=2, hang=1), incidents=[incident]))
    said = it.give(StoreListens(7, 4711))
    want = start(7, spent=RestartCounts(program=2, hang=1), incidents=[incident])
    assert said == [to(0, want), to(1, want)]


def test_generations_do_not_repeat_when_nobody_remembers_them() -> None:
    it = Trial(1, incarnation=2)
    assert it.hear(0, hello(0, incarnation=2))[-1] == OpenStore(20_001)


def test_a_failure_stops_all_and_the_next_generation_is_counted() -> None:
    it = Trial().running()
    assert it.hear(1, Failed(generation=1, failure=failure(1))) == [
        to(0, Stop(generation=1)),
        to(1, Stop(generation=1)),
        OpenStore(2),
    ]
    assert it.hear(1, Stopped(generation=1, failures=[failure(1)])) == []
    assert it.hear(0, Stopped(generation=1)) == []
    spent = RestartCounts(program=1)
    said = it.give(StoreListens(2, 4711))
    incidents = it.coordinator.board.incidents
    assert said == [
        to(0, start(2, spent=spent, incidents=incidents)),
        to(1, start(2, spent=spent, incidents=incidents)),
    ]


def test_a_store_that_listens_before_the_ranks_are_reaped_is_used_when_they_are() -> None:
    it = Trial().running()
    it.hear(1, Failed(generation=1, failure=failure(1)))
    assert it.give(StoreListens(2, 4711)) == []
    said = it.stop_all()
    assert [c.message.generation for c in said if isinstance(c, Send)] == [2, 2]


def test_a_store_that_was_opened_too_early_is_opened_again() -> None:
    """A member may remember a later generation, and an early one may fail before it is needed."""
    it = Trial().running()
    it.hear(1, Failed(generation=1, failure=failure(1)))
    assert it.give(StoreFailed(2, "no port")) == []
    assert it.stop_all() == [OpenStore(2)]
    it.give(StoreListens(2, 4711))
    it.give(Lost(11))
    it.hear(0, Stopped(generation=2))
    assert it.give(Received(21, hello(1, generation=7)))[-1] == OpenStore(8)


def test_what_was_said_of_an_earlier_generation_counts_for_nothing() -> None:
    it = Trial().running()
    it.hear(1, Failed(generation=1, failure=failure(1)))
    it.stop_all()
    it.give(StoreListens(2, 4711))
    assert it.coordinator.phase is Phase.RUNNING
    for late in (Failed(generation=1, failure=failure(0)), Stopped(generation=1), Done(generation=1)):
        assert it.hear(0, late) == []
    assert it.coordinator.phase is Phase.RUNNING


def test_a_store_of_an_earlier_generation_starts_nothing() -> None:
    it = Trial()
    it.hear(0, hello(0))
    it.hear(1, hello(1))
    assert it.give(StoreListens(0, 4711)) == []
    assert it.give(StoreFailed(0, "late")) == []
    assert it.coordinator.phase is Phase.PREPARING


def test_a_store_that_cannot_listen_costs_the_program_budget() -> None:
    it = Trial(budgets={"max_restarts": 0})
    it.hear(0, hello(0))
    it.hear(1, hello(1))
    said = it.give(StoreFailed(1, "no port"))
    (outcome,) = [command.outcome for command in said if isinstance(command, Decided)]
    assert outcome.reason == "MaxRestartsExceeded"
    assert "no port" in outcome.message


def test_the_culprit_is_the_first_to_die_not_the_first_to_be_heard_of() -> None:
    it = Trial(budgets={"max_restarts": 0}).running()
    it.hear(0, Failed(generation=1, failure=failure(0, connection_error=True)))
    it.give(Tick(), after=0.5)
    it.hear(0, Stopped(generation=1, failures=[failure(0, age=0.5, connection_error=True)]))
    said = it.hear(1, Stopped(generation=1, failures=[failure(1, 137, age=0.6, signal="SIGKILL")]))
    (outcome,) = [command.outcome for command in said if isinstance(command, Decided)]
    assert (outcome.code, outcome.error.rank, outcome.error.signal) == (137, 1, "SIGKILL")


def test_the_end_is_written_down_then_told_and_index_0_goes_last() -> None:
    it = Trial(budgets={"max_restarts": 0}).running()
    it.hear(1, Failed(generation=1, failure=failure(1, 42)))
    said = it.stop_all()
    kinds = [type(command) for command in said]
    assert kinds == [CloseStore, Decided, Send]
    assert isinstance(said[-1], Send)
    assert (said[-1].connection, said[-1].message.code) == (11, 42)
    assert it.give(Tick(), after=0.1) == []
    (leave,) = it.hear(1, Leaving())
    assert isinstance(leave, Leave)
    assert leave.outcome.code == 42


def test_a_member_that_came_back_is_told_the_end_again() -> None:
    it = Trial(budgets={"max_restarts": 0}).running()
    it.hear(1, Failed(generation=1, failure=failure(1, 42)))
    it.stop_all()
    it.give(Lost(11), after=1)
    (told,) = it.give(Received(21, hello(1)))
    assert isinstance(told, Send)
    assert (told.connection, told.message.code) == (21, 42)


def test_but_it_is_not_waited_for_for_ever() -> None:
    it = Trial(budgets={"max_restarts": 0}).running()
    it.hear(1, Failed(generation=1, failure=failure(1, 42)))
    it.stop_all()
    said = it.give(Tick(), after=6)
    assert [c.outcome.code for c in said if isinstance(c, Leave)] == [42]


def test_all_done_is_success_with_the_artefact() -> None:
    it = Trial(artifact_promised=True).running()
    assert it.hear(1, Done(generation=1)) == []
    said = it.hear(0, Done(generation=1, artifact=ARTIFACT))
    outcome = Exit(code=0, artifact=ARTIFACT)
    assert said == [CloseStore(), Decided(outcome), to(1, outcome)]


def test_all_done_without_the_artefact_that_was_promised_is_a_failure() -> None:
    it = Trial(1, artifact_promised=True).running()
    said = it.hear(0, Done(generation=1))
    assert [c.outcome.reason for c in said if isinstance(c, Leave)] == ["NoArtifact"]


LOSSES = {
    "its connection breaks": lambda it: it.give(Lost(11)),
    "it is silent for longer than its lease": lambda it: [
        command
        for _ in range(6)
        for command in [*it.hear(0, Heartbeat()), *it.give(Tick(), after=0.4)]
        if not (isinstance(command, Send) and isinstance(command.message, Heartbeat))
    ],
    "its successor comes": lambda it: it.give(Received(21, hello(1, incarnation=1))),
    "it comes anew itself": lambda it: it.give(Received(21, hello(1))),
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_a_lost_member_ends_the_generation_at_no_cost(lose: Any) -> None:
    it = Trial(budgets={"max_restarts": 0}).running()
    said = lose(it)
    assert to(0, Stop(generation=1)) in said
    assert Close(11) in said
    if 1 not in it.coordinator.seats:
        it.give(Received(21, hello(1, incarnation=1)))
    it.hear(0, Stopped(generation=1))
    assert it.give(StoreListens(2, 4711)) != []
    progress = it.coordinator.progress()
    assert (progress.program_restarts, [i.cause for i in progress.incidents]) == (0, ["PodLost"])


def test_a_coordinator_that_did_not_run_calls_nobody_silent() -> None:
    it = Trial().running()
    it.give(Tick(), after=60)
    assert it.coordinator.phase is Phase.RUNNING


STRANGERS = {
    "another gang": (hello(1, token="t"), Refused(reason="the token is of another gang")),
    "an attempt that is over": (
        hello(1, attempt=1, token=gang_token(UID, 1)),
        Fenced(reason="attempt 1 is over, this is 2"),
    ),
    "an index beyond the gang": (hello(2), Refused(reason="index 2 of a gang of 2")),
    "an incarnation that was replaced": (
        hello(1, incarnation=0),
        Fenced(reason="incarnation 0 of index 1 was replaced by incarnation 1"),
    ),
}


@pytest.mark.parametrize(("message", "answer"), STRANGERS.values(), ids=STRANGERS)
def test_who_is_turned_away(message: Hello, answer: Any) -> None:
    it = Trial()
    it.hear(0, hello(0))
    it.give(Received(11, hello(1, incarnation=1)))
    assert it.give(Received(99, message)) == [Send(99, answer), Close(99)]
    assert it.coordinator.phase is Phase.PREPARING


SUPERSEDED = {
    "a later attempt": Received(99, hello(1, attempt=3, token=gang_token(UID, 3))),
    "a member that knows a later coordinator": Received(99, hello(1, coordinator_incarnation=1)),
    "the answer to an announcement": AnnouncementAnswered(),
}


@pytest.mark.parametrize("event", SUPERSEDED.values(), ids=SUPERSEDED)
def test_a_coordinator_that_was_replaced_leaves(event: Any) -> None:
    (leave,) = Trial().give(event)
    assert isinstance(leave, Leave)
    assert leave.outcome.code == 78


def test_pods_of_different_size_are_told_so() -> None:
    it = Trial()
    it.hear(0, hello(0, processes=4))
    said = it.hear(1, hello(1, processes=8))
    (outcome,) = [command.outcome for command in said if isinstance(command, Decided)]
    assert outcome.reason == "UnequalNodes"
    assert "index 0 runs 4 processes and index 1 runs 8" in outcome.message


def beat(rank: int, step: int, idle: float = 0.0, phase: RunPhase = RunPhase.TRAINING) -> Heartbeat:
    report = RankReport(rank=rank, generation=1, phase=phase, step=step, total_steps=100, in_collective=rank == 0)
    return Heartbeat(beats=[Beat(report=report, idle_seconds=idle)])


def test_a_hang_is_stopped_with_stacks_and_charged_to_its_own_budget() -> None:
    it = Trial().running()
    for step in (1, 2):
        for rank in (0, 1):
            it.hear(rank, beat(rank, step))
    it.hear(1, beat(1, 2, idle=5.2))
    said = it.give(Tick(), after=0.1)
    assert to(0, Stop(generation=1, stacks=True)) in said
    it.hear(0, Stopped(generation=1, stacks=[RankStack(rank=0, waits=True, text="all_reduce")]))
    it.hear(1, Stopped(generation=1, stacks=[RankStack(rank=1, text="while True")]))
    progress = it.coordinator.progress()
    assert (progress.hang_restarts, progress.program_restarts) == (1, 0)
    (incident,) = progress.incidents
    assert (incident.cause, incident.rank) == ("Hang", 1)
    assert incident.message.endswith("rank 1:\nwhile True\nrank 0:\nall_reduce")


def test_progress_is_rank_0s() -> None:
    it = Trial().running()
    for step in (1, 5, 9):
        it.hear(0, beat(0, step))
        it.hear(1, beat(1, step + 1))
        it.give(Tick(), after=0.4)
    progress = it.coordinator.progress()
    assert (progress.step, progress.total_steps, progress.phase) == (9, 100, RunPhase.TRAINING)
    assert progress.steps_per_second == 10.0
    assert progress.first_step_at == 100.0


def test_recovery_is_measured_to_the_next_step() -> None:
    it = Trial().running()
    it.hear(0, beat(0, 9))
    it.hear(1, Failed(generation=1, failure=failure(1)))
    it.stop_all()
    it.give(StoreListens(2, 4711), after=0.25)
    report = RankReport(rank=0, generation=2, phase=RunPhase.TRAINING, step=8)
    it.hear(0, Heartbeat(beats=[Beat(report=report, idle_seconds=0)]))
    (incident,) = it.coordinator.progress().incidents
    assert (incident.generation, incident.recovery_seconds, incident.resumed_from_step) == (1, 0.25, 7)


def test_saving_on_request_goes_to_all_while_they_train() -> None:
    it = Trial()
    assert it.give(SaveWanted()) == []
    it.running()
    assert it.give(SaveWanted()) == [to(0, Save()), to(1, Save())]
    assert it.hear(1, Save()) == [to(0, Save()), to(1, Save())]


def test_a_pod_that_is_told_to_stop_is_let_go_when_all_have_saved() -> None:
    it = Trial(budgets={"max_restarts": 0}).running()
    assert it.hear(1, Leaving()) == [to(0, Save(leave=True)), to(1, Save(leave=True))]
    assert it.hear(0, Failed(generation=1, failure=failure(0, 143))) == []
    assert it.hear(0, Stopped(generation=1, failures=[failure(0, 143)])) == []
    said = it.hear(1, Stopped(generation=1, failures=[failure(1, 143)]))
    assert said == [to(1, Exit(code=143, reason="Terminated"))]
    assert it.give(Lost(11)) == [Close(11)]
    assert it.give(Received(21, hello(1, incarnation=1)))[-1] == OpenStore(2)
    assert it.coordinator.progress().program_restarts == 0


def test_before_the_first_step_of_a_recipe_there_is_nothing_to_save() -> None:
    """A16: a rank that still starts does not hear of notices, and may wait for one that has left."""
    it = Trial(artifact_promised=True, budgets={"max_restarts": 0}).running()
    it.hear(0, beat(0, 0, phase=RunPhase.STARTING))
    assert to(0, Stop(generation=1)) in it.hear(1, Leaving())
    assert it.stop_all()[-1] == to(1, Exit(code=143, reason="Terminated"))
    it = Trial(artifact_promised=True).running()
    it.hear(0, beat(0, 1))
    assert it.hear(1, Leaving()) == [to(0, Save(leave=True)), to(1, Save(leave=True))]


def test_when_all_pods_are_told_to_stop_index_0_is_let_go_last() -> None:
    it = Trial().running()
    it.hear(0, Leaving())
    assert it.hear(1, Leaving()) == []  # they save already
    said = it.stop_all()
    assert [c.connection for c in said if isinstance(c, Send)] == [11]
    assert it.give(Lost(11)) == [Close(11), to(0, Exit(code=143, reason="Terminated"))]


def test_a_pod_that_is_told_to_stop_while_the_gang_waits_goes_at_once() -> None:
    it = Trial()
    it.hear(1, hello(1))
    assert it.hear(1, Leaving()) == [to(1, Exit(code=143, reason="Terminated"))]


def test_ranks_that_save_and_leave_with_0_have_not_finished() -> None:
    """A27, A29: many programs call it success when they were told to stop and did."""
    it = Trial(budgets={"max_restarts": 0}).running()
    it.hear(0, beat(0, 9))
    it.hear(1, Leaving())
    it.hear(0, Done(generation=1))
    said = it.hear(1, Done(generation=1))
    assert said == [to(1, Exit(code=143, reason="Terminated"))]
    assert [i.cause for i in it.coordinator.progress().incidents] == ["Terminated"]


FINISHED = {
    "its last step is made": {"step": 100},
    "it says so": {"step": 3, "phase": RunPhase.DONE},
}


@pytest.mark.parametrize("changes", FINISHED.values(), ids=FINISHED)
def test_a_gang_that_is_told_to_leave_when_it_has_finished_has_finished(changes: dict[str, Any]) -> None:
    it = Trial().running()
    it.hear(0, beat(0, **changes))
    it.hear(1, Leaving())
    it.hear(0, Done(generation=1))
    (outcome,) = [c.outcome for c in it.hear(1, Done(generation=1)) if isinstance(c, Decided)]
    assert outcome.code == 0


def test_a_program_that_reported_no_step_is_told_so() -> None:
    """Exit code 0 alone is not success: some programs find no GPU, say so and end with 0."""
    it = Trial(1).running()
    said = it.hear(0, Done(generation=1))
    assert [c.outcome for c in said if isinstance(c, Leave)] == [Exit(code=0, message="no step was reported")]
    it = Trial(1).running()
    it.hear(0, beat(0, 1))
    said = it.hear(0, Done(generation=1))
    assert [c.outcome for c in said if isinstance(c, Leave)] == [Exit(code=0)]


def test_every_end_names_the_newest_checkpoint() -> None:
    """A29: also when rank 0 told it while its generation was being stopped."""
    it = Trial(budgets={"max_restarts": 0}).running()
    it.hear(1, Failed(generation=1, failure=failure(1)))
    report = RankReport(rank=0, generation=1, phase=RunPhase.CHECKPOINTING, step=5, checkpoint=CHECKPOINT)
    it.hear(0, Heartbeat(beats=[Beat(report=report, idle_seconds=0)]))
    (decided,) = [c for c in it.stop_all() if isinstance(c, Decided)]
    assert decided.outcome.checkpoint == CHECKPOINT


def test_who_is_let_go_knows_the_checkpoint() -> None:
    it = Trial().running()
    it.hear(1, Leaving())
    report = RankReport(rank=0, generation=1, phase=RunPhase.CHECKPOINTING, step=5, checkpoint=CHECKPOINT)
    it.hear(0, Heartbeat(beats=[Beat(report=report, idle_seconds=0)]))
    assert it.stop_all()[-1] == to(1, Exit(code=143, reason="Terminated", checkpoint=CHECKPOINT))


def test_a_coordinator_that_follows_another_and_finds_nobody_leaves() -> None:
    """A21: its predecessor may have been lost after it told the others the end. One that is the first waits: they may
    queue for nodes."""
    first, second = Trial(), Trial(incarnation=1)
    for it in (first, second):
        it.hear(0, hello(0, incarnation=it.coordinator.gang.incarnation))
        for _ in range(1800):
            it.hear(0, Heartbeat())
            it.give(Tick(), after=0.5)
    assert not [c for c in first.give(Tick(), after=1) if isinstance(c, Leave)]
    (leave,) = [c for c in second.give(Tick(), after=1) if isinstance(c, Leave)]
    assert (leave.outcome.code, leave.outcome.reason) == (75, "MembersLost")
    assert "missing: index 1" in leave.outcome.message


def test_a_hang_before_the_first_step_is_charged_as_one() -> None:
    """A21, C26: it ends with stacks, and its rank is named."""
    it = Trial().running()
    it.hear(0, beat(0, 1))
    it.hear(1, beat(1, 0, idle=901, phase=RunPhase.STARTING))
    assert to(1, Stop(generation=1, stacks=True)) in it.give(Tick(), after=0.1)
    it.stop_all()
    (incident,) = it.coordinator.progress().incidents
    assert (incident.cause, incident.rank) == ("Hang", 1)
    assert "did not get to its first step" in incident.message


SIGTERM_WHILE = {
    "gathering": (lambda it: it.hear(1, hello(1)), Phase.GATHERING),
    "preparing": (lambda it: [it.hear(index, hello(index)) for index in (0, 1)], Phase.PREPARING),
    "stopping": (lambda it: it.running().hear(0, Failed(generation=1, failure=failure(0))), Phase.STOPPING),
}


@pytest.mark.parametrize(("reach", "phase"), SIGTERM_WHILE.values(), ids=SIGTERM_WHILE)
def test_a_pod_that_is_told_to_stop_at_any_time_is_let_go(reach: Any, phase: Phase) -> None:
    """A16, C27."""
    it = Trial()
    reach(it)
    assert it.coordinator.phase is phase
    said = it.give(Received(11, Leaving()), after=0.1)
    if phase is Phase.STOPPING:
        said = it.stop_all()
    assert to(1, Exit(code=143, reason="Terminated")) in said
    assert it.coordinator.progress().program_restarts == (1 if phase is Phase.STOPPING else 0)


def test_a_pod_that_is_told_to_stop_when_all_is_over_ends_as_all_do() -> None:
    it = Trial(budgets={"max_restarts": 0}).running()
    it.hear(1, Failed(generation=1, failure=failure(1, 42)))
    it.stop_all()
    (leave,) = it.hear(1, Leaving())
    assert isinstance(leave, Leave)
    assert leave.outcome.code == 42


TRIES = {
    "max + 1, at steps that differ": (3, [1, 1, 1, 1], lambda n: n, "MaxRestartsExceeded"),
    "one": (0, [1], lambda n: n, "MaxRestartsExceeded"),
    "a retryable code is not endless": (2, [42, 42, 42], lambda n: n, "MaxRestartsExceeded"),
    "three at one step": (9, [1, 1, 1], lambda n: 5, "CrashLoop"),
    "three at one step, but the codes differ": (3, [1, 2, 1, 2], lambda n: 5, "MaxRestartsExceeded"),
    "a code of a rule, at once": (3, [43], lambda n: 5, "FailJob"),
    "never, the code is ignored, until another": (0, [44, 44, 44, 44, 1], lambda n: n, "MaxRestartsExceeded"),
}


@pytest.mark.parametrize(("budget", "codes", "step", "reason"), TRIES.values(), ids=TRIES)
def test_how_many_tries_there_are(budget: int, codes: list[int], step: Any, reason: str) -> None:
    """A11, A13, A14, A15, C29: exactly maxRestarts + 1, fewer only by a rule or a crash loop."""
    rules = [a_rule("Restart", 42), a_rule("FailJob", 42, 43), a_rule("RestartAndIgnore", 44)]
    it = Trial(1, budgets={"max_restarts": budget, "rules": rules})
    it.hear(0, hello(0))
    decided: list[Exit] = []
    for number, code in enumerate(codes, start=1):
        assert not decided, f"it ended after {number - 1} tries"
        it.give(Tick(), after=60)
        it.give(StoreListens(it.coordinator.generation, 4711))
        assert it.coordinator.phase is Phase.RUNNING
        report = RankReport(
            rank=0, generation=it.coordinator.generation, phase=RunPhase.TRAINING, step=step(number), total_steps=100
        )
        it.hear(0, Heartbeat(beats=[Beat(report=report, idle_seconds=0)]))
        generation = it.coordinator.generation
        it.hear(0, Failed(generation=generation, failure=failure(0, code)))
        said = it.hear(0, Stopped(generation=generation, failures=[failure(0, code)]))
        decided = [command.outcome for command in said if isinstance(command, Decided)]
    assert [(outcome.reason, outcome.code) for outcome in decided] == [(reason, codes[-1])]
