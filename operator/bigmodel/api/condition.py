"""Conditions of both kinds, as Kubernetes' own metav1.Condition."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from bigmodel.api.model import Model

# Server-side apply merges conditions by their type.
MAP_BY_TYPE: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


class Condition(Model):
    type: Annotated[str, StringConstraints(min_length=1, max_length=63), Field(description="What is said.")]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="True, False or Unknown.")]
    observed_generation: Annotated[int, Field(ge=0, description="The metadata.generation this was decided from.")]
    last_transition_time: Annotated[datetime, Field(description="When status last changed.")]
    reason: Annotated[
        str,
        StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z][A-Za-z0-9]*$"),
        Field(description="Why, in one CamelCase word."),
    ]
    message: Annotated[
        str, StringConstraints(max_length=4096), Field(description="Why, in a sentence that says what to do.")
    ]


class JobCondition(StrEnum):
    """All but the last three stand from the first visit on, Unknown where not known.

    The last three appear only when True and stay.
    """

    ACCEPTED = "Accepted"
    ADMITTED = "Admitted"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    CHECKPOINT_HEALTHY = "CheckpointHealthy"
    DEGRADED = "Degraded"
    PUBLISHED = "Published"
    COMPLETE = "Complete"
    FAILED = "Failed"
    FINISHED = "Finished"


class ServiceCondition(StrEnum):
    """All stand from the first visit on, Unknown where not known."""

    READY = "Ready"
    ACCEPTED = "Accepted"
    SOURCE_AVAILABLE = "SourceAvailable"
    MODEL_VERIFIED = "ModelVerified"
    PROGRESSING = "Progressing"
    PROMOTED = "Promoted"
    DEGRADED = "Degraded"
