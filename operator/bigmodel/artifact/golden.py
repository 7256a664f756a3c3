"""Golden samples: inputs and the outputs the published program gave for them, kept to check every server that says it
runs that program.

One file per case, `golden/batch-<size>.safetensors`: a single sample, and the largest batch. A tensor `x` is stored
as `input/x` or `output/x`; strings as `input/x/data` (uint8, all bytes), `input/x/offsets` (int64, one more than
elements) and `input/x/shape` (int64). No pickles: strings never become object arrays on disk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

Arrays = dict[str, npt.NDArray[np.generic]]
MAX_SAMPLES = 64
MAX_BYTES = 32 << 20


class InvalidGolden(Exception):
    """Golden samples over the limits, or a file that is not one."""


@dataclass(frozen=True)
class GoldenCase:
    """One request and its answer. The first axis of every array is the batch; strings are object arrays of bytes."""

    inputs: Arrays
    outputs: Arrays

    @property
    def samples(self) -> int:
        return len(next(iter(self.inputs.values())))


def write(directory: Path, cases: Sequence[GoldenCase]) -> None:
    """Raises InvalidGolden when the cases hold more than MAX_SAMPLES samples or MAX_BYTES bytes."""
    if not cases or (samples := sum(case.samples for case in cases)) > MAX_SAMPLES:
        raise InvalidGolden(f"golden cases hold {samples if cases else 0} samples, want 1 to {MAX_SAMPLES}")
    directory.mkdir(parents=True)
    for case in cases:
        save_file(
            {**_packed("input", case.inputs), **_packed("output", case.outputs)},
            directory / f"batch-{case.samples}.safetensors",
        )
    size_bytes = sum(path.stat().st_size for path in directory.iterdir())
    if size_bytes > MAX_BYTES:
        raise InvalidGolden(
            f"golden cases hold {size_bytes} bytes, at most {MAX_BYTES} are kept: take fewer samples, or "
            "output.golden: none"
        )


def read(directory: Path) -> list[GoldenCase]:
    """The cases in `directory`, smallest batch first; empty when there are none. Raises InvalidGolden."""
    cases = [parse(path.read_bytes(), path.name) for path in directory.glob("batch-*.safetensors")]
    return sorted(cases, key=lambda case: case.samples)


def parse(data: bytes, name: str) -> GoldenCase:
    """The case in one file; `name` is for the message. Raises InvalidGolden."""
    try:
        arrays = load(data)
        case = GoldenCase(_unpacked("input", arrays), _unpacked("output", arrays))
    except (SafetensorError, KeyError, ValueError, IndexError) as error:
        raise InvalidGolden(
            f"{name} holds no samples: {error}; a safetensors file with input/NAME and output/NAME is wanted"
        ) from error
    if not case.inputs or not case.outputs:
        raise InvalidGolden(
            f"{name} holds {len(case.inputs)} inputs and {len(case.outputs)} outputs, want at least one each"
        )
    return case


def _packed(side: str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Arrays:
    packed: Arrays = {}
    for name, array in arrays.items():
        key = f"{side}/{name}"
        if array.dtype.kind != "O":
            packed[key] = np.ascontiguousarray(array)
            continue
        strings: list[bytes] = array.reshape(-1).tolist()
        packed[f"{key}/data"] = np.frombuffer(b"".join(strings), np.uint8)
        packed[f"{key}/offsets"] = np.cumsum([0, *map(len, strings)], dtype=np.int64)
        packed[f"{key}/shape"] = np.asarray(array.shape, np.int64)
    return packed


def _unpacked(side: str, packed: Mapping[str, npt.NDArray[np.generic]]) -> Arrays:
    arrays: Arrays = {}
    for key, array in packed.items():
        place, name, *part = key.split("/")
        if place != side:
            continue
        if not part:
            arrays[name] = array
        elif part == ["data"]:
            data = array.tobytes()
            offsets = packed[f"{key.removesuffix('data')}offsets"].tolist()
            strings = np.empty(len(offsets) - 1, object)
            strings[:] = [data[start:end] for start, end in pairwise(offsets)]
            arrays[name] = strings.reshape(packed[f"{key.removesuffix('data')}shape"].astype(int))
    return arrays
