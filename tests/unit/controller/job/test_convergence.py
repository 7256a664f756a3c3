"""Whatever happens to a job, and whenever its controller dies: one end, the same end, and then no more writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bigmodel.controller.decision import Manifest, Rejection
from tests.builders import NOON, a_checkpoint, a_job, a_last_word, a_progress, gave_up, seconds
from tests.unit.controller.job.world import Crash, World

SIZE = 3
JOB = a_job().spec(
    nodes=SIZE,
    failurePolicy={"maxRestarts": 2, "maxInfrastructureRestarts": 4},
    scheduling={"startDeadlineSeconds": 300},
)

COMMAND = JOB.spec(recipe=None, command=["torchrun", "train.py"])
KINDS = pytest.mark.parametrize("job", [JOB.manifest, COMMAND.manifest], ids=["a recipe", "a command"])


@dataclass(frozen=True)
class Happens:
    """One thing that happens, to the pod of an index where it is about one."""

    what: str
    index: int = 0


Story = list[Happens]


def _steps(world: World, index: int) -> None:
    launched = "command" not in world.job["spec"]
    if launched and 0 in _indexes(world) and world.pod(0).get("status", {}).get("phase") == "Running":
        step = 10 + int((world.now - NOON).total_seconds())
        world.tells(a_progress().with_(totalSteps=0).training(step, first_step_at=world.now))


def _fails(world: World, index: int) -> None:
    world.ends(index, 3, "Segmentation fault")


PODS: dict[str, Callable[[World, int], object]] = {
    "it starts": lambda world, index: world.start(index),
    "it is gone": lambda world, index: world.gone(index),
    "its node is lost": lambda world, index: world.node_lost(index),
    "it is deleted": lambda world, index: world.deleted(index),
    "it is drained": lambda world, index: world.ends(index, 137, disrupted="EvictionByEvictionAPI"),
    "it runs out of memory": lambda world, index: world.ends(index, 137, reason="OOMKilled"),
    "it fails": _fails,
    "it gives up": lambda world, index: world.ends(index, 1, gave_up(index, world.status["attempt"])),
    "it ends well": lambda world, index: world.ends(index, 0, a_last_word(index, world.status["attempt"])),
}
GANG: dict[str, Callable[[World, int], object]] = {
    "all start": lambda world, index: world.start(),
    "it trains": _steps,
    "kubelets end what was deleted": lambda world, index: world.terminated(),
    "a second passes": lambda world, index: world.after(1),
    "a minute passes": lambda world, index: world.after(60),
    "more than the start deadline passes": lambda world, index: world.after(301),
    "the spec is edited": lambda world, index: _resize(world),
    "it is suspended": lambda world, index: _suspend(world, True),
    "it is resumed": lambda world, index: _suspend(world, False),
    "it saves": lambda world, index: _saves(world),
    "what was deleted saves and leaves": lambda world, index: _leaves(world),
    "a quota is used up": lambda world, index: _refuse(world, True),
    "the quota is raised": lambda world, index: _refuse(world, False),
    "somebody deletes the Service": lambda world, index: world.children.pop(("Service", "mlp-gyjmk"), None),
    "somebody edits the Service": lambda world, index: _edit_service(world),
    "somebody edits labels": lambda world, index: _edit_labels(world),
}
HAPPENINGS = st.one_of(
    st.builds(Happens, st.sampled_from(sorted(PODS)), st.integers(0, SIZE - 1)),
    st.builds(Happens, st.sampled_from(sorted(GANG))),
)


def _resize(world: World) -> None:
    if "finished" not in world.status:
        world.job["spec"]["nodes"] = SIZE + 1 - (world.job["spec"]["nodes"] - SIZE)
        world.job["metadata"]["generation"] += 1


def _suspend(world: World, wanted: bool) -> None:
    if "finished" not in world.status:
        world.edit(suspend=wanted)


def _saves(world: World) -> None:
    if world.pulled is not None and world.pulled.progress is not None and 0 in _indexes(world):
        step = world.pulled.progress.step
        told = a_progress().with_(totalSteps=0, checkpoint=a_checkpoint(step, world.status["attempt"]))
        world.tells(told.training(step, first_step_at=world.now))


def _leaves(world: World) -> None:
    for pod in world.pods():
        phase = pod.get("status", {}).get("phase", "Pending")
        if "deletionTimestamp" in pod["metadata"] and phase not in ("Succeeded", "Failed"):
            index, attempt = (int(pod["metadata"]["labels"][f"bigmodel.io/{name}"]) for name in ("index", "attempt"))
            word = a_last_word(index, attempt, 143, reason="Terminated", checkpoint=a_checkpoint(500, attempt))
            world.ends(index, 143, word)


def _refuse(world: World, refuses: bool) -> None:
    def refuse(manifest: Manifest) -> Rejection | None:
        wanted = refuses and manifest["kind"] == "Pod"
        return Rejection("Pod", manifest["metadata"]["name"], 403, "exceeded quota: q", NOON) if wanted else None

    world.refuse = refuse


def _edit_service(world: World) -> None:
    if service := world.children.get(("Service", "mlp-gyjmk")):
        service["spec"]["selector"] = {"app": "mine"}


def _edit_labels(world: World) -> None:
    for pod in world.pods():
        pod["metadata"]["labels"]["bigmodel.io/active"] = "false"


def _indexes(world: World) -> list[int]:
    return [int(pod["metadata"]["labels"]["bigmodel.io/index"]) for pod in world.pods()]


def happen(world: World, it: Happens) -> None:
    if it.what in GANG:
        GANG[it.what](world, it.index)
    elif it.index in _indexes(world):
        phase = world.pod(it.index).get("status", {}).get("phase", "Pending")
        if phase not in ("Succeeded", "Failed"):  # what has ended does not end again
            PODS[it.what](world, it.index)


class Dying(World):
    """Its controller dies after every `every`-th write."""

    every = 1

    def _wrote(self, what: str) -> None:
        self.writes.append(what)
        if len(self.writes) % self.every == 0:
            raise Crash(what)


def told(world: World, story: Story) -> World:
    """The world after the story: settled after everything that happens."""
    world.settle(passes=60)
    for it in story:
        happen(world, it)
        world.settle(passes=60)
        check(world)
    return world


def brought_to_its_end(world: World) -> World:
    """From here on nothing goes wrong."""
    _refuse(world, False)
    _suspend(world, False)
    for _ in range(12):
        if "finished" in world.status:
            break
        world.terminated().settle(60).after(61).settle(60).start().settle(60)
        if len(world.pods()) == world.status["nodes"]["desired"] and "finished" not in world.status:
            world.completes().settle(60)
    return world.terminated().settle(60)


def check(world: World) -> None:
    """What must hold whenever the controller has nothing to do."""
    status = world.status
    active = [
        (labels["bigmodel.io/attempt"], labels["bigmodel.io/index"])
        for (kind, _), child in world.children.items()
        if kind == "Pod"
        and (labels := child["metadata"]["labels"])["bigmodel.io/active"] == "true"
        and labels["bigmodel.io/attempt"] == str(status["attempt"])
    ]
    assert len(active) == len(set(active)), "one pod an index is in the DNS"
    created = [write for write in world.writes if write.startswith("create Pod ")]
    assert len(created) == len(set(created)), "a name is used once"
    restarts = status["restarts"]
    assert restarts["total"] == restarts["program"] + restarts["infrastructure"] + restarts["hang"]
    assert status["observedGeneration"] == world.job["metadata"]["generation"]
    ends = [c["type"] for c in status["conditions"] if c["type"] in ("Complete", "Failed")]
    assert len(ends) == (1 if "finished" in status else 0)
    ledger = status["goodput"]
    booked = {name: value for name, value in ledger.items() if name.endswith("Seconds")}
    assert min(booked.values()) >= 0
    assert NOON + seconds(sum(booked.values())) <= world.now
    if world.status["phase"] == "Suspended" and not world.running():
        assert world.condition("Suspended") == ("True", "Suspended")
        assert (world.names("PodGroup"), status["nodes"]["summary"][:2]) == ([], "0/")


@KINDS
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(HAPPENINGS, max_size=10))
@example([Happens("all start"), Happens("it is gone", 1), Happens("it is gone", 2), Happens("all start")])
def test_every_story_has_an_end_after_which_nothing_runs_and_nothing_is_written(job: Manifest, story: Story) -> None:
    world = brought_to_its_end(told(World(job=job), story))
    check(world)
    assert world.status["finished"] == "True"
    assert world.running() == []
    writes, status = len(world.writes), world.status
    for it in (Happens("it is gone", 0), Happens("a minute passes"), Happens("it fails", 1)):
        happen(world, it)
        world.settle()
    assert world.status == status, "an end is never taken back"
    assert len(world.writes) == writes


@KINDS
@pytest.mark.parametrize("every", [1, 2, 3])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(HAPPENINGS, max_size=8))
@example([Happens("it ends well", 0), Happens("it is suspended")])
def test_a_controller_that_dies_after_any_write_comes_to_the_same_end(job: Manifest, every: int, story: Story) -> None:
    reference = told(World(job=job), story)
    dying = Dying(job=job)
    dying.every = every
    assert told(dying, story).end_state() == reference.end_state()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(HAPPENINGS, max_size=8))
def test_deciding_twice_writes_nothing(story: Story) -> None:
    world = told(World(job=JOB.manifest), story)
    writes = len(world.writes)
    decision = world.reconcile()
    assert len(world.writes) == writes
    assert not decision.again
    assert decision.events == ()
