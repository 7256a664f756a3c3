"""A job in a queue of Kueue (A32): no pod before admission, none after eviction; the test plays Kueue."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from bigmodel.controller.decision import WORKLOAD, Manifest
from bigmodel.controller.job.kueue import Admission, admitted_pod
from bigmodel.controller.job.workload import queueing
from tests.builders import AJob, a_job, a_progress, gave_up, seconds, time_text
from tests.unit.controller.job.world import World

V1BETA1 = replace(WORKLOAD, api_version="kueue.x-k8s.io/v1beta1")
GPU = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
SPOT: Manifest = {
    "spec": {
        "nodeLabels": {"gpu": "h200"},
        "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
    }
}
NO_ROOM = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor spot, 1 more"


def a_queued_job(**labels: str) -> AJob:
    return a_job().spec(**GPU).metadata(labels={"kueue.x-k8s.io/queue-name": "team-a", **labels})


class Kueue:
    """Kueue's controller, by hand: what it writes into the Workload."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def workload(self) -> Manifest:
        (found,) = (child for (kind, _), child in self.world.children.items() if kind == "Workload")
        return found

    @property
    def conditions(self) -> dict[str, tuple[str, str]]:
        told = (self.workload.get("status") or {}).get("conditions", [])
        return {condition["type"]: (condition["status"], condition["reason"]) for condition in told}

    def says(self, kind: str, status: str, reason: str, message: str = "") -> Kueue:
        self.world._condition(self.workload, kind, status, reason, message)
        self.world.changed(self.workload)
        return self

    def waits(self, message: str = NO_ROOM) -> Kueue:
        return self.says("QuotaReserved", "False", "Pending", message)

    def admits(self, **fields: Any) -> Kueue:
        """On flavour `spot`, with everything checked."""
        assignment = {"name": "main", "flavors": {"nvidia.com/gpu": "spot", "cpu": "spot"}, "count": 2}
        admission = {"clusterQueue": "gpus", "podSetAssignments": [assignment | fields.pop("assignment", {})]}
        self.world._status(self.workload, admission=admission, **fields)
        self.says("QuotaReserved", "True", "QuotaReserved").says("Admitted", "True", "Admitted")
        if "Evicted" in self.conditions:
            self.says("Evicted", "False", "QuotaReserved")
        return self

    def evicts(self, reason: str = "Preempted", message: str = "Preempted to accommodate a higher priority") -> Kueue:
        return self.says("Evicted", "True", reason, message)


def queued(job: AJob | None = None, **fields: Any) -> tuple[World, Kueue]:
    cluster_wide: dict[tuple[str, str], Manifest | str] = {("ResourceFlavor", "spot"): SPOT}
    job = job or a_queued_job()
    fields = {"kueue": WORKLOAD, "cluster_wide": cluster_wide, "pod_group_served": False, **fields}
    world = World(job=job.manifest, **fields).settle()
    return world, Kueue(world)


def training(job: AJob | None = None) -> tuple[World, Kueue]:
    """Admitted after ten seconds, and making steps."""
    world, kueue = queued(job)
    world.after(10)
    kueue.admits()
    world.settle().after(1).start().settle()
    world.after(3).tells(a_progress().training(40, first_step_at=world.now)).settle()
    return world, kueue


# Waiting


