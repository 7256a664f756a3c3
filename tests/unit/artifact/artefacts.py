"""Small artefacts made by hand: programs are archives of the right shape, without torch."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel.artifact import golden
from bigmodel.artifact.manifest import Dimension, Manifest, Program, Provenance, Signature, Tensor, Variant, digest_of
from bigmodel.artifact.publish import inventory

PAYLOAD = {"path_name": "weight_0", "use_pickle": False}


def a_program(
    path: Path, members: Mapping[str, bytes | None] | None = None, payload: Mapping[str, Any] | None = None
) -> Path:
    """An archive as torch.export writes it; `members` are added, None leaves one out, `payload` changes its one
    weight's entry.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    config = json.dumps({"config": {"layer.weight": PAYLOAD | dict(payload or {})}}).encode()
    whole: dict[str, bytes | None] = {
        "p/data/weights/weight_0": b"\0" * 16,
        "p/data/weights/model_weights_config.json": config,
        "p/data/constants/model_constants_config.json": b'{"config": {}}',
        "p/models/model.json": b"{}",
        "p/data/sample_inputs/model.pt": b"",
        "p/archive_format": b"pt2",
        "p/archive_version": b"0",
        "p/.data/serialization_id": b"1",
        "p/byteorder": b"little",
        **(members or {}),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in whole.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def an_artefact(directory: Path, **provenance: Any) -> Manifest:
    """Files of one variant in `directory`, and their manifest."""
    a_program(directory / "model/program.pt2")
    (directory / "model/weights.safetensors").write_bytes(bytes(range(256)) * 400)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    golden.write(
        directory / "model/golden",
        [golden.GoldenCase({"x": x[:1]}, {"y": x[:1]}), golden.GoldenCase({"x": x}, {"y": x})],
    )
    return a_manifest(files=inventory(directory), provenance=a_provenance(**provenance))


def a_provenance(**changes: Any) -> Provenance:
    fields = {
        "namespace": "ml", "job": "mlp", "uid": "0-1", "attempt": 1, "step": 60, "image": "trainer:1",
        "code": digest_of(b"code"), "frameworks": {"torch": "2.13.0"},
        "data": "dataset://diabetes", "data_digest": digest_of(b"data"),
    }  # fmt: skip
    return Provenance(**(fields | changes))


def a_manifest(**changes: Any) -> Manifest:
    """Valid; `changes` are keyword arguments of Manifest."""
    fields: dict[str, Any] = {
        "files": [{"path": "model/program.pt2", "size_bytes": 3, "sha256": "0" * 64}],
        "signature": Signature(
            inputs=[Tensor(name="x", datatype="float32", shape=["batch", 4])],
            outputs=[Tensor(name="y", datatype="float32", shape=["batch", 4])],
            dimensions={"batch": Dimension(minimum=1, maximum=8)},
        ),
        "variants": [a_variant()],
        "provenance": a_provenance(),
    }
    return Manifest(**(fields | changes))


def a_variant(**changes: Any) -> Variant:
    fields: dict[str, Any] = {
        "name": "default", "precision": "fp32", "program": Program(format="torch-export", path="model/program.pt2"),
        "golden": "validation", "deterministic": True,
    }  # fmt: skip
    return Variant(**(fields | changes))
