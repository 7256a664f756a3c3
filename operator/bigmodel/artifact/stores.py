"""Object stores by URI: `s3://bucket/prefix` or `file:///path`. Errors of both are mapped here, once, to one class
per cause.

Keys are relative to the URI the store was opened with. Create-only writes are what commits rest on: S3 by
`If-None-Match: *`, a directory by hard link (a file system without hard links cannot hold artefacts).
"""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions as obstore_exceptions
from obstore.store import S3Store

from bigmodel.api.run import StoreLocation

if TYPE_CHECKING:
    from obstore.store import RetryConfig

CHUNK_BYTES = 4 << 20
# Of one request: about 6 s of back-off where nothing listens, 30 s where it stays unanswered.
RETRIES: "RetryConfig" = {"max_retries": 6, "retry_timeout": timedelta(seconds=30)}


class StoreError(Exception):
    """The store failed in a way that has no class of its own: the message is the store's."""


class StoreUnreachable(StoreError):
    """No answer from the store, or only server errors, over all retries."""


class StoreForbidden(StoreError):
    """The store refuses this login."""


class ObjectNotFound(StoreError):
    """There is no such object, or no such bucket."""


class AlreadyExists(StoreError):
    """A create-only write met an object of that key."""


class InvalidLocation(StoreError):
    """The store's URI is neither s3:// nor file:///."""


class Entry(NamedTuple):
    """One object of a listing."""

    key: str
    size_bytes: int
    modified: datetime  # UTC


class Store(Protocol):
    """What both kinds can do. Every method raises the errors above and nothing else."""

    uri: str

    def put(self, key: str, source: Path) -> None:
        """Write a whole file, over whatever was there."""

    def write(self, key: str, parts: Sequence[memoryview]) -> None:
        """Write what lies in memory, one part after the other, over whatever was there."""

    def create(self, key: str, data: bytes) -> None:
        """Write only if nothing is there, atomically. Raises AlreadyExists."""

    def read(self, key: str, limit: int) -> bytes:
        """At most `limit` bytes of the object, from its start."""

    def chunks(self, key: str) -> Iterator[bytes]:
        """The object from start to end, in pieces of a few MiB."""

    def list(self, prefix: str) -> list[tuple[str, int]]:
        """(key, size in bytes) of everything below `prefix`, a directory, sorted."""

    def entries(self, prefix: str) -> Sequence[Entry]:
        """The same, with the time of the last write."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, in that order. What is not there is no error."""


def open_store(location: StoreLocation, environ: Mapping[str, str]) -> Store:
    """The store at `location.uri`; nothing is contacted yet.

    S3: path-style addresses, HTTP allowed, logins from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN
    of `environ`; without them the pod's own identity (web identity, then the instance's).
    """
    url = urlsplit(location.uri)
    if url.scheme == "file" and not url.netloc and url.path.startswith("/"):
        return Directory(location.uri, Path(unquote(url.path)))
    if url.scheme == "s3" and url.netloc:
        return Bucket(location, url.netloc, url.path.strip("/"), environ)
    raise InvalidLocation(f"store URI {location.uri!r}: want s3://bucket/prefix or file:///path")


