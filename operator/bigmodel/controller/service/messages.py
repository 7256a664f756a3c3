"""Every reason a service's condition or event may carry, and its sentence: what happened, to what, what to do.

Pure. A text that comes from outside (a scheduler, a store, Triton, a verifier) is quoted, cut and never interpreted.
"""

from datetime import datetime
from enum import StrEnum

from bigmodel.api.service import GateResult

MESSAGE_CHARACTERS = 1024


class Reason(StrEnum):
    # Accepted
    ACCEPTED = "Accepted"
    ROUTE_NOT_SERVED = "RouteNotServed"
    INVALID_SPEC = "InvalidSpec"
    NOT_SERVED = "NotServed"
    # SourceAvailable
    ARTIFACT_AVAILABLE = "ArtifactAvailable"
    JOB_NOT_FOUND = "JobNotFound"
    JOB_NOT_FINISHED = "JobNotFinished"
    JOB_FAILED = "JobFailed"
    ARTIFACT_MISSING = "ArtifactMissing"
    VARIANT_NOT_FOUND = "VariantNotFound"
    STORE_NOT_SET = "StoreNotSet"
    METRIC_NOT_FOUND = "MetricNotFound"
    # Progressing, in the order a candidate meets them
    WAITING_FOR_SOURCE = "WaitingForSource"
    PREPARING = "Preparing"
    SCHEDULING = "Scheduling"
    PULLING = "Pulling"
    FETCHING = "Fetching"
    LOADING = "Loading"
    VERIFYING = "Verifying"
    EVALUATING = "Evaluating"
    PAUSED = "Paused"
    STEPPING = "Stepping"
    PROMOTING = "Promoting"
    COOLING = "Cooling"
    ROLLING_BACK = "RollingBack"
    ROLLOUT_COMPLETE = "RolloutComplete"
    SCALED_TO_ZERO = "ScaledToZero"
    # What holds a candidate up and heals by itself once its cause is gone
    UNSCHEDULABLE = "Unschedulable"
    INSUFFICIENT_GPU = "InsufficientGPU"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PODS_REFUSED = "PodsRefused"
    CHILD_REJECTED = "ChildRejected"
    NAME_TAKEN = "NameTaken"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    STORE_SECRET_MISSING = "StoreSecretMissing"  # noqa: S105
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"
    STORE_UNREACHABLE = "StoreUnreachable"
    STORE_FORBIDDEN = "StoreForbidden"
    FETCH_FAILED = "FetchFailed"
    VOLUME_FAILED = "VolumeFailed"
    ERRAND_FAILED = "ErrandFailed"
    INVALID_EVALUATION_DATA = "InvalidEvaluationData"
    VERIFIER_CRASH_LOOP = "VerifierCrashLoop"
    ROLLOUTS_QUEUED = "RolloutsQueued"
    HOSTNAME_TAKEN = "HostnameTaken"
    ROUTE_NOT_ACCEPTED = "RouteNotAccepted"
    ROUTE_PENDING = "RoutePending"
    QUIET = "Quiet"
    NO_DATA = "NoData"
    GATE_UNDECIDED = "GateUndecided"
    PIN_NOT_FOUND = "PinNotFound"
    STARTUP_DEADLINE_EXCEEDED = "StartupDeadlineExceeded"
    ROLLOUT_DEADLINE_EXCEEDED = "RolloutDeadlineExceeded"
    # What rejects a candidate for good
    INCOMPATIBLE_SIGNATURE = "IncompatibleSignature"
    ACCURACY_FAILED = "AccuracyFailed"
    EVALUATION_FAILED = "EvaluationFailed"
    CHANGE_FAILED = "ChangeFailed"
    DIGEST_MISMATCH = "DigestMismatch"
    ARTIFACT_NOT_FOUND = "ArtifactNotFound"
    INVALID_CONFIG = "InvalidConfig"
    MODEL_LOAD_FAILED = "ModelLoadFailed"
    WARMUP_FAILED = "WarmupFailed"
    OUT_OF_MEMORY = "OutOfMemory"
    SERVER_CRASH_LOOP = "ServerCrashLoop"
    PARITY_FAILED = "ParityFailed"
    GOLDEN_REQUEST_FAILED = "GoldenRequestFailed"
    VERIFICATION_FAILED = "VerificationFailed"
    ONLINE_GATE_FAILED = "OnlineGateFailed"
    # What ends a candidate that may not be at fault
    ROUTE_NOT_EFFECTIVE = "RouteNotEffective"
    ABORTED_BY_USER = "AbortedByUser"
    # ModelVerified
    GOLDEN_MATCHED = "GoldenMatched"
    NO_GOLDEN = "NoGolden"
    NOT_YET_VERIFIED = "NotYetVerified"
    # Promoted
    ROLLOUT_IN_PROGRESS = "RolloutInProgress"
    PROMOTED = "Promoted"
    ON_SYNTHETIC_TRAFFIC = "OnSyntheticTraffic"
    REJECTED = "Rejected"
    ABORTED = "Aborted"
    SUPERSEDED = "Superseded"
    # Ready and Degraded
    SERVING = "Serving"
    NO_VERIFIED_REVISION = "NoVerifiedRevision"
    ENDPOINTS_PENDING = "EndpointsPending"
    NO_READY_ENDPOINT = "NoReadyEndpoint"
    AS_WANTED = "AsWanted"
    NOT_SERVING = "NotServing"
    FEWER_READY = "FewerReady"


