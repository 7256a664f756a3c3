"""What a candidate's share should be now, how many pods it needs for the next, and what ends it. Pure.

The weight is the route's, never a memory: it goes up one step at a time, after the step's time and on evidence that is
newer than the step, and to zero at once.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from bigmodel.api.service import GateResult, StepState
from bigmodel.controller.service import messages
from bigmodel.controller.service.diagnosis import Diagnosis
from bigmodel.controller.service.messages import Reason
from bigmodel.controller.service.observe import ObservedService
from bigmodel.controller.service.online import EXPECTED_REQUESTS, STEP, WHOLE, Judgement, Seen, judge, seen
from bigmodel.controller.service.revision import Record

# From a written weight to traffic that follows it: Traefik takes 2 s by default, 0.3 s as the docs set it (tried).
SETTLE_SECONDS = 3


@dataclass(frozen=True)
class Ending:
    """Why an attempt ends here."""

    result: Literal["Rejected", "Aborted"]
    reason: str
    message: str
    gate: str


@dataclass(frozen=True)
class Move:
    """What to do with a candidate now. `size`: pods it should have; `weight`: its share in percent."""

    weight: int
    size: int
    promote: bool = False
    ends: Ending | None = None
    waits: tuple[Reason, str] | None = None  # on somebody: a user, a gateway, traffic
    step: StepState | None = None
    results: tuple[GateResult, ...] = ()
    synthetic: bool = False  # golden requests decided

    def dark(self) -> "Move":
        """The same pods, and no traffic yet."""
        return Move(0, self.size)


def strategy(service: ObservedService) -> Literal["canary", "blueGreen", "recreate"]:
    """The one that is followed: without a route that splits traffic, or a cluster that knows routes, no canary."""
    assert service.spec is not None
    asked = service.spec.rollout.strategy or "canary"
    if asked == "canary" and not (service.spec.route is not None and service.route_served):
        return "blueGreen"
    return asked


def rollback_window_seconds(service: ObservedService) -> int:
    """How long the revision before stays warm: with a route at least until the gateway has followed."""
    assert service.spec is not None
    window = service.spec.rollout.rollback_window_seconds
    return max(window, SETTLE_SECONDS) if service.route is not None else window


def size_for(replicas: int, weight: int) -> int:
    """Pods so that each gets no more load than one of stable's."""
    return max(1, math.ceil(replicas * weight / 100))


def next_move(
    service: ObservedService, stable: Record | None, candidate: Record, diagnosis: Diagnosis, now: datetime
) -> Move:
    assert service.spec is not None
    replicas, rollout = service.spec.server.replicas, service.spec.rollout
    verified = len(diagnosis.verified)
    approved = candidate.attempt.approved
    paused = rollout.paused and not approved
    if replicas == 0:
        return Move(0, 0)
    if service.selected is None:  # nothing gives way: one pod is better than none
        return _all_at_once(service, candidate, replicas, enough=verified >= 1, paused=paused)
    if strategy(service) == "recreate" and paused:
        return Move(0, 0, waits=(Reason.PAUSED, messages.paused(candidate.number)))
    if approved or candidate.attempt.back or strategy(service) != "canary":
        return _all_at_once(service, candidate, replicas, enough=verified >= replicas, paused=paused)
    return _canary(service, stable, candidate, verified, paused, now)


def _all_at_once(service: ObservedService, candidate: Record, replicas: int, enough: bool, paused: bool) -> Move:
    weight = service.route.share(candidate.number) if service.route else 0
    if not enough:
        return Move(weight, replicas)
    if paused:
        return Move(weight, replicas, waits=(Reason.PAUSED, messages.paused(candidate.number)))
    held = route_trouble(service)
    if held is not None and service.selected is not None:
        return Move(weight, replicas, waits=held)
    return Move(100, replicas, promote=True)


def _canary(
    service: ObservedService, stable: Record | None, candidate: Record, verified: int, paused: bool, now: datetime
) -> Move:
    assert service.spec is not None
    replicas, steps = service.spec.server.replicas, service.spec.rollout.steps
    share = service.route.share(candidate.number) if service.route else 0
    weight = max((step for step in steps if step <= share), default=0)
    split = service.route.split if service.route else None
    since = split.since if split is not None and split.weight == weight else now
    if weight == 0 or verified == 0:  # no pod left: its share would be refused
        if split is not None and split.candidate == candidate.number:  # it had a share before
            judgement, _, _ = _judged(service, stable, candidate, since)
            if judgement.failed is not None:
                return Move(0, 1, ends=_gate_failed(candidate, stable, judgement.failed), results=judgement.results)
        return _first_step(service, candidate, verified, paused)
    index = steps.index(weight)
    step = StepState(index=index, weight=weight, started_at=since)
    judgement, seen_step, stable_step = _judged(service, stable, candidate, since)
    # Never smaller than it is: a pod made for the next share that has not spoken yet must not be taken back for that.
    present = service.deployments[candidate.number].replicas if candidate.number in service.deployments else 0

    def stay(waits: tuple[Reason, str] | None = None, ends: Ending | None = None, size: int = 0) -> Move:
        return Move(
            weight,
            max(size, size_for(replicas, weight), min(present, replicas)),
            ends=ends,
            waits=waits,
            step=step,
            results=judgement.results,
        )

    if judgement.failed is not None:
        return stay(ends=_gate_failed(candidate, stable, judgement.failed))
    if _not_effective(seen_step, stable_step, weight):
        message = messages.route_not_effective(candidate.number, weight, stable_step.requests)
        return stay(ends=Ending("Aborted", Reason.ROUTE_NOT_EFFECTIVE, message, "route"))
    if paused:
        return stay((Reason.PAUSED, messages.held_at(candidate.number, weight)))
    if (held := route_trouble(service)) is not None:
        return stay(held)
    overdue = _overdue(service, candidate, now) and service.spec.rollout.on_deadline == "promote"
    following = 100 if overdue or index + 1 == len(steps) else steps[index + 1]
    if now < since + timedelta(seconds=SETTLE_SECONDS + service.spec.rollout.interval_seconds) and not overdue:
        return stay()
    lacks = None if overdue else _lacking(service, candidate, judgement, seen_step, following)
    if lacks is not None:
        return stay(lacks)
    size = size_for(replicas, following)
    if verified < size:
        return stay(size=size)
    synthetic = judgement.synthetic and not judgement.passed
    return Move(following, size, following == 100, step=step, results=judgement.results, synthetic=synthetic)