class Bucket:
    """A bucket of S3 or of a server that speaks S3."""

    def __init__(self, location: StoreLocation, bucket: str, prefix: str, environ: Mapping[str, str]) -> None:
        login: dict[str, Any] = {
            field: environ[name]
            for field, name in (
                ("access_key_id", "AWS_ACCESS_KEY_ID"),
                ("secret_access_key", "AWS_SECRET_ACCESS_KEY"),
                ("session_token", "AWS_SESSION_TOKEN"),
            )
            if environ.get(name)
        }
        if location.endpoint:
            login["endpoint"] = location.endpoint
        self.uri = location.uri
        self._where = f"{location.uri} at {location.endpoint or 'AWS'}"
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            region=location.region or environ.get("AWS_REGION") or "us-east-1",
            virtual_hosted_style_request=False,
            # No limit on a whole request: an object takes as long as it takes. A silent connection is cut.
            client_options={
                "allow_http": True,
                "connect_timeout": timedelta(seconds=5),
                "read_timeout": timedelta(seconds=30),
                "timeout": timedelta(days=1),
            },
            retry_config=RETRIES,
            **login,
        )

    def put(self, key: str, source: Path) -> None:
        with self._mapped(key):
            obstore.put(self._store, key, source)

    def write(self, key: str, parts: Sequence[memoryview]) -> None:
        with self._mapped(key):
            obstore.put(self._store, key, iter(parts))

    def create(self, key: str, data: bytes) -> None:
        with self._mapped(key):
            obstore.put(self._store, key, data, mode="create")

    def read(self, key: str, limit: int) -> bytes:
        data = bytearray()
        for chunk in self.chunks(key):
            data += chunk
            if len(data) >= limit:
                break
        return bytes(data[:limit])

    def chunks(self, key: str) -> Iterator[bytes]:
        with self._mapped(key):
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    def list(self, prefix: str) -> list[tuple[str, int]]:
        with self._mapped(prefix):
            return sorted(
                (meta["path"], meta["size"]) for page in obstore.list(self._store, prefix or None) for meta in page
            )

    def entries(self, prefix: str) -> Sequence[Entry]:
        with self._mapped(prefix):
            return sorted(
                Entry(meta["path"], meta["size"], meta["last_modified"])
                for page in obstore.list(self._store, prefix or None)
                for meta in page
            )

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:  # one by one: a bulk request has no order
            with self._mapped(key), suppress(FileNotFoundError):
                obstore.delete(self._store, key)

    @contextmanager
    def _mapped(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectNotFound(
                f"{key} is not in {self._where}: {_cause(error)}; check bucket, prefix and that it was published"
            ) from error
        except (obstore_exceptions.AlreadyExistsError, obstore_exceptions.PreconditionError) as error:
            raise AlreadyExists(
                f"{key} exists already in {self._where}; committed objects are never written over"
            ) from error
        except (obstore_exceptions.PermissionDeniedError, obstore_exceptions.UnauthenticatedError) as error:
            raise StoreForbidden(
                f"{self._where} refuses {key}: {_cause(error)}; check AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY in the "
                "Secret that store.s3.secretName names, and the rights of that key on the bucket"
            ) from error
        except obstore_exceptions.BaseError as error:
            if "<Code>NoSuchBucket</Code>" in str(error):
                raise ObjectNotFound(
                    f"{self._where}: there is no such bucket; create it, or correct store.s3.bucket"
                ) from error
            raise StoreUnreachable(
                f"{self._where} does not answer for {key}: {_cause(error)}; check store.s3.endpoint, the "
                "server and the network policies"
            ) from error


class Directory:
    """A directory of a mounted volume. Files are flushed to the disk before they get their name, and get it at once."""

    def __init__(self, uri: str, root: Path) -> None:
        self.uri = uri
        self._root = root

    def put(self, key: str, source: Path) -> None:
        with self._mapped(key), source.open("rb") as whole, self._staged(key) as staged:
            while chunk := whole.read(CHUNK_BYTES):
                staged.write(chunk)
            _flush(staged)
            Path(staged.name).replace(self._root / key)

    def write(self, key: str, parts: Sequence[memoryview]) -> None:
        with self._mapped(key), self._staged(key) as staged:
            for part in parts:
                staged.write(part)
            _flush(staged)
            Path(staged.name).replace(self._root / key)

    def create(self, key: str, data: bytes) -> None:
        with self._mapped(key), self._staged(key) as staged:
            staged.write(data)
            _flush(staged)
            os.link(staged.name, self._root / key)

    def read(self, key: str, limit: int) -> bytes:
        with self._mapped(key), (self._root / key).open("rb") as stream:
            return stream.read(limit)

    def chunks(self, key: str) -> Iterator[bytes]:
        with self._mapped(key), (self._root / key).open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def list(self, prefix: str) -> list[tuple[str, int]]:
        with self._mapped(prefix):
            files = [path for path in (self._root / prefix).rglob("[!.]*") if path.is_file()]
            return sorted((path.relative_to(self._root).as_posix(), path.stat().st_size) for path in files)

    def entries(self, prefix: str) -> Sequence[Entry]:
        with self._mapped(prefix):
            return [
                Entry(key, size_bytes, datetime.fromtimestamp((self._root / key).stat().st_mtime, UTC))
                for key, size_bytes in self.list(prefix)
            ]

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            with self._mapped(key):
                path = self._root / key
                path.unlink(missing_ok=True)
                with suppress(OSError):  # a bucket has no empty directories either; one that is in use stays
                    while (path := path.parent) != self._root:
                        path.rmdir()

    @contextmanager
    def _staged(self, key: str) -> Iterator[IO[bytes]]:
        """A hidden file beside the key's place, gone afterwards unless it was renamed."""
        directory = (self._root / key).parent
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".", delete=False) as staged:
            try:
                # Other pods of the volume read it, with other user ids.
                os.fchmod(staged.fileno(), 0o644)
                yield staged
            finally:
                Path(staged.name).unlink(missing_ok=True)

    @contextmanager
    def _mapped(self, key: str) -> Iterator[None]:
        path = self._root / key
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectNotFound(
                f"{path} does not exist; check the claim's path and that the model was published"
            ) from error
        except FileExistsError as error:
            raise AlreadyExists(f"{path} exists already; committed objects are never written over") from error
        except PermissionError as error:
            raise StoreForbidden(
                f"{path}: {error.strerror}; the volume must be writable for the pod's user or fsGroup "
                "(spec.runAsUser, spec.fsGroup)"
            ) from error
        except OSError as error:
            raise StoreUnreachable(
                f"{path}: {error.strerror or error}; check the volume, its free space and that it is mounted"
            ) from error


def _flush(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _cause(error: Exception) -> str:
    """The first line of the library's message with the server's error code, without its debug dump."""
    text = str(error)
    code = re.search(r"<Code>(\w+)</Code>", text)
    line = text.split("\n", 1)[0].removesuffix('<?xml version="1.0" encoding="UTF-8"?>').strip(" :")
    return f"{code[1]} ({line})" if code else line
