"""What a pod's end means, what it costs, and whether the job may go on. Pure.

Rank failures that the launcher could heal in place never come here: their coordinator spends maxRestarts by itself, and
says so in its last word when the budget is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from bigmodel.api.job import FailurePolicy, JobIncident, Restarts
from bigmodel.api.progress import LastWord
from bigmodel.controller.job import messages
from bigmodel.controller.job.gang import Gang
from bigmodel.controller.job.messages import Reason
from bigmodel.controller.job.observe import ObservedPod

# Words of the launcher's last word. The gang is over, by the coordinator's decision:
GANG_ENDED = {
    "MaxRestartsExceeded": Reason.MAX_RESTARTS_EXCEEDED,
    "MaxHangRestartsExceeded": Reason.MAX_HANG_RESTARTS_EXCEEDED,
    "CrashLoop": Reason.CRASH_LOOP,
    "FailJob": Reason.NON_RETRYABLE_EXIT_CODE,
    "UnequalNodes": Reason.UNEQUAL_NODES,
    "NoArtifact": Reason.ARTIFACT_MISSING,
}
# It left by no fault of the program: told to stop, replaced, with ranks that the kernel would not let go, or because it
# did not find the others any more.
LEFT = ("Terminated", "Fenced", "NotReaped", "CoordinatorLost", "MembersLost")

CRASHES_IN_A_ROW = 3
# A command tells no steps: a gang that ran for so long counts as one that made some.
PROVEN_SECONDS = 60
SIGNALS = 128  # exit codes above are 128 + the signal
LOG_LINES = 20
LOG_CHARACTERS = 2048
_UNSEEN = datetime.min.replace(tzinfo=UTC)
# Pauses before a successor: none for the first few losses of ten minutes, then doubling.
RECENT = timedelta(minutes=10)
FREE_LOSSES = 3
LONGEST_PAUSE_SECONDS = 60


class Fault(StrEnum):
    """Whose budget pays."""

    PROGRAM = "program"
    INFRASTRUCTURE = "infrastructure"


class Cause(StrEnum):
    """Why a pod was lost, as incidents say it."""

    POD_FAILED = "PodFailed"  # the container ended by itself, and no launcher could heal it
    OUT_OF_MEMORY = "OOMKilled"
    NODE_LOST = "NodeLost"
    PREEMPTED = "Preempted"
    EVICTED = "Evicted"
    DELETED = "Deleted"
    VANISHED = "Vanished"
    NOT_REAPED = "NotReaped"
    LEFT_ALONE = "LeftAlone"
    REJECTED_BY_NODE = "RejectedByNode"
    # Of a whole attempt
    NEVER_STARTED = "NeverStarted"
    NOT_PLACED = "NotPlaced"
    RESIZED = "Resized"
    QUOTA_TAKEN = "QuotaTaken"  # by Kueue


@dataclass(frozen=True)
class Loss:
    """One index without a living pod."""

    index: int
    cause: Cause
    fault: Fault
    message: str
    node: str | None = None
    exit_code: int | None = None
    at: datetime | None = None  # when its end began; None: nobody saw it
    log: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why the job cannot go on."""

    reason: Reason
    message: str


_DISRUPTIONS = {
    "PreemptionByScheduler": (Cause.PREEMPTED, "was preempted by work of higher priority"),
    "DeletionByTaintManager": (Cause.NODE_LOST, "was evicted from its node by a taint"),
    "DeletionByPodGC": (Cause.NODE_LOST, "lost its node"),
    "EvictionByEvictionAPI": (Cause.EVICTED, "was evicted, by a drain for example"),
    "TerminationByKubelet": (Cause.EVICTED, "was ended by its node, which ran short of something or shut down"),
}


def losses(gang: Gang, now: datetime) -> tuple[Loss, ...]:
    """Every index of the current attempt whose pod is lost, in order."""
    lost = [loss for pod in gang.pods if (loss := _loss(pod, gang.memory_limit, now)) is not None]
    gone = [
        Loss(index, Cause.VANISHED, Fault.INFRASTRUCTURE, messages.pod_lost([f"of index {index}"], "is gone"))
        for index in gang.vanished
    ]
    return tuple(sorted([*lost, *gone], key=lambda loss: loss.index))


