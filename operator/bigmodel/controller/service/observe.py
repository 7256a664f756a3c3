"""What is there: the service, its records and their children, as immutable facts. Reads manifests, judges nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from bigmodel.api import names
from bigmodel.api.not_yet import refused
from bigmodel.api.service import ServiceSpec
from bigmodel.api.verdict import FetchResult, Verdict
from bigmodel.controller.decision import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    GRPC_ROUTE,
    HTTP_ROUTE,
    NETWORK_POLICY,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Children,
    Manifest,
    Rejection,
)
from bigmodel.controller.service.revision import Record, record_of
from bigmodel.controller.service.route import ObservedRoute, observed_route

# What we asked of a child, beside it: a field that says otherwise was edited by somebody else.
ANNOTATION_REPLICAS = f"{names.GROUP}/replicas"  # of a Deployment
ANNOTATION_SELECTS = f"{names.GROUP}/selects"  # the revision that a Service stands for
ANNOTATION_QUESTION = f"{names.GROUP}/question"  # of an errand: hash of what it is to find out
# What a user tells about one revision, by its number, on the BigModelService.
ORDERS = ("promote", "abort", "retry")


@dataclass(frozen=True)
class Ended:
    """How a container's process last ended."""

    exit_code: int
    reason: str  # the kubelet's word: Error, OOMKilled, Completed
    message: str  # the termination message, or the end of the log


@dataclass(frozen=True)
class ObservedContainer:
    name: str
    image: str
    restarts: int = 0
    running: bool = False
    started: datetime | None = None  # of the run that runs or ended
    waiting: str | None = None  # the kubelet's word, for example ImagePullBackOff
    waiting_message: str = ""
    done: bool = False  # ended with exit code 0
    ended: Ended | None = None  # its last end, also while it waits to be started again


@dataclass(frozen=True)
class ObservedPod:
    name: str
    uid: str
    revision: int
    ip: str | None
    created: datetime
    bound_at: datetime | None  # placed on a node
    started: datetime | None  # the kubelet took it
    ready_since: datetime | None  # None while not Ready
    unschedulable: str | None  # the scheduler's text
    fetch: ObservedContainer
    server: ObservedContainer
    verifier: ObservedContainer
    fetched: FetchResult | None = None  # what `fetch` last said
    verdict: Verdict | None = None  # what the verifier last said, None: no answer


@dataclass(frozen=True)
class ObservedErrand:
    """A one-off pod of a revision (`errand`)."""

    name: str
    uid: str
    revision: int
    task: str
    unschedulable: str | None  # the scheduler's text
    container: ObservedContainer
    question: str | None = None  # hash of what it is to find out
    over: bool = False  # its time is over, or its node gave it up: it ended without an answer
    message: str = ""  # the kubelet's word on that
    deleting: bool = False


@dataclass(frozen=True)
class ObservedDeployment:
    name: str
    uid: str
    replicas: int
    refused: str | None  # the API server's text where it refuses the pods
    edited: bool = False  # its size is not what was asked for


@dataclass(frozen=True)
class ObservedAddress:
    """A Service of ours."""

    uid: str
    edited: bool = False  # its selector is not what was asked for


@dataclass(frozen=True)
class Surroundings:
    """What is around the service in its cluster."""

    route_served: bool = False  # the API server knows HTTPRoutes
    grpc_route_served: bool = False
    rival: str | None = None  # the older service, "namespace/name", whose route has one of this one's host names
    slot: bool = True  # one of the rollouts that the cluster may have at once


