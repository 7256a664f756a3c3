"""Which requests prove a server: the published golden samples, or random inputs where an artefact has none. Pure but
for reading files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigmodel.api.run import ServingRun
from bigmodel.artifact import golden
from bigmodel.artifact.golden import Arrays, GoldenCase
from bigmodel.artifact.layout import GOLDEN, variant_directory
from bigmodel.artifact.manifest import BATCH, Manifest, Signature, Tensor
from bigmodel.server.config import is_batched


@dataclass(frozen=True)
class GoldenRequest:
    """One request as Triton takes it, and the outputs to compare with. Without `values` only their shape and type mean
    something.
    """

    inputs: Arrays
    outputs: Arrays
    samples: int
    values: bool


def golden_requests(run: ServingRun, manifest: Manifest, artifact: Path) -> list[GoldenRequest]:
    """The smallest request first; never empty. `artifact` is the fetched artefact's folder. Raises
    golden.InvalidGolden.
    """
    variant = manifest.variant(run.variant)
    cases = golden.read(artifact / variant_directory(run.variant) / GOLDEN)
    values = variant.deterministic and variant.golden != "none"
    batched = is_batched(manifest.signature)
    if not cases:
        sizes = sorted({1, run.max_batch_size}) if batched else [1]
        cases = [random_case(manifest.signature, size) for size in sizes]
    if not batched:
        return [GoldenRequest(case.inputs, case.outputs, 1, values) for case in cases]
    return [request for case in cases for request in split(case, run.max_batch_size, values)]


def split(case: GoldenCase, max_batch_size: int, values: bool) -> Sequence[GoldenRequest]:
    """The samples of a case in batches that this revision takes. A tensor without a dimension besides the batch has one
    of 1 in Triton.
    """

    def rows(arrays: Arrays, start: int) -> Arrays:
        return {
            name: array[start : start + max_batch_size].reshape(-1, *(array.shape[1:] or (1,)))
            for name, array in arrays.items()
        }

    return [
        GoldenRequest(
            rows(case.inputs, start), rows(case.outputs, start), min(max_batch_size, case.samples - start), values
        )
        for start in range(0, case.samples, max_batch_size)
    ]


def random_case(signature: Signature, batch_size: int) -> GoldenCase:
    """The same in every run. Floats are standard normal; integers are 0, which is inside every vocabulary."""
    generator = np.random.default_rng(0)

    def shape(tensor: Tensor) -> tuple[int, ...]:
        named = {name: dimension.minimum for name, dimension in signature.dimensions.items()} | {BATCH: batch_size}
        return tuple(size if isinstance(size, int) else named[size] for size in tensor.shape)

    def sample(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        dtype = np.dtype(str(tensor.datatype))
        drawn = generator.standard_normal(shape(tensor)) if dtype.kind == "f" else np.zeros(shape(tensor))
        return drawn.astype(dtype)

    return GoldenCase(
        {tensor.name: sample(tensor) for tensor in signature.inputs},
        {tensor.name: np.zeros(shape(tensor), str(tensor.datatype)) for tensor in signature.outputs},
    )
