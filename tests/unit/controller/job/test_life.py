"""The life of a job, told against a small cluster in memory."""

from __future__ import annotations

import copy

import pytest

from bigmodel.api.store import Store
from bigmodel.controller.decision import Rejection
from bigmodel.controller.job.decide import decide
from tests.builders import (
    DIGEST,
    NOON,
    SETTINGS,
    STORE,
    a_job,
    a_last_word,
    a_progress,
    an_artifact,
    gave_up,
    pod_name,
    seconds,
)
from tests.unit.controller.job.world import World, training_world


def test_a_job_goes_from_nothing_to_an_artefact() -> None:
    world = World().settle()
    assert world.status["phase"] == "Queued"
    assert world.names() == [pod_name(0), pod_name(1)]
    world.after(1).start().settle()
    assert world.status["phase"] == "Starting"
    world.after(3).tells(a_progress().training(40, first_step_at=world.now)).settle()
    assert world.status["phase"] == "Training"
    assert world.status["message"] == "Training on 2 nodes."
    world.after(10).tells(a_progress().training(2000, first_step_at=NOON + seconds(4)).publishing()).settle()
    assert world.status["phase"] == "Publishing"
    world.after(5).completes().settle()
    assert world.status["phase"] == "Complete"
    assert world.status["finished"] == "True"
    assert world.status["artifact"]["digest"] == DIGEST
    assert world.status["artifact"]["shortDigest"] == DIGEST[7:19]
    assert world.status["nodes"] == {"desired": 2, "ready": 0, "succeeded": 2, "failed": 0, "summary": "0/2"}
    assert world.told == ["Accepted", "GangCreated", "Running", "Published", "Complete"]


def test_the_first_status_is_written_before_anything_is_made() -> None:
    world = World()
    first = world.reconcile()
    assert first.again
    assert not first.create
    assert world.status["attempt"] == 1
    assert world.status["resolved"]["image"] == "trainer:1"
    second = world.reconcile()
    assert [manifest["kind"] for manifest in second.create] == ["Service", "NetworkPolicy", "PodGroup", "Pod", "Pod"]
    assert second.status is None, "what will be is told once it is"


def test_all_conditions_stand_from_the_first_visit_on() -> None:
    world = World()
    world.reconcile()
    told = {c["type"]: c["status"] for c in world.status["conditions"]}
    assert told == {
        "Accepted": "True",
        "Admitted": "Unknown",
        "Running": "Unknown",
        "Suspended": "False",
        "CheckpointHealthy": "Unknown",
        "Degraded": "Unknown",
        "Published": "Unknown",
    }


def test_every_condition_has_a_message_and_follows_the_generation_also_after_the_end() -> None:
    world = training_world().after(5).completes().settle()
    world.job["metadata"]["generation"] = 2
    world.job["spec"]["ttlSecondsAfterFinished"] = 60
    before = world.status
    world.settle()
    assert world.status["observedGeneration"] == 2
    assert {c["observedGeneration"] for c in world.status["conditions"]} == {2}
    assert all(c["message"] for c in world.status["conditions"])
    assert [c["lastTransitionTime"] for c in world.status["conditions"]] == [
        c["lastTransitionTime"] for c in before["conditions"]
    ]


def test_it_is_not_complete_while_any_pod_is_unfinished() -> None:
    world = training_world().ends(0, 0, a_last_word(0, artifact=an_artifact())).settle()
    assert "finished" not in world.status
    world.ends(1, 0, a_last_word(1)).settle()
    assert world.condition("Complete") == ("True", "Complete")


def test_exit_0_without_the_promised_artefact_is_a_failure() -> None:
    world = training_world().ends(1, 0, a_last_word(1)).ends(0, 0, a_last_word(0)).settle()
    assert world.condition("Failed") == ("True", "ArtifactMissing")
    assert world.condition("Finished") == ("True", "ArtifactMissing")
    assert world.condition("Published") == ("False", "NotPublished")
    assert "no artefact was published" in world.status["message"]


