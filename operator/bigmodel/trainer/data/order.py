"""Which samples make up which global batch, and which rank takes which of them. Pure: a function of seed, step and
world size.

Nothing is remembered between steps, so a restart from step n, on any number of ranks, goes on with exactly the
samples that would have come.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


class BatchOrder(Protocol):
    """Pure: `global_batch` is a function of the step and nothing else."""

    @property
    def batches_per_epoch(self) -> int: ...

    def global_batch(self, step: int) -> Indices:
        """The samples of the update that leads from `step` to `step` + 1; each of them once an epoch."""


@dataclass(frozen=True)
class Order:
    """Every epoch is a new permutation of all samples, cut into global batches; the last one of an epoch may be
    smaller.
    """

    samples: int
    batch_size: int
    seed: int

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.samples // self.batch_size)

    def global_batch(self, step: int) -> Indices:
        """The samples of the update that leads from `step` to `step` + 1."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        # A generator of its own: neither the model's initial weights nor dropout move it.
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        return shuffled[batch * self.batch_size : (batch + 1) * self.batch_size]


def share(indices: Indices, rank: int, ranks: int) -> Indices:
    """This rank's part: contiguous, sizes differ by at most one. Empty where there are fewer samples than ranks."""
    return np.array_split(indices, ranks)[rank]


def split(samples: int, validation_share: float, seed: int) -> tuple[Indices, Indices]:
    """Two disjoint sets of samples, (train, validation), drawn by `seed`; their union is everything."""
    shuffled = np.random.default_rng([seed, 0x5EED]).permutation(samples)
    held_out = round(samples * validation_share)
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])