def test_a_queued_job_makes_a_workload_and_no_pod() -> None:
    """A32: the gang waits for admission."""
    world, kueue = queued(
        a_queued_job().spec(
            **GPU,
            nodeSelector={"zone": "a"},
            tolerations=[{"key": "gpu", "operator": "Exists"}],
            activeDeadlineSeconds=600,
            env=[{"name": "SECRET_OF_MINE", "value": "x"}],
        )
    )
    assert world.names() == []
    assert (kueue.workload["apiVersion"], kueue.workload["kind"]) == ("kueue.x-k8s.io/v1beta2", "Workload")
    assert kueue.workload["metadata"]["name"] == "mlp-gyjmk-a1"
    assert kueue.workload["metadata"]["ownerReferences"][0] | {"controller": True} == {
        "apiVersion": "bigmodel.io/v1alpha1",
        "kind": "BigModelJob",
        "name": "mlp",
        "uid": world.job["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    tolerated = kueue.workload["spec"]["podSets"][0]["template"]["spec"].pop("tolerations")
    assert tolerated[0] == {"key": "gpu", "operator": "Exists"}
    assert kueue.workload["spec"] == {
        "active": True,
        "queueName": "team-a",
        "maximumExecutionTimeSeconds": 600,
        "podSets": [
            {
                "name": "main",
                "count": 2,
                "template": {
                    "spec": {
                        "restartPolicy": "Never",
                        "nodeSelector": {"zone": "a"},
                        "containers": [{"name": "trainer", "image": "trainer:1", **GPU}],
                    }
                },
            }
        ],
    }


def test_kueues_own_words_say_why_it_waits() -> None:
    """A32"""
    world, kueue = queued()
    assert (world.status["phase"], world.condition("Admitted")) == ("Queued", ("False", "Queued"))
    kueue.waits()
    world.settle()
    assert world.condition("Admitted") == ("False", "Queued")
    assert world.status["message"] == (
        f"Waits in Kueue's queue team-a: {NO_ROOM}. The gang starts once Kueue admits Workload mlp-gyjmk-a1."
    )
    assert "startTime" not in world.status
    assert world.writes.count("create Workload mlp-gyjmk-a1") == 1


def test_reserved_quota_is_not_yet_admission() -> None:
    """An admission check, a provisioned node for example, comes between."""
    world, kueue = queued()
    checks = [{"name": "provision", "state": "Pending", "message": "waiting for 2 nodes"}]
    kueue.world._status(kueue.workload, admissionChecks=checks)
    kueue.says("QuotaReserved", "True", "QuotaReserved")
    world.settle()
    assert world.names() == []
    assert "provision: waiting for 2 nodes" in world.message("Admitted")


def test_without_kueue_the_label_makes_no_pod_and_says_what_to_do() -> None:
    world, _ = queued(kueue=None)
    assert world.children == {}
    assert world.condition("Admitted") == ("False", "KueueNotServed")
    assert "kueue.enabled" in world.message("Admitted")
    assert world.decisions[-1].requeue_after == 60
    del world.job["metadata"]["labels"]
    assert len(world.settle().names()) == 2


@pytest.mark.parametrize("version", [WORKLOAD, V1BETA1], ids=lambda kind: kind.api_version)
@pytest.mark.parametrize(
    ("job", "known", "v1beta2", "v1beta1"),
    [
        pytest.param(
            a_queued_job(**{"kueue.x-k8s.io/priority-class": "urgent"}).spec(priorityClassName="high"),
            ("WorkloadPriorityClass", "urgent"),
            {"group": "kueue.x-k8s.io", "kind": "WorkloadPriorityClass", "name": "urgent"},
            ("urgent", "kueue.x-k8s.io/workloadpriorityclass"),
            id="Kueue's own class, by label",
        ),
        pytest.param(
            a_queued_job().spec(priorityClassName="high"),
            ("PriorityClass", "high"),
            {"group": "scheduling.k8s.io", "kind": "PriorityClass", "name": "high"},
            ("high", "scheduling.k8s.io/priorityclass"),
            id="the pods' class",
        ),
    ],
)
def test_the_priority_is_told_in_the_words_of_the_version(
    version: Any, job: AJob, known: tuple[str, str], v1beta2: dict[str, str], v1beta1: tuple[str, str]
) -> None:
    _, kueue = queued(job, kueue=version, cluster_wide={known: {"value": 1000}})
    spec = kueue.workload["spec"]
    assert spec["priority"] == 1000
    if version is WORKLOAD:
        assert spec["priorityClassRef"] == v1beta2
    else:
        assert (spec["priorityClassName"], spec["priorityClassSource"]) == v1beta1


def test_a_priority_class_that_is_not_there_is_named() -> None:
    world, _ = queued(a_queued_job(**{"kueue.x-k8s.io/priority-class": "urgent"}))
    assert world.names("Workload") == []
    assert world.condition("Admitted") == ("False", "QueueMisconfigured")
    assert world.message("Admitted").startswith("WorkloadPriorityClass urgent does not exist.")
    assert world.told == ["Accepted", "QueueMisconfigured"]


def test_a_changed_queue_moves_a_workload_that_waits() -> None:
    world, kueue = queued()
    uid = kueue.workload["metadata"]["uid"]
    world.job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team-b"
    world.settle()
    assert (kueue.workload["spec"]["queueName"], kueue.workload["metadata"]["uid"]) == ("team-b", uid)


def test_a_workload_that_an_administrator_stopped_stays_so() -> None:
    world, kueue = queued()
    kueue.workload["spec"]["active"] = False
    world.job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team-b"
    world.settle()
    assert kueue.workload["spec"]["active"] is False
    assert "set its spec.active to true" in world.message("Admitted")


def test_another_request_is_another_workload() -> None:
    """Size, resources and placement of a Workload never change."""
    world, kueue = queued()
    uid = kueue.workload["metadata"]["uid"]
    world.job["spec"] |= {"nodes": 3}
    world.settle()
    assert kueue.workload["metadata"]["uid"] != uid
    assert kueue.workload["spec"]["podSets"][0]["count"] == 3
    assert world.status["nodes"]["desired"] == 3


def test_without_the_label_a_waiting_job_starts() -> None:
    world, _ = queued()
    del world.job["metadata"]["labels"]
    world.settle()
    assert (world.names("Workload"), len(world.names())) == ([], 2)
    assert world.condition("Admitted")[1] != "WaitingForQuota"


# Admitted


def test_admitted_pods_get_what_their_flavour_and_the_checks_add() -> None:
    """A32: node selector of the flavour is applied."""
    world, kueue = queued(a_queued_job().spec(nodeSelector={"zone": "a"}))
    update = {
        "name": "main",
        "labels": {"tier": "gold", "kueue.x-k8s.io/queue-name": "team-a"},
        "annotations": {"provisioned": "yes"},
        "nodeSelector": {"pool": "7"},
        "tolerations": [{"key": "pool", "operator": "Exists"}],
    }
    kueue.admits(admissionChecks=[{"name": "provision", "state": "Ready", "podSetUpdates": [update]}])
    world.settle()
    assert len(world.pods()) == 2
    for pod in world.pods():
        assert pod["spec"]["nodeSelector"] == {"zone": "a", "gpu": "h200", "pool": "7"}
        assert [toleration["key"] for toleration in pod["spec"]["tolerations"]][-2:] == ["spot", "pool"]
        labels = pod["metadata"]["labels"]
        assert (labels["tier"], labels["bigmodel.io/workload"]) == ("gold", "mlp-gyjmk-a1")
        assert "kueue.x-k8s.io/queue-name" not in labels, "Kueue would take the pods over"
        assert pod["metadata"]["annotations"]["provisioned"] == "yes"


def test_a_flavour_that_cannot_be_read_makes_no_pod() -> None:
    world, kueue = queued(cluster_wide={("ResourceFlavor", "spot"): "ResourceFlavor spot may not be read: forbidden"})
    kueue.admits()
    world.settle()
    assert world.names() == []
    assert world.condition("Admitted") == ("False", "QueueMisconfigured")
    world.cluster_wide["ResourceFlavor", "spot"] = SPOT
    assert len(world.settle().names()) == 2


def test_an_admission_that_contradicts_the_job_makes_no_pod() -> None:
    world, kueue = queued(a_queued_job().spec(nodeSelector={"gpu": "a100"}))
    kueue.admits()
    world.settle()
    assert world.names() == []
    assert "nodeSelector gpu=h200" in world.message("Admitted")
    assert "a100" in world.message("Admitted")


TOPOLOGIES = {
    "v1beta1, domain by domain": {
        "levels": ["block", "rack"],
        "domains": [{"values": ["b1", "r1"], "count": 1}, {"values": ["b1", "r2"], "count": 2}],
    },
    "v1beta2, one by one": {
        "levels": ["block", "rack"],
        "slices": [
            {
                "domainCount": 2,
                "valuesPerLevel": [{"universal": "b1"}, {"individual": {"prefix": "r", "roots": ["1", "2"]}}],
                "podCounts": {"individual": [1, 2]},
            }
        ],
    },
    "v1beta2, in slices of equal counts": {
        "levels": ["block", "rack"],
        "slices": [
            {
                "domainCount": 1,
                "valuesPerLevel": [{"universal": "b1"}, {"individual": {"suffix": "1", "roots": ["r"]}}],
                "podCounts": {"universal": 1},
            },
            {
                "domainCount": 1,
                "valuesPerLevel": [{"universal": "b1"}, {"universal": "r2"}],
                "podCounts": {"universal": 2},
            },
        ],
    },
}


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_pods_go_where_the_topology_puts_them_in_the_order_of_their_ranks(topology: dict[str, Any]) -> None:
    world, kueue = queued(a_queued_job().spec(nodes=3))
    kueue.admits(assignment={"count": 3, "topologyAssignment": topology})
    world.settle()
    places = [(pod["spec"]["nodeSelector"]["block"], pod["spec"]["nodeSelector"]["rack"]) for pod in world.pods()]
    assert places == [("b1", "r1"), ("b1", "r2"), ("b1", "r2")]
    assert world.pod(0)["metadata"]["annotations"]["kueue.x-k8s.io/podset-unconstrained-topology"] == "true"


def test_our_own_labels_win_over_an_admission_check() -> None:
    pod: Manifest = {"metadata": {"labels": {"bigmodel.io/index": "0"}, "annotations": {}}, "spec": {}}
    before = copy.deepcopy(pod)
    placed = admitted_pod(pod, Admission("w", labels={"bigmodel.io/index": "9"}), 0)
    assert placed["metadata"]["labels"] == {"bigmodel.io/index": "0", "bigmodel.io/workload": "w"}
    assert pod == before


def test_the_deadline_counts_from_admission_and_the_wait_is_booked_as_queued() -> None:
    world, _ = training()
    assert world.status["startTime"] == time_text(world.now - seconds(4))
    assert world.status["goodput"]["since"] == time_text(world.now - seconds(14))
    assert world.status["goodput"]["queuedSeconds"] == 10 + 1, "for quota, then for nodes"


def test_a_failed_pod_of_an_admitted_gang_is_replaced_without_queueing() -> None:
    """A32"""
    world, kueue = training()
    uid = kueue.workload["metadata"]["uid"]
    world.node_lost(1).settle()
    assert world.pod(1)["metadata"]["labels"]["bigmodel.io/workload"] == "mlp-gyjmk-a1"
    assert world.pod(1)["spec"]["nodeSelector"] == {"gpu": "h200"}
    assert (kueue.workload["metadata"]["uid"], kueue.workload["spec"]["active"]) == (uid, True)
    assert world.condition("Admitted")[1] != "Queued"


def test_a_workload_outlives_attempts() -> None:
    """A32"""
    world, kueue = training()
    uid = kueue.workload["metadata"]["uid"]
    world.gone(0).gone(1).settle().after(120).settle()
    assert world.status["attempt"] == 2
    assert len(world.pods()) == 2
    assert kueue.workload["metadata"]["uid"] == uid
    assert kueue.workload["metadata"]["name"] == "mlp-gyjmk-a1"


# What is ours to say


def test_kueue_hears_when_all_pods_are_ready_lost_and_ready_again() -> None:
    world, kueue = training()
    assert kueue.conditions["PodsReady"] == ("True", "Started")
    world.node_lost(1).settle()
    assert kueue.conditions["PodsReady"] == ("False", "WaitForRecovery")
    world.start(1).settle()
    assert kueue.conditions["PodsReady"] == ("True", "Recovered")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        pytest.param(lambda world: world.completes(), "Succeeded", id="complete"),
        pytest.param(
            lambda world: world.ends(0, 1, gave_up(0)),
            "Failed",
            id="failed",
        ),
    ],
)
def test_the_quota_is_free_once_the_job_has_ended_and_no_pod_runs(end: Any, reason: str) -> None:
    """A32: quota is released."""
    world, kueue = training()
    end(world)
    world.settle()
    assert ("Finished" in kueue.conditions) == (not world.running())
    world.terminated().settle()
    assert kueue.conditions["Finished"] == ("True", reason)
    assert kueue.conditions["PodsReady"][0] == "True", "what was said before stays"
    assert world.names("Workload") == ["mlp-gyjmk-a1"]


