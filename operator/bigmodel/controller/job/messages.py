"""Every reason a job's condition, incident or event may carry, and the sentences: what happened, to what, what to do.

Pure. A text from outside (a scheduler, a kubelet, the API server, a traceback) is quoted, cut and never interpreted.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from enum import StrEnum

from bigmodel.api.progress import ErrorReport

MESSAGE_CHARACTERS = 1024


class Reason(StrEnum):
    # Accepted
    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    NOT_SERVED = "NotServed"
    STORE_NOT_SET = "StoreNotSet"
    # Admitted
    NOT_YET_CREATED = "NotYetCreated"
    QUEUED = "Queued"
    ADMITTED = "Admitted"
    UNSCHEDULABLE = "Unschedulable"
    CLAIM_MISSING = "VolumeClaimMissing"
    QUOTA_EXCEEDED = "QuotaExceeded"
    CHILD_REJECTED = "ChildRejected"
    NAME_TAKEN = "NameTaken"
    POD_GROUP_NOT_SERVED = "PodGroupNotServed"
    KUEUE_NOT_SERVED = "KueueNotServed"
    QUEUE_MISCONFIGURED = "QueueMisconfigured"
    QUOTA_TAKEN = "QuotaTaken"
    # Running
    PODS_PENDING = "PodsPending"
    PODS_RUNNING = "PodsRunning"
    TRAINING = "Training"
    PUBLISHING = "Publishing"
    RECOVERING = "Recovering"
    WAITING_FOR_QUOTA = "WaitingForQuota"
    JOB_FINISHED = "JobFinished"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    STORE_SECRET_MISSING = "StoreSecretMissing"  # noqa: S105
    SCRIPT_MISSING = "ScriptMissing"
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"
    # Suspended, CheckpointHealthy, Degraded
    NOT_SUSPENDED = "NotSuspended"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    NO_CHECKPOINT_YET = "NoCheckpointYet"
    SAVED = "Saved"
    SAVE_FAILED = "SaveFailed"
    CORRUPT = "Corrupt"
    AS_WANTED = "AsWanted"
    PROGRESS_UNREACHABLE = "ProgressUnreachable"
    # Published
    NOT_YET_PUBLISHED = "NotYetPublished"
    NOT_PUBLISHED = "NotPublished"
    NOTHING_PROMISED = "NothingPromised"
    PUBLISHED = "Published"
    # Complete, Finished
    COMPLETE = "Complete"
    NO_STEP_REPORTED = "NoStepReported"
    # Failed
    ARTIFACT_MISSING = "ArtifactMissing"
    MAX_RESTARTS_EXCEEDED = "MaxRestartsExceeded"
    MAX_HANG_RESTARTS_EXCEEDED = "MaxHangRestartsExceeded"
    MAX_INFRASTRUCTURE_RESTARTS_EXCEEDED = "MaxInfrastructureRestartsExceeded"
    CRASH_LOOP = "CrashLoop"
    NON_RETRYABLE_EXIT_CODE = "NonRetryableExitCode"
    UNEQUAL_NODES = "UnequalNodes"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
    # Events beside those
    GANG_CREATED = "GangCreated"
    RUNNING = "Running"
    CHECKPOINTED = "Checkpointed"
    POD_REPLACED = "PodReplaced"
    RESTARTED = "Restarted"
    ATTEMPT_FAILED = "AttemptFailed"
    RESIZED = "Resized"
    FAILED = "Failed"


# What keeps a container from running and heals by itself once its cause is gone.
POD_TROUBLES = frozenset(
    {
        Reason.IMAGE_PULL_FAILED,
        Reason.STORE_SECRET_MISSING,
        Reason.SCRIPT_MISSING,
        Reason.CONTAINER_CONFIG_ERROR,
    }
)
# What keeps a gang from being created or placed, beside waiting for its turn.
GANG_TROUBLES = frozenset(
    {
        Reason.UNSCHEDULABLE,
        Reason.CLAIM_MISSING,
        Reason.QUOTA_EXCEEDED,
        Reason.CHILD_REJECTED,
        Reason.NAME_TAKEN,
        Reason.POD_GROUP_NOT_SERVED,
        Reason.KUEUE_NOT_SERVED,
        Reason.QUEUE_MISCONFIGURED,
    }
)


def cut(text: str, limit: int = MESSAGE_CHARACTERS) -> str:
    """At most `limit` characters, and visibly cut."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _quoted(text: str, limit: int = 400) -> str:
    """A text from outside, on one line."""
    return cut(" ".join(text.split()), limit)


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds >= 3600 else f"{round(seconds)} s"


