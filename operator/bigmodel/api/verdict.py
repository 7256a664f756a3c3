"""What serving pods say to the controller: `Verdict`, the answer of GET :8271/v1/verdict, ≤ VERDICT_BYTES of JSON.

Untrusted input to the reader. Unreachable is no data, never a pass.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Self
from urllib.parse import parse_qsl, urlencode

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


WINDOWS = 4  # that one question may ask for
REPLAY_LIMIT = 20.0  # golden requests a second


@dataclass(frozen=True)
class Question:
    """What the controller wants to know beside the stage, as the query of PATH_VERDICT: the same question again and
    again while a rollout lasts. The verifier looks more often for as long as it is asked.
    """

    windows: tuple[float, ...] = ()  # seconds back from now
    slow_milliseconds: float | None = None  # a request that takes longer counts as slow
    replay_per_second: float = 0.0  # golden requests, so that a quiet service is judged as well

    def query(self) -> str:
        pairs = [("window", f"{seconds:.1f}") for seconds in self.windows]
        if self.slow_milliseconds is not None:
            pairs.append(("slow", f"{self.slow_milliseconds:g}"))
        if self.replay_per_second:
            pairs.append(("replay", f"{self.replay_per_second:g}"))
        return urlencode(pairs)

    @classmethod
    def parse(cls, query: str) -> Self:
        """What is not known here is left out: a newer controller may ask it. Raises ValueError for a wrong number."""
        windows: list[float] = []
        slow, replay = None, 0.0
        for name, text in parse_qsl(query):
            if name not in ("window", "slow", "replay"):
                continue
            value = float(text)
            if not 0 <= value < 1e9:
                raise ValueError(f"{name} is {text}, a number of at least 0 is wanted")
            match name:
                case "window":
                    windows.append(value)
                case "slow":
                    slow = value
                case "replay":
                    replay = min(value, REPLAY_LIMIT)
        if len(windows) > WINDOWS:
            raise ValueError(f"{len(windows)} windows, at most {WINDOWS} are answered")
        return cls(tuple(windows), slow, replay)


class Window(Model):
    """What one pod saw in a window: differences of counters, over restarts of Triton, without the verifier's own.

    `seconds` is what it covers, less than was asked for where the verifier is younger.
    """

    seconds: Annotated[float, Field(ge=0)]
    requests: Annotated[int, Field(ge=0)]  # of users
    errors: Annotated[int, Field(ge=0)]  # of those; what the server rejects as malformed is counted nowhere
    slow: Annotated[int, Field(ge=0)] = 0  # of those, by Triton's summary: at least so many
    golden: Annotated[int, Field(ge=0)] = 0  # the verifier's own
    golden_errors: Annotated[int, Field(ge=0)] = 0
    golden_slow: Annotated[int, Field(ge=0)] = 0


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
    windows: Annotated[list[Window], Field(max_length=WINDOWS)] = Field(default_factory=list)  # in the order asked
    p99_milliseconds: Annotated[float | None, Field(ge=0)] = None  # of all requests, lately, where Triton says it


class FetchResult(Model):
    """Termination message of the `fetch` init container."""

    ok: bool
    reason: Text | None = None  # DigestMismatch | ArtifactNotFound | StoreUnreachable | StoreForbidden | InvalidConfig
    message: LongText
    download_seconds: float | None = None
    size_bytes: int | None = None
