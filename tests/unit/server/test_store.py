"""The program that lists and collects, against a file:// store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = {"old": "a" * 64, "named": "b" * 64, "young": "c" * 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three artefacts of namespace ml, and one of another."""
    for name, digest in NAMES.items():
        for namespace in ("ml", "other") if name == "old" else ("ml",):
            place = tmp_path / namespace / "mlp" / "u1" / "artifact" / digest
            (place / "model").mkdir(parents=True)
            for file in (place / "manifest.json", place / "model" / "program.pt2"):
                file.write_bytes(b"0123456789")
                age_seconds = 3600 if name == "young" else 30 * 86400
                os.utime(file, (time.time() - age_seconds,) * 2)
    return tmp_path


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Exit code, what it said of each artefact by name, standard error."""
    store = json.dumps({"uri": f"file://{folder}"})
    ended = subprocess.run(
        [sys.executable, "-m", "bigmodel.server.store", *arguments, "--namespace=ml"],
        input=f"sha256:{NAMES['named']}\n",
        env=os.environ | {"BIGMODEL_STORE": store},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    names = {f"sha256:{digest}": name for name, digest in NAMES.items()}
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    return ended.returncode, {names[line["digest"]]: line for line in lines}, ended.stderr


def left(folder: Path, namespace: str = "ml") -> set[str]:
    names = {digest: name for name, digest in NAMES.items()}
    return {names[path.parent.name] for path in (folder / namespace).rglob("manifest.json")}


def test_ls_and_gc_without_delete_only_say_what_would_go(folder: Path) -> None:
    for command in ("ls", "gc"):
        code, found, _ = run(folder, command)
        assert code == 0
        assert {name: line["kept"] for name, line in found.items()} == {
            "old": None, "named": "named", "young": "young"
        }  # fmt: skip
        assert not any(line["deleted"] for line in found.values())
        assert found["old"]["sizeBytes"] == 20
    assert left(folder) == set(NAMES)


def test_gc_deletes_only_below_a_prefix_that_is_known_to_be_its_own(folder: Path) -> None:
    code, found, error = run(folder, "gc", "--delete", "--cluster=ours")
    assert (code, found) == (2, {})
    assert "--claim" in error
    assert run(folder, "gc", "--delete", "--cluster=ours", "--claim")[0] == 0
    assert left(folder) == {"named", "young"}
    assert left(folder, "other") == {"old"}
    code, _, error = run(folder, "gc", "--delete", "--cluster=theirs", "--claim")
    assert code == 2
    assert "belongs to cluster ours" in error
