"""What a service's status says: derived from facts and records at each pass, never an input. Pure.

One function for each condition. `lastTransitionTime` is the only thing taken from the status before.
"""

from datetime import datetime, timedelta
from typing import Any

from bigmodel.api.condition import Condition, ServiceCondition
from bigmodel.api.service import (
    CandidateRevision,
    GateResult,
    ReplicaCounts,
    RevisionResult,
    ServedModel,
    ServiceStatus,
    StableRevision,
    Traffic,
)
from bigmodel.controller.conditions import ConditionStatus, find, set_condition
from bigmodel.controller.decision import Manifest, Rejection
from bigmodel.controller.service import build, messages
from bigmodel.controller.service.diagnosis import Diagnosis
from bigmodel.controller.service.ledger import Ledger, may_promote, short_digest, waits_for_slot
from bigmodel.controller.service.messages import Reason
from bigmodel.controller.service.observe import ObservedService
from bigmodel.controller.service.online import STEP, Seen, judge, seen
from bigmodel.controller.service.revision import Outcome, Record
from bigmodel.controller.service.stepping import SETTLE_SECONDS, rollback_window_seconds, route_trouble, strategy
from bigmodel.controller.settings import Settings

HISTORY = 5
TEXT_STEP_SECONDS = 5  # seconds in texts move in such steps: each new text is a write

Told = tuple[ConditionStatus, str, str]  # status, reason, message of a condition


def invalid_status(service: ObservedService, now: datetime) -> Manifest:
    """The status of a spec that can't be served: everything else stays as it was last known."""
    wrong = Reason.NOT_SERVED if service.readable else Reason.INVALID_SPEC
    told: dict[ServiceCondition, Told] = {
        ServiceCondition.ACCEPTED: ("False", wrong, messages.invalid_spec(list(service.problems)))
    }
    status = dict(service.status)
    known = {condition["type"] for condition in status.get("conditions", [])}
    unknown: Told = ("Unknown", wrong, "Not known while the spec is not accepted.")
    told |= {kind: unknown for kind in ServiceCondition if kind not in known and kind not in told}
    kept = {
        ServiceCondition(condition["type"]): (condition["status"], condition["reason"], condition["message"])
        for condition in status.get("conditions", [])
        if condition["type"] in set(ServiceCondition) and condition["type"] != ServiceCondition.ACCEPTED
    }
    status["conditions"] = _conditions(service, told | kept, now)
    status["observedGeneration"] = service.generation
    status["message"] = told[ServiceCondition.ACCEPTED][2]
    status.setdefault("phase", "Failed")
    return status


def service_status(service: ObservedService, ledger: Ledger, settings: Settings, now: datetime) -> Manifest:
    """The complete status."""
    assert service.spec is not None
    told: dict[ServiceCondition, Told] = {
        ServiceCondition.ACCEPTED: _accepted(service),
        ServiceCondition.SOURCE_AVAILABLE: _source_available(ledger),
        ServiceCondition.MODEL_VERIFIED: _model_verified(ledger),
        ServiceCondition.PROGRESSING: _progressing(service, ledger),
        ServiceCondition.PROMOTED: _promoted(service, ledger),
        ServiceCondition.DEGRADED: _degraded(service, ledger),
        ServiceCondition.READY: _ready(service, ledger, settings),
    }
    stable, candidate = ledger.stable, ledger.candidate
    serves = service.selected is not None
    http, grpc = _urls(service, settings)
    shown = _candidate(service, ledger, candidate) if candidate else _leaving(service, ledger, now)
    status = ServiceStatus(
        observed_generation=service.generation,
        phase=_phase(service, ledger, told, now),
        conditions=[],
        message=_message(ledger, told),
        url=http if serves else None,
        grpc_url=grpc if serves else None,
        model=ServedModel(name=service.spec.model.name or service.name),
        replicas=_replicas(service, ledger),
        stable=_stable(stable, shown) if stable else None,
        candidate=shown,
        traffic=_traffic(service, ledger),
        rollout=_rollout(service, ledger, now),
        selector=_selector(service) if serves else None,
        gates=_gates(service, ledger),
        history=_history(service.records),
    )
    return {**status.wire(), "conditions": _conditions(service, told, now)}


def _conditions(service: ObservedService, told: dict[ServiceCondition, Told], now: datetime) -> list[Manifest]:
    before = [Condition.model_validate(condition) for condition in service.status.get("conditions") or []]
    conditions: list[Condition] = []
    for kind in ServiceCondition:
        old = find(before, kind)
        status, reason, message = told[kind]
        conditions += set_condition([old] if old else [], kind.value, status, reason, message, service.generation, now)
    return [condition.wire() for condition in conditions]


