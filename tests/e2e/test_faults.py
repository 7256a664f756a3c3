"""What goes wrong on real nodes, and what the user is told."""

from __future__ import annotations

from typing import Any

from tests.cluster.kubectl import kubectl
from tests.demo.install import SYSTEM_NAMESPACE
from tests.e2e.user import Namespace, a_job, a_service, condition, eventually, signals_its_rank

LONG = {"name": "mlp", "parameters": {"hidden": [16]}, "steps": 100_000}


def _trains(namespace: Namespace, name: str = "mlp", beyond: int = 0) -> int | None:
    """The step the job is at, once it is beyond `beyond`."""
    step: int = namespace.get("bmj", name).get("status", {}).get("progress", {}).get("step", 0)
    return step if step > beyond else None


def _pod(namespace: Namespace, index: int) -> dict[str, Any]:
    selector = f"bigmodel.io/job=mlp,bigmodel.io/index={index},bigmodel.io/active=true"
    return namespace.items("pods", selector)[0]


def test_a_program_error_ends_in_failed_with_rank_exit_code_and_traceback(namespace: Namespace) -> None:
    recipe = {
        "name": "mlp",
        "parameters": {"hidden": [16]},
        "steps": 50,
        "optimizer": {"name": "adam", "parameters": {"beta": 1}},
    }
    namespace.apply(a_job(recipe=recipe, failurePolicy={"maxRestarts": 1}))
    namespace.wait("bmj/mlp", "Finished", 180)
    failed = condition(namespace.get("bmj", "mlp"), "Failed")
    assert failed["reason"] in {"MaxRestartsExceeded", "CrashLoop"}
    assert "rank 0" in failed["message"] or "rank 1" in failed["message"]
    assert "exit code 1" in failed["message"]
    assert "beta" in failed["message"], "the traceback's last line names the argument"


def test_a_killed_rank_is_healed_in_place(namespace: Namespace) -> None:
    namespace.apply(a_job(recipe=LONG))
    before = eventually("it trains", lambda: _trains(namespace), 120)
    pods = {p["metadata"]["name"]: p["metadata"]["uid"] for p in namespace.items("pods")}
    name = _pod(namespace, 1)["metadata"]["name"]
    namespace.kubectl("exec", name, "--", "python3", "-c", signals_its_rank("SIGKILL"))

    def healed() -> bool:
        job = namespace.get("bmj", "mlp")
        return job["status"]["restarts"]["program"] == 1 and job["status"]["progress"]["step"] > 0

    eventually("the restart is counted", healed, 60)
    eventually("it trains on", lambda: _trains(namespace), 60)
    assert {p["metadata"]["name"]: p["metadata"]["uid"] for p in namespace.items("pods")} == pods, "no pod was replaced"
    assert before > 0


def test_a_deleted_pod_is_replaced_with_the_same_rank(namespace: Namespace) -> None:
    namespace.apply(a_job(recipe=LONG))
    eventually("it trains", lambda: _trains(namespace), 120)
    for index in (1, 0):
        old = _pod(namespace, index)
        namespace.kubectl("delete", "pod", old["metadata"]["name"], "--wait=false")
        new = eventually(
            f"index {index} has a successor",
            lambda index=index, old=old: next(
                (p for p in [_pod(namespace, index)] if p["metadata"]["uid"] != old["metadata"]["uid"]), None
            ),
            30,
        )
        assert new["metadata"]["name"] == f"{old['metadata']['name']}-r1"
        assert new["spec"]["hostname"] == old["spec"]["hostname"]
        eventually("the successor runs", lambda index=index: _pod(namespace, index)["status"]["phase"] == "Running", 60)
        step = _trains(namespace) or 0
        eventually("it trains on", lambda step=step: (_trains(namespace) or step) != step, 60)
    status = namespace.get("bmj", "mlp")["status"]
    assert status["restarts"] == {"program": 0, "infrastructure": 2, "hang": 0, "total": 2}, status["incidents"]


def test_a_job_too_big_for_the_cluster_holds_no_node_and_says_what_it_lacks(namespace: Namespace) -> None:
    resources = {"limits": {"cpu": "100m", "memory": "256Mi", "nvidia.com/gpu": 3}}
    namespace.apply(a_job(nodes=3, resources=resources))

    def lacks_gpus() -> bool:
        admitted = condition(namespace.get("bmj", "mlp"), "Admitted")
        return admitted.get("reason") == "Unschedulable" and "nvidia.com/gpu" in admitted["message"]

    # The scheduler tells the pods and the group one after the other; the message is whole once all were told.
    eventually("it names what the nodes lack", lacks_gpus, 60)
    assert all(not p["spec"].get("nodeName") for p in namespace.items("pods")), "all or none"


def test_a_missing_login_is_named_with_the_command_that_makes_it(namespace: Namespace) -> None:
    namespace.kubectl("delete", "secret", "bigmodel-store")
    namespace.apply(a_job())
    message = eventually(
        "the job says so",
        lambda: next(
            (m for m in [namespace.get("bmj", "mlp").get("status", {}).get("message", "")] if "bigmodel-store" in m),
            None,
        ),
        60,
    )
    assert "kubectl create secret generic bigmodel-store" in message


def test_a_service_waits_for_its_job_and_says_so(namespace: Namespace) -> None:
    namespace.apply(a_service(job="nothing"))
    source = eventually("it says what it lacks", lambda: condition(namespace.get("bms", "mlp"), "SourceAvailable"), 30)
    assert source["status"] == "False"
    assert source["reason"] == "JobNotFound"
    assert "nothing" in source["message"]


def test_deleting_both_leaves_nothing(namespace: Namespace) -> None:
    namespace.apply(a_job(recipe=LONG))
    eventually("it trains", lambda: _trains(namespace), 120)
    namespace.kubectl("delete", "bmj", "mlp", "--cascade=foreground", "--timeout=90s", timeout_seconds=100)
    assert namespace.items("pods,svc,podgroups.scheduling.k8s.io,networkpolicies") == []


def test_the_other_replica_acts_when_the_leader_is_killed(namespace: Namespace) -> None:
    def holder() -> str:
        leases = kubectl("get", "lease", "-n", SYSTEM_NAMESPACE, "-o", "jsonpath={.items[*].spec.holderIdentity}")
        return leases.split("_")[0]

    leader = holder()
    kubectl("delete", "pod", leader, "-n", SYSTEM_NAMESPACE, "--grace-period=0", "--force")
    namespace.apply(a_job())
    eventually("another leads", lambda: holder() not in ("", leader), 30)
    eventually("it acts", lambda: namespace.items("pods", "bigmodel.io/job=mlp"), 30)
    namespace.wait("bmj/mlp", "Finished", 240)
    assert condition(namespace.get("bmj", "mlp"), "Complete")["status"] == "True"
