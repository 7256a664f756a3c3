"""What a Session does in one process, without a launcher."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigmodel.api.run import StoreLocation
from bigmodel.artifact.fetch import read_manifest
from bigmodel.artifact.manifest import BATCH, Dimension, Signature
from bigmodel.artifact.manifest import Tensor as TensorSpec
from bigmodel.artifact.stores import open_store
from bigmodel.trainer import Session
from bigmodel.trainer.errors import InvalidModel
from bigmodel.trainer.session import signature_of

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_gang(monkeypatch: pytest.MonkeyPatch, alone: dist.ProcessGroup) -> Iterator[None]:
    """The process group is the script's own here: Session takes it as it is, and leaves it."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "BIGMODEL_RUN", "BIGMODEL_NOTICE", "BIGMODEL_GENERATION"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert dist.is_initialized()


def a_state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return {"model": model, "optimizer": torch.optim.Adam(model.parameters()), "epoch": 0}


def train(directory: Path | None, total: int, state: dict[str, Any], killed_at: int | None = None, **how: Any) -> list:
    steps = []
    with Session(directory, **how) as session:
        for step in session.steps(total, state):
            inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            state["optimizer"].zero_grad()
            state["model"](inputs).square().mean().backward()
            state["optimizer"].step()
            state["epoch"] = step // 4
            steps.append(step)
            if step == killed_at:
                raise KeyboardInterrupt
    return steps


def test_without_a_directory_it_is_a_plain_loop():
    assert train(None, 5, a_state()) == [0, 1, 2, 3, 4]


def test_it_goes_on_with_the_step_after_the_newest_checkpoint(tmp_path: Path):
    whole, again = a_state(), a_state()
    train(None, 12, whole)
    train(tmp_path, 7, a_state())  # its end is saved
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 12, a_state(), killed_at=9)  # before the next one is due
    assert train(tmp_path, 12, again) == [7, 8, 9, 10, 11]
    assert again["epoch"] == 2
    assert all(map(torch.equal, again["model"].parameters(), whole["model"].parameters()))


def test_after_the_last_step_all_of_it_is_saved(tmp_path: Path):
    train(tmp_path, 3, a_state())
    state = a_state()
    assert train(tmp_path, 3, state) == []
    assert state["optimizer"].state_dict()["state"][0]["step"] == 3


def test_what_is_published_without_a_launcher_lies_in_the_directory(tmp_path: Path):
    with Session(tmp_path) as session:
        session.report(loss=0.25)
        artifact = session.publish(nn.Linear(3, 1), torch.randn(9, 3))
    assert artifact is not None
    manifest = read_manifest(open_store(StoreLocation(uri=artifact.uri), {}), artifact.digest)
    assert {metric.name: metric.value for metric in manifest.variants[0].metrics} == {"loss": "0.25"}
    assert manifest.provenance.data_digest is None


def test_without_a_directory_nothing_is_published():
    with Session() as session:
        assert session.publish(nn.Linear(3, 1), torch.randn(9, 3)) is None


class Tied(nn.Module):
    """Embedding and head share their weight, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.head(self.words(tokens))
        return scores, scores.argmax(-1)


def test_tied_weights_are_published(tmp_path: Path):
    with Session(tmp_path) as session:
        artifact = session.publish(Tied(), torch.randint(0, 7, (5, 6)))
    assert artifact is not None


def test_the_signature_is_that_of_forward():
    want = Signature(
        inputs=[TensorSpec(name="tokens", datatype="int64", shape=["batch", 6])],
        outputs=[
            TensorSpec(name="output_0", datatype="float32", shape=["batch", 6, 7]),
            TensorSpec(name="output_1", datatype="int64", shape=["batch", 6]),
        ],
        dimensions={BATCH: Dimension(minimum=1, maximum=32)},
    )
    assert signature_of(Tied(), (torch.zeros(5, 6, dtype=torch.int64),), 32) == want


class Answering(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


REFUSED: dict[str, tuple[nn.Module, tuple[Tensor, ...], str]] = {
    "more inputs than arguments": (
        nn.Linear(3, 1),
        (torch.ones(2, 3),) * 2,
        r"\(2, 3\), \(2, 3\) for forward\(in",
    ),
    "no sample": (nn.Linear(3, 1), (torch.ones(0, 3),), r"\(0, 3\)"),
    "an answer for all samples at once": (Answering(lambda x: x.sum()), (torch.ones(2, 3),), "output of the model is"),
    "an answer that is no tensor": (Answering(lambda x: [x, 3]), (torch.ones(2, 3),), "output_1 of the model is"),
    "a type that Triton has not": (Answering(lambda x: x), (torch.ones(2, 3).bfloat16(),), "element type bfloat16"),
}


@pytest.mark.parametrize(("model", "inputs", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_server_could_take_is_refused(model: nn.Module, inputs: tuple[Tensor, ...], message: str):
    with pytest.raises(InvalidModel, match=message):
        signature_of(model, inputs, 8)


def test_the_package_itself_imports_no_torch():
    program = "import sys, bigmodel.trainer; print('torch' in sys.modules); bigmodel.trainer.nothing"
    ended = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": f"{ROOT}/operator"}, capture_output=True, text=True
    )
    assert (ended.stdout, ended.stderr.splitlines()[-1]) == (
        "False\n",
        "AttributeError: module 'bigmodel.trainer' has no attribute 'nothing'",
    )


def test_importing_session_starts_no_thread():
    """The fork server may import it before it forks."""
    program = "import os, torch._dynamo, bigmodel.trainer.session; print(len(os.listdir('/proc/self/task')))"
    environment = {"PYTHONPATH": f"{ROOT}/operator"} | dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
    )
    assert subprocess.check_output([sys.executable, "-c", program], env=environment, text=True) == "1\n"
