"""The cluster as a user with kubectl sees it: a namespace, small resources, waiting for what should come true."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.cluster.kubectl import get, items, kubectl


@dataclass(frozen=True)
class Namespace:
    """One namespace of the local cluster, as a user with kubectl sees it."""

    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 60) -> str:
        return kubectl("-n", self.name, *arguments, stdin=stdin, timeout_seconds=timeout_seconds)

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found = get(self.name, kind, name)
        assert found is not None, f"no {kind}/{name} in {self.name}"
        return found

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        return items(self.name, kind, selector)

    def wait(self, what: str, condition: str, timeout_seconds: int) -> None:
        """`kubectl wait`, as a user would; the failing object is shown when it does not come true."""
        try:
            self.kubectl(
                *("wait", f"--for=condition={condition}", what, f"--timeout={timeout_seconds}s"),
                timeout_seconds=timeout_seconds + 10,
            )
        except RuntimeError as error:
            status = json.loads(self.kubectl("get", what, "-o", "json")).get("status")
            pods = self.kubectl("get", "pods", "-o", "wide")
            pytest.fail(f"{error}\n{yaml.safe_dump(status)}\n{pods}")

    def events(self, name: str) -> list[str]:
        """Reasons of the object's events, oldest first."""
        found = [e for e in self.items("events.events.k8s.io") if e["regarding"]["name"] == name]
        return [e["reason"] for e in sorted(found, key=lambda e: e["eventTime"])]


def eventually(what: str, holds: Callable[[], Any], timeout_seconds: float = 60) -> Any:
    """The first true answer of `holds`; fails naming `what` when none comes in time."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if answer := holds():
            return answer
        time.sleep(0.25)
    pytest.fail(f"not within {timeout_seconds:.0f} s: {what}")


def condition(found: dict[str, Any], type_: str) -> dict[str, Any]:
    """The condition of that type; an empty one where it is not there."""
    conditions = found.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == type_), {})


def a_job(name: str = "mlp", **spec: Any) -> dict[str, Any]:
    """A small job: the quickstart's model made small, a few steps, two pods."""
    small = {
        "recipe": {"name": "mlp", "parameters": {"hidden": [16]}, "steps": 50},
        "nodes": 2,
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
    }
    return {
        "apiVersion": "bigmodel.io/v1alpha1",
        "kind": "BigModelJob",
        "metadata": {"name": name},
        "spec": small | spec,
    }


def a_service(name: str = "mlp", job: str = "mlp", **spec: Any) -> dict[str, Any]:
    server = {
        "replicas": 1,
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
    }
    source = {"model": {"fromJob": {"name": job}}, "server": server}
    return {
        "apiVersion": "bigmodel.io/v1alpha1",
        "kind": "BigModelService",
        "metadata": {"name": name},
        "spec": source | spec,
    }


def signals_its_rank(signal: str) -> str:
    """A Python program for a training pod of index 1 and one rank: sends that rank the signal of this name.

    Ranks are forks of the fork server, which has no other children there.
    """
    return f"""
import os, signal
commands, parents = {{}}, {{}}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        commands[pid] = open(f"/proc/{{pid}}/cmdline").read()
        parents[pid] = open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[1]
    except OSError:
        continue  # it ended meanwhile
servers = [pid for pid, command in commands.items() if "forkserver" in command]
[rank] = [pid for pid in servers if parents[pid] in servers]
os.kill(int(rank), signal.{signal})
"""
