"""What controller and serving pod agree on, and Triton's words when a model does not load: recorded from 2.51."""

import pytest

from bigmodel.api.serving import Drain, LoadFailure, drain, load_failure, triton_arguments

STACK = r"\n\nAt:\n  /usr/lib/python3.11/zipfile.py(1369): _RealGetContents\n  /model/3/model.py(36): initialize\n"
ENDING = "error: creating server: Internal - failed to load all models\n"


def line(source: str, text: str) -> str:
    """One line of Triton's log: quoted, line breaks escaped."""
    return f'E1123 23:03:05.208500 26114 {source}] "{text}"\n'


LOGS = {
    "a model that raises while it loads": (
        line("backend_model.cc:692", f"ERROR: Failed to create instance: BadZipFile: no zip{STACK}")
        + line("model_lifecycle.cc:642", f"failed to load 'mlp' version 3: Internal: BadZipFile: no zip{STACK}")
        + ENDING,
        LoadFailure("ModelLoadFailed", "Internal: BadZipFile: no zip"),
    ),
    "a warm-up request that fails": (
        line(
            "model_lifecycle.cc:642",
            "failed to load 'm' version 3: Invalid argument: failed to run warmup sample 'batch-1': Failed to process "
            f"the request(s) for model 'm_0_0', message: ValueError: boom{STACK}; ",
        )
        + ENDING,
        LoadFailure(
            "WarmupFailed",
            "Invalid argument: failed to run warmup sample 'batch-1': Failed to process the request(s) for model "
            "'m_0_0', message: ValueError: boom",
        ),
    ),
    "no stub for this Python": (
        line("model_lifecycle.cc:642", "failed to load 'm' version 3: Not found: stub is not found.")
        + ENDING,
        LoadFailure("ModelLoadFailed", "Not found: stub is not found."),
    ),
    "an unreadable config.pbtxt": (
        '[libprotobuf ERROR text_format.cc:337] Error parsing text-format inference.ModelConfig: 9:9: no field "x".\n'
        + line(
            "model_repository_manager.cc:1460",
            "Poll failed for model directory 'm': failed to read text proto from /model/repository/m/config.pbtxt",
        )
        + ENDING,
        LoadFailure(
            "ModelLoadFailed",
            "Poll failed for model directory 'm': failed to read text proto from /model/repository/m/config.pbtxt",
        ),
    ),
    "only the last line was kept": (
        ENDING, LoadFailure("ModelLoadFailed", "error: creating server: Internal - failed to load all models"),
    ),
    "another end": ("Signal (11) received.\n", None),
    "no words": ("", None),
}  # fmt: skip


@pytest.mark.parametrize(("log", "failure"), LOGS.values(), ids=LOGS)
def test_load_failure(log: str, failure: LoadFailure | None) -> None:
    assert load_failure(log) == failure


def test_the_grace_holds_sleep_and_longest_request_and_a_margin() -> None:
    assert drain(max_request_seconds=20) == Drain(
        pre_stop_seconds=10, exit_timeout_seconds=20, termination_grace_seconds=45
    )


def test_triton_waits_for_the_longest_request_and_stays_closed_to_its_load_api() -> None:
    arguments = triton_arguments(exit_timeout_seconds=7)
    assert "--exit-timeout-secs=7" in arguments
    assert {"--model-control-mode=none", "--exit-on-error=true", "--strict-readiness=true"} <= set(arguments)
    assert len({argument.partition("=")[0] for argument in arguments}) == len(arguments)
