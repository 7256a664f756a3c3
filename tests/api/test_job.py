"""A job against a real API server: names and owners as it sees them, columns and events as kubectl prints them."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bigmodel.api import names
from bigmodel.controller.decision import BIG_MODEL_JOB, NETWORK_POLICY, POD, POD_GROUP, SERVICE, Manifest
from tests.api.kubectl import Kubectl, Refused
from tests.api.training import Place, told, training_place
from tests.builders import DIGEST

# What `Controller.kill` cuts off is meant to be cut off.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
namespaces = (f"job-{number}" for number in itertools.count(1))


@pytest_asyncio.fixture
async def place(api_server: Path, kubectl: Kubectl) -> AsyncIterator[Place]:
    async with training_place(api_server, kubectl, next(namespaces)) as place:
        yield place


async def test_from_apply_to_an_artefact_and_what_kubectl_shows(place: Place) -> None:
    await place.apply()
    status = await place.trains()
    assert status["phase"] == "Training"
    header, row = (await place.kubectl("get", "bmj", "mlp")).splitlines()
    assert header.split() == ["NAME", "PHASE", "NODES", "PROGRESS", "LOSS", "GOODPUT", "RESTARTS", "CHECKPOINT", "AGE"]
    assert row.split()[:5] == ["mlp", "Training", "2/2", "62%", "0.2117"]
    await place.completes()
    for condition in ("Complete", "Finished", "Published"):
        await place.kubectl("wait", f"--for=condition={condition}", "bmj/mlp", "--timeout=10s")
    status = await place.status()
    assert status["artifact"]["digest"] == DIGEST
    assert status["nodes"] == {"desired": 2, "ready": 0, "succeeded": 2, "failed": 0, "summary": "0/2"}
    assert {c["observedGeneration"] for c in status["conditions"]} == {1}
    story = await place.story()
    assert sorted(story) == sorted(["Accepted", "GangCreated", "Running", "Published", "Complete"])
    assert story.index("GangCreated") < story.index("Running") < story.index("Complete")


async def test_the_children_are_owned_labelled_and_restricted(place: Place) -> None:
    await place.apply()
    await place.trains()
    [group] = await place.nodes.all(POD_GROUP)
    [service] = await place.nodes.all(SERVICE)
    [policy] = await place.nodes.all(NETWORK_POLICY)
    pods = (await place.pods()).values()
    assert group["spec"]["schedulingPolicy"]["gang"]["minCount"] == 2
    for child in (group, service, policy, *pods):
        [owner] = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["controller"], owner["blockOwnerDeletion"]) == ("BigModelJob", True, True)
        assert child["metadata"]["labels"]["bigmodel.io/job"] == "mlp"
    for pod in pods:
        assert pod["spec"]["schedulingGroup"]["podGroupName"] == group["metadata"]["name"], "the API server kept it"
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


async def test_a_program_error_fails_with_rank_exit_code_and_traceback(place: Place) -> None:
    await place.apply()
    await place.trains()
    error = {"rank": 1, "index": 1, "exitCode": 1, "message": "TypeError: beta", "traceback": "line 7\nTypeError: beta"}
    message = "rank 1 (index 1) exited with 1: TypeError: beta; 3 of 3 restarts are used"
    for pod in (await place.pods()).values():
        word = {"reason": "MaxRestartsExceeded", "message": message, "error": error}
        await place.nodes.end(pod["metadata"]["name"], 1, **word)
    status = await place.until("it has failed", lambda s: told(s, "Failed")[0] == "True")
    assert told(status, "Failed") == ("True", "MaxRestartsExceeded")
    assert "rank 1, exit code 1" in status["message"]
    assert "node node-2" in status["message"]
    assert status["message"].endswith("TypeError: beta")
    assert "Failed" in await place.story()


async def test_a_deleted_pod_is_replaced_with_the_same_host_name(place: Place) -> None:
    await place.apply()
    await place.trains()
    old = (await place.pods())["1"]
    await place.kubectl("delete", "pod", old["metadata"]["name"], "--wait=false")
    status = await place.until("it is counted", lambda s: s["restarts"]["infrastructure"] == 1)
    assert status["replacements"] == [{"index": 1, "count": 1}]
    status = await place.until("all run again", lambda s: told(s, "Running")[0] == "True")
    new = (await place.pods())["1"]
    assert new["metadata"]["name"] == f"{old['metadata']['name']}-r1"
    assert new["spec"]["hostname"] == old["spec"]["hostname"]
    assert "PodReplaced" in await place.story()
    await place.trains(40)
    assert told(await place.completes(), "Complete") == ("True", "Complete")


async def test_a_controller_that_is_killed_again_and_again_changes_nothing(place: Place) -> None:
    await place.apply()
    for _ in range(6):
        await asyncio.sleep(0.15)
        await place.controller.kill()
        place.controller.start()
    await place.trains()
    assert len(await place.pods()) == 2
    await place.controller.kill()
    place.controller.start()
    status = await place.completes()
    assert told(status, "Complete") == ("True", "Complete")
    assert status["attempt"] == 1
    assert status["restarts"]["total"] == 0
    assert len(await place.nodes.all(POD)) == 2


async def test_a_settled_job_causes_no_writes(place: Place) -> None:
    await place.apply()
    await place.trains()
    await place.completes()
    await asyncio.sleep(1)
    before = await place.versions()
    await place.apply()  # the same again
    await place.kubectl("label", "bmj", "mlp", "someone=looks")
    await asyncio.sleep(3)
    after = await place.versions()
    assert {name for name in after if before.get(name) != after[name]} == {"BigModelJob/mlp"}


async def test_a_ttl_set_after_the_end_is_observed_and_removes_the_job(place: Place) -> None:
    await place.apply()
    await place.trains()
    await place.completes()
    await place.apply(ttlSecondsAfterFinished=3600)
    status = await place.until("it is observed", lambda s: s["observedGeneration"] == 2)
    assert {c["observedGeneration"] for c in status["conditions"]} == {2}
    await place.apply(ttlSecondsAfterFinished=1)
    async with asyncio.timeout(30):
        while await place.nodes.all(BIG_MODEL_JOB):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_a_used_up_quota_is_told_with_its_numbers_and_heals(place: Place) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "pods"}, "spec": {"hard": {"pods": "1"}}}
    await place.kubectl("create", "-f", "-", stdin=json.dumps(quota))

    async def counted(hard: str) -> None:
        """As the controller-manager does, of which there is none."""
        patch = {"spec": {"hard": {"pods": hard}}, "status": {"hard": {"pods": hard}, "used": {"pods": "0"}}}
        await place.kubectl("patch", "quota", "pods", "--type=merge", "-p", json.dumps(patch))
        await place.kubectl("patch", "quota", "pods", "--subresource=status", "--type=merge", "-p", json.dumps(patch))

    place.nodes.holds = True
    await counted("1")
    await place.apply()
    status = await place.until("it says so", lambda s: told(s, "Admitted") == ("False", "QuotaExceeded"))
    assert "limited: pods=1" in status["message"]
    await counted("5")
    place.nodes.holds = False
    await place.until("it runs", lambda s: told(s, "Running")[0] == "True", seconds=60)


async def test_an_object_of_somebody_else_is_never_taken_over(place: Place) -> None:
    await place.controller.kill()
    await place.apply()
    job = await place.client.get(BIG_MODEL_JOB, place.nodes.namespace, "mlp")
    name = names.job_service("mlp", job["metadata"]["uid"])
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}
    await place.kubectl("apply", "-f", "-", stdin=json.dumps(foreign))
    place.controller.start()
    status = await place.until("it says so", lambda s: told(s, "Admitted") == ("False", "NameTaken"))
    assert name in status["message"]
    assert await place.pods() == {}, "no half-made gang"


async def test_an_edited_service_is_restored_and_then_left_alone(place: Place) -> None:
    await place.apply()
    await place.trains()
    [service] = await place.nodes.all(SERVICE)
    name, wanted = service["metadata"]["name"], service["spec"]["selector"]
    edit = '[{"op": "replace", "path": "/spec/selector", "value": {"app": "mine"}}]'
    await place.kubectl("patch", "service", name, "--type=json", "-p", edit)
    async with asyncio.timeout(20):
        while (await place.nodes.all(SERVICE))[0]["spec"]["selector"] != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(1)
    before = {name: version for name, version in (await place.versions()).items() if not name.startswith("BigModelJob")}
    await asyncio.sleep(3)
    after = await place.versions()
    assert {name: after[name] for name in before} == before, "what the API server adds to children is no difference"


async def test_what_the_schema_lets_through_is_refused_in_the_status(place: Place) -> None:
    await place.apply(store=None)
    status = await place.until("it says so", lambda s: told(s, "Accepted")[0] == "False")
    assert told(status, "Accepted") == ("False", "StoreNotSet")
    assert "startTime" not in status, "the spec can still be corrected"
    await place.apply()
    await place.until("it is accepted", lambda s: told(s, "Accepted") == ("True", "Accepted"))


async def groups(place: Place) -> list[Manifest]:
    """PodGroups, but those whose finalizer nobody takes away: that is the controller-manager's."""
    return [group for group in await place.nodes.all(POD_GROUP) if not group["metadata"].get("deletionTimestamp")]


