"""What to do about one BigModelService now: a list of named calls on facts. No clock, no IO, no status read back.

A pass either writes one record and nothing else, or makes the children match the records. So every crash falls between
two states that the next pass understands:

    record made → pods, dark → verified → (shares, step by step) → selector and route move → endpoints follow
      → Promoted is written → the old pods stay warm for a while, then go
    ↘ failed: Rejected or Aborted is written → the route gives it nothing → the gateway follows → its pods go
"""

from datetime import datetime, timedelta

from bigmodel.api import names
from bigmodel.controller.decision import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    GRPC_ROUTE,
    HTTP_ROUTE,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Decision,
    Deletion,
    Event,
    Manifest,
    Relabel,
    ResourceKind,
)
from bigmodel.controller.service import build, build_route, messages
from bigmodel.controller.service.events import events_between
from bigmodel.controller.service.ledger import (
    Ledger,
    may_promote,
    needs_record,
    next_record_write,
    read_ledger,
    waits_for_slot,
)
from bigmodel.controller.service.observe import ANNOTATION_QUESTION, ObservedService
from bigmodel.controller.service.revision import RECORDS_KEPT, Record, findings, story
from bigmodel.controller.service.route import Split
from bigmodel.controller.service.status import invalid_status, service_status
from bigmodel.controller.service.stepping import SETTLE_SECONDS, rollback_window_seconds, strategy
from bigmodel.controller.settings import Settings

SOON_SECONDS = 1.0
ROLLOUT_SECONDS = 5.0  # texts with seconds in them, deadlines
REJECTED_CHILD_SECONDS = 60.0
IDLE_SECONDS = 300.0


def decide(service: ObservedService, settings: Settings, now: datetime) -> Decision:
    now = now.replace(microsecond=0)  # what is written down has whole seconds, as Kubernetes' own times have
    if service.deleting:
        return Decision()  # children go with their owner
    if service.spec is None:
        return _told(service, invalid_status(service, now), Decision(), now)
    ledger = read_ledger(service, settings, now)
    status = service_status(service, ledger, settings, now)
    write = next_record_write(service, ledger, now)
    if write is not None:
        relabel = Relabel(
            CONTROLLER_REVISION,
            names.revision_name(service.name, write.record.number),
            write.record.uid,
            annotations={
                **story(write.record, write.outcome, write.attempt),
                **findings(write.inspection, write.evaluation),
            },
        )
        decision = Decision(relabel=(relabel,), requeue_after=SOON_SECONDS, again=True)
        return _told(service, status, decision, now) if service.rejections else decision
    number = needs_record(service, ledger)
    if number is not None:
        assert ledger.wanted is not None
        manifest = build.record(service, number, ledger.wanted.inputs, ledger.wanted.artifact, settings)
        return _told(service, status, Decision(create=(manifest,), requeue_after=SOON_SECONDS, again=True), now)
    decision = _children(service, ledger, now)
    return _told(service, status, decision, now)


def _told(service: ObservedService, status: Manifest, decision: Decision, now: datetime) -> Decision:
    """The decision with its status and events; a refused child slows it down."""
    requeue = REJECTED_CHILD_SECONDS if service.rejections else decision.requeue_after
    return Decision(
        relabel=decision.relabel,
        create=decision.create,
        apply=decision.apply,
        delete=decision.delete,
        status=status,
        events=(*decision.events, *events_between(service.status, status)),
        requeue_after=requeue if requeue is not None else IDLE_SECONDS,
        again=decision.again and not service.rejections,
    )


def _children(service: ObservedService, ledger: Ledger, now: datetime) -> Decision:
    """Pods and addresses as the records ask for; what has no role any more goes."""
    wanted: list[Manifest] = []
    may_load = ledger.review is None or ledger.review.may_load
    candidate = ledger.candidate if may_load and not waits_for_slot(service, ledger) else None
    roles = {record.number: record for record in (ledger.stable, candidate, ledger.previous) if record}
    if roles:
        wanted.append(build.network_policy(service))
    wanted += [build.revision_service(service, record) for record in roles.values()]
    wanted += [build.deployment(service, record, _replicas(service, ledger, record)) for record in roles.values()]
    wanted += _last_failure(service, roles, now)
    wanted += _addresses(service, ledger)
    wanted += _routes(service, ledger, now)
    errands = _errands(service, ledger)
    create = tuple(manifest for manifest in wanted if not _exists(service, manifest))
    edited = _edited(service)
    return Decision(
        relabel=tuple(
            Relabel(kind, name, uid, annotations={names.ANNOTATION_HASH: None}) for kind, name, uid in edited
        ),
        create=(*create, *(pod for pod in errands if not _exists(service, pod))),
        apply=tuple(manifest for manifest in wanted if manifest not in create),
        delete=(*_without_role(service, roles, now), *_routes_not_wanted(service), *_over(service, errands)),
        events=tuple(_restored(kind, name, now) for kind, name, _ in edited),
        requeue_after=_next_look(service, ledger, now),
    )


