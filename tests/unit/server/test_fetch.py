"""The init container against file:// stores: good, damaged, tampered with, missing, unreachable."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bigmodel.artifact import stores
from bigmodel.artifact.golden import GoldenCase
from bigmodel.server import fetch as init_container
from bigmodel.server.config import synthesise
from tests.unit.server.artefacts import SIGNATURE, VARIANT, Artefact, a_program, published

CASE = GoldenCase({"features": np.zeros((1, 16), np.float32)}, {"target": np.zeros(1, np.float32)})


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    return published(tmp_path, a_program(), [CASE])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The emptyDir."""
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def never(seconds: float) -> None:
    raise AssertionError(f"wanted to wait {seconds} s")


def test_a_good_artefact_becomes_a_complete_repository(artefact: Artefact, model: Path) -> None:
    result = init_container.fetch(artefact.run, model, {}, never)
    assert result.ok
    assert result.reason is None
    assert result.size_bytes == sum(
        path.stat().st_size for path in artefact.directory.rglob("*") if path.is_file() and path.name != "manifest.json"
    )
    assert files(model) == [
        "artifact/manifest.json",
        "artifact/model/golden/batch-1.safetensors",
        "artifact/model/program.pt2",
        "fetched.json",
        "repository/mlp/3/model.py",
        "repository/mlp/3/program.pt2",
        "repository/mlp/config.pbtxt",
    ]
    assert (model / "repository/mlp/config.pbtxt").read_text() == synthesise(artefact.run, SIGNATURE, VARIANT)
    assert (model / "repository/mlp/3/program.pt2").read_bytes() == a_program()
    assert json.loads((model / "fetched.json").read_text())["sizeBytes"] == result.size_bytes


def test_a_second_run_in_the_same_pod_replaces_what_the_first_left(artefact: Artefact, model: Path) -> None:
    init_container.fetch(artefact.run, model, {}, never)
    (model / "repository/mlp/3/program.pt2").unlink()
    (model / "repository/.partial").mkdir()
    assert init_container.fetch(artefact.run, model, {}, never).ok
    assert (model / "repository/mlp/3/program.pt2").read_bytes() == a_program()
    assert not (model / "repository/.partial").exists()


