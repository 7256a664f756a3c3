"""From a published artefact to a verdict on the real tritonserver: fetch, load, verify, die, recover."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigmodel.api.serving import KEY_HEADER, MODEL_DIRECTORY, load_failure, ready_path, triton_arguments
from bigmodel.api.verdict import Verdict, VerdictStage
from bigmodel.server import fetch as init_container
from bigmodel.server.triton import Refused, Triton
from bigmodel.server.verify import Timing, Verifier
from tests.unit.server import artefacts, local_triton
from tests.unit.server.artefacts import Artefact, published

TIMING = Timing(poll_seconds=0.1, golden_seconds=0.5)
# Of a machine under load. Each model imports torch in a process of its own.
LOAD_SECONDS = 220
# Triton takes a second to answer each request to a dead model process.
NOTICE_SECONDS = 90


@dataclass
class ModelPod:
    """What fetch left for one model, as it lies in the emptyDir."""

    artefact: Artefact
    directory: Path

    @property
    def repository(self) -> Path:
        return self.directory / "repository" / self.artefact.run.model

    def arguments(self) -> list[str]:
        arguments = triton_arguments(exit_timeout_seconds=5)
        return [argument.replace(MODEL_DIRECTORY, str(self.directory), 1) for argument in arguments]

    def verifier(self, address: str) -> Verifier:
        run = self.artefact.run
        return Verifier(
            run, self.directory, Triton(address, run.model, run.revision, key=local_triton.KEY), TIMING, time.monotonic
        )


def fetched(artefact: Artefact, directory: Path) -> ModelPod:
    directory.mkdir()
    result = init_container.fetch(artefact.run, directory, {}, time.sleep)
    assert result.ok, result.message
    return ModelPod(artefact, directory)


def cut(pod: ModelPod) -> None:
    """The program loses its end after fetch had verified it."""
    program = pod.repository / "3" / "program.pt2"
    os.truncate(program, program.stat().st_size // 2)


@dataclass
class Server:
    """One Triton for models that in a cluster were a pod each: its start is most of the time of these tests."""

    triton: local_triton.LocalTriton
    pods: dict[str, ModelPod] = field(default_factory=dict)

    def verifier(self, model: str) -> Verifier:
        return self.pods[model].verifier(self.triton.address)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    folder = tmp_path_factory.mktemp("mlp")
    artefact = published(folder, *artefacts.exported(folder / "program.pt2"))
    # Long enough that requests of one moment meet in one batch.
    return artefact.served(max_queue_delay_microseconds=20_000)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return local_triton.environment(tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="module")
def server(
    network: Artefact, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pods")
    served = {"mlp": network, "corrupt": network.served(model="corrupt")}
    for model, export, signature in (
        ("text", artefacts.exported_text, artefacts.TEXT),
        ("image", artefacts.exported_image, artefacts.IMAGE),
    ):
        program, cases = export(folder / f"{model}.pt2")
        served[model] = published(folder / f"of-{model}", program, cases, signature=signature).served(model=model)
    pods = {model: fetched(artefact, folder / model) for model, artefact in served.items()}
    cut(pods["corrupt"])
    for pod in pods.values():
        if pod is not pods["mlp"]:
            (pods["mlp"].repository.parent / pod.repository.name).symlink_to(pod.repository)
    # It stays up without the corrupt one, so that its verifier can ask why.
    arguments = [
        argument.replace("--exit-on-error=true", "--exit-on-error=false") for argument in pods["mlp"].arguments()
    ]
    triton = local_triton.start(arguments, local_triton.free_port(), environment, folder / "log")
    try:
        yield Server(triton, pods)
    finally:
        triton.stop()


async def until(what: Callable[[], bool], seconds: float, why: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(what):
        assert time.monotonic() < deadline, f"not in {seconds} s: {why()}"
        await asyncio.sleep(0.05)


@contextmanager
def watching(verifier: Verifier) -> Iterator[None]:
    task = asyncio.create_task(verifier.watch())
    try:
        yield
    finally:
        task.cancel()


async def first_verdict(verifier: Verifier) -> Verdict:
    """Verified or Failed, whichever comes first."""
    with watching(verifier):
        ends = (VerdictStage.VERIFIED, VerdictStage.FAILED)
        await until(lambda: verifier.verdict().stage in ends, LOAD_SECONDS, verifier.verdict)
        return verifier.verdict()


async def verified(server: Server, model: str) -> str:
    """Wait until this model is; returns Triton's address."""
    verdict = await first_verdict(server.verifier(model))
    assert verdict.stage is VerdictStage.VERIFIED, verdict.message
    return server.triton.address


