"""What to do about one BigModelJob now: a list of named calls on facts. No clock, no IO.

A pass either writes status, or makes the children match the status that is written: never both where the one follows
from the other. A counter (attempt, replacements, restarts) and an end (Complete, Failed) are written before the act, so
a crash between any two writes leaves a state that the next pass understands:

    counted attempt → Service, NetworkPolicy, PodGroup, pods → a lost pod: counted replacement → successor
                                                             → more than that: counted attempt → old pods go, new gang
                                                             → suspended: told → pods go → resumed: counted attempt
                                                             → the end: Complete or Failed → what still runs is stopped
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from bigmodel.api import names
from bigmodel.api.condition import JobCondition
from bigmodel.api.job import Goodput, JobStatus, NodeCounts, Replacement
from bigmodel.api.progress import RunPhase
from bigmodel.controller.conditions import is_true, whole_seconds
from bigmodel.controller.decision import (
    BIG_MODEL_JOB,
    NETWORK_POLICY,
    POD,
    POD_GROUP,
    SERVICE,
    Decision,
    Deletion,
    Manifest,
    Relabel,
)
from bigmodel.controller.job import avoidance, build, failure, goodput, incidents, kueue, messages, status
from bigmodel.controller.job.accept import problem
from bigmodel.controller.job.events import events_between
from bigmodel.controller.job.failure import Cause, Failure, Loss
from bigmodel.controller.job.gang import Gang, arrange, still_here, still_runs
from bigmodel.controller.job.messages import Reason
from bigmodel.controller.job.observe import ObservedChild, ObservedJob
from bigmodel.controller.job.reports import BadReport, artifact_of
from bigmodel.controller.settings import Settings
from bigmodel.controller.store_location import store_location

NAMESPACE_GOES = "because it is being terminated"


def decide(job: ObservedJob, settings: Settings, now: datetime) -> Decision:
    if job.deleting or job.managed_by is not None or _namespace_goes(job):
        return Decision()
    if job.status.finished is not None or is_true(job.status.conditions, JobCondition.FINISHED):
        return _after_the_end(job, now)
    if job.status.start_time is None:
        return (
            _refused(job, settings, now)
            or _suspended(job, settings, now)
            or _queued(job, settings, now)
            or _started(job, settings, now)
        )
    if job.spec is None:
        return _unreadable(job, settings, now)
    gang = arrange(job, job.status)
    return (
        _completed(job, gang, now)
        or _ended_by_its_launchers(job, gang, now)
        or _suspended(job, settings, now)
        or _resumed(job, settings, now)
        or _past_deadline(job, now)
        or _quota_taken(job, gang, now)
        or _admitted_again(job, gang, now)
        or _resized(job, gang, now)
        or _lost_pods(job, gang, now)
        or _never_started(job, gang, now)
        or _not_placed(job, gang, now)
        or _under_way(job, gang, settings, now)
    )


def _namespace_goes(job: ObservedJob) -> bool:
    """The API server says so when a child is refused; all that is here goes with the namespace, the job too."""
    return any(rejection.code == 403 and NAMESPACE_GOES in rejection.message for rejection in job.rejections)


# Before the first gang


def _refused(job: ObservedJob, settings: Settings, now: datetime) -> Decision | None:
    if (found := problem(job, settings)) is None:
        return None
    return _told(job, status.of_problem(job, found, now), Decision())


def _unreadable(job: ObservedJob, settings: Settings, now: datetime) -> Decision:
    """A running job whose spec another version wrote: its pods are left alone until it can be read."""
    found = problem(job, settings)
    assert found is not None
    return _told(job, status.of_problem(job, found, now), Decision())


def _queued(job: ObservedJob, settings: Settings, now: datetime) -> Decision | None:
    """Waiting for quota: the job's time runs, nothing of it is started or pinned."""
    assert job.spec is not None
    waiting = job.status.model_copy(
        update={
            "attempt": max(1, job.status.attempt),
            "nodes": NodeCounts(desired=job.spec.nodes, summary=f"0/{job.spec.nodes}"),
            "goodput": job.status.goodput or Goodput(summary="0.0%", since=whole_seconds(now)),
        }
    )
    gang = arrange(job, waiting)
    if (held := kueue.hold(job, gang)) is None:
        return None
    acts = replace(kueue.upkeep(job, gang, settings, now), requeue_after=kueue.look_again(held))
    return _told_at_leisure(job, status.of_gang(job, waiting, now), acts, now)


