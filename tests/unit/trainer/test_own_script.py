"""The script of examples/own-script, as users would run it: under our launcher, alone, and by torchrun."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from bigmodel.api.job import Script
from bigmodel.api.run import StoreLocation, TrainingRun
from bigmodel.artifact import golden
from bigmodel.artifact.fetch import fetch
from bigmodel.artifact.stores import open_store
from bigmodel.trainer.publish import load
from tests.unit.launcher.gang import LoopbackGang
from tests.unit.launcher.gang import a_run as a_script_run

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples/own-script/job.yaml"
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}/operator", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ConfigMap as the kubelet mounts it."""
    config_map, _ = yaml.safe_load_all(EXAMPLE.read_text())
    directory = tmp_path_factory.mktemp("script")
    for name, text in config_map["data"].items():
        (directory / name).write_text(text)
    return directory / "train.py"


def the_run(script: Path, store: Path, attempt: int) -> TrainingRun:
    _, job = yaml.safe_load_all(EXAMPLE.read_text())
    return a_script_run(
        nodes=job["spec"]["nodes"],
        framework="pytorch",
        script=Script(path=str(script.parent), entrypoint=job["spec"]["script"]["entrypoint"]),
        checkpoint=job["spec"]["checkpoint"],
        store=StoreLocation(uri=f"file://{store}"),
        attempt=attempt,
    )


@pytest.fixture
def attempt(script: Path, tmp_path: Path) -> Iterator[Callable[[int], LoopbackGang]]:
    """Starts one, and leaves none behind."""
    made: list[LoopbackGang] = []

    def start(number: int) -> LoopbackGang:
        directory = tmp_path / f"attempt-{number}"
        directory.mkdir()
        made.append(LoopbackGang(directory, the_run(script, tmp_path / "store", number)))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_it_leaves_at_a_checkpoint_goes_on_and_publishes(tmp_path: Path, attempt: Callable[[int], LoopbackGang]):
    """Fault 27 and A29: told to stop, no step is lost; the next attempt goes on with the step after."""
    first = attempt(1)
    first.wait_for("some steps", lambda: first.pods[0].progress.step >= 20)
    for pod in first.pods:
        pod.process.send_signal(signal.SIGTERM)
    assert [pod.exit_code(120) for pod in first.pods] == [143, 143], first.pods[0].log
    saved = max(int(path.parent.name) for path in (tmp_path / "store").rglob("checkpoint/*/*/manifest.json"))
    second = attempt(2)
    assert [pod.exit_code(120) for pod in second.pods] == [0, 0], second.pods[0].log
    assert f"going on from step {saved}: " in second.pods[0].log
    artifact = second.pods[0].last_word.artifact
    assert artifact is not None
    manifest = fetch(open_store(StoreLocation(uri=artifact.uri), {}), artifact.digest, "default", tmp_path / "fetched")
    assert manifest.provenance.step == 600
    assert [tensor.name for tensor in (*manifest.signature.inputs, *manifest.signature.outputs)] == ["places", "output"]
    program = load(tmp_path / "fetched/model/program.pt2")
    places = torch.rand(100, 2, generator=torch.Generator().manual_seed(1)) * 4 - 2
    heights = torch.sin(3 * places[:, :1]) * torch.cos(2 * places[:, 1:])
    with torch.no_grad():
        assert float((program(places) - heights).square().mean()) < 0.05
    single, batch = golden.read(tmp_path / "fetched/model/golden")
    assert (single.samples, batch.samples) == (1, 31)


def run(command: list[str], **environment: str) -> str:
    ended = subprocess.run(
        [sys.executable, *command], env=os.environ | ENVIRONMENT | environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-3000:]
    return ended.stdout


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_it_runs_alone(script: Path):
    assert run([str(script)]) == ""


def test_a_sharded_model_resumes_on_other_ranks_and_is_published_whole(tmp_path: Path):
    """FSDP2 under torchrun, two ranks; then one; the model must answer what the sharded one did."""
    program = str(Path(__file__).parent / "programs/sharded.py")
    first = json.loads(run([*TORCHRUN, program, str(tmp_path), "6"]))
    assert first["steps"] == [0, 1, 2, 3, 4, 5]
    second = json.loads(run([program, str(tmp_path), "9"]))
    assert (second["steps"], second["seen"]) == ([6, 7, 8], 9)
    location = StoreLocation(uri=second["uri"])
    manifest = fetch(open_store(location, {}), second["digest"], "default", tmp_path / "fetched")
    assert [tensor.name for tensor in manifest.signature.outputs] == ["total", "half"]
    answer = load(tmp_path / "fetched/model/program.pt2")(torch.ones(3, 4), torch.ones(3, 2, dtype=torch.int64))
    assert answer["total"].flatten().tolist() == pytest.approx([second["answer"]] * 3, rel=1e-5)