# Evicted


def test_an_evicted_gang_saves_leaves_and_queues_again() -> None:
    """A32: eviction checkpoints first, and costs no budget."""
    world, kueue = training()
    uid = kueue.workload["metadata"]["uid"]
    kueue.evicts()
    world.settle()
    assert world.status["attempt"] == 2
    assert all("deletionTimestamp" in child["metadata"] for (kind, _), child in world.children.items() if kind == "Pod")
    assert kueue.conditions["QuotaReserved"][0] == "True", "quota is held as long as pods run"
    assert (world.status["phase"], world.condition("Admitted")) == ("Queued", ("False", "Queued"))
    world.terminated().settle()
    assert kueue.conditions == {
        "Evicted": ("True", "Preempted"),
        "QuotaReserved": ("False", "Pending"),
        "Admitted": ("False", "NoReservation"),
        "Requeued": ("True", "Preempted"),
        "PodsReady": ("False", "WaitForStart"),
    }
    assert "admission" not in kueue.workload["status"]
    assert world.names() == []
    assert world.status["restarts"]["total"] == 0
    assert world.status["incidents"][-1]["cause"] == "QuotaTaken"
    assert "Preempted to accommodate a higher priority" in world.status["incidents"][-1]["message"]
    assert "QuotaTaken" in world.told

    world.after(100).settle()
    kueue.admits()
    world.settle().start().settle()
    assert [pod["metadata"]["name"] for pod in world.pods()] == ["mlp-gyjmk-a2-0", "mlp-gyjmk-a2-1"]
    assert world.status["startTime"] == time_text(world.now)
    assert kueue.conditions["PodsReady"] == ("True", "Started")
    assert kueue.workload["metadata"]["uid"] == uid
    assert world.status["goodput"]["queuedSeconds"] >= 100


