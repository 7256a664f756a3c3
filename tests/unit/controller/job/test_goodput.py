"""The ledger: every second of a job is booked once, to what it was spent on, whatever happens and whoever dies."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.builders import NOON, AProgress, a_checkpoint, a_job, a_progress, seconds
from tests.unit.controller.job.test_convergence import GANG, PODS, Dying, Happens, happen
from tests.unit.controller.job.world import World, training_world

TRAINING = a_progress().training(100, NOON + seconds(4))


def ledger(world: World) -> dict[str, int]:
    """The fields that are not zero, by their first word."""
    booked = {name: value for name, value in world.status["goodput"].items() if name.endswith("Seconds")}
    return {name.removesuffix("Seconds"): value for name, value in booked.items() if value}


def told(checkpoint: float = 0, lost: float = 0, recovering: float = 0, progress: AProgress = TRAINING) -> AProgress:
    said = {"checkpointSeconds": checkpoint, "lostSeconds": lost, "recoveringSeconds": recovering}
    return progress.with_(ledger=said)


def test_what_launchers_tell_is_moved_from_productive_and_once() -> None:
    world = training_world().after(60)
    for _ in range(2):  # told again, and read again by another controller
        world.tells(told(checkpoint=3.9, lost=5, recovering=2)).settle().after(10)
    assert ledger(world) == {"queued": 1, "starting": 3, "productive": 50, "checkpoint": 3, "lost": 5, "recovering": 2}
    world.after(10).tells(
        told(checkpoint=7.2, lost=5, recovering=2, progress=a_progress().training(150, NOON))
    ).settle()
    assert ledger(world) == {"queued": 1, "starting": 3, "productive": 76, "checkpoint": 7, "lost": 5, "recovering": 2}


def test_more_than_was_productive_is_never_moved_and_the_rest_later() -> None:
    world = training_world().after(10).tells(told(lost=15)).settle()
    assert ledger(world) == {"queued": 1, "starting": 3, "lost": 10}
    world.after(10).tells(told(lost=15, progress=a_progress().training(150, NOON))).settle()
    assert ledger(world) == {"queued": 1, "starting": 3, "productive": 5, "lost": 15}


def test_a_new_attempt_counts_its_own_from_zero() -> None:
    world = training_world().after(60).tells(told(checkpoint=3)).settle()
    world.gone(0).gone(1).settle().start().settle().after(10)
    world.tells(a_progress().training(20, first_step_at=world.now)).settle().after(10)
    world.tells(told(checkpoint=2, progress=a_progress().training(40, first_step_at=NOON + seconds(74)))).settle()
    assert ledger(world)["checkpoint"] == 3 + 2


def test_a_heal_in_place_that_both_saw_is_booked_once_and_as_long_as_the_launchers_say() -> None:
    world = training_world().after(60)
    starting = a_progress().with_(generation=2, programRestarts=1, firstStepAt=NOON.timestamp() + 4)
    world.tells(starting.incident(at=NOON.timestamp() + 62)).settle().after(9)
    assert world.status["phase"] == "Recovering"
    healed = starting.training(101, NOON + seconds(4)).incident(at=NOON.timestamp() + 62, recoverySeconds=6.4)
    world.tells(told(recovering=6.4, lost=2, progress=healed)).settle()
    assert ledger(world) == {"queued": 1, "starting": 3, "productive": 60 + 9 - 6 - 2, "lost": 2, "recovering": 6}


def test_the_time_in_which_a_pod_is_replaced_is_ours_to_book_and_a_later_heal_is_the_launchers() -> None:
    world = training_world().after(60).node_lost(1).settle().after(4).start(1).settle().after(9)
    world.tells(told(lost=2)).settle()
    assert (ledger(world)["recovering"], ledger(world)["lost"]) == (4 + 9, 2)
    world.after(30).tells(told(lost=2, recovering=5, progress=a_progress().training(150, NOON))).settle()
    assert ledger(world)["recovering"] == 4 + 9 + 5
    assert sum(ledger(world).values()) == 4 + 60 + 4 + 9 + 30


@pytest.mark.parametrize("nodes", [1, 2])
def test_of_a_gang_that_is_gone_the_steps_since_the_checkpoint_are_lost_at_the_speed_that_was_known(nodes: int) -> None:
    world = training_world(job=a_job().spec(nodes=nodes).manifest).after(60)
    progress = a_progress().training(500, NOON + seconds(4)).with_(stepsPerSecond=10, checkpoint=a_checkpoint(450))
    world.tells(progress).settle()
    for index in range(nodes):
        world.gone(index)
    world.settle()
    assert ledger(world)["lost"] == 5
    assert (world.status["progress"]["step"], world.status["progress"]["summary"]) == (450, "22%")
    for index in range(nodes):
        world.start().gone(index)
    world.settle()
    assert ledger(world)["lost"] == 5, "the same steps are not lost twice"


def test_when_index_0_alone_is_lost_its_successor_tells_what_is_made_again() -> None:
    world = training_world().after(60).gone(0).settle().after(4).start(0).settle().after(5)
    assert "lost" not in ledger(world)
    again = a_progress().training(60, NOON + seconds(4)).with_(updatedAt=world.now.timestamp())
    world.tells(told(lost=3, progress=again)).settle()
    assert ledger(world)["lost"] == 3
    assert world.status["incidents"][-1]["recoverySeconds"] == 9


def test_a_gang_that_saved_before_it_left_lost_nothing() -> None:
    """A16."""
    world = training_world().after(60).tells(TRAINING.with_(checkpoint=a_checkpoint(100))).settle()
    world.gone(0).gone(1).settle()
    assert "lost" not in ledger(world)
    assert world.status["progress"]["step"] == 100


def test_suspended_time_is_booked_and_does_not_spoil_the_share() -> None:
    world = training_world().after(36).tells(TRAINING).settle().edit(suspend=True).settle().terminated().settle()
    world.after(1000).edit(suspend=False).settle()
    assert ledger(world)["suspended"] == 1000
    wall = sum(ledger(world).values())
    assert wall == 1 + 3 + 36 + 1000
    assert world.status["goodput"]["summary"] == f"{ledger(world)['productive'] / (wall - 1 - 1000):.1%}"


class Audited(Dying):
    """Looks at each status that is written."""

    def _wrote(self, what: str) -> None:
        if what == "status" and "goodput" in self.status:
            booked = ledger(self)
            assert min(booked.values(), default=0) >= 0, booked
            wall = (self.now - NOON).total_seconds()
            assert abs(sum(booked.values()) - wall) <= 1, (booked, wall)
        super()._wrote(what)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.integers(1, 4))
def test_whatever_happens_the_ledger_sums_to_the_wall_time_at_every_write(data: st.DataObject, every: int) -> None:
    world = Audited(job=a_job().spec(nodes=3, failurePolicy={"maxInfrastructureRestarts": 9}).manifest)
    world.every = every
    world.settle(60).start().settle(60)
    sums = [0.0, 0.0, 0.0]
    for _ in range(data.draw(st.integers(1, 12))):
        what = data.draw(st.sampled_from([*sorted(PODS), *sorted(GANG), "its launchers tell", "time passes"]))
        match what:
            case "its launchers tell":
                sums = [seen + data.draw(st.floats(0, 30)) for seen in sums]
                _tell(world, data.draw(st.integers(0, 900)), sums)
            case "time passes":
                world.after(data.draw(st.floats(0.1, 50)))
            case _:
                happen(world, Happens(what, data.draw(st.integers(0, 2))))
        world.settle(60)


def _tell(world: World, step: int, sums: list[float]) -> None:
    first = world.pods()[0] if world.pods() else {}
    if first.get("status", {}).get("phase") == "Running" and first["metadata"]["name"].count("-0"):
        checkpoint = a_checkpoint(step // 2, world.status["attempt"])
        world.tells(told(*sums, progress=a_progress().training(step, NOON).with_(checkpoint=checkpoint)))
