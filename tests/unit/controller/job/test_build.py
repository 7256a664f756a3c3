"""The manifests, byte for byte. BIGMODEL_GOLDEN=write rewrites the files: read the diff before committing it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigmodel.api.run import TrainingRun
from bigmodel.controller.decision import Children, Manifest
from bigmodel.controller.job import build
from bigmodel.controller.job.observe import ObservedJob, observed_job
from tests.builders import NOON, SETTINGS, a_job, time_text

GOLDEN = Path(__file__).parent / "golden"
CLAIM = {"persistentVolumeClaim": {"claimName": "models", "path": "team-a"}}
FULL: dict[str, Any] = {
    "image": "own/trainer:2",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry-login"}],
    "resources": {"limits": {"cpu": 8, "memory": "64Gi", "nvidia.com/gpu": 4}},
    "env": [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "HOME", "value": "/root"}],
    "envFrom": [{"configMapRef": {"name": "common"}}],
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}}],
    "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "priorityClassName": "high",
    "schedulerName": "other",
    "serviceAccountName": "training",
    "sharedMemory": "16Gi",
    "terminationGracePeriodSeconds": 120,
    "runAsUser": 1234,
    "fsGroup": 2345,
    "podMetadata": {"labels": {"team": "vision"}, "annotations": {"example.com/cost": "42"}},
}


def _observed(spec: dict[str, Any]) -> ObservedJob:
    job = a_job().spec(**spec)
    fresh = observed_job(job.manifest, Children(), (), None, True)
    pinned = build.resolved(fresh, SETTINGS).wire()
    job = job.status(attempt=3, startTime=time_text(NOON), resolved=pinned, restarts={"program": 1, "total": 1})
    return observed_job(job.manifest, Children(), (), None, True)


def _pod(
    spec: dict[str, Any], index: int = 1, replacement: int = 0, grouped: bool = True, **placement: Any
) -> Manifest:
    return build.node_pod(_observed(spec), SETTINGS, 3, 2, index, replacement, build.Placement(grouped, **placement))


COMMAND = {"recipe": None, "store": None, "command": ["torchrun", "train.py"], "args": ["--epochs", "3"]}
SCRIPT = {"recipe": None, "script": {"configMap": "my-code", "entrypoint": "train.py"}}
ZONE = "topology.kubernetes.io/zone"

CASES: dict[str, Manifest] = {
    "pod": _pod({}),
    "pod-replacement-without-group": _pod({}, replacement=2, grouped=False),
    "pod-full": _pod(FULL),
    "pod-claim": _pod({"store": CLAIM}),
    "pod-script": _pod(SCRIPT),
    "pod-command": _pod({**COMMAND, "image": "foreign:1", "resources": {"limits": {"nvidia.com/gpu": 8}}}),
    "pod-command-tensorflow": _pod({**COMMAND, "framework": "tensorflow"}),
    "pod-placed": _pod({}, avoided=("gpu-3", "gpu-7"), together_by=ZONE),
    "headless-service-of-a-command": build.headless_service(_observed(COMMAND), 3),
    "pod-group-in-one-zone": build.pod_group(_observed({"scheduling": {"topologyKey": ZONE}}), 3, 2),
    "headless-service": build.headless_service(_observed({}), 3),
    "network-policy": build.network_policy(_observed({})),
    "pod-group": build.pod_group(_observed(FULL), 3, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    path = GOLDEN / f"{name}.yaml"
    text = yaml.safe_dump(CASES[name], sort_keys=True, width=4096)
    if os.environ.get("BIGMODEL_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_the_same_arguments_give_the_same_bytes() -> None:
    assert str(_pod(FULL)) == str(_pod(FULL))


def _environment(pod: Manifest) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in pod["spec"]["containers"][0]["env"]}


def test_the_launcher_can_read_what_it_is_told() -> None:
    run = TrainingRun.model_validate_json(_environment(_pod(FULL))["BIGMODEL_RUN"])
    assert run.processes_per_node == 4, "auto is the pod's GPUs"
    assert run.coordinator == "mlp-0.mlp-gyjmk:8272"
    assert run.store.uri == "s3://models/team-a"
    assert (run.budgets.max_restarts, run.budgets.spent.program) == (3, 1)
    assert run.image == "own/trainer:2"


def test_our_variables_win_over_the_users_and_no_name_is_there_twice() -> None:
    names = [e["name"] for e in _pod(FULL)["spec"]["containers"][0]["env"]]
    assert len(names) == len(set(names))
    assert _environment(_pod(FULL))["HOME"] == "/tmp"
    assert _environment(_pod(FULL))["NCCL_DEBUG"] == "INFO"


def test_our_labels_win_over_the_users() -> None:
    spec = {"podMetadata": {"labels": {"bigmodel.io/active": "false", "team": "vision"}}}
    labels = _pod(spec)["metadata"]["labels"]
    assert labels["bigmodel.io/active"] == "true"
    assert labels["team"] == "vision"


def test_the_store_of_a_claim_is_a_directory_of_every_pod() -> None:
    run = TrainingRun.model_validate_json(_environment(_pod({"store": CLAIM}))["BIGMODEL_RUN"])
    assert run.store.uri == "file:///store/team-a"
    assert {"name": "bigmodel-store", "mountPath": "/store"} in _pod({"store": CLAIM})["spec"]["containers"][0][
        "volumeMounts"
    ]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"ttlSecondsAfterFinished": 5, "activeDeadlineSeconds": 9}, True),
        ({"nodes": 4}, True),
        ({"recipe": {"name": "mlp", "seed": 1}}, False),
        ({"env": [{"name": "A", "value": "b"}]}, False),
    ],
    ids=["when it ends", "how many nodes", "what it computes", "its environment"],
)
def test_the_spec_hash_names_what_is_computed(change: dict[str, Any], same: bool) -> None:
    plain, changed = (build.resolved(_observed(spec), SETTINGS).spec_hash for spec in ({}, change))
    assert (plain == changed) is same


@pytest.mark.parametrize("name", ["pod", "pod-full", "pod-script", "pod-command"])
def test_every_pod_is_restricted_and_carries_no_token(name: str) -> None:
    spec = CASES[name]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = spec["containers"][0]["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["readOnlyRootFilesystem"] is (name in ("pod", "pod-script"))
