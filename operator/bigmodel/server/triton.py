"""The few requests the verifier sends to the Triton of its own pod, in the v2 protocol with the binary tensor
extension.

A connection for each request: an idle one would hold a stopping Triton for its whole exit timeout (tried). Plain
asyncio, because tritonclient brings gevent or gRPC into a process that stands beside every model.
"""

import asyncio
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigmodel.api.names import PORT_TRITON_METRICS
from bigmodel.api.serving import KEY_HEADER
from bigmodel.artifact.golden import Arrays

HEADER_BYTES = 64 << 10
BODY_BYTES = 256 << 20

V2_TYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
DTYPES = {v2: dtype for dtype, v2 in V2_TYPES.items()}
JSON_LENGTH = "inference-header-content-length"


class Unreachable(Exception):
    """Nothing listens, or the connection broke: Triton is starting, stopping or gone."""


class TimedOut(Exception):
    """No complete answer in time."""


class Refused(Exception):
    """An answer that is not 200. The text is Triton's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"Triton answered {status}: {text}")
        self.status = status
        self.text = text


class Malformed(Exception):
    """An answer that is not in the v2 protocol."""


@dataclass(frozen=True)
class Counters:
    """What one loaded model version counted since Triton's start, its warm-up included."""

    succeeded: int
    failed: int
    executing_seconds: float

    def fell_below(self, earlier: "Counters") -> bool:
        """Counters only fall when Triton was restarted in between."""
        return self.succeeded < earlier.succeeded or self.failed < earlier.failed


