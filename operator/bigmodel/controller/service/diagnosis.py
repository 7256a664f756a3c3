"""What the pods of one revision say: how far they are, and what is wrong with them. Pure.

A trouble either ends the attempt (the model or the image is at fault: Rejected; the surroundings are, for too long:
Aborted) or only holds it up, because it heals by itself once its cause is gone.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from bigmodel.api.service import Timings
from bigmodel.api.serving import load_failure
from bigmodel.api.verdict import Verdict, VerdictStage
from bigmodel.controller.service import messages
from bigmodel.controller.service.messages import Reason
from bigmodel.controller.service.observe import ObservedContainer, ObservedDeployment, ObservedPod
from bigmodel.controller.service.revision import Record

CRASHES_TOLERATED = 2  # a third end is a loop
VERDICT_GRACE_SECONDS = 5  # how long a Ready pod's verdict is waited for: the verdict only adds the numbers
IMAGE_WAITS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
CONFIG_WAITS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
REJECTING_FETCHES = frozenset({Reason.DIGEST_MISMATCH, Reason.ARTIFACT_NOT_FOUND, Reason.INVALID_CONFIG})
GATES: dict[str, str] = {  # the word for the rollout column; every other reason stands for itself
    Reason.PARITY_FAILED: "parity",
    Reason.VERIFICATION_FAILED: "verification",
    Reason.GOLDEN_REQUEST_FAILED: "golden request",
    Reason.DIGEST_MISMATCH: "digest",
    Reason.MODEL_LOAD_FAILED: "load",
    Reason.WARMUP_FAILED: "warm-up",
    Reason.INCOMPATIBLE_SIGNATURE: "contract",
    Reason.ACCURACY_FAILED: "accuracy",
    Reason.EVALUATION_FAILED: "evaluation",
    Reason.CHANGE_FAILED: "change",
}

StageReason = Literal[
    Reason.PREPARING,
    Reason.SCHEDULING,
    Reason.PULLING,
    Reason.FETCHING,
    Reason.LOADING,
    Reason.VERIFYING,
    Reason.EVALUATING,
]
ORDER: tuple[StageReason, ...] = (
    Reason.SCHEDULING,
    Reason.PULLING,
    Reason.FETCHING,
    Reason.LOADING,
    Reason.VERIFYING,
)


@dataclass(frozen=True)
class Trouble:
    """`reason` is of the enum, or the verifier's own CamelCase word."""

    reason: str
    message: str
    ends: Literal["Rejected", "Aborted"] | None = None

    @property
    def gate(self) -> str:
        return GATES.get(self.reason, self.reason)


@dataclass(frozen=True)
class Verification:
    """What verified pods found: the numbers of the worst of them, none where no verdict arrived in time."""

    message: str
    reason: Reason
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Diagnosis:
    """One revision's pods. `verified`: UIDs of those whose model stood its test; `stage`: the slowest pod's."""

    verified: frozenset[str]
    stage: StageReason
    since: datetime | None  # of that stage
    trouble: Trouble | None
    verification: Verification | None
    timings: Timings


def diagnose(
    record: Record,
    pods: tuple[ObservedPod, ...],
    deployment: ObservedDeployment | None,
    namespace: str,
    now: datetime,
) -> Diagnosis:
    verified = tuple(pod for pod in pods if is_verified(pod, now))
    unverified = tuple(pod for pod in pods if pod not in verified)
    slowest = min(unverified, key=lambda pod: ORDER.index(stage_of(pod)[0]), default=None)
    stage, since = stage_of(slowest) if slowest else (Reason.SCHEDULING if not pods else Reason.VERIFYING, None)
    return Diagnosis(
        verified=frozenset(pod.uid for pod in verified),
        stage=stage,
        since=since,
        trouble=_trouble(record, unverified, deployment, namespace, now),
        verification=_verification(verified),
        timings=timings(pods[0]) if pods else Timings(),
    )


def is_verified(pod: ObservedPod, now: datetime) -> bool:
    """Ready is the verifier's own readiness probe. A verdict that says otherwise is newer than the kubelet's report."""
    if pod.ready_since is None:
        return False
    if pod.verdict is not None:
        if pod.verdict.stage is VerdictStage.VERIFIED:
            return True
        if pod.verdict.stage is VerdictStage.FAILED:
            return False
    return now - pod.ready_since >= timedelta(seconds=VERDICT_GRACE_SECONDS)


