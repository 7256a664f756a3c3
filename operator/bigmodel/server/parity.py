"""Whether a server's answer is the published one. Pure.

|a - b| ≤ absolute + relative·|b| for every number a of the answer and its published twin b.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Tolerance:
    absolute: float
    relative: float


# By the precision of the variant: what another machine, batch size or kernel may change. fp32 covers sums of some
# thousand terms in another order; bf16 has 8 bits of mantissa, fp16 11; int8 rounds activations, where a tie that falls
# the other way is a whole step.
DEFAULTS = {
    "fp32": Tolerance(1e-4, 1e-3),
    "bf16": Tolerance(1e-2, 2e-2),
    "fp16": Tolerance(1e-3, 5e-3),
    "int8": Tolerance(1e-3, 2e-2),
    "fp8": Tolerance(1e-2, 5e-2),
}
WORST = 1e300  # stands for "not a number" and infinity, which JSON cannot hold


@dataclass(frozen=True)
class Comparison:
    """`worst` is the largest |a - b| / (absolute + relative·|b|); at most 1 passes. `message` says where a failure is,
    "" if none.
    """

    worst: float
    message: str

    @property
    def passed(self) -> bool:
        return not self.message


def compare(
    answer: Mapping[str, Array], published: Mapping[str, Array], tolerance: Tolerance, values: bool
) -> Comparison:
    """Every published output against the answer of that name. Without `values` only shape, dtype, finiteness count."""
    worst = 0.0
    for name, b in published.items():
        a = answer.get(name)
        if a is None:
            return Comparison(WORST, f"output {name} is missing in the answer")
        if a.shape != b.shape or a.dtype != b.dtype:
            return Comparison(WORST, f"output {name} is {_kind(a)}, published was {_kind(b)}")
        if values:
            excess = excess_ratio(a, b, tolerance)
            worst = max(worst, float(excess.max(initial=0.0)))
            if worst > 1:
                return Comparison(worst, _difference(name, a, b, excess, tolerance))
        elif not np.isfinite(a.astype(np.float64)).all():
            return Comparison(WORST, f"output {name} holds a number that is not finite")
    return Comparison(worst, "")


def excess_ratio(a: Array, b: Array, tolerance: Tolerance) -> npt.NDArray[np.float64]:
    """|a - b| / (absolute + relative·|b|), element by element; 0 where both are equal, infinities and NaN included."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    equal = (wide_a == wide_b) | (np.isnan(wide_a) & np.isnan(wide_b))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.abs(wide_a - wide_b) / (tolerance.absolute + tolerance.relative * np.abs(wide_b))
    ratio[equal] = 0.0
    # NaN on one side, or infinite on one side only: never within a tolerance.
    ratio[~equal & ~(np.isfinite(wide_a) & np.isfinite(wide_b))] = WORST
    return np.minimum(ratio, WORST)


def _difference(name: str, a: Array, b: Array, excess: npt.NDArray[np.float64], tolerance: Tolerance) -> str:
    at = np.unravel_index(int(excess.argmax()), excess.shape)
    times = f"{excess[at]:.3g} times the tolerance" if excess[at] < WORST else "not within the tolerance"
    return (
        f"output {name}[{', '.join(map(str, at))}] is {a[at]:.9g}, published was {b[at]:.9g}: {times} "
        f"{tolerance.absolute:g} + {tolerance.relative:g}·|b|; so are {int((excess > 1).sum())} of {excess.size}"
    )


def _kind(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"
