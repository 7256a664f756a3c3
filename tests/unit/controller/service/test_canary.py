"""Traffic moves by shares: a route, steps, gates under load, promotion, cooling, rollback. Told against a small cluster
in memory; the order of writes, the sizes and the shares are what the tests look at.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from bigmodel.api.verdict import VerdictStage, Window
from bigmodel.controller.service.observe import Surroundings
from tests.unit.controller.service.world import DIGEST_B, PARITY_FAILS, Crash, Health, World, a_job, a_service

ROUTE = {"parentRefs": [{"name": "gateway"}], "hostnames": ["mlp.example.com"]}
SERVED = Surroundings(route_served=True, grpc_route_served=True)


def saw(requests: int = 0, errors: int = 0, **more: int) -> Window:
    return Window(seconds=60, requests=requests, errors=errors, **more)


def under_load(requests: int = 2000, errors: int = 0, **more: Any) -> Health:
    """Every pod has seen so much, in the step and in the whole rollout."""
    window = saw(requests, errors, **more.pop("window", {}))
    return Health(windows=(window, window), **more)


def canary_world(replicas: int = 4, health: Health | None = None, **spec: Any) -> World:
    """r1 serves through a route under load; r2 is on its way and has its first share, where its pods allow it."""
    world = World(a_service(route=ROUTE, server={"replicas": replicas}, **spec), a_job())
    world.surroundings = SERVED
    world.health[1] = under_load(10_000)
    world.run()
    assert world.shares == {"mlp-r1": 100}
    world.health[2] = health or under_load()
    world.job = a_job(DIGEST_B, "job-2")
    world.run(20)
    return world


def settle(world: World) -> None:
    """Pods show what they saw, then controller and cluster take turns."""
    world.kubelet()
    world.run(20)


def step(world: World, seconds: int = 63) -> None:
    world.later(seconds)
    settle(world)


def test_a_healthy_candidate_goes_through_every_step_with_pods_for_each_share() -> None:
    world = canary_world()
    seen = []
    for _ in range(4):
        seen.append((dict(world.shares), world.replicas(1), world.replicas(2), world.status["rollout"]))
        step(world)
    assert seen == [
        ({"mlp-r1": 95, "mlp-r2": 5}, 4, 1, "r2 5% (1/3)"),
        ({"mlp-r1": 75, "mlp-r2": 25}, 4, 1, "r2 25% (2/3)"),
        ({"mlp-r1": 50, "mlp-r2": 50}, 4, 2, "r2 50% (3/3)"),
        ({"mlp-r2": 100}, 4, 4, "r1 kept 5m"),
    ]
    assert world.selected == 2
    assert world.condition("Promoted") == ("True", "Promoted")
    told = [event.note for event in world.events if event.reason == "TrafficShifted"]
    assert told == [f"r2 gets {weight} % of the traffic." for weight in (5, 25, 50)]


def test_promotion_restarts_no_pod() -> None:
    world = canary_world(replicas=1)
    pods = {name: pod["metadata"]["uid"] for name, pod in world.pods.items()}
    for _ in range(4):
        step(world)
    assert world.selected == 2
    assert {name: pod["metadata"]["uid"] for name, pod in world.pods.items()} == pods


def test_status_shows_step_shares_and_gates() -> None:
    world = canary_world()
    assert world.status["phase"] == "RollingOut"
    assert world.status["stable"]["weight"] == 95
    candidate = world.status["candidate"]
    assert (candidate["stage"], candidate["weight"]) == ("Stepping", 5)
    assert candidate["step"] == {"index": 0, "weight": 5, "startedAt": "2026-03-01T12:00:00Z"}
    gates = {gate["name"]: gate for gate in world.status["gates"]}
    assert gates["errors"]["value"] == "0 of 2000"
    assert gates["errors"]["limit"] == "pass needs ≥ 396 requests, fail ≥ 14.1 errors"
    assert gates["errors"]["verdict"] == "Pass"
    assert world.status["url"] == "http://mlp.example.com"
    assert world.condition("Progressing") == ("True", "Stepping")


def test_a_failing_candidate_loses_its_share_at_once_and_its_pods_after_the_gateway_has_followed() -> None:
    world = canary_world()
    world.health[2] = under_load(20, 4)
    world.kubelet()
    world.reconcile()
    assert world.shares == {"mlp-r1": 100}
    assert world.replicas(2) == 1, "the gateway may still send it requests"
    assert world.status["candidate"]["stage"] == "RollingBack"
    assert world.status["phase"] == "RollingBack"
    starts = [write for write in world.writes if write.startswith("create")]
    world.later(3)
    settle(world)
    assert world.replicas(2) == 0
    assert [write for write in world.writes if write.startswith("create")] == starts, "a rollback starts nothing"
    assert world.status["rollout"] == "r2 rejected: errors"
    assert world.condition("Promoted") == ("False", "Rejected")
    assert world.condition("Ready") == ("True", "Serving")
    assert "4 of 20" in world.status["message"]
    assert "spec.gates.online.maxErrorRatio" in world.status["message"]
    world.later(4000)
    settle(world)
    assert world.shares == {"mlp-r1": 100}, "what was rejected is not tried again by itself"


@pytest.mark.parametrize("source", ["summary", "golden requests"])
def test_a_candidate_that_is_too_slow_is_rolled_back(source: str) -> None:
    world = canary_world(gates={"online": {"p99Milliseconds": 50}})
    if source == "summary":
        world.health[2] = under_load(100, window={"slow": 10}, p99=104.0)
    else:
        world.health[2] = under_load(100, window={"golden": 40, "golden_slow": 10})
    world.kubelet()
    world.reconcile()
    assert world.shares == {"mlp-r1": 100}
    assert world.outcome(2) == "Rejected"
    world.later(5)
    settle(world)
    assert world.status["rollout"] == "r2 rejected: p99"
    assert "slower than 50 ms" in world.status["message"]
    assert "spec.gates.online.p99Milliseconds" in world.status["message"]


def test_errors_of_golden_requests_count_although_the_server_calls_them_successes() -> None:
    world = canary_world()
    world.health[2] = under_load(500, window={"golden": 30, "golden_errors": 5})
    settle(world)
    assert world.outcome(2) == "Rejected"
    assert world.status["history"][0]["gate"] == "golden requests"


def test_users_and_golden_requests_that_fail_together_are_one_fault_seen_sooner() -> None:
    world = canary_world()
    world.health[2] = under_load(30, 2, window={"golden": 8, "golden_errors": 2})
    settle(world)
    assert world.outcome(2) == "Rejected"


def test_errors_that_stable_has_as_well_are_not_held_against_the_candidate() -> None:
    world = canary_world()
    world.health[1] = under_load(10_000, 1000)
    world.health[2] = under_load(100, 10)
    settle(world)
    assert world.outcome(2) is None
    assert world.shares["mlp-r2"] == 5


def test_a_verifier_that_does_not_answer_is_no_evidence() -> None:
    world = canary_world()
    world.health[2] = Health(stage=None)
    for _ in range(5):
        step(world)
    assert world.shares["mlp-r2"] == 5
    assert world.condition("Progressing")[1] == "NoData"


def test_the_last_step_waits_for_certainty() -> None:
    world = canary_world(health=under_load(100))
    for _ in range(6):
        step(world)
    assert world.shares["mlp-r2"] == 50
    assert world.condition("Progressing")[1] == "GateUndecided"
    assert "0 of 200" in world.message("Progressing")
    world.health[2] = under_load(1000)
    settle(world)
    assert world.selected == 2


def test_a_quiet_service_is_decided_by_golden_requests() -> None:
    world = canary_world(health=under_load(0))
    world.health[1] = under_load(1)
    settle(world)
    for _ in range(3):
        step(world)
    assert world.shares["mlp-r2"] == 5
    assert "golden requests decide" in world.message("Progressing")
    world.health[2] = under_load(1, window={"golden": 200})
    for _ in range(4):
        step(world)
    assert world.selected == 2
    assert world.condition("Promoted") == ("True", "OnSyntheticTraffic")


def test_on_quiet_hold_waits_for_users() -> None:
    world = canary_world(health=under_load(1, window={"golden": 400}), rollout={"onQuiet": "hold"})
    world.health[1] = under_load(1)
    for _ in range(4):
        step(world)
    assert world.shares["mlp-r2"] == 5
    assert world.condition("Progressing")[1] == "Quiet"
    assert "bigmodel.io/promote=2" in world.message("Progressing")


def test_a_gateway_that_sends_the_candidate_nothing_is_found_out() -> None:
    world = canary_world(health=under_load(0, window={"golden": 100}))
    settle(world)
    assert world.shares == {"mlp-r1": 100}
    assert world.outcome(2) == "Aborted"
    assert world.status["history"][0]["gate"] == "route"
    assert "does not follow the route" in world.status["history"][0]["message"]


@pytest.mark.parametrize(
    ("on_deadline", "selected", "share"), [("rollback", 1, 0), ("promote", 2, 100), ("hold", 1, 5)]
)
def test_a_deadline_without_verdict(on_deadline: str, selected: int, share: int) -> None:
    rollout = {"onDeadline": on_deadline, "deadlineSeconds": 600, "onQuiet": "hold"}
    world = canary_world(health=under_load(0), rollout=rollout, replicas=1)
    world.health[1] = under_load(3)
    step(world)
    step(world, 600)
    assert world.selected == selected
    assert world.shares.get("mlp-r2", 0) == share


def test_paused_holds_the_share_and_a_failing_gate_still_rolls_back() -> None:
    world = canary_world()
    world.change_spec(rollout={"paused": True})
    for _ in range(3):
        step(world)
    assert world.shares["mlp-r2"] == 5
    assert world.condition("Progressing") == ("True", "Paused")
    assert world.status["rollout"] == "r2 5% (1/3) paused"
    world.health[2] = under_load(20, 20)
    settle(world)
    assert world.shares == {"mlp-r1": 100}


def annotate(world: World, **orders: str | None) -> None:
    annotations = world.owner["metadata"].setdefault("annotations", {})
    for order, revision in orders.items():
        annotations.pop(f"bigmodel.io/{order}", None)
        if revision is not None:
            annotations[f"bigmodel.io/{order}"] = revision


def test_promote_skips_the_steps_and_is_written_down() -> None:
    world = canary_world(health=under_load(5))
    annotate(world, promote="2")
    settle(world)
    assert world.selected == 2
    assert world.replicas(2) == 4
    assert "annotation bigmodel.io/promote" in world.status["history"][0]["message"]


def test_abort_acts_once_until_the_annotation_goes() -> None:
    world = canary_world()
    annotate(world, abort="2")
    settle(world)
    assert world.outcome(2) == "Aborted"
    assert world.shares == {"mlp-r1": 100}
    world.later(4000)
    settle(world)
    assert world.outcome(2) == "Aborted", "a user's word is not overruled by a back-off"
    annotate(world, retry="2")
    settle(world)
    assert world.outcome(2) is None, "the abort that still stands has had its effect"
    assert world.shares["mlp-r2"] == 5
    annotate(world, abort=None)
    settle(world)
    annotate(world, abort="2")
    settle(world)
    assert world.outcome(2) == "Aborted", "said again, it acts again"


def test_retry_gives_a_rejected_revision_another_try_once() -> None:
    world = canary_world(health=under_load(20, 20))
    assert world.outcome(2) == "Rejected"
    annotate(world, retry="2")
    world.health[2] = under_load()
    world.later(10)
    settle(world)
    assert world.shares["mlp-r2"] == 5
    world.health[2] = under_load(20, 20)
    settle(world)
    world.later(10)
    settle(world)
    assert world.outcome(2) == "Rejected", "the annotation that still stands has had its effect"


def test_the_new_stable_is_watched_and_the_one_before_takes_over_without_a_start() -> None:
    world = canary_world()
    for _ in range(4):
        step(world)
    assert world.status["candidate"]["stage"] == "Cooling"
    pods = set(world.pods)
    world.health[2] = under_load(100, 30)
    world.kubelet()
    world.reconcile()
    assert world.selected == 1
    assert world.shares == {"mlp-r1": 100}
    assert set(world.pods) == pods
    world.later(5)
    settle(world)
    assert world.condition("Promoted") == ("False", "Rejected")
    assert world.condition("Ready") == ("True", "Serving")
    assert world.status["rollout"] == "r2 rejected: errors"
    assert world.replicas(2) == 0
    assert world.replicas(1) == 4
    world.later(4000)
    settle(world)
    assert world.selected == 1


def test_abort_while_it_cools_goes_back_to_the_one_before() -> None:
    world = canary_world()
    for _ in range(4):
        step(world)
    pods = set(world.pods)
    annotate(world, abort="2")
    world.reconcile()
    assert world.selected == 1
    assert world.shares == {"mlp-r1": 100}
    assert set(world.pods) == pods
    world.later(4000)
    settle(world)
    assert world.selected == 1
    assert world.outcome(2) == "Aborted"


def test_after_the_window_a_failing_stable_is_only_degraded() -> None:
    world = canary_world()
    for _ in range(4):
        step(world)
    step(world, 301)
    world.health[2] = under_load(100, 30)
    settle(world)
    assert world.selected == 2
    assert world.condition("Degraded") == ("True", "OnlineGateFailed")


def test_changing_back_within_the_window_is_one_move_of_all_traffic() -> None:
    world = canary_world()
    for _ in range(4):
        step(world)
    pods = set(world.pods)
    world.job = a_job()
    world.kubelet()
    world.reconcile()
    world.reconcile()
    assert world.selected == 1
    assert world.shares == {"mlp-r1": 100}
    assert set(world.pods) == pods


def test_the_last_spec_wins_and_the_old_canary_gets_nothing_at_once() -> None:
    world = canary_world()
    world.health[3] = Health(ready=False)
    world.change_spec(batching={"maxBatchSize": 8})
    world.reconcile()
    assert world.shares == {"mlp-r1": 100}
    assert world.outcome(2) == "Aborted"
    settle(world)
    assert world.replicas(2) is not None, "its pods stay while the gateway follows"
    world.later(3)
    settle(world)
    assert world.replicas(2) is None
    world.health[3] = under_load()
    settle(world)
    assert world.shares == {"mlp-r1": 95, "mlp-r3": 5}


def test_a_pin_rolls_back_to_a_record_and_stays() -> None:
    world = canary_world()
    for _ in range(4):
        step(world)
    step(world, 301)
    assert world.replicas(1) is None
    world.change_spec(rollout={"pin": {"revision": 1}})
    settle(world)
    assert world.shares == {"mlp-r2": 95, "mlp-r1": 5}
    for _ in range(4):
        step(world)
    assert world.selected == 1
    assert world.condition("Promoted") == ("True", "Promoted")
    assert "pinned" in world.message("Progressing")
    world.job = a_job("sha256:" + "c" * 64, "job-3")
    step(world, 600)
    assert world.selected == 1
    assert world.names_of("ControllerRevision") == ["mlp-r1", "mlp-r2"], "newer models are held"
    world.change_spec(rollout={})
    settle(world)
    assert world.status["candidate"]["revision"] == 3


def test_a_pin_without_a_record_changes_nothing_and_says_so() -> None:
    world = canary_world()
    world.change_spec(rollout={"pin": {"revision": 9}})
    settle(world)
    assert world.selected == 1
    assert world.condition("Accepted") == ("False", "PinNotFound")


# The route itself


def test_without_gateway_api_a_route_means_blue_green_and_the_status_says_so() -> None:
    world = World(a_service(route=ROUTE), a_job())
    settle(world)
    world.job = a_job(DIGEST_B, "job-2")
    settle(world)
    assert world.selected == 2
    assert world.names_of("HTTPRoute") == []
    assert world.condition("Accepted") == ("True", "RouteNotServed")
    assert world.status["url"] == "http://mlp.ml.svc.cluster.local:8000"


def test_blue_green_with_a_route_moves_selector_and_weights_in_one_pass() -> None:
    world = canary_world(rollout={"strategy": "blueGreen"})
    assert world.selected == 2
    assert world.shares == {"mlp-r2": 100}
    moves = [write for write in world.writes if "Route/mlp" in write or write == "apply Service/mlp"]
    assert moves == ["create HTTPRoute/mlp", "apply Service/mlp", "apply HTTPRoute/mlp"]


def test_a_gateway_that_refuses_holds_the_rollout_and_its_reason_is_told() -> None:
    world = World(a_service(route=ROUTE), a_job())
    world.surroundings = SERVED
    world.gateway = ("NotAllowedByListeners", "namespace ml is not allowed")
    world.health[1] = under_load()
    settle(world)
    assert world.condition("Ready") == ("False", "RouteNotAccepted")
    assert "namespace ml is not allowed" in world.message("Ready")
    world.job = a_job(DIGEST_B, "job-2")
    settle(world)
    assert world.shares == {"mlp-r1": 100}
    assert world.condition("Progressing") == ("False", "RouteNotAccepted")
    world.gateway = "accepts"
    world.health[2] = under_load()
    settle(world)
    assert world.condition("Ready") == ("True", "Serving")
    assert world.shares["mlp-r2"] == 5


def test_a_gateway_that_does_not_look_holds_the_rollout() -> None:
    world = canary_world()
    world.gateway = None
    step(world)
    assert world.shares["mlp-r2"] == 25
    for _ in range(3):
        step(world)
    assert world.shares["mlp-r2"] == 25
    assert world.condition("Progressing")[1] == "RoutePending"


def test_a_host_of_an_older_service_is_left_to_it() -> None:
    world = World(a_service(route=ROUTE), a_job())
    world.surroundings = Surroundings(route_served=True, rival="ml/elder")
    settle(world)
    assert world.names_of("HTTPRoute") == []
    assert world.condition("Ready") == ("False", "HostnameTaken")
    assert "bms/ml/elder" in world.message("Ready")
    world.surroundings = SERVED
    settle(world)
    assert world.shares == {"mlp-r1": 100}
    assert world.condition("Ready") == ("True", "Serving")


def test_a_route_edited_by_hand_is_restored_goes_on_from_the_lower_and_keeps_what_is_others() -> None:
    world = canary_world()
    step(world)
    assert world.shares["mlp-r2"] == 25
    route = world.objects["HTTPRoute", "mlp"]
    for rule in route["spec"]["rules"]:
        rule["backendRefs"][0]["weight"], rule["backendRefs"][1]["weight"] = 90, 10
        rule["filters"] = [{"type": "RequestHeaderModifier"}]
    route["spec"]["hostnames"] = ["other.example.com"]
    settle(world)
    assert world.shares == {"mlp-r1": 95, "mlp-r2": 5}
    restored = world.objects["HTTPRoute", "mlp"]["spec"]
    assert restored["hostnames"] == ["mlp.example.com"]
    assert [rule["filters"] for rule in restored["rules"]] == [[{"type": "RequestHeaderModifier"}]] * 2
    assert "Restored" in [event.reason for event in world.events]
    route = world.objects["HTTPRoute", "mlp"]
    for rule in route["spec"]["rules"]:
        rule["backendRefs"][0]["weight"], rule["backendRefs"][1]["weight"] = 10, 90
    settle(world)
    assert world.shares == {"mlp-r1": 95, "mlp-r2": 5}


def test_a_route_that_somebody_deleted_is_made_again_and_the_canary_begins_anew() -> None:
    world = canary_world()
    step(world)
    assert world.shares["mlp-r2"] == 25
    del world.objects["HTTPRoute", "mlp"]
    settle(world)
    assert world.shares["mlp-r2"] == 5


def test_hosts_for_grpc_alone_have_a_route_of_their_own_with_the_same_shares() -> None:
    world = canary_world()
    world.change_spec(route=ROUTE | {"grpcHostnames": ["grpc.example.com"]})
    settle(world)
    rules = world.objects["GRPCRoute", "mlp"]["spec"]["rules"]
    assert {ref["name"]: ref["weight"] for ref in rules[0]["backendRefs"]} == world.shares
    assert world.status["grpcUrl"] == "grpc.example.com:80"
    world.change_spec(route=ROUTE)
    settle(world)
    assert world.names_of("GRPCRoute") == []


def test_a_route_taken_out_of_the_spec_goes() -> None:
    world = canary_world()
    del world.owner["spec"]["route"]
    settle(world)
    assert world.names_of("HTTPRoute") == []
    assert world.selected == 2, "without a route there are no shares: all at once"


# What is around a rollout


def test_a_deleted_status_in_any_step_is_rebuilt_and_nothing_moves() -> None:
    world = canary_world()
    for _ in range(5):
        expected, pods, writes = world.status, dict(world.pods), len(world.writes)
        del world.owner["status"]
        settle(world)
        assert world.pods == pods
        assert set(world.writes[writes:]) == {"status"}
        assert {k: v for k, v in world.status.items() if k != "conditions"} == {
            k: v for k, v in expected.items() if k != "conditions"
        }
        step(world)


def test_scaling_in_the_middle_of_a_rollout_follows_at_both_revisions() -> None:
    world = canary_world()
    step(world)
    step(world)
    assert (world.replicas(1), world.replicas(2)) == (4, 2)
    world.change_spec(server={"replicas": 8})
    settle(world)
    assert (world.replicas(1), world.replicas(2)) == (8, 4)
    assert world.shares["mlp-r2"] == 50


def test_a_canary_without_pods_gets_no_share() -> None:
    world = canary_world(replicas=1)
    world.health[2] = Health(ready=False, stage=VerdictStage.REPLAYING)
    settle(world)
    assert world.shares == {"mlp-r1": 100}
    world.health[2] = under_load()
    settle(world)
    assert world.shares["mlp-r2"] == 5


def test_errors_before_a_restart_still_count_after_it() -> None:
    """A model that dies of its users' requests comes back verified each time: its past must come with it."""
    world = canary_world(replicas=1)
    world.health[2] = Health(ready=False, stage=VerdictStage.LOADING)
    settle(world)
    assert world.shares == {"mlp-r1": 100}
    world.health[2] = under_load(20, 4)
    settle(world)
    assert world.outcome(2) == "Rejected"
    assert world.shares == {"mlp-r1": 100}


