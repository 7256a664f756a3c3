"""The `evaluate` pod: scores and changed answers, and both contenders asked on a real Triton."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bigmodel.api.evaluation import Contender, EvaluationRun
from bigmodel.artifact.golden import GoldenCase
from bigmodel.server.evaluate import Answers, InvalidData, changed, evaluate, score
from bigmodel.server.parity import Tolerance
from bigmodel.server.triton import Unreachable
from tests.unit.server import local_triton
from tests.unit.server.artefacts import WIDTH, Artefact, a_program, published

ONES = np.ones((4, 1), np.float32)


def test_scores_are_means_over_every_number_or_every_sample() -> None:
    answers = {"y": np.array([[1.0], [3.0]], np.float32)}
    targets = {"y": np.array([1.0, 1.0], np.float32)}
    assert score("mse", answers, targets) == 2.0
    assert score("mae", answers, targets) == 1.0
    logits = {"y": np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)}
    assert score("accuracy", logits, {"y": np.array([1, 1, 1])}) == pytest.approx(2 / 3)
    classes = {"y": np.array([[1], [0]])}
    assert score("accuracy", classes, {"y": np.array([1, 1])}) == 0.5


@pytest.mark.parametrize("metric", ["mse", "accuracy"])
def test_targets_that_do_not_fit_the_answers_are_refused_by_name(metric: str) -> None:
    with pytest.raises(InvalidData, match=r"output/y .*\[4, 3\].*\[4, 1\]"):
        score(metric, {"y": ONES}, {"y": np.ones((4, 3), np.float32)})


def test_an_answer_differs_where_any_number_of_it_is_beyond_the_tolerance() -> None:
    b = {"y": np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], np.float32), "word": np.array([b"a", b"b", b"c"], object)}
    a = {"y": b["y"] + np.array([[0.0, 0.001], [0.0, 0.5], [0.0, 0.0]], np.float32), "word": b["word"].copy()}
    a["word"][2] = b"x"
    found = changed(Answers(a, b), Tolerance(0.01, 0.0))
    assert found.changed == 2
    assert found.largest == "output y of sample 1: 2.5, stable said 2, 50 times the tolerance"


def test_answers_of_another_shape_all_differ() -> None:
    assert changed(Answers({"y": ONES}, {"y": np.ones((4, 2), np.float32)}), Tolerance(1.0, 1.0)).changed == 4


MODEL = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        factor = {2: 1.0, 3: 1.5, 4: 1.0, 5: None}[%d]
        if factor is None:
            raise ValueError("boom")
        rows = [pb.get_input_tensor_by_name(r, "features").as_numpy().sum(axis=1) * factor for r in requests]
        return [pb.InferenceResponse([pb.Tensor("target", row.astype(np.float32).reshape(-1, 1))]) for row in rows]
"""
CONFIG = """
name: "mlp" backend: "python" max_batch_size: 8 version_policy { all {} }
input [ { name: "features" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "target" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local_triton.LocalTriton]:
    """Versions 2 and 4 answer alike, 3 half as much again, 5 not at all."""
    repository = tmp_path_factory.mktemp("repository")
    for version in (2, 3, 4, 5):
        folder = repository / "mlp" / str(version)
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(MODEL % version)
    (repository / "mlp" / "config.pbtxt").write_text(CONFIG)
    arguments = [f"--model-repository={repository}", "--backend-directory=x", "--disable-auto-complete-config"]
    environment = local_triton.environment(tmp_path_factory.mktemp("python"))
    server = local_triton.start(arguments, local_triton.free_port(), environment, repository / "log")
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"http://{server.address}/v2/health/ready", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield server
    finally:
        server.stop()


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    samples = np.ones((20, WIDTH), np.float32)
    return published(tmp_path, a_program(), [GoldenCase({"features": samples}, {"target": np.zeros(20, np.float32)})])


def asking(triton: local_triton.LocalTriton, candidate: int, **more: object) -> EvaluationRun:
    contenders = [Contender(revision=number, address=triton.address) for number in (candidate, 2)]
    run = EvaluationRun(candidate=contenders[0], stable=contenders[1], max_batch_size=8)
    return run.model_copy(update=more)


def test_golden_inputs_are_asked_of_both(triton: local_triton.LocalTriton, artefact: Artefact) -> None:
    alike = evaluate(artefact.run, asking(triton, 4), {})
    assert alike.change is not None
    assert (alike.ok, alike.samples, alike.scores, alike.change.changed) == (True, 20, None, 0)
    other = evaluate(artefact.run, asking(triton, 3), {})
    assert other.change is not None
    assert other.change.changed == 20
    assert other.change.largest is not None
    assert other.change.largest.startswith("output target of sample 0: 24, stable said 16")


def test_own_data_is_scored_for_both(triton: local_triton.LocalTriton, artefact: Artefact, tmp_path: Path) -> None:
    data = tmp_path / "test.safetensors"
    save_file(
        {"input/features": np.ones((10, WIDTH), np.float32), "output/target": np.full(10, 18.0, np.float32)}, data
    )
    result = evaluate(artefact.run, asking(triton, 3, data=f"file://{data}", metric="mse"), {})
    assert result.scores is not None
    assert (float(result.scores.candidate), float(result.scores.stable)) == (36.0, 4.0)
    assert result.samples == 10


def test_a_candidate_that_raises_is_told_in_its_own_words(triton: local_triton.LocalTriton, artefact: Artefact) -> None:
    result = evaluate(artefact.run, asking(triton, 5), {})
    assert (result.ok, result.reason) == (False, "EvaluationFailed")
    assert "r5 does not answer" in result.message
    assert "boom" in result.message


def test_a_file_that_holds_no_samples_is_the_datas_fault(
    triton: local_triton.LocalTriton, artefact: Artefact, tmp_path: Path
) -> None:
    (tmp_path / "test.csv").write_text("a,b")
    for uri in (f"file://{tmp_path}/test.csv", f"file://{tmp_path}/gone", "pvc://claim/../etc/passwd"):
        result = evaluate(artefact.run, asking(triton, 4, data=uri, metric="mse"), {})
        assert (result.ok, result.reason) == (False, "InvalidEvaluationData")


def test_an_address_where_nobody_listens_is_worth_another_try(artefact: Artefact) -> None:
    nobody = Contender(revision=2, address=f"127.0.0.1:{local_triton.free_port()}")
    with pytest.raises(Unreachable):
        evaluate(artefact.run, EvaluationRun(candidate=nobody, stable=nobody, max_batch_size=8), {})