# Accepted


def accepted(nodes: int) -> str:
    return f"The spec is valid; a gang of {_pods(nodes)} is made of it."


def invalid_spec(problems: Iterable[str]) -> str:
    return cut(f"{'; '.join(problems)}. Correct the spec; nothing was created for it.")


def store_not_set() -> str:
    return (
        "spec.store is left out and the operator has no default store: the artefact would have no place. Set "
        "spec.store "
        "({s3: {bucket: …, secretName: …}} or {persistentVolumeClaim: {claimName: …}}), or the chart's value store."
    )


# Admitted


def not_yet_created() -> str:
    return "Not known before the first gang is created."


def queued(created: int, size: int) -> str:
    if created < size:
        return f"{created} of {_pods(size)} are created; the rest follows."
    return f"The scheduler looks for {_nodes(size)}; nothing is to be done."


def admitted(size: int, together: bool, place: str | None = None) -> str:
    """`place`: by what means all are within one value of spec.scheduling.topologyKey."""
    how = "at once, as a gang" if together else "one by one: this cluster has no gang scheduling (PodGroup) for them"
    return cut(f"All {_pods(size)} got their nodes {how}{f', {place}' if place else ''}.")


def placed_by_group(key: str) -> str:
    return cut(f"within one {key} (by the PodGroup's topology constraint)")


def placed_by_affinity(key: str) -> str:
    return cut(f"within one {key} (by required pod affinity: this cluster has no topology constraints of PodGroups)")


def unschedulable(text: str) -> str:
    return cut(
        f"The gang does not fit and holds no node: {_quoted(text, 600).rstrip('.')}. It starts by itself once there "
        "is room; ask for less in spec.resources or spec.nodes, or add nodes."
    )


def unschedulable_alone(text: str, release_seconds: int) -> str:
    return cut(
        f"Not all pods fit: {_quoted(text, 600).rstrip('.')}. What was placed is released "
        f"{duration(release_seconds)} after it was created, and tried again; ask for less in spec.resources or "
        "spec.nodes, or add nodes."
    )


def quota_exceeded(text: str) -> str:
    return cut(
        f"A quota of the namespace is used up: {_quoted(text)}. Raise it or delete other work; this is tried again."
    )


def child_rejected(kind: str, name: str, text: str) -> str:
    return cut(
        f"The API server refused {kind} {name}: {_quoted(text, 600)}. Correct spec or policy; this is tried again "
        "with "
        "growing pauses."
    )


def name_taken(kind: str, name: str) -> str:
    return (
        f"A {kind} {name} exists and does not belong to this job; it is never taken over. Delete or rename it; this "
        "is tried "
        "again."
    )


def pod_group_not_served() -> str:
    return (
        "spec.scheduling.gang is podGroup, and this cluster does not serve PodGroup of scheduling.k8s.io/v1beta1. "
        "Switch on "
        "its feature gate GenericWorkload, or use gang: auto."
    )


def joins_queue(queue: str) -> str:
    return cut(f"The job joins Kueue's queue {_quoted(queue)}; the gang starts once Kueue admits it.")


def in_queue(queue: str, workload: str, text: str, active: bool) -> str:
    said = f": {_quoted(text)}" if text else ""
    if not active:
        way_out = f"Workload {workload} is stopped; set its spec.active to true to queue again."
        return cut(f"Held back in Kueue's queue {queue}{said}. {way_out}")
    return cut(f"Waits in Kueue's queue {queue}{said}. The gang starts once Kueue admits Workload {workload}.")


