"""What to do about one BigModelService now: a list of named calls on facts. No clock, no IO, no status read back.

A pass either writes one record and nothing else, or makes the children match the records. So every crash falls between
two states that the next pass understands:

    record made → pods, dark → all verified → selector moves → endpoints follow → Promoted is written → the old pods go
                             ↘ failed: Rejected or Aborted is written → its pods go; the selector was never touched
"""

from datetime import datetime

from bigmodel.api import names
from bigmodel.controller.decision import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Decision,
    Deletion,
    Event,
    Manifest,
    Relabel,
    ResourceKind,
)
from bigmodel.controller.service import build, messages
from bigmodel.controller.service.events import events_between
from bigmodel.controller.service.ledger import Ledger, may_promote, needs_record, next_record_write, read_ledger
from bigmodel.controller.service.observe import ObservedService
from bigmodel.controller.service.revision import RECORDS_KEPT, Record, story
from bigmodel.controller.service.status import invalid_status, service_status
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
            annotations=story(write.outcome, write.attempt),
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
    roles = {record.number: record for record in (ledger.stable, ledger.candidate, ledger.previous) if record}
    if roles:
        wanted.append(build.network_policy(service))
    wanted += [build.revision_service(service, record) for record in roles.values()]
    wanted += [build.deployment(service, record, _replicas(service, ledger, record)) for record in roles.values()]
    wanted += _last_failure(service, roles)
    wanted += _addresses(service, ledger)
    create = tuple(manifest for manifest in wanted if not _exists(service, manifest))
    edited = _edited(service)
    return Decision(
        relabel=tuple(
            Relabel(kind, name, uid, annotations={names.ANNOTATION_HASH: None}) for kind, name, uid in edited
        ),
        create=create,
        apply=tuple(manifest for manifest in wanted if manifest not in create),
        delete=_without_role(service, ledger, roles),
        events=tuple(_restored(kind, name, now) for kind, name, _ in edited),
        requeue_after=_next_look(service, ledger, now),
    )


def _edited(service: ObservedService) -> list[tuple[ResourceKind, str, str]]:
    """Children that somebody else changed. Without its hash a child is applied again: that restores it."""
    addresses = service.services.items()
    deployments = service.deployments.values()
    return [(SERVICE, name, address.uid) for name, address in addresses if address.edited] + [
        (DEPLOYMENT, deployment.name, deployment.uid) for deployment in deployments if deployment.edited
    ]


def _restored(kind: ResourceKind, name: str, now: datetime) -> Event:
    note = messages.restored(kind.kind, name)
    return Event("Warning", "Restored", note, f"restored-{kind.kind}-{name}-{now:%Y%m%d%H%M%S}")


def _replicas(service: ObservedService, ledger: Ledger, record: Record) -> int:
    assert service.spec is not None
    if record is ledger.previous:
        return service.deployments[record.number].replicas  # warm, as it was
    return service.spec.server.replicas


def _last_failure(service: ObservedService, roles: dict[int, Record]) -> list[Manifest]:
    """The newest failed revision keeps its Deployment, with no pods, so that its story can still be read."""
    newest = service.records[-1] if service.records else None
    if newest is None or newest.number in roles or newest.number not in service.deployments:
        return []
    return [build.revision_service(service, newest), build.deployment(service, newest, 0)] if _failed(newest) else []


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
    if may_promote(service, ledger):
        assert ledger.candidate is not None
        revision: int | None = ledger.candidate.number
    else:
        revision = service.selected
    if revision is None:
        return []
    addresses = [build.stable_service(service, revision)]
    if service.spec.server.replicas > 1:
        addresses.append(build.disruption_budget(service, revision))
    return addresses


def _exists(service: ObservedService, manifest: Manifest) -> bool:
    name, kind = manifest["metadata"]["name"], manifest["kind"]
    if kind == SERVICE.kind:
        return name in service.services
    if kind == DEPLOYMENT.kind:
        return any(deployment.name == name for deployment in service.deployments.values())
    if kind == POD_DISRUPTION_BUDGET.kind:
        return service.disruption_budget is not None
    return service.network_policy


def _without_role(service: ObservedService, ledger: Ledger, roles: dict[int, Record]) -> tuple[Deletion, ...]:
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
        if record.number == newest and _failed(record):
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
    if ledger.candidate is not None:
        return ROLLOUT_SECONDS
    looks = [IDLE_SECONDS]
    kept_until = ledger.kept_until(service.spec.rollout.rollback_window_seconds)
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


def _unsettled(service: ObservedService, ledger: Ledger) -> bool:
    assert service.spec is not None
    assert ledger.stable is not None
    return len(ledger.diagnoses[ledger.stable.number].verified) != service.spec.server.replicas