def _first_step(service: ObservedService, candidate: Record, verified: int, paused: bool) -> Move:
    assert service.spec is not None
    first = next(iter(service.spec.rollout.steps), 100)
    size = size_for(service.spec.server.replicas, first)
    if verified < size:
        return Move(0, size)
    if paused:
        return Move(0, size, waits=(Reason.PAUSED, messages.paused(candidate.number)))
    if (held := route_trouble(service)) is not None:
        return Move(0, size, waits=held)
    return Move(first, size, promote=first == 100)


def _judged(
    service: ObservedService, stable: Record | None, candidate: Record, since: datetime
) -> tuple[Judgement, Seen, Seen]:
    assert service.spec is not None
    pods = service.pods_of(candidate.number)
    beside = service.pods_of(stable.number) if stable is not None else ()
    step, stable_step = seen(pods, STEP), seen(beside, STEP)
    judgement = judge(service.spec.gates.online, step, seen(pods, WHOLE), stable_step, seen(beside, WHOLE), since)
    return judgement, step, stable_step


def _not_effective(step: Seen, stable_step: Seen, weight: int) -> bool:
    """Users reach stable and none the candidate, though by its weight many should."""
    if not step.complete or step.requests:
        return False
    return stable_step.requests * weight / (100 - weight) >= EXPECTED_REQUESTS


def _lacking(
    service: ObservedService, candidate: Record, judgement: Judgement, step: Seen, following: int
) -> tuple[Reason, str] | None:
    """What is missing before the next step, once this one's time is over; None: nothing."""
    assert service.spec is not None
    if not step.complete:
        return Reason.NO_DATA, messages.no_data(candidate.number)
    if judgement.quiet:
        if service.spec.rollout.on_quiet == "hold":
            return Reason.QUIET, messages.quiet(candidate.number)
        return (
            None if judgement.synthetic else (Reason.QUIET, messages.synthetic_pending(candidate.number, step.golden))
        )
    if following == 100 and not judgement.passed:
        undecided = next(result for result in judgement.results if result.verdict != "Pass")
        return Reason.GATE_UNDECIDED, messages.undecided(candidate.number, undecided)
    if step.requests == 0 and not judgement.synthetic:
        return Reason.GATE_UNDECIDED, messages.no_request_yet(candidate.number)
    return None


def _gate_failed(candidate: Record, stable: Record | None, failed: GateResult) -> Ending:
    stable_number = stable.number if stable is not None else None
    message = messages.gate_failed(candidate.number, failed, ONLINE_FIELDS[failed.name], stable_number)
    return Ending("Rejected", Reason.ONLINE_GATE_FAILED, message, failed.name)


ONLINE_FIELDS = {
    "errors": "maxErrorRatio",
    "golden requests": "maxErrorRatio",
    "p99": "p99Milliseconds",
}


def _overdue(service: ObservedService, candidate: Record, now: datetime) -> bool:
    assert service.spec is not None
    return now >= candidate.attempt.since + timedelta(seconds=service.spec.rollout.deadline_seconds)


def route_trouble(service: ObservedService) -> tuple[Reason, str] | None:
    """Why traffic can't be moved by the route; None where there is none, or all is well."""
    assert service.spec is not None
    if service.spec.route is None or not service.route_served:
        return None
    if service.surroundings.rival is not None:
        return Reason.HOSTNAME_TAKEN, messages.hostname_taken(service.surroundings.rival)
    if service.route is None:
        return None  # it is made in this pass
    if service.route.refusal is not None:
        refusal = service.route.refusal
        return Reason.ROUTE_NOT_ACCEPTED, messages.route_not_accepted(service.name, refusal.reason, refusal.message)
    if not service.route.taken_up:
        return Reason.ROUTE_PENDING, messages.route_pending(service.name)
    return None


def cooling_failure(service: ObservedService, stable: Record) -> Ending | None:
    """The new stable by absolute limits, while the one before is still warm."""
    assert service.spec is not None
    assert stable.outcome is not None
    whole = seen(service.pods_of(stable.number), STEP)
    judgement = judge(service.spec.gates.online, whole, whole, Seen(), Seen(), stable.outcome.at)
    return _gate_failed(stable, None, judgement.failed) if judgement.failed is not None else None
