"""The local cluster's kubectl and helm, as a user would call them."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from tests.cluster.build import cluster_programs
from tests.cluster.layout import KUBECONFIG


class CommandFailed(RuntimeError):
    """kubectl or helm ended with an exit code other than 0; the text is what it printed."""


def _call(program: str, *arguments: str, stdin: str | None = None, timeout_seconds: float) -> str:
    programs = cluster_programs()
    result = subprocess.run(
        [str(programs / program), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
        env={**os.environ, "KUBECONFIG": str(KUBECONFIG), "PATH": f"{programs}:{os.environ['PATH']}"},
    )
    if result.returncode != 0:
        raise CommandFailed(f"{program} {' '.join(arguments)}: {(result.stderr or result.stdout).strip()}")
    return result.stdout


def kubectl(*arguments: str, stdin: str | None = None, timeout_seconds: float = 60) -> str:
    return _call("kubectl", *arguments, stdin=stdin, timeout_seconds=timeout_seconds)


def helm(*arguments: str, timeout_seconds: float = 300) -> str:
    return _call("helm", *arguments, timeout_seconds=timeout_seconds)


def get(namespace: str, kind: str, name: str) -> dict[str, Any] | None:
    """The object, or None where there is none."""
    text = kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
    return json.loads(text) if text.strip() else None


def items(namespace: str, kind: str, selector: str = "") -> list[dict[str, Any]]:
    return json.loads(kubectl("get", kind, "-n", namespace, "-o", "json", "-l", selector))["items"]