def _urls(service: ObservedService, settings: Settings) -> tuple[str, str]:
    """HTTP and gRPC: the route's host where traffic goes through it, else the address inside the cluster."""
    assert service.spec is not None
    route = service.spec.route
    if route is None or service.route is None:
        http = build.stable_url(service.name, service.namespace, settings)
        return http, build.stable_grpc_url(service.name, service.namespace, settings)
    return f"http://{route.hostnames[0]}", f"{(route.grpc_hostnames or route.hostnames)[0]}:80"


# The conditions


def _accepted(service: ObservedService) -> Told:
    assert service.spec is not None
    if service.spec.route is not None and not service.route_served:
        return "True", Reason.ROUTE_NOT_SERVED, messages.route_not_served()
    pin = service.spec.rollout.pin
    if pin is not None and service.record(pin.revision) is None:
        return "False", Reason.PIN_NOT_FOUND, messages.pin_not_found(pin.revision)
    return "True", Reason.ACCEPTED, messages.accepted()


def _source_available(ledger: Ledger) -> Told:
    source = ledger.source
    return "True" if source.available else "False", source.reason, source.message


def _model_verified(ledger: Ledger) -> Told:
    """Of the newest revision that is wanted: a rejected one shows here, though stable serves a verified one."""
    subject = ledger.candidate or ledger.wanted_record or ledger.stable
    if subject is None:
        return "Unknown", Reason.NOT_YET_VERIFIED, messages.not_yet_verified()
    outcome = subject.outcome
    if outcome is not None and outcome.result == "Rejected":
        return "False", outcome.reason, outcome.message
    if outcome is not None and outcome.verified is not None:
        return "True", outcome.verified_reason or Reason.GOLDEN_MATCHED, outcome.verified
    diagnosis = ledger.diagnoses.get(subject.number)
    verification = diagnosis.verification if diagnosis else None
    if verification is not None:
        return "True", verification.reason, verification.message
    return "Unknown", Reason.NOT_YET_VERIFIED, messages.not_yet_verified()


def _progressing(service: ObservedService, ledger: Ledger) -> Told:
    assert service.spec is not None
    if service.rejections:
        return "False", *_rejected_child(service.rejections[0])
    if service.spec.server.replicas == 0:
        return "False", Reason.SCALED_TO_ZERO, messages.scaled_to_zero()
    if ledger.candidate is not None:
        return _rolling(service, ledger, ledger.candidate, ledger.diagnoses[ledger.candidate.number])
    failure = _failure(ledger)
    if failure is not None:
        return "False", failure.reason, failure.message
    if ledger.wanted is not None and ledger.wanted_record is None:
        return "True", Reason.PREPARING, _record_pending(service, ledger)
    if ledger.stable is not None:
        pinned = service.spec.rollout.pin is not None and service.spec.rollout.pin.revision == ledger.stable.number
        told = messages.pinned if pinned else messages.rollout_complete
        return "False", Reason.ROLLOUT_COMPLETE, told(ledger.stable.number)
    return "False", Reason.WAITING_FOR_SOURCE, messages.waiting_for_source()


def _rejected_child(rejection: Rejection) -> tuple[str, str]:
    if rejection.code == 409:
        return Reason.NAME_TAKEN, messages.name_taken(rejection.manifest_kind, rejection.name)
    if "exceeded quota" in rejection.message:
        return Reason.QUOTA_EXCEEDED, messages.quota_exceeded(rejection.message)
    return Reason.CHILD_REJECTED, messages.child_rejected(rejection.manifest_kind, rejection.name, rejection.message)


def _rolling(service: ObservedService, ledger: Ledger, candidate: Record, diagnosis: Diagnosis) -> Told:
    assert service.spec is not None
    if diagnosis.trouble is not None and not ledger.promoting:
        return "False", diagnosis.trouble.reason, diagnosis.trouble.message
    wanted, ready = service.spec.server.replicas, len(diagnosis.verified)
    if waits_for_slot(service, ledger):
        return "True", Reason.ROLLOUTS_QUEUED, messages.rollouts_queued(candidate.number)
    move = ledger.move
    stage: Reason
    if ledger.promoting or may_promote(service, ledger):
        stage, stable = Reason.PROMOTING, None if ledger.promoting else ledger.stable
    elif move is not None and move.waits is not None:
        status: ConditionStatus = "False" if move.waits[0] in GATEWAY_TROUBLES else "True"
        return status, *move.waits
    elif move is not None and move.weight > 0:
        stable_number = ledger.stable.number if ledger.stable else None
        message = messages.stepping(candidate.number, move.weight, stable_number, ready, move.size)
        return "True", Reason.STEPPING, message
    else:
        stage, stable = diagnosis.stage, ledger.stable
        wanted = move.size if move is not None else wanted
    traffic = stable.number if stable is not None and stable is not candidate else None
    return "True", stage, messages.stage(candidate.number, stage.lower(), ready, wanted, traffic)