def stage_of(pod: ObservedPod) -> tuple[StageReason, datetime | None]:
    """How far a pod is, and since when where that is known."""
    if pod.bound_at is None:
        return Reason.SCHEDULING, pod.created
    if not pod.fetch.done:
        if pod.fetch.running or pod.fetch.ended is not None:
            return Reason.FETCHING, pod.fetch.started
        return Reason.PULLING, pod.bound_at
    if not pod.server.running and pod.server.ended is None:
        return Reason.PULLING, pod.bound_at
    if pod.verdict is None or pod.verdict.stage is VerdictStage.LOADING:
        return Reason.LOADING, pod.server.started
    return Reason.VERIFYING, None


def timings(pod: ObservedPod) -> Timings:
    """Where a pod's start-up time went, in whole seconds; what is not known is left out."""
    measured = pod.verdict.timings if pod.verdict else None
    fetched = pod.fetched.download_seconds if pod.fetched else None
    download = measured.download_seconds if measured and measured.download_seconds is not None else fetched
    return Timings(
        schedule_seconds=_seconds(pod.created, pod.bound_at),
        pull_seconds=_seconds(pod.bound_at, pod.fetch.started),
        download_seconds=_whole(download),
        load_seconds=_whole(measured.load_seconds) if measured else None,
        warmup_seconds=_whole(measured.warmup_seconds) if measured else None,
    )


def _seconds(begin: datetime | None, end: datetime | None) -> int | None:
    return None if begin is None or end is None else max(0, int((end - begin).total_seconds()))


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def _verification(verified: tuple[ObservedPod, ...]) -> Verification | None:
    if not verified:
        return None
    verdicts = [pod.verdict for pod in verified if pod.verdict is not None and pod.verdict.parity is not None]
    worst = max(verdicts, key=lambda verdict: verdict.parity.worst if verdict.parity else 0.0, default=None)
    if worst is None or worst.parity is None:
        return Verification(messages.verified_without_details(), Reason.GOLDEN_MATCHED)
    parity = worst.parity
    if parity.compared != "values":
        return Verification(messages.no_golden(parity.samples), Reason.NO_GOLDEN, worst)
    return Verification(
        messages.golden_matched(parity.samples, parity.worst, parity.compared), Reason.GOLDEN_MATCHED, worst
    )


def _trouble(
    record: Record,
    pods: tuple[ObservedPod, ...],
    deployment: ObservedDeployment | None,
    namespace: str,
    now: datetime,
) -> Trouble | None:
    """The first that ends the attempt, else the first that holds it up: a fault is not hidden by a neighbour's wait."""
    found = [trouble for pod in pods if (trouble := _of_pod(record, pod, namespace))]
    if deployment is not None and deployment.refused is not None:
        found.append(_refused(deployment.refused))
    ending = next((trouble for trouble in found if trouble.ends), None)
    return ending or _late(record, pods, now, found) or next(iter(found), None)


def _refused(text: str) -> Trouble:
    if "exceeded quota" in text:
        return Trouble(Reason.QUOTA_EXCEEDED, messages.quota_exceeded(text))
    return Trouble(Reason.PODS_REFUSED, messages.pods_refused(text))


def _late(record: Record, pods: Iterable[ObservedPod], now: datetime, found: list[Trouble]) -> Trouble | None:
    """A pod past its start-up deadline. Not its model's fault as far as is known, so it is tried again later."""
    seconds = record.data.inputs.startup_deadline_seconds
    for pod in pods:
        if pod.started is not None and now - pod.started >= timedelta(seconds=seconds):
            doing = found[0].message if found else stage_of(pod)[0].lower()
            return Trouble(
                Reason.STARTUP_DEADLINE_EXCEEDED,
                messages.startup_deadline_exceeded(pod.name, seconds, doing),
                "Aborted",
            )
    return None


def _of_pod(record: Record, pod: ObservedPod, namespace: str) -> Trouble | None:
    """The rules in the order a pod lives through them; the first that speaks is the cause of what follows."""
    rules: tuple[Callable[[], Trouble | None], ...] = (
        lambda: unplaced(record, pod.name, pod.unschedulable),
        lambda: not_started(record, pod.name, (pod.fetch, pod.server, pod.verifier), namespace),
        lambda: _not_fetched(pod),
        lambda: _not_verified(pod),
        lambda: _server_ended(record, pod),
        lambda: _verifier_ended(pod),
    )
    return next((trouble for rule in rules if (trouble := rule())), None)


def unplaced(record: Record, pod: str, text: str | None) -> Trouble | None:
    """`text`: the scheduler's, None where it has not refused."""
    if text is None:
        return None
    limits = record.data.inputs.resources.limits or {}
    missing = next((name for name in limits if f"Insufficient {name}" in text and is_gpu(name)), None)
    if missing:
        return Trouble(Reason.INSUFFICIENT_GPU, messages.insufficient_gpu(pod, f"{limits[missing]} {missing}", text))
    return Trouble(Reason.UNSCHEDULABLE, messages.unschedulable(pod, text))