def _loss(pod: ObservedPod, memory_limit: str | None, now: datetime) -> Loss | None:
    if pod.succeeded:
        return None
    if pod.terminal:
        return _failed(pod, memory_limit)
    if pod.unreachable:
        return _infrastructure(pod, Cause.NODE_LOST, "is on a node that is not Ready")
    if pod.deleted_until is not None and now >= pod.deleted_until:
        return _infrastructure(pod, _disruption(pod)[0], "was deleted and did not end in its grace period")
    return None  # one that is being deleted still saves its checkpoint


def _failed(pod: ObservedPod, memory_limit: str | None) -> Loss:
    """The cause, in the order of trust: our own word, the kubelet's, the control plane's, the exit code."""
    word = pod.last_word
    if word is not None:
        if word.reason not in LEFT:
            return _program(pod, Cause.POD_FAILED, _said(pod, word))
        if word.reason == "NotReaped":
            return _infrastructure(pod, Cause.NOT_REAPED, "could not end its processes; its node is suspect")
        if word.reason in ("CoordinatorLost", "MembersLost"):
            return _infrastructure(pod, Cause.LEFT_ALONE, "did not find the other pods of its gang any more")
        cause, how = _disruption(pod)
        return _infrastructure(pod, cause, how)
    if pod.ended is not None and pod.ended.reason == "OOMKilled":
        return _program(pod, Cause.OUT_OF_MEMORY, messages.out_of_memory(pod.name, pod.node, memory_limit))
    if pod.told_to_stop_at is not None:
        cause, how = _disruption(pod)
        return _infrastructure(pod, cause, how)
    if pod.ended is None:  # the kubelet never ran it, or threw it out: OutOfcpu, Evicted, UnexpectedAdmissionError
        text = f"was refused by its node: {pod.reason or 'no reason'} {pod.message or ''}".strip()
        cause = Cause.EVICTED if pod.reason == "Evicted" else Cause.REJECTED_BY_NODE
        return _infrastructure(pod, cause, text)
    text = messages.pod_failed(pod.name, pod.node, pod.ended.exit_code, pod.ended.message)
    return _program(pod, Cause.POD_FAILED, text)


def _said(pod: ObservedPod, word: LastWord) -> str:
    return messages.pod_failed(pod.name, pod.node, word.exit_code, word.message or "")


def _disruption(pod: ObservedPod) -> tuple[Cause, str]:
    if pod.disrupted is not None:
        return _DISRUPTIONS.get(pod.disrupted, (Cause.EVICTED, f"was disrupted ({pod.disrupted})"))
    return Cause.DELETED, "was deleted"


def _infrastructure(pod: ObservedPod, cause: Cause, how: str) -> Loss:
    where = f" on node {pod.node}" if pod.node else ""
    message = messages.pod_lost([f"{pod.name}{where}"], how)
    return Loss(pod.index, cause, Fault.INFRASTRUCTURE, message, pod.node, _exit_code(pod), pod.told_to_stop_at)


def _program(pod: ObservedPod, cause: Cause, message: str) -> Loss:
    at = pod.ended.at if pod.ended is not None else None
    return Loss(pod.index, cause, Fault.PROGRAM, message, pod.node, _exit_code(pod), at, _log(pod))


def _log(pod: ObservedPod) -> str | None:
    """The end of its log, which the kubelet keeps where a program leaves no message of its own."""
    if pod.last_word is not None or pod.ended is None:
        return None
    return messages.last_lines("\n".join(pod.ended.message.strip().splitlines()[-LOG_LINES:]), LOG_CHARACTERS) or None


def _exit_code(pod: ObservedPod) -> int | None:
    if pod.last_word is not None:
        return pod.last_word.exit_code
    return pod.ended.exit_code if pod.ended is not None else None


def gang_ended(gang: Gang) -> Failure | None:
    """The coordinator gave up, and told every launcher: one that lived to write it down is enough."""
    for pod in gang.pods:
        word = pod.last_word
        if word is None or word.exit_code == 0 or word.reason not in GANG_ENDED:
            continue
        reason = GANG_ENDED[word.reason]
        culprit = gang.current.get(word.error.index) if word.error is not None else None
        if reason is Reason.ARTIFACT_MISSING:
            return Failure(reason, messages.artifact_missing(word.message or "rank 0 named none"))
        text = word.message or (word.error.message if word.error is not None else str(word.reason))
        return Failure(
            reason,
            messages.gang_ended(text, word.error, culprit.name if culprit else None, culprit.node if culprit else None),
        )
    return None