def test_what_tells_of_tritons_inside_is_refused_without_the_key(server: Server) -> None:
    """B24: by HTTP. What every caller needs stays open."""
    asyncio.run(verified(server, "mlp"))
    restricted = {
        "/v2/models/mlp/versions/3/stats": None,
        "/v2/models/mlp/config": None,
        "/v2/repository/index": b"{}",
        "/v2/repository/models/mlp/unload": b"{}",
        "/v2/systemsharedmemory/status": None,
        "/v2/trace/setting": None,
        "/v2/logging": None,
    }
    for path, body in restricted.items():
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://{server.triton.address}{path}", data=body, timeout=30)
        assert (path, refused.value.code) == (path, 403)
        refused.value.close()
    for path in ("/v2", "/v2/health/live", "/v2/models/mlp", ready_path("mlp", 3)):
        with urllib.request.urlopen(f"http://{server.triton.address}{path}", timeout=30) as answer:
            assert answer.status == 200


SAMPLES = {"mlp": 21, "text": 5, "image": 1}


@pytest.mark.parametrize("model", SAMPLES)
async def test_a_good_model_becomes_verified(server: Server, model: str) -> None:
    verdict = await first_verdict(server.verifier(model))
    assert (verdict.stage, verdict.reason) == (VerdictStage.VERIFIED, None), verdict.message
    assert verdict.server_version == local_triton.VERSION
    assert verdict.parity is not None
    assert (verdict.parity.samples, verdict.parity.compared) == (SAMPLES[model], "values")
    assert verdict.parity.worst <= 1
    assert verdict.timings.download_seconds is not None


async def test_other_weights_than_published_fail_parity(server: Server, tmp_path: Path) -> None:
    """The server runs one network, the golden samples are those of the same network with other weights."""
    other = published(tmp_path, *artefacts.exported(tmp_path / "program.pt2", seed=1))
    verifier = fetched(other, tmp_path / "model").verifier(await verified(server, "mlp"))
    verdict = await first_verdict(verifier)
    assert (verdict.stage, verdict.reason) == (VerdictStage.FAILED, "ParityFailed")
    assert verdict.parity is not None
    assert verdict.parity.worst > 1
    assert "output target[0, 0] is " in verdict.message
    assert "0.0001 + 0.001·|b|" in verdict.message
    assert not verifier.verified
    assert not verifier.restart_wanted  # it would load the same weights


async def test_a_triton_that_stays_up_without_the_model_is_asked_why(server: Server) -> None:
    verdict = await first_verdict(server.verifier("corrupt"))
    assert (verdict.stage, verdict.reason) == (VerdictStage.FAILED, "ModelLoadFailed")
    assert "program.pt2 does not load: BadZipFile: File is not a zip file" in verdict.message


async def test_requests_of_one_moment_share_a_batch_and_get_their_own_answers(server: Server) -> None:
    address = await verified(server, "mlp")
    samples = np.random.default_rng(5).standard_normal((24, 16), np.float32)
    parts = np.split(samples, [1, 3, 6, 7, 9, 12, 13, 15, 18, 19, 21])

    def ask(part: np.ndarray) -> np.ndarray:
        return infer(address, "mlp", {"features": part})["target"]

    one_by_one = [ask(part) for part in parts]
    before = executions(address)
    with ThreadPoolExecutor(len(parts)) as pool:
        together = list(pool.map(ask, parts))
    assert executions(address) - before < len(parts)
    for alone, shared in zip(one_by_one, together, strict=True):
        np.testing.assert_allclose(shared, alone, rtol=1e-5)


async def test_a_failing_program_answers_500_without_its_stack_and_counts_as_failure(server: Server) -> None:
    triton = Triton(await verified(server, "text"), "text", 3, key=local_triton.KEY)
    before = await triton.counters(10)
    unknown = {"tokens": np.full((1, 2), artefacts.VOCABULARY + 1), "mask": np.ones((1, 2), bool)}
    with pytest.raises(Refused, match="the program failed: IndexError: index out of range in self") as refused:
        await triton.infer(unknown, ["mean"], 10)
    assert refused.value.status == 500
    assert "site-packages" not in refused.value.text
    after = await triton.counters(10)
    assert (after.failed - before.failed, after.succeeded - before.succeeded) == (1, 0)


