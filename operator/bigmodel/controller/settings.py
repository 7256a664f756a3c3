"""What an administrator decides: read once from one YAML file by `main`, then passed down. The chart renders it."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from bigmodel.api.model import DnsLabel, DnsName, ImageReference, Model
from bigmodel.api.store import Store

DEFAULT_PATH = Path("/etc/bigmodel/settings.yaml")


class SettingsError(Exception):
    """The settings file can't be used; the message names file, field, value and rule."""


class Section(Model):
    """Unlike a resource's models, an unknown key is an error: it is a typing mistake or a chart of another version."""

    model_config = ConfigDict(extra="forbid")


class Images(Section):
    """The images of generated pods where a resource names none."""

    trainer: ImageReference
    server: ImageReference
    triton: ImageReference


class LeaderElection(Section):
    """How fast a dead leader is replaced: after `lease_seconds` without renewal; all look every `renew_seconds`."""

    lease_seconds: Annotated[int, Field(ge=3, le=60)] = 5
    renew_seconds: Annotated[float, Field(gt=0, le=10)] = 1.0

    @model_validator(mode="after")
    def _two_renewals_may_fail(self) -> Self:
        if 3 * self.renew_seconds > self.lease_seconds:
            raise ValueError(
                f"renewSeconds is {self.renew_seconds:g}, at most a third of leaseSeconds ({self.lease_seconds}) "
                "is needed, so that one slow request does not cost the lease"
            )
        return self


class Triton(Section):
    """What is demanded of a serving image."""

    minimum_version: Annotated[str, Field(pattern=r"^\d\d\.\d\d$")] = "25.07"  # NVIDIA's monthly release, for its CVEs


class Rollout(Section):
    """How many services may roll out at once, first revisions aside: each doubles its GPUs for a while."""

    max_concurrent: Annotated[int, Field(ge=1, le=1000)] = 5


class Kueue(Section):
    """Whether jobs with Kueue's queue label queue: the operator needs rights on Workloads for it."""

    enabled: bool = False


class Settings(Section):
    """Everything the controller is told. Frozen."""

    images: Images
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[DnsName, ...] = ()  # added to every generated pod
    store: Store | None = None  # of resources that name none; None: they must
    watch_namespaces: tuple[DnsLabel, ...] = ()  # empty: all
    cluster_domain: DnsName = "cluster.local"
    leader_election: LeaderElection = LeaderElection()
    triton: Triton = Triton()
    kueue: Kueue = Kueue()
    rollout: Rollout = Rollout()
    health_port: Annotated[int, Field(ge=1, le=65535)] = 8081  # /healthz, /readyz
    metrics_port: Annotated[int, Field(ge=1, le=65535)] = 8080  # /metrics; may equal health_port


def read_settings(path: Path) -> Settings:
    """Raises SettingsError, with one line for each wrong field."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"settings file {path} can't be read: {error.strerror}; name another with --settings"
        ) from error
    except yaml.YAMLError as error:
        raise SettingsError(f"settings file {path} is not YAML: {error}") from error
    try:
        return Settings.model_validate(content if content is not None else {})
    except ValidationError as error:
        raise SettingsError("\n".join(f"settings file {path}: {line}" for line in _lines(error))) from error


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors(include_url=False):
        field = ".".join(str(part) for part in detail["loc"]) or "(top)"
        value = "" if detail["type"] == "missing" else f", got {detail['input']!r}"
        lines.append(f"{field}: {detail['msg']}{value}")
    return lines
