"""One rank from its environment to the published model, in a process of its own, with a launcher's socket at its
side.
"""

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bigmodel.api.names import ENV_GENERATION, ENV_NOTICE, ENV_REPORT_SOCKET, ENV_TRAINING_RUN
from bigmodel.api.progress import Notice, RankReport, RunPhase
from bigmodel.api.run import StoreLocation, TrainingRun
from bigmodel.artifact.fetch import read_manifest
from bigmodel.artifact.stores import open_store
from bigmodel.trainer.errors import InvalidRecipe
from bigmodel.trainer.main import main
from bigmodel.trainer.recipes.registry import known
from tests.unit.trainer.tasks import a_recipe, a_run

ROOT = Path(__file__).parents[3]


def a_mlp(**recipe: Any) -> Any:
    return a_recipe(
        parameters={"hidden": [8]}, optimizer={"name": "adam", "learning_rate": 0.01}, batch_size=128, **recipe
    )


OURS = {
    "PYTHONPATH": f"{ROOT}/operator",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def start(run: TrainingRun, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error::FutureWarning", "-m", "bigmodel.trainer"],
        env=os.environ | OURS | {ENV_TRAINING_RUN: run.model_dump_json(by_alias=True)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def reports(server: socket.socket) -> list[RankReport]:
    """All up to the one that says Done."""
    found: list[RankReport] = []
    while not found or found[-1].phase is not RunPhase.DONE:
        found.append(RankReport.model_validate_json(server.recv(65536)))
    return found


@pytest.fixture
def launcher(tmp_path: Path) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "report"))
        server.settimeout(120)
        yield server


def test_a_rank_trains_reports_and_publishes(tmp_path: Path, launcher: socket.socket):
    run = a_run(f"file://{tmp_path}/store", recipe=a_mlp(epochs=20, steps=None))
    process = start(run, **{ENV_REPORT_SOCKET: str(tmp_path / "report"), ENV_GENERATION: "3"})
    told = reports(launcher)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    phases = list(dict.fromkeys(report.phase for report in told))
    assert phases == [RunPhase.STARTING, RunPhase.TRAINING, RunPhase.PUBLISHING, RunPhase.DONE]
    assert {(report.rank, report.generation) for report in told} == {(0, 3)}
    assert (told[-1].step, told[-1].total_steps) == (60, 60)  # 354 samples in batches of 128: 3 steps an epoch
    artifact = told[-1].artifact
    assert artifact is not None
    manifest = read_manifest(open_store(StoreLocation(uri=artifact.uri), {}), artifact.digest)
    assert manifest.provenance.step == 60
    metrics = {metric.name: float(metric.value) for metric in artifact.metrics}
    assert metrics["val_mse"] < metrics["baseline_mean_mse"]
    assert artifact.digest in output


def test_a_rank_told_to_leave_saves_and_the_next_life_goes_on(tmp_path: Path, launcher: socket.socket):
    """Fault 27: no step is lost. SIGTERM comes with the notice, and must not end the rank before it has saved."""
    environment = {ENV_REPORT_SOCKET: str(tmp_path / "report"), ENV_NOTICE: str(tmp_path / "notice.json")}
    run = a_run(f"file://{tmp_path}/store", recipe=a_mlp(steps=100_000))
    process = start(run, **environment, **{ENV_GENERATION: "1"})
    while RankReport.model_validate_json(launcher.recv(65536)).phase is not RunPhase.TRAINING:
        pass
    (tmp_path / "notice.part").write_text(Notice(request=1, leave=True).model_dump_json(by_alias=True))
    (tmp_path / "notice.part").rename(tmp_path / "notice.json")
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 143, output
    left = []
    launcher.settimeout(0)
    with suppress(BlockingIOError):
        while True:
            left.append(RankReport.model_validate_json(launcher.recv(65536)))
    launcher.settimeout(120)
    saved = left[-1].checkpoint
    assert saved is not None
    assert (left[-2].phase, saved.step) == (RunPhase.CHECKPOINTING, left[-1].step)

    (tmp_path / "notice.json").unlink()
    run = a_run(f"file://{tmp_path}/store", recipe=a_mlp(steps=saved.step + 3))
    process = start(run, **environment, **{ENV_GENERATION: "2"})
    told = reports(launcher)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert [report.checkpoint for report in told if report.checkpoint] == [saved]
    assert next(report.step for report in told if report.phase is RunPhase.TRAINING) == saved.step + 1
    assert told[-1].artifact is not None


def test_a_recipe_of_another_version_is_refused_with_the_known_ones():
    with pytest.raises(InvalidRecipe, match=r"spec\.recipe\.name is 'tensorflow-mlp', this trainer has mlp"):
        known(a_recipe(name="tensorflow-mlp"))
    with pytest.raises(InvalidRecipe, match=r"spec\.recipe\.name is None"):
        known(None)


def test_without_a_run_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(ENV_TRAINING_RUN, raising=False)
    with pytest.raises(InvalidRecipe, match="BIGMODEL_RUN is not set"):
        main()


def test_imports_start_no_thread_and_need_no_scikit_learn():
    """The fork server forks after them: a second thread would be lost in the fork, with whatever it held locked."""
    program = (
        "import os, sys, json, torch._dynamo, bigmodel.trainer.main\n"
        "print(json.dumps([len(os.listdir('/proc/self/task')), 'sklearn' in sys.modules]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | OURS, capture_output=True, text=True, check=True
    )
    assert json.loads(ended.stdout) == [1, False]
