"""The verifier's HTTP client against a server that answers by script. A real Triton: test_chain_on_triton.py."""

import asyncio
import json

import numpy as np
import pytest

from bigmodel.server.triton import Counters, Malformed, Refused, TimedOut, Triton, Unreachable

STATS = {
    "model_stats": [
        {
            "inference_stats": {"success": {"count": 10}, "fail": {"count": 2}},
            "batch_stats": [
                {"compute_input": {"ns": 1}, "compute_infer": {"ns": 2_000_000_000}, "compute_output": {"ns": 3}},
                {"compute_input": {"ns": 0}, "compute_infer": {"ns": 500_000_000}, "compute_output": {"ns": 0}},
            ],
        }
    ]
}


def http(status: str, body: bytes, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


class ScriptedServer:
    """Answers every connection with the same bytes and closes it; keeps the last request."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.request = b""

    async def __aenter__(self) -> "ScriptedServer":
        self._over = asyncio.Event()
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.triton = Triton(f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}", "mlp", 3)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        self._server.close()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.request = await reader.readuntil(b"\r\n\r\n")
        length = int(self.request.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        self.request += await reader.readexactly(length)
        if self.answer is None:
            await self._over.wait()
        writer.write(self.answer or b"")
        writer.close()
        await writer.wait_closed()


async def test_counters_sum_what_all_batches_took() -> None:
    async with ScriptedServer(http("200 OK", json.dumps(STATS).encode())) as server:
        assert await server.triton.counters(5) == Counters(10, 2, pytest.approx(2.5))
        assert server.request.startswith(b"GET /v2/models/mlp/versions/3/stats HTTP/1.1\r\n")
        assert b"connection: close" in server.request


async def test_tensors_travel_as_their_bytes() -> None:
    head = json.dumps(
        {
            "outputs": [
                {"name": "a", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
                {"name": "b", "datatype": "FP16", "shape": [1, 2], "parameters": {"binary_data_size": 4}},
            ]
        }
    ).encode()
    a, b = np.array([1, -2]), np.array([[0.5, 2]], np.float16)
    answer = http("200 OK", head + a.tobytes() + b.tobytes(), f"Inference-Header-Content-Length: {len(head)}")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    async with ScriptedServer(answer) as server:
        outputs = await server.triton.infer({"x": x.T, "flag": np.array([[True]])}, ["a", "b"], 5)
        sent = server.request.split(b"\r\n\r\n", 1)
    np.testing.assert_array_equal(outputs["a"], a)
    np.testing.assert_array_equal(outputs["b"], b)
    length = int(sent[0].split(b"inference-header-content-length: ")[1].split(b"\r\n")[0])
    wanted = json.loads(sent[1][:length])
    assert [(i["name"], i["shape"], i["datatype"]) for i in wanted["inputs"]] == [
        ("x", [3, 2], "FP32"),
        ("flag", [1, 1], "BOOL"),
    ]
    assert sent[1][length:] == x.T.tobytes() + b"\x01"


BROKEN = {
    "an error of Triton": (
        http("500 Internal Server Error", b'{"error":"ValueError: boom\\n\\nAt:\\n  /secret/model.py(3): f\\n"}'),
        Refused, "Triton answered 500: ValueError: boom$",
    ),
    "an error without JSON": (http("404 Not Found", b"<html>"), Refused, "404: <html>$"),
    "an error without a body": (http("400 Bad Request", b""), Refused, "400: without a text$"),
    "closed before the head": (b"", Unreachable, "does not answer"),
    "closed in the head": (b"HTTP/1.1 200 OK\r\n", Unreachable, "does not answer"),
    "closed in the body": (http("200 OK", b"{}")[:-1], Unreachable, "does not answer"),
    "not HTTP": (b"SSH-2.0\r\n\r\n", Malformed, "not an HTTP answer"),
    "a head without end": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000, Malformed, "not an HTTP answer"),
    "a body too large to hold": (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", Malformed, "not an HTTP"),
    "not JSON": (http("200 OK", b"{"), Malformed, "not JSON"),
    "silence": (None, TimedOut, "no answer to GET /v2/models/mlp/versions/3/stats in 0.2 s"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "error", "message"), BROKEN.values(), ids=BROKEN)
async def test_what_is_no_answer_has_a_class_per_cause(
    answer: bytes | None, error: type[Exception], message: str
) -> None:
    async with ScriptedServer(answer) as server:
        with pytest.raises(error, match=message):
            await server.triton.counters(0.2 if answer is None else 10)


async def test_an_answer_without_binary_tensors_is_malformed() -> None:
    async with ScriptedServer(http("200 OK", b'{"outputs": []}')) as server:
        with pytest.raises(Malformed, match="inference-header-content-length"):
            await server.triton.infer({"x": np.zeros((1, 1), np.float32)}, ["y"], 5)


async def test_nothing_listens() -> None:
    async with ScriptedServer(b"") as server:
        triton = server.triton
    with pytest.raises(Unreachable):
        await triton.counters(5)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ([{"name": "mlp", "version": "3", "state": "UNAVAILABLE", "reason": "no"}], "no"),
        ([{"name": "mlp", "version": "3", "state": "READY"}], None),
        ([{"name": "other", "version": "3", "state": "UNAVAILABLE", "reason": "no"}, {"name": "mlp"}], None),
        ([], None),
    ],
)
async def test_load_error_is_the_reason_of_the_repository_index(index: list[object], reason: str | None) -> None:
    async with ScriptedServer(http("200 OK", json.dumps(index).encode())) as server:
        assert await server.triton.load_error(5) == reason