async def test_a_job_is_suspended_and_resumed_at_the_step_it_saved(place: Place) -> None:
    """A4, A24, A29, A30."""
    await place.apply(activeDeadlineSeconds=3600)
    begun = await place.trains()
    old = await place.pods()
    await place.kubectl("patch", "bmj", "mlp", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    await place.kubectl("wait", "--for=condition=Suspended", "bmj/mlp", "--timeout=30s")
    status = await place.status()
    assert await place.nodes.all(POD) == []
    assert await groups(place) == []
    assert status["phase"] == "Suspended"
    assert status["nodes"] == {"desired": 2, "ready": 0, "succeeded": 0, "failed": 0, "summary": "0/2"}
    assert status["checkpoint"]["step"] == 31
    assert "step 31" in status["message"]
    assert status["restarts"]["total"] == 0
    row = (await place.kubectl("get", "bmj", "mlp", "--no-headers")).split()
    assert row[1:3] == ["Suspended", "0/2"]
    assert row[-2].endswith("s"), "the CHECKPOINT column shows its age"

    placed = '{"spec": {"suspend": false, "podMetadata": {"labels": {"zone": "b"}}}}'
    await place.kubectl("patch", "bmj", "mlp", "--type=merge", "-p", placed)
    status = await place.trains(40)
    assert told(status, "Suspended") == ("False", "Resumed")
    assert told(status, "Running")[0] == "True"
    assert (status["attempt"], status["restarts"]["total"]) == (2, 0)
    assert status["startTime"] > begun["startTime"]
    new = await place.pods()
    for index, pod in new.items():
        assert pod["spec"]["hostname"] == old[index]["spec"]["hostname"]
        assert pod["metadata"]["labels"]["zone"] == "b"
    assert told(await place.completes(), "Complete") == ("True", "Complete")
    story = await place.story()
    assert {"Suspended", "Resumed", "Checkpointed"} < set(story)
    assert "AttemptFailed" not in story


async def test_a_job_that_is_created_suspended_makes_nothing_until_it_is_resumed(place: Place) -> None:
    """A28."""
    await place.apply(suspend=True)
    await place.kubectl("wait", "--for=condition=Suspended", "bmj/mlp", "--timeout=30s")
    assert [item for kind in (POD, POD_GROUP, SERVICE) for item in await place.nodes.all(kind)] == []
    await place.apply(suspend=False)
    await place.trains()


async def test_scaling_resizes_the_gang_at_a_checkpoint(place: Place) -> None:
    await place.apply()
    await place.trains()
    await place.kubectl("scale", "bmj", "mlp", "--replicas=3")
    await place.until("the new gang runs", lambda s: s["attempt"] == 2 and told(s, "Running")[0] == "True")
    status = await place.trains(40)
    assert status["checkpoint"]["step"] == 31
    assert status["nodes"]["summary"] == "3/3"
    assert status["restarts"]["total"] == 0
    assert status["goodput"]["lostSeconds"] == 0
    [group] = await groups(place)
    assert group["spec"]["schedulingPolicy"]["gang"]["minCount"] == 3
    assert len(await place.nodes.all(POD)) == 3
    assert "Resized" in await place.story()


async def test_a_ttl_that_was_over_while_no_controller_ran_removes_the_job(place: Place) -> None:
    """A26."""
    await place.apply(ttlSecondsAfterFinished=2)
    await place.trains()
    await place.controller.kill()
    for index, pod in sorted((await place.pods()).items(), reverse=True):
        launcher = place.nodes.launchers[pod["metadata"]["name"]]
        await place.nodes.end(pod["metadata"]["name"], 0, **({"artifact": launcher.artifact()} if index == "0" else {}))
    place.controller.start()
    await place.until("it has finished", lambda s: s.get("finished") == "True")
    await place.controller.kill()
    assert await place.nodes.all(BIG_MODEL_JOB), "nobody was there to remove it"
    place.controller.start()
    async with asyncio.timeout(30):
        while await place.nodes.all(BIG_MODEL_JOB):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_a_job_of_another_controller_is_left_alone(place: Place) -> None:
    """A31."""
    await place.apply(managedBy="example.com/multikueue")
    await place.controller.kill()
    place.controller.start()
    await place.kubectl("label", "bmj", "mlp", "someone=looks")
    await asyncio.sleep(2)
    assert await place.status() == {}
    assert [item for kind in (POD, POD_GROUP, SERVICE, NETWORK_POLICY) for item in await place.nodes.all(kind)] == []
    with pytest.raises(Refused, match="managedBy never changes"):
        await place.apply(managedBy="example.com/other")


async def test_a_job_that_is_made_again_under_its_name_takes_none_of_its_predecessors_children(place: Place) -> None:
    """C39. No garbage collector runs here: what the old job left stays."""
    await place.apply()
    await place.trains()
    old = await place.pods()
    await place.kubectl("delete", "bmj", "mlp")
    await place.apply()
    await place.until("the new gang runs", lambda s: told(s, "Running")[0] == "True")
    job = await place.client.get(BIG_MODEL_JOB, place.nodes.namespace, "mlp")
    ours = [
        pod
        for pod in await place.nodes.all(POD)
        if pod["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    ]
    assert len(ours) == 2
    assert not {pod["metadata"]["name"] for pod in ours} & {pod["metadata"]["name"] for pod in old.values()}
    services = {
        s["metadata"]["ownerReferences"][0]["uid"]: s["spec"]["selector"] for s in await place.nodes.all(SERVICE)
    }
    selector = services[job["metadata"]["uid"]]
    assert not any(selector.items() <= pod["metadata"]["labels"].items() for pod in old.values())
