"""The manifests of a service's children: one function for each kind, the same bytes for the same arguments."""

import json
from typing import Any

from bigmodel.api import names
from bigmodel.api import serving as pod_contract
from bigmodel.api.evaluation import EvaluationRun
from bigmodel.api.run import ServingRun
from bigmodel.controller.decision import (
    BIG_MODEL_SERVICE,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Manifest,
    ResourceKind,
)
from bigmodel.controller.service import errand, evaluation
from bigmodel.controller.service.diagnosis import is_gpu
from bigmodel.controller.service.observe import (
    ANNOTATION_QUESTION,
    ANNOTATION_REPLICAS,
    ANNOTATION_SELECTS,
    ObservedService,
)
from bigmodel.controller.service.revision import (
    ChosenImages,
    Record,
    RevisionData,
    RevisionInputs,
)
from bigmodel.controller.service.source import Artifact
from bigmodel.controller.settings import Settings
from bigmodel.controller.store_location import STORE_DIRECTORY, store_location

USER = 1000

# Not a secret of the cluster's: it only keeps callers of the network from what the containers of one pod share.
TRITON_KEY: dict[str, Any] = {
    "name": names.ENV_TRITON_KEY,
    "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}},
}
PORTS: tuple[dict[str, Any], ...] = (
    {"name": "http", "port": names.PORT_TRITON_HTTP, "targetPort": "http", "protocol": "TCP"},
    {
        "name": "grpc",
        "port": names.PORT_TRITON_GRPC,
        "targetPort": "grpc",
        "protocol": "TCP",
        "appProtocol": "kubernetes.io/h2c",  # Gateway API: HTTP/2 without TLS
    },
)


def selector(service: str, revision: int) -> dict[str, str]:
    """The labels that single out the pods of one revision."""
    return {names.LABEL_SERVICE: service, names.LABEL_REVISION: str(revision)}


def stable_url(service: str, namespace: str, settings: Settings) -> str:
    return f"http://{service}.{namespace}.svc.{settings.cluster_domain}:{names.PORT_TRITON_HTTP}"


def stable_grpc_url(service: str, namespace: str, settings: Settings) -> str:
    return f"{service}.{namespace}.svc.{settings.cluster_domain}:{names.PORT_TRITON_GRPC}"


def record(
    service: ObservedService, number: int, inputs: RevisionInputs, artifact: Artifact, settings: Settings
) -> Manifest:
    """The record of a new revision, with its pod template rendered once and for all."""
    images = ChosenImages(triton=inputs.image or settings.images.triton, server=settings.images.server)
    data = RevisionData(
        fingerprint=inputs.fingerprint(),
        inputs=inputs,
        images=images,
        job=artifact.job,
        job_uid=artifact.job_uid,
        published_at=artifact.published_at,
        selected_by=dict(artifact.selected_by) if artifact.selected_by else None,
        metrics=list(artifact.metrics),
        validation=artifact.validation,
        pod_template=pod_template(service.namespace, service.name, number, inputs, images, settings),
    )
    name = names.revision_name(service.name, number)
    return {
        **_kind(CONTROLLER_REVISION),
        "metadata": child_metadata(service, name, number),
        "data": data.wire(),
        "revision": number,
    }


def deployment(service: ObservedService, known: Record, replicas: int) -> Manifest:
    name = names.revision_name(service.name, known.number)
    return {
        **_kind(DEPLOYMENT),
        "metadata": _asked(child_metadata(service, name, known.number), ANNOTATION_REPLICAS, replicas),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector(service.name, known.number)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "revisionHistoryLimit": 1,  # the template never changes: a change is another revision
            "progressDeadlineSeconds": known.data.inputs.startup_deadline_seconds,
            "template": known.data.pod_template,
        },
    }


def revision_service(service: ObservedService, known: Record) -> Manifest:
    """The address of one revision: dark checks go here, and a route's weights."""
    name = names.revision_name(service.name, known.number)
    return _service(service, child_metadata(service, name, known.number), known.number)


def stable_service(service: ObservedService, revision: int) -> Manifest:
    """The address that callers know. Its selector is the truth about which revision is stable."""
    return _service(service, child_metadata(service, service.name), revision)


def _service(service: ObservedService, metadata: dict[str, Any], revision: int) -> Manifest:
    ports = [dict(port) for port in PORTS]
    return {
        **_kind(SERVICE),
        "metadata": _asked(metadata, ANNOTATION_SELECTS, revision),
        "spec": {"type": "ClusterIP", "selector": selector(service.name, revision), "ports": ports},
    }


def _asked(metadata: dict[str, Any], annotation: str, value: int) -> dict[str, Any]:
    return {**metadata, "annotations": {annotation: str(value)}}


