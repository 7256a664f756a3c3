"""What pods say is untrusted: nonsense, and the words of others, never get in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bigmodel.controller.job.reports import BadReport, artifact_of, camel_case, last_word_of, progress_of
from tests.builders import JOB_UID, NOON, STORE_URI, a_last_word, a_progress, an_artifact

NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "another job's": ({"uid": "another"}, "not of attempt 1"),
    "another attempt's": ({"attempt": 2}, "not of attempt 1"),
    "101 %": ({"step": 2020, "totalSteps": 2000}, "step 2020 is beyond totalSteps 2000"),
    "a negative step": ({"step": -1}, "step"),
    "a phase nobody knows": ({"phase": "Sleeping"}, "phase"),
    "a loss that is no number": ({"metrics": [{"name": "loss", "value": "NaN"}]}, "not a finite number"),
    "a loss that is text": ({"metrics": [{"name": "loss", "value": "<script>"}]}, "not a finite number"),
    "a speed without end": ({"stepsPerSecond": float("inf")}, "stepsPerSecond"),
    "restarts below zero": ({"programRestarts": -1}, "programRestarts"),
    "more metrics than there is room for": ({"metrics": [{"name": "a", "value": "1"}] * 9}, "metrics"),
    "a time without end": ({"updatedAt": 1e300}, "updatedAt"),
}


@pytest.mark.parametrize(("fields", "why"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused_with_its_reason(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(BadReport, match=why):
        progress_of(a_progress().with_(**fields).json(), JOB_UID, 1)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '"x"', "\x00"])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(BadReport):
        progress_of(text, JOB_UID, 1)


def test_a_sensible_report_is_taken() -> None:
    progress = progress_of(a_progress().training(40, NOON).json(), JOB_UID, 1)
    assert (progress.step, progress.metrics[0].value) == (40, "0.2117")


def test_a_last_word_is_taken_from_its_own_pod_only() -> None:
    assert last_word_of(a_last_word(1), JOB_UID, 1, 1) is not None
    assert last_word_of(a_last_word(1), JOB_UID, 1, 0) is None
    assert last_word_of(a_last_word(1), JOB_UID, 2, 1) is None
    assert last_word_of(a_last_word(1), "another", 1, 1) is None


def test_the_end_of_a_log_is_no_last_word() -> None:
    assert last_word_of("Traceback (most recent call last):\n", JOB_UID, 1, 0) is None
    assert last_word_of(json.dumps({"uid": JOB_UID}), JOB_UID, 1, 0) is None


def test_a_last_word_with_nonsense_inside_is_not_taken() -> None:
    bad = json.loads(a_progress().with_(step=5000).json())
    assert last_word_of(a_last_word(progress=bad), JOB_UID, 1, 0) is None
    artifact = an_artifact(metrics=[{"name": "val_mse", "value": "inf"}])
    assert last_word_of(a_last_word(artifact=artifact), JOB_UID, 1, 0) is None


@pytest.mark.parametrize("slash", ["", "/"])
def test_an_artefact_lies_where_this_jobs_artefact_must(slash: str) -> None:
    uri = an_artifact()["uri"] + slash
    word = last_word_of(a_last_word(artifact=an_artifact(uri=uri)), JOB_UID, 1, 0)
    assert word is not None
    assert artifact_of(word, STORE_URI, "ml", "mlp").uri == uri
    for store, namespace, job in (("s3://other", "ml", "mlp"), (STORE_URI, "x", "mlp"), (STORE_URI, "ml", "x")):
        with pytest.raises(BadReport, match="must be at"):
            artifact_of(word, store, namespace, job)


@pytest.mark.parametrize(
    ("word", "taken"), [("Hang", "Hang"), ("no words", "X"), ("", "X"), ("A" * 64, "X"), ("9Lives", "X")]
)
def test_only_one_camel_case_word_may_be_a_cause(word: str, taken: str) -> None:
    assert camel_case(word, "X") == taken