# What a user or an administrator must change; the rest only takes its time.
GATEWAY_TROUBLES = frozenset({Reason.HOSTNAME_TAKEN, Reason.ROUTE_NOT_ACCEPTED})


def _record_pending(service: ObservedService, ledger: Ledger) -> str:
    """With recreate also how long nothing will answer, before it begins."""
    if ledger.stable is None or strategy(service) != "recreate":
        return messages.record_pending()
    known = ledger.diagnoses[ledger.stable.number].timings.model_dump(exclude_none=True)
    return f"{messages.record_pending()} {messages.stepping_down(sum(known.values()) or None)}"


def _failure(ledger: Ledger) -> Outcome | None:
    """Why what is wanted does not serve, once that is settled."""
    record = ledger.wanted_record
    if record is None or record is ledger.stable or record.outcome is None or record.outcome.result == "Promoted":
        return None
    return None if record.outcome.reason == Reason.SUPERSEDED else record.outcome


def _promoted(service: ObservedService, ledger: Ledger) -> Told:
    stable = ledger.stable.number if ledger.stable else None
    if ledger.candidate is not None:
        before = None if ledger.promoting else stable
        return "Unknown", Reason.ROLLOUT_IN_PROGRESS, messages.rollout_in_progress(ledger.candidate.number, before)
    failure, record = _failure(ledger), ledger.wanted_record
    if failure is not None and record is not None:
        if failure.result == "Rejected":
            return "False", Reason.REJECTED, messages.rejected(record.number, failure.message, stable)
        retry_at = record.retry_at()
        return "False", Reason.ABORTED, messages.aborted(record.number, failure.message, stable, retry_at)
    if stable is not None and (ledger.wanted is None or record is ledger.stable):
        outcome = ledger.stable.outcome if ledger.stable else None
        if outcome is not None and outcome.result == "Promoted":
            return "True", outcome.reason, outcome.message
        return "True", Reason.PROMOTED, messages.promoted(stable)
    if ledger.wanted is None:
        return "Unknown", Reason.WAITING_FOR_SOURCE, messages.waiting_for_source()
    if service.spec is not None and service.spec.server.replicas == 0:
        return "Unknown", Reason.SCALED_TO_ZERO, messages.scaled_to_zero()
    return "Unknown", Reason.ROLLOUT_IN_PROGRESS, messages.record_pending()


def _ready(service: ObservedService, ledger: Ledger, settings: Settings) -> Told:
    """Verified pods that requests really reach. Pods of the revision before count until the endpoints have followed."""
    assert service.spec is not None
    if service.spec.server.replicas == 0:
        return "False", Reason.SCALED_TO_ZERO, messages.scaled_to_zero()
    if service.selected is None:
        return "False", Reason.NO_VERIFIED_REVISION, messages.no_verified_revision()
    trouble = route_trouble(service)
    if trouble is not None and (trouble[0] in GATEWAY_TROUBLES or not (service.route and service.route.accepted)):
        return "False", *trouble
    serving = service.endpoints & {pod.uid for pod in service.pods if pod.ready_since is not None}
    if serving:
        return "True", Reason.SERVING, messages.serving(_urls(service, settings)[0])
    if ledger.promoting and ledger.previous is None:
        return "False", Reason.ENDPOINTS_PENDING, messages.endpoints_pending(service.selected)
    return "False", Reason.NO_READY_ENDPOINT, messages.no_ready_endpoint(_why_stable_lacks(ledger))


def _degraded(service: ObservedService, ledger: Ledger) -> Told:
    assert service.spec is not None
    if ledger.stable is None or service.spec.server.replicas == 0:
        return "Unknown", Reason.NOT_SERVING, messages.not_serving()
    ready, wanted = len(ledger.diagnoses[ledger.stable.number].verified), service.spec.server.replicas
    if ready < wanted:
        return "True", Reason.FEWER_READY, messages.fewer_ready(ready, wanted, _why_stable_lacks(ledger))
    whole = seen(service.pods_of(ledger.stable.number), STEP)
    failed = judge(service.spec.gates.online, whole, whole, Seen(), Seen(), ledger.stable.created).failed
    if failed is not None:
        return "True", Reason.ONLINE_GATE_FAILED, messages.stable_fails(ledger.stable.number, failed)
    return "False", Reason.AS_WANTED, messages.as_wanted(wanted)