def errand_pod(service: ObservedService, known: Record, task: str, question: EvaluationRun | None) -> Manifest:
    """A one-off pod of a revision: `inspect` or `evaluate`. Without the revision's label no Service selects it."""
    metadata = child_metadata(service, f"{names.revision_name(service.name, known.number)}-{task}")
    metadata["labels"] = {**metadata["labels"], "app.kubernetes.io/component": task}
    metadata["annotations"] = {ANNOTATION_QUESTION: errand.question_hash(question)}
    if question is None:
        return errand.pod(known, task, metadata, {}, None)
    asked = json.dumps(question.wire(), sort_keys=True, separators=(",", ":"))
    return errand.pod(known, task, metadata, {names.ENV_EVALUATION: asked}, evaluation.claim(question))


def disruption_budget(service: ObservedService, revision: int) -> Manifest:
    """Drains take one pod of stable at a time; a pod that serves nobody never blocks a drain."""
    return {
        **_kind(POD_DISRUPTION_BUDGET),
        "metadata": child_metadata(service, service.name),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(service.name, revision)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def network_policy(service: ObservedService) -> Manifest:
    """Inference from everywhere; verdicts and metrics for the operator and for Prometheus, wherever they run."""
    return {
        **_kind(NETWORK_POLICY),
        "metadata": child_metadata(service, service.name),
        "spec": {
            "podSelector": {"matchLabels": {names.LABEL_SERVICE: service.name}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"ports": [_port(names.PORT_TRITON_HTTP), _port(names.PORT_TRITON_GRPC)]},
                {
                    "from": [
                        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}
                        for name in ("bigmodel-operator", "prometheus")
                    ],
                    "ports": [_port(names.PORT_VERDICT), _port(names.PORT_TRITON_METRICS)],
                },
            ],
        },
    }


def _port(number: int) -> dict[str, Any]:
    return {"protocol": "TCP", "port": number}


def pod_template(
    namespace: str, service: str, revision: int, inputs: RevisionInputs, images: ChosenImages, settings: Settings
) -> dict[str, Any]:
    """A serving pod: `fetch` fills the model volume and ends, Triton serves it, the verifier says when it is Ready."""
    drain = pod_contract.drain(inputs.max_request_seconds)
    run = serving_run(namespace, service, revision, inputs)
    pull_secrets = [secret.name for secret in inputs.image_pull_secrets]
    pull_secrets += [name for name in settings.image_pull_secrets if name not in pull_secrets]
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a namespace of many Services would fill the environment
        "serviceAccountName": inputs.service_account_name,
        "terminationGracePeriodSeconds": drain.termination_grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "imagePullSecrets": [{"name": name} for name in pull_secrets],
        "nodeSelector": dict(inputs.node_selector),
        "tolerations": [toleration.wire() for toleration in inputs.tolerations],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",  # two pods on one node still beat one pod
                "labelSelector": {"matchLabels": selector(service, revision)},
            }
        ],
        "initContainers": [_fetch(run, inputs, images, settings)],
        "containers": [
            _server(run, inputs, images, settings, drain),
            _verifier(run, images, settings, drain),
        ],
        "volumes": _volumes(inputs),
    }
    return {
        "metadata": {
            "labels": {**_labels(service), **selector(service, revision)},
            "annotations": {"kubectl.kubernetes.io/default-container": "server"},
        },
        "spec": {field: value for field, value in spec.items() if value not in (None, [], {})},
    }


def serving_run(namespace: str, service: str, revision: int, inputs: RevisionInputs) -> ServingRun:
    limits = inputs.resources.limits or {}
    return ServingRun(
        namespace=namespace,
        service=service,
        revision=revision,
        model=inputs.model,
        artifact_uri=inputs.artifact_uri,
        digest=inputs.digest,
        variant=inputs.variant,
        store=store_location(inputs.store),
        backend=inputs.backend,
        max_batch_size=inputs.batching.max_batch_size,
        max_queue_delay_microseconds=inputs.batching.max_queue_delay_microseconds,
        instances=inputs.batching.instances,
        parity_absolute=inputs.parity.absolute,
        parity_relative=inputs.parity.relative,
        accelerators=sum(int(value) for name, value in limits.items() if is_gpu(name) and str(value).isdigit()),
        startup_deadline_seconds=inputs.startup_deadline_seconds,
    )


def _fetch(run: ServingRun, inputs: RevisionInputs, images: ChosenImages, settings: Settings) -> dict[str, Any]:
    store = inputs.store
    mounts = [_mount("model", pod_contract.MODEL_DIRECTORY), _mount("fetch-tmp", "/tmp")]  # noqa: S108
    if store.persistent_volume_claim is not None:
        mounts.append(_mount("store", STORE_DIRECTORY, read_only=True))
    container = _container("fetch", images.server, settings, run, mounts)
    container["command"] = ["python", "-m", "bigmodel.server.fetch"]
    if store.s3 is not None and store.s3.secret_name is not None:
        container["envFrom"] = [{"secretRef": {"name": store.s3.secret_name}}]
    container["resources"] = _small(memory="1Gi")
    return container


