"""Which pods to ask, how often, and about which windows. Pure.

Only what is on its way or cooling is asked often. A candidate with a share is asked every half second: a bad one must
lose it within ten of its users' requests. Its answers start a pass only when a bad one is among them, else every 5 s.
"""

from datetime import datetime, timedelta

from bigmodel.api.verdict import REPLAY_LIMIT
from bigmodel.controller.service.observe import ObservedService
from bigmodel.controller.service.online import GOLDEN_REQUESTS
from bigmodel.controller.service.stepping import SETTLE_SECONDS, rollback_window_seconds
from bigmodel.controller.service.verdicts import Asked, Target

SHARE_SECONDS = 0.5  # a candidate with a share
BESIDE_SECONDS = 5.0  # stable beside it, and a new stable while the one before is warm
LOADING_SECONDS = 2.0
IDLE_SECONDS = 300.0
REPLAY_SPARE = 1.25  # of the golden requests that a step needs: some are slow


def targets(service: ObservedService) -> tuple[Target, ...]:
    records = {record.number: record for record in service.records}
    ready = all(pod.ready_since is not None for pod in service.pods)
    rolling = any(record.open for record in service.records) or not ready
    return tuple(
        Target(
            uid=pod.uid,
            ip=pod.ip,
            service=service.name,
            revision=pod.revision,
            digest=records[pod.revision].data.inputs.digest,
            ready=pod.ready_since is not None,
            asked=_asked(service, pod.revision, rolling),
        )
        for pod in service.pods
        if pod.ip is not None and pod.revision in records
    )


def _asked(service: ObservedService, revision: int, rolling: bool) -> Asked:
    split = service.route.split if service.route is not None else None
    slow = service.spec.gates.online.p99_milliseconds if service.spec is not None else None
    if service.spec is None:
        return Asked(IDLE_SECONDS)
    if split is not None and split.candidate is not None and revision in (split.stable, split.candidate):
        # A step's shares are compared once the gateway has followed; what reaches the candidate is its own from the
        # first request on.
        since = (split.since + timedelta(seconds=SETTLE_SECONDS), split.began)
        if revision == split.stable:
            return Asked(BESIDE_SECONDS, since, slow)
        pods = max(1, len(service.pods_of(revision)))
        replay = REPLAY_SPARE * GOLDEN_REQUESTS / service.spec.rollout.interval_seconds / pods
        return Asked(SHARE_SECONDS, since, slow, min(REPLAY_LIMIT, round(replay, 2)))
    promoted = _promoted_at(service, revision)
    if promoted is not None:
        return Asked(LOADING_SECONDS if rolling else BESIDE_SECONDS, (promoted,), slow)
    return Asked(LOADING_SECONDS if rolling else IDLE_SECONDS, (), slow)


def _promoted_at(service: ObservedService, revision: int) -> datetime | None:
    """When stable was promoted, while what was before it is warm."""
    record = service.record(revision)
    if record is None or record.outcome is None or revision != service.selected:
        return None
    warm = any(pod.revision != revision for pod in service.pods)
    at = record.outcome.at + timedelta(seconds=SETTLE_SECONDS)
    return at if warm and rollback_window_seconds(service) else None
