"""Trainings that were cut off, by real ranks: what comes out must not tell."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
STEPS, EVERY = 30, 4  # as in programs/lives.py


def lives(*plan: tuple[int, int | None]) -> list[dict[str, int]]:
    """(ranks, killed at step) of each life."""
    return [{"ranks": ranks} | ({"killed_at": step} if step else {}) for ranks, step in plan]


def random_lives(ranks: int, interruptions: int, seed: int) -> list[dict[str, int]]:
    """Killed at random steps after the newest checkpoint, sometimes before there is another one."""
    rng = random.Random(seed)
    plan: list[tuple[int, int | None]] = []
    begin = 0
    for _ in range(interruptions):
        killed_at = rng.randint(begin + 1, min(begin + EVERY + 2, STEPS))
        plan.append((ranks, killed_at))
        begin = (killed_at - 1) // EVERY * EVERY
    return lives(*plan, (ranks, None))


CASES: dict[str, dict[str, Any]] = {
    "2 ranks": {"kind": "recipe", "lives": lives((2, None))},
    "2 ranks, cut off 10 times": {"kind": "recipe", "lives": random_lives(2, 10, seed=1)},
    "3 ranks": {"kind": "recipe", "lives": lives((3, None))},
    "3 ranks, cut off twice": {"kind": "recipe", "lives": lives((3, 7), (3, 17), (3, None))},
    "2, 1, 3 ranks": {"kind": "recipe", "lives": lives((2, 9), (1, 18), (3, None))},
    "FSDP2 on 2": {"kind": "fsdp", "lives": lives((2, None))},
    "FSDP2 on 2, 1, 3, 2": {"kind": "fsdp", "lives": lives((2, 9), (1, 18), (3, 26), (2, None))},
}


@pytest.fixture(scope="module")
def results() -> dict[str, list[dict[str, Any]]]:
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT}/operator",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    program = Path(__file__).parent / "programs/lives.py"
    ended = subprocess.run(
        [sys.executable, program], input=json.dumps(CASES), env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


BIT_EQUAL = {
    "2 ranks, cut off 10 times": "2 ranks",
    # Where a gradient lies in DDP's buckets decides the order in which three ranks add it up.
    "3 ranks, cut off twice": "3 ranks",
}


@pytest.mark.parametrize(("case", "reference"), BIT_EQUAL.items(), ids=BIT_EQUAL)
def test_a_gang_that_was_cut_off_ends_with_the_same_bits(
    results: dict[str, list[dict[str, Any]]], case: str, reference: str
):
    """Fault 25: from the last checkpoint, with dropout, Adam, a schedule and accumulation."""
    cut, whole = results[case][-1], results[reference][-1]
    assert cut["bits"] == whole["bits"]
    assert cut["metrics"] == whole["metrics"]


def test_every_life_goes_on_from_the_newest_checkpoint(results: dict[str, list[dict[str, Any]]]):
    plan = CASES["2 ranks, cut off 10 times"]["lives"]
    begin = 0
    for life, result in zip(plan, results["2 ranks, cut off 10 times"], strict=True):
        end = life.get("killed_at", STEPS)
        assert result["steps"] == list(range(begin + 1, end + 1))
        begin = (end - 1) // EVERY * EVERY


def test_a_resized_gang_goes_on_where_the_other_stopped(results: dict[str, list[dict[str, Any]]]):
    assert [(life["steps"][0], life["steps"][-1]) for life in results["2, 1, 3 ranks"]] == [(1, 9), (9, 18), (17, 30)]


def test_fsdp2_state_is_sharded_anew_for_another_number_of_ranks(results: dict[str, list[dict[str, Any]]]):
    """2 → 1 → 3 → 2 ranks. The last layer has one row, so some ranks hold none of it."""
    resized, whole = results["FSDP2 on 2, 1, 3, 2"], results["FSDP2 on 2"][-1]
    assert [life["steps"][0] for life in resized] == [1, 9, 17, 25]
    assert resized[-1]["parameters"] == pytest.approx(whole["parameters"], rel=1e-5, abs=1e-7)
    assert resized[-1]["plain"] == whole["plain"] == {"seen": STEPS, "note": True, "rate": pytest.approx(1e-5)}
