"""The reconciler between engine and rules: which pod is asked, and that what it says reaches the decision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bigmodel.api import names
from bigmodel.controller.decision import POD, WORKLOAD, Children, Key, Manifest, ResourceKind
from bigmodel.controller.job.inquiries import Stuck
from bigmodel.controller.job.observe import Complaint, ObservedJob, Pulled, Room
from bigmodel.controller.job.progress import Target
from bigmodel.controller.job.reconciler import JobReconciler
from bigmodel.controller.kube import errors
from bigmodel.controller.settings import Kueue
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


ROOM = Room((), "nobody looked")


class Questions:
    """Remembers which job waits and which pod is stuck."""

    def __init__(self) -> None:
        self.waiting: set[Key] = set()
        self.stuck: dict[Key, Stuck] = {}

    def room(self, key: Key) -> Room | None:
        self.waiting.add(key)
        return ROOM

    def complaint(self, key: Key, stuck: Stuck) -> Complaint | None:
        self.stuck[key] = stuck
        return Complaint(stuck.uid, "it hurts")

    def placed(self, key: Key) -> None:
        self.waiting.discard(key)

    def started(self, key: Key) -> None:
        self.stuck.pop(key, None)


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
    reconciler = JobReconciler(SETTINGS, FACTS, reports, Questions(), NOTHING)
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
    reconciler = JobReconciler(SETTINGS, FACTS, Reports(world.pulled), Questions(), NOTHING)
    by_kind = {kind: (child,) for (kind, _), child in world.children.items() if kind != "Pod"}
    pods = tuple(child for (kind, _), child in world.children.items() if kind == "Pod")
    snapshot = await reconciler.observe(world.job, Children({**by_kind, POD.kind: pods}), ())
    decision = reconciler.decide(snapshot, world.now)
    assert decision.status is not None
    assert decision.status["progress"]["step"] == 40


def test_the_engine_is_told_which_children_to_watch() -> None:
    assert {kind.kind for kind in JobReconciler.children} == {"Pod", "Service", "PodGroup", "NetworkPolicy"}
    assert a_job().manifest["kind"] == JobReconciler.kind.kind


async def _asked(world: World, questions: Questions) -> ObservedJob:
    reconciler = JobReconciler(SETTINGS, FACTS, Reports(), questions, NOTHING)
    by_kind: dict[str, tuple[Any, ...]] = {}
    for (kind, _), child in world.children.items():
        by_kind[kind] = (*by_kind.get(kind, ()), child)
    return await reconciler.observe(world.job, Children(by_kind), ())


async def test_room_is_looked_for_while_a_job_does_not_fit_and_no_longer() -> None:
    world, questions = World().settle(), Questions()
    assert (await _asked(world, questions)).room is None
    assert (await _asked(world.unplaced(1, "0/2 nodes are available"), questions)).room == ROOM
    assert questions.waiting == {KEY}
    assert (await _asked(world.start(), questions)).room is None
    assert questions.waiting == set()


async def test_a_pod_with_a_node_that_does_not_run_is_asked_about_until_it_runs() -> None:
    world, questions = World().settle(), Questions()
    assert (await _asked(world.start(0), questions)).complaint is None
    job = await _asked(world.waits(1, "ContainerCreating", ""), questions)
    assert questions.stuck[KEY].name == world.pod(1)["metadata"]["name"]
    assert job.complaint == Complaint(world.pod(1)["metadata"]["uid"], "it hurts")
    assert (await _asked(world.start(1), questions)).complaint is None
    assert questions.stuck == {}


async def test_a_command_is_never_asked_for_progress() -> None:
    """It has no launcher that would answer."""
    command = a_job().spec(recipe=None, command=["torchrun", "train.py"])
    assert await _followed(World(job=command.manifest).settle().start()) is None


async def test_flavours_are_read_for_pods_that_are_still_to_be_made() -> None:
    """A32: and why one can't be read is a sentence, not a failed pass."""
    admission = {"podSetAssignments": [{"name": "main", "flavors": {"cpu": "spot", "gpu": "gone", "memory": "secret"}}]}
    conditions = [{"type": kind, "status": "True", "reason": kind} for kind in ("QuotaReserved", "Admitted")]
    workload = {
        "metadata": {"name": names.workload("mlp", JOB_UID, 1), "uid": "w"},
        "spec": {},
        "status": {"admission": admission, "conditions": conditions},
    }
    spot = {"spec": {"nodeLabels": {"gpu": "h200"}}}
    settings = SETTINGS.model_copy(update={"kueue": Kueue(enabled=True)})
    facts = SimpleNamespace(pod_group_served=True, workload=WORKLOAD)
    cluster = Cluster(spot=spot, secret=errors.Forbidden("no"))
    reconciler = JobReconciler(settings, facts, Reports(), Questions(), cluster)
    assert reconciler.children == (*JobReconciler.children, WORKLOAD)
    job = a_job().metadata(labels={"kueue.x-k8s.io/queue-name": "team-a"}).manifest
    observed = await reconciler.observe(job, Children({WORKLOAD.kind: (workload,)}), ())
    assert observed.queueing.read == {
        ("ResourceFlavor", "spot"): spot,
        ("ResourceFlavor", "gone"): "ResourceFlavor gone does not exist",
        ("ResourceFlavor", "secret"): "ResourceFlavor secret may not be read: no",
    }


async def test_without_the_switch_kueue_is_not_served() -> None:
    facts = SimpleNamespace(pod_group_served=True, workload=WORKLOAD)
    reconciler = JobReconciler(SETTINGS, facts, Reports(), Questions(), NOTHING)
    assert reconciler.children == JobReconciler.children
    assert (await reconciler.observe(a_job().manifest, Children(), ())).queueing.kind is None
