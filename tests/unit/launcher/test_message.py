import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel.api.progress import Incident
from bigmodel.api.run import RestartCounts
from bigmodel.launcher.message import (
    FAILURES,
    INCIDENT_BYTES,
    LINE_BYTES,
    LOG_BYTES,
    MESSAGE_BYTES,
    STACKS_BYTES,
    TRACEBACK_BYTES,
    BadMessage,
    Exit,
    Hello,
    RankFailure,
    RankStack,
    Start,
    Stopped,
    decode,
    encode,
    head,
    tail,
)

TEXT = st.text(max_size=100)


@settings(max_examples=20, deadline=None)
@given(TEXT)
def test_the_longest_evidence_fits_into_a_line(text: str) -> None:
    """Whatever a program writes: every character may need an escape."""
    nasty = (text + '"\\\n') * 6000
    first = RankFailure(
        rank=0,
        exit_code=1,
        message=head(nasty, MESSAGE_BYTES),
        traceback=tail(nasty, TRACEBACK_BYTES),
        log=tail(nasty, LOG_BYTES),
    )
    failures = [first, *[RankFailure(rank=n, exit_code=1, message=first.message) for n in range(1, FAILURES)]]
    stacks = [RankStack(rank=n, text=head(nasty, STACKS_BYTES // 2), log=first.log) for n in range(2)]
    stopped = Stopped(generation=1, failures=failures, stacks=stacks)
    assert decode(encode(stopped)) == stopped
    incidents = [Incident(at=1.0, generation=g, cause="Hang", message=head(nasty, INCIDENT_BYTES)) for g in range(10)]
    start = Start(generation=1, env={"MASTER_ADDR": "10.0.0.1"}, spent=RestartCounts(), incidents=incidents)
    assert decode(encode(start)) == start


@given(TEXT, st.integers(1, 64))
def test_head_and_tail_are_bounded_and_never_empty(text: str, limit: int) -> None:
    for piece in (head(text, limit), tail(text, limit)):
        assert 1 <= len(piece.encode()) <= max(limit, 1)


BAD = {
    "no JSON": b"hello\n",
    "no type": b'{"generation":1}\n',
    "an unknown type": b'{"type":"pickle"}\n',
    "a field of the wrong type": b'{"type":"done","generation":"many"}\n',
    "an index below 0": encode(Hello(token="t", index=0, incarnation=0, attempt=1, generation=0, processes=1)).replace(
        b'"index":0', b'"index":-1'
    ),
    "an exit code that is none": b'{"type":"exit","code":4711}\n',
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_what_is_no_message(line: bytes) -> None:
    with pytest.raises(BadMessage):
        decode(line)


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(BadMessage, match="longer than"):
        encode(Start(generation=1, env={"X": "x" * LINE_BYTES}, spent=RestartCounts()))


def test_unknown_fields_of_a_newer_launcher_are_ignored() -> None:
    assert decode(b'{"type":"exit","code":0,"farewell":"bye"}\n') == Exit(code=0)
