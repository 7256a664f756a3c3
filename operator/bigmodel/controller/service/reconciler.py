"""BigModelService as the engine calls it: facts from caches, then `decide`."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Protocol

from bigmodel.api.names import LABEL_SERVICE
from bigmodel.api.verdict import Verdict
from bigmodel.controller.decision import (
    BIG_MODEL_SERVICE,
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
    Decision,
    Key,
    Manifest,
    Rejection,
    ResourceKind,
)
from bigmodel.controller.kube.discovery import ClusterFacts
from bigmodel.controller.service.decide import decide
from bigmodel.controller.service.observe import (
    Followed,
    ObservedService,
    Surroundings,
    followed_jobs,
    observed_service,
    with_verdicts,
)
from bigmodel.controller.service.questions import targets
from bigmodel.controller.service.revision import ANNOTATION_OUTCOME
from bigmodel.controller.service.route import hosts_of
from bigmodel.controller.service.verdicts import Target
from bigmodel.controller.settings import Settings


class Jobs(Protocol):
    """The BigModelJobs as last seen."""

    def get(self, namespace: str, name: str) -> Manifest | None: ...
    def all(self) -> tuple[Manifest, ...]: ...


class Verdicts(Protocol):
    """What `verdicts.VerdictSource` offers."""

    def follow(self, key: Key, targets: tuple[Target, ...]) -> None: ...
    async def first_asked(self, key: Key) -> bool: ...
    def of(self, uid: str) -> Verdict | None: ...


class ServiceReconciler:
    kind: ResourceKind = BIG_MODEL_SERVICE
    children: tuple[ResourceKind, ...] = (
        CONTROLLER_REVISION,
        DEPLOYMENT,
        SERVICE,
        NETWORK_POLICY,
        POD_DISRUPTION_BUDGET,
        HTTP_ROUTE,
        GRPC_ROUTE,
        POD,  # errands
    )
    # Found by the label bigmodel.io/service: other controllers make them.
    related: tuple[ResourceKind, ...] = (POD, ENDPOINT_SLICE)

    def __init__(self, settings: Settings, facts: ClusterFacts, jobs: Jobs, verdicts: Verdicts) -> None:
        self._settings = settings
        self._facts = facts
        self._jobs = jobs
        # All objects of one of the kinds above, of every service, once somebody lists them.
        self.cached: Callable[[ResourceKind], Iterable[Manifest]] = lambda kind: ()
        self._claims: set[tuple[str, str]] = set()  # services that were given a slot and have no pods for it yet
        self._verdicts = verdicts
        self._followers: dict[tuple[str, str], set[Key]] = {}  # by namespace and name of the job
        self._selectors: dict[Key, Followed] = {}

    def followers_of(self, job: Manifest) -> tuple[Key, ...]:
        """The services to reconcile when this job changes; also where it had the labels that they ask for."""
        namespace = job["metadata"]["namespace"]
        by_labels = {
            key for key, followed in self._selectors.items() if key.namespace == namespace and followed.includes(job)
        }
        return tuple(sorted(by_labels | self._followers.get((namespace, job["metadata"]["name"]), set())))

    async def observe(self, owner: Manifest, children: Children, rejections: tuple[Rejection, ...]) -> ObservedService:
        metadata = owner["metadata"]
        key = Key(BIG_MODEL_SERVICE.kind, metadata["namespace"], metadata["name"])
        jobs = self._follow_jobs(key, followed_jobs(owner.get("spec") or {}))
        service = observed_service(owner, children, rejections, jobs, {}, self._surroundings(owner, children))
        # First the questions, then the answers: one to an older question says nothing of this step.
        self._verdicts.follow(key, targets(service))
        await self._verdicts.first_asked(key)
        return with_verdicts(service, self._said(children))

    def _surroundings(self, owner: Manifest, children: Children) -> Surroundings:
        return Surroundings(
            route_served=self._facts.http_route_served,
            grpc_route_served=self._facts.grpc_route_served,
            rival=self._rival(owner, children),
            slot=self._slot(owner, children),
        )

    def _rival(self, owner: Manifest, children: Children) -> str | None:
        """The older service that has one of this one's hosts. Of two that have none yet, the first to make it wins."""
        route = (owner.get("spec") or {}).get("route")
        if not isinstance(route, dict):
            return None
        metadata = owner["metadata"]
        mine = hosts_of({"metadata": metadata, "spec": route})
        own = next(iter(children.of(HTTP_ROUTE)), None)
        age = _age(own) if own is not None else None
        rivals = [
            other
            for other in self.cached(HTTP_ROUTE)
            if (other["metadata"]["namespace"], other["metadata"]["name"]) != (metadata["namespace"], metadata["name"])
            and hosts_of(other) & mine
            and (age is None or _age(other) < age)
        ]
        oldest = min(rivals, key=_age, default=None)
        return f"{oldest['metadata']['namespace']}/{oldest['metadata']['name']}" if oldest is not None else None

    def _slot(self, owner: Manifest, children: Children) -> bool:
        """Whether a rollout of this service may begin, or is under way."""
        namespace, name = owner["metadata"]["namespace"], owner["metadata"]["name"]
        mine = {record["metadata"]["name"] for record in children.of(CONTROLLER_REVISION) if _is_open(record)}
        begun = any(deployment["metadata"]["name"] in mine for deployment in children.of(DEPLOYMENT))
        first = all(service["metadata"]["name"] != name for service in children.of(SERVICE))
        if not mine or begun or first:
            return True
        under_way = self._under_way() - {(namespace, name)}
        if len(under_way) < self._settings.rollout.max_concurrent:
            self._claims.add((namespace, name))
            return True
        return False

    def _under_way(self) -> set[tuple[str, str]]:
        """Services with an open revision that has pods, or was told a moment ago that it may have them."""
        begun = {_name(deployment) for deployment in self.cached(DEPLOYMENT)}
        open_records = [record for record in self.cached(CONTROLLER_REVISION) if _is_open(record)]
        self._claims &= {_service_of(record) for record in open_records}
        return self._claims | {_service_of(record) for record in open_records if _name(record) in begun}

    def _said(self, children: Children) -> dict[str, Verdict]:
        """The verdicts on its pods, by UID."""
        return {
            uid: verdict
            for pod in children.related(POD)
            if (verdict := self._verdicts.of(uid := pod["metadata"]["uid"])) is not None
        }

    def decide(self, snapshot: ObservedService, now: datetime) -> Decision:
        return decide(snapshot, self._settings, now)

    def _follow_jobs(self, key: Key, followed: Followed) -> tuple[Manifest, ...]:
        """The jobs that this service follows now; it hears of their changes."""
        if followed.labels:
            here = (job for job in self._jobs.all() if job["metadata"]["namespace"] == key.namespace)
            jobs = tuple(sorted(filter(followed.includes, here), key=lambda job: str(job["metadata"]["name"])))
            self._selectors[key] = followed
        else:
            found = self._jobs.get(key.namespace, followed.name) if followed.name else None
            jobs = (found,) if found is not None else ()
            self._selectors.pop(key, None)
        heard_of = {str(job["metadata"]["name"]) for job in jobs} | ({followed.name} if followed.name else set())
        for (namespace, name), services in list(self._followers.items()):
            if namespace == key.namespace and name not in heard_of:
                services.discard(key)
                if not services:
                    del self._followers[namespace, name]
        for name in heard_of:
            self._followers.setdefault((key.namespace, name), set()).add(key)
        return jobs


def _age(route: Manifest) -> tuple[str, str, str]:
    """Gateway API's own order: the older wins, then the name."""
    metadata = route["metadata"]
    return metadata["creationTimestamp"], metadata["namespace"], metadata["name"]


def _is_open(record: Manifest) -> bool:
    return ANNOTATION_OUTCOME not in (record["metadata"].get("annotations") or {})


def _name(manifest: Manifest) -> tuple[str, str]:
    return manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def _service_of(manifest: Manifest) -> tuple[str, str]:
    return manifest["metadata"]["namespace"], manifest["metadata"]["labels"].get(LABEL_SERVICE, "")
