"""BigModelService as the engine calls it: facts from caches, then `decide`."""

from datetime import datetime
from typing import Any, Protocol

from bigmodel.api.verdict import Verdict
from bigmodel.controller.decision import (
    BIG_MODEL_SERVICE,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    ENDPOINT_SLICE,
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
from bigmodel.controller.service.decide import decide
from bigmodel.controller.service.observe import Followed, ObservedService, followed_jobs, observed_service
from bigmodel.controller.service.verdicts import IDLE_SECONDS, ROLLOUT_SECONDS, Target
from bigmodel.controller.settings import Settings


class Jobs(Protocol):
    """The BigModelJobs as last seen."""

    def get(self, namespace: str, name: str) -> Manifest | None: ...
    def all(self) -> tuple[Manifest, ...]: ...


class Verdicts(Protocol):
    """What `verdicts.VerdictSource` offers."""

    def follow(self, key: Key, targets: tuple[Target, ...], every_seconds: float) -> None: ...
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
    )
    # Found by the label bigmodel.io/service: other controllers make them.
    related: tuple[ResourceKind, ...] = (POD, ENDPOINT_SLICE)

    def __init__(self, settings: Settings, facts: Any, jobs: Jobs, verdicts: Verdicts) -> None:
        self._settings = settings
        self._facts = facts  # whether HTTPRoutes are served: read once routes are made
        self._jobs = jobs
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
        service = observed_service(owner, children, rejections, jobs, self._said(children))
        self._follow_pods(key, service)
        if await self._verdicts.first_asked(key):
            service = observed_service(owner, children, rejections, jobs, self._said(children))
        return service

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

    def _follow_pods(self, key: Key, service: ObservedService) -> None:
        """Often while a revision is on its way or a pod is not Ready, else now and then."""
        records = {record.number: record for record in service.records}
        targets = tuple(
            Target(
                uid=pod.uid,
                ip=pod.ip,
                service=service.name,
                revision=pod.revision,
                digest=records[pod.revision].data.inputs.digest,
                ready=pod.ready_since is not None,
            )
            for pod in service.pods
            if pod.ip is not None and pod.revision in records
        )
        rolling = any(record.open for record in service.records) or not all(target.ready for target in targets)
        self._verdicts.follow(key, targets, ROLLOUT_SECONDS if rolling else IDLE_SECONDS)
