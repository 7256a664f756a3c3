"""Round trips through both kinds of store, and every way in which they may be cut off or tampered with."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bigmodel.api.run import StoreLocation
from bigmodel.artifact import stores
from bigmodel.artifact.archive import UnsafeProgram
from bigmodel.artifact.fetch import fetch, read_manifest, verify
from bigmodel.artifact.layout import join
from bigmodel.artifact.manifest import DigestMismatch, InvalidManifest, Manifest
from bigmodel.artifact.publish import inventory, publish
from bigmodel.artifact.stores import ObjectNotFound, open_store
from tests.unit.artifact.artefacts import a_manifest, a_program, a_provenance, a_variant, an_artefact
from tests.unit.artifact.seaweedfs import WRITER


class Watched:
    """A store that notes what is written and can be told to fail or to lie."""

    def __init__(self, store: stores.Store, before: Callable[[str], None] = lambda key: None) -> None:
        self.uri, self._store, self._before = store.uri, store, before
        self.written: list[str] = []

    def put(self, key: str, source: Path) -> None:
        self._before(key)
        self.written.append(key)
        self._store.put(key, source)

    def create(self, key: str, data: bytes) -> None:
        self._before(key)
        self.written.append(key)
        self._store.create(key, data)

    def read(self, key: str, limit: int) -> bytes:
        return self._store.read(key, limit)

    def chunks(self, key: str) -> Iterator[bytes]:
        return self._store.chunks(key)

    def list(self, prefix: str) -> list[tuple[str, int]]:
        return self._store.list(prefix)


def at(location: StoreLocation, key: str) -> stores.Store:
    return open_store(location.model_copy(update={"uri": join(location.uri, key)}), WRITER)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_what_is_fetched_is_what_was_published(location: StoreLocation, tmp_path: Path):
    manifest = an_artefact(tmp_path / "made")
    key, digest = publish(open_store(location, WRITER), tmp_path / "made", manifest)
    assert key == f"ml/mlp/0-1/artifact/{digest.removeprefix('sha256:')}"
    assert fetch(at(location, key), digest, "default", tmp_path / "fetched") == manifest
    assert contents(tmp_path / "fetched") == contents(tmp_path / "made") | {"manifest.json": manifest.canonical()}
    verify(tmp_path / "fetched", manifest.files)


def test_the_manifest_is_written_last_and_a_second_publication_writes_nothing(location: StoreLocation, tmp_path: Path):
    manifest = an_artefact(tmp_path)
    first = Watched(open_store(location, WRITER))
    key, digest = publish(first, tmp_path, manifest)
    assert first.written[-1] == f"{key}/manifest.json"
    assert sorted(first.written[:-1]) == sorted(f"{key}/{file.path}" for file in manifest.files)
    second = Watched(open_store(location, WRITER))
    assert publish(second, tmp_path, manifest) == (key, digest)
    assert second.written == []


@pytest.mark.parametrize("writes", range(5))
def test_a_publication_cut_off_after_any_write_is_invisible_and_finished_by_the_next(tmp_path: Path, writes: int):
    location = StoreLocation(uri=f"file://{tmp_path}/store")
    manifest = an_artefact(tmp_path / "made")

    class Killed(Exception):
        pass

    def kill(key: str) -> None:
        if len(cut.written) == writes:
            raise Killed

    cut = Watched(open_store(location, {}), before=kill)
    with pytest.raises(Killed):
        publish(cut, tmp_path / "made", manifest)
    key, digest = publish(open_store(location, {}), tmp_path / "made", manifest)
    assert fetch(at(location, key), digest, "default", tmp_path / "fetched") == manifest


def test_before_the_commit_there_is_nothing_to_fetch(location: StoreLocation, tmp_path: Path):
    manifest = an_artefact(tmp_path / "made")
    store = open_store(location, WRITER)
    key, digest = publish(store, tmp_path / "made", manifest)
    with pytest.raises(ObjectNotFound, match=r"manifest\.json"):
        fetch(at(location, key.replace(key[-64:], "0" * 64)), digest, "default", tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_store_that_keeps_other_bytes_than_it_was_given_gets_no_commit(tmp_path: Path):
    class Lying(Watched):
        def put(self, key: str, source: Path) -> None:
            other = tmp_path / "other"
            other.write_bytes(source.read_bytes()[:-1] + b"!")
            super().put(key, other)

    location = StoreLocation(uri=f"file://{tmp_path}/store")
    store = Lying(open_store(location, {}))
    with pytest.raises(DigestMismatch, match="reads back as"):
        publish(store, tmp_path / "made", an_artefact(tmp_path / "made"))
    assert not [key for key, _ in store.list("") if key.endswith("manifest.json")]


def test_another_content_below_the_digest_is_never_taken_for_committed(tmp_path: Path):
    location = StoreLocation(uri=f"file://{tmp_path}/store")
    manifest = an_artefact(tmp_path / "made")
    key, _ = publish(open_store(location, {}), tmp_path / "made", manifest)
    (tmp_path / "store" / key / "manifest.json").write_bytes(b"{}")
    with pytest.raises(DigestMismatch, match="someone changed it"):
        publish(open_store(location, {}), tmp_path / "made", manifest)


TAMPERED = {
    "a byte is another": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
    "bytes are missing": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "bytes were added": lambda path: path.write_bytes(path.read_bytes() + b"!"),
    "it is empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
@pytest.mark.parametrize("file", ["model/weights.safetensors", "model/program.pt2", "model/golden/batch-1.safetensors"])
def test_a_tampered_file_is_named_and_nothing_is_put_in_place(
    tmp_path: Path, tamper: Callable[[Path], None], file: str
):
    location = StoreLocation(uri=f"file://{tmp_path}/store")
    key, digest = publish(open_store(location, {}), tmp_path / "made", an_artefact(tmp_path / "made"))
    tamper(tmp_path / "store" / key / file)
    (tmp_path / "fetched").mkdir()
    (tmp_path / "fetched/before").write_bytes(b"kept")
    with pytest.raises(DigestMismatch, match=file):
        fetch(at(location, key), digest, "default", tmp_path / "fetched")
    assert contents(tmp_path / "fetched") == {"before": b"kept"}
    assert not list(tmp_path.glob(".*"))


def test_a_tampered_manifest_is_refused(tmp_path: Path):
    location = StoreLocation(uri=f"file://{tmp_path}/store")
    key, digest = publish(open_store(location, {}), tmp_path / "made", an_artefact(tmp_path / "made"))
    manifest = tmp_path / "store" / key / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"step":60', b'"step":61'))
    with pytest.raises(DigestMismatch, match="changed or damaged"):
        fetch(at(location, key), digest, "default", tmp_path / "fetched")


def test_only_the_files_of_the_variant_are_fetched(tmp_path: Path):
    made = tmp_path / "made"
    an_artefact(made)
    a_program(made / "variants/int8/program.pt2")
    variants = [
        a_variant(),
        a_variant(
            name="int8", precision="int8", program={"format": "torch-export", "path": "variants/int8/program.pt2"}
        ),
    ]
    manifest: Manifest = a_manifest(files=inventory(made), variants=variants)
    location = StoreLocation(uri=f"file://{tmp_path}/store")
    key, digest = publish(open_store(location, {}), made, manifest)
    fetch(at(location, key), digest, "int8", tmp_path / "fetched")
    assert set(contents(tmp_path / "fetched")) == {"manifest.json", "variants/int8/program.pt2"}
    with pytest.raises(InvalidManifest, match="no variant 'int4'"):
        fetch(at(location, key), digest, "int4", tmp_path / "other")


def test_fetching_again_replaces_what_an_older_fetch_left(tmp_path: Path):
    location = StoreLocation(uri=f"file://{tmp_path}/store")
    key, digest = publish(open_store(location, {}), tmp_path / "made", an_artefact(tmp_path / "made"))
    for _ in range(2):
        fetch(at(location, key), digest, "default", tmp_path / "fetched")
        (tmp_path / "fetched/model/stale").write_bytes(b"")
        (tmp_path / ".fetched.partial/model").mkdir(parents=True)  # as a killed fetch leaves it
    fetch(at(location, key), digest, "default", tmp_path / "fetched")
    assert "model/stale" not in contents(tmp_path / "fetched")


def test_an_unsafe_program_is_refused_on_the_way_in_and_on_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = tmp_path / "made"
    an_artefact(made)
    a_program(made / "model/program.pt2", {"p/data/constants/opaque_obj_0": b"\x80\x04."})
    manifest = a_manifest(files=inventory(made))
    location = StoreLocation(uri=f"file://{tmp_path}/store")
    with pytest.raises(UnsafeProgram, match="opaque_obj_0"):
        publish(open_store(location, {}), made, manifest)
    with monkeypatch.context() as careless:
        careless.setattr("bigmodel.artifact.publish.check_program", lambda path: None)
        key, digest = publish(open_store(location, {}), made, manifest)
    with pytest.raises(UnsafeProgram, match="opaque_obj_0"):
        fetch(at(location, key), digest, "default", tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_verify_finds_what_changed_after_the_fetch(tmp_path: Path):
    manifest = an_artefact(tmp_path)
    with zipfile.ZipFile(tmp_path / "model/program.pt2", "a") as archive:
        archive.writestr("p/x", b"")
    with pytest.raises(DigestMismatch, match=r"program\.pt2 has sha256"):
        verify(tmp_path, manifest.files)
    (tmp_path / "model/program.pt2").unlink()
    with pytest.raises(DigestMismatch, match="is gone"):
        verify(tmp_path, manifest.files)


def test_a_manifest_can_be_read_alone(tmp_path: Path):
    location = StoreLocation(uri=f"file://{tmp_path}/store")
    manifest = an_artefact(tmp_path / "made")
    key, digest = publish(open_store(location, {}), tmp_path / "made", manifest)
    assert read_manifest(at(location, key), digest) == manifest
    assert manifest.provenance == a_provenance()


def test_a_file_that_never_ends_does_not_fill_the_disk(tmp_path: Path):
    class Endless(Watched):
        def chunks(self, key: str) -> Iterator[bytes]:
            while True:
                yield b"\0" * 1_000_000

    location = StoreLocation(uri=f"file://{tmp_path}/store")
    key, digest = publish(open_store(location, {}), tmp_path / "made", an_artefact(tmp_path / "made"))
    with pytest.raises(DigestMismatch, match="is not the file that was published"):
        fetch(Endless(at(location, key)), digest, "default", tmp_path / "fetched")
