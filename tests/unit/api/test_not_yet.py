from typing import Any

import pytest

from bigmodel.api.job import JobSpec, Recipe
from bigmodel.api.not_yet import refused

CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the smallest job is served": ({"recipe": {"name": "mlp"}}, []),
    "the smallest service is served": ({"model": {"fromJob": {"name": "mlp"}}}, []),
    "every default of a job is served": (JobSpec(recipe=Recipe(name="mlp")).wire(), []),
    "a value of no use yet is named with those that are": (
        {"recipe": {"name": "mlp", "precision": "fp16"}},
        ["spec.recipe.precision: fp16 is not served by this version: use fp32 or bf16"],
    ),
    "several values are of use": (
        {"recipe": {"name": "mlp", "loss": "bce"}},
        ["spec.recipe.loss: bce is not served by this version: use mse, mae or huber"],
    ),
    "a switch is written as in YAML": (
        {"recipe": {"name": "mlp", "compile": True}},
        ["spec.recipe.compile: true is not served by this version: use false"],
    ),
    "a field with nothing in its place is to be left out": (
        {"recipe": {"name": "mlp"}, "output": {"optimize": [{"name": "int8"}]}},
        ["spec.output.optimize is not served by this version: leave it out"],
    ),
    "an empty list is nothing": ({"recipe": {"name": "mlp"}, "output": {"optimize": []}}, []),
    "null is nothing": ({"recipe": {"name": "mlp"}, "script": None, "checkpoint": None}, []),
    "each element of a list counts": (
        {"recipe": {"name": "mlp"}, "output": {"export": ["torch", "onnx", "aoti"]}},
        [
            "spec.output.export: onnx is not served by this version: use torch",
            "spec.output.export: aoti is not served by this version: use torch",
        ],
    ),
    "all of it is said at once": (
        {"recipe": {"name": "mlp", "compile": True}, "parallelism": {"pipeline": 2}},
        [
            "spec.recipe.compile: true is not served by this version: use false",
            "spec.parallelism.pipeline: 2 is not served by this version: use 1",
        ],
    ),
    "a shape that no schema allows is somebody else's to refuse": ({"recipe": "mlp", "output": {"export": "onnx"}}, []),
}


@pytest.mark.parametrize(("spec", "sentences"), CASES.values(), ids=CASES)
def test_refused(spec: dict[str, Any], sentences: list[str]) -> None:
    assert refused(spec) == sentences
