"""The whole chain on real nodes: two training pods, an artefact in S3, a verified Triton, answers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from tests.cluster.kubectl import kubectl
from tests.demo.infer import ask, golden_sample
from tests.demo.install import STORE_SECRET, SYSTEM_NAMESPACE
from tests.e2e.user import Namespace, a_job, a_service, condition, eventually


@pytest.fixture(scope="module")
def chain(new_namespace: Callable[[], Namespace]) -> Namespace:
    """A namespace in which `mlp` was trained and is served."""
    namespace = new_namespace()
    namespace.apply(a_service(), a_job())  # the service first: it waits for its job
    namespace.wait("bmj/mlp", "Finished", 240)
    namespace.wait("bms/mlp", "Promoted", 240)
    return namespace


def test_a_job_of_two_nodes_runs_on_both_and_completes(chain: Namespace) -> None:
    job = chain.get("bmj", "mlp")
    assert condition(job, "Complete")["status"] == "True"
    assert job["status"]["finished"] == "True"
    assert job["status"]["nodes"] == {"desired": 2, "ready": 0, "succeeded": 2, "failed": 0, "summary": "0/2"}
    assert job["status"]["progress"]["step"] == 50
    pods = chain.items("pods", "bigmodel.io/job=mlp")
    assert sorted(p["metadata"]["labels"]["bigmodel.io/index"] for p in pods) == ["0", "1"]
    assert {p["spec"]["nodeName"] for p in pods} == {"node-1", "node-2"}
    assert {p["spec"]["hostname"] for p in pods} == {"mlp-0", "mlp-1"}


def test_the_gang_was_placed_by_a_native_pod_group(chain: Namespace) -> None:
    groups = chain.items("podgroups.scheduling.k8s.io")
    assert [g["spec"]["schedulingPolicy"]["gang"]["minCount"] for g in groups] == [2]
    for pod in chain.items("pods", "bigmodel.io/job=mlp"):
        assert pod["spec"]["schedulingGroup"]["podGroupName"] == groups[0]["metadata"]["name"]


def test_what_was_published_is_what_is_served_and_every_digest_agrees(chain: Namespace) -> None:
    artifact = chain.get("bmj", "mlp")["status"]["artifact"]
    stable = chain.get("bms", "mlp")["status"]["stable"]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", artifact["digest"])
    assert stable["digest"] == artifact["digest"]
    assert stable["revision"] == 1
    assert stable["weight"] == 100


@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
def test_the_served_model_gives_the_golden_answers_of_the_job(chain: Namespace, protocol: str) -> None:
    sample = golden_sample(chain.get("bmj", "mlp"), chain.name, STORE_SECRET)
    answers = {a.protocol: a for a in ask(chain.name, "mlp", "mlp", sample)}
    assert answers[protocol].outputs == pytest.approx(sample.outputs, rel=1e-3, abs=1e-4)
    assert answers[protocol].version == "1", "the response names the revision"


def test_kubectl_get_prints_the_columns_of_both_kinds(chain: Namespace) -> None:
    header, row = chain.kubectl("get", "bmj", "mlp").splitlines()
    assert header.split() == ["NAME", "PHASE", "NODES", "PROGRESS", "LOSS", "GOODPUT", "RESTARTS", "CHECKPOINT", "AGE"]
    assert re.match(r"mlp +Complete +0/2 +100% +[\d.]+ +[\d.]+% +0 ", row)
    header, row = chain.kubectl("get", "bms", "mlp").splitlines()
    assert header.split() == ["NAME", "READY", "SERVING", "ROLLOUT", "REPLICAS", "URL", "AGE"]
    assert re.match(rf"mlp +True +r1 +- +1/1 +http://mlp\.{chain.name}\.svc\.cluster\.local:8000 ", row)


@pytest.mark.parametrize("kind", ["bmj", "bms"])
def test_every_condition_speaks_of_the_current_generation(chain: Namespace, kind: str) -> None:
    found = chain.get(kind, "mlp")
    generation = found["metadata"]["generation"]
    assert found["status"]["observedGeneration"] == generation
    assert {c["observedGeneration"] for c in found["status"]["conditions"]} == {generation}
    assert all(c["message"] for c in found["status"]["conditions"])


def test_the_events_tell_the_story_in_order(chain: Namespace) -> None:
    reasons = chain.events("mlp")
    story = [r for r in ("Accepted", "GangCreated", "Running", "Published", "Complete") if r in reasons]
    assert story == ["Accepted", "GangCreated", "Running", "Published", "Complete"]
    assert reasons.index("GangCreated") < reasons.index("Running") < reasons.index("Complete")
    assert len(reasons) == len(set(reasons)), "one event for each transition"


def test_a_finished_chain_causes_no_writes(chain: Namespace) -> None:
    def versions() -> dict[str, str]:
        found = [chain.get("bmj", "mlp"), chain.get("bms", "mlp"), *chain.items("deploy,svc,controllerrevisions,pods")]
        return {f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"] for o in found}

    before = versions()
    chain.apply(a_service(), a_job())  # the same again: no new generation
    time.sleep(12)  # nothing is awaited: a resync and a progress poll would have written by now
    assert versions() == before


def test_a_serving_pod_that_is_deleted_is_verified_before_it_is_ready_again(chain: Namespace) -> None:
    old = chain.items("pods", "bigmodel.io/service=mlp")[0]["metadata"]["uid"]
    chain.kubectl("delete", "pod", "-l", "bigmodel.io/service=mlp", "--wait=false")

    def ready() -> bool:
        pods = [p for p in chain.items("pods", "bigmodel.io/service=mlp") if p["metadata"]["uid"] != old]
        return any(
            c["type"] == "Ready" and c["status"] == "True" for p in pods for c in p["status"].get("conditions", [])
        )

    eventually("the successor is ready", ready, 120)
    logs = chain.kubectl("logs", "-l", "bigmodel.io/service=mlp", "-c", "verifier", "--tail=-1")
    assert "Verified" in logs


def test_every_pod_is_restricted_and_carries_no_token(chain: Namespace) -> None:
    for pod in chain.items("pods"):
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"]["drop"] == ["ALL"]
            assert security["readOnlyRootFilesystem"] is True


def test_the_operator_may_read_no_secret(chain: Namespace) -> None:
    who = f"system:serviceaccount:{SYSTEM_NAMESPACE}:bigmodel-operator"
    for verb in ("get", "list", "watch"):
        answer = kubectl_answer("auth", "can-i", verb, "secrets", "--as", who, "-n", chain.name)
        assert answer == "no"


def kubectl_answer(*arguments: str) -> str:
    """What kubectl prints, also when it ends with exit code 1 as `auth can-i` does for no."""
    try:
        return kubectl(*arguments).strip()
    except RuntimeError as error:
        return str(error).split(": ", 1)[1].strip()
