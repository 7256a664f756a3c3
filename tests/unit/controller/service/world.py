"""A small cluster in memory: what the API server, the Deployment controller, the kubelet and the endpoint controller do
to a service's children, one `step` at a time. No network, no clock: time is moved by the test.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from bigmodel.api import names
from bigmodel.api.verdict import LoadTimings, Parity, Verdict, VerdictStage, Window
from bigmodel.artifact.manifest import Signature
from bigmodel.artifact.summary import InspectResult, Summary, signature_digest
from bigmodel.controller.decision import Children, Decision, Event, Manifest, Rejection
from bigmodel.controller.service.decide import decide
from bigmodel.controller.service.observe import ObservedService, Surroundings, followed_jobs, observed_service
from bigmodel.controller.settings import Images, Settings

NAMESPACE, NAME = "ml", "mlp"
DIGEST_A = "sha256:" + "a" * 64
DIGEST_B = "sha256:" + "b" * 64
START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)

SETTINGS = Settings(
    images=Images(trainer="trainer:1", server="server:1", triton="triton:1"),
    image_pull_policy="IfNotPresent",
)
S3_STORE = {"s3": {"bucket": "models", "endpoint": "http://store:9000", "secretName": "s3-login"}}


class Crash(Exception):
    """The controller died right after a write."""


def time_text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def a_service(**spec: Any) -> Manifest:
    """The smallest service, of job `mlp`; `spec` adds to it or replaces."""
    return {
        "apiVersion": "bigmodel.io/v1alpha1",
        "kind": "BigModelService",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": "service-uid", "generation": 1},
        "spec": {"model": {"fromJob": {"name": "mlp"}}} | spec,
    }


def a_job(digest: str = DIGEST_A, uid: str = "job-uid", **status: Any) -> Manifest:
    """A job that published; `status` replaces parts."""
    artifact = {
        "uri": f"s3://models/{NAMESPACE}/mlp/{uid}/artifact/{digest[7:]}/",
        "digest": digest,
        "sizeBytes": 10_300_000,
        "variant": "default",
        "shortDigest": digest[7:19],
    }
    return {
        "kind": "BigModelJob",
        "metadata": {"name": "mlp", "namespace": NAMESPACE, "uid": uid},
        "spec": {},
        "status": {
            "phase": "Complete",
            "resolved": {"store": S3_STORE},
            "artifact": artifact,
            "conditions": [{"type": "Published", "status": "True"}, {"type": "Complete", "status": "True"}],
        }
        | status,
    }


def a_training_job(progress: str = "62%", uid: str = "job-uid") -> Manifest:
    job = a_job(uid=uid)
    job["status"] = {"phase": "Training", "progress": {"summary": progress}, "conditions": []}
    return job


# What the kubelet says of a container


def running(since: datetime = START) -> dict[str, Any]:
    return {"state": {"running": {"startedAt": time_text(since)}}, "restartCount": 0}


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}, "restartCount": 0} | more


def done(message: str = "") -> dict[str, Any]:
    ended = {"exitCode": 0, "reason": "Completed", "message": message, "startedAt": time_text(START)}
    return {"state": {"terminated": ended}, "restartCount": 0}


def crashed(exit_code: int, message: str = "", restarts: int = 1, reason: str = "Error") -> dict[str, Any]:
    ended = {"exitCode": exit_code, "reason": reason, "message": message, "startedAt": time_text(START)}
    return {
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended},
        "restartCount": restarts,
    }


FETCHED = done(json.dumps({"ok": True, "message": "3 files verified", "downloadSeconds": 4.2}))


@dataclass
class Health:
    """What becomes of the pods of one revision. The default: they start and pass."""

    scheduled: bool = True
    scheduler_says: str = ""
    fetch: dict[str, Any] = field(default_factory=lambda: FETCHED)
    server: dict[str, Any] = field(default_factory=running)
    verifier: dict[str, Any] = field(default_factory=running)
    ready: bool = True
    stage: VerdictStage | None = VerdictStage.VERIFIED  # None: the verifier does not answer
    reason: str | None = None
    says: str = "64 samples within tolerance"
    ready_limit: int | None = None  # only so many pods get Ready
    # What each pod saw, in this step and in the whole rollout; None: nothing was asked.
    windows: tuple[Window, Window] | None = None
    p99: float | None = None


def load_fails(text: str) -> Health:
    """Triton ends with this line of its log."""
    return Health(server=crashed(1, text), ready=False, stage=VerdictStage.LOADING)


PARITY_FAILS = Health(
    ready=False, stage=VerdictStage.FAILED, reason="ParityFailed", says="sample 7 differs: 1.5 instead of 1.0"
)
SIGNATURE: dict[str, Any] = {
    "inputs": [{"name": "x", "datatype": "float32", "shape": ["batch", 1000]}],
    "outputs": [{"name": "y", "datatype": "float32", "shape": ["batch", 1]}],
    "dimensions": {"batch": {"minimum": 1, "maximum": 64}},
}
VALIDATION = "sha256:" + "7" * 64


def a_summary(signature: dict[str, Any] = SIGNATURE, **more: Any) -> Summary:
    """What an artefact's manifest says of itself; `more` adds or replaces."""
    parsed = Signature.model_validate(signature)
    metrics = [{"name": "val_mse", "value": "2871.4"}]
    known = {"variant": "default", "precision": "fp32", "golden": "validation", "deterministic": True, "sizeBytes": 1}
    known |= {"metrics": metrics, "validation": VALIDATION, "signatureDigest": signature_digest(parsed)}
    return Summary.model_validate(known | {"signature": signature} | more)


