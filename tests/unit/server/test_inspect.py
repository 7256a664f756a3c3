"""The `inspect` pod against file:// stores: what it says of a good manifest, of a bad one, and of no store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bigmodel.artifact import stores
from bigmodel.artifact.golden import GoldenCase
from bigmodel.artifact.manifest import DataType, Signature, Tensor
from bigmodel.artifact.summary import MESSAGE_BYTES, InspectResult, signature_digest
from bigmodel.server.inspect import inspect
from tests.unit.server.artefacts import SIGNATURE, Artefact, a_program, published

CASE = GoldenCase({"features": np.zeros((1, 16), np.float32)}, {"target": np.zeros(1, np.float32)})


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    return published(tmp_path, a_program(), [CASE])


def never(seconds: float) -> None:
    raise AssertionError(f"wanted to wait {seconds} s")


def test_a_good_manifest_is_summed_up(artefact: Artefact) -> None:
    result = inspect(artefact.run, {}, never)
    assert result.ok
    assert result.summary is not None
    assert result.summary.signature == SIGNATURE
    assert result.summary.signature_digest == signature_digest(SIGNATURE)
    assert (result.summary.precision, result.summary.golden, result.summary.deterministic) == (
        "fp32",
        "validation",
        True,
    )


def test_only_the_manifest_is_read(artefact: Artefact) -> None:
    (artefact.directory / "model/program.pt2").unlink()
    assert inspect(artefact.run, {}, never).ok


def test_a_changed_manifest_is_a_digest_mismatch(artefact: Artefact) -> None:
    manifest = artefact.directory / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    result = inspect(artefact.run, {}, never)
    assert (result.ok, result.reason, result.summary) == (False, "DigestMismatch", None)


def test_a_missing_artefact_a_missing_variant_and_too_large_batches_are_told_apart(artefact: Artefact) -> None:
    runs = {
        "ArtifactNotFound": {"artifact_uri": artefact.run.artifact_uri + "-gone"},
        "InvalidConfig": {"variant": "int8"},
    }
    for reason, changes in runs.items():
        assert inspect(artefact.run.model_copy(update=changes), {}, never).reason == reason
    result = inspect(artefact.run.model_copy(update={"max_batch_size": 128}), {}, never)
    assert result.reason == "InvalidConfig"
    assert "spec.batching.maxBatchSize is 128, the program takes at most 64" in result.message


def test_a_store_that_does_not_answer_is_asked_again_and_then_told(
    artefact: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> bytes:
        raise stores.StoreUnreachable("no answer")

    monkeypatch.setattr("bigmodel.artifact.fetch.read_manifest", unreachable)
    pauses: list[float] = []
    result = inspect(artefact.run, {}, pauses.append)
    assert (result.ok, result.reason) == (False, "StoreUnreachable")
    assert pauses == [1.0, 2.0, 4.0, 8.0, 15.0]


def test_a_signature_of_many_tensors_leaves_its_digest(artefact: Artefact) -> None:
    summary = inspect(artefact.run, {}, never).summary
    assert summary is not None
    tensors = [
        Tensor(name=f"input_{i}" + "x" * 40, datatype=DataType.FLOAT32, shape=["batch", i + 1]) for i in range(64)
    ]
    long = Signature(inputs=tensors, outputs=SIGNATURE.outputs, dimensions=SIGNATURE.dimensions)
    told = InspectResult(ok=True, message="x", summary=summary.model_copy(update={"signature": long})).fitted()
    assert len(told.encode()) <= MESSAGE_BYTES
    read = InspectResult.model_validate_json(told).summary
    assert read is not None
    assert (read.signature, read.signature_digest) == (None, summary.signature_digest)


@pytest.mark.parametrize(("damaged", "code"), [(False, 0), (True, 0)])
def test_the_process_leaves_its_answer_as_termination_message(
    artefact: Artefact, tmp_path: Path, damaged: bool, code: int
) -> None:
    """Exit code 0 for an answer, good or bad: it would be the same at the next try."""
    if damaged:
        (artefact.directory / "manifest.json").write_text("{}")
    log = tmp_path / "log"
    environ = os.environ | {"BIGMODEL_SERVE": json.dumps(artefact.run.wire()), "BIGMODEL_TERMINATION_LOG": str(log)}
    ended = subprocess.run([sys.executable, "-m", "bigmodel.server.inspect"], env=environ, check=False, timeout=60)
    assert ended.returncode == code
    assert InspectResult.model_validate_json(log.read_text()).ok is not damaged