def flip_a_bit(artefact: Artefact) -> None:
    program = artefact.directory / "model/program.pt2"
    data = bytearray(program.read_bytes())
    data[len(data) // 2] ^= 1
    program.write_bytes(data)


def cut_the_end(artefact: Artefact) -> None:
    program = artefact.directory / "model/program.pt2"
    program.write_bytes(program.read_bytes()[:-1])


def lengthen(artefact: Artefact) -> None:
    with (artefact.directory / "model/program.pt2").open("ab") as program:
        program.write(b"x")


def change_a_golden_sample(artefact: Artefact) -> None:
    sample = artefact.directory / "model/golden/batch-1.safetensors"
    data = bytearray(sample.read_bytes())
    data[-1] ^= 1
    sample.write_bytes(data)


def raise_the_tolerance_in_the_manifest(artefact: Artefact) -> None:
    manifest = artefact.directory / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"fp32"', '"fp8"'))


def remove(path: str) -> Callable[[Artefact], None]:
    return lambda artefact: (artefact.directory / path).unlink()


BROKEN_STORES: dict[str, tuple[Callable[[Artefact], None], str, str]] = {
    "one bit of the program flipped": (flip_a_bit, "DigestMismatch", "program.pt2"),
    "the program cut short": (cut_the_end, "DigestMismatch", "program.pt2"),
    "the program longer than published": (lengthen, "DigestMismatch", "program.pt2"),
    "a golden sample changed": (change_a_golden_sample, "DigestMismatch", "batch-1.safetensors"),
    "the manifest changed": (raise_the_tolerance_in_the_manifest, "DigestMismatch", "manifest.json"),
    "never committed": (remove("manifest.json"), "ArtifactNotFound", "manifest.json"),
    "a file removed": (remove("model/program.pt2"), "ArtifactNotFound", "program.pt2"),
}


@pytest.mark.parametrize(("damage", "reason", "named"), BROKEN_STORES.values(), ids=BROKEN_STORES)
def test_nothing_is_left_for_triton_from_a_broken_store(
    artefact: Artefact, model: Path, damage: Callable[[Artefact], None], reason: str, named: str
) -> None:
    damage(artefact)
    result = init_container.fetch(artefact.run, model, {}, never)
    assert (result.ok, result.reason) == (False, reason)
    assert named in result.message
    assert result.message.startswith("mlp r3: ")
    assert files(model) == []


def test_another_digest_than_the_revision_names_is_refused(artefact: Artefact, model: Path) -> None:
    other = artefact.run.model_copy(update={"digest": "sha256:" + "0" * 64})
    assert init_container.fetch(other, model, {}, never).reason == "DigestMismatch"


REFUSED = {
    "a variant the artefact lacks": ({"variant": "int8"}, "no variant 'int8'; it has default"),
    "a batch that the program does not take": ({"max_batch_size": 100}, "spec.batching.maxBatchSize is 100"),
    "a backend that cannot load it": ({"backend": "aoti"}, "spec.server.backend is aoti"),
    "a store that is neither s3 nor a directory": ({"artifact_uri": "http://store/x"}, "want s3://bucket/prefix"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_revision_that_does_not_fit_its_artefact_is_refused_before_the_download(
    artefact: Artefact, model: Path, changes: dict[str, object], message: str
) -> None:
    (artefact.directory / "model/program.pt2").unlink()  # would be noticed first by a download
    result = init_container.fetch(artefact.run.model_copy(update=changes), model, {}, never)
    assert (result.ok, result.reason) == (False, "InvalidConfig")
    assert message in result.message
    assert files(model) == []


class Flaky:
    """A store that does not answer the first `failures` times."""

    def __init__(self, store: stores.Store, failures: int) -> None:
        self.uri = store.uri
        self._store = store
        self._failures = failures

    def __getattr__(self, name: str) -> object:
        if self._failures:
            self._failures -= 1
            raise stores.StoreUnreachable("no answer")
        return getattr(self._store, name)


PATIENCE = {
    "back at once": (1, [1.0], None),
    "back at the last try": (5, [1.0, 2.0, 4.0, 8.0, 15.0], None),
    "not back": (6, [1.0, 2.0, 4.0, 8.0, 15.0], "StoreUnreachable"),
}


@pytest.mark.parametrize(("failures", "waits", "reason"), PATIENCE.values(), ids=PATIENCE)
def test_a_silent_store_is_tried_again_for_a_while(
    artefact: Artefact,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
    waits: list[float],
    reason: str | None,
) -> None:
    flaky = Flaky(
        stores.open_store(artefact.run.store.model_copy(update={"uri": artefact.run.artifact_uri}), {}), failures
    )
    monkeypatch.setattr(stores, "open_store", lambda location, environ: flaky)
    waited: list[float] = []
    result = init_container.fetch(artefact.run, model, {}, waited.append)
    assert (waited, result.reason) == (waits, reason)


def test_a_full_or_read_only_volume_is_named(artefact: Artefact, tmp_path: Path) -> None:
    result = init_container.fetch(artefact.run, tmp_path / "not-mounted", {}, never)
    assert (result.ok, result.reason) == (False, "VolumeFailed")
    assert "not-mounted" in result.message


@pytest.mark.parametrize("damaged", [False, True], ids=["good", "damaged"])
def test_the_process_leaves_its_result_as_termination_message(
    artefact: Artefact, model: Path, tmp_path: Path, damaged: bool
) -> None:
    if damaged:
        flip_a_bit(artefact)
    said = tmp_path / "termination-log"
    environment = {
        **os.environ,
        "PYTHONPATH": "operator",
        "BIGMODEL_SERVE": artefact.run.model_dump_json(by_alias=True),
        "BIGMODEL_TERMINATION_LOG": str(said),
    }
    command = [sys.executable, "-m", "bigmodel.server.fetch", "--directory", str(model)]
    code = subprocess.run(command, env=environment, check=False, timeout=60).returncode
    result = json.loads(said.read_text())
    assert (code, result["ok"], result["reason"]) == ((1, False, "DigestMismatch") if damaged else (0, True, None))
    assert len(said.read_bytes()) <= 4096
