"""Where pods go: what a gang lacks, what keeps one from starting, nodes that failed it, and one place for all."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from bigmodel.api.job import AvoidedNode
from bigmodel.controller.decision import Rejection
from bigmodel.controller.job.avoidance import after_losses
from bigmodel.controller.job.capacity import Tally
from bigmodel.controller.job.failure import Cause, Fault, Loss
from bigmodel.controller.job.observe import Complaint, Room
from tests.builders import NOON, a_job, a_last_word, pod_name, time_text
from tests.unit.controller.job.test_capacity import TWO, a_pod
from tests.unit.controller.job.test_kueue import queued
from tests.unit.controller.job.world import World, training_world

SCHEDULER = "0/2 nodes are available: 1 Insufficient nvidia.com/gpu."
ZONE = "topology.kubernetes.io/zone"


def a_room(*pods: dict[str, Any]) -> Room:
    tally = Tally()
    tally.add_nodes(TWO)
    tally.add_pods(pods)
    return Room(tally.rooms())


def gpu_world(**fields: Any) -> World:
    job = a_job().spec(resources={"limits": {"nvidia.com/gpu": 8}})
    return World(job=job.manifest, **fields).settle()


# What it lacks


def test_a_gang_that_does_not_fit_says_what_it_needs_and_what_is_free_where() -> None:
    """A25, C30; the scheduler's own words follow."""
    world = gpu_world()
    world.group_says("False", "Unschedulable", SCHEDULER).settle()
    assert world.message("Admitted").startswith(f"The gang does not fit and holds no node: {SCHEDULER}")
    world.room = a_room(a_pod("gpu-1", gpu="3"))
    world.settle()
    assert world.condition("Admitted") == ("False", "Unschedulable")
    assert world.message("Admitted").startswith(
        "The gang does not fit and holds no node: needs 2 × 8 nvidia.com/gpu; free: 5 on gpu-1, 8 on gpu-2. "
        f"The scheduler: {SCHEDULER}"
    )
    assert world.status["message"] == world.message("Admitted")


def test_without_a_pod_group_it_says_so_too() -> None:
    world = gpu_world(pod_group_served=False, room=a_room(a_pod("gpu-1", gpu="3")))
    world.bind(0).unplaced(1, SCHEDULER).settle()
    assert "needs 2 × 8 nvidia.com/gpu; free: 5 on gpu-1, 8 on gpu-2" in world.message("Admitted")
    assert "is released" in world.message("Admitted")


def test_where_nodes_may_not_be_read_the_schedulers_text_stays_and_what_is_missing_is_said() -> None:
    world = gpu_world(room=Room((), "the operator may not list nodes"))
    world.group_says("False", "Unschedulable", SCHEDULER).settle()
    assert SCHEDULER in world.message("Admitted")
    assert "(what is free on which node is not shown: the operator may not list nodes)" in world.message("Admitted")


def test_where_the_numbers_say_that_it_fits_the_scheduler_has_the_word() -> None:
    world = gpu_world(room=a_room())
    world.group_says("False", "Unschedulable", SCHEDULER).settle()
    assert "needs" not in world.message("Admitted")
    assert SCHEDULER in world.message("Admitted")


def test_of_a_gang_that_a_queue_admitted_only_the_scheduler_speaks() -> None:
    """A32: the flavour, too, says which nodes it may use."""
    world, kueue = queued()
    kueue.admits()
    world.settle().bind(0).unplaced(1, SCHEDULER)
    world.room = a_room(a_pod("gpu-1", gpu="8"), a_pod("gpu-2", gpu="8"))
    world.settle()
    assert "needs" not in world.message("Admitted")
    assert SCHEDULER in world.message("Admitted")


# What keeps a pod from starting


def test_a_missing_claim_is_named_with_what_to_do() -> None:
    """C31."""
    world = World().settle().unplaced(0, '0/2 nodes are available: persistentvolumeclaim "data" not found.').settle()
    assert world.condition("Admitted") == ("False", "VolumeClaimMissing")
    assert world.status["message"].startswith("PersistentVolumeClaim data is missing in namespace ml")
    assert "VolumeClaimMissing" in world.told
    assert world.status["restarts"]["total"] == 0


