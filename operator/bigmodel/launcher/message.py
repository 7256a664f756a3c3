"""What launchers say to each other: JSON lines of at most LINE_BYTES over one TCP connection per member. No pickle.

member → coordinator: Hello, Heartbeat, Failed, Stopped, Done, Leaving, Save. coordinator → member: Heartbeat, Start,
Stop, Save, Fenced, Refused, Exit. A new coordinator → each member's own port, on a connection of its own: Announcement.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from bigmodel.api.model import LongText, Model, Text
from bigmodel.api.progress import ArtifactSummary, CheckpointSummary, ErrorReport, Incident, Ledger, RankReport, Step
from bigmodel.api.run import RestartCounts

LINE_BYTES = 65536
HEARTBEAT_SECONDS = 0.5
LEASE_SECONDS = 2.0  # without a word from the other side, either way

# Pieces of evidence are cut so that the longest message stays below LINE_BYTES even when every character needs an
# escape.
MESSAGE_BYTES = 1024
TRACEBACK_BYTES = 1536
STACKS_BYTES = 10240
INCIDENT_BYTES = 2048
INCIDENTS_BYTES = 51200  # of all incidents together, as JSON
LOG_BYTES = 2048
LOG_LINES = 20
FAILURES = 8


class BadMessage(ValueError):
    """A line that is no message of ours: too long, not JSON, or of a shape we don't know."""


class Beat(Model):
    """What one rank last said. `idle_seconds`: since its step or phase last changed, by its launcher's clock."""

    report: RankReport
    idle_seconds: Annotated[float, Field(ge=0)]


class RankFailure(Model):
    """A rank that ended by itself, not with 0."""

    rank: int
    exit_code: Annotated[int, Field(ge=1, le=255)]  # 128 + N when killed by signal N
    signal: Text | None = None
    message: LongText
    traceback: LongText | None = None
    log: LongText | None = None  # the last lines it wrote
    connection_error: bool = False  # it died of another rank's death
    age_seconds: Annotated[float, Field(ge=0)] = 0.0  # since it ended, by its launcher's clock


class RankStack(Model):
    """Evidence of a hang. `stopped`: by a signal or by the kernel, so it could not answer. `waits`: in a collective."""

    rank: int
    stopped: bool = False
    waits: bool = False
    text: str = ""
    log: LongText | None = None


class Standing(Model):
    """What a coordinator knows of an attempt and its successor must: every member remembers it."""

    checkpoint: CheckpointSummary | None = None
    ledger: Ledger = Ledger()
    first_step_at: float | None = None  # seconds since the epoch


class Hello(Model):
    type: Literal["hello"] = "hello"
    token: Text
    index: Annotated[int, Field(ge=0)]
    incarnation: Annotated[int, Field(ge=0)]
    attempt: int
    generation: Annotated[int, Field(ge=0)]  # highest this launcher took part in
    processes: Annotated[int, Field(ge=1)]
    coordinator_incarnation: int = 0  # highest coordinator this launcher ever heard of
    spent: RestartCounts = RestartCounts()
    incidents: Annotated[list[Incident], Field(max_length=10, default_factory=list)]
    standing: Standing = Standing()
    step: Step = 0  # furthest of its ranks
    parted_seconds: Annotated[float, Field(ge=0)] = 0.0  # since the last word of the coordinator before


class Heartbeat(Model):
    """Both ways. `beats` of a member's ranks; `incarnation` of the coordinator: its first answer to a hello."""

    type: Literal["hb"] = "hb"
    incarnation: Annotated[int, Field(ge=0)] = 0
    standing: Standing | None = None  # of the coordinator
    beats: Annotated[list[Beat], Field(max_length=256, default_factory=list)]


class Failed(Model):
    """The first rank of this index failed; more evidence follows in Stopped."""

    type: Literal["failed"] = "failed"
    generation: int
    failure: RankFailure
    beats: Annotated[list[Beat], Field(max_length=256, default_factory=list)]


