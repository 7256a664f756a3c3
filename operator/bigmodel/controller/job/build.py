"""The manifests of a job's children: one function for each kind, from arguments only; same arguments, same bytes."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bigmodel.api import names
from bigmodel.api.job import JobSpec, Resolved
from bigmodel.api.run import Budgets, RestartCounts, TrainingRun
from bigmodel.controller.decision import (
    BIG_MODEL_JOB,
    NETWORK_POLICY,
    POD,
    POD_GROUP,
    SERVICE,
    Manifest,
    ResourceKind,
)
from bigmodel.controller.job.accept import chosen_store, processes_per_node
from bigmodel.controller.job.observe import CONTAINER, ObservedJob
from bigmodel.controller.settings import Settings
from bigmodel.controller.store_location import STORE_DIRECTORY, store_location

# Pods that may ask for progress and metrics, by app.kubernetes.io/name, wherever they run.
READERS = ("bigmodel-operator", "prometheus")
LOST_NODE_SECONDS = 10  # tolerated before the pods of a node that is not Ready are evicted
# Fields that say when and how often, not what is computed.
NOT_HASHED = ("nodes", "suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "failurePolicy", "managedBy")


SCRIPT_VOLUME = "bigmodel-script"


@dataclass(frozen=True)
class Placement:
    """How the pods of an attempt get their nodes."""

    grouped: bool  # a PodGroup places them at once
    together_by: str | None = None  # label key of nodes, within whose one value the pods themselves ask to be
    avoided: tuple[str, ...] = ()  # nodes to take last


@dataclass(frozen=True)
class WorkloadRequest:
    """How a gang queues."""

    attempt: int  # names the Workload
    queue: str
    pod_set: str  # fingerprint of what is asked for
    priority: Mapping[str, Any]  # the fields of the Workload's spec that say it
    active: bool = True


def resolved(job: ObservedJob, settings: Settings) -> Resolved:
    """What the first start pins."""
    assert job.spec is not None
    hashed = {name: value for name, value in job.spec.wire().items() if name not in NOT_HASHED}
    digest = hashlib.sha256(_json(hashed).encode()).hexdigest()[:16]
    return Resolved(
        image=job.spec.image or settings.images.trainer, store=chosen_store(job.spec, settings), spec_hash=digest
    )


def headless_service(job: ObservedJob, attempt: int) -> Manifest:
    """Gives every pod of the attempt its DNS name: before it is ready, since launchers must meet to get ready."""
    return {
        **_kind(SERVICE),
        "metadata": _child(job, names.job_service(job.name, job.uid)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            # A lost pod that still terminates would stay in DNS: it is relabelled before its successor is made.
            "selector": _selector(job, attempt),
            "ports": [{"name": name, "port": port, "protocol": "TCP"} for name, port in sorted(_ports(job).items())],
        },
    }


def network_policy(job: ObservedJob) -> Manifest:
    """Pods of one job talk to each other; progress and metrics only to the operator and to Prometheus."""
    return {
        **_kind(NETWORK_POLICY),
        "metadata": _child(job, names.job_service(job.name, job.uid)),
        "spec": {
            "podSelector": {"matchLabels": {names.LABEL_JOB_UID: job.uid}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {names.LABEL_JOB_UID: job.uid}}}]},
                {
                    "from": [
                        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}
                        for name in READERS
                    ],
                    "ports": [{"protocol": "TCP", "port": names.PORT_PROGRESS}],
                },
            ],
        },
    }


def pod_group(job: ObservedJob, attempt: int, size: int) -> Manifest:
    """All pods of the attempt get their nodes at once, or none does; preempted together too.

    An API server whose gate TopologyAwareWorkloadScheduling is off drops the constraint without a word.
    """
    assert job.spec is not None
    spec = {
        "schedulingPolicy": {"gang": {"minCount": size}},
        "disruptionMode": {"all": {}},
        "priorityClassName": job.spec.priority_class_name,
        "schedulingConstraints": {"topology": [{"key": key}]} if (key := job.spec.scheduling.topology_key) else None,
    }
    return {
        **_kind(POD_GROUP),
        "metadata": _child(job, names.pod_group(job.name, job.uid, attempt), {names.LABEL_ATTEMPT: str(attempt)}),
        "spec": _given(spec),
    }


def workload(job: ObservedJob, settings: Settings, kind: ResourceKind, asked: WorkloadRequest) -> Manifest:
    """What Kueue is asked for: quota for the whole gang, by what it reads of its pods."""
    assert job.spec is not None
    pinned = replace(job, status=job.status.model_copy(update={"resolved": resolved(job, settings)}))
    pod = node_pod(pinned, settings, 1, job.spec.nodes, 0, 0, Placement(grouped=False))["spec"]
    read = ("restartPolicy", "nodeSelector", "tolerations", "affinity", "priorityClassName", "schedulerName")
    container = {name: value for name, value in pod["containers"][0].items() if name in ("name", "image", "resources")}
    template = {name: pod[name] for name in read if name in pod} | {"containers": [container]}
    metadata = _child(job, names.workload(job.name, job.uid, asked.attempt))
    return {
        **_kind(kind),
        "metadata": {**metadata, "annotations": {names.ANNOTATION_POD_SET: asked.pod_set}},
        "spec": _given(
            {
                "active": asked.active,
                "queueName": asked.queue,
                **asked.priority,
                "maximumExecutionTimeSeconds": job.spec.active_deadline_seconds,
                "podSets": [{"name": "main", "count": job.spec.nodes, "template": {"spec": template}}],
            }
        ),
    }


def pod_labels(job: ObservedJob, attempt: int, index: int) -> dict[str, str]:
    """Those that Services, policies and people select by."""
    return {
        **_labels(job),
        names.LABEL_ATTEMPT: str(attempt),
        names.LABEL_INDEX: str(index),
        names.LABEL_ACTIVE: "true",
    }


def node_pod(
    job: ObservedJob, settings: Settings, attempt: int, size: int, index: int, replacement: int, placement: Placement
) -> Manifest:
    """The pod of one node. `attempt` counts from 1, `index` from 0; ranks inside it are the launcher's business."""
    assert job.spec is not None
    assert job.status.resolved is not None
    spec = job.spec
    user = spec.pod_metadata
    annotations = {**((user.annotations if user else None) or {}), "kubectl.kubernetes.io/default-container": CONTAINER}
    metadata = _child(job, names.node_pod(job.name, job.uid, attempt, index, replacement))
    metadata["labels"] = {**((user.labels if user else None) or {}), **pod_labels(job, attempt, index)}
    metadata["annotations"] = annotations
    pull_secrets = [secret.name for secret in spec.image_pull_secrets]
    pull_secrets += [name for name in settings.image_pull_secrets if name not in pull_secrets]
    pod_spec = {
        "restartPolicy": "Never",
        "hostname": names.pod_host_name(job.name, index),
        "subdomain": names.job_service(job.name, job.uid),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a namespace of many Services would fill the environment
        "serviceAccountName": spec.service_account_name,
        "priorityClassName": spec.priority_class_name,
        "schedulerName": spec.scheduler_name,
        "schedulingGroup": {"podGroupName": names.pod_group(job.name, job.uid, attempt)} if placement.grouped else None,
        "terminationGracePeriodSeconds": spec.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": spec.run_as_user,
            "runAsGroup": spec.fs_group,
            "fsGroup": spec.fs_group,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "imagePullSecrets": [{"name": name} for name in pull_secrets],
        "nodeSelector": dict(spec.node_selector),
        "tolerations": [
            *(toleration.wire() for toleration in spec.tolerations),
            *(
                {
                    "key": f"node.kubernetes.io/{taint}",
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": LOST_NODE_SECONDS,
                }
                for taint in ("not-ready", "unreachable")
            ),
        ],
        "affinity": _affinity(job, attempt, placement),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",  # two pods on one node still train
                "labelSelector": {"matchLabels": {names.LABEL_JOB_UID: job.uid, names.LABEL_ATTEMPT: str(attempt)}},
            }
        ],
        "containers": [
            _command(job, settings, size, index)
            if spec.command is not None
            else _launcher(job, settings, attempt, size, index, replacement)
        ],
        "volumes": _volumes(job),
    }
    return {**_kind(POD), "metadata": metadata, "spec": _given(pod_spec)}


