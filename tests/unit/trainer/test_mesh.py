from typing import Any

import pytest

from bigmodel.api.job import Parallelism
from bigmodel.trainer.errors import InvalidMesh
from bigmodel.trainer.mesh import Degrees, degrees

FITTING: dict[str, tuple[dict[str, Any], int, Degrees]] = {
    "auto takes the whole world": ({}, 6, Degrees(1, 6, 1, 1)),
    "auto takes what the others leave": ({"shard": 2, "tensor": 2}, 8, Degrees(1, 2, 2, 2)),
    "a number that fits": ({"data": 3, "pipeline": 2}, 6, Degrees(2, 3, 1, 1)),
    "one rank": ({}, 1, Degrees(1, 1, 1, 1)),
}
MISFITS: dict[str, tuple[dict[str, Any], int, str]] = {
    "too few replicas": ({"data": 2}, 3, r"1 × 2 × 1 × 1, but nodes × processesPerNode = 3 ranks"),
    "the others do not divide the world": (
        {"shard": 2},
        3,
        r"1 × auto × 2 × 1, .* = 3 ranks.*pipeline × shard × tensor = 2 divide",
    ),
    "the others are more than the world": ({"tensor": 4}, 2, r"1 × auto × 1 × 4, .* = 2 ranks"),
}


@pytest.mark.parametrize(("fields", "world", "want"), FITTING.values(), ids=FITTING)
def test_degrees_multiply_to_the_world(fields: dict[str, Any], world: int, want: Degrees):
    assert degrees(Parallelism(**fields), world) == want


@pytest.mark.parametrize(("fields", "world", "message"), MISFITS.values(), ids=MISFITS)
def test_a_misfit_shows_the_arithmetic(fields: dict[str, Any], world: int, message: str):
    with pytest.raises(InvalidMesh, match=message):
        degrees(Parallelism(**fields), world)