def _errands(service: ObservedService, ledger: Ledger) -> list[Manifest]:
    """The one-off pod that the candidate needs now."""
    assert service.spec is not None
    if ledger.candidate is None or ledger.review is None or ledger.review.errand is None:
        return []
    if service.spec.server.replicas == 0:
        return []
    return [build.errand_pod(service, ledger.candidate, ledger.review.errand, ledger.review.question)]


def _over(service: ObservedService, wanted: list[Manifest]) -> tuple[Deletion, ...]:
    """One-off pods that nobody needs any more: their answer is in the record, or the question is another one now."""
    asked = {pod["metadata"]["name"]: pod["metadata"]["annotations"][ANNOTATION_QUESTION] for pod in wanted}
    return tuple(
        Deletion(POD, one.name, one.uid)
        for one in service.errands
        if asked.get(one.name) != one.question and not one.deleting
    )


def _edited(service: ObservedService) -> list[tuple[ResourceKind, str, str]]:
    """Children that somebody else changed. Without its hash a child is applied again: that restores it."""
    routes = ((HTTP_ROUTE, service.route), (GRPC_ROUTE, service.grpc_route))
    return [
        *((SERVICE, name, address.uid) for name, address in service.services.items() if address.edited),
        *((DEPLOYMENT, one.name, one.uid) for one in service.deployments.values() if one.edited),
        *((kind, service.name, route.uid) for kind, route in routes if route is not None and route.edited),
    ]


def _restored(kind: ResourceKind, name: str, now: datetime) -> Event:
    note = messages.restored(kind.kind, name)
    return Event("Warning", "Restored", note, f"restored-{kind.kind}-{name}-{now:%Y%m%d%H%M%S}")


def _replicas(service: ObservedService, ledger: Ledger, record: Record) -> int:
    assert service.spec is not None
    if record is ledger.previous:
        return service.deployments[record.number].replicas  # warm, as it was
    if record is ledger.candidate and ledger.move is not None:
        return ledger.move.size
    if record is ledger.stable and _steps_down(service, ledger):
        return 0
    return service.spec.server.replicas


def _steps_down(service: ObservedService, ledger: Ledger) -> bool:
    """recreate: there is no room for both. Said in the status since the candidate was recorded, a pass before."""
    if ledger.move is None or strategy(service) != "recreate":
        return False
    return ledger.move.size > 0 and not waits_for_slot(service, ledger)


def _last_failure(service: ObservedService, roles: dict[int, Record], now: datetime) -> list[Manifest]:
    """The newest failed revision keeps its Deployment, with no pods, so that its story can still be read.

    Its pods go when the gateway has had time to follow: those it still sends to must answer.
    """
    newest = service.records[-1] if service.records else None
    if newest is None or newest.number in roles or newest.number not in service.deployments:
        return []
    if not _failed(newest):
        return []
    replicas = service.deployments[newest.number].replicas if _still_routed(service, newest, now) else 0
    return [build.revision_service(service, newest), build.deployment(service, newest, replicas)]


def _still_routed(service: ObservedService, record: Record, now: datetime) -> bool:
    """The gateway may still send it requests: the route names it, or was changed a moment ago."""
    route = service.route
    if route is None or not service.route_served:
        return False
    if route.weights.get(record.number, 0) > 0:
        return True
    return route.split is not None and now < route.split.since + timedelta(seconds=SETTLE_SECONDS)


def _failed(record: Record) -> bool:
    """On its own account: one that was only overtaken has no story to keep pods' owners for."""
    return (
        record.outcome is not None
        and record.outcome.result != "Promoted"
        and record.outcome.reason != messages.Reason.SUPERSEDED
    )


def _addresses(service: ObservedService, ledger: Ledger) -> list[Manifest]:
    """Service `<svc>` points where verified pods are, and never moves for any other reason."""
    assert service.spec is not None
    revision = _addressed(service, ledger)
    if revision is None:
        return []
    addresses = [build.stable_service(service, revision)]
    if service.spec.server.replicas > 1:
        addresses.append(build.disruption_budget(service, revision))
    return addresses


def _addressed(service: ObservedService, ledger: Ledger) -> int | None:
    """The revision that callers get after this pass."""
    if may_promote(service, ledger):
        assert ledger.candidate is not None
        return ledger.candidate.number
    if ledger.falling_back:
        assert ledger.previous is not None
        return ledger.previous.number
    return service.selected


def _routes(service: ObservedService, ledger: Ledger, now: datetime) -> list[Manifest]:
    """From the first verified revision on. A host name that an older service has is left to it."""
    assert service.spec is not None
    if service.spec.route is None or not service.route_served:
        return []
    if service.surroundings.rival is not None and service.route is None:
        return []
    split = _split(service, ledger, now)
    if split is None:
        return []
    routes = [build_route.http_route(service, split)]
    if service.surroundings.grpc_route_served and (grpc := build_route.grpc_route(service, split)) is not None:
        routes.append(grpc)
    return routes