def _why_stable_lacks(ledger: Ledger) -> str:
    diagnosis = ledger.diagnoses.get(ledger.stable.number) if ledger.stable else None
    return diagnosis.trouble.message if diagnosis and diagnosis.trouble else messages.waiting_for_pods()


# The rest of the status


def _phase(service: ObservedService, ledger: Ledger, told: dict[ServiceCondition, Told], now: datetime) -> Any:
    assert service.spec is not None
    if service.spec.server.replicas == 0:
        return "ScaledToZero"
    if service.selected is None:
        if ledger.candidate is not None:
            return "Preparing"
        return "Failed" if told[ServiceCondition.PROMOTED][0] == "False" else "Waiting"
    if told[ServiceCondition.READY][1] == Reason.ENDPOINTS_PENDING:
        return "Preparing"
    if told[ServiceCondition.READY][0] == "False" or told[ServiceCondition.DEGRADED][0] == "True":
        return "Degraded"
    if ledger.falling_back or _leaving_record(service, ledger, now) is not None:
        return "RollingBack"
    return "Serving" if ledger.candidate is None else "RollingOut"


def _message(ledger: Ledger, told: dict[ServiceCondition, Told]) -> str:
    """The one sentence that matters most: what is wrong, else what is going on, else where to ask."""
    if told[ServiceCondition.PROMOTED][0] == "False":
        return told[ServiceCondition.PROMOTED][2]
    if told[ServiceCondition.PROGRESSING][1] == Reason.WAITING_FOR_SOURCE:
        return told[ServiceCondition.SOURCE_AVAILABLE][2]
    if told[ServiceCondition.PROGRESSING][1] != Reason.ROLLOUT_COMPLETE:
        return told[ServiceCondition.PROGRESSING][2]
    if told[ServiceCondition.DEGRADED][0] == "True":
        return told[ServiceCondition.DEGRADED][2]
    if ledger.source.waiting is not None:
        return ledger.source.message
    return told[ServiceCondition.READY][2]


def _replicas(service: ObservedService, ledger: Ledger) -> ReplicaCounts:
    assert service.spec is not None
    desired = service.spec.server.replicas
    ready = len(ledger.diagnoses[ledger.stable.number].verified) if ledger.stable else 0
    return ReplicaCounts(desired=desired, ready=ready, summary=f"{ready}/{desired}")


def _stable(record: Record, candidate: CandidateRevision | None) -> StableRevision:
    data = record.data
    beside = candidate is not None and candidate.revision != record.number
    return StableRevision(
        revision=record.number,
        digest=data.inputs.digest,
        short_digest=short_digest(data.inputs.digest),
        weight=100 - candidate.weight if candidate is not None and beside else 100,
        job=data.job,
        variant=data.inputs.variant,
        backend=None if data.inputs.backend == "auto" else data.inputs.backend,  # auto is decided in the pod
        timings=record.outcome.timings if record.outcome is not None else None,
        summary=f"r{record.number}",
    )


def _candidate(service: ObservedService, ledger: Ledger, record: Record) -> CandidateRevision:
    diagnosis, move = ledger.diagnoses[record.number], ledger.move
    if ledger.promoting or may_promote(service, ledger):
        stage: Any = "Promoting"
    elif move is not None and move.weight > 0:
        stage = "Stepping"
    elif record.number not in service.deployments:
        stage = "Preparing"
    else:
        stage = "Verifying" if diagnosis.stage in {Reason.VERIFYING, Reason.EVALUATING} else "Loading"
    return CandidateRevision(
        revision=record.number,
        digest=record.data.inputs.digest,
        weight=100 if ledger.promoting or move is None else move.weight if stage == "Stepping" else 0,
        stage=stage,
        step=move.step if move is not None and stage == "Stepping" else None,
        timings=diagnosis.timings,
    )


def _leaving(service: ObservedService, ledger: Ledger, now: datetime) -> CandidateRevision | None:
    """Once nothing is on its way any more: what is still taken back, or kept under watch."""
    record, stage, weight = _leaving_record(service, ledger, now), "RollingBack", 0
    if record is None and ledger.previous is not None and ledger.stable is not None:
        record, stage, weight = ledger.stable, "RollingBack" if ledger.falling_back else "Cooling", 100
    if record is None:
        return None
    return CandidateRevision.model_validate(
        {"revision": record.number, "digest": record.data.inputs.digest, "weight": weight, "stage": stage}
    )