class Stopped(Model):
    """No process of this generation is left at this index. `failures`: ranks that had ended by themselves, first
    first."""

    type: Literal["stopped"] = "stopped"
    generation: int
    failures: Annotated[list[RankFailure], Field(max_length=FAILURES, default_factory=list)]
    stacks: Annotated[list[RankStack], Field(max_length=256, default_factory=list)]


class Done(Model):
    """Every rank of this index ended with 0. `artifact` from index 0, if its rank 0 published one."""

    type: Literal["done"] = "done"
    generation: int
    artifact: ArtifactSummary | None = None
    beats: Annotated[list[Beat], Field(max_length=256, default_factory=list)]


class Leaving(Model):
    """This launcher got SIGTERM: save, then let it go. In answer to Exit: it has heard, and goes."""

    type: Literal["leaving"] = "leaving"


class Save(Model):
    """Up: please have the gang save. Down: tell your ranks to; with `leave`, to exit 143 afterwards."""

    type: Literal["save"] = "save"
    leave: bool = False


class Start(Model):
    type: Literal["start"] = "start"
    generation: Annotated[int, Field(ge=1)]
    env: dict[str, str]
    spent: RestartCounts
    incidents: Annotated[list[Incident], Field(max_length=10, default_factory=list)]
    standing: Standing = Standing()


class Stop(Model):
    """Kill the ranks of `generation` and answer Stopped. With `stacks`, ask them where they are first."""

    type: Literal["stop"] = "stop"
    generation: int
    stacks: bool = False


class Fenced(Model):
    """You were replaced: exit 78 and touch nothing."""

    type: Literal["fenced"] = "fenced"
    reason: LongText


class Refused(Model):
    """You are not of this gang."""

    type: Literal["refused"] = "refused"
    reason: LongText


class Exit(Model):
    """The gang is over; the same for every launcher, so that any one last word tells the whole story."""

    type: Literal["exit"] = "exit"
    code: Annotated[int, Field(ge=0, le=255)]
    reason: Text | None = None
    message: LongText | None = None
    error: ErrorReport | None = None
    artifact: ArtifactSummary | None = None
    checkpoint: CheckpointSummary | None = None


class Announcement(Model):
    """A coordinator tells a member where it is, because DNS may still say where its predecessor was."""

    type: Literal["coordinator"] = "coordinator"
    token: Text
    attempt: int
    incarnation: Annotated[int, Field(ge=0)]
    address: Text  # host:port


MemberMessage = Hello | Heartbeat | Failed | Stopped | Done | Leaving | Save
CoordinatorMessage = Heartbeat | Start | Stop | Save | Fenced | Refused | Exit
Message = (
    Hello | Heartbeat | Failed | Stopped | Done | Leaving | Save | Start | Stop | Fenced | Refused | Exit | Announcement
)

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def encode(message: Message) -> bytes:
    """One line, newline included."""
    line = message.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
    if len(line) > LINE_BYTES:
        raise BadMessage(f"a {message.type} message of {len(line)} bytes is longer than {LINE_BYTES}")
    return line


def decode(line: bytes) -> Message:
    try:
        return _MESSAGE.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadMessage(f"{'.'.join(map(str, first['loc'])) or 'line'}: {first['msg']}") from None


def head(text: str, limit: int) -> str:
    """The first `limit` bytes of UTF-8 of `text`, printable characters only, never empty."""
    return printable(text[:limit]).encode()[:limit].decode(errors="ignore").strip() or "-"


def tail(text: str, limit: int) -> str:
    """The last `limit` bytes: the end of a traceback is what people need."""
    return printable(text[-limit:]).encode()[-limit:].decode(errors="ignore").strip() or "-"


def printable(text: str) -> str:
    """Without control characters and lone surrogates: in JSON each of them takes six bytes, or cannot be written at
    all."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable() and not "\ud800" <= c <= "\udfff"))
