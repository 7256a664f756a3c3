"""kubectl against the API server of the tests, as a user would call it."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from bigmodel.api.names import API_VERSION
from tests.cluster.client import ApiError, Client


class Refused(RuntimeError):
    """kubectl ended with an exit code other than 0; the text is what it printed."""


@dataclass(frozen=True)
class Kubectl:
    """`kubectl(...)` returns what was printed, or raises Refused."""

    program: Path
    kubeconfig: Path

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        result = subprocess.run(
            [str(self.program), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.kubeconfig.parent)},
        )
        if result.returncode != 0:
            raise Refused(result.stderr or result.stdout)
        return result.stdout

    def refusal(self, manifest: dict[str, Any]) -> str:
        """What the API server says to a manifest, empty if it would create it: `kubectl create --dry-run=server`.

        Without the program: a process for each of a hundred mistakes would take most of a minute.
        """
        path = f"/apis/{API_VERSION}/namespaces/default/{manifest['kind'].lower()}s"
        try:
            self._client.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", manifest)
        except ApiError as error:
            return str(json.loads(str(error).partition(": ")[2])["message"])
        return ""

    @cached_property
    def _client(self) -> Client:
        (cluster,) = yaml.safe_load(self.kubeconfig.read_text())["clusters"]
        return Client(cluster["cluster"]["server"], self.kubeconfig.parent)

    def apply(self, manifest: dict[str, Any], *options: str) -> dict[str, Any]:
        """`kubectl apply`; returns the object as the server has it."""
        answer: dict[str, Any] = json.loads(
            self("apply", "-f", "-", "-o", "json", *options, stdin=yaml.safe_dump(manifest))
        )
        return answer

    def patch(self, kind: str, name: str, patch: dict[str, Any], *options: str) -> dict[str, Any]:
        """A merge patch; returns the object as the server has it."""
        answer: dict[str, Any] = json.loads(
            self("patch", kind, name, "--type=merge", "-p", json.dumps(patch), "-o", "json", *options)
        )
        return answer

    def write_status(self, kind: str, name: str, status: dict[str, Any]) -> dict[str, Any]:
        """As the operator would."""
        return self.patch(kind, name, {"status": status}, "--subresource=status")