@pytest.mark.parametrize(
    "artifact",
    {
        "in another job's directory": {"uri": "s3://models/team-a/ml/other/uid/artifact/" + "3f" * 32},
        "in another bucket": {"uri": f"s3://theirs/ml/mlp/artifact/{'3f' * 32}"},
        "one level up": {"uri": an_artifact()["uri"] + "/../" + "4e" * 32},
    }.values(),
)
def test_an_artefact_that_lies_elsewhere_is_not_taken(artifact: dict[str, str]) -> None:
    world = training_world().completes(**artifact).settle()
    assert world.condition("Failed") == ("True", "ArtifactMissing")
    assert "artifact" not in world.status


def test_a_last_word_of_another_job_is_not_believed() -> None:
    stranger = a_last_word(0, uid="another", artifact=an_artifact())
    world = training_world().ends(1, 0, a_last_word(1)).ends(0, 0, stranger).settle()
    assert world.condition("Failed") == ("True", "ArtifactMissing")


def test_published_is_complete_though_another_pod_was_lost_at_the_very_end() -> None:
    world = training_world().ends(0, 0, a_last_word(0, artifact=an_artifact())).node_lost(1).settle()
    assert world.condition("Complete") == ("True", "Complete")


def test_what_still_runs_after_the_end_is_stopped_and_what_ended_is_kept() -> None:
    world = training_world().ends(0, 1, gave_up(0)).settle()
    assert world.condition("Failed")[0] == "True"
    assert pod_name(0) in world.names(), "its log is still there"
    assert "deletionTimestamp" in world.children["Pod", pod_name(1)]["metadata"]
    world.terminated().after(30).settle()
    assert world.names() == [pod_name(0)]


def test_a_failed_job_stays_failed_after_its_children_are_deleted() -> None:
    world = training_world().ends(0, 1, gave_up(0)).ends(1, 1, gave_up(1)).settle()
    before = world.status
    world.children.clear()
    writes = len(world.writes)
    world.after(3600).settle()
    assert world.status == before
    assert len(world.writes) == writes


def test_a_finished_job_is_removed_when_its_ttl_is_over_and_not_before() -> None:
    world = training_world(job=a_job().spec(ttlSecondsAfterFinished=60).manifest).completes().settle()
    decision = world.after(59).reconcile()
    assert not world.job_deleted
    assert decision.requeue_after == 1
    world.after(1).settle()
    assert world.job_deleted


def test_an_unfinished_job_is_never_removed_by_its_ttl() -> None:
    world = training_world(job=a_job().spec(ttlSecondsAfterFinished=0).manifest)
    world.after(1_000_000).settle()
    assert not world.job_deleted


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(a_job().spec(managedBy="kueue.x-k8s.io/multikueue"), id="another controller manages it"),
        pytest.param(a_job().metadata(deletionTimestamp="2026-03-01T12:00:00Z"), id="it is being deleted"),
    ],
)
def test_hands_off(job: object) -> None:
    world = World(job=job.manifest).settle()  # type: ignore[attr-defined]
    assert world.writes == []
    assert world.events == []


def test_observing_and_deciding_change_nothing_they_were_given() -> None:
    world = training_world().node_lost(1)
    before = copy.deepcopy((world.job, world.children))
    decide(world.observed(), SETTINGS, world.now)
    assert (world.job, world.children) == before


# What the user wrote


REFUSED = {
    "two kinds of work": (
        a_job().spec(script={"configMap": "code", "entrypoint": "train.py"}),
        "InvalidSpec",
        ["exactly one of recipe, script, command", "recipe, script"],
    ),
    "no work at all": (a_job().spec(recipe=None), "InvalidSpec", ["found none", "recipe: {name: mlp}"]),
    "a mesh that is not the world": (
        a_job().spec(parallelism={"data": 3}),
        "InvalidSpec",
        ["spec.parallelism", "3 × 1 × 1 × 1 for 2 × 1", "data: auto"],
    ),
    "a value out of bounds": (
        a_job().spec(nodes=0),
        "InvalidSpec",
        ["spec.nodes", "greater than or equal to 1", "'0'"],
    ),
    "a field this version does not serve": (
        a_job().spec(recipe={"name": "vision"}),
        "NotServed",
        ["spec.recipe.name: vision", "use mlp"],
    ),
    "no store anywhere": (a_job().spec(store=None), "StoreNotSet", ["spec.store", "the chart's value store"]),
}