def waiting_for_quota() -> str:
    return "No pod is made before Kueue admits the gang."


def quota_taken(reason: str, text: str) -> str:
    said = f": {_quoted(text)}" if text else ""
    return cut(
        f"Kueue took the quota back ({reason}){said}. The pods save a checkpoint and leave; the job queues again and "
        "goes on from it."
    )


def kueue_not_served(queue: str) -> str:
    return cut(
        f"The label kueue.x-k8s.io/queue-name is {queue}, and this cluster serves no Workload of kueue.x-k8s.io "
        "(v1beta2 or v1beta1) to this operator. Install Kueue and set the chart's value kueue.enabled to true, or take "
        "the label away to start without a queue."
    )


def queue_misconfigured(text: str) -> str:
    return cut(f"{_quoted(text)}. No pod is made before it can be read; this is tried again.")


def admission_contradicts(what: str, name: str, known: str, value: str) -> str:
    return cut(
        f"Kueue's admission wants {what} {name}={value} on the pods, where {known} is set already; it may only add. "
        "Correct the ResourceFlavor, the admission check or the job."
    )


# Running


def pods_pending(waiting: Sequence[int], size: int) -> str:
    return f"{len(waiting)} of {_pods(size)} do not run yet (index {_listed(waiting)}); nothing is to be done."


def pods_running(size: int) -> str:
    return f"All {_pods(size)} run and get ready for the first step."


def training(size: int) -> str:
    return f"Training on {_nodes(size)}."


def publishing() -> str:
    return "Training is done; the model is exported, verified and uploaded."


def recovering(text: str, avoided: Sequence[str] = ()) -> str:
    told = f"Training goes on soon, nothing is to be done: {_quoted(text, 700)}"
    if avoided:
        be = "is" if len(avoided) == 1 else "are"
        told += f". {'Node' if len(avoided) == 1 else 'Nodes'} {_listed(avoided)} {be} taken last for an hour"
    return cut(told)


def waits_for_earlier(pods: Sequence[str]) -> str:
    return cut(f"{leaving(pods)}; the new gang is made once they are gone, so that two never train at once.")


def leaving(pods: Sequence[str]) -> str:
    be = "is" if len(pods) == 1 else "are"
    return cut(
        f"{'Pod' if len(pods) == 1 else 'Pods'} {_listed(pods)} {be} told to stop, and may save a checkpoint first"
    )


def program_runs(size: int) -> str:
    return f"The program runs in {_pods(size)}; a command tells no progress, see its log."


def job_finished() -> str:
    return "The job has finished; its pods are stopped."


def image_pull_failed(pod: str, image: str, text: str) -> str:
    return cut(
        f"Pod {pod} cannot get image {image}: {_quoted(text)}. Correct spec.image, or add a login to "
        "spec.imagePullSecrets."
    )


def store_secret_missing(namespace: str, secret: str) -> str:
    return (
        f"Secret {secret}, the login of the store, is missing in namespace {namespace}. Make it: kubectl create "
        "secret "
        f"generic {secret} -n {namespace} --from-literal=AWS_ACCESS_KEY_ID=… --from-literal=AWS_SECRET_ACCESS_KEY=…"
    )


def script_missing(namespace: str, name: str, entrypoint: str) -> str:
    return cut(
        f"ConfigMap {name}, the script of this job, is missing in namespace {namespace}. Make it: kubectl create "
        f"configmap {name} -n {namespace} --from-file={entrypoint}; the job goes on by itself."
    )


def claim_missing(namespace: str, name: str) -> str:
    return cut(
        f"PersistentVolumeClaim {name} is missing in namespace {namespace}, and no pod can be placed without it. "
        "Create it; the job goes on by itself. Or make a new job with another one in spec.volumes or spec.store."
    )


def container_config_error(pod: str, text: str) -> str:
    return cut(f"Pod {pod} cannot start its container: {_quoted(text)}. Create what is missing, or correct the spec.")


# Suspended, CheckpointHealthy, Degraded


def not_suspended() -> str:
    return "spec.suspend is false."


