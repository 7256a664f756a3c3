"""Helm itself renders the chart: what it says is what a cluster would get."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.build import build_programs

CHART = Path(__file__).parents[3] / "charts/bigmodel-operator"
NAMESPACE = "bigmodel-system"
Object = dict[str, Any]
# values as YAML text → all objects; raises HelmRefused
Render = Callable[[str], list[Object]]


class HelmRefused(RuntimeError):
    """helm ended with an exit code other than 0; the text is what it printed."""


@pytest.fixture(scope="session")
def helm() -> Callable[..., str]:
    program = build_programs() / "helm"

    def call(*arguments: str, stdin: str | None = None) -> str:
        result = subprocess.run(
            [str(program), *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        if result.returncode != 0:
            raise HelmRefused(result.stderr + result.stdout)
        return result.stdout

    return call


@pytest.fixture(scope="session")
def render(helm: Callable[..., str]) -> Render:
    known: dict[str, list[Object]] = {}

    def call(values: str) -> list[Object]:
        if values not in known:
            text = helm(
                "template", "bigmodel", str(CHART), "--namespace", NAMESPACE, "--values", "-", stdin=values or "{}"
            )
            known[values] = [document for document in yaml.safe_load_all(text) if document]
        return known[values]

    return call
