"""Which changes of a signature break a client of the model before, and which do not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bigmodel.controller.service.contract import differences
from tests.unit.controller.service.world import SIGNATURE, a_summary


def changed(side: str = "inputs", at: int = 0, sizes: tuple[int, int] = (1, 64), **tensor: Any) -> dict[str, Any]:
    signature = copy.deepcopy(SIGNATURE)
    signature[side][at] |= tensor
    signature["dimensions"]["batch"] = {"minimum": sizes[0], "maximum": sizes[1]}
    return signature


def with_more(side: str, **tensor: Any) -> dict[str, Any]:
    signature = copy.deepcopy(SIGNATURE)
    signature[side].append({"name": "z", "datatype": "float32", "shape": ["batch", 1]} | tensor)
    return signature


CASES = {
    "the same": (SIGNATURE, []),
    "another description": (changed(description="pixels"), []),
    "another name of a dimension": (
        {
            "inputs": [{"name": "x", "datatype": "float32", "shape": ["n", 1000]}],
            "outputs": [{"name": "y", "datatype": "float32", "shape": ["n", 1]}],
            "dimensions": {"n": {"minimum": 1, "maximum": 64}},
        },
        [],
    ),
    "larger batches": (changed(sizes=(1, 128)), []),
    "a further output": (with_more("outputs"), []),
    "a size that may now be chosen": (
        changed(shape=["batch", "width"])
        | {"dimensions": {"batch": {"minimum": 1, "maximum": 64}, "width": {"minimum": 1, "maximum": 2000}}},
        [],
    ),
    "a renamed input": (changed(name="features"), ["input x is gone", "input features is new, and no request has it"]),
    "another size": (
        changed(shape=["batch", 1200]),
        ["input x was float32[batch 1-64, 1000] and is float32[batch 1-64, 1200]"],
    ),
    "another type": (
        changed(datatype="float16"),
        ["input x was float32[batch 1-64, 1000] and is float16[batch 1-64, 1000]"],
    ),
    "a further axis": (
        changed(shape=["batch", 10, 100]),
        ["input x was float32[batch 1-64, 1000] and is float32[batch 1-64, 10, 100]"],
    ),
    "smaller batches": (
        changed(sizes=(1, 32)),
        ["input x was float32[batch 1-64, 1000] and is float32[batch 1-32, 1000]"],
    ),
    "a further input": (with_more("inputs"), ["input z is new, and no request has it"]),
    "a renamed output": (changed("outputs", name="answer"), ["output y is gone"]),
    "more numbers in the answer": (
        changed("outputs", shape=["batch", 2]),
        ["output y was float32[batch 1-64, 1] and is float32[batch 1-64, 2]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("signature", "want"), CASES.values(), ids=CASES)
def test_differences(signature: dict[str, Any], want: list[str]) -> None:
    assert differences(a_summary(), a_summary(signature)) == want


def test_two_sizes_that_must_now_be_equal_break_a_client() -> None:
    free = {
        "inputs": [
            {"name": "a", "datatype": "int64", "shape": ["batch", "left"]},
            {"name": "b", "datatype": "int64", "shape": ["batch", "right"]},
        ],
        "outputs": SIGNATURE["outputs"],
        "dimensions": {name: {"minimum": 1, "maximum": 64} for name in ("batch", "left", "right")},
    }
    tied = copy.deepcopy(free)
    tied["inputs"][1]["shape"] = ["batch", "left"]
    assert differences(a_summary(free), a_summary(tied)) == ["inputs a and b must now have the same size in left"]
    assert differences(a_summary(tied), a_summary(free)) == []


def test_signatures_too_long_for_the_message_are_equal_or_refused() -> None:
    long = a_summary().model_copy(update={"signature": None})
    assert differences(a_summary(), long) == []
    other = a_summary(changed(name="features")).model_copy(update={"signature": None})
    assert len(differences(a_summary(), other)) == 1