def test_more_rollouts_than_the_cluster_may_have_wait() -> None:
    world = World(a_service(), a_job())
    settle(world)
    world.surroundings = Surroundings(slot=False)
    world.job = a_job(DIGEST_B, "job-2")
    settle(world)
    assert world.names_of("Deployment") == ["mlp-r1"]
    assert world.status["rollout"] == "r2 queued"
    assert world.condition("Progressing") == ("True", "RolloutsQueued")
    world.surroundings = Surroundings()
    settle(world)
    assert world.selected == 2


def test_recreate_says_its_down_time_before_and_comes_back_when_the_candidate_fails() -> None:
    world = World(a_service(rollout={"strategy": "recreate"}), a_job())
    settle(world)
    world.health[2] = Health(ready=False)
    world.job = a_job(DIGEST_B, "job-2")
    decision = world.decide()
    assert "nothing answers for about 8 s" in str(decision.status)
    assert world.replicas(1) == 1
    settle(world)
    assert (world.replicas(1), world.replicas(2)) == (0, 1)
    world.health[2] = PARITY_FAILS
    settle(world)
    assert (world.replicas(1), world.replicas(2)) == (1, 0)
    assert world.selected == 1
    assert world.condition("Ready") == ("True", "Serving")


def test_recreate_promotes_what_is_verified() -> None:
    world = World(a_service(rollout={"strategy": "recreate"}), a_job())
    settle(world)
    world.job = a_job(DIGEST_B, "job-2")
    settle(world)
    assert world.selected == 2
    assert world.condition("Promoted") == ("True", "Promoted")


