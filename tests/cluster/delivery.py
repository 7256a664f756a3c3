"""How images reach the nodes without a registry: layer by layer, and only those that a node lacks."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from tests.cluster.layout import RUN, STATE
from tests.cluster.locks import locked
from tests.cluster.network import run
from tests.cluster.nodes import NODES, Node
from tests.cluster.processes import boot_id
from tests.cluster.progress import step

PREFIX = "localhost/bigmodel"
#: buildah's own storage, so that a machine's other images are not touched by ours, nor ours by them.
STORAGE = STATE.parent / "images"
#: What buildah and skopeo know of mounts; of this boot, because it outlives one where /run is a disk.
RUNROOT = RUN / f"buildah-{boot_id()[:8]}"
#: Images on their way, as an OCI layout. It stays: a layer that is there already need not be written again.
EXPORT = STATE.parent / "export"
_REFERENCE = "org.opencontainers.image.ref.name"


def deliver(references: Sequence[str], kept: Callable[[], set[str]]) -> None:
    """Copy images into every node that does not have them, all nodes at once, and forget there what is kept no more.

    `kept`: asked only when something was copied.
    """
    with locked(EXPORT.parent / "export.lock", "copies images to the nodes"):  # an OCI layout has one index for all
        present = {node: ctr(node, "images", "list", "--quiet").split() for node in NODES}
        missing = {reference: [node for node in NODES if reference not in present[node]] for reference in references}
        for reference, targets in missing.items():
            if targets:
                with step(f"{reference.removeprefix(PREFIX + '/')} to {' and '.join(node.name for node in targets)}"):
                    manifest = _export(reference)
                    with ThreadPoolExecutor() as pool:
                        for done in [pool.submit(_import, node, reference, manifest) for node in targets]:
                            done.result()
        if any(missing.values()):
            keep = kept()
            _forget_exported(keep)
            for node in NODES:
                _forget_on(node, keep)


def ctr(node: Node, *arguments: str) -> str:
    """Run containerd's own client on a node, in the namespace of Kubernetes."""
    return run([*node.enter(), "ctr", "--namespace=k8s.io", *arguments])


def _export(reference: str) -> dict[str, Any]:
    """Write the image's layers that are not there yet into the layout EXPORT; returns the descriptor of its manifest.

    Uncompressed, because it does not travel far; that is also why it is not buildah that does it.
    """
    run([
        "skopeo", "--insecure-policy", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers",
        f"containers-storage:[{STORAGE}+{RUNROOT}]{reference}", f"oci:{EXPORT}:{reference}",
    ])  # fmt: skip
    return next(entry for entry in _exported() if entry["annotations"][_REFERENCE] == reference)


def _exported() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((EXPORT / "index.json").read_text())["manifests"]
    return [entry for entry in entries if _REFERENCE in entry.get("annotations", {})]


def _forget_exported(keep: set[str]) -> None:
    """Delete from the layout what only images need that are kept no more."""
    entries = [entry for entry in _exported() if entry["annotations"][_REFERENCE] in keep]
    needed = {entry["digest"] for entry in entries}
    for entry in entries:
        document = json.loads(_blob(entry["digest"]).read_bytes())
        needed |= {document["config"]["digest"], *(layer["digest"] for layer in document["layers"])}
    (EXPORT / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    for blob in (EXPORT / "blobs" / "sha256").iterdir():
        if f"sha256:{blob.name}" not in needed:
            blob.unlink()


def _forget_on(node: Node, keep: set[str]) -> None:
    """Remove our images from a node that are kept no more, unless a container stands on them."""
    used = {line.split()[1] for line in ctr(node, "containers", "list").splitlines()[1:]}
    old = outdated([line.split()[:3] for line in ctr(node, "images", "list").splitlines()[1:]], keep | used)
    if old:
        ctr(node, "images", "rm", *old)


def outdated(listed: Sequence[Sequence[str]], keep: set[str]) -> list[str]:
    """References of ours in a node's list of (reference, type, digest) that stand for no image in `keep`.

    Kubernetes adds to each image a second reference, by its id; it has the same digest.
    """
    wanted = {digest for reference, _, digest in listed if reference in keep}
    ours = (PREFIX + "/", "sha256:")
    return [reference for reference, _, digest in listed if digest not in wanted and reference.startswith(ours)]


def _import(node: Node, reference: str, manifest: dict[str, Any]) -> None:
    """Stream the image into the node's containerd, without the layers that are unpacked there already."""
    document = json.loads(_blob(manifest["digest"]).read_bytes())
    differences = json.loads(_blob(document["config"]["digest"]).read_bytes())["rootfs"]["diff_ids"]
    present = {line.split()[0] for line in ctr(node, "snapshots", "list").splitlines() if line}
    layers = [layer["digest"] for layer in document["layers"]]
    missing = [layer for layer, chain in zip(layers, chain_ids(differences), strict=True) if chain not in present]
    command = [*node.enter(), "ctr", "--namespace=k8s.io", "images", "import", "-"]
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=errors, stderr=errors) as process:
            assert process.stdin is not None
            try:
                _write_archive(
                    process.stdin, reference, manifest, [manifest["digest"], document["config"]["digest"], *missing]
                )
                process.stdin.close()
            except BrokenPipeError:
                pass  # its exit code and its own words say why
        if process.returncode != 0:
            errors.seek(0)
            raise SystemExit(f"{node.name} does not take {reference}: {errors.read().decode(errors='replace').strip()}")
    if missing:  # what is unpacked is not needed packed: a second copy of 0.7 GB on each node
        ctr(node, "content", "rm", *missing)


def chain_ids(differences: Sequence[str]) -> list[str]:
    """The names of an image's layers as unpacked one upon the other: of each, with all below it (OCI image
    specification, ChainID)."""
    chain: list[str] = []
    for difference in differences:
        below = chain[-1] if chain else None
        joined = f"{below} {difference}".encode()
        chain.append(difference if below is None else f"sha256:{hashlib.sha256(joined).hexdigest()}")
    return chain


def _write_archive(stream: IO[bytes], reference: str, manifest: dict[str, Any], digests: Sequence[str]) -> None:
    """An OCI archive of one image, of which only these blobs are inside."""
    named = {**manifest, "annotations": {"io.containerd.image.name": reference}}
    files = {
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
        "index.json": {"schemaVersion": 2, "manifests": [named]},
    }
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for digest in digests:
            archive.add(_blob(digest), arcname=f"blobs/{digest.replace(':', '/')}")


def _blob(digest: str) -> Path:
    return EXPORT / "blobs" / digest.replace(":", "/")


def made(folder: Path) -> Path:
    """The folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