def _started(job: ObservedJob, settings: Settings, now: datetime) -> Decision:
    """From here on work and placement are frozen, and image and store pinned. Deadlines count from here."""
    known, again = job.status, status.is_suspended(job.status)
    chosen = build.resolved(job, settings)
    if known.resolved is not None:
        chosen = chosen.model_copy(update={"store": known.resolved.store})  # the checkpoints are there
    update = {"start_time": whole_seconds(now), "resolved": chosen}
    attempt = known.attempt + 1 if again else max(1, known.attempt)
    return _counted(job, _of_attempt(job, known.model_copy(update=update), attempt), now)


# Suspended


def _suspended(job: ObservedJob, settings: Settings, now: datetime) -> Decision | None:
    """spec.suspend: what runs saves a checkpoint in its grace period and leaves; told before it is done."""
    assert job.spec is not None
    if not job.spec.suspend:
        return None
    told = status.of_suspended(job, now)
    if not status.is_suspended(job.status):
        return _told(job, told, Decision(again=True))
    quota = kueue.upkeep(job, arrange(job, job.status), settings, now)
    acts = _released(job, now)
    acts = replace(acts, delete=(*acts.delete, *quota.delete))
    if told.checkpoint != job.status.checkpoint:  # pods that have ended take their last word along
        return _told(job, told, acts)
    return _told_at_leisure(job, told, acts, now)


def _released(job: ObservedJob, now: datetime) -> Decision:
    """No pod runs for it, and no group holds room. What has ended stays for its log, until the next attempt is over."""
    running = [pod for pod in job.pods if not pod.terminal]
    return Decision(
        delete=(
            # First, for once its pods are told to leave the job may be found complete.
            *(Deletion(POD_GROUP, group.name, group.uid) for group in job.pod_groups),
            *(Deletion(POD, pod.name, pod.uid) for pod in running if pod.deleted_until is None),
        ),
        requeue_after=_seconds_until([pod.deleted_until for pod in job.pods if still_here(pod, now)], now),
    )


def _resumed(job: ObservedJob, settings: Settings, now: datetime) -> Decision | None:
    """A new attempt that nobody pays for, of the spec as it is now. Steps that no checkpoint kept are lost."""
    if not status.is_suspended(job.status):
        return None
    if (refused := _refused(job, settings, now)) is not None:
        return refused
    booked = status.with_reports(job, job.status, arrange(job, job.status), now)
    return _started(replace(job, status=goodput.without_lost_steps(booked)), settings, now)


# Ends


def _completed(job: ObservedJob, gang: Gang, now: datetime) -> Decision | None:
    """Index 0 goes last and with exit code 0 only when all ranks of all pods were done."""
    if not gang.launched:
        return _command_completed(job, gang, now)
    first = gang.current.get(0)
    if first is None or not first.succeeded:
        return None
    lost = {loss.index for loss in failure.losses(gang, now)}
    if any(not pod.terminal and pod.deleted_until is None and pod.index not in lost for pod in gang.pods):
        return None  # one that is deleted, as a gang that is suspended is, may take its last word along
    assert job.spec is not None
    assert job.status.resolved is not None
    assert job.status.resolved.store is not None
    if job.spec.script is not None and (first.last_word is None or first.last_word.artifact is None):
        return _told(job, status.of_complete(job, job.status, None, now), Decision(again=True))
    try:
        if first.last_word is None:
            raise BadReport("index 0 left no last word")
        uri = store_location(job.status.resolved.store).uri
        artifact = artifact_of(first.last_word, uri, job.namespace, job.name)
    except BadReport as error:
        return _failed(job, Failure(Reason.ARTIFACT_MISSING, messages.artifact_missing(str(error))), now)
    return _told(job, status.of_complete(job, job.status, artifact, now), Decision(again=True))


def _command_completed(job: ObservedJob, gang: Gang, now: datetime) -> Decision | None:
    if not gang.complete or not all(pod.succeeded for pod in gang.pods):
        return None
    return _told(job, status.of_complete(job, job.status, None, now), Decision(again=True))


