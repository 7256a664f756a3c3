"""The manifests of a job's children: one function for each kind, from arguments only; same arguments, same bytes."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from bigmodel.api import names
from bigmodel.api.job import Resolved
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


def resolved(job: ObservedJob, settings: Settings) -> Resolved:
    """What the first start pins."""
    assert job.spec is not None
    store = chosen_store(job.spec, settings)
    assert store is not None
    hashed = {name: value for name, value in job.spec.wire().items() if name not in NOT_HASHED}
    digest = hashlib.sha256(_json(hashed).encode()).hexdigest()[:16]
    return Resolved(image=job.spec.image or settings.images.trainer, store=store, spec_hash=digest)


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
            "ports": [
                {"name": "coordinator", "port": names.PORT_COORDINATOR, "protocol": "TCP"},
                {"name": "progress", "port": names.PORT_PROGRESS, "protocol": "TCP"},
            ],
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
    """All pods of the attempt get their nodes at once, or none does; preempted together too."""
    assert job.spec is not None
    spec = {
        "schedulingPolicy": {"gang": {"minCount": size}},
        "disruptionMode": {"all": {}},
        "priorityClassName": job.spec.priority_class_name,
    }
    return {
        **_kind(POD_GROUP),
        "metadata": _child(job, names.pod_group(job.name, job.uid, attempt), {names.LABEL_ATTEMPT: str(attempt)}),
        "spec": _given(spec),
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
    job: ObservedJob, settings: Settings, attempt: int, size: int, index: int, replacement: int, grouped: bool
) -> Manifest:
    """The pod of one node. `attempt` counts from 1, `index` from 0; ranks inside it are the launcher's business."""
    assert job.spec is not None
    assert job.status.resolved is not None
    spec, own_image = job.spec, job.spec.image is None
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
        "schedulingGroup": {"podGroupName": names.pod_group(job.name, job.uid, attempt)} if grouped else None,
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
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",  # two pods on one node still train
                "labelSelector": {"matchLabels": {names.LABEL_JOB_UID: job.uid, names.LABEL_ATTEMPT: str(attempt)}},
            }
        ],
        "containers": [_trainer(job, settings, attempt, size, index, replacement, own_image)],
        "volumes": _volumes(job),
    }
    return {**_kind(POD), "metadata": metadata, "spec": _given(pod_spec)}


def _trainer(
    job: ObservedJob, settings: Settings, attempt: int, size: int, index: int, replacement: int, own_image: bool
) -> dict[str, Any]:
    assert job.spec is not None
    assert job.status.resolved is not None
    spec, store = job.spec, job.status.resolved.store
    ours: list[dict[str, Any]] = [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108
        {"name": names.ENV_TRAINING_RUN, "value": _json(training_run(job, attempt, size).wire())},
        {"name": names.ENV_INDEX, "value": str(index)},
        {"name": names.ENV_INCARNATION, "value": str(replacement)},
        {"name": names.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": names.ENV_NODE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ]
    if spec.recipe is not None:  # own programs decide by themselves
        ours.append({"name": "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "value": "1"})
    environment = [source.wire() for source in spec.env_from]
    if store.s3 is not None and store.s3.secret_name is not None:
        environment.append({"secretRef": {"name": store.s3.secret_name}})
    mounts: list[dict[str, Any]] = [
        *(mount.wire() for mount in spec.volume_mounts),
        {"name": "bigmodel-tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "bigmodel-shm", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    if store.persistent_volume_claim is not None:
        mounts.append({"name": "bigmodel-store", "mountPath": STORE_DIRECTORY})
    container = {
        "name": CONTAINER,
        "image": job.status.resolved.image,
        "imagePullPolicy": spec.image_pull_policy or (settings.image_pull_policy if own_image else None),
        "command": ["bigmodel-launcher"],
        "env": _merged([variable.wire() for variable in spec.env], ours),
        "envFrom": environment,
        "ports": [
            {"name": "progress", "containerPort": names.PORT_PROGRESS, "protocol": "TCP"},
            {"name": "coordinator", "containerPort": names.PORT_COORDINATOR, "protocol": "TCP"},
        ],
        "resources": spec.resources.wire() if spec.resources is not None else None,
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": "progress"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 5,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": own_image,  # others may write where they like
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    return _given(container)


def training_run(job: ObservedJob, attempt: int, size: int) -> TrainingRun:
    """What every launcher of the attempt is told. Restarts that were spent count on: the budget is the job's."""
    spec, status = job.spec, job.status
    assert spec is not None
    assert status.resolved is not None
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
    if (claim := job.status.resolved.store.persistent_volume_claim) is not None:
        volumes.append({"name": "bigmodel-store", "persistentVolumeClaim": {"claimName": claim.claim_name}})
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
