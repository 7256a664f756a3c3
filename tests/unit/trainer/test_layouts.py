"""Data, shard and tensor parallelism must not be seen in what is learned: real processes, real gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
RECIPE = {"optimizer": {"name": "adam", "learning_rate": 0.01}, "steps": 8, "clip_norm": 1.0}


def a_case(ranks: int, recipe: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    mesh = {axis: fields.pop(axis) for axis in ("data", "shard", "tensor", "pipeline") if axis in fields}
    return {"ranks": ranks, "parallelism": mesh, "recipe": RECIPE | (recipe or {}), **fields}


LAYOUTS: dict[str, dict[str, Any]] = {
    "2 data": a_case(2),
    "2 shard": a_case(2, shard=2),
    "2 tensor": a_case(2, tensor=2),
    "2 data × 2 shard": a_case(4, shard=2),
    "2 data × 2 tensor": a_case(4, tensor=2),
    "2 shard × 2 tensor": a_case(4, shard=2, tensor=2),
    "4 shard": a_case(4, shard=4),
    "2 shard, accumulating": a_case(2, {"gradient_accumulation": 3}, shard=2),
    "2 tensor, accumulating": a_case(2, {"gradient_accumulation": 3}, tensor=2),
    "1, recomputing": a_case(1, {"activation_checkpointing": True}),
    "2 shard × 2 tensor, recomputing": a_case(4, {"activation_checkpointing": True}, shard=2, tensor=2),
}
# Cut off at step 5, hence taken up from the checkpoint of step 3, by other ranks in another layout.
MOVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "4 shard to 2 shard": (a_case(4, shard=4), a_case(2, shard=2)),
    "2 shard × 2 tensor to 2 data": (a_case(4, shard=2, tensor=2), a_case(2)),
    "1 to 2 data × 2 tensor": (a_case(1), a_case(4, tensor=2)),
    "2 data × 2 shard to 2 tensor": (a_case(4, shard=2), a_case(2, tensor=2)),
    # In place: must be bit-equal.
    "2 shard": (a_case(2, shard=2), a_case(2, shard=2)),
    "2 shard × 2 tensor": (a_case(4, shard=2, tensor=2), a_case(4, shard=2, tensor=2)),
}
CASES: dict[str, dict[str, Any]] = {
    "1": a_case(1),
    **LAYOUTS,
    **{
        f"{move}, {half}": case | {"store": move} | ({"stop": 5} if half == "before" else {})
        for move, halves in MOVES.items()
        for half, case in zip(("before", "after"), halves, strict=True)
    },
    "poisoned, 2 tensor": a_case(2, tensor=2, poison=[3, 1]),
    "poisoned, 2 shard × 2 tensor": a_case(4, shard=2, tensor=2, poison=[3, 2]),
    "bf16, 1": a_case(1, {"precision": "bf16"}),
    "bf16, 2 shard": a_case(2, {"precision": "bf16"}, shard=2),
    "an odd width": a_case(2, tensor=2, width=7),
    "pipeline": a_case(2, pipeline=2),
}


@pytest.fixture(scope="module")
def results() -> dict[str, list[dict[str, Any]]]:
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT}/operator",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    program = Path(__file__).parent / "programs/layouts.py"
    ended = subprocess.run(
        [sys.executable, program], input=json.dumps(CASES), env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


Results = dict[str, list[dict[str, Any]]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_loss_curve_of_one_process(results: Results, layout: str):
    [want] = results["1"]
    for rank in results[layout]:
        assert rank["losses"] == pytest.approx(want["losses"], rel=1e-4)
        assert rank["metrics"] == pytest.approx(want["metrics"], rel=1e-4)
    assert results[layout][0]["parameters"] == pytest.approx(want["parameters"], rel=1e-3, abs=1e-5)


def test_sharding_and_splitting_share_the_memory(results: Results):
    [whole] = results["1"]
    assert {rank["local"] for rank in results["2 data"]} == {whole["local"]}
    assert sum(rank["local"] for rank in results["4 shard"]) == whole["local"]
    assert sum(rank["local"] for rank in results["2 data × 2 shard"]) == 2 * whole["local"]
    # All but what stays whole on both: biases of `rows` and the head, 6 + 7.
    assert sum(rank["local"] for rank in results["2 tensor"]) == whole["local"] + 13


@pytest.mark.parametrize("move", MOVES)
def test_a_checkpoint_is_taken_up_by_another_layout(results: Results, move: str):
    [want] = results["1"]
    for rank in results[f"{move}, after"]:
        assert rank["steps"] == [4, 5, 6, 7, 8]
        assert rank["losses"] == pytest.approx(want["losses"][3:], rel=1e-4)
    assert results[f"{move}, after"][0]["parameters"] == pytest.approx(want["parameters"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("layout", ["2 shard", "2 shard × 2 tensor"])
def test_in_the_same_layout_a_restart_is_bit_equal(results: Results, layout: str):
    for whole, resumed in zip(results[layout], results[f"{layout}, after"], strict=True):
        assert resumed["losses"] == whole["losses"][3:]
        assert resumed["parameters"] == whole["parameters"]


@pytest.mark.parametrize("layout", ["2 tensor", "2 shard × 2 tensor"])
def test_one_rank_without_a_finite_loss_stops_all_before_the_update(results: Results, layout: str):
    culprit = CASES[f"poisoned, {layout}"]["poison"][1]
    for rank in results[f"poisoned, {layout}"]:
        assert rank["error"].startswith(f"step 3: the loss of rank {culprit} is not a finite number")
        assert rank["step"] == len(rank["losses"]) == 3


def test_bf16_is_near_fp32_and_the_same_on_any_layout(results: Results):
    [fp32], [bf16] = results["1"], results["bf16, 1"]
    assert bf16["losses"] != fp32["losses"]
    assert bf16["losses"] == pytest.approx(fp32["losses"], rel=0.05)
    assert results["bf16, 2 shard"][0]["losses"] == pytest.approx(bf16["losses"], rel=0.02)


REFUSED = {
    "an odd width": "spec.parallelism.tensor is 2, but 0.0 is 7 wide and 7 % 2 = 1",
    "pipeline": "this version has no pipelines; set it to 1",
}


@pytest.mark.parametrize(("case", "message"), REFUSED.items(), ids=REFUSED)
def test_a_layout_that_the_model_does_not_allow_is_refused(results: Results, case: str, message: str):
    for rank in results[case]:
        assert message in rank["error"]
        assert rank["losses"] == []