def not_run_while_suspended() -> str:
    return "The job is suspended: it holds no nodes. Set spec.suspend: false to go on."


def suspending(pods: Sequence[str]) -> str:
    return cut(f"spec.suspend is true: {_lower(leaving(pods))}. The job is suspended once they are gone.")


def suspended(job: str, namespace: str, step: int | None, has_run: bool) -> str:
    """`step`: of the newest checkpoint."""
    if step is not None:
        stands = f"training stands at the checkpoint of step {step}"
    elif has_run:
        stands = "no checkpoint of it is known, so training begins anew unless the program saved one by itself"
    else:
        stands = "it has not begun"
    patch = """'{"spec":{"suspend":false}}'"""
    return (
        f"spec.suspend is true: no pod runs, {stands}. Go on with spec.suspend: false, for example kubectl patch bmj "
        f"{job} -n {namespace} --type=merge -p {patch}"
    )


def resumed(attempt: int, step: int | None) -> str:
    start = f"from the checkpoint of step {step}" if step is not None else "from the start"
    return f"Resumed as attempt {attempt}, {start}; activeDeadlineSeconds counts anew."


def no_checkpoint_yet() -> str:
    return "No checkpoint is known yet."


def saved(step: int) -> str:
    return f"The checkpoint of step {step} is committed; nothing is to be done."


def save_failed(text: str, step: int | None) -> str:
    return cut(
        f"The last save failed, training goes on: {_quoted(text, 700)}. {_newest(step)} Check the store: its room, its "
        "login and its network; the next save is tried at its time."
    )


def checkpoint_corrupt(text: str, step: int | None) -> str:
    return cut(
        f"A checkpoint could not be used, the one before it was: {_quoted(text, 700)}. {_newest(step)} Check the store "
        "for what changes or cuts files; the next save heals this."
    )


def _newest(step: int | None) -> str:
    return f"The newest good one is of step {step}." if step is not None else "There is no good one yet."


def as_wanted(size: int) -> str:
    return f"All {_pods(size)} run."


def progress_unreachable(pod: str, text: str, port: int) -> str:
    return cut(
        f"Pod {pod} runs but does not tell its progress: {_quoted(text)}. Let the operator reach port {port} of the "
        "pods "
        "(NetworkPolicies); training itself does not need it."
    )


# Published


def not_yet_published() -> str:
    return "The artefact is written once training has ended."


def not_published() -> str:
    return "The job failed before it published an artefact."


def published(uri: str, digest: str) -> str:
    return cut(f"The artefact {digest} is at {uri}; a BigModelService can take it.")


# The end


def complete(short_digest: str) -> str:
    return f"Trained, verified and published as {short_digest}; serve it with a BigModelService."


def nothing_promised() -> str:
    return "No artefact was published: only a recipe always publishes one, a script where it calls for it."


def complete_without_artifact(size: int) -> str:
    return f"All {_pods(size)} ended with exit code 0. No artefact was published, and none was promised."


def no_step_reported(name: str, namespace: str) -> str:
    return (
        "The script ended with exit code 0 on all ranks, but reported no step: it may not have trained at all. Read "
        f"its log: kubectl logs -n {namespace} -l bigmodel.io/job={name} --tail=-1"
    )


def artifact_missing(text: str) -> str:
    return cut(
        f"Every process ended with exit code 0, but no artefact was published: {_quoted(text)}. See the log of index "
        "0, and "
        "make a new job."
    )


def gang_ended(text: str, error: ErrorReport | None, pod: str | None, node: str | None) -> str:
    """`text`: why, in the launcher's words. The traceback comes last and gets the room that is left."""
    found = [f"rank {error.rank}, exit code {error.exit_code}"] if error is not None else []
    found += [f"pod {pod}"] if pod else []
    found += [f"node {node}"] if node else []
    first = f" First failure: {', '.join(found)}." if found else ""
    head = f"{_capital(_quoted(text, 480)).rstrip('.')}.{first} Correct the program and make a new job."
    if error is None or not error.traceback:
        return cut(head)
    label = " Traceback: "
    return f"{head}{label}{last_lines(error.traceback, MESSAGE_CHARACTERS - len(head) - len(label))}"


