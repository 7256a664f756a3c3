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
    """The earliest; a signal, a lost pod or an error of its own beats a broken connection, which is some other rank's
    death."""
    return min(failures, key=lambda f: (f.connection_error, f.at, f.index, -1 if f.rank is None else f.rank))


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
