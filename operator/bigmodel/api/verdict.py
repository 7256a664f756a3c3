"""What serving pods say to the controller: `Verdict`, the answer of GET :8271/v1/verdict, ≤ VERDICT_BYTES of JSON.

Untrusted input to the reader. Unreachable is no data, never a pass.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from bigmodel.api.model import Digest, LongText, Model, Text

VERDICT_BYTES = 4096


class VerdictStage(StrEnum):
    LOADING = "Loading"  # Triton has not opened its ports, or the model version is not ready
    REPLAYING = "Replaying"  # golden samples are being sent
    VERIFIED = "Verified"
    FAILED = "Failed"


class Parity(Model):
    """|a - b| ≤ absolute + relative·|b| over every golden output; `worst` is the largest excess ratio, ≤ 1 passes."""

    samples: int
    absolute: float
    relative: float
    worst: Annotated[float, Field(ge=0)]
    compared: Text  # "values" or "shape, dtype and finiteness"


class LoadTimings(Model):
    download_seconds: float | None = None
    load_seconds: float | None = None
    warmup_seconds: float | None = None


class Verdict(Model):
    service: Text
    revision: int
    digest: Digest
    stage: VerdictStage
    reason: Text | None = None  # CamelCase, of the service's reasons
    message: LongText
    parity: Parity | None = None
    timings: LoadTimings = LoadTimings()
    server_version: Text | None = None


class FetchResult(Model):
    """Termination message of the `fetch` init container."""

    ok: bool
    reason: Text | None = None  # DigestMismatch | ArtifactNotFound | StoreUnreachable | StoreForbidden | InvalidConfig
    message: LongText
    download_seconds: float | None = None
    size_bytes: int | None = None
