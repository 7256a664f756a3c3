"""manifest.json: what an artefact consists of, what it takes and answers, how good it is and where it comes from.

Pure: pydantic and the standard library, because the controller reads it too. The digest of an artefact is the sha256
of the bytes of its manifest; the manifest holds the sha256 of every file, so the digest covers everything. Nothing in
it depends on the time of publishing: the same model published twice is the same artefact.
"""

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from bigmodel.api.model import Digest, LongText, Metric, Model, Text, VariantName
from bigmodel.artifact.layout import DEFAULT_VARIANT, variant_directory

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_BYTES = 1 << 20

# Every segment starts with a letter or digit: no `..`, no hidden file, no absolute path can be written down.
FilePath = Annotated[
    str, StringConstraints(max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")
]
TensorName = Annotated[str, StringConstraints(max_length=63, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
DimensionName = Annotated[str, StringConstraints(max_length=63, pattern=r"^[a-z_][a-z0-9_]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
BATCH = "batch"


class InvalidManifest(Exception):
    """The bytes are not a manifest of this schema, or contradict themselves."""


class DigestMismatch(Exception):
    """Bytes are not those that the digest promises: damaged on the way, or changed in the store."""


class DataType(StrEnum):
    """Element types, with numpy's names; `string` is a sequence of bytes of any length."""

    BOOL = "bool"
    UINT8 = "uint8"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    STRING = "string"


class File(Model):
    path: FilePath
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Dimension(Model):
    """The sizes a named dimension may have, both ends included."""

    minimum: Annotated[int, Field(ge=1)]
    maximum: Annotated[int, Field(ge=1)]


class Tensor(Model):
    """`shape` holds sizes and names of dimensions; the first of a batched tensor is `batch`."""

    name: TensorName
    datatype: DataType
    shape: Annotated[list[Annotated[int, Field(ge=1)] | DimensionName], Field(max_length=8)]
    description: Text | None = None  # for whoever writes a client: meaning, unit, order


class Signature(Model):
    """What every variant takes and answers."""

    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=64)]
    outputs: Annotated[list[Tensor], Field(min_length=1, max_length=64)]
    dimensions: dict[DimensionName, Dimension] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _dimensions_are_declared(self) -> Self:
        for tensor in (*self.inputs, *self.outputs):
            for size in tensor.shape:
                if isinstance(size, str) and size not in self.dimensions:
                    raise ValueError(f"tensor {tensor.name} has dimension {size!r}, which signature.dimensions lacks")
        return self


class Program(Model):
    """The model as a program. A program is code: it runs with the rights of the process that loads it."""

    format: Literal["torch-export", "onnx"]
    path: FilePath


class Variant(Model):
    """One servable form of the model. Its files lie below `variant_directory(name)`."""

    name: VariantName
    precision: Literal["fp32", "bf16", "fp16", "int8", "fp8"]  # chooses the default parity tolerance
    program: Program
    weights: FilePath | None = None
    golden: Literal["validation", "random", "none"]
    # Two runs over the golden inputs gave equal bits. If not, only shape, dtype and finiteness are compared.
    deterministic: bool
    metrics: Annotated[list[Metric], Field(default_factory=list, max_length=8)]
    offered: bool = True
    message: Text | None = None  # why it is not offered


class Validation(Model):
    """The data behind the metrics of every variant."""

    digest: Digest  # of the rows as they went into the metrics
    samples: Annotated[int, Field(ge=1)]


class Provenance(Model):
    """Where the model comes from."""

    namespace: Text
    job: Text
    uid: Text
    attempt: int
    step: Annotated[int, Field(ge=0)]  # update whose parameters these are
    image: Text
    code: Digest  # of the source files: the trainer's own, and the script's where there is one
    data: LongText | None = None  # URI; None where a script reads what it likes
    data_digest: Digest | None = None
    frameworks: dict[str, str]  # name → version
    recipe: dict[str, Any] = Field(default_factory=dict)  # spec.recipe as run


class Manifest(Model):
    schema_version: Literal[1] = SCHEMA_VERSION
    files: Annotated[list[File], Field(min_length=1, max_length=4096)]
    signature: Signature
    variants: Annotated[list[Variant], Field(min_length=1, max_length=8)]
    serve: VariantName = DEFAULT_VARIANT  # the variant a service takes unless told otherwise
    validation: Validation | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        paths = [file.path for file in self.files]
        names = [variant.name for variant in self.variants]
        if len(set(paths)) < len(paths) or len(set(names)) < len(names):
            raise ValueError("a file path or variant name stands twice")
        if self.serve not in names:
            raise ValueError(f"serve is {self.serve!r}, the variants are {', '.join(names)}")
        for variant in self.variants:
            here = {file.path for file in self.files_of(variant.name)}
            for path in (variant.program.path, variant.weights):
                if path is not None and path not in here:
                    raise ValueError(f"variant {variant.name} names {path}, which is not one of its files")
        return self

    def variant(self, name: str) -> Variant:
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise InvalidManifest(
            f"the artefact has no variant {name!r}; it has {', '.join(v.name for v in self.variants)} "
            "(spec.model.variant)"
        )

    def files_of(self, variant: str) -> list[File]:
        return [file for file in self.files if file.path.startswith(variant_directory(variant) + "/")]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def canonical(self) -> bytes:
        """The bytes that are stored and hashed: sorted keys, no spaces, UTF-8."""
        return json.dumps(self.wire(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse(data: bytes, digest: str) -> Manifest:
    """The manifest in `data`. Raises DigestMismatch before anything is read out of bytes that are not those of
    `digest`.
    """
    if (found := digest_of(data)) != digest:
        raise DigestMismatch(
            f"manifest.json has digest {found}, wanted {digest}: it was changed or damaged; publish the model again"
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InvalidManifest(
            f"manifest.json of {digest} is not of schema {SCHEMA_VERSION} at {where}: {first['msg']}; "
            "publish the model again with this release, or serve it with the release that made it"
        ) from error
