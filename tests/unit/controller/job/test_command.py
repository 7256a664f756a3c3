"""Jobs of any image: no launcher, so every loss costs the gang, and every pod must end well."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bigmodel.controller.decision import Children
from bigmodel.controller.job import build
from bigmodel.controller.job.observe import observed_job
from tests.builders import SETTINGS, AJob, a_job, a_last_word, an_artifact, pod_name
from tests.unit.controller.job.world import World

NONE = {"program": 0, "infrastructure": 0, "hang": 0, "total": 0}


def a_command(**spec: Any) -> AJob:
    return a_job().spec(**{"recipe": None, "store": None, "command": ["torchrun", "train.py"], **spec})


def running_world(**spec: Any) -> World:
    """Both pods run."""
    world = World(job=a_command(**spec).manifest).settle()
    return world.after(1).start().settle()


def environment(world: World, index: int) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in world.pod(index)["spec"]["containers"][0]["env"]}


# What its processes are told


def test_torchrun_without_a_flag_and_a_program_without_torchrun_both_find_the_gang() -> None:
    """A1; PET_* are torchrun's flags, the others are what torch.distributed reads."""
    host = "mlp-0.mlp-gyjmk"
    world = World(job=a_command(processesPerNode=4).manifest).settle()
    assert environment(world, 1) == {
        "HOME": "/tmp",
        "MASTER_ADDR": host,
        "MASTER_PORT": "29500",
        "NODE_RANK": "1",
        "RANK": "4",
        "WORLD_SIZE": "8",
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_NPROC_PER_NODE": "4",
        "PET_MASTER_ADDR": host,
        "PET_MASTER_PORT": "29500",
        "PET_MAX_RESTARTS": "0",
    }
    ports = world.children["Service", "mlp-gyjmk"]["spec"]["ports"]
    assert [(port["name"], port["port"]) for port in ports] == [("master", 29500)]


def test_a_job_of_one_process_is_told_no_rank() -> None:
    """Some programs take RANK's presence for "distributed, on GPUs"."""
    told = environment(World(job=a_command(nodes=1).manifest).settle(), 0)
    assert {"RANK", "WORLD_SIZE", "TF_CONFIG"} & told.keys() == set()
    assert told["PET_NNODES"] == "1"


def test_tensorflow_is_told_its_workers_and_nothing_of_torch() -> None:
    told = environment(World(job=a_command(framework="tensorflow").manifest).settle(), 1)
    assert told.keys() == {"HOME", "TF_CONFIG"}
    assert json.loads(told["TF_CONFIG"]) == {
        "cluster": {"worker": ["mlp-0.mlp-gyjmk:29500", "mlp-1.mlp-gyjmk:29500"]},
        "task": {"type": "worker", "index": 1},
    }


def test_the_largest_gang_fits_into_one_variable() -> None:
    """The kernel takes at most 128 KiB for one."""
    job = observed_job(
        a_command(framework="tensorflow", nodes=1000).metadata(name="m" * 50).manifest, Children(), (), None, True
    )
    assert len(build.gang_environment(job, 1000, 999)["TF_CONFIG"]) < 128 * 1024 - len("TF_CONFIG=")


def test_the_program_is_started_as_it_is() -> None:
    world = World(job=a_command(args=["--epochs", "3"], workingDir="/src", image="foreign:1").manifest).settle()
    container = world.pod(0)["spec"]["containers"][0]
    assert (container["command"], container["args"]) == (["torchrun", "train.py"], ["--epochs", "3"])
    assert container["workingDir"] == "/src"
    assert "readinessProbe" not in container
    assert container["securityContext"]["readOnlyRootFilesystem"] is False


def test_a_command_needs_no_store_and_gets_one_only_where_it_names_it() -> None:
    store = {"persistentVolumeClaim": {"claimName": "models"}}
    world = World(job=a_command(store=store).manifest).settle()
    assert {"name": "bigmodel-store", "mountPath": "/store"} in world.pod(0)["spec"]["containers"][0]["volumeMounts"]
    by_chart = SETTINGS.model_copy(update={"store": world.observed().spec.store})  # type: ignore[union-attr]
    world = World(job=a_command().manifest, settings=by_chart).settle()
    assert [volume["name"] for volume in world.pod(0)["spec"]["volumes"]] == ["bigmodel-tmp", "bigmodel-shm"]


# Ends


