from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from bigmodel.trainer.data import datasets
from bigmodel.trainer.data.prepare import main
from bigmodel.trainer.errors import InvalidRecipe

DIABETES = "dataset://diabetes"


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.setattr("sys.argv", ["prepare", str(tmp_path / "datasets")])
    main()
    assert "diabetes.safetensors" in capsys.readouterr().out
    return tmp_path / "datasets"


def test_the_file_of_the_image_holds_what_the_package_holds(prepared: Path, tmp_path: Path):
    from_file, from_package = datasets.load(DIABETES, prepared), datasets.load(DIABETES, tmp_path / "nowhere")
    columns, progression = load_diabetes(return_X_y=True)
    np.testing.assert_array_equal(from_file.arrays["columns"], columns)
    np.testing.assert_array_equal(from_file.arrays["progression"], progression)
    assert from_file.digest == from_package.digest


def test_the_file_can_be_read_by_another_user(prepared: Path):
    assert (prepared / "diabetes.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_changed_value_has_another_digest():
    arrays = datasets.diabetes()
    before = datasets.digest_of_arrays(arrays)
    assert before == datasets.digest_of_arrays(dict(reversed(arrays.items())))
    arrays["progression"][7] += 1
    assert datasets.digest_of_arrays(arrays) != before


@pytest.mark.parametrize("uri", ["dataset://diamonds", "s3://bucket/x", "diabetes", "dataset://../x"])
def test_an_unknown_name_is_refused_with_the_known_ones(uri: str, tmp_path: Path):
    with pytest.raises(InvalidRecipe, match=rf"(?s){uri}.*dataset://diabetes"):
        datasets.load(uri, tmp_path)


def test_without_file_and_package_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing() -> None:
        raise ImportError("No module named 'sklearn'")

    monkeypatch.setitem(datasets.SOURCES, "diabetes", missing)
    with pytest.raises(InvalidRecipe, match=r"No module named 'sklearn'.*data\.prepare"):
        datasets.load(DIABETES, tmp_path)
