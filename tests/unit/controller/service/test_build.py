"""The manifests, byte for byte. BIGMODEL_GOLDEN=write rewrites the files: read the diff before committing it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigmodel.api.run import ServingRun
from bigmodel.api.service import ServiceSpec
from bigmodel.api.serving import drain
from bigmodel.controller.decision import Children, Manifest
from bigmodel.controller.service import build
from bigmodel.controller.service.observe import ObservedService, observed_service
from bigmodel.controller.service.revision import Record, inputs, record_of
from bigmodel.controller.service.source import Artifact
from tests.unit.controller.service.world import DIGEST_A, SETTINGS, START, a_service, time_text

GOLDEN = Path(__file__).parent / "golden"
S3 = {"s3": {"bucket": "models", "prefix": "team-a", "endpoint": "http://store:9000", "secretName": "s3-login"}}
CLAIM = {"persistentVolumeClaim": {"claimName": "models", "path": "team-a"}}
FULL = {
    "server": {
        "image": "own/triton:25.08",
        "backend": "python",
        "replicas": 2,
        "resources": {"limits": {"cpu": 8, "memory": "64Gi", "nvidia.com/gpu": 2}},
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "serviceAccountName": "serving",
        "imagePullSecrets": [{"name": "registry-login"}],
        "startupDeadlineSeconds": 601,
        "maxRequestSeconds": 60,
    },
    "batching": {"maxBatchSize": 8, "maxQueueDelayMicroseconds": 100, "instances": 8},
    "gates": {"parity": {"absolute": 0.01}},
}


def _observed(spec: dict[str, Any]) -> ObservedService:
    return observed_service(a_service(**spec), Children(), (), (), {})


def _artifact(store: dict[str, Any]) -> Artifact:
    parsed = ServiceSpec.model_validate(
        {"model": {"artifact": {"uri": "s3://models/x/", "digest": DIGEST_A, "store": store}}}
    )
    assert parsed.model.artifact is not None
    assert parsed.model.artifact.store is not None
    return Artifact("s3://models/team-a/x/", DIGEST_A, "default", parsed.model.artifact.store, "mlp", "job-uid")


def _record_manifest(spec: dict[str, Any], store: dict[str, Any]) -> Manifest:
    service, artifact = _observed(spec), _artifact(store)
    assert service.spec is not None
    return build.record(service, 3, inputs(service.name, service.spec, artifact), artifact, SETTINGS)


def _record(spec: dict[str, Any], store: dict[str, Any]) -> Record:
    manifest = _record_manifest(spec, store)
    manifest["metadata"] |= {"uid": "record-uid", "creationTimestamp": time_text(START)}
    record = record_of(manifest)
    assert record is not None
    return record


MANIFESTS: dict[str, Manifest] = {
    "record": _record_manifest({}, S3),
    "deployment": build.deployment(_observed({}), _record({}, S3), 1),
    "deployment-full": build.deployment(_observed(FULL), _record(FULL, CLAIM), 2),
    "revision-service": build.revision_service(_observed({}), _record({}, S3)),
    "stable-service": build.stable_service(_observed({}), 3),
    "network-policy": build.network_policy(_observed({})),
    "disruption-budget": build.disruption_budget(_observed({}), 3),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_as_agreed(name: str) -> None:
    text = yaml.safe_dump(MANIFESTS[name], sort_keys=False, width=120)
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("BIGMODEL_GOLDEN") == "write":
        golden.write_text(text)
    assert golden.read_text() == text


def _pod(spec: dict[str, Any], store: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = _record(spec, store).data.pod_template["spec"]
    return pod


@pytest.mark.parametrize("spec", [{}, FULL], ids=["smallest", "full"])
@pytest.mark.parametrize("store", [S3, CLAIM], ids=["s3", "claim"])
def test_every_container_is_restricted_and_only_fetch_sees_the_store(
    spec: dict[str, Any], store: dict[str, Any]
) -> None:
    pod = _pod(spec, store)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    containers = {c["name"]: c for c in (*pod["initContainers"], *pod["containers"])}
    for container in containers.values():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    sees_store = {name for name, c in containers.items() if "envFrom" in c or _mounts(c).get("/store")}
    assert sees_store == {"fetch"}
    for name in ("server", "verifier"):
        assert _mounts(containers[name])["/model"].get("readOnly") is True
    if "persistentVolumeClaim" in store:
        assert _mounts(containers["fetch"])["/store"]["readOnly"] is True


def _mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def test_a_pod_has_time_to_drain() -> None:
    pod = _pod(FULL, S3)
    expected = drain(60)
    server = pod["containers"][0]
    assert pod["terminationGracePeriodSeconds"] == expected.termination_grace_seconds > 60
    assert server["lifecycle"]["preStop"]["sleep"]["seconds"] == expected.pre_stop_seconds
    assert f"--exit-timeout-secs={expected.exit_timeout_seconds}" in server["args"]


def test_the_startup_probe_lasts_as_long_as_the_deadline() -> None:
    probe = _pod(FULL, S3)["containers"][0]["startupProbe"]
    assert 601 <= probe["periodSeconds"] * probe["failureThreshold"] <= 603


def test_the_pod_is_told_what_to_serve_and_reads_it_as_the_server_room_will() -> None:
    for container in (*_pod(FULL, CLAIM)["initContainers"], *_pod(FULL, CLAIM)["containers"]):
        told = next(e["value"] for e in container["env"] if e["name"] == "BIGMODEL_SERVE")
        run = ServingRun.model_validate_json(told)
        assert (run.model, run.revision, run.digest, run.backend) == ("mlp", 3, DIGEST_A, "python")
        assert (run.max_batch_size, run.instances, run.accelerators) == (8, 8, 2)
        assert (run.parity_absolute, run.parity_relative) == (0.01, None)
        assert run.store.uri == "file:///store/team-a"
        assert run.startup_deadline_seconds == 601


def test_the_stable_service_and_the_pods_agree_on_labels() -> None:
    deployment = MANIFESTS["deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        MANIFESTS["stable-service"]["spec"]["selector"],
        MANIFESTS["revision-service"]["spec"]["selector"],
        MANIFESTS["disruption-budget"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["network-policy"]["spec"]["podSelector"]["matchLabels"],
        deployment["spec"]["selector"]["matchLabels"],
        {"app.kubernetes.io/managed-by": "bigmodel-operator"},  # what the controller's reflectors list
    ):
        assert selector.items() <= labels.items()