@dataclass(frozen=True)
class ObservedService:
    """One BigModelService and all that is of it. `spec` is None where it can't be served; `problems` say why."""

    namespace: str
    name: str
    uid: str
    generation: int
    deleting: bool
    spec: ServiceSpec | None
    problems: tuple[str, ...]  # field, value, rule and way out, of each wrong field
    readable: bool  # False: the problems are mistakes; True: this version does not do what the spec asks
    status: Mapping[str, Any]
    jobs: tuple[Manifest, ...] = ()  # the followed ones
    records: tuple[Record, ...] = ()  # newest last
    taken_names: frozenset[str] = frozenset()  # of records, Deployments, Services: readable or not
    deployments: Mapping[int, ObservedDeployment] = field(default_factory=dict)
    services: Mapping[str, ObservedAddress] = field(default_factory=dict)  # by name
    selected: int | None = None  # the revision that Service `<svc>` selects, or was told to before somebody edited it
    endpoints: frozenset[str] = frozenset()  # UIDs of ready pods behind Service `<svc>`
    network_policy: bool = False
    disruption_budget: str | None = None  # UID
    pods: tuple[ObservedPod, ...] = ()  # not those being deleted
    errands: tuple[ObservedErrand, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    route: ObservedRoute | None = None
    grpc_route: ObservedRoute | None = None
    orders: Mapping[str, int] = field(default_factory=dict)  # ORDERS, each with its revision
    surroundings: Surroundings = Surroundings()

    @property
    def route_served(self) -> bool:
        return self.surroundings.route_served

    def errand(self, revision: int, task: str) -> ObservedErrand | None:
        return next((one for one in self.errands if (one.revision, one.task) == (revision, task)), None)

    def pods_of(self, revision: int) -> tuple[ObservedPod, ...]:
        return tuple(pod for pod in self.pods if pod.revision == revision)

    def record(self, number: int | None) -> Record | None:
        return next((record for record in self.records if record.number == number), None)


def observed_service(
    owner: Manifest,
    children: Children,
    rejections: tuple[Rejection, ...],
    jobs: tuple[Manifest, ...],
    verdicts: Mapping[str, Verdict],
    surroundings: Surroundings = Surroundings(),
) -> ObservedService:
    """`verdicts` by pod UID."""
    metadata = owner["metadata"]
    name = metadata["name"]
    spec, problems = parsed_spec(owner.get("spec") or {})
    later = () if problems else tuple(refused(owner.get("spec") or {}))
    services = {child["metadata"]["name"]: child for child in children.of(SERVICE)}
    deployments = children.of(DEPLOYMENT)
    records = [record for child in children.of(CONTROLLER_REVISION) if (record := record_of(child))]
    budgets = {child["metadata"]["name"]: child["metadata"]["uid"] for child in children.of(POD_DISRUPTION_BUDGET)}
    stable = services.get(name)
    return ObservedService(
        namespace=metadata["namespace"],
        name=name,
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        deleting=metadata.get("deletionTimestamp") is not None,
        spec=None if later else spec,
        problems=problems or later,
        readable=not problems,
        status=owner.get("status") or {},
        jobs=jobs,
        records=tuple(sorted(records, key=lambda record: record.number)),
        taken_names=frozenset(
            child["metadata"]["name"] for child in (*children.of(CONTROLLER_REVISION), *deployments, *services.values())
        ),
        deployments={
            number: _deployment(child) for child in deployments if (number := _revision_label(child)) is not None
        },
        services={service_name: _address(name, child) for service_name, child in services.items()},
        selected=_selected(stable),
        endpoints=_endpoints(children.related(ENDPOINT_SLICE), stable),
        network_policy=any(child["metadata"]["name"] == name for child in children.of(NETWORK_POLICY)),
        disruption_budget=budgets.get(name),
        pods=tuple(
            sorted(observed_pods(name, children.related(POD), verdicts), key=lambda pod: (pod.created, pod.name))
        ),
        errands=tuple(found for child in children.of(POD) if (found := _errand(name, child)) is not None),
        rejections=rejections,
        route=_route(name, children.of(HTTP_ROUTE)),
        grpc_route=_route(name, children.of(GRPC_ROUTE)),
        orders=_orders(metadata.get("annotations") or {}),
        surroundings=surroundings,
    )


def with_verdicts(service: ObservedService, verdicts: Mapping[str, Verdict]) -> ObservedService:
    """The same facts, and what the verifiers said since."""
    pods = tuple(replace(pod, verdict=verdicts.get(pod.uid)) for pod in service.pods)
    return replace(service, pods=pods)


def parsed_spec(spec: Manifest) -> tuple[ServiceSpec | None, tuple[str, ...]]:
    """The spec, or what is wrong with it: one line with field, value and rule for each wrong field."""
    try:
        parsed = ServiceSpec.model_validate(spec)
    except ValidationError as error:
        return None, tuple(
            "spec."
            + ".".join(str(part) for part in detail["loc"])
            + f": {detail['msg']}, got {str(detail['input'])[:80]!r}"
            for detail in error.errors(include_url=False)
        )
    source = parsed.model
    given = [
        name
        for name, value in (("fromJob", source.from_job), ("fromJobs", source.from_jobs), ("artifact", source.artifact))
        if value is not None
    ]
    if len(given) != 1:
        found = ", ".join(given) or "none"
        return None, (f"spec.model: exactly one of fromJob, fromJobs and artifact is wanted, found {found}",)
    return parsed, ()


@dataclass(frozen=True)
class Followed:
    """Which jobs of its namespace a service follows: one by name, or all with these labels."""

    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def includes(self, job: Manifest) -> bool:
        if self.name is not None:
            return bool(job["metadata"]["name"] == self.name)
        return bool(self.labels) and self.labels.items() <= (job["metadata"].get("labels") or {}).items()


def followed_jobs(spec: Manifest) -> Followed:
    """What spec.model.fromJob and fromJobs name, read before the spec is known to be valid."""
    name = _at(spec, "model", "fromJob", "name")
    labels = _at(spec, "model", "fromJobs", "selector", "matchLabels")
    return Followed(
        name if isinstance(name, str) else None,
        {key: str(value) for key, value in labels.items()} if isinstance(labels, dict) else {},
    )


def _at(node: Any, *path: str) -> Any:
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _route(service: str, routes: Iterable[Manifest]) -> ObservedRoute | None:
    found = next((route for route in routes if route["metadata"]["name"] == service), None)
    return None if found is None else observed_route(service, found)


def _orders(annotations: Mapping[str, str]) -> dict[str, int]:
    """What can't be read is no order; "7" and "r7" are both revision 7."""
    found = {order: annotations.get(f"{names.GROUP}/{order}", "").removeprefix("r") for order in ORDERS}
    return {order: int(text) for order, text in found.items() if text.isdigit()}


def _revision_label(manifest: Manifest) -> int | None:
    value = (manifest["metadata"].get("labels") or {}).get(names.LABEL_REVISION, "")
    return int(value) if value.isdigit() else None


def _deployment(manifest: Manifest) -> ObservedDeployment:
    conditions = (manifest.get("status") or {}).get("conditions") or []
    refused = next((c for c in conditions if c["type"] == "ReplicaFailure" and c["status"] == "True"), None)
    return ObservedDeployment(
        name=manifest["metadata"]["name"],
        uid=manifest["metadata"]["uid"],
        replicas=manifest["spec"].get("replicas", 1),
        refused=refused.get("message", "") if refused else None,
        edited=_annotation(manifest, ANNOTATION_REPLICAS) not in (None, str(manifest["spec"].get("replicas", 1))),
    )


def _annotation(manifest: Manifest, name: str) -> str | None:
    value: str | None = (manifest["metadata"].get("annotations") or {}).get(name)
    return value


def _selector(service: Manifest) -> dict[str, str]:
    return service["spec"].get("selector") or {}


def _address(service: str, manifest: Manifest) -> ObservedAddress:
    asked = _annotation(manifest, ANNOTATION_SELECTS)
    selector = {names.LABEL_SERVICE: service, names.LABEL_REVISION: asked}
    return ObservedAddress(manifest["metadata"]["uid"], edited=asked is not None and _selector(manifest) != selector)


def _selected(service: Manifest | None) -> int | None:
    if service is None:
        return None
    value = _annotation(service, ANNOTATION_SELECTS) or _selector(service).get(names.LABEL_REVISION, "")
    return int(value) if value.isdigit() else None


def _endpoints(slices: Iterable[Manifest], service: Manifest | None) -> frozenset[str]:
    """UIDs of the ready pods in the slices that belong to this very Service: a label alone would be hearsay."""
    if service is None:
        return frozenset()
    return frozenset(
        endpoint["targetRef"]["uid"]
        for slice_ in slices
        if any(owner["uid"] == service["metadata"]["uid"] for owner in slice_["metadata"].get("ownerReferences") or ())
        for endpoint in slice_.get("endpoints") or ()
        if (endpoint.get("conditions") or {}).get("ready") and (endpoint.get("targetRef") or {}).get("uid")
    )


def observed_pods(service: str, pods: Iterable[Manifest], verdicts: Mapping[str, Verdict]) -> Iterable[ObservedPod]:
    """The pods of our Deployments' ReplicaSets that are not on their way out."""
    for manifest in pods:
        metadata = manifest["metadata"]
        revision = _revision_label(manifest)
        if revision is None or metadata.get("deletionTimestamp") or not _of_our_deployment(metadata, service, revision):
            continue
        if (manifest.get("status") or {}).get("phase") in {"Failed", "Succeeded"}:
            continue  # evicted or lost: its ReplicaSet already makes another
        yield _pod(manifest, revision, verdicts.get(metadata["uid"]))


def _of_our_deployment(metadata: Mapping[str, Any], service: str, revision: int) -> bool:
    """ReplicaSets are not watched; their name says whose they are."""
    prefix = names.revision_name(service, revision) + "-"
    return any(
        owner.get("controller") and owner["kind"] == "ReplicaSet" and owner["name"].startswith(prefix)
        for owner in metadata.get("ownerReferences") or ()
    )


def _pod(manifest: Manifest, revision: int, verdict: Verdict | None) -> ObservedPod:
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled, ready = conditions.get("PodScheduled", {}), conditions.get("Ready", {})
    images = {
        container["name"]: container.get("image", "")
        for container in (*(manifest["spec"].get("initContainers") or ()), *manifest["spec"]["containers"])
    }
    containers = {
        container["name"]: _container(container, images.get(container["name"], ""))
        for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
    }
    fetch, server, verifier = (
        containers.get(name) or ObservedContainer(name, images.get(name, ""))
        for name in ("fetch", "server", "verifier")
    )
    return ObservedPod(
        name=metadata["name"],
        uid=metadata["uid"],
        revision=revision,
        ip=status.get("podIP"),
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        bound_at=_time(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None,
        started=_time(status.get("startTime")),
        ready_since=_time(ready.get("lastTransitionTime")) if ready.get("status") == "True" else None,
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else None,
        fetch=fetch,
        server=server,
        verifier=verifier,
        fetched=_fetched(fetch),
        verdict=verdict,
    )


def _errand(service: str, manifest: Manifest) -> ObservedErrand | None:
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    number, _, task = metadata["name"].removeprefix(f"{service}-r").partition("-")
    if not number.isdigit() or not task:
        return None
    scheduled: Manifest = next((c for c in status.get("conditions") or () if c["type"] == "PodScheduled"), {})
    image = manifest["spec"]["containers"][0].get("image", "")
    said = next(iter(status.get("containerStatuses") or ()), None)
    return ObservedErrand(
        name=metadata["name"],
        uid=metadata["uid"],
        revision=int(number),
        task=task,
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else None,
        container=_container(said, image) if said is not None else ObservedContainer(task, image),
        question=_annotation(manifest, ANNOTATION_QUESTION),
        over=status.get("phase") == "Failed",
        message=status.get("message") or status.get("reason") or "",
        deleting=metadata.get("deletionTimestamp") is not None,
    )


def _container(status: Mapping[str, Any], image: str) -> ObservedContainer:
    state, last = status.get("state") or {}, status.get("lastState") or {}
    ended = state.get("terminated") or last.get("terminated")
    waiting = state.get("waiting") or {}
    begun = state.get("running") or ended or {}
    return ObservedContainer(
        name=status["name"],
        image=image,
        restarts=status.get("restartCount", 0),
        running="running" in state,
        started=_time(begun.get("startedAt")),
        waiting=waiting.get("reason"),
        waiting_message=waiting.get("message", ""),
        done=(state.get("terminated") or {}).get("exitCode") == 0,
        ended=Ended(ended.get("exitCode", 0), ended.get("reason", ""), ended.get("message", "")) if ended else None,
    )


def _fetched(fetch: ObservedContainer) -> FetchResult | None:
    """What the fetch container last said; None where it said nothing that can be read."""
    if fetch.ended is None:
        return None
    try:
        return FetchResult.model_validate_json(fetch.ended.message)
    except ValidationError:
        return None


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