@pytest.mark.parametrize(("job", "reason", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_spec_is_refused_with_field_value_rule_and_way_out(job: object, reason: str, words: list[str]) -> None:
    world = World(job=job.manifest).settle()  # type: ignore[attr-defined]
    assert world.condition("Accepted") == ("False", reason)
    for word in words:
        assert word in world.status["message"]
    assert world.status["phase"] == "Pending"
    assert world.children == {}
    assert world.told == [reason]


def test_a_corrected_spec_is_accepted() -> None:
    world = World(job=a_job().spec(store=None).manifest).settle()
    world.job["spec"]["store"] = STORE
    world.job["metadata"]["generation"] = 2
    world.settle()
    assert world.condition("Accepted") == ("True", "Accepted")
    assert world.told == ["StoreNotSet", "Accepted", "GangCreated"]


def test_the_default_store_of_the_chart_is_pinned_at_the_first_start() -> None:
    default = Store.model_validate({"s3": {"bucket": "chart"}})
    world = World(
        job=a_job().spec(store=None).manifest, settings=SETTINGS.model_copy(update={"store": default})
    ).settle()
    world.settings = SETTINGS  # the chart was upgraded
    world.gone(1).settle()
    assert world.status["resolved"]["store"] == {"s3": {"bucket": "chart"}}
    assert "s3://chart" in str(world.children["Pod", pod_name(1, replacement=1)])


# Placement


def test_what_the_nodes_lack_is_told_by_the_one_pod_that_found_none() -> None:
    whole = "minCount (2) cannot be satisfied: 1 scheduled, 0 remaining"  # as Kubernetes 1.37 words them
    world = World().settle().group_says("False", "Unschedulable", whole)
    world.unplaced(0, f"pod group is unschedulable, {whole}")
    world.unplaced(1, "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.").settle()
    assert "2 Insufficient nvidia.com/gpu" in world.status["message"]
    assert whole in world.status["message"]


def test_a_gang_that_does_not_fit_says_so_with_the_schedulers_numbers() -> None:
    world = (
        World().settle().group_says("False", "Unschedulable", "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")
    )
    world.settle()
    assert world.condition("Admitted") == ("False", "Unschedulable")
    assert "2 Insufficient nvidia.com/gpu" in world.status["message"]
    assert world.status["phase"] == "Queued"
    assert "Unschedulable" in world.told
    world.after(100_000).settle()
    assert "finished" not in world.status, "no deadline runs while it is queued"
    world.group_says("True", "Scheduled", "").start().settle()
    assert world.condition("Admitted") == ("True", "Admitted")


REJECTIONS = {
    "a quota": (403, 'pods "x" is forbidden: exceeded quota: q, requested: pods=1, limited: pods=1', "QuotaExceeded"),
    "a policy": (403, "denied the request: no such team", "ChildRejected"),
    "a validation": (422, "spec.containers[0].image: Required value", "ChildRejected"),
    "a name that somebody has": (409, "exists and belongs to somebody else", "NameTaken"),
}


@pytest.mark.parametrize(("code", "text", "reason"), REJECTIONS.values(), ids=REJECTIONS)
def test_what_the_api_server_refuses_is_told_in_its_words_and_heals(code: int, text: str, reason: str) -> None:
    world = World()
    world.refuse = lambda manifest: (
        Rejection("Pod", manifest["metadata"]["name"], code, text, NOON) if manifest["kind"] == "Pod" else None
    )
    for _ in range(4):
        world.reconcile()
    assert world.condition("Admitted") == ("False", reason)
    assert world.names() == []
    if reason != "NameTaken":
        assert text in world.status["message"]
    world.refuse = lambda manifest: None
    world.settle().start().settle()
    assert world.condition("Admitted") == ("True", "Admitted")


def test_what_was_refused_and_is_no_longer_wanted_is_no_longer_told() -> None:
    world = training_world()
    refused = pod_name(1, replacement=1)
    world.refuse = lambda manifest: (
        Rejection("Pod", refused, 403, "exceeded quota: q", NOON) if manifest["metadata"]["name"] == refused else None
    )
    world.gone(1)
    for _ in range(3):
        world.reconcile()
    assert world.condition("Admitted") == ("False", "QuotaExceeded")
    world.gone(0).settle()
    assert world.status["attempt"] == 2
    assert world.rejections, "nobody tried that one again"
    world.start().settle()
    assert world.condition("Admitted") == ("True", "Admitted")


def test_into_a_namespace_that_goes_nothing_more_is_made() -> None:
    world = training_world()
    text = "unable to create new content in namespace ml because it is being terminated"
    world.refuse = lambda manifest: Rejection("Pod", manifest["metadata"]["name"], 403, text, NOON)
    world.gone(1).settle()
    counted = world.status["restarts"]["total"]
    writes = len(world.writes)
    world.gone(0).after(600).settle()
    assert world.status["restarts"]["total"] == counted == 1
    assert len(world.writes) == writes


def test_gang_pod_group_waits_for_a_cluster_that_serves_it() -> None:
    world = World(job=a_job().spec(scheduling={"gang": "podGroup"}).manifest, pod_group_served=False).settle()
    assert world.condition("Admitted") == ("False", "PodGroupNotServed")
    assert world.names() == []
    world.pod_group_served = True
    world.settle()
    assert world.names("PodGroup") == ["mlp-gyjmk-a1"]


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(World(pod_group_served=False), id="not served"),
        pytest.param(World(job=a_job().spec(scheduling={"gang": "none"}).manifest), id="not wanted"),
    ],
)
def test_without_a_pod_group_the_pods_are_placed_one_by_one_and_status_says_so(world: World) -> None:
    world.settle()
    assert world.names("PodGroup") == []
    assert all("schedulingGroup" not in pod["spec"] for pod in world.pods())
    world.start().settle()
    assert "one by one" in world.message("Admitted")