class Triton:
    """One model version of the Triton at `address`, "host:port" of its HTTP.

    `key` opens what tells of its inside: counters and load errors.
    """

    def __init__(
        self,
        address: str,
        model: str,
        version: int,
        metrics_port: int = PORT_TRITON_METRICS,
        key: str | None = None,
    ) -> None:
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.metrics_port = metrics_port
        self.model = model
        self.version = version
        self._key = {KEY_HEADER: key} if key is not None else {}
        self._path = f"/v2/models/{model}/versions/{version}"

    async def server_version(self, timeout_seconds: float) -> str:
        return str((await self._json("GET", "/v2", timeout_seconds))["version"])

    async def counters(self, timeout_seconds: float) -> Counters:
        """Raises Refused while this version is not loaded."""
        stats = (await self._json("GET", f"{self._path}/stats", timeout_seconds))["model_stats"][0]
        counted = stats["inference_stats"]
        nanoseconds = sum(
            batch[part]["ns"]
            for batch in stats["batch_stats"]
            for part in ("compute_input", "compute_infer", "compute_output")
        )
        return Counters(int(counted["success"]["count"]), int(counted["fail"]["count"]), nanoseconds / 1e9)

    async def load_error(self, timeout_seconds: float) -> str | None:
        """Why this version is not loaded, in Triton's words; None while it says nothing."""
        for entry in await self._json("POST", "/v2/repository/index", timeout_seconds, b"{}"):
            if entry["name"] == self.model and entry.get("state") == "UNAVAILABLE":
                return str(entry.get("reason") or "UNAVAILABLE")
        return None

    async def quantiles(self, timeout_seconds: float) -> tuple[float, ...]:
        """Times of all requests of this version lately, in milliseconds, by `history.QUANTILES`.

        Empty where Triton does not say: it was not asked for summaries, or nobody asked it anything yet.
        """
        _, body = await self._request("GET", "/metrics", timeout_seconds, b"", {}, self.metrics_port)
        return summary_milliseconds(body.decode(errors="replace"), self.model, self.version)

    async def infer(self, inputs: Arrays, outputs: list[str], timeout_seconds: float) -> Arrays:
        """The named outputs for these inputs."""
        parts = [np.ascontiguousarray(array).tobytes() for array in inputs.values()]
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": name,
                        "shape": list(array.shape),
                        "datatype": V2_TYPES[str(array.dtype)],
                        "parameters": {"binary_data_size": len(part)},
                    }
                    for (name, array), part in zip(inputs.items(), parts, strict=True)
                ],
                "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
            }
        ).encode()
        headers, body = await self._request(
            "POST",
            f"{self._path}/infer",
            timeout_seconds,
            head + b"".join(parts),
            {JSON_LENGTH: str(len(head)), "content-type": "application/octet-stream"},
        )
        try:
            return _tensors(headers, body)
        except (ValueError, KeyError, TypeError) as error:
            raise Malformed(f"Triton's answer is not a v2 answer with binary tensors: {error!r}") from error

    async def _json(self, method: str, path: str, timeout_seconds: float, body: bytes = b"") -> Any:
        _, answer = await self._request(method, path, timeout_seconds, body, {})
        try:
            return json.loads(answer)
        except ValueError as error:
            raise Malformed(f"{path}: Triton's answer is not JSON: {error}") from error

    async def _request(
        self,
        method: str,
        path: str,
        timeout_seconds: float,
        body: bytes,
        headers: Mapping[str, str],
        port: int | None = None,
    ) -> tuple[dict[str, str], bytes]:
        """Headers (lower case) and body of an answer 200. Raises Unreachable, TimedOut, Refused, Malformed."""
        lines = [f"{method} {path} HTTP/1.1", f"host: {self.host}", "connection: close", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in {**self._key, **headers}.items()]
        message = "\r\n".join([*lines, "", ""]).encode() + body
        try:
            async with asyncio.timeout(timeout_seconds):
                status, answer_headers, answer = await self._exchange(message, port or self.port)
        except TimeoutError as error:
            raise TimedOut(f"no answer to {method} {path} in {timeout_seconds:g} s") from error
        except (OSError, EOFError) as error:
            raise Unreachable(f"{self.host}:{self.port} does not answer: {error}") from error
        except (ValueError, IndexError, asyncio.LimitOverrunError) as error:
            raise Malformed(f"{method} {path}: not an HTTP answer: {error!r}") from error
        if status != 200:
            raise Refused(status, _error_text(answer))
        return answer_headers, answer

    async def _exchange(self, message: bytes, port: int) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection(self.host, port, limit=HEADER_BYTES)
        try:
            writer.write(message)
            await writer.drain()
            first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)
            }
            size_bytes = int(headers.get("content-length", "0"))
            if size_bytes > BODY_BYTES:
                raise ValueError(f"{size_bytes} bytes of answer")
            return int(first.split()[1]), headers, await reader.readexactly(size_bytes)
        finally:
            writer.close()


SUMMARY = re.compile(
    r"^nv_inference_request_summary_us\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE
)  # prints Nan before the first request


def summary_milliseconds(metrics: str, model: str, version: int) -> tuple[float, ...]:
    """The quantiles of one model version, in rising order of the quantile, from Triton's metrics."""
    found: dict[float, float] = {}
    for match in SUMMARY.finditer(metrics):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"]))
        if (labels.get("model"), labels.get("version")) == (model, str(version)) and "quantile" in labels:
            found[float(labels["quantile"])] = float(match["value"]) / 1000
    values = tuple(found[quantile] for quantile in sorted(found))
    return () if any(math.isnan(value) for value in values) else values


def _tensors(headers: Mapping[str, str], body: bytes) -> Arrays:
    head_bytes = int(headers[JSON_LENGTH])
    arrays: Arrays = {}
    start = head_bytes
    for output in json.loads(body[:head_bytes])["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        arrays[output["name"]] = np.frombuffer(body[start:end], DTYPES[output["datatype"]]).reshape(output["shape"])
        start = end
    return arrays


def _error_text(body: bytes) -> str:
    try:
        text = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        text = body[:400].decode(errors="replace")
    # The first paragraph: below it stands the model's Python stack.
    return " ".join(str(text).split("\n\nAt:")[0].split())[:400] or "without a text"
