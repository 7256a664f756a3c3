"""What one launcher is told, read once from its environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bigmodel.api.names import (
    ENV_INCARNATION,
    ENV_INDEX,
    ENV_NODE,
    ENV_POD_IP,
    ENV_TERMINATION_LOG,
    ENV_TRAINING_RUN,
    PORT_COORDINATOR,
    PORT_PROGRESS,
    TERMINATION_LOG,
)
from bigmodel.api.run import TrainingRun

# Only for several launchers on one machine; in a pod the defaults are right.
ENV_BIND = "BIGMODEL_BIND"
ENV_PROGRESS_PORT = "BIGMODEL_PROGRESS_PORT"
ENV_COORDINATOR_PORT = "BIGMODEL_COORDINATOR_PORT"
ENV_PEERS = "BIGMODEL_PEERS"
ENV_PRELOAD = "BIGMODEL_PRELOAD"


class BadEnvironment(ValueError):
    """A variable is missing or wrong; the message names it."""


@dataclass(frozen=True)
class Settings:
    """`run` is the same for every index, the rest is this pod's."""

    run: TrainingRun
    index: int
    incarnation: int
    pod_ip: str  # where the others reach this pod
    node: str
    bind: str  # address to listen on; empty: all
    progress_port: int
    coordinator_port: int
    peers: tuple[str, ...]  # host:port of each index's coordinator port, by DNS names in a cluster
    preload: bool  # fork ranks from a process that imported torch; off: start each anew
    termination_log: Path


def read_settings(environment: Mapping[str, str]) -> Settings:
    run = TrainingRun.model_validate_json(_required(environment, ENV_TRAINING_RUN))
    if (run.recipe is None) == (run.script is None):
        raise BadEnvironment(f"{ENV_TRAINING_RUN} must hold exactly one of recipe and script")
    index = _number(environment, ENV_INDEX)
    if not 0 <= index < run.nodes:
        raise BadEnvironment(f"{ENV_INDEX} is {index}; it must be at least 0 and below nodes, {run.nodes}")
    named = environment.get(ENV_PEERS)
    peers = tuple(named.split(",")) if named else peer_addresses(run.coordinator, run.nodes)
    if len(peers) != run.nodes:
        raise BadEnvironment(
            f"{ENV_PEERS} names {len(peers)} addresses; it must name one for each of {run.nodes} nodes"
        )
    return Settings(
        run=run,
        index=index,
        incarnation=_number(environment, ENV_INCARNATION, "0"),
        pod_ip=_required(environment, ENV_POD_IP),
        node=environment.get(ENV_NODE, ""),
        bind=environment.get(ENV_BIND, ""),
        progress_port=_number(environment, ENV_PROGRESS_PORT, str(PORT_PROGRESS)),
        coordinator_port=_number(environment, ENV_COORDINATOR_PORT, str(PORT_COORDINATOR)),
        peers=peers,
        preload=environment.get(ENV_PRELOAD, "1") != "0",
        termination_log=Path(environment.get(ENV_TERMINATION_LOG, TERMINATION_LOG)),
    )


def peer_addresses(coordinator: str, nodes: int) -> tuple[str, ...]:
    """From index 0's `<job>-0.<service>:<port>` those of all: a pod's host name is `<job>-<index>`."""
    host, _, domain = coordinator.partition(".")
    if nodes > 1 and not (host.endswith("-0") and domain):
        raise BadEnvironment(
            f"coordinator {coordinator!r} of {ENV_TRAINING_RUN} is not <job>-0.<service>:<port>;"
            f" then {ENV_PEERS} must name all"
        )
    return (coordinator, *(f"{host[:-1]}{index}.{domain}" for index in range(1, nodes)))


def _required(environment: Mapping[str, str], name: str) -> str:
    if value := environment.get(name):
        return value
    raise BadEnvironment(f"{name} is not set; the controller sets it in a training pod, `bigmodel run` elsewhere")


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    value = environment.get(name, default) or _required(environment, name)
    if not value.isdecimal():
        raise BadEnvironment(f"{name} is {value!r}; it must be a whole number")
    return int(value)
