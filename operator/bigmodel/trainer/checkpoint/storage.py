"""DCP's storage over a `Store`: one file of raw bytes a rank, and manifest.json from rank 0.

Both sides hash while bytes flow: nothing is read twice, and no more of a file is kept in memory than this rank needs.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from bigmodel.artifact.layout import shard_file
from bigmodel.artifact.manifest import File
from bigmodel.artifact.stores import ObjectNotFound, Store
from bigmodel.trainer.checkpoint.errors import CorruptCheckpoint
from bigmodel.trainer.checkpoint.manifest import CheckpointManifest, Piece, SavedTensor
from bigmodel.trainer.checkpoint.state import dtype

Span = tuple[int, int]  # (start, length) in bytes of a file
ALIGNMENT = 64  # every piece can be mapped as its element type, and hashed and copied in whole cache lines


@dataclass(frozen=True)
class Written:
    file: File
    start: int


class Writer(StorageWriter):
    """Writes this rank's pieces below `key`; rank 0 then hands all of them to `commit`, which must not return before
    they are committed.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        rank: int,
        commit: Callable[[list[File], dict[str, SavedTensor]], None],
    ) -> None:
        self._store = store
        self._key = key
        self._rank = rank
        self._commit = commit

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        parts: list[memoryview] = []
        starts: list[int] = []
        size_bytes = 0
        for item in plan.items:
            data = _bytes_of(planner.resolve_data(item))
            starts.append(size_bytes)
            padding = -len(data) % ALIGNMENT
            parts += [data, memoryview(bytes(padding))]
            size_bytes += len(data) + padding
        results: list[WriteResult] = []
        if parts:
            name = shard_file(self._rank)
            # Hashing and writing take about the same time, and both let go of the interpreter.
            with ThreadPoolExecutor(1, "checkpoint-hash") as pool:
                digest = pool.submit(_sha256, parts)
                self._store.write(f"{self._key}/{name}", parts)
                file = File(path=name, size_bytes=size_bytes, sha256=digest.result())
            results = [
                WriteResult(index=item.index, size_in_bytes=len(parts[2 * number]), storage_data=Written(file, start))
                for number, (item, start) in enumerate(zip(plan.items, starts, strict=True))
            ]
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        written = {result.index: result for of_rank in results for result in of_rank}
        files = {result.storage_data.file.path: result.storage_data.file for result in written.values()}
        pieces: dict[str, list[Piece]] = defaultdict(list)
        sizes = {
            (name, chunk.offsets): chunk.sizes
            for name, tensor in metadata.state_dict_metadata.items()
            for chunk in _of_tensor(tensor).chunks
        }
        for index, result in written.items():
            assert index.offset is not None
            pieces[index.fqn].append(
                Piece(
                    offsets=list(index.offset),
                    sizes=list(sizes[index.fqn, index.offset]),
                    file=result.storage_data.file.path,
                    start=result.storage_data.start,
                    length=result.size_in_bytes,
                )
            )
        tensors = {
            name: SavedTensor(
                dtype=str(_of_tensor(tensor).properties.dtype).removeprefix("torch."),
                shape=list(_of_tensor(tensor).size),
                pieces=sorted(pieces[name], key=lambda piece: piece.offsets),
            )
            for name, tensor in metadata.state_dict_metadata.items()
        }
        self._commit(sorted(files.values(), key=lambda file: file.path), tensors)

    # Nothing to do in these.

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def storage_meta(self) -> StorageMeta | None:
        return None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False


class Reader(StorageReader):
    """Reads what this rank needs. Every file of the checkpoint is verified by some rank, whether anybody needs it or
    not: what was damaged is found now, not when a later run with other ranks needs it.
    """

    def __init__(self, store: Store, key: str, manifest: CheckpointManifest, rank: int, ranks: int) -> None:
        self._store = store
        self._key = key
        self._manifest = manifest
        self._rank = rank
        self._ranks = ranks

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=dtype(tensor)),
                    torch.Size(tensor.shape),
                    [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in tensor.pieces],
                )
                for name, tensor in self._manifest.tensors.items()
            }
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Raises CorruptCheckpoint; errors of `stores` where the store does not answer."""
        pieces = {
            (name, tuple(piece.offsets)): piece
            for name, tensor in self._manifest.tensors.items()
            for piece in tensor.pieces
        }
        wanted: dict[str, dict[Span, list[ReadItem]]] = defaultdict(lambda: defaultdict(list))
        for item in plan.items:
            assert item.storage_index.offset is not None
            piece = pieces[item.storage_index.fqn, tuple(item.storage_index.offset)]
            wanted[piece.file][piece.start, piece.length].append(item)
        for number, file in enumerate(self._manifest.files):
            if file.path not in wanted and number % self._ranks != self._rank:
                continue
            items = wanted.get(file.path, {})
            for span, data in self._verified(file, sorted(items)).items():
                for item in items[span]:
                    self._copy(data, item, planner)
        return _done(None)

    def _verified(self, file: File, spans: list[Span]) -> dict[Span, bytearray]:
        """The bytes of `spans`, (start, length) in order. All of the file was hashed before anything is returned."""
        found = hashlib.sha256()
        kept = {span: bytearray(span[1]) for span in spans}
        position = first = 0
        try:
            for chunk in self._store.chunks(f"{self._key}/{file.path}"):
                end = position + len(chunk)
                if end > file.size_bytes:
                    position = end
                    break
                found.update(chunk)
                while first < len(spans) and sum(spans[first]) <= position:
                    first += 1
                for start, length in spans[first:]:
                    if start >= end:
                        break
                    low, high = max(start, position), min(start + length, end)
                    kept[start, length][low - start : high - start] = chunk[low - position : high - position]
                position = end
        except ObjectNotFound as error:
            raise CorruptCheckpoint(f"{file.path} is missing: {error}") from error
        if (position, found.hexdigest()) != (file.size_bytes, file.sha256):
            raise CorruptCheckpoint(
                f"{self._store.uri}/{self._key}/{file.path} is not what was saved: {position} bytes of sha256 "
                f"{found.hexdigest()[:12]}…, the manifest says {file.size_bytes} bytes of {file.sha256[:12]}…"
            )
        return kept

    def _copy(self, data: bytearray, item: ReadItem, planner: LoadPlanner) -> None:
        tensor = self._manifest.tensors[item.storage_index.fqn]
        piece = next(p for p in tensor.pieces if p.offsets == list(item.storage_index.offset or ()))
        whole = torch.frombuffer(data, dtype=dtype(tensor)) if data else torch.empty(0, dtype=dtype(tensor))
        box = whole.reshape(piece.sizes)
        for axis, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
            box = box.narrow(axis, offset, length)
        planner.resolve_tensor(item).detach().copy_(box)

    # Nothing to do in these.

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False


def _of_tensor(metadata: Any) -> TensorStorageMetadata:
    assert isinstance(metadata, TensorStorageMetadata)  # `state` hands over nothing but tensors
    return metadata


def _bytes_of(tensor: Any) -> memoryview:
    """Of its elements in C order. Without a copy where they lie like that in this process's memory."""
    assert isinstance(tensor, Tensor)
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _sha256(parts: Sequence[memoryview]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