def _ended_by_its_launchers(job: ObservedJob, gang: Gang, now: datetime) -> Decision | None:
    found = failure.gang_ended(gang)
    return _failed(job, found, now) if found is not None else None


def _past_deadline(job: ObservedJob, now: datetime) -> Decision | None:
    deadline = _deadline(job)
    if (deadline is None or now < deadline) and not kueue.out_of_time(job):
        return None
    assert job.spec is not None
    seconds = job.spec.active_deadline_seconds or 0
    return _failed(job, Failure(Reason.DEADLINE_EXCEEDED, messages.deadline_exceeded(seconds)), now)


def _failed(job: ObservedJob, why: Failure, now: datetime) -> Decision:
    """Only told: pods are stopped by the next pass, which finds it written."""
    return _told(job, status.of_failed(job, job.status, why, now), Decision(again=True))


def _after_the_end(job: ObservedJob, now: datetime) -> Decision:
    """Absorbing. What still runs is stopped, what has ended is kept for its log, until the TTL takes it all."""
    running = [pod for pod in job.pods if not pod.terminal and pod.deleted_until is None]
    deletions = [Deletion(POD, pod.name, pod.uid) for pod in running]
    ends = _end_of_life(job)
    if ends is not None and now >= ends:
        deletions.append(Deletion(BIG_MODEL_JOB, job.name, job.uid))
    requeue = max(0.0, (ends - now).total_seconds()) if ends is not None and now < ends else None
    acts = Decision(delete=tuple(deletions), child_status=kueue.finished(job, now).child_status, requeue_after=requeue)
    return _told(job, status.of_finished(job), acts)


# Losses


def _lost_pods(job: ObservedJob, gang: Gang, now: datetime) -> Decision | None:
    """One lost pod is replaced; more, or one that others no longer wait for, cost the attempt. So does any of a gang
    without launchers: nobody there would heal what is left.

    Others that are on their way out count too: a gang that is preempted or drained leaves pod by pod.
    """
    lost = failure.losses(gang, now)
    if not lost:
        return None
    assert job.spec is not None
    policy, before = job.spec.failure_policy, status.with_reports(job, job.status, gang, now)
    worst = failure.worst(lost) if gang.launched else failure.first(lost, gang)
    if (why := failure.spent(worst, before.restarts, before.incidents, policy)) is not None:
        return _failed(job, why, now)
    counted = before.model_copy(
        update={
            "restarts": failure.paid(worst, before.restarts, policy),
            "incidents": incidents.added(
                before.incidents, incidents.of_loss(worst, gang.attempt, _furthest(before), now)
            ),
            "avoided_nodes": avoidance.after_losses(before.avoided_nodes, lost, before.incidents, now),
        }
    )
    indexes = {loss.index for loss in lost}
    indexes |= {pod.index for pod in gang.pods if pod.deleted_until is not None and not pod.terminal}
    if not gang.launched or len(indexes) > 1 or any(pod.succeeded for pod in gang.pods):
        return _counted(job, _next_attempt(job, goodput.without_lost_steps(counted)), now)
    if gang.size == 1:  # of more, the others tell the new coordinator how far they were
        counted = goodput.without_lost_steps(counted)
    return _counted(job, _with_replacement(counted, gang, worst), now)


def _furthest(known: JobStatus) -> int | None:
    return known.progress.step if known.progress is not None else None


def _with_replacement(counted: JobStatus, gang: Gang, loss: Loss) -> JobStatus:
    counts = {**gang.replacements, loss.index: gang.replacements.get(loss.index, 0) + 1}
    return counted.model_copy(
        update={
            "replacements": [Replacement(index=index, count=count) for index, count in sorted(counts.items())],
            "pods_created": min(counted.pods_created, gang.size - 1),
        }
    )


def _next_attempt(job: ObservedJob, counted: JobStatus) -> JobStatus:
    return _of_attempt(job, counted, counted.attempt + 1)


def _of_attempt(job: ObservedJob, counted: JobStatus, attempt: int) -> JobStatus:
    assert job.spec is not None
    return counted.model_copy(
        update={
            "attempt": attempt,
            "replacements": [],
            "pods_created": 0,
            "nodes": NodeCounts(desired=job.spec.nodes, summary=f"0/{job.spec.nodes}"),
            "goodput": goodput.of_new_attempt(counted.goodput),
        }
    )


