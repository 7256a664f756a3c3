"""What holds whatever happens: after a crash at any write, after a lost status, in any order of events."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.controller.service.world import (
    DIGEST_A,
    DIGEST_B,
    NAME,
    PARITY_FAILS,
    Crash,
    Health,
    World,
    a_job,
    a_service,
    a_training_job,
    crashed,
    serving_world,
)

Step = Callable[[World], None]


def _publish(digest: str, uid: str) -> Step:
    return lambda world: setattr(world, "job", a_job(digest, uid))


def _break(revision: int) -> Step:
    return lambda world: world.health.__setitem__(revision, PARITY_FAILS)


SCENARIOS: dict[str, list[Step]] = {
    "first revision": [_publish(DIGEST_A, "job-1")],
    "first revision is rejected": [_break(1), _publish(DIGEST_A, "job-1")],
    "a successor is promoted and the old one goes": [
        _publish(DIGEST_A, "job-1"),
        _publish(DIGEST_B, "job-2"),
        lambda world: world.later(300),
    ],
    "a successor is rejected": [_publish(DIGEST_A, "job-1"), _break(2), _publish(DIGEST_B, "job-2")],
    "a rollout is overtaken": [
        _publish(DIGEST_A, "job-1"),
        lambda world: world.health.__setitem__(2, Health(ready=False)),
        _publish(DIGEST_B, "job-2"),
        lambda world: world.change_spec(batching={"maxBatchSize": 8}),
    ],
    "changed back within the window": [
        _publish(DIGEST_A, "job-1"),
        lambda world: world.change_spec(batching={"maxBatchSize": 8}),
        lambda world: world.change_spec(batching={}),
    ],
}


def _play(steps: list[Step], crash_after: int | None) -> World:
    """The scenario with one crash after that write, and a new controller that knows nothing of the old one."""
    world = World(a_service(server={"replicas": 2}), a_training_job())
    world.crash_after(crash_after)
    for step in [lambda world: None, *steps]:
        step(world)
        try:
            world.run()
        except Crash:
            world.crash_after(None)
            world.run()
    return world


def _end_state(world: World) -> dict[str, Any]:
    status = json.loads(json.dumps(world.status))
    return {
        "status": status,
        "selected": world.selected,
        "replicas": {name: m["spec"]["replicas"] for (kind, name), m in world.objects.items() if kind == "Deployment"},
        "objects": sorted(world.objects),
        "outcomes": {n: world.outcome(int(n.rsplit("-r", 1)[1])) for n in world.names_of("ControllerRevision")},
        "pods": sorted(world.pods),
        "events": sorted({(event.reason, event.about) for event in world.events}),
    }


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_crash_after_any_write_leads_to_the_same_end(name: str) -> None:
    reference = _play(SCENARIOS[name], None)
    expected = _end_state(reference)
    for position in range(len(reference.writes)):
        crashed_world = _play(SCENARIOS[name], position)
        end = _end_state(crashed_world)
        lost_events = {"events": expected["events"]}  # an event after the crashed status write is not sent again
        assert set(end["events"]) <= set(expected["events"])
        assert end | lost_events == expected, f"crash after write {position}: {reference.writes[position]}"
        starts = [write for write in crashed_world.writes if write.startswith("create Deployment")]
        assert starts == [write for write in reference.writes if write.startswith("create Deployment")]


def test_deciding_again_writes_nothing() -> None:
    world = serving_world(server={"replicas": 2})
    writes = len(world.writes)
    for _ in range(3):
        world.reconcile()
        world.later(0.4)
    assert world.writes[writes:] == []


@pytest.mark.parametrize("health", [Health(), Health(ready=False), PARITY_FAILS], ids=["kept", "loading", "rejected"])
def test_a_deleted_status_is_rebuilt_and_no_pod_is_touched(health: Health) -> None:
    world = serving_world()
    world.health[2] = health
    world.job = a_job(DIGEST_B, "job-2")
    world.run()
    expected, pods, writes = world.status, dict(world.pods), len(world.writes)
    del world.owner["status"]
    world.run()
    assert world.status == expected
    assert world.pods == pods
    assert set(world.writes[writes:]) == {"status"}


HEALTHS = {
    "good": Health(),
    "loading": Health(ready=False),
    "silent": Health(ready=False, stage=None),
    "parity": PARITY_FAILS,
    "crashing": Health(server=crashed(1, restarts=3), ready=False, stage=None),
    "unplaced": Health(scheduled=False, scheduler_says="Insufficient memory"),
    "half": Health(ready_limit=1),
}


class AnyOrder(RuleBasedStateMachine):
    """Users, jobs, nodes and controllers do things in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(a_service(server={"replicas": 1}))
        self.published = 0

    @rule()
    def the_job_publishes(self) -> None:
        self.published += 1
        digest = "sha256:" + f"{self.published:064x}"
        self.world.job = a_job(digest, f"job-{self.published}")

    @rule()
    def the_job_goes(self) -> None:
        self.world.job = None

    @rule(size=st.integers(1, 3))
    def the_batch_size_changes(self, size: int) -> None:
        self.world.change_spec(batching={"maxBatchSize": size})

    @rule(replicas=st.integers(0, 3))
    def it_is_scaled(self, replicas: int) -> None:
        self.world.change_spec(server={"replicas": replicas})

    @rule(paused=st.booleans())
    def it_is_paused(self, paused: bool) -> None:
        self.world.change_spec(rollout={"paused": paused})

    @rule(name=st.sampled_from(sorted(HEALTHS)), ahead=st.integers(0, 1))
    def a_revision_gets_another_health(self, name: str, ahead: int) -> None:
        newest = len(self.world.names_of("ControllerRevision"))
        self.world.health[max(1, newest + ahead)] = HEALTHS[name]

    @rule(seconds=st.sampled_from([1, 30, 300, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.world.later(seconds)

    @rule()
    def the_status_is_deleted(self) -> None:
        self.world.owner.pop("status", None)

    @precondition(lambda self: self.world.pods)
    @rule(data=st.data())
    def a_pod_goes(self, data: st.DataObject) -> None:
        self.world.delete_pod(data.draw(st.sampled_from(sorted(self.world.pods))))

    @rule()
    def the_kubelets_act(self) -> None:
        self.world.kubelet()

    @rule(writes=st.integers(0, 4))
    def the_controller_dies_in_a_pass(self, writes: int) -> None:
        self.world.crash_after(writes)
        try:
            self.world.reconcile()
        except Crash:
            pass
        finally:
            self.world.crash_after(None)

    @rule()
    def everything_settles(self) -> None:
        world = self.world
        world.run(40)
        writes = len(world.writes)
        world.reconcile()
        assert world.writes[writes:] == [], "settled, and yet it writes"
        status = world.status
        del world.owner["status"]
        pods = dict(world.pods)
        world.run()
        assert world.pods == pods
        volatile = {"conditions"}  # lastTransitionTime can't be rebuilt
        assert {k: v for k, v in world.status.items() if k not in volatile} == {
            k: v for k, v in status.items() if k not in volatile
        }
        told = [(c["type"], c["status"], c["reason"], c["message"]) for c in status["conditions"]]
        assert [(c["type"], c["status"], c["reason"], c["message"]) for c in world.status["conditions"]] == told

    @invariant()
    def at_most_two_revisions_have_pods(self) -> None:
        sized = [
            name
            for (kind, name), manifest in self.world.objects.items()
            if kind == "Deployment" and manifest["spec"]["replicas"] > 0
        ]
        # A third one may still be going, in the pass in which its record says so.
        open_or_serving = {name for name in sized if self._has_a_role(name)}
        assert len(open_or_serving) <= 2, open_or_serving

    def _has_a_role(self, name: str) -> bool:
        number = int(name.rsplit("-r", 1)[1])
        return number == self.world.selected or self.world.outcome(number) is None

    @invariant()
    def the_address_stays_once_it_is_there(self) -> None:
        assert self.world.selected is not None or ("Service", NAME) not in self.world.objects


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