def _launcher(
    job: ObservedJob, settings: Settings, attempt: int, size: int, index: int, replacement: int
) -> dict[str, Any]:
    """The container of a recipe or script: our launcher starts the ranks and tells how far they are."""
    assert job.spec is not None
    ours: list[dict[str, Any]] = [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108
        {"name": names.ENV_TRAINING_RUN, "value": _json(training_run(job, attempt, size).wire())},
        {"name": names.ENV_INDEX, "value": str(index)},
        {"name": names.ENV_INCARNATION, "value": str(replacement)},
        {"name": names.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": names.ENV_NODE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ]
    if job.spec.recipe is not None:  # own programs decide by themselves
        ours.append({"name": "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "value": "1"})
    container = {
        **_container(job, settings, ours),
        "command": ["bigmodel-launcher"],
        "workingDir": job.spec.working_dir or _script_directory(job.spec),
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": "progress"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 5,
        },
    }
    return _given(container)


def _command(job: ObservedJob, settings: Settings, size: int, index: int) -> dict[str, Any]:
    """The container of a command: the user's program as it is, in any image. Nothing of ours is needed in it."""
    assert job.spec is not None
    variables = {"HOME": "/tmp", **gang_environment(job, size, index)}  # noqa: S108
    container = {
        **_container(job, settings, [{"name": name, "value": value} for name, value in variables.items()]),
        "command": job.spec.command,
        "args": job.spec.args,
        "workingDir": job.spec.working_dir,
    }
    return _given(container)


def gang_environment(job: ObservedJob, size: int, index: int) -> dict[str, str]:
    """What the processes of a command find each other by.

    For PyTorch both sets: PET_* are torchrun's own flags, so that a plain `torchrun train.py` forms one gang; MASTER_*,
    RANK and WORLD_SIZE are for programs without torchrun. RANK is that of the pod's first process and WORLD_SIZE counts
    all processes; a torchrun sets both anew for each of its own. A job of one process gets neither: some programs take
    RANK's presence for "distributed".
    """
    spec = job.spec
    assert spec is not None
    hosts = [f"{names.pod_host_name(job.name, i)}.{names.job_service(job.name, job.uid)}" for i in range(size)]
    if spec.framework == "tensorflow":
        if size == 1:
            return {}
        cluster = {"worker": [f"{host}:{names.PORT_MASTER}" for host in hosts]}
        return {"TF_CONFIG": _json({"cluster": cluster, "task": {"type": "worker", "index": index}})}
    processes = processes_per_node(spec)
    each = processes or 1
    ranks = {"RANK": str(index * each), "WORLD_SIZE": str(size * each)} if size * each > 1 else {}
    return {
        "MASTER_ADDR": hosts[0],
        "MASTER_PORT": str(names.PORT_MASTER),
        "NODE_RANK": str(index),
        **ranks,
        "PET_NNODES": str(size),
        "PET_NODE_RANK": str(index),
        "PET_NPROC_PER_NODE": str(processes or "auto"),
        "PET_MASTER_ADDR": hosts[0],
        "PET_MASTER_PORT": str(names.PORT_MASTER),
        "PET_MAX_RESTARTS": "0",  # a new attempt is ours to make: torchrun's own restarts leave the other pods behind
    }


def _container(job: ObservedJob, settings: Settings, ours: list[dict[str, Any]]) -> dict[str, Any]:
    """What containers of all kinds of jobs have."""
    assert job.spec is not None
    assert job.status.resolved is not None
    spec, own_image, store = job.spec, job.spec.image is None, job.status.resolved.store
    environment = [source.wire() for source in spec.env_from]
    if store is not None and store.s3 is not None and store.s3.secret_name is not None:
        environment.append({"secretRef": {"name": store.s3.secret_name}})
    mounts: list[dict[str, Any]] = [
        *(mount.wire() for mount in spec.volume_mounts),
        {"name": "bigmodel-tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "bigmodel-shm", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    if store is not None and store.persistent_volume_claim is not None:
        mounts.append({"name": "bigmodel-store", "mountPath": STORE_DIRECTORY})
    if spec.script is not None and spec.script.config_map is not None:
        mounts.append({"name": SCRIPT_VOLUME, "mountPath": names.SCRIPT_DIRECTORY, "readOnly": True})
    return {
        "name": CONTAINER,
        "image": job.status.resolved.image,
        "imagePullPolicy": spec.image_pull_policy or (settings.image_pull_policy if own_image else None),
        "env": _merged([variable.wire() for variable in spec.env], ours),
        "envFrom": environment,
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in _ports(job).items()],
        "resources": spec.resources.wire() if spec.resources is not None else None,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": own_image,  # others may write where they like
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _ports(job: ObservedJob) -> dict[str, int]:
    assert job.spec is not None
    if job.spec.command is not None:
        return {"master": names.PORT_MASTER}
    return {"progress": names.PORT_PROGRESS, "coordinator": names.PORT_COORDINATOR}


def _script_directory(spec: JobSpec) -> str | None:
    """Where the script's files are; None: there is no script."""
    if spec.script is None:
        return None
    return spec.script.path or names.SCRIPT_DIRECTORY


def _affinity(job: ObservedJob, attempt: int, placement: Placement) -> dict[str, Any]:
    """Soft against nodes that failed this job, hard for a common place where no PodGroup sees to it."""
    affinity: dict[str, Any] = {}
    if placement.avoided:
        others = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in placement.avoided]
        avoided = {"weight": 100, "preference": {"matchFields": others}}
        affinity["nodeAffinity"] = {"preferredDuringSchedulingIgnoredDuringExecution": [avoided]}
    if placement.together_by is not None:
        together = {
            "topologyKey": placement.together_by,
            "labelSelector": {"matchLabels": _selector(job, attempt)},  # a replaced pod holds its successor nowhere
        }
        affinity["podAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [together]}
    return affinity


def training_run(job: ObservedJob, attempt: int, size: int) -> TrainingRun:
    """What every launcher of the attempt is told. Restarts that were spent count on: the budget is the job's."""
    spec, status = job.spec, job.status
    assert spec is not None
    assert status.resolved is not None
    assert status.resolved.store is not None
    policy = spec.failure_policy
    return TrainingRun(
        namespace=job.namespace,
        job=job.name,
        uid=job.uid,
        attempt=attempt,
        nodes=size,
        processes_per_node=processes_per_node(spec) or "auto",
        coordinator=names.coordinator_address(job.name, job.uid),
        start_deadline_seconds=spec.scheduling.start_deadline_seconds,
        termination_grace_seconds=spec.termination_grace_period_seconds,
        framework=spec.framework,
        recipe=spec.recipe,
        script=spec.script,
        args=spec.args,
        parallelism=spec.parallelism,
        checkpoint=spec.checkpoint,
        output=spec.output,
        store=store_location(status.resolved.store),
        budgets=Budgets(
            max_restarts=policy.max_restarts,
            max_hang_restarts=policy.max_hang_restarts,
            hang_timeout_seconds=policy.hang_timeout_seconds,
            rules=policy.rules,
            spent=RestartCounts(program=status.restarts.program, hang=status.restarts.hang),
        ),
        image=status.resolved.image,
    )


def _volumes(job: ObservedJob) -> list[dict[str, Any]]:
    assert job.spec is not None
    assert job.status.resolved is not None
    volumes: list[dict[str, Any]] = [
        *(volume.wire() for volume in job.spec.volumes),
        {"name": "bigmodel-tmp", "emptyDir": {}},
        {"name": "bigmodel-shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.spec.shared_memory}},
    ]
    store, script = job.status.resolved.store, job.spec.script
    if store is not None and (claim := store.persistent_volume_claim) is not None:
        volumes.append({"name": "bigmodel-store", "persistentVolumeClaim": {"claimName": claim.claim_name}})
    if script is not None and script.config_map is not None:
        volumes.append({"name": SCRIPT_VOLUME, "configMap": {"name": script.config_map}})
    return volumes


def _merged(users: Iterable[dict[str, Any]], ours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours win, by name."""
    taken = {variable["name"] for variable in ours}
    return [*(variable for variable in users if variable["name"] not in taken), *ours]


def _selector(job: ObservedJob, attempt: int) -> dict[str, str]:
    return {names.LABEL_JOB_UID: job.uid, names.LABEL_ATTEMPT: str(attempt), names.LABEL_ACTIVE: "true"}


def _labels(job: ObservedJob) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "bigmodel-job",
        "app.kubernetes.io/instance": job.name,
        "app.kubernetes.io/component": "trainer",
        "app.kubernetes.io/managed-by": names.FIELD_MANAGER,
        "app.kubernetes.io/part-of": "bigmodel",
        names.LABEL_JOB: job.name,
        names.LABEL_JOB_UID: job.uid,
    }


def _child(job: ObservedJob, name: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": {**_labels(job), **(labels or {})},
        "ownerReferences": [
            {
                "apiVersion": BIG_MODEL_JOB.api_version,
                "kind": BIG_MODEL_JOB.kind,
                "name": job.name,
                "uid": job.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def _kind(kind: ResourceKind) -> dict[str, Any]:
    return {"apiVersion": kind.api_version, "kind": kind.kind}


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Without what is not given: the API server's defaults apply."""
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