def _quota_taken(job: ObservedJob, gang: Gang, now: datetime) -> Decision | None:
    """Kueue evicted the gang: its pods save and leave at nobody's cost, and the next attempt queues."""
    if (text := kueue.loss_of_quota(job, gang)) is None:
        return None
    return _new_attempt_without_cost(job, Cause.QUOTA_TAKEN, text, now)


def _admitted_again(job: ObservedJob, gang: Gang, now: datetime) -> Decision | None:
    """After an eviction or a resize the gang waited for quota; its deadline counts from here."""
    if gang.pods or not kueue.waits(job.status) or kueue.hold(job, gang) is not None:
        return None
    return _counted(job, job.status.model_copy(update={"start_time": whole_seconds(now)}), now)


def _resized(job: ObservedJob, gang: Gang, now: datetime) -> Decision | None:
    """spec.nodes was edited: the gang saves a checkpoint and leaves, and as many go on from it, at nobody's cost.

    Not once all steps are made: what is published does not depend on the size.
    """
    assert job.spec is not None
    publishes = gang.reported is not None and gang.reported.phase in (RunPhase.PUBLISHING, RunPhase.DONE)
    if job.spec.nodes == gang.size or publishes:
        return None
    return _new_attempt_without_cost(job, Cause.RESIZED, messages.resized(gang.size, job.spec.nodes), now)


def _never_started(job: ObservedJob, gang: Gang, now: datetime) -> Decision | None:
    """All pods have nodes, for startDeadlineSeconds, and no step was made since: the user's fault the first time."""
    deadline = _start_deadline(job, gang)
    if deadline is None or now < deadline:
        return None
    assert job.spec is not None
    seconds = job.spec.scheduling.start_deadline_seconds
    why = status.of_gang(job, job.status, now).message or ""
    text = messages.start_deadline_exceeded(seconds, why)
    policy, before = job.spec.failure_policy, status.with_reports(job, job.status, gang, now)
    if before.first_step_time is None and (gang.attempt == 1 or before.restarts.total == 0):
        return _failed(job, Failure(Reason.START_DEADLINE_EXCEEDED, text), now)
    loss = Loss(0, Cause.NEVER_STARTED, failure.Fault.INFRASTRUCTURE, text)
    if (spent := failure.spent(loss, before.restarts, before.incidents, policy)) is not None:
        return _failed(job, spent, now)
    incident = incidents.of_attempt(Cause.NEVER_STARTED, text, gang.attempt, now)
    counted = before.model_copy(
        update={
            "restarts": failure.paid(loss, before.restarts, policy),
            "incidents": incidents.added(before.incidents, incident),
        }
    )
    return _counted(job, _next_attempt(job, goodput.without_lost_steps(counted)), now)


def _not_placed(job: ObservedJob, gang: Gang, now: datetime) -> Decision | None:
    """Without a PodGroup placed pods hold nodes while others wait: all are released and tried again, at no cost."""
    deadline = _placement_deadline(job, gang)
    if deadline is None or now < deadline:
        return None
    assert job.spec is not None
    text = messages.released(job.spec.scheduling.start_deadline_seconds)
    return _new_attempt_without_cost(job, Cause.NOT_PLACED, text, now)


def _new_attempt_without_cost(job: ObservedJob, cause: Cause, text: str, now: datetime) -> Decision:
    known = status.with_reports(job, job.status, arrange(job, job.status), now)
    incident = incidents.of_attempt(cause, text, known.attempt, now)
    counted = known.model_copy(update={"incidents": incidents.added(known.incidents, incident)})
    return _counted(job, _next_attempt(job, counted), now)


# Under way