@pytest.mark.parametrize("reason", ["PodsReadyTimeout", "AdmissionCheck", "ClusterQueueStopped", "Deactivated"])
def test_kueue_itself_says_when_other_evictions_queue_again(reason: str) -> None:
    world, kueue = training()
    kueue.evicts(reason)
    world.settle().terminated().settle()
    assert kueue.conditions["Requeued"] == ("False", reason)


def test_an_eviction_before_any_pod_gives_the_quota_back_at_once() -> None:
    world, kueue = queued()
    kueue.says("QuotaReserved", "True", "QuotaReserved").evicts("AdmissionCheck")
    world.settle()
    assert kueue.conditions["QuotaReserved"] == ("False", "Pending")
    assert world.status["incidents"] == []


def test_a_workload_that_somebody_deletes_takes_its_pods_with_it_and_is_made_anew() -> None:
    world, kueue = training()
    del world.children["Workload", kueue.workload["metadata"]["name"]]
    world.settle()
    assert world.names("Workload") == [], "not while pods of the old one run"
    world.terminated().settle()
    assert world.names("Workload") == ["mlp-gyjmk-a2"]
    assert world.names() == []


def test_kueues_own_time_limit_is_the_jobs_deadline() -> None:
    world, kueue = training(a_queued_job().spec(activeDeadlineSeconds=600))
    kueue.evicts("DeactivatedDueToMaximumExecutionTimeExceeded")
    world.settle()
    assert world.condition("Failed") == ("True", "DeadlineExceeded")