def is_gpu(resource: str) -> bool:
    """nvidia.com/gpu, amd.com/gpu, nvidia.com/mig-1g.5gb …"""
    return "/" in resource and (resource.endswith("/gpu") or "/mig-" in resource)


def not_started(record: Record, pod: str, containers: Iterable[ObservedContainer], namespace: str) -> Trouble | None:
    for container in containers:
        if container.waiting in IMAGE_WAITS:
            message = messages.image_pull_failed(
                pod, container.name, container.image, container.waiting_message or container.waiting or ""
            )
            return Trouble(Reason.IMAGE_PULL_FAILED, message)
        if container.waiting in CONFIG_WAITS:
            secret = record.data.inputs.store.s3.secret_name if record.data.inputs.store.s3 else None
            if secret and _names_missing_secret(container.waiting_message, secret):
                return Trouble(Reason.STORE_SECRET_MISSING, messages.store_secret_missing(secret, namespace))
            message = messages.container_config_error(pod, container.name, container.waiting_message)
            return Trouble(Reason.CONTAINER_CONFIG_ERROR, message)
    return None


def _names_missing_secret(text: str, secret: str) -> bool:
    """The kubelet's `secret "s3-login" not found`, and its older form without quotes."""
    return re.search(rf'secret "?{re.escape(secret)}"? not found', text) is not None


def _not_fetched(pod: ObservedPod) -> Trouble | None:
    ended = pod.fetch.ended
    if pod.fetch.done or ended is None or ended.exit_code == 0:
        return None
    if pod.fetched is not None and pod.fetched.reason in messages.FETCH_ADVICE:
        reason = Reason(pod.fetched.reason)
        ends: Literal["Rejected"] | None = "Rejected" if reason in REJECTING_FETCHES else None
        return Trouble(reason, messages.fetch_failed(pod.name, reason, pod.fetched.message), ends)
    text = pod.fetched.message if pod.fetched else f"{ended.reason} (exit code {ended.exit_code}) {ended.message}"
    return Trouble(Reason.FETCH_FAILED, messages.fetch_failed(pod.name, Reason.FETCH_FAILED, text))


def _not_verified(pod: ObservedPod) -> Trouble | None:
    verdict = pod.verdict
    if verdict is None or verdict.stage is not VerdictStage.FAILED:
        return None
    reason = verdict.reason or ""
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]{0,62}", reason):
        reason = Reason.VERIFICATION_FAILED  # it becomes the reason of a condition, which must be one word
    # A model that does not answer is restarted by its verifier first; one that answers wrongly stays wrong.
    restarts = reason == Reason.GOLDEN_REQUEST_FAILED and pod.server.restarts <= CRASHES_TOLERATED
    message = messages.verification_failed(pod.name, verdict.message)
    return Trouble(reason, message, None if restarts else "Rejected")


def _server_ended(record: Record, pod: ObservedPod) -> Trouble | None:
    ended = pod.server.ended
    if ended is None:
        return None
    failure = load_failure(ended.message)
    if failure is not None:  # a model that does not load will not load the next time either
        if failure.reason == Reason.WARMUP_FAILED:
            return Trouble(Reason.WARMUP_FAILED, messages.warmup_failed(pod.name, failure.message), "Rejected")
        if "Stub process" in failure.message:  # the kernel kills the python backend's child, not Triton
            message = messages.model_process_died(pod.name, failure.message, _memory_limit(record))
            return Trouble(Reason.MODEL_LOAD_FAILED, message, "Rejected")
        return Trouble(Reason.MODEL_LOAD_FAILED, messages.model_load_failed(pod.name, failure.message), "Rejected")
    if pod.server.restarts <= CRASHES_TOLERATED:
        return None
    if ended.reason == "OOMKilled":
        message = messages.out_of_memory(pod.name, "server", _memory_limit(record))
        return Trouble(Reason.OUT_OF_MEMORY, message, "Rejected")
    message = messages.crash_loop(pod.name, "server", pod.server.restarts, ended.exit_code, ended.message)
    return Trouble(Reason.SERVER_CRASH_LOOP, message, "Rejected")


def _memory_limit(record: Record) -> str | None:
    limit = (record.data.inputs.resources.limits or {}).get("memory")
    return None if limit is None else str(limit)


def _verifier_ended(pod: ObservedPod) -> Trouble | None:
    ended = pod.verifier.ended
    if ended is None or pod.verifier.restarts <= CRASHES_TOLERATED:
        return None
    message = messages.crash_loop(pod.name, "verifier", pod.verifier.restarts, ended.exit_code, ended.message)
    return Trouble(Reason.VERIFIER_CRASH_LOOP, message)
