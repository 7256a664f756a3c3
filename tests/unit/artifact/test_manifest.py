import hashlib
import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from bigmodel.artifact.layout import artifact_key, variant_directory
from bigmodel.artifact.manifest import (
    BATCH,
    DigestMismatch,
    InvalidManifest,
    Manifest,
    Program,
    Signature,
    Tensor,
    digest_of,
    parse,
)
from tests.unit.artifact.artefacts import a_manifest, a_provenance, a_variant


def test_the_digest_is_the_sha256_of_the_bytes_that_are_stored():
    manifest = a_manifest()
    data = manifest.canonical()
    assert digest_of(data) == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert parse(data, digest_of(data)) == manifest
    assert data == parse(data, digest_of(data)).canonical()


def test_canonical_bytes_are_sorted_compact_and_without_time():
    data = a_manifest().canonical()
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()
    assert data == a_manifest().canonical()
    assert data != a_manifest(provenance=a_provenance(step=61)).canonical()


def test_one_changed_byte_is_refused_before_anything_is_read():
    data = bytearray(a_manifest().canonical())
    digest = digest_of(bytes(data))
    data[40] ^= 1
    with pytest.raises(DigestMismatch, match=digest):
        parse(bytes(data), digest)


NO_MANIFESTS = {
    "not JSON": (b"<html>", "the whole"),
    "a later schema": (a_manifest().canonical().replace(b'"schemaVersion":1', b'"schemaVersion":2'), "schemaVersion"),
    "without files": (a_manifest().canonical().replace(b'"files"', b'"filez"'), "files"),
}


@pytest.mark.parametrize(("data", "place"), NO_MANIFESTS.values(), ids=NO_MANIFESTS)
def test_what_has_the_right_digest_but_is_no_manifest_says_where(data: bytes, place: str):
    with pytest.raises(InvalidManifest, match=f"at {place}"):
        parse(data, digest_of(data))


def test_fields_of_a_newer_writer_are_ignored():
    wire = a_manifest().wire() | {"fromTheFuture": 1}
    data = json.dumps(wire).encode()
    assert parse(data, digest_of(data)) == a_manifest()


ESCAPES = [
    "../x",
    "/etc/passwd",
    "a/../../b",
    "a//b",
    "./a",
    "a/.",
    ".hidden",
    "a/.hidden",
    "a\\b",
    "",
    "a/",
    "a\n",
    "a b",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_a_path_that_could_escape_cannot_be_written_down(path: str):
    with pytest.raises(ValidationError):
        a_manifest(files=[{"path": path, "size_bytes": 1, "sha256": "0" * 64}])


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a file twice": ({"files": a_manifest().files * 2}, "twice"),
    "a variant twice": ({"variants": [a_variant(), a_variant()]}, "twice"),
    "served variant unknown": ({"serve": "int8"}, "serve is 'int8'"),
    "program not among the files": (
        {"variants": [a_variant(program=Program(format="torch-export", path="model/other.pt2"))]},
        "model/other.pt2",
    ),
    "weights not among the files": (
        {"variants": [a_variant(weights="model/weights.safetensors")]},
        "weights.safetensors",
    ),
    "program of another variant": (
        {"variants": [a_variant(name="int8")], "serve": "int8"},
        "variant int8 names model/program.pt2",
    ),
}


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        a_manifest(**changes)


def test_a_dimension_without_limits_is_refused():
    tensor = Tensor(name="x", datatype="float32", shape=[BATCH, 3])
    with pytest.raises(ValidationError, match="dimension 'batch'"):
        Signature(inputs=[tensor], outputs=[tensor])


def test_an_unknown_variant_is_named_with_the_known_ones():
    with pytest.raises(InvalidManifest, match="no variant 'int8'; it has default"):
        a_manifest().variant("int8")


def test_files_belong_to_the_variant_they_lie_below():
    files = [
        {"path": path, "size_bytes": 1, "sha256": "0" * 64}
        for path in ("model/program.pt2", "modelx/y", "variants/int8/program.pt2")
    ]
    manifest: Manifest = a_manifest(files=files)
    assert [file.path for file in manifest.files_of("default")] == ["model/program.pt2"]
    assert [file.path for file in manifest.files_of("int8")] == ["variants/int8/program.pt2"]
    assert variant_directory("int8") == "variants/int8"


def test_an_artefact_lies_below_namespace_job_and_uid():
    assert artifact_key("ml", "mlp", "u", "sha256:ab") == "ml/mlp/u/artifact/ab"


def test_the_controller_can_import_it_without_the_libraries_it_must_not_have():
    program = "import sys, bigmodel.artifact.manifest, bigmodel.artifact.layout; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert {"torch", "numpy", "obstore", "safetensors"}.isdisjoint(imported.split())
    assert "pydantic" in imported.split()