def test_it_is_complete_when_every_pod_has_ended_well_and_not_before() -> None:
    """A2, A3."""
    world = running_world().ends(0, 0).settle()
    assert "finished" not in world.status
    world.ends(1, 0).settle()
    assert world.condition("Complete") == ("True", "Complete")
    assert world.condition("Published") == ("False", "NothingPromised")
    assert world.status["nodes"]["succeeded"] == 2
    assert "artifact" not in world.status
    assert world.told[-1] == "Complete"


def test_while_it_runs_the_phase_says_so_though_it_tells_no_progress() -> None:
    world = running_world()
    assert world.status["phase"] == "Training"
    assert "a command tells no progress" in world.message("Running")
    world.after(100).gone(1).settle()
    assert world.status["goodput"]["productiveSeconds"] == 100


def test_what_looks_like_a_launchers_last_word_is_not_taken_for_one() -> None:
    world = running_world()
    for index in (1, 0):
        world.ends(index, 0, a_last_word(index, artifact=an_artifact()))
    world.settle()
    assert world.condition("Published") == ("False", "NothingPromised")


def test_a_pod_that_ends_well_because_it_was_told_to_stop_is_not_done() -> None:
    """A16: it would be lost work that looks like success."""
    world = running_world().ends(0, 0)
    world.deleted(1).after(2).ends(1, 0).settle()
    assert world.status["attempt"] == 2
    assert world.status["restarts"] == {**NONE, "infrastructure": 1, "total": 1}
    assert "finished" not in world.status


# Losses