def test_a_missing_script_is_named_with_the_command_that_makes_it() -> None:
    """C31; only an event of the pod tells it."""
    job = a_job().spec(recipe=None, script={"configMap": "my-code", "entrypoint": "train.py"})
    world = World(job=job.manifest).settle().start(1).waits(0, "ContainerCreating", "").settle()
    text = 'MountVolume.SetUp failed for volume "bigmodel-script" : configmap "my-code" not found'
    world.complaint = Complaint(world.pod(0)["metadata"]["uid"], text)
    world.settle()
    assert world.condition("Running") == ("False", "ScriptMissing")
    assert "kubectl create configmap my-code -n ml --from-file=train.py" in world.status["message"]
    assert "ScriptMissing" in world.told
    world.start(0).settle()
    assert world.condition("Running")[0] == "True"
    assert world.status["restarts"]["total"] == 0


def test_whatever_else_a_kubelet_complains_of_is_told() -> None:
    """C31."""
    world = World().settle().start(1).waits(0, "ContainerCreating", "").settle()
    text = 'MountVolume.SetUp failed for volume "data" : secret "login" not found'
    world.complaint = Complaint(world.pod(0)["metadata"]["uid"], text)
    world.settle()
    assert world.condition("Running") == ("False", "ContainerConfigError")
    assert 'secret "login" not found' in world.status["message"]


@pytest.mark.parametrize(
    "text",
    [
        'error looking up service account ml/training: serviceaccount "training" not found',
        "no PriorityClass with name high was found",
    ],
)
def test_what_the_api_server_misses_is_named(text: str) -> None:
    """C31: a service account, a priority class."""

    def refuse(manifest: dict[str, Any]) -> Rejection | None:
        refused = manifest["kind"] == "Pod"
        message = f'pods "{manifest["metadata"]["name"]}" is forbidden: {text}'
        return Rejection("Pod", manifest["metadata"]["name"], 403, message, NOON) if refused else None

    world = World(refuse=refuse).settle()
    assert world.condition("Admitted") == ("False", "ChildRejected")
    assert text in world.status["message"]
    assert world.status["restarts"]["total"] == 0
    world.refuse = lambda manifest: None
    world.settle()
    assert world.condition("Admitted")[0] == "False"
    assert len(world.names()) == 2


# Nodes that failed it


def avoided(world: World, index: int = 1) -> list[str]:
    """By the pod's own affinity."""
    affinity = world.pod(index)["spec"].get("affinity") or {}
    terms = affinity.get("nodeAffinity", {}).get("preferredDuringSchedulingIgnoredDuringExecution", [])
    assert all(term["weight"] == 100 for term in terms)
    return [field["values"][0] for term in terms for field in term["preference"]["matchFields"]]


AVOIDED = {
    "it was lost": (lambda w: w.node_lost(1), ["node-2"]),
    "its processes would not die": (
        lambda w: w.ends(1, 75, a_last_word(1, exit_code=75, reason="NotReaped")),
        ["node-2"],
    ),
    "it refused a pod": (lambda w: w.refused_by_node(1, "OutOfcpu", "not enough cpu"), ["node-2"]),
    "a pod was evicted from it": (lambda w: w.ends(1, 137, disrupted="EvictionByEvictionAPI"), []),
    "a pod was deleted": (lambda w: w.gone(1), []),
    "a program failed on it once": (lambda w: w.ends(1, 3), []),
}


@pytest.mark.parametrize(("lose", "names"), AVOIDED.values(), ids=AVOIDED)
def test_which_nodes_are_taken_last(lose: Any, names: list[str]) -> None:
    world = training_world()
    lose(world)
    world.settle()
    assert [node["name"] for node in world.status.get("avoidedNodes", [])] == names
    assert avoided(world) == names


def test_a_node_on_which_the_program_fails_twice_in_a_row_is_taken_last() -> None:
    """It may have a device to blame."""
    world = training_world(job=a_job().spec(failurePolicy={"maxRestarts": 10}).manifest)
    world.ends(1, 3).settle().start().ends(1, 4).settle()
    assert avoided(world) == ["node-2"]


def test_avoided_nodes_are_counted_before_the_successor_is_made_and_spoken_of() -> None:
    world = training_world().node_lost(1)
    world.reconcile()
    until = time_text(NOON + timedelta(hours=1, seconds=4))
    assert world.status["avoidedNodes"] == [{"name": "node-2", "until": until}]
    assert pod_name(1, replacement=1) not in world.names()
    world.settle()
    assert "Node node-2 is taken last for an hour" in world.status["message"]


def test_an_avoided_node_is_forgiven_after_an_hour_with_one_write() -> None:
    world = training_world().node_lost(1).settle().start().settle()
    world.after(3599).settle()
    assert "avoidedNodes" in world.status
    before = world.writes.count("status")
    world.after(1).settle().after(1).settle().after(60).settle()
    assert "avoidedNodes" not in world.status or world.status["avoidedNodes"] == []
    assert world.writes.count("status") == before + 1


