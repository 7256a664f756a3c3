"""What of an image goes to a node, and what a node forgets."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.cluster import delivery


def test_chain_ids_name_each_layer_with_all_below_it() -> None:
    first, second, third = (f"sha256:{digit * 64}" for digit in "123")
    chain = delivery.chain_ids([first, second, third])
    assert chain[0] == first
    assert chain[1] == "sha256:" + hashlib.sha256(f"{first} {second}".encode()).hexdigest()
    assert chain[2] == "sha256:" + hashlib.sha256(f"{chain[1]} {third}".encode()).hexdigest()
    assert delivery.chain_ids([]) == []


def test_an_archive_names_its_image_and_holds_the_blobs_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "EXPORT", tmp_path)
    blob = tmp_path / "blobs" / "sha256" / "aa"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"layer")
    stream = io.BytesIO()

    delivery._write_archive(stream, "localhost/bigmodel/x:1", {"digest": "sha256:bb", "size": 3}, ["sha256:aa"])

    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        content = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    assert content["blobs/sha256/aa"] == b"layer"
    assert json.loads(content["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads(content["index.json"])["manifests"] == [
        {"digest": "sha256:bb", "size": 3, "annotations": {"io.containerd.image.name": "localhost/bigmodel/x:1"}}
    ]


def test_a_node_forgets_an_image_with_both_its_names_once_nobody_keeps_it() -> None:
    listed = [
        ("localhost/bigmodel/server:new", "manifest", "sha256:1"),
        ("sha256:id-of-new", "manifest", "sha256:1"),
        ("localhost/bigmodel/server:old", "manifest", "sha256:2"),
        ("sha256:id-of-old", "manifest", "sha256:2"),
        ("docker.io/library/busybox:1", "manifest", "sha256:3"),
        ("localhost/bigmodel/server:same-as-new", "manifest", "sha256:1"),
    ]
    assert delivery.outdated(listed, {"localhost/bigmodel/server:new"}) == [
        "localhost/bigmodel/server:old",
        "sha256:id-of-old",
    ]


def test_the_layout_keeps_only_blobs_of_images_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "EXPORT", tmp_path)
    blobs = tmp_path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for version in ("old", "new"):
        layers = [{"digest": "sha256:base"}, {"digest": f"sha256:top-{version}"}]
        document = {"config": {"digest": f"sha256:config-{version}"}, "layers": layers}
        (blobs / f"manifest-{version}").write_text(json.dumps(document))
        for blob in ("base", f"top-{version}", f"config-{version}"):
            (blobs / blob).touch()
    entries = [
        {"digest": f"sha256:manifest-{version}", "annotations": {"org.opencontainers.image.ref.name": version}}
        for version in ("old", "new")
    ]
    (tmp_path / "index.json").write_text(json.dumps({"manifests": entries}))

    delivery._forget_exported({"new"})

    assert sorted(blob.name for blob in blobs.iterdir()) == ["base", "config-new", "manifest-new", "top-new"]
    assert delivery._exported() == [entries[1]]