def test_a_program_that_does_not_load_ends_triton_and_its_last_words_say_why(
    network: Artefact, environment: dict[str, str], tmp_path: Path
) -> None:
    pod = fetched(network, tmp_path / "model")
    cut(pod)
    triton = local_triton.start(pod.arguments(), local_triton.free_port(), environment, tmp_path / "log")
    try:
        assert triton.process.wait(timeout=LOAD_SECONDS) == 1
    finally:
        triton.stop()
    kept = triton.log.read_bytes()[-2048:].decode(errors="replace")  # what the kubelet keeps
    failure = load_failure(kept)
    assert failure is not None
    assert failure.reason == "ModelLoadFailed"
    assert failure.message == "Internal: RuntimeError: program.pt2 does not load: BadZipFile: File is not a zip file"


async def test_a_dead_model_process_asks_for_a_restart_and_is_verified_again_after_it(
    server: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    """The sidecar as the process it is in a pod, its probes asked by HTTP. Ends the server: the last of this file."""
    address = await verified(server, "mlp")
    pod = server.pods["mlp"]
    probe = Probe(local_triton.free_port())
    sidecar = start_sidecar(pod, address, probe.port)
    try:
        await until(lambda: probe.status("/readyz") == 200, NOTICE_SECONDS, lambda: probe.get("/v1/verdict"))
        os.kill(stub_of(server.triton, "mlp"), signal.SIGKILL)
        with pytest.raises(urllib.error.HTTPError, match="500"):  # a user, before any golden request is due
            infer(address, "mlp", {"features": np.zeros((1, 16), np.float32)})
        await until(lambda: probe.status("/livez") == 503, NOTICE_SECONDS, lambda: probe.get("/v1/verdict"))
        assert probe.status("/readyz") == 503
        assert probe.get("/v1/verdict")[1]["reason"] == "GoldenRequestFailed"
        assert Probe(int(address.split(":")[1])).status(ready_path("mlp", 3)) == 200  # Triton itself notices nothing

        server.triton.stop()  # the kubelet
        await until(lambda: probe.status("/livez") == 200, NOTICE_SECONDS, lambda: probe.get("/v1/verdict"))
        assert probe.status("/readyz") == 503
        for other in pod.repository.parent.iterdir():
            if other.is_symlink():
                other.unlink()
        server.triton = local_triton.start(pod.arguments(), int(address.split(":")[1]), environment, tmp_path / "log")
        await until(lambda: probe.status("/readyz") == 200, LOAD_SECONDS, lambda: probe.get("/v1/verdict"))
        timings = probe.get("/v1/verdict")[1]["timings"]
        assert 0 < timings["warmupSeconds"] < timings["loadSeconds"]
        sidecar.terminate()
        assert sidecar.wait(timeout=10) == 0
    finally:
        sidecar.kill()
        sidecar.wait()
        server.triton.stop()
        shutil.rmtree(pod.directory)


def start_sidecar(pod: ModelPod, address: str, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bigmodel.server.verify", f"--directory={pod.directory}", f"--triton={address}"]
    serve = pod.artefact.run.model_dump_json(by_alias=True)
    return subprocess.Popen(
        [*command, "--host=127.0.0.1", f"--port={port}"],
        env={**os.environ, "PYTHONPATH": "operator", "BIGMODEL_SERVE": serve, "BIGMODEL_TRITON_KEY": local_triton.KEY},
    )


def stub_of(triton: local_triton.LocalTriton, model: str) -> int:
    """Process id of the one instance of a model: its command line names the model's folder."""
    return next(pid for pid in triton.stubs() if f"/{model}/3/" in Path(f"/proc/{pid}/cmdline").read_text())


def infer(address: str, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As any client would, by JSON. Raises urllib's HTTPError."""
    types = {"float32": "FP32", "int64": "INT64", "bool": "BOOL", "uint8": "UINT8"}
    tensors = [
        {"name": name, "shape": array.shape, "datatype": types[str(array.dtype)], "data": array.ravel().tolist()}
        for name, array in inputs.items()
    ]
    url = f"http://{address}/v2/models/{model}/versions/3/infer"
    with urllib.request.urlopen(url, json.dumps({"inputs": tensors}).encode(), timeout=30) as answer:
        outputs = json.load(answer)["outputs"]
    return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in outputs}


def executions(address: str) -> int:
    stats = f"http://{address}/v2/models/mlp/versions/3/stats"
    request = urllib.request.Request(stats, headers={KEY_HEADER: local_triton.KEY})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(json.load(answer)["model_stats"][0]["execution_count"])


@dataclass(frozen=True)
class Probe:
    """What the kubelet and the controller ask."""

    port: int

    def status(self, path: str) -> int:
        return self.get(path)[0]

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON or text; 0 while nothing listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, body = error.code, error.read()
        except OSError as error:
            return 0, str(error)
        return status, json.loads(body) if path.startswith("/v1") else body.decode()