def _leaving_record(service: ObservedService, ledger: Ledger, now: datetime) -> Record | None:
    """A failed revision that the gateway may still send requests to."""
    newest = service.records[-1] if service.records else None
    if newest is None or newest is ledger.stable or newest.outcome is None or newest.outcome.result == "Promoted":
        return None
    route = service.route
    if route is None or service.deployments.get(newest.number) is None:
        return None
    if service.deployments[newest.number].replicas == 0:
        return None
    moving = route.split is not None and now < route.split.since + timedelta(seconds=SETTLE_SECONDS)
    return newest if moving or route.weights.get(newest.number, 0) > 0 else None


def _traffic(service: ObservedService, ledger: Ledger) -> Traffic | None:
    """What the verifiers of stable last said; None where none did."""
    if ledger.stable is None:
        return None
    verdicts = [pod.verdict for pod in service.pods_of(ledger.stable.number) if pod.verdict is not None]
    slowest = max((one.p99_milliseconds for one in verdicts if one.p99_milliseconds is not None), default=None)
    counts = seen(service.pods_of(ledger.stable.number), STEP)
    if not counts.requests:
        return None
    return Traffic(
        p99=f"{slowest:.1f}ms" if slowest is not None else None,
        errors=f"{counts.errors / counts.requests:.2%}",
    )


def _selector(service: ObservedService) -> str:
    assert service.selected is not None
    return ",".join(f"{label}={value}" for label, value in build.selector(service.name, service.selected).items())


def _rollout(service: ObservedService, ledger: Ledger, now: datetime) -> str:
    """The ROLLOUT column."""
    assert service.spec is not None
    if service.spec.server.replicas == 0:
        return "-"
    if ledger.candidate is not None:
        return _candidate_text(service, ledger, ledger.candidate, now)
    failure, record = _failure(ledger), ledger.wanted_record
    if failure is not None and record is not None:
        return f"r{record.number} {failure.result.lower()}: {failure.gate or failure.reason}"
    if ledger.wanted is None and ledger.source.job is not None and ledger.source.waiting is not None:
        return f"waiting bmj/{ledger.source.job} {ledger.source.waiting}"
    kept_until = ledger.kept_until(rollback_window_seconds(service))
    if ledger.previous is not None and kept_until is not None:
        return f"r{ledger.previous.number} kept {_duration(kept_until - now)}"
    return "-"


def _candidate_text(service: ObservedService, ledger: Ledger, candidate: Record, now: datetime) -> str:
    assert service.spec is not None
    diagnosis, name = ledger.diagnoses[candidate.number], f"r{candidate.number}"
    if ledger.promoting or may_promote(service, ledger):
        return f"{name} promoting"
    if diagnosis.trouble is not None:
        return f"{name} {diagnosis.trouble.reason}"
    move = ledger.move
    if waits_for_slot(service, ledger):
        return f"{name} queued"
    if move is not None and move.weight > 0:
        steps = service.spec.rollout.steps
        place = f" ({steps.index(move.weight) + 1}/{len(steps)})" if move.weight in steps else ""
        paused = " paused" if move.waits is not None and move.waits[0] is Reason.PAUSED else ""
        return f"{name} {move.weight}%{place}{paused}"
    if move is not None and move.waits is not None:
        return f"{name} paused" if move.waits[0] is Reason.PAUSED else f"{name} {move.waits[0]}"
    if diagnosis.stage is Reason.PREPARING:
        return f"{name} inspect"
    since = f" {_duration(now - diagnosis.since)}" if diagnosis.since else ""
    return f"{name} {diagnosis.stage.lower()}{since}"


def _duration(time: timedelta) -> str:
    """Coarse on purpose: 40s, 4m."""
    seconds = max(0, int(time.total_seconds()))
    return f"{seconds // TEXT_STEP_SECONDS * TEXT_STEP_SECONDS}s" if seconds < 60 else f"{seconds // 60}m"


def _gates(service: ObservedService, ledger: Ledger) -> list[GateResult]:
    """Verdicts on the candidate; without one, how the last that is wanted stood when it ended."""
    if ledger.candidate is None:
        ended = ledger.wanted_record.outcome if ledger.wanted_record else None
        return ended.gates if ended else []
    return list(ledger.results(service))


def _history(records: tuple[Record, ...]) -> list[RevisionResult]:
    """The last outcomes, newest first."""
    ended = [(record.outcome.at, record.number, record, record.outcome) for record in records if record.outcome]
    return [
        RevisionResult(
            revision=number,
            digest=record.data.inputs.digest,
            result=outcome.result,
            gate=outcome.gate,
            message=outcome.message,
            at=at,
        )
        for at, number, record, outcome in sorted(ended, key=lambda entry: entry[:2], reverse=True)[:HISTORY]
    ]