def pod_failed(pod: str, node: str | None, exit_code: int | None, text: str) -> str:
    code = f" with exit code {exit_code}" if exit_code is not None else ""
    where = f" on node {node}" if node else ""
    tail = f": {last_lines(text, 500)}" if text.strip() else ""
    return cut(f"Pod {pod}{where} ended{code}{tail}")


def out_of_memory(pod: str, node: str | None, limit: str | None) -> str:
    where = f" on node {node}" if node else ""
    if limit is None:
        return (
            f"Pod {pod}{where} was killed (exit code 137): its node ran out of memory. Set "
            "spec.resources.limits.memory, so that the pod gets a node that has as much"
        )
    return (
        f"Pod {pod}{where} used more memory than its limit, {limit}, and was killed (exit code 137); raise "
        "spec.resources.limits.memory"
    )


def pod_lost(pods: Sequence[str], how: str) -> str:
    return cut(f"{'Pod' if len(pods) == 1 else 'Pods'} {_listed(pods)} {how}")


def rule_ends_job(what: str, rule: int) -> str:
    return cut(
        f"{cut(what, 850)}. spec.failurePolicy.rules[{rule}] ends the job on it; correct the program and make a new "
        "job."
    )


def budget_spent(what: str, spent: int, limit: int, field: str) -> str:
    return cut(
        f"{cut(what, 800)}. {spent} of {limit} restarts are used (spec.failurePolicy.{field}); remove the cause and "
        "make a "
        "new job."
    )


def crash_loop(what: str, times: int) -> str:
    return cut(
        f"{cut(what, 850)}. This was the {times}rd time in a row without progress in between: a step or, of a command, "
        "a minute of running. Correct it and make a new job."
    )


def deadline_exceeded(seconds: int) -> str:
    return (
        f"The job took longer than spec.activeDeadlineSeconds, {seconds} s, and was stopped; make a new job with a "
        "longer "
        "deadline or fewer steps."
    )


def start_deadline_exceeded(seconds: int, why: str) -> str:
    return cut(
        f"No step was made within spec.scheduling.startDeadlineSeconds, {seconds} s, after all pods had their nodes. "
        f"{_quoted(why, 600)}"
    )


# Events and incidents


def gang_created(size: int, attempt: int) -> str:
    return f"Attempt {attempt}: {_pods(size)} created."


def running(size: int) -> str:
    return f"All {_pods(size)} run."


def pod_replaced(name: str, why: str, log: str | None) -> str:
    return cut(f"{_quoted(why, 600)}; {name} takes its place.{_last_line(log)}")


def attempt_failed(attempt: int, why: str, log: str | None) -> str:
    return cut(f"Attempt {attempt} is over: {_quoted(why, 600)}. Attempt {attempt + 1} follows.{_last_line(log)}")


def restarted(why: str, log: str | None) -> str:
    return cut(f"{_quoted(why, 600).rstrip('.')}; all ranks go on from the last checkpoint.{_last_line(log)}")


def _last_line(log: str | None) -> str:
    lines = (log or "").strip().splitlines()
    return f" Last line of its log: {_quoted(lines[-1], 250)}" if lines else ""


def resized(before: int, after: int) -> str:
    return (
        f"spec.nodes changed from {before} to {after}: the gang saves a checkpoint and leaves, and {_pods(after)} go "
        "on from it"
    )


def released(seconds: int) -> str:
    return f"Not all pods got a node within {duration(seconds)}; the placed ones are released"


def _pods(count: int) -> str:
    return "1 pod" if count == 1 else f"{count} pods"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _listed(items: Sequence[object], most: int = 5) -> str:
    shown = ", ".join(str(item) for item in items[:most])
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def last_lines(text: str, limit: int) -> str:
    """The end of a text, whole lines where possible."""
    text = text.strip()
    if len(text) <= limit:
        return text
    tail = text[-max(1, limit - 1) :]
    return f"…{tail.partition(chr(10))[2] or tail}" if "\n" in tail else f"…{tail}"
