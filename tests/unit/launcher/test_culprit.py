import pytest

from bigmodel.launcher.culprit import Cause, Failure, first_cause, is_connection_error


def at(seconds: float, rank: int | None, connection_error: bool = False, cause: Cause = Cause.PROGRAM) -> Failure:
    return Failure(cause, seconds, rank or 0, 1, "", rank=rank, connection_error=connection_error)


CASES = {
    "the earliest": ([at(2, 0), at(1, 1)], at(1, 1)),
    "not the one who only lost its connection, however early": ([at(1, 0, True), at(5, 1)], at(5, 1)),
    "a lost pod explains broken connections": (
        [at(1, 0, True), at(3, None, cause=Cause.LOST)],
        at(3, None, cause=Cause.LOST),
    ),
    "a program error explains the pod that left after it": (
        [at(4, None, cause=Cause.LOST), at(3, 1)],
        at(3, 1),
    ),
    "broken connections alone: the earliest": ([at(2, 0, True), at(1, 1, True)], at(1, 1, True)),
    "at one moment the lower rank, so that all runs agree": ([at(1, 1), at(1, 0)], at(1, 0)),
}


@pytest.mark.parametrize(("failures", "want"), CASES.values(), ids=CASES)
def test_first_cause(failures: list[Failure], want: Failure) -> None:
    assert first_cause(failures) == want


MESSAGES = {
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.1]:46270: "
    "Connection reset by peer.": True,
    "RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:4242": True,
    "torch.distributed.DistNetworkError: The client socket has failed to connect": True,
    "torch.distributed.DistBackendError: NCCL communicator was aborted on rank 1.": True,
    "ConnectionResetError: [Errno 104] Connection reset by peer": True,
    "ValueError: the loss is nan at step 12": False,
    "RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x4 and 8x4)": False,
    "torch.OutOfMemoryError: CUDA out of memory.": False,
    "": False,
}


@pytest.mark.parametrize(("message", "want"), MESSAGES.items())
def test_is_connection_error(message: str, want: bool) -> None:
    assert is_connection_error(message) is want
