"""The reconciler between engine and rules: which pod is asked, and that what it says reaches the decision."""

from __future__ import annotations

from types import SimpleNamespace

from bigmodel.controller.decision import POD, Children, Key, Manifest, ResourceKind
from bigmodel.controller.job.observe import Pulled
from bigmodel.controller.job.progress import Target
from bigmodel.controller.job.reconciler import JobReconciler
from bigmodel.controller.kube import errors
from tests.builders import JOB_UID, NOON, SETTINGS, a_job, a_progress, gave_up
from tests.unit.controller.job.world import World, training_world

KEY = Key("BigModelJob", "ml", "mlp")
FACTS = SimpleNamespace(pod_group_served=True, workload=None)


class Cluster:
    """Cluster-wide objects, by kind and name."""

    def __init__(self, **objects: Manifest | errors.ApiError) -> None:
        self.objects = objects

    async def get(self, kind: ResourceKind, namespace: str | None, name: str) -> Manifest:
        found = self.objects.get(name, errors.NotFound(f"{kind.plural} {name} not found"))
        if isinstance(found, errors.ApiError):
            raise found
        return found


NOTHING = Cluster()


class Reports:
    """Remembers what was asked for; answers what it was given."""

    def __init__(self, pulled: Pulled | None = None) -> None:
        self.pulled = pulled
        self.followed: list[tuple[Key, Target | None]] = []

    def follow(self, key: Key, target: Target | None) -> None:
        self.followed.append((key, target))

    def latest(self, key: Key) -> Pulled | None:
        return self.pulled if key == KEY else None


async def _followed(world: World) -> Target | None:
    reports = Reports()
    reconciler = JobReconciler(SETTINGS, FACTS, reports, NOTHING)
    pods = tuple(child for (kind, _), child in world.children.items() if kind == "Pod")
    await reconciler.observe(world.job, Children({POD.kind: pods}), ())
    [(key, target)] = reports.followed
    assert key == KEY
    return target


async def test_index_0_is_asked_while_it_runs() -> None:
    world = World().settle()
    assert await _followed(world) is None
    world.start(0)
    target = await _followed(world)
    assert target is not None
    assert (target.ip, target.job_uid, target.attempt) == ("10.0.0.1", JOB_UID, 1)
    world.start(1)
    later = await _followed(world)
    assert later is not None
    assert later != target, "the gang stands: there is news"
    assert later.pod_uid == target.pod_uid


async def test_its_successor_is_asked_and_not_it() -> None:
    world = training_world()
    old = await _followed(world)
    world.node_lost(0).settle().start(0)
    new = await _followed(world)
    assert old is not None
    assert new is not None
    assert new.pod_uid != old.pod_uid


async def test_nobody_is_asked_for_a_job_that_has_ended_or_is_another_controllers() -> None:
    world = training_world().ends(0, 1, gave_up(0)).settle()
    assert await _followed(world) is None
    theirs = training_world()
    theirs.job["spec"]["managedBy"] = "another"
    assert await _followed(theirs) is None


async def test_what_index_0_said_reaches_the_status() -> None:
    world = World().settle().start().settle().after(5).tells(a_progress().training(40, NOON))
    reconciler = JobReconciler(SETTINGS, FACTS, Reports(world.pulled), NOTHING)
    by_kind = {kind: (child,) for (kind, _), child in world.children.items() if kind != "Pod"}
    pods = tuple(child for (kind, _), child in world.children.items() if kind == "Pod")
    snapshot = await reconciler.observe(world.job, Children({**by_kind, POD.kind: pods}), ())
    decision = reconciler.decide(snapshot, world.now)
    assert decision.status is not None
    assert decision.status["progress"]["step"] == 40


def test_the_engine_is_told_which_children_to_watch() -> None:
    assert {kind.kind for kind in JobReconciler.children} == {"Pod", "Service", "PodGroup", "NetworkPolicy"}
    assert a_job().manifest["kind"] == JobReconciler.kind.kind
