"""What a training pod and a serving pod are told: one JSON document each in one environment variable.

The controller writes it, `bigmodel run` writes it too; the launcher, the trainer and the server read it and know
nothing of Kubernetes.
"""

from typing import Literal

from pydantic import Field

from bigmodel.api.job import Checkpoint, FailureRule, Output, Parallelism, Recipe, Script
from bigmodel.api.model import Digest, ImageReference, LongText, Model, Text, VariantName


class StoreLocation(Model):
    """Where artefacts go: `uri` is `s3://bucket/prefix` or `file:///path`. Credentials come as AWS_* variables."""

    uri: LongText
    endpoint: Text | None = None
    region: Text | None = None


class RestartCounts(Model):
    """Restarts that already happened in this attempt, by whose fault."""

    program: int = 0
    hang: int = 0


class Budgets(Model):
    """What the coordinator may still spend on new generations inside this attempt."""

    max_restarts: int
    max_hang_restarts: int
    hang_timeout_seconds: int
    rules: list[FailureRule] = Field(default_factory=list)
    spent: RestartCounts = RestartCounts()


class TrainingRun(Model):
    """One attempt of one job, as every pod of its gang is told. Exactly one of `recipe` and `script` is set."""

    namespace: str
    job: str
    uid: str
    attempt: int
    nodes: int
    processes_per_node: int | Literal["auto"]
    coordinator: str  # host:port of index 0; resolved anew at each connection
    start_deadline_seconds: int
    termination_grace_seconds: int
    framework: Literal["pytorch", "tensorflow"]
    recipe: Recipe | None = None
    script: Script | None = None
    args: list[str] = Field(default_factory=list)
    parallelism: Parallelism
    checkpoint: Checkpoint
    output: Output
    store: StoreLocation
    budgets: Budgets
    image: ImageReference  # provenance


class ServingRun(Model):
    """One revision of one service, as its fetch, server and verifier containers are told."""

    namespace: str
    service: str
    revision: int
    model: str  # the name clients call
    artifact_uri: LongText
    digest: Digest
    variant: VariantName
    store: StoreLocation
    backend: Literal["auto", "python", "onnxruntime", "aoti"]
    max_batch_size: int
    max_queue_delay_microseconds: int
    instances: int
    parity_absolute: float | None = None  # None: the default of the variant's precision
    parity_relative: float | None = None
    accelerators: int = 0  # GPUs of the pod; 0: CPU
    startup_deadline_seconds: int = 1800  # from a pod's start to its verified model
