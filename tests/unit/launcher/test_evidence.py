import json
import signal
from pathlib import Path

import pytest

from bigmodel.launcher.environment import RankFiles
from bigmodel.launcher.evidence import rank_failure, rank_stack
from bigmodel.launcher.message import TRACEBACK_BYTES, RankFailure


@pytest.fixture
def files(tmp_path: Path) -> RankFiles:
    return RankFiles(tmp_path, 1, 3)


def test_exit_0_is_no_failure(files: RankFiles) -> None:
    assert rank_failure(files, 0) is None


def test_what_torch_elastic_writes_is_read(files: RankFiles) -> None:
    error = {
        "message": "ValueError: x",
        "extraInfo": {"py_callstack": "Traceback\n  f()\nValueError: x", "timestamp": "1"},
    }
    files.error.write_text(json.dumps({"message": error}))
    assert rank_failure(files, 7 << 8) == RankFailure(
        rank=3, exit_code=7, message="ValueError: x", traceback="Traceback\n  f()\nValueError: x"
    )


ERROR_FILES = {
    "a plain message": ('{"message": "broken"}', "broken"),
    "no file": (None, "it left no error message; see its log"),
    "half a file": ('{"message": {"mess', "it left no error message; see its log"),
    "another shape": ("[1, 2]", "it left no error message; see its log"),
    "a message that is a number": ('{"message": 3}', "it left no error message; see its log"),
    "not text": ("\udcff\udcfe", "it left no error message; see its log"),
}


@pytest.mark.parametrize(("text", "want"), ERROR_FILES.values(), ids=ERROR_FILES)
def test_whatever_the_error_file_holds(files: RankFiles, text: str | None, want: str) -> None:
    if text is not None:
        files.error.write_text(text, errors="surrogateescape")
    failure = rank_failure(files, 1 << 8)
    assert failure is not None
    assert (failure.message, failure.traceback) == (want, None)


def test_a_long_traceback_keeps_its_end(files: RankFiles) -> None:
    error = {"message": "E", "extraInfo": {"py_callstack": "frame\n" * 9999 + "the end"}}
    files.error.write_text(json.dumps({"message": error}))
    failure = rank_failure(files, 1 << 8)
    assert failure is not None
    assert failure.traceback is not None
    assert len(failure.traceback) <= TRACEBACK_BYTES
    assert failure.traceback.endswith("the end")


def test_a_signal_is_named_and_the_crash_trace_kept(files: RankFiles) -> None:
    files.stacks.write_text(
        'Fatal Python error: Segmentation fault\n\nCurrent thread 0x1:\n  File "t.py", line 1 in f\n'
    )
    failure = rank_failure(files, signal.SIGSEGV | 0x80)
    assert failure is not None
    assert (failure.exit_code, failure.signal) == (139, "SIGSEGV")
    assert failure.traceback is not None
    assert failure.traceback.startswith("Fatal Python error")


STACKS = {
    "in a collective": ("/venv/lib/torch/distributed/distributed_c10d.py", True),
    "in the backward pass": ("/venv/lib/torch/autograd/graph.py", True),
    "in the program": ("/code/train.py", False),
}


@pytest.mark.parametrize(("place", "want"), STACKS.values(), ids=STACKS)
def test_a_stack_says_whether_the_rank_waits(files: RankFiles, place: str, want: bool) -> None:
    other = 'Thread 0x2 (most recent call first):\n  File "/venv/lib/torch/distributed/x.py", line 9 in run\n\n'
    head = f'Current thread 0x1 (most recent call first):\n  File "{place}", line 1 in f\n'
    files.stacks.write_text("an older answer\n" + other + head + '  File "/code/main.py", line 2 in main\n')
    stack = rank_stack(files, pid=2**22 + 1, from_byte=16)
    assert (stack.rank, stack.waits, stack.stopped) == (3, want, False)
    assert not stack.text.startswith("an older")
