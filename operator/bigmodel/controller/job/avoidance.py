"""Nodes that failed a job: its next pods take them last, for an hour. Pure."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from bigmodel.api.job import AvoidedNode, JobIncident
from bigmodel.controller.conditions import whole_seconds
from bigmodel.controller.job.failure import Cause, Fault, Loss

KEPT = 8
HOUR = timedelta(hours=1)
OF_THE_NODE = frozenset({Cause.NODE_LOST, Cause.NOT_REAPED, Cause.REJECTED_BY_NODE})
OF_THE_PROGRAM = frozenset({Cause.POD_FAILED, Cause.OUT_OF_MEMORY})


def after_losses(
    before: Sequence[AvoidedNode], lost: Sequence[Loss], incidents: Sequence[JobIncident], now: datetime
) -> list[AvoidedNode]:
    """`incidents`: those before these losses."""
    failed = {loss.node for loss in lost if loss.node is not None and _blames_its_node(loss, incidents, now)}
    others = [node for node in still_avoided(before, now) if node.name not in failed]
    until = whole_seconds(now + HOUR)
    return [*others, *(AvoidedNode(name=name, until=until) for name in sorted(failed))][-KEPT:]


def still_avoided(nodes: Sequence[AvoidedNode], now: datetime) -> list[AvoidedNode]:
    return [node for node in nodes if now < node.until]


def _blames_its_node(loss: Loss, incidents: Sequence[JobIncident], now: datetime) -> bool:
    """A program that fails twice in a row on one node may have a device to blame; a first time it has itself."""
    if loss.fault is not Fault.PROGRAM:
        return loss.cause in OF_THE_NODE
    recent = [incident for incident in incidents if incident.cause in OF_THE_PROGRAM and now - incident.at < HOUR]
    return bool(recent) and recent[-1].node == loss.node
