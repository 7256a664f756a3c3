"""|a - b| ≤ absolute + relative·|b|."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigmodel.server.parity import DEFAULTS, WORST, Tolerance, compare

TOLERANCE = Tolerance(absolute=0.1, relative=0.01)


def f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


CASES = {
    "equal numbers": (f32(1, -2, 0), f32(1, -2, 0), 0.0, ""),
    "half of the tolerance around zero": (f32(0.05), f32(0), 0.5, ""),
    "the relative part counts the published number": (f32(101), f32(100), 1 / 1.1, ""),
    "one of three outside": (
        f32(1, 2, 3), f32(1, 3, 3), 1 / 0.13,
        "output y[1] is 2, published was 3: 7.69 times the tolerance 0.1 + 0.01·|b|; so are 1 of 3",
    ),
    "a NaN that was not published": (
        f32(np.nan), f32(0), WORST,
        "output y[0] is nan, published was 0: not within the tolerance 0.1 + 0.01·|b|; so are 1 of 1",
    ),
    "an infinity that was not published": (
        f32(np.inf), f32(0), WORST,
        "output y[0] is inf, published was 0: not within the tolerance 0.1 + 0.01·|b|; so are 1 of 1",
    ),
    "an infinity that was published": (f32(-np.inf), f32(-np.inf), 0.0, ""),
    "an infinity of the other sign": (
        f32(np.inf), f32(-np.inf), WORST,
        "output y[0] is inf, published was -inf: not within the tolerance 0.1 + 0.01·|b|; so are 1 of 1",
    ),
    "a NaN that was published": (f32(np.nan), f32(np.nan), 0.0, ""),
    "another shape": (f32(1, 2), f32(1), WORST, "output y is float32[2], published was float32[1]"),
    "another type": (np.array([1.0]), f32(1), WORST, "output y is float64[1], published was float32[1]"),
    "integers far apart do not overflow": (
        np.array([-128], np.int8), np.array([127], np.int8), 255 / 1.37,
        "output y[0] is -128, published was 127: 186 times the tolerance 0.1 + 0.01·|b|; so are 1 of 1",
    ),
    "no numbers": (f32(), f32(), 0.0, ""),
}  # fmt: skip


@pytest.mark.parametrize(("a", "b", "worst", "message"), CASES.values(), ids=CASES)
def test_values(a: np.ndarray, b: np.ndarray, worst: float, message: str) -> None:
    comparison = compare({"y": a}, {"y": b}, TOLERANCE, values=True)
    assert comparison.message == message
    assert comparison.worst == pytest.approx(worst, rel=1e-5)


def test_a_missing_output_fails() -> None:
    assert compare({"z": f32(1)}, {"y": f32(1)}, TOLERANCE, values=True).message == "output y is missing in the answer"


def test_without_values_only_shape_dtype_and_finiteness_count() -> None:
    assert compare({"y": f32(7)}, {"y": f32(0)}, TOLERANCE, values=False).passed
    assert not compare({"y": f32(7, 7)}, {"y": f32(0)}, TOLERANCE, values=False).passed
    assert not compare({"y": f32(np.nan)}, {"y": f32(0)}, TOLERANCE, values=False).passed


def test_zero_tolerance_passes_only_the_same_bits() -> None:
    exact = Tolerance(0.0, 0.0)
    assert compare({"y": f32(0.1, 0)}, {"y": f32(0.1, 0)}, exact, values=True).passed
    assert not compare({"y": f32(np.nextafter(np.float32(0.1), 1))}, {"y": f32(0.1)}, exact, values=True).passed


numbers = st.floats(width=32)
tolerances = st.builds(Tolerance, st.floats(0, 10), st.floats(0, 1))


@given(a=numbers, b=numbers, tolerance=tolerances)
def test_passes_exactly_when_the_inequality_holds(a: float, b: float, tolerance: Tolerance) -> None:
    comparison = compare({"y": f32(a)}, {"y": f32(b)}, tolerance, values=True)
    if np.isnan(a) or np.isnan(b):
        holds = bool(np.isnan(a) and np.isnan(b))
    else:
        holds = a == b or (
            np.isfinite(a) and np.isfinite(b) and abs(a - b) <= tolerance.absolute + tolerance.relative * abs(b)
        )
    if holds != comparison.passed:  # the quotient may round differently from the inequality, at 1 itself
        assert comparison.worst == pytest.approx(1, rel=1e-9)
    json.dumps(comparison.worst, allow_nan=False)


def test_every_precision_has_a_tolerance_and_less_precision_a_wider_one() -> None:
    assert set(DEFAULTS) == {"fp32", "bf16", "fp16", "int8", "fp8"}
    assert DEFAULTS["fp32"] == Tolerance(1e-4, 1e-3)  # what the API's descriptions say
    assert all(t.absolute >= 1e-4 and t.relative >= 1e-3 for t in DEFAULTS.values())
