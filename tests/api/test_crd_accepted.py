"""What is accepted, what the API server fills in, and what users see of it with kubectl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bigmodel.api import crd
from bigmodel.api.job import JobSpec, JobStatus, NodeCounts, Progress
from bigmodel.api.names import API_VERSION
from bigmodel.api.service import ServiceSpec
from tests.api.kubectl import Kubectl, Refused

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))


def manifest(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


SMALLEST_JOB = {"recipe": {"name": "mlp"}}
SMALLEST_SERVICE = {"model": {"fromJob": {"name": "mlp"}}}


def test_the_smallest_job_gets_the_defaults_of_the_models(kubectl: Kubectl) -> None:
    stored = kubectl.apply(manifest("BigModelJob", "smallest", SMALLEST_JOB))
    assert JobSpec.model_validate(stored["spec"]) == JobSpec.model_validate(SMALLEST_JOB)
    assert stored["spec"]["failurePolicy"]["maxInfrastructureRestarts"] == 20
    assert "status" not in stored


def test_the_smallest_service_gets_the_defaults_of_the_models(kubectl: Kubectl) -> None:
    stored = kubectl.apply(manifest("BigModelService", "smallest", SMALLEST_SERVICE))
    assert ServiceSpec.model_validate(stored["spec"]) == ServiceSpec.model_validate(SMALLEST_SERVICE)
    assert stored["spec"]["rollout"]["steps"] == [5, 25, 50]
    assert "status" not in stored


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_example_is_accepted(kubectl: Kubectl, example: Path) -> None:
    kubectl("create", "--dry-run=server", "-f", str(example))


def test_applying_the_same_again_changes_no_generation(kubectl: Kubectl) -> None:
    job = manifest("BigModelJob", "same-again", SMALLEST_JOB | {"env": [{"name": "A", "value": "1"}]})
    first, second = kubectl.apply(job), kubectl.apply(job)
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]


def test_all_of_a_job_that_this_version_serves_is_accepted(kubectl: Kubectl) -> None:
    job = yaml.safe_load(
        """
        framework: pytorch
        recipe:
          name: mlp
          parameters: {hidden: [64, 32]}
          data: {uri: "dataset://diabetes"}
          loss: huber
          optimizer: {name: adamw, learningRate: 0.01, parameters: {weight_decay: 0.01}}
          schedule: {name: cosine, warmupSteps: 10}
          precision: fp32
          seed: 7
          gradientAccumulation: 2
          clipNorm: 1.5
          batchSize: 128
          epochs: 3
          target: {metric: val_mse, atMost: 2900}
        image: registry.example.com/trainer@sha256:0000
        imagePullPolicy: Always
        imagePullSecrets: [{name: login}]
        nodes: 2
        processesPerNode: 4
        resources: {limits: {cpu: 8, memory: 64Gi, nvidia.com/gpu: 4}, requests: {cpu: 500m}}
        parallelism: {data: 8}
        env:
        - {name: NCCL_DEBUG, value: INFO}
        - {name: BIGMODEL_PRELOAD, value: "0"}
        - {name: TOKEN, valueFrom: {secretKeyRef: {name: token, key: TOKEN_1.txt, optional: true}}}
        - {name: EMPTY, value: ""}
        envFrom: [{prefix: MY_, configMapRef: {name: settings}}]
        volumes:
        - {name: data, persistentVolumeClaim: {claimName: data, readOnly: true}}
        - {name: scratch, emptyDir: {sizeLimit: 1Gi}}
        volumeMounts: [{name: data, mountPath: /data, subPath: a/b}, {name: scratch, mountPath: /scratch}]
        nodeSelector: {topology.kubernetes.io/zone: a}
        tolerations: [{key: gpu, operator: Exists, effect: NoExecute, tolerationSeconds: 60}, {operator: Exists}]
        priorityClassName: high
        schedulerName: default-scheduler
        serviceAccountName: trainer
        sharedMemory: 2Gi
        terminationGracePeriodSeconds: 120
        runAsUser: 2000
        fsGroup: 2000
        podMetadata: {labels: {team: vision, example.com/cost: "12"}, annotations: {note: "a: b"}}
        scheduling: {gang: none, startDeadlineSeconds: 60}
        store: {s3: {bucket: models, prefix: a/b, endpoint: "http://minio.storage:9000", region: eu, secretName: login}}
        failurePolicy:
          maxRestarts: 0
          maxInfrastructureRestarts: 1
          maxHangRestarts: 1
          hangTimeoutSeconds: 30
          rules: [{onExitCodes: [42, 143], action: FailJob}, {action: RestartAndIgnore}]
        output: {golden: random, export: [torch], serve: default}
        activeDeadlineSeconds: 60
        ttlSecondsAfterFinished: 0
        managedBy: example.com/other
        """
    )
    kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(manifest("BigModelJob", "all", job)))


def test_all_of_a_service_that_this_version_serves_is_accepted(kubectl: Kubectl) -> None:
    service = yaml.safe_load(
        """
        model: {name: my_model.v1, variant: default, fromJob: {name: mlp}}
        server:
          image: registry.example.com/triton:25.07
          imagePullSecrets: [{name: login}]
          backend: python
          replicas: 0
          resources: {limits: {cpu: 2, memory: 4Gi}}
          nodeSelector: {disk: ssd}
          tolerations: [{key: gpu, value: a100, effect: NoSchedule}]
          serviceAccountName: server
          startupDeadlineSeconds: 600
          maxRequestSeconds: 5
        batching: {maxBatchSize: 8, maxQueueDelayMicroseconds: 0, instances: 2}
        gates: {contract: strict, parity: {absolute: 0.001, relative: 0.01}}
        rollout: {strategy: blueGreen}
        """
    )
    kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(manifest("BigModelService", "all", service)))


def test_a_job_and_a_service_may_share_a_name_of_fifty_characters(kubectl: Kubectl) -> None:
    name = "a" + 48 * "-" + "z"
    kubectl.apply(manifest("BigModelJob", name, SMALLEST_JOB), "--dry-run=server")
    kubectl.apply(manifest("BigModelService", name, SMALLEST_SERVICE), "--dry-run=server")


def test_scale_sets_nodes_and_shows_what_is_ready(kubectl: Kubectl) -> None:
    kubectl.apply(manifest("BigModelJob", "scaled", SMALLEST_JOB))
    kubectl.write_status(
        "bmj",
        "scaled",
        {"nodes": NodeCounts(desired=1, ready=1, summary="1/1").wire(), "selector": "bigmodel.io/job=scaled"},
    )
    kubectl("scale", "bmj", "scaled", "--replicas=3")
    scale = yaml.safe_load(kubectl("get", "--raw", f"/apis/{API_VERSION}/namespaces/default/bigmodeljobs/scaled/scale"))
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 1, "selector": "bigmodel.io/job=scaled"}
    with pytest.raises(Refused, match="greater than or equal to 1"):
        kubectl("scale", "bmj", "scaled", "--replicas=0")


def test_a_service_scales_to_zero(kubectl: Kubectl) -> None:
    kubectl.apply(manifest("BigModelService", "scaled", SMALLEST_SERVICE))
    kubectl("scale", "bms", "scaled", "--replicas=0")
    assert kubectl("get", "bms", "scaled", "-o", "jsonpath={.spec.server.replicas}") == "0"


def test_the_columns_show_what_the_status_says(kubectl: Kubectl) -> None:
    kubectl.apply(manifest("BigModelJob", "shown", SMALLEST_JOB))
    progress = Progress(step=1240, total_steps=2000, summary="62%", loss="0.2117", updated_at="2026-01-01T00:00:00Z")
    status = JobStatus(
        phase="Training", nodes=NodeCounts(desired=2, ready=2, summary="2/2"), progress=progress, message="all is well"
    )
    kubectl.write_status("bmj", "shown", status.wire())
    header, row = kubectl("get", "bmj", "shown").splitlines()
    assert header.split() == ["NAME", "PHASE", "NODES", "PROGRESS", "LOSS", "GOODPUT", "RESTARTS", "CHECKPOINT", "AGE"]
    assert row.split()[:6] == ["shown", "Training", "2/2", "62%", "0.2117", "0"]
    wide = kubectl("get", "bmj", "shown", "-o", "wide").splitlines()[0].split()
    assert wide[9:] == ["ETA", "STEP", "STEPS/S", "ATTEMPT", "ARTIFACT", "MESSAGE"]
    header = kubectl("get", "bms", "smallest", "-o", "wide").splitlines()[0]
    assert " ".join(header.split()) == ("NAME READY SERVING ROLLOUT REPLICAS URL AGE P99 ERRORS DIGEST BACKEND MESSAGE")


def test_jobs_are_selected_by_phase_and_by_suspend(kubectl: Kubectl) -> None:
    kubectl.apply(manifest("BigModelJob", "selected", SMALLEST_JOB))
    kubectl.write_status("bmj", "selected", {"phase": "Queued"})
    found = kubectl("get", "bigmodel", "--field-selector=status.phase=Queued", "-o", "name")
    assert found.split() == ["bigmodeljob.bigmodel.io/selected"]
    assert "bmj" not in kubectl("get", "bmj", "--field-selector=spec.suspend=true", "-o", "name")


@pytest.mark.parametrize(
    ("field", "says"),
    {
        "bmj": "trains a model on a gang of pods",
        "bmj.spec.nodes": "Pods of the gang",
        "bmj.spec.recipe.batchSize": "Default: 256",
        "bmj.spec.sharedMemory": "Default: 1Gi",
        "bmj.status.goodput.lostSeconds": "made again after a failure",
        "bms.spec.model.fromJob": "Follow one job by name",
        "bms.spec.rollout.steps": "Default: [5, 25, 50]",
        "bms.status.conditions.reason": "in one CamelCase word",
    }.items(),
)
def test_explain_tells_what_a_field_does(kubectl: Kubectl, field: str, says: str) -> None:
    assert says in " ".join(kubectl("explain", field).split())


def test_upgrading_the_crds_with_the_same_ones_changes_nothing(kubectl: Kubectl) -> None:
    before = kubectl("get", "crd", "-o", "jsonpath={.items[*].metadata.generation}")
    kubectl("apply", "--server-side", "-f", str(crd.FOLDERS[0]))
    assert kubectl("get", "crd", "-o", "jsonpath={.items[*].metadata.generation}") == before