def test_a_deadline_that_was_raised_meanwhile_queues_with_it() -> None:
    world, kueue = training(a_queued_job().spec(activeDeadlineSeconds=600))
    world.job["spec"]["activeDeadlineSeconds"] = 6000
    kueue.evicts("DeactivatedDueToMaximumExecutionTimeExceeded")
    world.settle().terminated().settle()
    assert kueue.workload["spec"]["maximumExecutionTimeSeconds"] == 6000
    assert kueue.workload["metadata"]["name"] == "mlp-gyjmk-a2"


def test_the_deadline_does_not_run_while_the_job_queues_again() -> None:
    world, kueue = training(a_queued_job().spec(activeDeadlineSeconds=600))
    kueue.evicts()
    world.settle().terminated().settle().after(6000).settle()
    assert world.status["phase"] == "Queued"


# Suspended, resized


def test_a_suspended_job_gives_its_quota_back_once_its_pods_are_gone_and_queues_again_when_resumed() -> None:
    """A32, A29: quota is released."""
    world, _ = training()
    world.job["spec"]["suspend"] = True
    world.settle()
    assert world.names("Workload") == ["mlp-gyjmk-a1"]
    world.terminated().settle()
    assert (world.names("Workload"), world.status["phase"]) == ([], "Suspended")
    world.job["spec"]["suspend"] = False
    world.after(50).settle()
    assert (world.names("Workload"), world.names(), world.status["phase"]) == (["mlp-gyjmk-a2"], [], "Queued")
    world.after(20)
    Kueue(world).admits()
    world.settle()
    assert (len(world.pods()), world.status["startTime"]) == (2, time_text(world.now))


