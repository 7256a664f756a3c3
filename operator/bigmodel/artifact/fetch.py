"""Taking one variant of an artefact out of a store: every byte verified, nothing in place until all of it is."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from bigmodel.artifact.archive import check_program
from bigmodel.artifact.layout import MANIFEST
from bigmodel.artifact.manifest import MANIFEST_BYTES, DigestMismatch, File, Manifest, parse
from bigmodel.artifact.stores import Store


def read_manifest(store: Store, digest: str) -> Manifest:
    """The manifest of the artefact whose directory `store` was opened at. Raises DigestMismatch, InvalidManifest,
    errors of `stores`.
    """
    return parse(store.read(MANIFEST, MANIFEST_BYTES + 1), digest)


def fetch(store: Store, digest: str, variant: str, destination: Path) -> Manifest:
    """Leave manifest.json and the files of `variant` in `destination`, at their paths of the artefact; what was there
    before is gone.

    Args:   store: opened at the artefact's own URI (status.artifact.uri). destination: its parent must exist and be
            writable.
    Raises: DigestMismatch, InvalidManifest, UnsafeProgram; ObjectNotFound, StoreForbidden, StoreUnreachable of
            `stores`. `destination` is unchanged then.
    """
    data = store.read(MANIFEST, MANIFEST_BYTES + 1)
    manifest = parse(data, digest)
    chosen = manifest.variant(variant)
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for file in manifest.files_of(variant):
            _download(store, file, partial / file.path)
        if chosen.program.format == "torch-export":
            check_program(partial / chosen.program.path)
        (partial / MANIFEST).write_bytes(data)
        if destination.exists():
            shutil.rmtree(destination)
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def verify(directory: Path, files: Sequence[File]) -> None:
    """Hash again what was fetched before. Raises DigestMismatch, naming the first file that differs."""
    for file in files:
        path = directory / file.path
        if not path.is_file():
            raise DigestMismatch(f"{path} is gone; delete the pod, its successor fetches the model anew")
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != file.sha256:
            raise DigestMismatch(
                f"{path} has sha256 {found}, the manifest says {file.sha256}; delete the pod, its successor "
                "fetches the model anew"
            )


def _download(store: Store, file: File, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = hashlib.sha256()
    size_bytes = 0
    with path.open("xb") as stream:
        for chunk in store.chunks(file.path):
            size_bytes += len(chunk)
            if size_bytes > file.size_bytes:
                break  # whatever follows is not ours, and the disk is not endless
            found.update(chunk)
            stream.write(chunk)
    if (size_bytes, found.hexdigest()) != (file.size_bytes, file.sha256):
        raise DigestMismatch(
            f"{store.uri}/{file.path} is not the file that was published: {size_bytes} bytes of sha256 "
            f"{found.hexdigest()[:12]}…, "
            f"the manifest says {file.size_bytes} bytes of {file.sha256[:12]}…; publish the model again"
        )