def test_the_newest_eight_are_kept() -> None:
    known = [AvoidedNode(name=f"n{i}", until=NOON + timedelta(minutes=i + 1)) for i in range(8)]
    loss = Loss(0, Cause.NODE_LOST, Fault.INFRASTRUCTURE, "", "n9")
    kept = after_losses(known, [loss], [], NOON)
    assert [node.name for node in kept] == [*(f"n{i}" for i in range(1, 8)), "n9"]


# Dead nodes


def test_a_pod_on_a_node_that_is_not_ready_is_replaced_without_waiting_for_its_end_and_fenced_first() -> None:
    """A17, C28: whoever resolves the index finds the successor only."""
    world = training_world().node_lost(1).settle()
    names = [write for write in world.writes if pod_name(1) in write]
    assert names[-2:] == [f"relabel {pod_name(1)}", f"create Pod {pod_name(1, replacement=1)}"]
    assert world.children["Pod", pod_name(1)]["metadata"]["labels"]["bigmodel.io/active"] == "false"
    assert world.pod(1)["spec"]["tolerations"][-1]["tolerationSeconds"] == 10


def test_a_pod_whose_node_object_is_gone_is_replaced_too() -> None:
    """A17: the pod garbage collector marks it, fails it and takes it away."""
    world = training_world().ends(1, 137, disrupted="DeletionByPodGC").settle()
    assert world.status["incidents"][-1]["cause"] == "NodeLost"
    assert pod_name(1, replacement=1) in world.names()
    world = training_world()
    pod = world.pod(1)
    pod["metadata"]["deletionTimestamp"] = time_text(world.now)
    pod["metadata"]["deletionGracePeriodSeconds"] = 0
    world.settle()
    assert pod_name(1, replacement=1) in world.names()
    assert world.status["restarts"]["infrastructure"] == 1


# One place for all


def affinity(world: World) -> Any:
    return world.pod(0)["spec"].get("affinity")


def test_a_topology_key_is_the_pod_groups_constraint() -> None:
    world = World(job=a_job().spec(scheduling={"topologyKey": ZONE}).manifest).settle()
    [group] = [child for (kind, _), child in world.children.items() if kind == "PodGroup"]
    assert group["spec"]["schedulingConstraints"] == {"topology": [{"key": ZONE}]}
    assert affinity(world) is None
    world.start().settle()
    assert f"within one {ZONE} (by the PodGroup's topology constraint)" in world.message("Admitted")


@pytest.mark.parametrize("fields", [{"drops_topology": True}, {"pod_group_served": False}], ids=["dropped", "no group"])
def test_where_the_cluster_has_no_such_constraint_the_pods_ask_for_each_other(fields: dict[str, Any]) -> None:
    world = World(job=a_job().spec(scheduling={"topologyKey": ZONE}).manifest, **fields).settle()
    [term] = affinity(world)["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == ZONE
    assert term["labelSelector"]["matchLabels"]["bigmodel.io/attempt"] == "1"
    world.start().settle()
    assert f"within one {ZONE} (by required pod affinity" in world.message("Admitted")


def test_pods_are_made_only_once_it_is_known_whether_their_group_kept_its_constraint() -> None:
    world = World(job=a_job().spec(scheduling={"topologyKey": ZONE}).manifest)
    world.reconcile()
    first = world.reconcile()
    assert [m["kind"] for m in first.create] == ["Service", "NetworkPolicy", "PodGroup"]
    assert [m["kind"] for m in world.reconcile().create] == ["Pod", "Pod"]


# Without a PodGroup


def test_what_was_placed_of_a_gang_that_does_not_fit_is_released_and_tried_again_with_pauses() -> None:
    """A25, all or nothing: placed pods hold nodes while others wait."""
    job = a_job().spec(scheduling={"startDeadlineSeconds": 60})
    world = World(job=job.manifest, pod_group_served=False).settle()
    for attempt in range(1, 6):
        world.after(1).bind(0).unplaced(1, SCHEDULER).settle()
        assert world.status["attempt"] == attempt
        world.after(60).settle()
        assert world.status["attempt"] == attempt + 1
        assert world.status["incidents"][-1]["cause"] == "NotPlaced"
        assert world.status["restarts"]["total"] == 0
        world.terminated().after(8).settle()
    assert world.running() == [pod_name(0, 6), pod_name(1, 6)]
