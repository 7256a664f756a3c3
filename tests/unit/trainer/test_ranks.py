"""What several ranks do together must be what one would have done: real processes, real gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
ADAM = {"optimizer": {"name": "adam", "learning_rate": 0.01}, "steps": 7, "batch_size": 8, "clip_norm": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "1 rank": {"ranks": 1, "recipe": ADAM},
    "2 ranks": {"ranks": 2, "recipe": ADAM},
    "3 ranks": {"ranks": 3, "recipe": ADAM},
    "2 ranks, accumulating": {"ranks": 2, "recipe": ADAM | {"gradient_accumulation": 3}},
    "3 ranks for batches of 2": {"ranks": 3, "recipe": ADAM | {"batch_size": 2}},
    "1 rank for batches of 2": {"ranks": 1, "recipe": ADAM | {"batch_size": 2}},
    "rank 1 of 2 is poisoned at step 3": {"ranks": 2, "poison": [3, 1]},
    "a target": {"ranks": 2, "recipe": {"steps": 60, "target": {"metric": "val_mse", "at_most": 1.0}}},
}


@pytest.fixture(scope="module")
def results() -> dict[str, list[dict[str, Any]]]:
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT}/operator",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    program = Path(__file__).parent / "programs/gang.py"
    ended = subprocess.run(
        [sys.executable, program], input=json.dumps(CASES), env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


SAME = {
    "2 ranks": "1 rank",
    "3 ranks, whose shares differ in size": "1 rank",
    "2 ranks, accumulating": "1 rank",
    "3 ranks for batches of 2, where one has no sample": "1 rank for batches of 2",
}


@pytest.mark.parametrize(("case", "reference"), SAME.items(), ids=SAME)
def test_the_number_of_ranks_changes_nothing(results: dict[str, list[dict[str, Any]]], case: str, reference: str):
    [want] = results[reference]
    for rank in results[case.partition(", w")[0]]:
        assert rank["losses"] == pytest.approx(want["losses"], rel=1e-5)
        assert rank["metrics"] == pytest.approx(want["metrics"], rel=1e-5)
        assert rank["parameters"] == pytest.approx(want["parameters"], rel=1e-4, abs=1e-6)


def test_all_ranks_hold_the_same_parameters_and_numbers(results: dict[str, list[dict[str, Any]]]):
    for case in ("2 ranks", "3 ranks", "a target"):
        first, *others = results[case]
        for other in others:
            assert other == first


def test_one_rank_without_a_finite_loss_stops_all_before_the_update(results: dict[str, list[dict[str, Any]]]):
    first, second = results["rank 1 of 2 is poisoned at step 3"]
    assert first["error"].startswith("step 3: the loss of rank 1 is not a finite number")
    assert second == first
    assert first["step"] == len(first["losses"]) == 3


def test_all_ranks_stop_at_the_target_together(results: dict[str, list[dict[str, Any]]]):
    steps = {rank["step"] for rank in results["a target"]}
    assert len(steps) == 1
    assert steps.pop() < 60