def _under_way(job: ObservedJob, gang: Gang, settings: Settings, now: datetime) -> Decision:
    """Children as the status has them counted.

    Two attempts never run at once: as long as a pod of an earlier one may save its checkpoint, it keeps its address,
    and nothing is made.
    """
    resume = failure.pause_until(job.status.incidents)
    waits = resume is not None and now < resume
    earlier = [pod for pod in gang.earlier if still_runs(pod, now)]
    addresses = (
        (SERVICE, build.headless_service(job, earlier[-1].attempt if earlier else gang.attempt), job.services),
        (NETWORK_POLICY, build.network_policy(job), job.network_policies),
    )
    create = [wanted for _, wanted, known in addresses if wanted["metadata"]["name"] not in known]
    differing = [
        (kind, wanted, child)
        for kind, wanted, known in addresses
        if (child := known.get(wanted["metadata"]["name"])) is not None and not _is_as(child, wanted)
    ]
    held = kueue.hold(job, gang)
    quota = kueue.upkeep(job, gang, settings, now)
    if not waits and not earlier and held is None:
        create += _missing_gang(job, gang, settings, now)
    acts = Decision(
        # Without its hash a child is applied again, also where it was not we who changed it.
        relabel=(
            *_relabelled(job, gang),
            *(
                Relabel(kind, wanted["metadata"]["name"], child.uid, annotations={names.ANNOTATION_HASH: None})
                for kind, wanted, child in differing
            ),
        ),
        create=(*quota.create, *create),
        apply=(*quota.apply, *(wanted for _, wanted, _ in differing)),
        delete=(*_leftovers(gang), *quota.delete),
        child_status=quota.child_status,
        requeue_after=_sooner(
            _seconds_until(
                [resume if waits else None, *(pod.deleted_until for pod in earlier), *_deadlines(job, gang)], now
            ),
            kueue.look_again(held),
        ),
    )
    return _told_at_leisure(job, status.of_gang(job, job.status, now), acts, now)


def _is_as(child: ObservedChild, wanted: Manifest) -> bool:
    """The selector as a whole: there a label too many is an edit."""
    spec = wanted["spec"]
    return child.spec.get("selector") == spec.get("selector") and _holds(child.spec, spec)