def cut(text: str, limit: int = MESSAGE_CHARACTERS) -> str:
    """The text in one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def quote(text: str, limit: int = 600) -> str:
    """Foreign text inside a sentence: shorter, so that our own advice after it is never what gets cut."""
    return cut(text, limit).rstrip(".")


def _name(revision: int) -> str:
    return f"r{revision}"


# Accepted


def accepted() -> str:
    return "Every field is valid."


def invalid_spec(problems: list[str]) -> str:
    return cut("; ".join(problems) + ". Change the field and apply again.")


def route_not_served() -> str:
    return (
        "Every field is valid, but this cluster has no Gateway API, so spec.route has no effect: a candidate is "
        "verified dark and takes all traffic at once. Install the Gateway API and a controller, or remove the field."
    )


# SourceAvailable


def artifact_available(digest: str, variant: str, job: str | None) -> str:
    where = f"bmj/{job} published" if job else "spec.model.artifact names"
    return f"{where} {digest[:19]}, variant {variant}."


def job_not_found(job: str, serves: bool) -> str:
    if serves:
        return cut(
            f"bmj/{job} does not exist any more; what it published goes on serving. A job made anew under this "
            "name becomes the next candidate."
        )
    return cut(f"bmj/{job} does not exist in this namespace: apply it, or change spec.model.fromJob.name.")


def no_job_selected(labels: str, serves: bool) -> str:
    if serves:
        return cut(
            f"No bmj in this namespace has the labels {labels} any more; what they published goes on serving. A job "
            "that comes with them becomes the next candidate."
        )
    return cut(
        f"No bmj in this namespace has the labels {labels}: apply one, or change "
        "spec.model.fromJobs.selector.matchLabels."
    )


def metric_not_found(metric: str, labels: str) -> str:
    return cut(
        f"None of the jobs with the labels {labels} that published has a metric {metric} measured on known validation "
        "data: name one of status.artifact.metrics in spec.model.fromJobs.best.metric."
    )


def held_back(job: str, digest: str, at: datetime) -> str:
    return (
        f"bmj/{job} published {digest[:19]}; its rollout begins at {at:%H:%M:%S} UTC "
        "(spec.model.fromJobs.minIntervalSeconds)."
    )


def best_is_current(job: str, metric: str, value: float, best_other: float) -> str:
    return cut(
        f"bmj/{job} stays, with {metric} {value:.6g}: the best of the others on the same validation data has "
        f"{best_other:.6g}, not better by more than spec.model.fromJobs.best.minImprovement."
    )


def not_comparable(job: str, metric: str) -> str:
    return cut(
        f"bmj/{job} stays: it has no {metric} on known validation data to compare others with. Name one of "
        "status.artifact.metrics in spec.model.fromJobs.best.metric."
    )


def job_not_finished(job: str, how_far: str) -> str:
    return cut(f"bmj/{job} has not published a model yet ({how_far}). Nothing to do: serving begins by itself.")


def job_failed(job: str, message: str) -> str:
    return cut(
        f"bmj/{job} failed: {quote(message)}. Delete it and apply a corrected one under this name, or follow "
        "another in spec.model.fromJob.name."
    )


def artifact_missing(job: str) -> str:
    return cut(
        f"bmj/{job} is complete but published no artefact: a recipe always publishes one, a script where it calls "
        "for it, a command never. Follow another job in spec.model.fromJob.name, or publish in the script."
    )


def variant_not_found(variant: str, offered: tuple[str, ...]) -> str:
    return cut(
        f"spec.model.variant is {variant!r}, which the artefact does not have; it has {', '.join(offered)}. Name "
        "one of them, or leave the field out."
    )


def store_not_set() -> str:
    return "No store is known for the artefact: set spec.model.artifact.store, or the chart's store."


# Progressing and what holds it up


def waiting_for_source() -> str:
    return "No model to roll out yet: see the condition SourceAvailable."


def stage(revision: int, what: str, ready: int, wanted: int, stable: int | None) -> str:
    traffic = f"{_name(stable)} keeps all traffic" if stable else "no traffic yet"
    return f"{_name(revision)} is {what}: {ready} of {wanted} pods verified; {traffic}."


def paused(revision: int) -> str:
    return f"{_name(revision)} is verified and waits: spec.rollout.paused is true. Set it to false to promote."


def held_at(revision: int, weight: int) -> str:
    return (
        f"{_name(revision)} stays at {weight} % of the traffic: spec.rollout.paused is true. Set it to false to go on; "
        "a failing gate still rolls back."
    )


def stepping(revision: int, weight: int, stable: int | None, ready: int, wanted: int) -> str:
    kept = f"{_name(stable)} has the rest" if stable else "nothing has the rest"
    return f"{_name(revision)} has {weight} % of the traffic with {ready} of {wanted} pods verified; {kept}."


def cooling(revision: int, previous: int) -> str:
    return (
        f"{_name(revision)} serves all traffic; {_name(previous)} is kept warm, and gets it back if a gate of "
        "spec.gates.online fails."
    )


def rolling_back(revision: int, stable: int | None) -> str:
    kept = f"{_name(stable)} has all traffic" if stable else "nothing serves"
    return f"{_name(revision)} gets no more requests and finishes those it has; {kept}."


def stepping_down(seconds: int | None) -> str:
    known = f"about {seconds} s" if seconds is not None else "as long as a start of the pods"
    return f"spec.rollout.strategy is recreate: nothing answers for {known}."


def rollouts_queued(revision: int) -> str:
    return (
        f"{_name(revision)} waits for its turn: as many rollouts as the chart's rollout.maxConcurrent allows are under "
        "way in this cluster. Nothing to do; stable serves on."
    )


def hostname_taken(rival: str) -> str:
    return cut(
        f"The older bms/{rival} has a route with the same host name on the same Gateway, so this one's traffic is not "
        "moved. Change spec.route.hostnames of one of the two."
    )


def route_not_accepted(route: str, reason: str, text: str) -> str:
    return cut(
        f"The gateway refuses HTTPRoute {route}: {reason}: {quote(text)}. Nothing is moved until it accepts: check "
        "spec.route and the Gateway's listeners and allowedRoutes."
    )


def route_pending(route: str) -> str:
    return (
        f"No gateway has taken up HTTPRoute {route} as it is now. If this lasts, check that spec.route.parentRefs "
        "names a Gateway that a controller runs."
    )


def no_data(revision: int) -> str:
    return (
        f"Not every pod of {_name(revision)} says what it saw, so it gets no further share. If this lasts, check that "
        f"the operator reaches port 8271 of the pods."
    )


def quiet(revision: int) -> str:
    return (
        f"{_name(revision)} waits for users' requests: hardly any arrive, and spec.rollout.onQuiet is hold. Send some, "
        f"or promote it: kubectl annotate bms … bigmodel.io/promote={revision}"
    )


def synthetic_pending(revision: int, golden: int) -> str:
    return (
        f"Hardly any request of a user arrives, so golden requests decide on {_name(revision)}: {golden} of 200 so far."
    )


def no_request_yet(revision: int) -> str:
    return f"No request has reached {_name(revision)} at this share yet; it goes on when some have."


def undecided(revision: int, gate: GateResult) -> str:
    return cut(
        f"{_name(revision)} waits for certainty: {gate.name} are {gate.value}, {gate.limit} (spec.gates.online). "
        "Nothing to do: it goes on with the requests to come, spec.rollout.onDeadline says what happens without."
    )


def pin_not_found(revision: int) -> str:
    return (
        f"spec.rollout.pin names revision {revision}, which has no record any more (20 are kept), so nothing is "
        "changed. Name one of status.history, or remove the pin."
    )


def pinned(revision: int) -> str:
    return f"{_name(revision)} serves and is pinned: newer models are held until spec.rollout.pin is removed."


def rollout_complete(revision: int) -> str:
    return f"{_name(revision)} serves; nothing else is wanted."


def scaled_to_zero() -> str:
    return "spec.server.replicas is 0: no pods, no answers, no rollout. Scale up to serve."


def unschedulable(pod: str, text: str) -> str:
    return cut(
        f"Pod {pod} fits on no node: {quote(text)}. Lower spec.server.resources, change nodeSelector or "
        "tolerations, or add nodes; it is placed by itself once it fits."
    )


def insufficient_gpu(pod: str, wanted: str, text: str) -> str:
    return cut(
        f"Pod {pod} wants {wanted} and no node has that many free: {quote(text)}. Free some, add a node, or lower "
        "spec.server.resources.limits; it is placed by itself once it fits."
    )


def quota_exceeded(text: str) -> str:
    return cut(
        f"The namespace's quota refuses the pods: {quote(text)}. Raise the quota or lower spec.server; tried again "
        "by itself."
    )


def pods_refused(text: str) -> str:
    return cut(
        f"The API server refuses the pods: {quote(text)}. Change spec.server to what the cluster allows; tried "
        "again by itself."
    )


def child_rejected(kind: str, name: str, text: str) -> str:
    return cut(
        f"The API server refuses {kind} {name}: {quote(text)}. Change the spec or the cluster's rule; tried again "
        "by itself."
    )


def name_taken(kind: str, name: str) -> str:
    return cut(
        f"{kind} {name} exists and belongs to somebody else, so it is left alone. Delete or rename it, or give the "
        "service another name."
    )


def image_pull_failed(pod: str, container: str, image: str, text: str) -> str:
    return cut(
        f"Pod {pod} can't pull {image} for container {container}: {quote(text)}. Check the image's name, the "
        "registry, and spec.server.imagePullSecrets; the kubelet tries again by itself."
    )


def store_secret_missing(secret: str, namespace: str) -> str:
    return cut(
        f"The store's login is missing: Secret {secret} does not exist in {namespace}. Make it: kubectl create "
        f"secret generic {secret} -n {namespace} --from-literal=AWS_ACCESS_KEY_ID=… "
        "--from-literal=AWS_SECRET_ACCESS_KEY=…; the pods start by themselves then."
    )


def container_config_error(pod: str, container: str, text: str) -> str:
    return cut(
        f"Pod {pod} can't start container {container}: {quote(text)}. Make what it names; tried again by itself."
    )


FETCH_ADVICE: dict[Reason, str] = {
    Reason.DIGEST_MISMATCH: "The store holds other bytes than were published: train again, or restore the artefact.",
    Reason.ARTIFACT_NOT_FOUND: "The store lost the artefact or another one was meant: check the bucket and its prefix.",
    Reason.INVALID_CONFIG: "It can't be served so: change spec.batching or spec.server.backend, or train again.",
    Reason.STORE_UNREACHABLE: "Check the store's endpoint and the network; tried again by itself.",
    Reason.STORE_FORBIDDEN: "Check the keys in the store's Secret and its rights; tried again by itself.",
    Reason.VOLUME_FAILED: "Check the node's disk and the volume; tried again by itself.",
    Reason.FETCH_FAILED: "See kubectl logs -c fetch; tried again by itself.",
}


def fetch_failed(pod: str, reason: Reason, text: str) -> str:
    return cut(f"Pod {pod} could not fetch the artefact: {quote(text)}. {FETCH_ADVICE[reason]}")


def model_load_failed(pod: str, text: str) -> str:
    return cut(
        f"Triton in pod {pod} could not load the model: {quote(text)}. Train again, or change spec.server or "
        "spec.batching: this revision is not tried again."
    )


def model_process_died(pod: str, text: str, limit: str | None) -> str:
    bound = f"the limit is {limit}" if limit else "no limit is set, so look at the node's"
    return cut(
        f"The model's own process in pod {pod} died while it loaded: {quote(text)}. Mostly that is memory ({bound}): "
        "raise spec.server.resources.limits.memory; else see kubectl logs -c server --previous."
    )


def warmup_failed(pod: str, text: str) -> str:
    return cut(
        f"The model in pod {pod} loaded but failed its warm-up request: {quote(text)}. Train again, or change "
        "spec.batching: this revision is not tried again."
    )


def out_of_memory(pod: str, container: str, limit: str | None) -> str:
    bound = f"its limit of {limit}" if limit else "the node's memory"
    return cut(
        f"Container {container} of pod {pod} was killed because it outgrew {bound}. Raise "
        "spec.server.resources.limits.memory, or lower spec.batching.instances."
    )


def crash_loop(pod: str, container: str, restarts: int, exit_code: int, text: str) -> str:
    last = f" Its last words: {quote(text)}." if text.strip() else ""
    return cut(
        f"Container {container} of pod {pod} ended {restarts} times, the last time with exit code "
        f"{exit_code}.{last} See kubectl logs --previous; change spec.server, or train again."
    )


def verification_failed(pod: str, text: str) -> str:
    return cut(
        f"The model in pod {pod} loaded but failed verification: {quote(text)}. Train again, or loosen "
        "spec.gates.parity if the difference is acceptable."
    )


def startup_deadline_exceeded(pod: str, seconds: int, doing: str) -> str:
    return cut(
        f"Pod {pod} was not verified within spec.server.startupDeadlineSeconds ({seconds} s) of its start; it was "
        f"{doing}. Raise the deadline if the model only needs longer."
    )


def rollout_deadline_exceeded(seconds: int, doing: str) -> str:
    return cut(f"Not verified within spec.rollout.deadlineSeconds ({seconds} s): {doing}")


def evaluation_failed(revision: int, gate: str, found: str, limit: str) -> str:
    return cut(
        f"{_name(revision)} beside what serves: {quote(found)}; the limit is {limit} (spec.gates.{gate}). "
        f"Train a better one, or change the limit and try it again: {_retry(revision)}."
    )


def invalid_evaluation_data(pod: str, text: str) -> str:
    return cut(
        f"Pod {pod} could not use the evaluation data: {quote(text)}. Correct the file, or change "
        "spec.gates.evaluation.data.uri; tried again by itself."
    )


def _retry(revision: int) -> str:
    return f"kubectl annotate bms … bigmodel.io/retry={revision}"


def errand_held_up(pod: str, task: str, text: str) -> str:
    return cut(
        f"Pod {pod} could not {task} yet: {text or 'it gave no reason'}. Tried again by itself; see kubectl logs {pod}."
    )


def errand_failed(pod: str, task: str, text: str) -> str:
    return cut(
        f"Pod {pod} could not {task} in time: {text or 'it gave no reason'}. Check the store, its Secret and the "
        "network; tried again by itself."
    )


def incompatible_signature(revision: int, stable: str, text: str) -> str:
    return cut(
        f"{_name(revision)} does not take every request that {stable} takes: {quote(text)} (spec.gates.contract). "
        "Train a model with the same inputs and outputs, serve the new ones by another BigModelService, or set "
        f"contract: ignore once no client needs the old ones, and try it again: {_retry(revision)}."
    )


def accuracy_failed(revision: int, found: str, limit: str, field: str) -> str:
    return cut(
        f"{_name(revision)} was published with {quote(found)}, the limit is {limit} (spec.gates.accuracy, {field}). "
        f"Train a better one, or change the limit and try it again: {_retry(revision)}."
    )


# Outcomes


def superseded(revision: int) -> str:
    return f"The spec or the model changed while {_name(revision)} was on its way: the newer one goes instead."


def promoted(revision: int) -> str:
    return f"{_name(revision)} serves all traffic."


def promoted_by_user(revision: int) -> str:
    return f"{_name(revision)} serves all traffic: promoted by the annotation bigmodel.io/promote."


def promoted_on_synthetic_traffic(revision: int) -> str:
    return f"{_name(revision)} serves all traffic: hardly any user asked, so its golden requests decided."


def gate_failed(revision: int, gate: GateResult, field: str, stable: int | None) -> str:
    kept = f"{_name(stable)} serves all traffic" if stable else "the revision before takes over"
    return cut(
        f"{_name(revision)} is rolled back: {gate.name} were {gate.value}, {gate.limit} (spec.gates.online.{field}). "
        f"{kept}; a change of spec.model starts a new rollout."
    )


def route_not_effective(revision: int, weight: int, requests: int) -> str:
    return (
        f"{_name(revision)} was to get {weight} % of the traffic and got none, while {requests} requests reached "
        "stable: the gateway does not follow the route. Check its controller; the rollout is tried again by itself."
    )


def aborted_by_user(revision: int) -> str:
    return (
        f"{_name(revision)} was given up by the annotation bigmodel.io/abort. Try it again with "
        f"bigmodel.io/retry={revision}, or change spec.model."
    )


def rejected(revision: int, text: str, stable: int | None) -> str:
    kept = f"{_name(stable)} keeps all traffic" if stable else "nothing serves"
    return cut(f"{_name(revision)} was rejected and is not tried again by itself; {kept}. {text}")


def aborted(revision: int, text: str, stable: int | None, retry_at: datetime | None) -> str:
    kept = f"{_name(stable)} keeps all traffic" if stable else "nothing serves"
    if retry_at is None:
        return cut(f"{_name(revision)} was given up; {kept}. {text}")
    return cut(f"{_name(revision)} was given up for now and is tried again at {retry_at:%H:%M:%S} UTC; {kept}. {text}")


def rollout_in_progress(revision: int, stable: int | None) -> str:
    kept = f"{_name(stable)} serves until it is verified" if stable else "it serves once it is verified"
    return f"{_name(revision)} is on its way; {kept}."


def record_pending() -> str:
    return "A new revision is being recorded."


# ModelVerified


def golden_matched(samples: int, worst: float, compared: str) -> str:
    return cut(
        f"{samples} golden samples answered alike ({compared}); the largest difference was {worst:.1%} of what is "
        "allowed."
    )


def no_golden(samples: int) -> str:
    return (
        f"{samples} inputs were answered with the right shapes and finite numbers; values were not compared, because "
        "the artefact has no golden answers that hold exactly."
    )


def verified_without_details() -> str:
    return "The pod's verifier reports its golden samples answered within tolerance."


def not_yet_verified() -> str:
    return "No pod has answered its golden samples yet."


# Ready and Degraded


def serving(url: str) -> str:
    return f"Verified pods answer at {url}."


def no_verified_revision() -> str:
    return "No revision was verified yet: see the conditions SourceAvailable and Progressing."


def endpoints_pending(revision: int) -> str:
    return f"{_name(revision)} is verified; requests reach it as soon as the cluster has followed the address."


def no_ready_endpoint(why: str) -> str:
    return cut(f"No verified pod stands behind the address. {why}")


def waiting_for_pods() -> str:
    return "Its pods are starting; nothing to do unless this lasts."


def fewer_ready(ready: int, wanted: int, why: str) -> str:
    return cut(f"{ready} of {wanted} pods are verified. {why}")


def as_wanted(ready: int) -> str:
    return f"{ready} pod{'s' if ready != 1 else ''} wanted and verified."


def stable_fails(revision: int, gate: GateResult) -> str:
    return cut(
        f"{_name(revision)} serves, but {gate.name} were {gate.value}, {gate.limit} (spec.gates.online), and there "
        "is no warm revision to go back to. See kubectl logs -c server, or pin an earlier one with spec.rollout.pin."
    )


def not_serving() -> str:
    return "Nothing serves yet."


# Events only


def restored(kind: str, name: str) -> str:
    return f"{kind} {name} was edited by somebody else and is as it was: change the BigModelService instead."
