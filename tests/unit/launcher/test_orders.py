"""A pod goes; the ranks of the others die of it, each in its own words. Messages come in any order that TCP allows."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel.api.progress import RankReport, RunPhase
from bigmodel.launcher.coordinator import Lost, Phase, Received, Tick
from bigmodel.launcher.message import Beat, Failed, Heartbeat, Leaving, RankFailure, Stopped
from tests.unit.launcher.test_coordinator import Trial, hello

# What a rank may die of when its peer or its store is gone: said in words we know, in others, or by abort().
ECHOES = st.sampled_from(
    [
        {"exit_code": 1, "message": "Connection reset by peer", "connection_error": True},
        {"exit_code": 1, "message": "RuntimeError: Timed out after 10 s waiting for clients"},
        {"exit_code": 134, "message": "-", "signal": "SIGABRT"},
        {"exit_code": 143, "message": "-", "signal": "SIGTERM", "connection_error": True},
    ]
)
GOES = st.sampled_from(["hangs up", "is silent", "comes anew", "its successor comes", "is told to stop"])


def interleaved(draw: st.DrawFn, sequences: Sequence[Sequence[object]]) -> list[object]:
    """One order that keeps the order of each sequence."""
    left = [list(sequence) for sequence in sequences if sequence]
    merged: list[object] = []
    while left:
        chosen = draw(st.sampled_from(left))
        merged.append(chosen.pop(0))
        left = [sequence for sequence in left if sequence]
    return merged


@st.composite
def a_loss(draw: st.DrawFn) -> tuple[int, list[object], bool]:
    """(nodes, events, whether the gang had made a step) of a gang whose last index goes."""
    nodes = draw(st.integers(2, 4))
    gone, goes = nodes - 1, draw(GOES)
    trained = draw(st.booleans())
    heartbeat = Heartbeat(
        beats=[Beat(report=RankReport(rank=gone, generation=1, phase=RunPhase.STARTING), idle_seconds=0)]
    )
    last: list[object] = [Received(10 + gone, heartbeat)] * draw(st.integers(0, 2))
    match goes:
        case "hangs up":
            last.append(Lost(10 + gone))
        case "comes anew":
            last.append(Received(30, hello(gone)))
        case "its successor comes":
            last.append(Received(30, hello(gone, incarnation=1)))
        case "is told to stop":
            last += [Received(10 + gone, Leaving()), Received(10 + gone, Stopped(generation=1))]
        case "is silent":
            last.append("time passes")
    others = []
    for index in range(gone):
        failure = RankFailure(rank=index, **draw(ECHOES))
        story = [Failed(generation=1, failure=failure), Stopped(generation=1, failures=[failure])]
        others.append([Received(10 + index, message) for message in story])
    if goes == "is told to stop":  # nobody dies of a pod that only says it will go, before it said so
        return nodes, [*last[:-1], *interleaved(draw, [last[-1:], *others])], trained
    return nodes, interleaved(draw, [last, *others]), trained


@settings(max_examples=300, deadline=None, derandomize=True)
@given(a_loss(), st.floats(0, 0.3))
def test_a_pod_that_goes_is_never_charged_to_the_program(loss: tuple[int, list[object], bool], between: float) -> None:
    """A9, A16: however early the other ranks were heard of, and whatever they died of."""
    nodes, events, trained = loss
    it = Trial(nodes, budgets={"max_restarts": 0}).running()
    for index in range(nodes if trained else 0):
        report = RankReport(rank=index, generation=1, phase=RunPhase.TRAINING, step=7)
        it.hear(index, Heartbeat(beats=[Beat(report=report, idle_seconds=0)]))
    for event in events:
        if event == "time passes":
            for _ in range(25):
                for index in range(nodes - 1):
                    it.hear(index, Heartbeat())
                it.give(Tick(), after=0.1)
        else:
            it.give(event, after=between / len(events))
    progress = it.coordinator.progress()
    assert it.coordinator.outcome is None
    assert progress.program_restarts == 0
    assert {incident.cause for incident in progress.incidents} <= {"PodLost", "Terminated"}
    assert it.coordinator.phase in (Phase.GATHERING, Phase.PREPARING, Phase.STOPPING)


OWN = st.sampled_from(
    [
        {"exit_code": 42, "message": "of its own choice"},
        {"exit_code": 139, "message": "-", "signal": "SIGSEGV"},
        {"exit_code": 137, "message": "-", "signal": "SIGKILL"},
    ]
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(OWN, st.booleans())
def test_a_rank_that_died_by_itself_is_charged_though_a_pod_goes_afterwards(own: dict, same_pod: bool) -> None:
    """Else a program whose death takes its launcher along would never come to the end of its budget."""
    it = Trial(3, budgets={"max_restarts": 0}).running()
    index = 2 if same_pod else 1
    failure = RankFailure(rank=index, **(own if not same_pod else own | {"exit_code": 1, "signal": None}))
    it.hear(index, Failed(generation=1, failure=failure))
    it.give(Lost(12), after=0.1)
    for other in (0, 1):
        it.hear(other, Stopped(generation=1, failures=[failure] if other == index else []))
    assert it.coordinator.outcome is not None
    assert it.coordinator.outcome.reason == "MaxRestartsExceeded"
