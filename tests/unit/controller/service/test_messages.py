"""Every reason is one word, every sentence is short and keeps its advice however long the foreign text in it is."""

from __future__ import annotations

import inspect
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from bigmodel.api.service import GateResult
from bigmodel.controller.service import messages
from bigmodel.controller.service.messages import MESSAGE_CHARACTERS, Reason

LONG = "stack line\n" * 1000
ARGUMENTS: dict[str, Any] = {
    "revision": 7,
    "ready": 1,
    "wanted": 2,
    "stable": 6,
    "restarts": 3,
    "exit_code": 139,
    "seconds": 60,
    "samples": 64,
    "worst": 0.03,
    "serves": True,
    "offered": ("default", "int8"),
    "problems": [LONG],
    "reason": Reason.DIGEST_MISMATCH,
    "retry_at": datetime(2026, 3, 1, tzinfo=UTC),
    "limit": "3Gi",
    "at": datetime(2026, 3, 1, tzinfo=UTC),
    "value": 3000.0,
    "best_other": 3100.0,
    "weight": 25,
    "golden": 12,
    "requests": 400,
    "previous": 6,
    "gate": GateResult(name="errors", value="3 of 9", limit="fail ≥ 3.3", verdict="Fail", at=datetime.now(UTC)),
}
SENTENCES = {
    name: function
    for name, function in vars(messages).items()
    if inspect.isfunction(function) and not name.startswith("_") and name not in {"cut", "quote"}
}
FOREIGN = {"text", "message", "why", "doing"}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_sentence_stays_short_and_ends(name: str) -> None:
    parameters = inspect.signature(SENTENCES[name]).parameters
    values = {key: ARGUMENTS.get(key, LONG if key in FOREIGN else "x") for key in parameters}
    if values.get("wanted") and name == "insufficient_gpu":
        values["wanted"] = "8 nvidia.com/gpu"
    sentence = SENTENCES[name](**values)
    assert 0 < len(sentence) <= MESSAGE_CHARACTERS
    assert "\n" not in sentence
    assert re.search(r"[.…]$|: ", sentence)


@pytest.mark.parametrize(
    ("sentence", "advice"),
    [
        (messages.model_load_failed("p", LONG), "Train again"),
        (messages.image_pull_failed("p", "c", "i", LONG), "imagePullSecrets"),
        (messages.unschedulable("p", LONG), "add nodes"),
        (messages.fetch_failed("p", Reason.STORE_FORBIDDEN, LONG), "rights"),
        (messages.job_failed("mlp", LONG), "corrected one"),
        (messages.rejected(7, messages.verification_failed("p", LONG), 6), "r6 keeps all traffic"),
    ],
)
def test_advice_survives_a_long_foreign_text(sentence: str, advice: str) -> None:
    assert advice in sentence


def test_every_reason_is_one_camel_case_word_and_unique() -> None:
    assert all(re.fullmatch(r"[A-Z][A-Za-z]{2,62}", reason) for reason in Reason)
    assert len(set(Reason)) == len(list(Reason.__members__))
