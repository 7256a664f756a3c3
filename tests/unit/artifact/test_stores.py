"""One contract for both kinds of store, against a real S3 server and a real directory; then what only one of them can
do wrong.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bigmodel.api.run import StoreLocation
from bigmodel.artifact import stores
from bigmodel.artifact.stores import (
    AlreadyExists,
    InvalidLocation,
    ObjectNotFound,
    StoreError,
    StoreForbidden,
    StoreUnreachable,
    open_store,
)
from tests.unit.artifact.seaweedfs import READER, WRITER, S3Server

LARGE = bytes(range(256)) * 50_000  # 12.8 MB: a multipart upload, several chunks


@pytest.fixture
def store(location: StoreLocation) -> stores.Store:
    return open_store(location, WRITER)


def test_what_was_put_is_read_whole_in_part_and_in_chunks(store: stores.Store, tmp_path: Path):
    (tmp_path / "file").write_bytes(LARGE)
    store.put("a/b/file", tmp_path / "file")
    assert b"".join(store.chunks("a/b/file")) == LARGE
    assert store.read("a/b/file", len(LARGE) + 1) == LARGE
    assert store.read("a/b/file", 300) == LARGE[:300]


def test_put_replaces(store: stores.Store, tmp_path: Path):
    for content in (b"one", b"", b"three"):
        (tmp_path / "file").write_bytes(content)
        store.put("file", tmp_path / "file")
        assert store.read("file", 100) == content


def test_create_never_replaces(store: stores.Store):
    store.create("a/manifest.json", b"first")
    with pytest.raises(AlreadyExists, match=r"a/manifest\.json exists already"):
        store.create("a/manifest.json", b"second")
    assert store.read("a/manifest.json", 100) == b"first"


def test_of_many_that_create_at_once_exactly_one_wins(store: stores.Store):
    def create(number: int) -> int | None:
        try:
            store.create("race", f"{number}".encode())
        except AlreadyExists:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(8)) if number is not None]
    assert len(winners) == 1
    assert store.read("race", 10) == f"{winners[0]}".encode()


def test_what_lies_in_memory_is_written_in_order_over_what_was_there(store: stores.Store):
    for parts in ([b"old"], [LARGE, b"", b"end"], []):
        store.write("a/b/file", [memoryview(part) for part in parts])
        assert b"".join(store.chunks("a/b/file")) == b"".join(parts)


def test_delete_removes_what_is_there_and_nothing_else(store: stores.Store):
    for key in ("a/1", "a/b/2", "a/b/3", "c/d/4"):
        store.create(key, b"x")
    store.delete(["a/b/3", "a/b/3", "nothing/here", "c/d/4"])
    assert [key for key, _ in store.list("")] == ["a/1", "a/b/2"]
    store.create("c/d/4", b"again")
    assert store.read("c/d/4", 9) == b"again"


@pytest.mark.parametrize("read", [lambda s: s.read("x/y", 1), lambda s: list(s.chunks("x/y"))], ids=["read", "chunks"])
def test_what_is_not_there_is_not_found(store: stores.Store, read):
    with pytest.raises(ObjectNotFound, match="x/y"):
        read(store)


def test_list_sees_what_lies_below_a_directory_and_nothing_else(store: stores.Store):
    for key in ("a/1", "a/b/2", "ab/3"):
        store.create(key, key.encode() * 2)
    assert store.list("a") == [("a/1", 6), ("a/b/2", 10)]
    assert [key for key, _ in store.list("")] == ["a/1", "a/b/2", "ab/3"]
    assert store.list("nothing") == []


def test_a_store_can_be_opened_below_another(store: stores.Store, location: StoreLocation):
    store.create("deep/er/x", b"x")
    below = open_store(location.model_copy(update={"uri": f"{location.uri}/deep/er"}), WRITER)
    assert below.read("x", 1) == b"x"


@pytest.mark.parametrize("uri", ["models/x", "file://host/x", "file:relative", "s3:///x", "http://x/y"])
def test_other_uris_are_refused(uri: str):
    with pytest.raises(InvalidLocation, match="s3://bucket/prefix or file:///path"):
        open_store(StoreLocation(uri=uri), {})


LOGINS = {
    "an unknown key": ({"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "x"}, "InvalidAccessKeyId"),
    "a wrong secret": (WRITER | {"AWS_SECRET_ACCESS_KEY": "x"}, "SignatureDoesNotMatch"),
    "a key that may only read": (READER, "AccessDenied"),
}


@pytest.mark.parametrize(("login", "code"), LOGINS.values(), ids=LOGINS)
def test_a_refused_login_names_the_cause_and_the_secret(s3: S3Server, login: dict[str, str], code: str):
    with pytest.raises(StoreForbidden, match=rf"(?s){code}.*store\.s3\.secretName") as caught:
        open_store(s3.location("forbidden"), login).create("x", b"x")
    assert "Debug source" not in str(caught.value)
    assert login["AWS_SECRET_ACCESS_KEY"] not in str(caught.value) or len(login["AWS_SECRET_ACCESS_KEY"]) == 1


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://no-such-host.invalid"])
def test_a_server_that_is_not_there_is_unreachable(monkeypatch: pytest.MonkeyPatch, endpoint: str):
    monkeypatch.setattr(stores, "RETRIES", {"max_retries": 1})
    location = StoreLocation(uri="s3://models/x", endpoint=endpoint)
    with pytest.raises(StoreUnreachable, match=rf"(?s){endpoint}.*store\.s3\.endpoint"):
        open_store(location, WRITER).read("x", 1)


def test_a_directory_that_is_no_directory_is_not_found(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ObjectNotFound):
        open_store(StoreLocation(uri=f"file://{tmp_path}/file"), {}).read("x", 1)


def test_a_directory_keeps_no_empty_directories(tmp_path: Path):
    store = open_store(StoreLocation(uri=f"file://{tmp_path}/store"), {})
    store.create("a/b/c", b"x")
    store.create("a/d", b"x")
    store.delete(["a/b/c"])
    assert [path.name for path in (tmp_path / "store/a").iterdir()] == ["d"]


def test_a_failed_put_into_a_directory_leaves_nothing(tmp_path: Path):
    store = open_store(StoreLocation(uri=f"file://{tmp_path}/store"), {})
    with pytest.raises(StoreError):
        store.put("a/x", tmp_path / "missing")
    store.create("a/y", b"y")
    assert [path.name for path in (tmp_path / "store/a").iterdir()] == ["y"]


def test_a_bucket_that_is_not_there_is_not_found_and_the_way_out_is_told(s3: S3Server):
    with pytest.raises(ObjectNotFound, match=r"no such bucket; create it, or correct store\.s3\.bucket"):
        open_store(s3.location("x", bucket="never-made"), WRITER).list("a")
