"""Published metrics against limits and against stable's."""

from __future__ import annotations

from typing import Any

import pytest

from bigmodel.api.service import AccuracyGate
from bigmodel.artifact.summary import Summary
from bigmodel.controller.service.accuracy import Measured, measure, relative_drop
from tests.unit.controller.service.world import a_summary

OTHER = "sha256:" + "8" * 64


def having(value: str | None, **more: Any) -> Summary:
    return a_summary(metrics=[{"name": "val_mse", "value": value}] if value is not None else [], **more)


CASES: dict[str, tuple[dict[str, Any], Summary, Summary | None, Measured]] = {
    "at the limit it passes": ({"atMost": 3000}, having("3000"), None, Measured("val_mse 3000", "at most 3000")),
    "above it fails": ({"atMost": 3000}, having("3000.1"), None, Measured("val_mse 3000.1", "at most 3000", "atMost")),
    "below the least it fails": (
        {"goal": "maximize", "atLeast": 0.9},
        having("0.89"),
        None,
        Measured("val_mse 0.89", "at least 0.9", "atLeast"),
    ),
    "no value fails": ({"atMost": 3000}, having(None), None, Measured("no val_mse", "at most 3000", "metric")),
    "no number fails": ({"atMost": 3000}, having("nan"), None, Measured("no val_mse", "at most 3000", "metric")),
    "worse than stable within the share": (
        {"maxRelativeDrop": 0.02},
        having("3060"),
        having("3000"),
        Measured("val_mse 3060, r6 has 3000", "at most 2.0% worse than r6"),
    ),
    "worse by more": (
        {"maxRelativeDrop": 0.02},
        having("3061"),
        having("3000"),
        Measured("val_mse 3061, r6 has 3000", "at most 2.0% worse than r6", "maxRelativeDrop"),
    ),
    "other validation data is not compared": (
        {"maxRelativeDrop": 0.02},
        having("9000", validation=OTHER),
        having("3000"),
        Measured("val_mse 9000, not compared with r6: other validation data", "at most 2.0% worse than r6"),
    ),
    "unknown validation data is not compared": (
        {"maxRelativeDrop": 0.02},
        having("9000", validation=None),
        having("3000", validation=None),
        Measured("val_mse 9000, not compared with r6: other validation data", "at most 2.0% worse than r6"),
    ),
    "the absolute limit holds on any data": (
        {"maxRelativeDrop": 0.02, "atMost": 3000},
        having("9000", validation=OTHER),
        having("3000"),
        Measured("val_mse 9000", "at most 3000, at most 2.0% worse than r6", "atMost"),
    ),
    "the first revision has nobody to be worse than": (
        {"maxRelativeDrop": 0.0},
        having("9000"),
        None,
        Measured("val_mse 9000", "at most 0.0% worse than stable"),
    ),
}


@pytest.mark.parametrize(("gate", "candidate", "stable", "want"), CASES.values(), ids=CASES)
def test_measure(gate: dict[str, Any], candidate: Summary, stable: Summary | None, want: Measured) -> None:
    parsed = AccuracyGate.model_validate({"metric": "val_mse", "goal": "minimize"} | gate)
    assert measure(parsed, candidate, stable, "r6") == want


@pytest.mark.parametrize(
    ("goal", "candidate", "stable", "want"),
    [
        ("minimize", 110.0, 100.0, 0.1),
        ("maximize", 0.9, 1.0, 0.1),
        ("maximize", -110.0, -100.0, 0.1),
        ("minimize", 90.0, 100.0, -0.1),
        ("minimize", 0.0, 0.0, 0.0),
        ("minimize", 1.0, 0.0, float("inf")),
        ("maximize", 1.0, 0.0, float("-inf")),
    ],
)
def test_a_drop_is_a_share_of_stables_value(goal: str, candidate: float, stable: float, want: float) -> None:
    assert relative_drop(goal, candidate, stable) == pytest.approx(want)
