"""Objects as tests need them: each starts valid and small, each call changes one thing and returns a new one."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from bigmodel.api import names
from bigmodel.controller.decision import Manifest
from bigmodel.controller.settings import Images, Settings

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
JOB_UID = "0d5c7f1e-6c55-4d7a-9b6e-1b2c3d4e5f60"
DIGEST = "sha256:" + "3f" * 32
STORE = {"s3": {"bucket": "models", "prefix": "team-a", "endpoint": "http://store:9000", "secretName": "s3-login"}}
STORE_URI = "s3://models/team-a"
SETTINGS = Settings(images=Images(trainer="trainer:1", server="server:1", triton="triton:1"))


def time_text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


@dataclass(frozen=True)
class AJob:
    """A BigModelJob: two nodes, the smallest recipe, a store."""

    manifest: Manifest = field(
        default_factory=lambda: {
            "apiVersion": "bigmodel.io/v1alpha1",
            "kind": "BigModelJob",
            "metadata": {
                "name": "mlp",
                "namespace": "ml",
                "uid": JOB_UID,
                "generation": 1,
                "creationTimestamp": time_text(NOON),
            },
            "spec": {"recipe": {"name": "mlp"}, "nodes": 2, "store": STORE},
        }
    )

    def spec(self, **fields: Any) -> AJob:
        """Replace fields of the spec; None removes one. The API server counts a generation for it."""
        changed = self._copy()
        spec = {**changed["spec"], **fields}
        changed["spec"] = {name: value for name, value in spec.items() if value is not None}
        return AJob(changed)

    def metadata(self, **fields: Any) -> AJob:
        changed = self._copy()
        changed["metadata"] |= fields
        return AJob(changed)

    def status(self, **fields: Any) -> AJob:
        changed = self._copy()
        changed["status"] = {**(changed.get("status") or {}), **fields}
        return AJob(changed)

    def _copy(self) -> Manifest:
        return copy.deepcopy(self.manifest)


def a_job() -> AJob:
    return AJob()


@dataclass(frozen=True)
class AProgress:
    """What the launcher of index 0 answers: starting, no step yet."""

    fields: dict[str, Any] = field(
        default_factory=lambda: {
            "uid": JOB_UID,
            "attempt": 1,
            "generation": 1,
            "phase": "Starting",
            "step": 0,
            "totalSteps": 2000,
            "updatedAt": NOON.timestamp(),
        }
    )

    def with_(self, **fields: Any) -> AProgress:
        return replace(self, fields={**self.fields, **fields})

    def training(self, step: int, first_step_at: datetime, loss: str = "0.2117") -> AProgress:
        return self.with_(
            phase="Training",
            step=step,
            stepsPerSecond=8.1,
            metrics=[{"name": "loss", "value": loss}],
            firstStepAt=first_step_at.timestamp(),
        )

    def publishing(self) -> AProgress:
        return self.with_(phase="Publishing", step=self.fields["totalSteps"])

    def incident(self, **fields: Any) -> AProgress:
        incident = {
            "at": NOON.timestamp(),
            "generation": 1,
            "cause": "ProgramError",
            "rank": 1,
            "exitCode": 137,
            "message": "rank 1 (index 1) was killed by SIGKILL",
            **fields,
        }
        return self.with_(incidents=[*self.fields.get("incidents", []), incident])

    def json(self) -> str:
        return json.dumps(self.fields)


def a_progress() -> AProgress:
    return AProgress()


def an_artifact(digest: str = DIGEST, **fields: Any) -> dict[str, Any]:
    return {
        "uri": f"{STORE_URI}/ml/mlp/{JOB_UID}/artifact/{digest.removeprefix('sha256:')}",
        "digest": digest,
        "sizeBytes": 10_300_000,
        "variant": "default",
        "metrics": [{"name": "val_mse", "value": "2871.4"}],
        **fields,
    }


def a_checkpoint(step: int, attempt: int = 1, generation: int = 1, **fields: Any) -> dict[str, Any]:
    """As rank 0 tells one that it has committed or loaded."""
    return {
        "step": step,
        "uri": f"{STORE_URI}/ml/mlp/{JOB_UID}/checkpoint/{attempt}.{generation}/{step}",
        "digest": DIGEST,
        "savedAt": NOON.timestamp(),
        **fields,
    }


def a_last_word(index: int = 0, attempt: int = 1, exit_code: int = 0, **fields: Any) -> str:
    """A launcher's termination message."""
    return json.dumps(
        {
            "uid": JOB_UID,
            "attempt": attempt,
            "generation": 1,
            "index": index,
            "exitCode": exit_code,
            "step": 2000,
            **fields,
        }
    )


def gave_up(index: int = 0, attempt: int = 1, reason: str = "MaxRestartsExceeded", **fields: Any) -> str:
    """The last word of a gang whose rank 1 failed once too often."""
    return a_last_word(
        index,
        attempt,
        1,
        **{
            "reason": reason,
            "message": "rank 1 (index 1) exited with 1: TypeError: unexpected keyword 'beta'; 3 of 3 restarts are used "
            "(spec.failurePolicy.maxRestarts)",
            "error": {
                "rank": 1,
                "index": 1,
                "exitCode": 1,
                "message": "rank 1 (index 1) exited with 1: TypeError: unexpected keyword 'beta'",
                "traceback": 'Traceback (most recent call last):\n  File "train.py", line 7\n'
                "TypeError: unexpected keyword 'beta'",
            },
            **fields,
        },
    )


def pod_name(index: int, attempt: int = 1, replacement: int = 0, job: str = "mlp", uid: str = JOB_UID) -> str:
    return names.node_pod(job, uid, attempt, index, replacement)