def _split(service: ObservedService, ledger: Ledger, now: datetime) -> Split | None:
    """As it is while nothing changes, times included; else begun now."""
    stable = _addressed(service, ledger)
    if stable is None:
        return None
    move, candidate = ledger.move, ledger.candidate
    weight = 0
    if move is not None and candidate is not None and candidate.number != stable and move.ends is None:
        weight = move.weight
    before = service.route.split if service.route is not None else None
    rolling = candidate is not None and candidate.number != stable
    begun = before is not None and rolling and candidate is not None and before.candidate == candidate.number
    # It stays named while its pods are away: what its users saw before still counts when they are back.
    number = candidate.number if candidate is not None and (weight > 0 or begun) else None
    same = before is not None and (before.stable, before.candidate) == (stable, number)
    if before is not None and same and before.weight == weight:
        return before
    return Split(
        stable=stable,
        candidate=number,
        weight=weight,
        since=now,
        began=before.began if before is not None and same else now,
        synthetic=move is not None and move.synthetic and may_promote(service, ledger),
    )


def _routes_not_wanted(service: ObservedService) -> list[Deletion]:
    assert service.spec is not None
    if not service.route_served:
        return []
    route = service.spec.route
    unwanted = []
    if service.route is not None and route is None:
        unwanted.append(Deletion(HTTP_ROUTE, service.name, service.route.uid))
    if service.grpc_route is not None and (route is None or not route.grpc_hostnames):
        unwanted.append(Deletion(GRPC_ROUTE, service.name, service.grpc_route.uid))
    return unwanted


def _exists(service: ObservedService, manifest: Manifest) -> bool:
    name, kind = manifest["metadata"]["name"], manifest["kind"]
    if kind == SERVICE.kind:
        return name in service.services
    if kind == DEPLOYMENT.kind:
        return any(deployment.name == name for deployment in service.deployments.values())
    if kind == POD.kind:
        return any(one.name == name for one in service.errands)
    if kind == POD_DISRUPTION_BUDGET.kind:
        return service.disruption_budget is not None
    if kind == HTTP_ROUTE.kind:
        return service.route is not None
    if kind == GRPC_ROUTE.kind:
        return service.grpc_route is not None
    return service.network_policy


def _without_role(service: ObservedService, roles: dict[int, Record], now: datetime) -> tuple[Deletion, ...]:
    """Only what a record calls ended goes; a Deployment without a readable record is left alone, it may serve."""
    assert service.spec is not None
    newest = service.records[-1].number if service.records else 0
    ended = [
        record
        for record in service.records
        if record.number not in roles and not record.open and record.number != service.selected
    ]
    deletions = []
    for record in ended:
        if (record.number == newest and _failed(record)) or _still_routed(service, record, now):
            continue
        name = names.revision_name(service.name, record.number)
        if record.number in service.deployments:
            deletions.append(Deletion(DEPLOYMENT, name, service.deployments[record.number].uid))
        if name in service.services:
            deletions.append(Deletion(SERVICE, name, service.services[name].uid))
    deletions += [
        Deletion(CONTROLLER_REVISION, names.revision_name(service.name, record.number), record.uid)
        for record in ended[: max(0, len(ended) - RECORDS_KEPT)]
        if record.number not in service.deployments  # last of all: a Deployment without a record would stay for ever
    ]
    if service.disruption_budget is not None and (service.spec.server.replicas <= 1 or service.selected is None):
        deletions.append(Deletion(POD_DISRUPTION_BUDGET, service.name, service.disruption_budget))
    return tuple(deletions)


def _next_look(service: ObservedService, ledger: Ledger, now: datetime) -> float:
    """When time alone changes something."""
    assert service.spec is not None
    looks = [IDLE_SECONDS]
    looks += [seconds for moment in _moments(service) if (seconds := (moment - now).total_seconds()) > 0]
    if ledger.candidate is not None:
        return max(SOON_SECONDS, min(ROLLOUT_SECONDS, *looks))
    kept_until = ledger.kept_until(rollback_window_seconds(service))
    if ledger.previous is not None and kept_until is not None:
        left = (kept_until - now).total_seconds()
        looks.append(min(60.0 if left > 60 else ROLLOUT_SECONDS, left))
    if ledger.source.again_at is not None:
        looks.append((ledger.source.again_at - now).total_seconds())
    retry_at = ledger.wanted_record.retry_at() if ledger.wanted_record else None
    if retry_at is not None and ledger.wanted_record is not ledger.stable:
        looks.append((retry_at - now).total_seconds())
    if ledger.stable is not None and _unsettled(service, ledger):
        looks.append(ROLLOUT_SECONDS)
    return max(SOON_SECONDS, min(looks))


def _moments(service: ObservedService) -> tuple[datetime, ...]:
    """When the gateway has followed the last change of weights, and when a step's time is over."""
    assert service.spec is not None
    split = service.route.split if service.route is not None else None
    if split is None:
        return ()
    settled = split.since + timedelta(seconds=SETTLE_SECONDS)
    return settled, settled + timedelta(seconds=service.spec.rollout.interval_seconds)


def _unsettled(service: ObservedService, ledger: Ledger) -> bool:
    assert service.spec is not None
    assert ledger.stable is not None
    return len(ledger.diagnoses[ledger.stable.number].verified) != service.spec.server.replicas
