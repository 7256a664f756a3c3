"""What training pods say, to each other's launcher and to the controller. Untrusted input to the reader: bounded here.

rank → launcher: `RankReport`, one JSON datagram on the socket ENV_REPORT_SOCKET.
launcher of index 0 → controller: `Progress`, the answer of GET :8270/v1/progress.
launcher → controller: `LastWord`, the termination message, ≤ LAST_WORD_BYTES of JSON (the kubelet cuts at 4096 bytes).
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from bigmodel.api.model import Digest, LongText, Metric, Model, Text, VariantName

LAST_WORD_BYTES = 3584
PROGRESS_BYTES = 65536

Step = Annotated[int, Field(ge=0, le=10**12)]
NonNegative = Annotated[float, Field(ge=0, le=1e12)]


class RunPhase(StrEnum):
    """What a rank is doing. The heartbeat watch is armed in TRAINING only."""

    STARTING = "Starting"  # imports, process group, data, model, compile; before the first step
    TRAINING = "Training"
    CHECKPOINTING = "Checkpointing"
    PUBLISHING = "Publishing"  # export, golden samples, upload
    DONE = "Done"


class ArtifactVariant(Model):
    name: Annotated[VariantName, Field(description="Name of the variant.")]
    size_bytes: Annotated[int, Field(ge=0, description="Size of its files.")]
    metrics: Annotated[list[Metric], Field(max_length=8, description="Measured on the validation data.")] = Field(
        default_factory=list
    )
    offered: Annotated[bool, Field(description="Whether a service may take it.")] = True
    message: Annotated[Text | None, Field(description="Why it is not offered.")] = None


class ArtifactSummary(Model):
    """What was published. `variant` is the one that a service takes by default."""

    uri: Annotated[LongText, Field(description="Its directory in the store.")]
    digest: Annotated[Digest, Field(description="Digest of its manifest.")]
    size_bytes: Annotated[int, Field(ge=0, description="Size of all files.")]
    variant: Annotated[VariantName, Field(description="The variant a service takes by default.")]
    metrics: Annotated[list[Metric], Field(max_length=8, description="Of that variant.")] = Field(default_factory=list)
    validation_digest: Annotated[Digest | None, Field(description="Of the validation data.")] = None
    variants: Annotated[list[ArtifactVariant], Field(max_length=8, description="All variants.")] = Field(
        default_factory=list
    )


class CheckpointSummary(Model):
    """A committed checkpoint, as rank 0 tells it."""

    step: Step
    uri: LongText
    digest: Digest
    saved_at: NonNegative  # seconds since the epoch, the clock of rank 0


class RankReport(Model):
    """One rank's heartbeat and news. Sent at each step at most every 100 ms, and at each change of phase."""

    rank: Annotated[int, Field(ge=0)]
    generation: Annotated[int, Field(ge=1)]
    phase: RunPhase
    step: Step = 0
    total_steps: Step = 0
    in_collective: bool = False
    metrics: Annotated[list[Metric], Field(max_length=8)] = Field(default_factory=list)
    artifact: ArtifactSummary | None = None
    # Of rank 0. A checkpoint is told once, when it is committed or loaded; an error until a save succeeds.
    checkpoint: CheckpointSummary | None = None
    checkpoint_error: LongText | None = None
    checkpoint_seconds: NonNegative = 0.0  # training was blocked by saves, in this generation


class Notice(Model):
    """Launcher → rank, the file ENV_NOTICE: save a checkpoint at the next step that all ranks agree on.

    `request` grows by one with each request of a generation. With `leave` every rank also gets SIGTERM, and exits 143
    after saving.
    """

    request: Annotated[int, Field(ge=1)]
    leave: bool = False


class ErrorReport(Model):
    """The first failure of a generation: the culprit, not those who died of it."""

    rank: int
    index: int
    exit_code: int  # 128 + signal when killed by one
    signal: Text | None = None
    message: LongText
    traceback: Annotated[str, StringConstraints(max_length=4096)] | None = None


class Incident(Model):
    """One ended generation."""

    at: NonNegative  # seconds since the epoch, the launcher's clock
    generation: int
    cause: Text
    rank: int | None = None
    exit_code: int | None = None
    message: LongText
    log: LongText | None = None  # the last lines that the first failing rank wrote
    step: Step = 0  # the furthest that any rank had made
    resumed_from_step: Step | None = None
    recovery_seconds: NonNegative | None = None


class Ledger(Model):
    """Where an attempt lost time, in seconds, as only its launchers can know. Grows; travels to a new coordinator."""

    checkpoint_seconds: NonNegative = 0.0  # blocked by saves
    lost_seconds: NonNegative = 0.0  # steps that were made and had to be made again
    recovering_seconds: NonNegative = 0.0  # from failures that were healed in place to the next step


class Progress(Model):
    uid: Text
    attempt: int
    generation: int
    phase: RunPhase
    step: Step
    total_steps: Step
    steps_per_second: NonNegative = 0.0
    metrics: Annotated[list[Metric], Field(max_length=8)] = Field(default_factory=list)
    program_restarts: int = 0
    hang_restarts: int = 0
    incidents: Annotated[list[Incident], Field(max_length=10)] = Field(default_factory=list)
    updated_at: NonNegative  # seconds since the epoch, the launcher's clock
    first_step_at: NonNegative | None = None
    checkpoint: CheckpointSummary | None = None  # the newest committed one
    checkpoint_error: LongText | None = None  # why the last save failed, or what was found corrupt
    ledger: Ledger = Ledger()


class LastWord(Model):
    """A pod's termination message. After a success all indexes name the artefact: index 0 may be lost last."""

    uid: Text
    attempt: int
    generation: int
    index: int
    exit_code: int
    reason: Text | None = None  # one CamelCase word: why the gang ended, for example MaxRestartsExceeded or CrashLoop
    message: LongText | None = None  # the same for people
    step: Step = 0
    program_restarts: int = 0
    hang_restarts: int = 0
    error: ErrorReport | None = None
    artifact: ArtifactSummary | None = None
    checkpoint: CheckpointSummary | None = None
    progress: Progress | None = None