def worst(lost: Sequence[Loss]) -> Loss:
    """What a loss of several is paid by: a fault of the program explains the others, which only died of it."""
    return min(lost, key=lambda loss: (loss.fault is not Fault.PROGRAM, loss.index))


def first(lost: Sequence[Loss], gang: Gang) -> Loss:
    """What a loss of a gang without launchers is paid by: the first end, for the others die of it.

    A pod that was told to stop began to end then, also while it still has its grace. Times are whole seconds: of two
    in one, a signal explains an exit code.
    """
    leaving = [
        _infrastructure(pod, *_disruption(pod))
        for pod in gang.pods
        if pod.told_to_stop_at is not None and not pod.terminal
    ]

    def when(loss: Loss) -> tuple[datetime, bool, bool, int]:
        by_itself = loss.fault is Fault.PROGRAM
        return loss.at or _UNSEEN, by_itself, (loss.exit_code or 0) <= SIGNALS, loss.index

    return min([*lost, *leaving], key=when)


def spent(loss: Loss, restarts: Restarts, incidents: Sequence[JobIncident], policy: FailurePolicy) -> Failure | None:
    """Why this loss ends the job; None while something is left of its budget."""
    if loss.fault is Fault.INFRASTRUCTURE:
        limit = policy.max_infrastructure_restarts
        if restarts.infrastructure < limit:
            return None
        text = messages.budget_spent(loss.message, restarts.infrastructure, limit, "maxInfrastructureRestarts")
        return Failure(Reason.MAX_INFRASTRUCTURE_RESTARTS_EXCEEDED, text)
    rule, action = _rule(loss, policy)
    if action == "FailJob":
        return Failure(Reason.NON_RETRYABLE_EXIT_CODE, messages.rule_ends_job(loss.message, rule))
    if action == "RestartAndIgnore":
        return None
    if restarts.program >= policy.max_restarts:
        text = messages.budget_spent(loss.message, restarts.program, policy.max_restarts, "maxRestarts")
        return Failure(Reason.MAX_RESTARTS_EXCEEDED, text)
    if _is_crash_loop(loss, incidents):
        return Failure(Reason.CRASH_LOOP, messages.crash_loop(loss.message, CRASHES_IN_A_ROW))
    return None


def paid(loss: Loss, restarts: Restarts, policy: FailurePolicy) -> Restarts:
    """The counters after this loss."""
    if loss.fault is Fault.PROGRAM and _rule(loss, policy)[1] == "RestartAndIgnore":
        return restarts
    update = {loss.fault.value: getattr(restarts, loss.fault.value) + 1}
    return total(restarts.model_copy(update=update))


def total(restarts: Restarts) -> Restarts:
    return restarts.model_copy(update={"total": restarts.program + restarts.infrastructure + restarts.hang})


def _rule(loss: Loss, policy: FailurePolicy) -> tuple[int, str]:
    """First match wins; a rule without onExitCodes matches every failure."""
    for number, rule in enumerate(policy.rules):
        if rule.on_exit_codes is None or loss.exit_code in rule.on_exit_codes:
            return number, rule.action
    return -1, "Restart"


def _is_crash_loop(loss: Loss, incidents: Sequence[JobIncident]) -> bool:
    """The same end each time, and no step in between: an incident that was recovered from has its recoverySeconds."""
    before = incidents[-(CRASHES_IN_A_ROW - 1) :]
    return len(before) == CRASHES_IN_A_ROW - 1 and all(
        (incident.cause, incident.exit_code, incident.recovery_seconds) == (loss.cause, loss.exit_code, None)
        for incident in before
    )


def pause_until(incidents: Sequence[JobIncident]) -> datetime | None:
    """When the next pods may be made. Only what cost a pod counts: ranks that are healed in place need none."""
    ends = [incident.at for incident in incidents if incident.cause in _OF_PODS]
    if not ends:
        return None
    newest = max(ends)
    recent = sum(newest - at <= RECENT for at in ends)
    seconds = min(LONGEST_PAUSE_SECONDS, 2 ** max(0, recent - FREE_LOSSES) - 1)
    return newest + timedelta(seconds=seconds)


_OF_PODS = frozenset(Cause) - {Cause.RESIZED, Cause.QUOTA_TAKEN}
