"""Sentences: bounded whatever comes from outside, and never without a way out."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from bigmodel.api.progress import ErrorReport
from bigmodel.controller.job import messages

ENDLESS = "word " * 2000
ARGUMENTS: dict[str, Any] = {
    "error": ErrorReport(rank=1, index=1, exit_code=1, message="m" * 4096, traceback="line\n" * 800),
    "problems": [ENDLESS] * 3,
    "pods": ["mlp-gyjmk-a1-0"] * 1000,
    "waiting": list(range(1000)),
    "together": True,
    "has_run": True,
}
NUMBERS = (
    "nodes",
    "created",
    "size",
    "seconds",
    "attempt",
    "rule",
    "spent",
    "limit",
    "port",
    "before",
    "after",
    "times",
    "step",
)
SENTENCES = {
    name: function
    for name, function in vars(messages).items()
    if inspect.isfunction(function)
    and function.__module__ == messages.__name__
    and not name.startswith("_")
    and name not in ("cut", "duration")
}


def _arguments(function: Any, text: str) -> dict[str, Any]:
    def of(name: str) -> Any:
        if name in ARGUMENTS:
            return ARGUMENTS[name]
        return 7 if name in NUMBERS or name.endswith(("_seconds", "exit_code")) else text

    return {name: of(name) for name in inspect.signature(function).parameters}


@pytest.mark.parametrize("name", SENTENCES)
def test_no_sentence_is_longer_than_a_condition_may_hold(name: str) -> None:
    long_names = {"pod", "name", "job", "secret", "namespace", "node", "kind", "uri", "digest", "short_digest", "field"}
    function = SENTENCES[name]
    arguments = _arguments(function, ENDLESS)
    arguments |= dict.fromkeys(long_names & set(arguments), "n" * 63)  # the API server bounds names
    assert 0 < len(function(**arguments)) <= messages.MESSAGE_CHARACTERS


def test_a_cut_is_visible_and_the_end_of_a_traceback_survives() -> None:
    assert messages.cut("x" * 2000).endswith("…")
    text = messages.gang_ended("rank 0 failed", ARGUMENTS["error"], "pod", "node")
    assert text.endswith("line")
    assert len(text) <= messages.MESSAGE_CHARACTERS


def test_reasons_are_what_a_condition_may_carry() -> None:
    assert all(re.fullmatch(r"[A-Z][A-Za-z0-9]{0,62}", reason) for reason in messages.Reason)
