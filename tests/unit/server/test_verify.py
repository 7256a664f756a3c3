"""The verifier's states, beside a Triton that does what a test says. The real one: test_chain_on_triton.py."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from bigmodel.api.verdict import VERDICT_BYTES, Question, VerdictStage
from bigmodel.artifact.golden import Arrays, GoldenCase
from bigmodel.server import fetch as init_container
from bigmodel.server.endpoints import answer, serve
from bigmodel.server.triton import Counters, Malformed, Refused, TimedOut, Unreachable
from bigmodel.server.verify import Timing, Verifier
from tests.unit.server.artefacts import VARIANT, Artefact, a_program, published

DEAD = Refused(500, "Stub process 'mlp_0_0' is not healthy.")
STARTING = Unreachable("nothing listens")
NEVER = 3600.0
TIMING = Timing(poll_seconds=0.001, golden_seconds=0.01)
VERIFIED, FAILED = VerdictStage.VERIFIED, VerdictStage.FAILED


@dataclass
class ScriptedTriton:
    """`trouble` answers every request, `golden_trouble` the inferences; without them the answer is input·scale."""

    trouble: Exception | None = STARTING
    golden_trouble: Exception | None = None
    load_failure: str | None = None
    scale: float = 2.0
    count: Counters = field(default_factory=lambda: Counters(9, 0, 0.25))  # of the warm-up
    inferences: int = 0
    times: tuple[float, ...] = ()

    async def counters(self, timeout_seconds: float) -> Counters:
        if self.trouble is not None:
            raise self.trouble
        return self.count

    async def server_version(self, timeout_seconds: float) -> str:
        if self.trouble is not None:
            raise self.trouble
        return "2.51.0"

    async def quantiles(self, timeout_seconds: float) -> tuple[float, ...]:
        return self.times

    async def load_error(self, timeout_seconds: float) -> str | None:
        return self.load_failure

    async def infer(self, inputs: Arrays, outputs: list[str], timeout_seconds: float) -> Arrays:
        self.inferences += 1
        trouble = self.trouble or self.golden_trouble
        if trouble is not None:
            if trouble is not self.trouble and isinstance(trouble, Refused):
                self.count = Counters(self.count.succeeded, self.count.failed + 1, 0.25)
            raise trouble
        return {"target": inputs["features"][:, :1] * np.float32(self.scale)}

    def comes_up(self) -> None:
        self.trouble = None
        self.count = Counters(9, 0, 0.25)


@dataclass
class Clock:
    now: float = 100.0
    real: bool = True

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() if self.real else self.now


@dataclass
class Pod:
    triton: ScriptedTriton
    verifier: Verifier
    clock: Clock
    directory: Path

    @property
    def stage(self) -> VerdictStage:
        return self.verifier.verdict().stage

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not what():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def becomes(self, stage: VerdictStage, reason: str | None = None) -> str:
        """Wait for it; returns the message."""
        await self.until(lambda: (self.stage, self.verifier.verdict().reason) == (stage, reason))
        return self.verifier.verdict().message

    async def stays(self, stage: VerdictStage, inferences: int) -> None:
        """While that many golden requests are sent."""
        wanted = self.triton.inferences + inferences
        while self.triton.inferences < wanted:
            assert self.stage is stage
            await asyncio.sleep(0.001)


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    features = np.arange(1, 21, dtype=np.float32).repeat(16).reshape(20, 16)
    cases = [GoldenCase({"features": part}, {"target": part[:, 0] * 2}) for part in (features[:1], features)]
    return published(tmp_path, a_program(), cases)


@asynccontextmanager
async def started(artefact: Artefact, tmp_path: Path, timing: Timing = TIMING) -> AsyncIterator[Pod]:
    directory = tmp_path / "model"
    directory.mkdir()
    assert init_container.fetch(artefact.run, directory, {}, lambda seconds: None).ok
    triton, clock = ScriptedTriton(), Clock()
    verifier = Verifier(artefact.run, directory, triton, timing, clock)  # type: ignore[arg-type]
    task = asyncio.create_task(verifier.watch())
    try:
        yield Pod(triton, verifier, clock, directory)
        assert not task.done(), task.exception()
    finally:
        task.cancel()


@pytest.fixture
async def pod(artefact: Artefact, tmp_path: Path) -> AsyncIterator[Pod]:
    async with started(artefact, tmp_path) as pod:
        yield pod


@pytest.fixture
async def verified(pod: Pod) -> Pod:
    await asyncio.sleep(0.01)  # it sees Triton start
    pod.triton.comes_up()
    await pod.becomes(VERIFIED)
    return pod


WATCH = Question((60.0,), slow_milliseconds=50.0, replay_per_second=20.0)


async def test_users_requests_are_counted_without_the_verifier_s_own(verified: Pod) -> None:
    """The scripted Triton counts users only where a test says so, and golden requests never: so none may be missing."""
    verified.verifier.verdict(WATCH)
    await verified.stays(VERIFIED, inferences=5)
    await asyncio.sleep(0.02)
    assert verified.verifier.verdict(WATCH).windows[0].requests == 0
    for _ in range(30):  # golden requests that come between are taken out, so these must be told apart from them
        verified.triton.count = Counters(verified.triton.count.succeeded + 100, verified.triton.count.failed, 0.25)
        await asyncio.sleep(0.005)
    seen = verified.verifier.verdict(WATCH).windows[0]
    assert seen.requests + seen.golden >= 2900
    assert seen.errors == 0
    assert seen.golden > 0


async def test_a_death_under_traffic_is_an_error_and_counters_go_on(verified: Pod) -> None:
    """B21: counters that begin anew give no negative and no false pass."""
    await verified.until(lambda: verified.verifier.verdict(WATCH).windows[0].golden > 0)  # the window has begun
    verified.triton.count = Counters(1000, 0, 0.25)
    await verified.until(lambda: verified.verifier.verdict(WATCH).windows[0].requests > 900)
    verified.triton.trouble = STARTING
    await verified.becomes(VerdictStage.LOADING)
    verified.triton.comes_up()
    await verified.becomes(VERIFIED)
    seen = verified.verifier.verdict(WATCH).windows[0]
    assert 900 < seen.requests < 1100
    assert seen.errors == 1


async def test_how_slow_triton_is_is_read_while_somebody_asks(verified: Pod) -> None:
    verified.triton.times = (1, 2, 3, 104.0, 200)
    assert verified.verifier.verdict().p99_milliseconds is None
    verified.verifier.verdict(WATCH)
    await verified.until(lambda: verified.verifier.verdict(WATCH).p99_milliseconds == 104.0)
    verified.triton.count = Counters(10_000, 0, 0.25)
    await verified.until(lambda: verified.verifier.verdict(WATCH).windows[0].slow >= 90)


def probes(verifier: Verifier) -> tuple[int, int]:
    """Status of /readyz and /livez."""
    return answer(verifier, "GET", "/readyz")[0].value, answer(verifier, "GET", "/livez")[0].value


async def test_it_is_alive_but_not_ready_while_triton_loads(pod: Pod) -> None:
    await asyncio.sleep(0.05)
    assert (pod.stage, probes(pod.verifier)) == (VerdictStage.LOADING, (503, 200))


async def test_golden_samples_answered_as_published_make_it_ready(verified: Pod) -> None:
    verdict = verified.verifier.verdict()
    assert probes(verified.verifier) == (200, 200)
    assert verdict.message == (
        "21 golden samples answered as published, by values: the largest difference is 0 of the tolerance"
    )
    assert verdict.parity is not None
    assert (verdict.parity.samples, verdict.parity.worst, verdict.parity.absolute) == (21, 0, 1e-4)
    assert verdict.timings.warmup_seconds == 0.25


async def test_a_verifier_that_comes_back_to_a_running_triton_verifies_it_and_knows_no_load_time(
    artefact: Artefact, tmp_path: Path
) -> None:
    async with started(artefact, tmp_path) as pod:
        pod.triton.comes_up()  # before the first poll
        await pod.becomes(VERIFIED)
        timings = pod.verifier.verdict().timings
        assert (timings.load_seconds, timings.warmup_seconds) == (None, None)
        assert timings.download_seconds is not None


async def test_a_load_that_outlasts_its_deadline_is_a_failure_and_heals_when_it_ends(
    artefact: Artefact, tmp_path: Path
) -> None:
    async with started(artefact.served(startup_deadline_seconds=60), tmp_path) as pod:
        pod.clock.real = False
        await asyncio.sleep(0.02)
        pod.clock.now += 59
        await asyncio.sleep(0.02)
        assert pod.stage is VerdictStage.LOADING
        pod.clock.now += 2
        message = await pod.becomes(FAILED, "ModelLoadFailed")
        assert "no model after 61 s (spec.server.startupDeadlineSeconds)" in message
        assert probes(pod.verifier) == (503, 200)
        pod.triton.comes_up()
        await pod.becomes(VERIFIED)


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        (
            "Internal: BadZipFile: no zip\n\nAt:\n  zipfile.py(1): f\n",
            "ModelLoadFailed",
            "Internal: BadZipFile: no zip",
        ),
        ("Invalid argument: failed to run warmup sample 'b'", "WarmupFailed", "failed to run warmup sample 'b'"),
    ],
)
async def test_a_triton_without_the_model_is_asked_why(pod: Pod, text: str, reason: str, message: str) -> None:
    pod.triton.trouble = Refused(400, "Request for unknown model")
    await asyncio.sleep(0.02)
    assert pod.stage is VerdictStage.LOADING  # it says nothing yet
    pod.triton.load_failure = text
    assert (await pod.becomes(FAILED, reason)).endswith(message)
    assert probes(pod.verifier) == (503, 200)


async def test_wrong_answers_are_final_and_restart_nothing(pod: Pod) -> None:
    pod.triton.scale = 2.1
    pod.triton.comes_up()
    message = await pod.becomes(FAILED, "ParityFailed")
    assert message.startswith("output target[0, 0] is 2.0999999, published was 2: 47.6 times the tolerance")
    await asyncio.sleep(0.05)
    assert (pod.stage, probes(pod.verifier), pod.triton.inferences) == (FAILED, (503, 200), 1)


@pytest.mark.parametrize(("absolute", "stage"), [(0.41, VERIFIED), (0.39, FAILED)])
async def test_the_service_s_own_tolerance_decides(
    artefact: Artefact, tmp_path: Path, absolute: float, stage: VerdictStage
) -> None:
    async with started(artefact.served(parity_absolute=absolute, parity_relative=0.04), tmp_path) as pod:
        pod.triton.scale = 2.1
        pod.triton.comes_up()
        await pod.until(lambda: pod.stage in (VERIFIED, FAILED))
        # 2.1·x against 2·x, x up to 20: 2 is the largest difference, absolute + 0.04·40 its tolerance.
        assert pod.stage is stage
        assert pod.verifier.verdict().parity.absolute == absolute


async def test_two_failures_in_a_row_are_forgiven_a_third_takes_it_out(verified: Pod) -> None:
    verified.triton.golden_trouble = DEAD
    await verified.stays(VERIFIED, inferences=2)
    verified.triton.golden_trouble = None
    await verified.stays(VERIFIED, inferences=3)
    verified.triton.golden_trouble = DEAD
    message = await verified.becomes(FAILED, "GoldenRequestFailed")
    assert message == "a golden request failed 3 times: Triton answered 500: Stub process 'mlp_0_0' is not healthy."
    assert probes(verified.verifier) == (503, 503)


async def test_a_restarted_triton_is_loading_again_and_alive(verified: Pod) -> None:
    verified.triton.golden_trouble = DEAD
    await verified.becomes(FAILED, "GoldenRequestFailed")
    verified.triton.trouble = STARTING
    message = await verified.becomes(VerdictStage.LOADING)
    assert message.startswith("Triton restarts; before, it was Failed: a golden request failed 3 times")
    assert probes(verified.verifier) == (503, 200)
    verified.triton.golden_trouble = None
    verified.triton.comes_up()
    await verified.becomes(VERIFIED)
    assert probes(verified.verifier) == (200, 200)


async def test_a_model_that_answers_no_golden_request_is_restarted_three_times_and_no_more(pod: Pod) -> None:
    pod.triton.golden_trouble = DEAD
    for life in range(5):
        pod.triton.comes_up()
        await pod.becomes(FAILED, "GoldenRequestFailed")
        assert pod.verifier.restart_wanted is (life < TIMING.restarts)
        pod.triton.trouble = STARTING
        await pod.becomes(VerdictStage.LOADING)


async def test_wrong_answers_of_a_verified_model_ask_for_a_restart(verified: Pod) -> None:
    verified.triton.scale = 3.0
    await verified.becomes(FAILED, "ParityFailed")
    assert probes(verified.verifier) == (503, 503)


async def test_a_verified_model_whose_files_changed_is_not_restarted_into_them(verified: Pod) -> None:
    (verified.directory / "artifact/model/program.pt2").write_bytes(b"changed")
    verified.triton.golden_trouble = DEAD
    message = await verified.becomes(FAILED, "DigestMismatch")
    assert "program.pt2" in message
    assert probes(verified.verifier) == (503, 200)


async def test_a_triton_that_restarts_into_changed_files_is_not_verified_again(verified: Pod) -> None:
    """C42: by their sha256, before any answer is believed."""
    (verified.directory / "artifact/model/program.pt2").write_bytes(b"changed")
    verified.triton.trouble = STARTING
    await verified.becomes(VerdictStage.LOADING)
    verified.triton.comes_up()
    assert "program.pt2" in await verified.becomes(FAILED, "DigestMismatch")
    assert probes(verified.verifier) == (503, 200)


async def test_a_restart_that_no_poll_saw_is_known_by_its_counters(verified: Pod) -> None:
    verified.triton.count = Counters(1000, 3, 5.0)
    await asyncio.sleep(0.02)
    assert verified.stage is VERIFIED
    verified.triton.scale = 3.0  # another model came up
    verified.triton.comes_up()
    await verified.becomes(FAILED, "ParityFailed")
    assert not verified.verifier.restart_wanted  # in this life it was never verified


async def test_slow_answers_of_a_busy_model_are_no_failure(verified: Pod) -> None:
    def overloaded() -> None:
        verified.triton.count = Counters(verified.triton.count.succeeded + 1, 0, 0.25)

    verified.triton.golden_trouble = TimedOut("no answer in 30 s")
    for _ in range(10):
        busy = asyncio.get_running_loop().call_soon(overloaded)
        await verified.stays(VERIFIED, inferences=1)
        busy.cancel()
        overloaded()


async def test_slow_answers_of_a_model_that_answers_nobody_are(verified: Pod) -> None:
    verified.triton.golden_trouble = TimedOut("no answer in 30 s")
    await verified.becomes(FAILED, "GoldenRequestFailed")


async def test_a_user_s_failed_request_makes_the_next_golden_request_due(artefact: Artefact, tmp_path: Path) -> None:
    async with started(artefact, tmp_path, Timing(poll_seconds=0.001, golden_seconds=NEVER)) as pod:
        pod.triton.comes_up()
        await pod.becomes(VERIFIED)
        asked = pod.triton.inferences
        await asyncio.sleep(0.05)
        assert pod.triton.inferences == asked
        pod.triton.count = Counters(9, 1, 0.25)
        await pod.until(lambda: pod.triton.inferences == asked + 1)
        assert pod.stage is VERIFIED
        pod.triton.golden_trouble = Malformed("not JSON")
        pod.triton.count = Counters(9, 2, 0.25)
        await pod.becomes(FAILED, "GoldenRequestFailed")


NO_VALUES = {
    "without golden samples random inputs are sent": ({"golden": "none"}, []),
    "a model that is not deterministic": ({"deterministic": False}, None),
}


@pytest.mark.parametrize(("changes", "cases"), NO_VALUES.values(), ids=NO_VALUES)
async def test_shape_dtype_and_finiteness_count_where_values_cannot(
    tmp_path: Path, changes: dict[str, object], cases: list[GoldenCase] | None
) -> None:
    ones = np.ones((1, 16), np.float32)
    given = [GoldenCase({"features": ones}, {"target": np.zeros(1, np.float32)})] if cases is None else cases
    artefact = published(tmp_path, a_program(), given, variant=VARIANT.model_copy(update=changes))
    async with started(artefact, tmp_path) as pod:
        pod.triton.comes_up()
        assert "by shape, dtype and finiteness" in await pod.becomes(VERIFIED)
        pod.triton.scale = float("nan")
        assert "not finite" in await pod.becomes(FAILED, "ParityFailed")


async def test_a_verdict_fits_its_limit_whatever_triton_says(pod: Pod) -> None:
    pod.triton.trouble = Refused(400, "unknown")
    pod.triton.load_failure = '𝕿"\x00' * 5000
    await pod.becomes(FAILED, "ModelLoadFailed")
    status, kind, body = answer(pod.verifier, "GET", "/v1/verdict")
    assert (status, kind) == (200, "application/json")
    assert len(body.encode()) <= VERDICT_BYTES


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


REQUESTS = {
    "the verdict": (b"GET /v1/verdict?x=1 HTTP/1.1\r\nhost: a\r\n\r\n", b"HTTP/1.1 200 OK"),
    "not ready": (b"GET /readyz HTTP/1.0\r\n\r\n", b"HTTP/1.1 503 Service Unavailable"),
    "another path": (b"GET /v1 HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not Found"),
    "another method": (b"POST /livez HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed"),
    "no HTTP": (b"\x00\x01\r\n\r\n", b""),
    "a head without end": (b"GET /" + b"x" * 20000, b""),
}


@pytest.mark.parametrize(("request_bytes", "first_line"), REQUESTS.values(), ids=REQUESTS)
async def test_the_endpoints_over_a_socket(pod: Pod, request_bytes: bytes, first_line: bytes) -> None:
    server = await serve(pod.verifier, "127.0.0.1", 0)
    async with server:
        try:
            received = await ask(server.sockets[0].getsockname()[1], request_bytes)
        except ConnectionResetError:
            received = b""
    assert received.split(b"\r\n")[0] == first_line
    if b"verdict" in request_bytes:
        head, body = received.split(b"\r\n\r\n", 1)
        assert f"content-length: {len(body)}".encode() in head
        assert json.loads(body)["stage"] == "Loading"
