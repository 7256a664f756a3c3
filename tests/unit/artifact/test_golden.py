from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bigmodel.artifact import golden
from bigmodel.artifact.golden import GoldenCase, InvalidGolden


def strings(*items: bytes) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def test_cases_come_back_bit_for_bit_smallest_first(tmp_path: Path):
    rng = np.random.default_rng(0)
    cases = [
        GoldenCase(
            {"x": rng.random((count, 3), np.float32), "ids": np.arange(count)}, {"y": rng.random((count, 1)) > 0.5}
        )
        for count in (12, 1)
    ]
    golden.write(tmp_path / "golden", cases)
    back = golden.read(tmp_path / "golden")
    assert [case.samples for case in back] == [1, 12]
    for case, again in zip(reversed(cases), back, strict=True):
        for side in ("inputs", "outputs"):
            for name, array in getattr(case, side).items():
                np.testing.assert_array_equal(array, getattr(again, side)[name], strict=True)


def test_strings_of_any_bytes_and_shape_survive_without_pickles(tmp_path: Path):
    text = strings(b"", b"caf\xc3\xa9", b"\x00\xff", b"x" * 1000).reshape(2, 2)
    golden.write(tmp_path / "golden", [GoldenCase({"text": text}, {"y": np.zeros((2, 1))})])
    [case] = golden.read(tmp_path / "golden")
    assert case.inputs["text"].shape == (2, 2)
    assert case.inputs["text"].tolist() == text.tolist()
    assert b"pickle" not in (tmp_path / "golden/batch-2.safetensors").read_bytes()


LIMITS = {
    "no case": ([], "0 samples"),
    "65 samples over two cases": (
        [GoldenCase({"x": np.zeros((n, 1))}, {"y": np.zeros((n, 1))}) for n in (1, 64)],
        "65 samples",
    ),
    "more than 32 MiB": ([GoldenCase({"x": np.zeros((2, 2 << 20))}, {"y": np.zeros((2, 1 << 20))})], "bytes, at most"),
}


@pytest.mark.parametrize(("cases", "message"), LIMITS.values(), ids=LIMITS)
def test_limits_are_kept(tmp_path: Path, cases: list[GoldenCase], message: str):
    with pytest.raises(InvalidGolden, match=message):
        golden.write(tmp_path / "golden", cases)


def test_no_directory_is_no_golden_samples(tmp_path: Path):
    assert golden.read(tmp_path / "golden") == []


DAMAGED = {
    "no safetensors": lambda path: path.write_bytes(b"x" * 100),
    "inputs without outputs": lambda path: save_file({"input/x": np.zeros(1)}, path),
    "strings without offsets": lambda path: save_file(
        {"input/x/data": np.zeros(1, np.uint8), "output/y": np.zeros(1)}, path
    ),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, damage):
    damage(tmp_path / "batch-1.safetensors")
    with pytest.raises(InvalidGolden, match=r"batch-1\.safetensors"):
        golden.read(tmp_path)
