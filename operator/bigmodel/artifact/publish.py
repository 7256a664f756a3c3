"""Putting an artefact into a store: files first, checked where they lie, then the manifest, whose appearance is the
commit.
"""

import hashlib
from pathlib import Path

from bigmodel.artifact.archive import check_program
from bigmodel.artifact.layout import MANIFEST, artifact_key
from bigmodel.artifact.manifest import MANIFEST_BYTES, DigestMismatch, File, InvalidManifest, Manifest, digest_of
from bigmodel.artifact.stores import AlreadyExists, ObjectNotFound, Store

READ_BYTES = 4 << 20


def inventory(directory: Path) -> list[File]:
    """Every file below `directory` with size and sha256, sorted by path."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return [_file(directory, path) for path in paths]


def publish(store: Store, directory: Path, manifest: Manifest) -> tuple[str, str]:
    """Commit the files of `directory` that `manifest` lists. Returns (key of the artefact's directory below the
    store, digest).

    Idempotent: what is committed already is left as it is, and a publication that was cut off is finished by the next
    one.
    Raises: DigestMismatch when the store holds other bytes than were sent; UnsafeProgram; errors of `stores`.
    """
    for variant in manifest.variants:
        if variant.program.format == "torch-export":
            check_program(directory / variant.program.path)
    data = manifest.canonical()
    if len(data) > MANIFEST_BYTES:
        raise InvalidManifest(
            f"manifest.json would have {len(data)} bytes, at most {MANIFEST_BYTES} are read: publish fewer files"
        )
    digest = digest_of(data)
    provenance = manifest.provenance
    key = artifact_key(provenance.namespace, provenance.job, provenance.uid, digest)
    if _committed(store, f"{key}/{MANIFEST}", data):
        return key, digest
    for file in manifest.files:
        store.put(f"{key}/{file.path}", directory / file.path)
    for file in manifest.files:
        _check_stored(store, f"{key}/{file.path}", file)
    try:
        store.create(f"{key}/{MANIFEST}", data)
    except AlreadyExists:
        # A retried request of ours may have succeeded before its answer was lost; or another rank 0 was faster with
        # the same model.
        if not _committed(store, f"{key}/{MANIFEST}", data):
            raise
    return key, digest


def _committed(store: Store, key: str, data: bytes) -> bool:
    """Raises DigestMismatch when something else is there: a digest's directory never changes its content."""
    try:
        stored = store.read(key, MANIFEST_BYTES + 1)
    except ObjectNotFound:
        return False
    if stored != data:
        raise DigestMismatch(
            f"{store.uri}/{key} holds other bytes than its digest says: someone changed it; remove that "
            "directory and publish again"
        )
    return True


def _check_stored(store: Store, key: str, file: File) -> None:
    """Read back and hash: an ETag is no digest (multipart), and a store that answers 200 may still have kept
    something else.
    """
    found = hashlib.sha256()
    size_bytes = 0
    for chunk in store.chunks(key):
        found.update(chunk)
        size_bytes += len(chunk)
    if (size_bytes, found.hexdigest()) != (file.size_bytes, file.sha256):
        raise DigestMismatch(
            f"{store.uri}/{key} reads back as {size_bytes} bytes of sha256 {found.hexdigest()[:12]}…, "
            f"{file.size_bytes} bytes of {file.sha256[:12]}… were sent; check the store, then run the job again"
        )


def _file(directory: Path, path: Path) -> File:
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(path=path.relative_to(directory).as_posix(), size_bytes=path.stat().st_size, sha256=sha256)