def test_a_job_that_is_suspended_while_it_waits_leaves_the_queue() -> None:
    world, _ = queued()
    world.job["spec"]["suspend"] = True
    world.settle()
    assert (world.names("Workload"), world.status["phase"]) == ([], "Suspended")
    world.job["spec"]["suspend"] = False
    world.settle()
    assert (world.names("Workload"), world.names(), world.status["phase"]) == (["mlp-gyjmk-a1"], [], "Queued")


def test_another_size_queues_anew() -> None:
    """A Workload's size never changes: the gang saves, leaves, and asks for the new one."""
    world, _ = training()
    world.job["spec"]["nodes"] = 3
    world.settle()
    assert world.names("Workload") == ["mlp-gyjmk-a1"], "quota is held as long as pods run"
    world.terminated().settle()
    assert world.names("Workload") == ["mlp-gyjmk-a2"]
    Kueue(world).admits()
    world.settle()
    assert [pod["metadata"]["labels"]["bigmodel.io/workload"] for pod in world.pods()] == ["mlp-gyjmk-a2"] * 3


# Not its business


def test_a_label_set_on_a_running_gang_counts_from_the_next_time_it_queues() -> None:
    world = World(kueue=WORKLOAD).settle().start().settle()
    world.job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    world.settle()
    assert (len(world.running()), world.names("Workload")) == (2, [])
    world.node_lost(1).settle()
    assert "bigmodel.io/workload" not in world.pod(1)["metadata"]["labels"]


def test_a_label_taken_from_a_running_gang_lets_it_run_under_its_admission() -> None:
    world, _ = training()
    del world.job["metadata"]["labels"]
    world.node_lost(1).settle()
    assert (world.names("Workload"), len(world.pods())) == (["mlp-gyjmk-a1"], 2)


def test_a_running_gang_stays_when_kueue_is_uninstalled() -> None:
    world, kueue = training()
    del world.children["Workload", kueue.workload["metadata"]["name"]]
    world.kueue = None
    world.settle()
    assert len(world.running()) == 2
    assert world.status["attempt"] == 1


@pytest.mark.parametrize("name", ["mlp-gyjmk", "mlp-gyjmk-a1-0", "another-gyjmk-a1"])
def test_a_workload_of_another_name_is_none_of_ours(name: str) -> None:
    found = queueing(a_job().manifest, [{"metadata": {"name": name, "uid": "u"}}], WORKLOAD)
    assert found.workloads == ()


def test_wherever_the_controller_dies_the_story_ends_the_same() -> None:
    """After any write, from queue to eviction to the end."""

    def story(crash_after: int | None) -> World:
        world, kueue = queued(crash_after=crash_after)
        world.after(10)
        kueue.admits()
        world.settle().after(1).start().settle()
        kueue.evicts()
        world.settle().terminated().settle().after(5)
        kueue.admits()
        world.settle().start().settle().after(5)
        return world.completes().settle()

    undisturbed = story(None)
    for position in range(1, len(undisturbed.writes)):
        world = story(position)
        assert world.end_state() == undisturbed.end_state(), f"died after {undisturbed.writes[position - 1]}"