def inspected(**more: Any) -> dict[str, Any]:
    """The container of an `inspect` pod that read such a manifest."""
    return done(InspectResult(ok=True, message="read", summary=a_summary(**more)).fitted())


INSPECTED = inspected()


def refused(reason: str, message: str) -> dict[str, Any]:
    """The container of an errand that ended with a verdict on the content."""
    return done(json.dumps({"ok": False, "reason": reason, "message": message}))


PARITY = Parity(samples=64, absolute=0.0001, relative=0.001, worst=0.03, compared="values")


class World:
    """The cluster as one service's controller sees it."""

    def __init__(
        self, owner: Manifest | None = None, job: Manifest | None = None, settings: Settings = SETTINGS
    ) -> None:
        self.owner = owner or a_service()
        self.jobs = {str(job["metadata"]["name"]): job} if job is not None else {}
        self.settings = settings
        self.now = START
        self.objects: dict[tuple[str, str], Manifest] = {}
        self.pods: dict[str, Manifest] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.health: dict[int, Health] = {}
        self.errands: dict[str, dict[str, Any] | Manifest] = {}  # by "r2-inspect": its container, or its whole status
        self.rejections: tuple[Rejection, ...] = ()
        self.endpoints_lag = False  # the endpoint controller sleeps
        self.surroundings = Surroundings()
        # What the gateway says of a route: None, it does not look; else reason and message where it refuses.
        self.gateway: tuple[str, str] | str | None = "accepts"
        self.refuse: Callable[[Manifest], Rejection | None] = lambda manifest: None
        self.events: list[Event] = []
        self.decisions: list[Decision] = []
        self.writes: list[str] = []
        self._slices: tuple[Manifest, ...] = ()
        self._uids = 0
        self._budget: int | None = None

    # The controller

    def observe(self) -> ObservedService:
        by_kind: dict[str, list[Manifest]] = {}
        for (kind, _), manifest in sorted(self.objects.items()):
            by_kind.setdefault(kind, []).append(manifest)
        children = Children(
            {kind: tuple(found) for kind, found in by_kind.items()},
            {"Pod": tuple(self.pods.values()), "EndpointSlice": self.slices()},
        )
        jobs = tuple(filter(followed_jobs(self.owner["spec"]).includes, self.jobs.values()))
        owner = copy.deepcopy(self.owner)
        return observed_service(owner, children, self.rejections, jobs, self.verdicts, self.surroundings)

    @property
    def job(self) -> Manifest | None:
        """Job `mlp`."""
        return self.jobs.get("mlp")

    @job.setter
    def job(self, job: Manifest | None) -> None:
        self.jobs.pop("mlp", None)
        if job is not None:
            self.jobs[job["metadata"]["name"]] = job

    def decide(self) -> Decision:
        return decide(self.observe(), self.settings, self.now)

    def reconcile(self) -> Decision:
        """One pass, then more while the decision asks for it."""
        for _ in range(10):
            decision = self.decide()
            self.execute(decision)
            if not decision.again:
                return decision
        raise AssertionError("the decision asks for another pass for ever")

    def execute(self, decision: Decision) -> None:
        self.decisions.append(decision)
        rejected = []
        for relabel in decision.relabel:
            found = self.objects[relabel.kind.kind, relabel.name]
            assert found["metadata"]["uid"] == relabel.uid
            annotations = {**found["metadata"]["annotations"], **relabel.annotations}
            found["metadata"]["annotations"] = {key: value for key, value in annotations.items() if value is not None}
            self._count(f"relabel {relabel.kind.kind}/{relabel.name}")
        for manifest in decision.create:
            key = _key(manifest)
            if (refusal := self.refuse(manifest)) is not None:
                rejected.append(refusal)
                break
            if key not in self.objects:
                self._write("create", manifest, self._created(manifest))
        for manifest in decision.apply:
            old = self.objects[_key(manifest)]
            if old["metadata"]["annotations"].get(names.ANNOTATION_HASH) == _hash(manifest):
                continue
            new = self._created(manifest)
            new["metadata"]["uid"] = old["metadata"]["uid"]
            new["metadata"]["creationTimestamp"] = old["metadata"]["creationTimestamp"]
            new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
            new |= {"status": old["status"]} if "status" in old else {}
            assert manifest["kind"] != "ControllerRevision", "its data is immutable to the byte: apply is refused"
            self._write("apply", manifest, new)
        for deletion in decision.delete:
            key = (deletion.kind.kind, deletion.name)
            if key in self.objects and self.objects[key]["metadata"]["uid"] == deletion.uid:
                del self.objects[key]
                self._count(f"delete {deletion.kind.kind}/{deletion.name}")
        if decision.status is not None and decision.status != self.owner.get("status"):
            self.owner["status"] = copy.deepcopy(decision.status)
            self._count("status")
        self.events += [event for event in decision.events if event.about not in {e.about for e in self.events}]
        self.rejections = tuple(rejected)

    def crash_after(self, writes: int | None) -> None:
        self._budget = writes

    def _created(self, manifest: Manifest) -> Manifest:
        new = copy.deepcopy(manifest)
        self._uids += 1
        annotations = {**(new["metadata"].get("annotations") or {}), names.ANNOTATION_HASH: _hash(manifest)}
        new["metadata"] |= {
            "uid": f"uid-{self._uids}",
            "creationTimestamp": time_text(self.now),
            "annotations": annotations,
        }
        return new

    def _write(self, verb: str, manifest: Manifest, new: Manifest) -> None:
        before = self.selected
        self.objects[_key(manifest)] = new
        if self.selected != before:
            self._check_switch(first=before is None)
        self._count(f"{verb} {manifest['kind']}/{manifest['metadata']['name']}")

    def _count(self, what: str) -> None:
        self.writes.append(what)
        if self._budget is not None:
            self._budget -= 1
            if self._budget < 0:
                raise Crash(what)

    def _check_switch(self, first: bool) -> None:
        """The address moves only to a revision whose pods are all verified at that moment; of the first, one."""
        ready = sum(_ready(pod) for pod in self.pods.values() if pod["deployment"] == f"{NAME}-r{self.selected}")
        wanted = 1 if first else self.owner["spec"].get("server", {}).get("replicas", 1)
        assert ready >= wanted, f"Service {NAME} moved to r{self.selected} with {ready} of {wanted} pods verified"

    # The cluster

    def kubelet(self) -> None:
        """Deployments have their pods, and the pods are as healthy as their revision."""
        deployments = {name: m for (kind, name), m in self.objects.items() if kind == "Deployment"}
        for name, pod in list(self.pods.items()):
            deployment = deployments.get(pod["deployment"])
            if deployment is None or pod["ordinal"] >= deployment["spec"]["replicas"]:
                self.verdicts.pop(pod["metadata"]["uid"], None)
                del self.pods[name]
        for name, deployment in deployments.items():
            for ordinal in range(deployment["spec"]["replicas"]):
                pod_name = f"{name}-abc-{ordinal}"
                if pod_name not in self.pods:
                    self._uids += 1
                    self.pods[pod_name] = self._new_pod(deployment, pod_name, ordinal)
        for pod in self.pods.values():
            self._live(pod)
        for (kind, name), manifest in self.objects.items():
            if kind in {"HTTPRoute", "GRPCRoute"} and self.gateway is not None:
                manifest["status"] = {"parents": [{"conditions": [self._said_by_gateway(manifest)]}]}
            if kind == "Pod":
                self._run_errand(name.removeprefix(f"{NAME}-"), manifest)

    def _run_errand(self, name: str, pod: Manifest) -> None:
        """An errand ends as the test says, an `inspect` by default well."""
        ends = self.errands.get(name, INSPECTED)
        container = {"name": pod["spec"]["containers"][0]["name"]} | ends
        pod["status"] = ends if "phase" in ends else {"phase": "Running", "containerStatuses": [container]}

    def _said_by_gateway(self, route: Manifest) -> Manifest:
        accepted = {"type": "Accepted", "observedGeneration": route["metadata"].get("generation", 0)}
        if isinstance(self.gateway, str):
            return accepted | {"status": "True", "reason": "Accepted", "message": ""}
        assert self.gateway is not None
        return accepted | {"status": "False", "reason": self.gateway[0], "message": self.gateway[1]}

    def slices(self) -> tuple[Manifest, ...]:
        """The endpoint controller's: every Service has one."""
        if not self.endpoints_lag:
            self._slices = self._published()
        return self._slices

    def _published(self) -> tuple[Manifest, ...]:
        return tuple(
            {
                "metadata": {"name": f"{name}-x", "ownerReferences": [{"uid": service["metadata"]["uid"]}]},
                "endpoints": [
                    {"targetRef": {"kind": "Pod", "uid": pod["metadata"]["uid"]}, "conditions": {"ready": _ready(pod)}}
                    for pod in self.pods.values()
                    if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
                ],
            }
            for (kind, name), service in self.objects.items()
            if kind == "Service"
        )

    def run(self, passes: int = 12) -> None:
        """Controller and cluster take turns until nothing changes."""
        for _ in range(passes):
            before = self.fingerprint()
            self.reconcile()
            self.kubelet()
            if self.fingerprint() == before:
                return
        raise AssertionError(f"still changing after {passes} passes: {self.writes[-10:]}")

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def change_spec(self, **spec: Any) -> None:
        self.owner["spec"] |= spec
        self.owner["metadata"]["generation"] += 1

    def delete_pod(self, name: str) -> None:
        self.verdicts.pop(self.pods.pop(name)["metadata"]["uid"], None)

    def fingerprint(self) -> str:
        return json.dumps([self.owner, _listed(self.objects), _listed(self.pods)], sort_keys=True, default=str)

    def _new_pod(self, deployment: Manifest, name: str, ordinal: int) -> Manifest:
        template = copy.deepcopy(deployment["spec"]["template"])
        owner = {"kind": "ReplicaSet", "name": f"{deployment['metadata']['name']}-abc", "controller": True}
        return {
            "deployment": deployment["metadata"]["name"],
            "ordinal": ordinal,
            "metadata": template["metadata"]
            | {
                "name": name,
                "uid": f"pod-{self._uids}",
                "creationTimestamp": time_text(self.now),
                "ownerReferences": [owner | {"uid": "replicaset"}],
            },
            "spec": template["spec"],
            "status": {"ready_at": None, "startTime": time_text(self.now)},
        }

    def _live(self, pod: Manifest) -> None:
        revision = int(pod["metadata"]["labels"][names.LABEL_REVISION])
        health = self.health.get(revision, Health())
        status = pod["status"]
        if not health.scheduled:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            pod["status"] = {"conditions": [condition | {"message": health.scheduler_says}]}
            return
        since = status.get("startTime") or time_text(self.now)
        ready = health.ready and (health.ready_limit is None or pod["ordinal"] < health.ready_limit)
        before = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), None)
        word = "True" if ready else "False"
        turned = before["lastTransitionTime"] if before and before["status"] == word else time_text(self.now)
        pod["status"] = {
            "startTime": since,
            "podIP": "10.0.0.1",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": since},
                {"type": "Ready", "status": word, "lastTransitionTime": turned},
            ],
            "initContainerStatuses": [{"name": "fetch"} | health.fetch],
            "containerStatuses": [{"name": "server"} | health.server, {"name": "verifier"} | health.verifier],
        }
        self._judge(pod, revision, health, ready)

    def _judge(self, pod: Manifest, revision: int, health: Health, ready: bool) -> None:
        stage = health.stage
        if stage is None:
            self.verdicts.pop(pod["metadata"]["uid"], None)
            return
        if stage is VerdictStage.VERIFIED and not ready:
            stage = VerdictStage.REPLAYING
        data = self.objects["ControllerRevision", f"{NAME}-r{revision}"]["data"]
        self.verdicts[pod["metadata"]["uid"]] = Verdict(
            service=NAME,
            revision=revision,
            digest=data["inputs"]["digest"],
            stage=stage,
            reason=health.reason,
            message=health.says,
            parity=PARITY if stage is VerdictStage.VERIFIED else None,
            timings=LoadTimings(download_seconds=4.2, load_seconds=3.4, warmup_seconds=0.6),
            windows=list(health.windows or ()),
            p99_milliseconds=health.p99,
        )

    # What a test asks

    def condition(self, kind: str) -> tuple[str, str]:
        found = next(c for c in self.status["conditions"] if c["type"] == kind)
        return found["status"], found["reason"]

    def message(self, kind: str) -> str:
        return str(next(c for c in self.status["conditions"] if c["type"] == kind)["message"])

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.owner["status"]
        return status

    @property
    def selected(self) -> int | None:
        service = self.objects.get(("Service", NAME))
        return int(service["spec"]["selector"][names.LABEL_REVISION]) if service else None

    @property
    def shares(self) -> dict[str, int]:
        """What the route gives to whom; HTTP and gRPC must agree."""
        rules = self.objects["HTTPRoute", NAME]["spec"]["rules"]
        grpc, http = ({ref["name"]: ref["weight"] for ref in rule["backendRefs"]} for rule in rules)
        assert grpc == http
        return http

    def replicas(self, revision: int) -> int | None:
        """None where the revision has no Deployment."""
        deployment = self.objects.get(("Deployment", f"{NAME}-r{revision}"))
        return deployment["spec"]["replicas"] if deployment else None

    def names_of(self, kind: str) -> list[str]:
        return sorted(name for found, name in self.objects if found == kind)

    def outcome(self, revision: int) -> str | None:
        annotations = self.objects["ControllerRevision", f"{NAME}-r{revision}"]["metadata"]["annotations"]
        text = annotations.get("bigmodel.io/outcome")
        return json.loads(text)["result"] if text else None


def serving_world(**spec: Any) -> World:
    """A world in which r1 was promoted."""
    world = World(a_service(**spec), a_job())
    world.run()
    assert world.status["phase"] == "Serving"
    return world


def _ready(pod: Manifest) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def _key(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def _hash(manifest: Manifest) -> str:
    return json.dumps(manifest, sort_keys=True)


def _listed(objects: dict[Any, Manifest]) -> list[Any]:
    return [[str(key), value] for key, value in sorted(objects.items(), key=lambda item: str(item[0]))]