LOST = {
    "it failed": (lambda w: w.ends(1, 3), "program", "PodFailed"),
    "it ran out of memory": (lambda w: w.ends(1, 137, reason="OOMKilled"), "program", "OOMKilled"),
    "it is gone": (lambda w: w.gone(1), "infrastructure", "Vanished"),
    "its node is not Ready": (lambda w: w.node_lost(1), "infrastructure", "NodeLost"),
    "it was drained": (lambda w: w.ends(1, 143, disrupted="EvictionByEvictionAPI"), "infrastructure", "Evicted"),
    "its node had no room after all": (
        lambda w: w.refused_by_node(1, "OutOfcpu", "not enough cpu"), "infrastructure", "RejectedByNode"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("lose", "budget", "cause"), LOST.values(), ids=LOST)
def test_any_lost_pod_is_a_new_attempt_of_the_gang(lose: Any, budget: str, cause: str) -> None:
    """A10, A16; nobody inside heals what is left."""
    world = running_world()
    lose(world)
    world.settle()
    assert (world.status["attempt"], world.status["replacements"]) == (2, [])
    assert world.status["restarts"] == {**NONE, budget: 1, "total": 1}
    assert world.status["incidents"][-1]["cause"] == cause
    world.terminated().settle()
    assert {pod_name(0, 2), pod_name(1, 2)} <= set(world.names())
    assert world.running() == [pod_name(0, 2), pod_name(1, 2)] or cause == "NodeLost"


def test_no_process_of_the_old_gang_overlaps_the_new_one() -> None:
    """A10, I2: nothing fences a program without a launcher, so it is waited for, a grace period at most."""
    world = running_world().ends(1, 3).settle()
    assert world.running() == [pod_name(0)]
    assert "deletionTimestamp" in world.children["Pod", pod_name(0)]["metadata"]
    world.terminated().settle()
    assert world.running() == [pod_name(0, 2), pod_name(1, 2)]


def test_the_first_that_failed_is_named_with_the_end_of_its_log() -> None:
    """A18: the other dies of it a second later."""
    log = "\n".join(f"step {n}" for n in range(40)) + "\nValueError: bad shard"
    world = running_world().after(5).ends(1, 3, log).after(1).ends(0, 1, "connection reset").settle()
    [incident] = world.status["incidents"]
    assert (incident["index"], incident["node"], incident["exitCode"]) == (1, "node-2", 3)
    assert incident["log"].splitlines() == [f"step {n}" for n in range(21, 40)] + ["ValueError: bad shard"]
    assert incident["message"].endswith("ValueError: bad shard")
    assert world.status["restarts"]["program"] == 1


def test_of_two_ends_in_one_second_a_signal_explains_the_other() -> None:
    world = running_world().ends(0, 1).ends(1, 139).settle()
    assert world.status["incidents"][-1]["index"] == 1


def test_peers_that_die_of_an_eviction_cost_no_budget_of_the_program() -> None:
    """A16: the evicted pod still has its grace when the others notice."""
    world = running_world(failurePolicy={"maxRestarts": 0}).after(5).deleted(1).after(2).ends(0, 1).settle()
    assert world.status["restarts"] == {**NONE, "infrastructure": 1, "total": 1}
    assert world.status["incidents"][-1]["cause"] == "Deleted"
    assert world.status["attempt"] == 2


def test_out_of_memory_names_the_limit() -> None:
    """A18."""
    world = running_world(resources={"limits": {"memory": "64Gi"}}).ends(1, 137, reason="OOMKilled").settle()
    assert "more memory than its limit, 64Gi" in world.status["incidents"][-1]["message"]


def attempts_until_the_end(world: World, exit_code: int = 1, runs: float = 1) -> int:
    """Start, run, fail, again; how many times the program was started."""
    for tries in range(1, 20):
        world.start().settle().after(runs).ends(1, exit_code).settle()
        if "finished" in world.status:
            return tries
        world.terminated().after(60).settle()
    raise AssertionError("endless")


def test_it_is_tried_once_more_than_maxRestarts_says() -> None:
    """A11, A14."""
    world = World(job=a_command(failurePolicy={"maxRestarts": 2}).manifest).settle()
    assert attempts_until_the_end(world, runs=100) == 3
    assert world.condition("Failed") == ("True", "MaxRestartsExceeded")
    assert "2 of 2 restarts are used (spec.failurePolicy.maxRestarts)" in world.status["message"]
    assert "index 1" in world.status["message"] or pod_name(1, 3) in world.status["message"]


def test_no_policy_is_three_restarts() -> None:
    """A12."""
    assert attempts_until_the_end(World(job=a_command().manifest).settle(), runs=100) == 4


def test_three_ends_alike_within_a_minute_of_their_start_are_a_crash_loop() -> None:
    """C29: a command tells no steps; a minute of running counts as some."""
    world = World(job=a_command(failurePolicy={"maxRestarts": 10}).manifest).settle()
    assert attempts_until_the_end(world, runs=5) == 3
    assert world.condition("Failed") == ("True", "CrashLoop")


def test_other_exit_codes_are_no_crash_loop() -> None:
    world = World(job=a_command(failurePolicy={"maxRestarts": 10}).manifest).settle()
    for code in (1, 1, 2, 1, 1):
        world.start().settle().after(5).ends(1, code).settle().terminated().after(60).settle()
    assert world.status["attempt"] == 6


def test_losses_of_nodes_between_do_not_count_as_crashes() -> None:
    """C29: infrastructure does not consume this budget."""
    world = World(job=a_command(failurePolicy={"maxRestarts": 10}).manifest).settle()
    for lose in (lambda: world.ends(1, 1), lambda: world.ends(1, 1), lambda: world.gone(1)):
        world.start().settle().after(5)
        lose()
        world.settle().terminated().after(60).settle()
    world.start().settle().after(5).ends(1, 1).settle()
    assert "finished" not in world.status


def test_rules_see_the_exit_code_of_the_first_that_failed() -> None:
    """A13, A15."""
    rules = [{"onExitCodes": [42], "action": "FailJob"}, {"action": "RestartAndIgnore"}]
    world = running_world(failurePolicy={"rules": rules}).ends(0, 7).settle()
    assert world.status["restarts"] == NONE
    world.terminated().after(60).settle().start().settle().after(1).ends(1, 42).settle()
    assert world.condition("Failed") == ("True", "NonRetryableExitCode")
    assert "spec.failurePolicy.rules[0]" in world.status["message"]


def test_attempts_in_a_row_are_followed_by_growing_pauses() -> None:
    world = running_world(failurePolicy={"maxRestarts": 10})
    for code in (1, 2, 3, 4):
        world.start().ends(1, code).settle().terminated().settle()
    assert pod_name(0, 5) not in world.names()
    assert world.reconcile().requeue_after == pytest.approx(1)
    world.after(1).settle()
    assert pod_name(0, 5) in world.names()


def test_pods_that_never_run_together_miss_the_start_deadline() -> None:
    """A25."""
    world = World(job=a_command(scheduling={"startDeadlineSeconds": 60}).manifest).settle()
    world.start(0).waits(1, "ImagePullBackOff", "no such image").settle().after(60).settle()
    assert world.condition("Failed") == ("True", "StartDeadlineExceeded")
