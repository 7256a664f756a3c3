"""manifest.json of a checkpoint: its files and where in them each piece of each tensor lies. Pure.

It carries its own digest, the sha256 over everything else in it, so that a flipped bit in it is seen too.
"""

import json
import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from bigmodel.api.model import Digest, Model
from bigmodel.artifact.manifest import File, FilePath, digest_of
from bigmodel.trainer.checkpoint.errors import CorruptCheckpoint

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_BYTES = 256 << 20
DIGEST = "digest"

Size = Annotated[int, Field(ge=0)]


class Piece(Model):
    """A box of a tensor, C-contiguous, in `length` bytes of `file` from byte `start` on."""

    offsets: list[Size]
    sizes: list[Size]
    file: FilePath
    start: Size
    length: Size


class SavedTensor(Model):
    """`pieces` cover it without overlap."""

    dtype: str  # torch's name without `torch.`
    shape: list[Size]
    pieces: list[Piece]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class CheckpointManifest(Model):
    schema_version: Literal[1] = SCHEMA_VERSION
    step: Size  # updates made
    world_size: Annotated[int, Field(ge=1)]
    attempt: Size
    generation: Size
    torch: str  # version that wrote it
    saved_at: float  # seconds since the epoch, the clock of rank 0
    trained_seconds: float  # that the job has trained up to here, over all generations
    files: list[File]
    tensors: dict[str, SavedTensor]
    values: dict[str, Any]  # everything that is no tensor, in the encoding of `state`

    def sealed(self) -> tuple[bytes, str]:
        """(the bytes that are stored, digest)."""
        body = self.model_dump(mode="json", by_alias=True)
        digest = digest_of(_canonical(body))
        return _canonical(body | {DIGEST: digest}), digest


def parse(data: bytes) -> tuple[CheckpointManifest, Digest]:
    """Raises CorruptCheckpoint unless `data` is what `sealed` gave."""
    try:
        body = json.loads(data)
        digest = body.pop(DIGEST)
        if digest_of(_canonical(body)) != digest:
            raise CorruptCheckpoint("manifest.json is not what was written: its digest differs")
        return CheckpointManifest.model_validate(body), digest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            raise CorruptCheckpoint(
                f"manifest.json is not of schema {SCHEMA_VERSION} at {'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from error
        raise CorruptCheckpoint(f"manifest.json is no manifest: {error!r}") from error


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