@pytest.mark.parametrize("drops", [False, True], ids=["PodGroup not served", "the cluster drops schedulingGroup"])
def test_without_a_gang_what_was_placed_is_released_after_the_deadline_and_tried_again(drops: bool) -> None:
    world = World(pod_group_served=drops, drops_scheduling_group=drops).settle().bind(0).settle()
    world.after(899).settle()
    assert world.status["attempt"] == 1
    world.after(1).settle()
    assert world.status["attempt"] == 2
    assert world.status["restarts"]["total"] == 0, "nobody pays for being queued"
    assert world.status["incidents"][-1]["cause"] == "NotPlaced"
    world.terminated().settle()
    assert world.names() == [pod_name(0, 2), pod_name(1, 2)]


# What keeps pods from running


def test_a_missing_login_is_named_with_the_command_that_makes_it() -> None:
    world = World().settle().waits(0, "CreateContainerConfigError", 'secret "s3-login" not found').settle()
    assert world.condition("Running") == ("False", "StoreSecretMissing")
    assert "kubectl create secret generic s3-login -n ml" in world.status["message"]
    assert world.status["restarts"]["total"] == 0
    world.start().settle()
    assert world.condition("Running") == ("True", "PodsRunning")


def test_an_image_that_cannot_be_pulled_is_named() -> None:
    world = World().settle().waits(1, "ImagePullBackOff", 'Back-off pulling image "trainer:1"').settle()
    assert world.condition("Running") == ("False", "ImagePullFailed")
    assert "trainer:1" in world.status["message"]
    assert "spec.imagePullSecrets" in world.status["message"]


def test_another_missing_object_is_named_too() -> None:
    world = World().settle().waits(1, "CreateContainerConfigError", 'configmap "code" not found').settle()
    assert world.condition("Running") == ("False", "ContainerConfigError")
    assert 'configmap "code" not found' in world.status["message"]


