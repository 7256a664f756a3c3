"""What users and other controllers do at the wrong moment: edits while nobody looks, deletions, impostors, refusals."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bigmodel.api import names
from bigmodel.controller.decision import BIG_MODEL_JOB, BIG_MODEL_SERVICE, POD, SERVICE, Manifest, ResourceKind
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.events import EVENT
from tests.api.kubectl import Kubectl
from tests.api.training import NAMESPACE, told
from tests.builders import STORE
from tests.faults.proxy import Call, Write, proxied, refuses
from tests.faults.scenario import CHILDREN, COMPLETES, SCENARIOS, Stage, check, settled, stage_for, until

WEBHOOKS = ResourceKind(
    "ValidatingWebhookConfiguration",
    "admissionregistration.k8s.io/v1",
    "validatingwebhookconfigurations",
    namespaced=False,
)
SERVES = SCENARIOS["a service with its second revision"]

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest_asyncio.fixture
async def job(api_server: Path, kubectl: Kubectl) -> AsyncIterator[Stage]:
    async with proxied(api_server) as proxy, stage_for(COMPLETES, api_server, kubectl, proxy) as stage:
        yield stage


@pytest_asyncio.fixture
async def service(api_server: Path, kubectl: Kubectl) -> AsyncIterator[Stage]:
    async with proxied(api_server) as proxy, stage_for(SERVES, api_server, kubectl, proxy) as stage:
        yield stage


def creates(resource: str) -> Any:
    return lambda call: (call.verb, call.resource) == ("create", resource)


def tries(stage: Stage, name: str) -> list[Write]:
    return [write for write in stage.writes if write.call.verb == "create" and write.call.name == name]


async def events_of(stage: Stage) -> list[Manifest]:
    return [event async for page, _ in stage.client.pages(EVENT, stage.namespace) for event in page]


async def collected(stage: Stage, uid: str) -> None:
    """The garbage collector, of which there is none here."""
    for child in await stage.children():
        metadata = child["metadata"]
        if any(owner["uid"] == uid for owner in metadata.get("ownerReferences", ())):
            kind = next(kind for kind in CHILDREN["training"] if kind.kind == child["kind"])
            await stage.client.delete(kind, stage.namespace, metadata["name"], metadata["uid"])
            if metadata.get("finalizers"):  # of Kubernetes itself, which takes it away when no pod needs the object
                no_more = {"metadata": {"finalizers": None}}
                await stage.client.merge_patch(kind, stage.namespace, metadata["name"], no_more)


async def test_after_a_time_down_only_the_last_spec_counts_and_a_dead_pod_is_replaced(job: Stage) -> None:
    """C4."""
    await job.train()
    await job.place.controller.kill()
    lost = (await job.place.pods())["1"]["metadata"]["name"]
    await job.place.nodes.end(lost, 143, reason="Terminated")
    for hours in range(1, 6):
        await job.edit(activeDeadlineSeconds=3600 * hours)
    job.place.controller.start()
    status = await job.place.until("the pod is replaced", lambda s: s["replacements"] == [{"index": 1, "count": 1}])
    await job.trains(40)
    assert status["attempt"] == 1
    await settled(job)
    await check(job)
    assert (await job.object())["status"]["observedGeneration"] == 6
    assert len(tries(job, f"{lost}-r1")) == 1


async def test_without_a_controller_nothing_holds_back_a_deletion(job: Stage) -> None:
    """C5: no finalizer on the job or on anything of it."""
    await job.train()
    await job.place.controller.kill()
    owner = await job.object()
    finalizers = [one["metadata"].get("finalizers", []) for one in (owner, *await job.children())]
    assert {name for names in finalizers for name in names} <= {"scheduling.k8s.io/podgroup-protection"}  # not ours
    await job.client.delete(BIG_MODEL_JOB, job.namespace, "mlp", owner["metadata"]["uid"])
    with pytest.raises(errors.NotFound):
        await job.object()
    job.place.controller.start()
    await asyncio.sleep(1)
    before = len(job.writes)
    await collected(job, owner["metadata"]["uid"])
    await asyncio.sleep(1)
    assert job.writes[before:] == [], "an orphan is nobody's business"


async def test_what_a_policy_refuses_is_told_once_tried_with_patience_and_heals(job: Stage) -> None:
    """C8, I9."""
    rule = job.door.when(creates("pods"), refuses(422, "Invalid", "denied: policy 'no-gpus' says so"))
    await job.submit(BIG_MODEL_JOB, recipe={"name": "mlp"}, nodes=1, store=STORE)
    status = await job.place.until("it is told", lambda s: told(s, "Admitted") == ("False", "ChildRejected"))
    assert "policy 'no-gpus' says so" in status["message"]
    await asyncio.sleep(5)
    pods = [write for write in job.writes if write.call.resource == "pods"]
    assert 2 <= len(pods) <= 6, "1 s, 2 s, 4 s: not a storm"
    warnings = [event["reason"] for event in await events_of(job) if event["type"] == "Warning"]
    assert warnings == ["ChildRejected"]
    job.door.rules.remove(rule)
    await job.trains(10)


async def test_a_service_tells_what_a_policy_refuses(service: Stage) -> None:
    """C8."""
    rule = service.door.when(creates("deployments"), refuses(403, "Forbidden", "denied: policy 'no-gpus' says so"))
    await service.publish("a")
    await service.submit(BIG_MODEL_SERVICE, model={"fromJob": {"name": "mlp"}})
    status = await service.place.until("it is told", lambda s: told(s, "Progressing") == ("False", "ChildRejected"))
    assert "policy 'no-gpus' says so" in json.dumps(status)
    service.door.rules.remove(rule)
    await service.place.until_serves(1)


async def test_a_busy_api_server_is_left_alone_as_long_as_it_asks_while_other_jobs_go_on(job: Stage) -> None:
    """C9."""

    def of_mlp(call: Call) -> bool:
        return (call.verb, call.resource) == ("create", "services") and call.name.startswith("mlp-")

    job.door.when(of_mlp, refuses(429, "TooManyRequests", retry_after="4"), times=1)
    await job.submit(BIG_MODEL_JOB, recipe={"name": "mlp"}, nodes=1, store=STORE)
    await until(lambda: _tried(job))
    other = {"apiVersion": names.API_VERSION, "kind": "BigModelJob", "metadata": {"name": "other"}}
    other["metadata"] |= {"namespace": job.namespace}
    other["spec"] = {"recipe": {"name": "mlp"}, "nodes": 1, "store": STORE}
    await job.client.create(BIG_MODEL_JOB, other)
    await job.trains(10)
    made = [write for write in job.writes if write.call.verb == "create" and write.applied]
    first = next(write for write in job.writes if of_mlp(write.call))
    again = next(write for write in made if of_mlp(write.call))
    others = next(write for write in made if write.call.name.startswith("other-") and write.call.resource == "pods")
    assert again.at - first.at >= 4
    assert others.at < again.at


async def _tried(stage: Stage) -> bool:
    return any(write.call.resource == "services" for write in stage.writes)


async def test_a_webhook_of_somebody_else_that_is_down_is_named_and_when_it_is_gone_the_job_runs(job: Stage) -> None:
    """C32."""
    webhook = {
        "name": "guard.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": job.namespace}},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    manifest = {"apiVersion": WEBHOOKS.api_version, "kind": WEBHOOKS.kind, "metadata": {"name": job.namespace}}
    made = await job.client.create(WEBHOOKS, {**manifest, "webhooks": [webhook]})
    try:
        await asyncio.sleep(1)  # until the API server has read it
        await job.submit(BIG_MODEL_JOB, recipe={"name": "mlp"}, nodes=1, store=STORE)
        status = await job.place.until("it is told", lambda s: told(s, "Admitted") == ("False", "ChildRejected"))
        assert "guard.example.com" in status["message"]
    finally:
        await job.client.delete(WEBHOOKS, None, job.namespace, made["metadata"]["uid"])
    await job.trains(10)


async def test_a_pod_with_all_our_labels_that_we_did_not_make_is_not_ours(job: Stage) -> None:
    """C36: adopted is only what our UID controls; labels of ours that somebody edits are put back."""
    await job.train()
    pods = await job.place.pods()
    impostor = copy.deepcopy(pods["1"])
    impostor["metadata"] = {
        "name": "impostor",
        "namespace": job.namespace,
        "labels": {**pods["1"]["metadata"]["labels"], names.LABEL_INDEX: "0", names.LABEL_ATTEMPT: "9"},
    }
    del impostor["status"], impostor["spec"]["nodeName"]
    job.place.nodes.holds = True
    await job.client.create(POD, impostor)
    edit = {"metadata": {"labels": {names.LABEL_ACTIVE: "false"}}}
    await job.client.merge_patch(POD, job.namespace, pods["0"]["metadata"]["name"], edit)
    await until(lambda: _in_the_dns(job, pods["0"]["metadata"]["name"]))
    status = (await job.object())["status"]
    assert (status["attempt"], status["restarts"]["total"], status["nodes"]["ready"]) == (1, 0, 2)
    assert [write for write in job.writes if write.call.name == "impostor"] == []


async def _in_the_dns(stage: Stage, name: str) -> bool:
    pod = await stage.client.get(POD, stage.namespace, name)
    return bool(pod["metadata"]["labels"][names.LABEL_ACTIVE] == "true")


async def test_in_a_namespace_that_goes_nothing_is_made_again(job: Stage) -> None:
    """C38: a few refused tries at most, no finalizer, and no failure is told."""
    await job.train()
    uid = (await job.client.get(NAMESPACE, None, job.namespace))["metadata"]["uid"]
    await job.client.delete(NAMESPACE, None, job.namespace, uid)
    before = len(job.writes)
    for kind in (POD, SERVICE):  # the namespace controller, of which there is none here
        for child in await job.place.nodes.all(kind):
            await job.client.delete(kind, job.namespace, child["metadata"]["name"], child["metadata"]["uid"], 0)
    await asyncio.sleep(6)
    made = [write for write in job.writes[before:] if write.call.verb == "create" and write.call.resource != "events"]
    assert [write for write in made if write.applied] == []
    assert len(made) <= 4
    assert told((await job.object())["status"], "Failed")[0] != "True"


async def test_a_job_made_anew_under_its_name_gets_pods_of_its_own(job: Stage) -> None:
    """C39: while the garbage collector has not yet found the old ones."""
    await job.train()
    old = await job.object()
    before = {pod["metadata"]["uid"] for pod in await job.place.nodes.all(POD)}
    await job.client.delete(BIG_MODEL_JOB, job.namespace, "mlp", old["metadata"]["uid"])
    await job.train()
    pods = [pod for pod in await job.place.nodes.all(POD) if pod["metadata"]["uid"] not in before]
    new = await job.object()
    assert {pod["metadata"]["ownerReferences"][0]["uid"] for pod in pods} == {new["metadata"]["uid"]}
    assert len(pods) == 2
    assert new["status"]["restarts"]["total"] == 0
    await collected(job, old["metadata"]["uid"])
    await settled(job)
    await check(job)
    status = (await job.object())["status"]
    assert (status["attempt"], status["restarts"]["total"]) == (1, 0), "the old gang's end is not the new one's"
