"""Who failed first? One death makes others die of it; only the first one explains anything. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from bigmodel.api.progress import ErrorReport

EXIT_HANG = 124  # as timeout(1): a rank killed for making no step has no exit code of its own


class Cause(StrEnum):
    """Why a generation ended."""

    PROGRAM = "ProgramError"  # a rank ended by itself, not with 0
    HANG = "Hang"  # no step for too long
    LOST = "PodLost"  # a launcher went silent, or a successor of its pod came
    LEAVING = "Terminated"  # a pod was told to stop: drained, preempted, suspended


@dataclass(frozen=True)
class Failure:
    """One thing that went wrong in a generation. `rank` is None where a whole pod did."""

    cause: Cause
    at: float  # the coordinator's clock
    index: int
    exit_code: int
    message: str
    rank: int | None = None
    signal: str | None = None
    traceback: str | None = None
    connection_error: bool = False
    evidence: str = ""  # for the incident only: where the ranks were
    log: str | None = None  # the last lines that the rank wrote
    since: float | None = None  # of a pod: it may have been gone that early. None: not before `at`

    def report(self) -> ErrorReport | None:
        if self.rank is None:
            return None
        return ErrorReport(
            rank=self.rank,
            index=self.index,
            exit_code=self.exit_code,
            signal=self.signal,
            message=self.message,
            traceback=self.traceback,
        )


def first_cause(failures: Sequence[Failure]) -> Failure:
    """The earliest that no other explains: not a broken connection, which is some other's death, nor a rank that may
    have died of a pod that went."""
    pods = [failure for failure in failures if failure.cause in (Cause.LOST, Cause.LEAVING)]

    def order(failure: Failure) -> tuple[bool, float, int, int]:
        explained = failure.connection_error or any(_may_explain(pod, failure) for pod in pods)
        return explained, failure.at, failure.index, -1 if failure.rank is None else failure.rank

    return min(failures, key=order)


def _may_explain(pod: Failure, failure: Failure) -> bool:
    """Libraries have many words for a peer that is gone, and messages of several launchers come in any order: so the
    time decides. But what a pod's own launcher told of its ranks happened while it was there, and an exit code of its
    own choice, or a signal but that of abort(), no rank gets from its peers."""
    if failure.rank is None or failure.index == pod.index or failure.cause is not Cause.PROGRAM:
        return False
    echo = failure.exit_code == 1 if failure.signal is None else failure.signal == "SIGABRT"
    return echo and failure.at >= (pod.since if pod.since is not None else pod.at)


# What gloo, NCCL, the store and sockets say when a peer is gone (torch 2.13).
_CONNECTION = re.compile(
    r"connection (?:closed|reset|refused|aborted)|broken pipe|closed by peer|reset by peer|gloo[/.]transport|"
    r"failed to recv, got 0 bytes|socket (?:timeout|closed)|timed out waiting|wait timeout|"
    r"NCCL communicator was aborted|ncclRemoteError|ncclInternalError|DistNetworkError|"
    r"ConnectionError|ConnectionResetError|BrokenPipeError|ConnectionRefusedError|EOFError",
    re.IGNORECASE,
)


def is_connection_error(message: str) -> bool:
    """Is this the message of an exception that says no more than: a peer is gone?"""
    return _CONNECTION.search(message) is not None