def _holds(live: Any, wanted: Any) -> bool:
    """Everything that is wanted is there; the API server adds fields of its own, a port's targetPort for example."""
    if isinstance(wanted, dict):
        return isinstance(live, Mapping) and all(_holds(live.get(field), value) for field, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(live, list) and len(live) == len(wanted) and all(map(_holds, live, wanted))
    return bool(live == wanted)


def _missing_gang(job: ObservedJob, gang: Gang, settings: Settings, now: datetime) -> list[Manifest]:
    """The PodGroup, then the pods that are still to be made: where they must be together, once it is known whether the
    group has kept its constraint."""
    assert job.spec is not None
    fresh = not gang.has_started and not gang.current
    wanted = job.spec.scheduling.gang != "none"
    if fresh and job.spec.scheduling.gang == "podGroup" and not job.pod_group_served:
        return []  # told by Admitted
    grouped = gang.group is not None or any(pod.group for pod in gang.pods)
    grouped = grouped or (fresh and wanted and job.pod_group_served)
    key = job.spec.scheduling.topology_key
    if grouped and gang.group is None and key is not None:
        return [build.pod_group(job, gang.attempt, gang.size)]
    placement = build.Placement(
        grouped=grouped,
        together_by=None if gang.group is not None and gang.group.topology_key == key else key,
        avoided=tuple(node.name for node in avoidance.still_avoided(job.status.avoided_nodes, now)),
    )
    pods = [
        build.node_pod(job, settings, gang.attempt, gang.size, index, gang.replacements.get(index, 0), placement)
        for index in gang.missing
    ]
    if pods and (admission := kueue.admission(job, gang)) is not None:
        pods = [kueue.admitted_pod(pod, admission, index) for pod, index in zip(pods, gang.missing, strict=True)]
    if grouped and gang.group is None:
        return [build.pod_group(job, gang.attempt, gang.size), *pods]
    return pods


def _relabelled(job: ObservedJob, gang: Gang) -> tuple[Relabel, ...]:
    """Replaced pods leave the DNS; labels that somebody edited on living ones are put back."""
    relabels = [
        Relabel(POD, pod.name, pod.uid, {names.LABEL_ACTIVE: "false"})
        for pod in gang.superseded
        if pod.labels.get(names.LABEL_ACTIVE) != "false"
    ]
    for pod in gang.pods:
        labels = build.pod_labels(job, gang.attempt, pod.index)
        edited = {name: value for name, value in labels.items() if pod.labels.get(name) != value}
        if edited:
            relabels.append(Relabel(POD, pod.name, pod.uid, edited))
    return tuple(relabels)


def _leftovers(gang: Gang) -> tuple[Deletion, ...]:
    """Of earlier attempts and of replaced pods: what still runs, and groups that hold nothing any more.

    What ended by itself in the attempt before stays, for its log.
    """
    pods = [
        pod
        for pod in (*gang.earlier, *gang.superseded)
        if pod.deleted_until is None and (not pod.terminal or pod.attempt < gang.attempt - 1)
    ]
    return (
        *(Deletion(POD, pod.name, pod.uid) for pod in pods),
        *(Deletion(POD_GROUP, group.name, group.uid) for group in gang.earlier_groups),
    )


# Deadlines


def _deadline(job: ObservedJob) -> datetime | None:
    if job.spec is None or job.spec.active_deadline_seconds is None or job.status.start_time is None:
        return None
    if kueue.waits(job.status):
        return None
    return job.status.start_time + timedelta(seconds=job.spec.active_deadline_seconds)


def _start_deadline(job: ObservedJob, gang: Gang) -> datetime | None:
    """Runs from the moment all pods have nodes, never while queued. None: not running, or met.

    Pods that all run and do not tell how far they are prove nothing: their launchers keep the same deadline.
    """
    assert job.spec is not None
    bound_at, progress = gang.all_bound_at, gang.reported
    if bound_at is None or (gang.all_run and progress is None):
        return None
    if gang.all_run and progress is not None:
        stepped = progress.first_step_at is not None and progress.first_step_at >= bound_at.timestamp()
        if stepped or progress.phase is not RunPhase.STARTING:
            return None
    return bound_at + timedelta(seconds=job.spec.scheduling.start_deadline_seconds)


def _placement_deadline(job: ObservedJob, gang: Gang) -> datetime | None:
    assert job.spec is not None
    held = gang.pods
    if gang.all_bound or not held or all(pod.group for pod in held) or gang.replacements:
        return None
    return min(pod.created for pod in held) + timedelta(seconds=job.spec.scheduling.start_deadline_seconds)


def _end_of_life(job: ObservedJob) -> datetime | None:
    seconds = job.raw_spec.get("ttlSecondsAfterFinished")
    if not isinstance(seconds, int) or job.status.completion_time is None:
        return None
    return job.status.completion_time + timedelta(seconds=seconds)


def _deadlines(job: ObservedJob, gang: Gang) -> Sequence[datetime | None]:
    """Also the ends of grace periods: a pod that outlives its own is lost."""
    graces = [pod.deleted_until for pod in gang.pods if not pod.terminal]
    return [_deadline(job), _start_deadline(job, gang), _placement_deadline(job, gang), *graces]


def _sooner(one: float | None, other: float | None) -> float | None:
    given = [seconds for seconds in (one, other) if seconds is not None]
    return min(given) if given else None


def _seconds_until(times: Sequence[datetime | None], now: datetime) -> float | None:
    rest = [(time - now).total_seconds() for time in times if time is not None]
    return max(0.0, min(rest)) if rest else None


# Telling


def _counted(job: ObservedJob, counters: JobStatus, now: datetime) -> Decision:
    """Written first; the next pass, at once, acts on what it finds written."""
    return _told(job, status.of_gang(job, counters, now), Decision(again=True))


def _told(job: ObservedJob, wanted: JobStatus, acts: Decision) -> Decision:
    if wanted == job.status:
        return acts
    return _with_status(job, wanted, acts)


def _told_at_leisure(job: ObservedJob, wanted: JobStatus, acts: Decision, now: datetime) -> Decision:
    """Progress alone may wait a few seconds; everything else is told at once."""
    told, rest = status.throttled(job, wanted, now)
    if told is not None:
        return _with_status(job, told, acts)
    if rest is None:
        return acts
    return replace(acts, requeue_after=_sooner(rest, acts.requeue_after))


def _with_status(job: ObservedJob, wanted: JobStatus, acts: Decision) -> Decision:
    return replace(acts, status=wanted.wire(), events=events_between(job, wanted))