# Crashes


def _play(crash_after: int | None, fails: bool) -> World:
    """One canary of one step, promoted or rolled back, with a controller that dies after that write."""
    rollout = {"steps": [50], "rollbackWindowSeconds": 30}
    world = World(a_service(route=ROUTE, server={"replicas": 2}, rollout=rollout), a_job())
    world.surroundings = SERVED
    world.health[1] = under_load(10_000)
    world.health[2] = under_load()
    world.crash_after(crash_after)

    def publish() -> None:
        world.job = a_job(DIGEST_B, "job-2")

    def time_passes() -> None:
        world.later(63)
        world.health[2] = under_load(50, 50) if fails else under_load()

    for happens in (lambda: None, publish, time_passes, lambda: world.later(63)):
        happens()
        try:
            settle(world)
        except Crash:
            world.crash_after(None)
            settle(world)
    return world


def _end(world: World) -> dict[str, object]:
    split = json.loads(world.objects["HTTPRoute", "mlp"]["metadata"]["annotations"]["bigmodel.io/traffic"])
    return {
        "shares": world.shares,
        "selected": world.selected,
        "objects": sorted(world.objects),
        "outcomes": [world.outcome(1), world.outcome(2)],
        "pods": sorted(world.pods),
        "status": {k: v for k, v in world.status.items() if k not in {"conditions", "history"}},
        "split": {k: v for k, v in split.items() if k not in {"since", "began"}},
    }


@pytest.mark.parametrize("fails", [False, True], ids=["promoted", "rolled back"])
def test_a_crash_after_any_write_of_a_canary_leads_to_the_same_end(fails: bool) -> None:
    """B18, C43: from records, Deployments and route alone."""
    reference = _play(None, fails)
    assert reference.shares == ({"mlp-r1": 100} if fails else {"mlp-r2": 100})
    for position in range(len(reference.writes)):
        world = _play(position, fails)
        assert _end(world) == _end(reference), f"crash after write {position}: {reference.writes[position]}"
        made = [write for write in world.writes if write.startswith("create Deployment")]
        assert made == ["create Deployment/mlp-r1", "create Deployment/mlp-r2"]