def _server(
    run: ServingRun, inputs: RevisionInputs, images: ChosenImages, settings: Settings, drain: pod_contract.Drain
) -> dict[str, Any]:
    mounts = [
        _mount("model", pod_contract.MODEL_DIRECTORY, read_only=True),
        _mount("server-tmp", "/tmp"),  # noqa: S108
        _mount("shm", "/dev/shm"),  # noqa: S108
    ]
    ready = {"path": pod_contract.ready_path(run.model, run.revision), "port": "http"}
    container = _container("server", images.triton, settings, run, mounts)
    container["env"].append(TRITON_KEY)
    container["command"] = ["tritonserver"]
    container["args"] = pod_contract.triton_arguments(drain.exit_timeout_seconds)
    container["ports"] = [
        {"name": "http", "containerPort": names.PORT_TRITON_HTTP, "protocol": "TCP"},
        {"name": "grpc", "containerPort": names.PORT_TRITON_GRPC, "protocol": "TCP"},
        {"name": "metrics", "containerPort": names.PORT_TRITON_METRICS, "protocol": "TCP"},
    ]
    # Triton opens its ports only when the model is loaded, so this probe bounds loading, which has no end of its own.
    container["startupProbe"] = {
        "httpGet": ready,
        "periodSeconds": 2,
        "timeoutSeconds": 2,
        "failureThreshold": max(1, -(-inputs.startup_deadline_seconds // 2)),
    }
    container["readinessProbe"] = {"httpGet": ready, "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 2}
    # Triton calls itself live while its model process is dead; the verifier asks the model.
    container["livenessProbe"] = {
        "httpGet": {"path": pod_contract.PATH_LIVE, "port": names.PORT_VERDICT},
        "periodSeconds": 5,
        "timeoutSeconds": 3,
        "failureThreshold": 3,
        "terminationGracePeriodSeconds": 5,  # a dead model has nothing to drain
    }
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": drain.pre_stop_seconds}}}
    if resources := inputs.resources.wire():
        container["resources"] = resources
    return container


def _verifier(run: ServingRun, images: ChosenImages, settings: Settings, drain: pod_contract.Drain) -> dict[str, Any]:
    mounts = [_mount("model", pod_contract.MODEL_DIRECTORY, read_only=True), _mount("verifier-tmp", "/tmp")]  # noqa: S108
    container = _container("verifier", images.server, settings, run, mounts)
    container["env"].append(TRITON_KEY)
    container["command"] = ["python", "-m", "bigmodel.server.verify"]
    container["ports"] = [{"name": "verdict", "containerPort": names.PORT_VERDICT, "protocol": "TCP"}]
    container["readinessProbe"] = {
        "httpGet": {"path": pod_contract.PATH_READY, "port": "verdict"},
        "periodSeconds": 1,
        "timeoutSeconds": 2,
        "failureThreshold": 2,
    }
    # It stays while Triton drains: a proxy that finds only ending pods still sends to those that answer their probe.
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": drain.pre_stop_seconds}}}
    container["resources"] = _small(memory="256Mi")  # it holds the golden samples, 32 MiB at most
    return container


def _container(
    name: str, image: str, settings: Settings, run: ServingRun, mounts: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "env": [
            {"name": "HOME", "value": "/tmp"},  # noqa: S108
            {"name": names.ENV_SERVING_RUN, "value": json.dumps(run.wire(), sort_keys=True, separators=(",", ":"))},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _small(memory: str) -> dict[str, Any]:
    """Our own processes beside Triton; limits, because a quota may ask for them."""
    return {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": memory}}


def _mount(name: str, path: str, read_only: bool = False) -> dict[str, Any]:
    mount: dict[str, Any] = {"name": name, "mountPath": path}
    return {**mount, "readOnly": True} if read_only else mount


def _volumes(inputs: RevisionInputs) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "model", "emptyDir": {}},
        *({"name": f"{container}-tmp", "emptyDir": {}} for container in ("fetch", "server", "verifier")),
        # The python backend takes 1 MiB for each instance at rest, and the tensors of a batch on top.
        {
            "name": "shm",
            "emptyDir": {"medium": "Memory", "sizeLimit": f"{max(256, 64 * inputs.batching.instances)}Mi"},
        },
    ]
    claim = inputs.store.persistent_volume_claim
    if claim is not None:
        volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}})
    return volumes


def _kind(kind: ResourceKind) -> dict[str, Any]:
    return {"apiVersion": kind.api_version, "kind": kind.kind}


def _labels(service: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "bigmodel-service",
        "app.kubernetes.io/instance": service,
        "app.kubernetes.io/component": "server",
        "app.kubernetes.io/managed-by": names.FIELD_MANAGER,
        "app.kubernetes.io/part-of": "bigmodel",
        names.LABEL_SERVICE: service,
    }


def child_metadata(service: ObservedService, name: str, revision: int | None = None) -> dict[str, Any]:
    labels = _labels(service.name)
    if revision is not None:
        labels[names.LABEL_REVISION] = str(revision)
    return {
        "name": name,
        "namespace": service.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": BIG_MODEL_SERVICE.api_version,
                "kind": BIG_MODEL_SERVICE.kind,
                "name": service.name,
                "uid": service.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