def test_a_first_attempt_that_never_starts_fails_at_its_deadline() -> None:
    job = a_job().spec(scheduling={"startDeadlineSeconds": 60}).manifest
    world = World(job=job).settle().waits(0, "ImagePullBackOff", "no such image").start(1).settle()
    world.after(59).settle()
    assert "finished" not in world.status
    world.after(1).settle()
    assert world.condition("Failed") == ("True", "StartDeadlineExceeded")
    assert "no such image" in world.status["message"]


def test_a_gang_that_makes_no_first_step_fails_at_its_deadline() -> None:
    job = a_job().spec(scheduling={"startDeadlineSeconds": 60}).manifest
    world = World(job=job).settle().start().tells(a_progress()).settle().after(60).settle()
    assert world.condition("Failed") == ("True", "StartDeadlineExceeded")


def test_a_gang_that_runs_but_cannot_be_asked_is_not_ended_by_its_start_deadline() -> None:
    job = a_job().spec(scheduling={"startDeadlineSeconds": 60}).manifest
    world = World(job=job).settle().start().settle().after(3600).settle()
    assert "finished" not in world.status


def test_the_active_deadline_ends_a_job() -> None:
    world = training_world(job=a_job().spec(activeDeadlineSeconds=100).manifest)
    world.now = NOON + seconds(99)
    assert world.reconcile().requeue_after == pytest.approx(1)
    world.after(1).settle()
    assert world.condition("Failed") == ("True", "DeadlineExceeded")
    world.terminated().settle()
    assert world.running() == []


# Children that somebody else touches


def test_a_deleted_service_is_made_again() -> None:
    world = training_world()
    del world.children["Service", "mlp-gyjmk"]
    world.settle()
    assert world.names("Service") == ["mlp-gyjmk"]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("Service", "selector", {"app": "mine"}),
        ("Service", "ports", []),
        ("Service", "publishNotReadyAddresses", False),
        ("NetworkPolicy", "ingress", [{}]),
        ("NetworkPolicy", "policyTypes", ["Egress"]),
    ],
)
def test_an_edited_child_is_restored_once(kind: str, field: str, value: object) -> None:
    world = training_world()
    child = world.children[kind, "mlp-gyjmk"]
    before = child["spec"][field]
    child["spec"][field] = value
    writes = len(world.writes)
    world.settle()
    assert child["spec"][field] == before
    assert world.writes[writes:] == ["relabel mlp-gyjmk", f"apply {kind} mlp-gyjmk"]


def test_edited_labels_are_put_back() -> None:
    world = training_world()
    world.pod(1)["metadata"]["labels"]["bigmodel.io/active"] = "false"
    world.pod(0)["metadata"]["labels"].pop("bigmodel.io/job-uid")
    world.settle()
    assert world.pod(1)["metadata"]["labels"]["bigmodel.io/active"] == "true"
    assert "bigmodel.io/job-uid" in world.pod(0)["metadata"]["labels"]


def test_a_child_with_a_name_that_is_none_of_ours_is_left_alone() -> None:
    world = training_world()
    stranger = {"kind": "Pod", "metadata": {**world.pod(0)["metadata"], "name": "mlp-debug", "uid": "x"}, "spec": {}}
    world.children["Pod", "mlp-debug"] = stranger
    writes = len(world.writes)
    world.settle()
    assert len(world.writes) == writes


def test_the_same_job_again_causes_no_writes() -> None:
    world = training_world()
    writes = len(world.writes)
    for _ in range(5):
        world.reconcile()
    assert len(world.writes) == writes


def test_more_nodes_are_a_new_attempt_that_nobody_pays_for() -> None:
    world = training_world()
    world.job["spec"]["nodes"] = 3
    world.job["metadata"]["generation"] = 2
    world.settle().terminated().settle()
    assert world.names() == [pod_name(0, 2), pod_name(1, 2), pod_name(2, 2)]
    assert world.status["restarts"]["total"] == 0
    assert world.told[-2:] == ["Resized", "GangCreated"]
