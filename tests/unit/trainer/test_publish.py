"""From a trained model to a committed artefact, and back as a server would take it."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bigmodel.api.job import Output
from bigmodel.api.run import StoreLocation
from bigmodel.artifact import golden
from bigmodel.artifact.archive import UnsafeProgram, check_program
from bigmodel.artifact.fetch import fetch
from bigmodel.artifact.manifest import Manifest
from bigmodel.artifact.stores import open_store
from bigmodel.trainer.errors import ExportMismatch
from bigmodel.trainer.publish import load, publish_model
from tests.unit.trainer.tasks import INPUTS, a_recipe, a_run, a_task

METRICS = {"val_mse": 2871.4321, "val_mae": 1 / 3}


@pytest.fixture(autouse=True)
def never_unpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")


def published(directory: Path, model: nn.Module, golden_samples: str = "validation") -> tuple[Manifest, Path]:
    """What lies in the store, and where it was fetched to."""
    run = a_run(f"file://{directory}/store", output=Output(golden=golden_samples))
    summary = publish_model(run, a_task(model), 6, METRICS, open_store(run.store, {}))
    store = open_store(StoreLocation(uri=summary.uri), {})
    return fetch(store, summary.digest, summary.variant, directory / "fetched"), directory / "fetched"


class Everything:
    """One publication of the default task, for all tests that only look at it."""

    def __init__(self, directory: Path) -> None:
        self.task = a_task()
        run = a_run(f"file://{directory}/store")
        self.run = run
        self.summary = publish_model(run, self.task, 6, METRICS, open_store(run.store, {}))
        self.directory = directory / "fetched"
        store = open_store(StoreLocation(uri=self.summary.uri), {})
        self.manifest = fetch(store, self.summary.digest, self.summary.variant, self.directory)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Everything:
    return Everything(tmp_path_factory.mktemp("published"))


def test_the_program_answers_what_the_model_answers_for_every_batch_size(everything: Everything):
    program = load(everything.directory / "model/program.pt2")
    for size in (1, 2, 7, 256):
        x = torch.randn(size, INPUTS)
        with torch.no_grad():
            torch.testing.assert_close(program(x), everything.task.model(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(Exception, match="256"):
        program(torch.randn(257, INPUTS))


def test_the_program_file_holds_no_pickle(everything: Everything):
    check_program(everything.directory / "model/program.pt2")
    with zipfile.ZipFile(everything.directory / "model/program.pt2") as archive:
        assert not [name for name in archive.namelist() if archive.read(name)[:1] == b"\x80"]


def test_weights_are_the_parameters_by_name(everything: Everything):
    weights = load_file(everything.directory / "model/weights.safetensors")
    assert list(weights) == sorted(everything.task.model.state_dict())
    for name, tensor in everything.task.model.state_dict().items():
        assert torch.equal(weights[name], tensor)


def test_golden_samples_are_validation_inputs_and_what_the_program_answered(everything: Everything):
    single, batch = golden.read(everything.directory / "model/golden")
    assert (single.samples, batch.samples) == (1, 6)
    inputs = np.concatenate([single.inputs["x"], batch.inputs["x"]])
    np.testing.assert_array_equal(inputs, everything.task.validation.inputs.numpy())
    program = load(everything.directory / "model/program.pt2")
    for case in (single, batch):
        with torch.no_grad():
            answers = program(torch.from_numpy(case.inputs["x"])).numpy()
        # Not to the bit: numpy aligns the array read from the file in another way than torch aligned its tensor.
        np.testing.assert_allclose(answers, case.outputs["y"], rtol=1e-5, atol=1e-6, strict=True)


def test_the_manifest_says_what_it_is_how_good_and_where_from(everything: Everything):
    manifest, run = everything.manifest, everything.run
    [variant] = manifest.variants
    assert (variant.name, variant.golden, variant.deterministic) == ("default", "validation", True)
    metrics = {metric.name: metric.value for metric in variant.metrics}
    assert metrics == {"val_mse": "2871.43", "val_mae": "0.333333", "baseline_mean_mse": "5"}
    assert manifest.signature == everything.task.signature
    provenance = manifest.provenance
    assert (provenance.namespace, provenance.job, provenance.uid) == (run.namespace, run.job, run.uid)
    assert (provenance.attempt, provenance.step) == (1, 6)
    assert provenance.frameworks["torch"] == torch.__version__
    assert provenance.recipe == a_recipe().wire()
    assert run.image == provenance.image
    assert manifest.validation is not None
    assert manifest.validation.samples == 7


def test_the_summary_is_the_manifest_in_short(everything: Everything):
    summary, manifest = everything.summary, everything.manifest
    assert summary.uri == f"{everything.run.store.uri}/ml/mlp/0-1/artifact/{summary.digest.removeprefix('sha256:')}"
    files = [path for path in everything.directory.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert summary.size_bytes == sum(path.stat().st_size for path in files)
    assert (summary.variant, summary.metrics) == ("default", manifest.variants[0].metrics)
    assert [variant.name for variant in summary.variants] == ["default"]


def test_publishing_the_same_model_again_is_the_same_artefact(everything: Everything):
    again = publish_model(everything.run, a_task(), 6, METRICS, open_store(everything.run.store, {}))
    assert again == everything.summary


def test_random_golden_samples_hold_no_real_data(tmp_path: Path):
    manifest, directory = published(tmp_path, nn.Linear(INPUTS, 1), "random")
    cases = golden.read(directory / "model/golden")
    assert [case.samples for case in cases] == [1, 63]
    real = {tuple(row) for row in a_task().validation.inputs.tolist()}
    assert not real & {tuple(row) for case in cases for row in case.inputs["x"].tolist()}
    assert manifest.variants[0].golden == "random"


def test_without_golden_samples_none_are_kept(tmp_path: Path):
    manifest, directory = published(tmp_path, nn.Linear(INPUTS, 1), "none")
    assert golden.read(directory / "model/golden") == []
    assert manifest.variants[0].golden == "none"
    assert [file.path for file in manifest.files] == ["model/program.pt2", "model/weights.safetensors"]


class Dicing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(INPUTS, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x)
        return outputs + torch.rand_like(outputs)


def test_a_program_that_answers_differently_each_time_is_marked(tmp_path: Path):
    manifest, _ = published(tmp_path, Dicing())
    assert manifest.variants[0].deterministic is False


class OtherWhenExported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(INPUTS, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x)
        return outputs * 1.01 if torch.compiler.is_exporting() else outputs


def test_a_program_that_differs_from_the_model_is_never_published(tmp_path: Path):
    with pytest.raises(ExportMismatch, match="differs from the trained model by up to"):
        published(tmp_path, OtherWhenExported())
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_program_that_answers_no_number_is_never_published(tmp_path: Path):
    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1].log()

    with pytest.raises(ExportMismatch, match=r"\d of \d golden answers of the trained model are no"):
        published(tmp_path, Logarithm())
    assert not list(tmp_path.rglob("manifest.json"))


def test_what_torch_saves_by_itself_would_be_refused(tmp_path: Path):
    """The rule is not theoretical: with sample inputs, as torch.export.save writes them, the archive holds a pickle."""
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "program.pt2")
    with pytest.raises(UnsafeProgram, match="sample inputs"):
        check_program(tmp_path / "program.pt2")
