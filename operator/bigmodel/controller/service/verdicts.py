"""What the verifiers say: asks pods for their verdict on a schedule and keeps the last good answer of each.

An answer is untrusted input: bounded, timed out, validated, and it must speak of the revision and artefact that were
asked about. No answer is no data: the last one is forgotten, never taken for a pass.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import aiohttp
from pydantic import ValidationError

from bigmodel.api.names import PORT_VERDICT
from bigmodel.api.serving import PATH_VERDICT
from bigmodel.api.verdict import VERDICT_BYTES, Question, Verdict
from bigmodel.controller.decision import Key

GROWING_SECONDS = 0.5  # while bad requests grow
NEWS_SECONDS = 5.0  # counts that grow without a bad one among them start a pass so often
IDLE_WINDOW_SECONDS = 300.0  # what is asked about when nothing is on its way
TIMEOUT_SECONDS = 2.0
PARALLEL = 32
TICK_SECONDS = 0.25
# A service that nobody has followed for so long is gone: every service is looked at more often.
FORGET_SECONDS = 1800.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """How often, and about what: windows by their beginnings, none for the last minutes."""

    every_seconds: float
    since: tuple[datetime, ...] = ()
    slow_milliseconds: float | None = None
    replay_per_second: float = 0.0

    def question(self, now: datetime) -> Question:
        ages = tuple(max(0.0, (now - moment).total_seconds()) for moment in self.since)
        return Question(ages or (IDLE_WINDOW_SECONDS,), self.slow_milliseconds, self.replay_per_second)


@dataclass(frozen=True)
class Target:
    """One pod to ask, and what its answer must speak of. A pod whose `ready` turns is asked at once."""

    uid: str
    ip: str
    service: str
    revision: int
    digest: str
    ready: bool
    asked: Asked


@dataclass
class _Followed:
    key: Key
    target: Target
    due: float  # on the monotonic clock
    last_followed: float
    verdict: Verdict | None = None
    told: float = 0.0  # when its service was last told of news
    asking: bool = False
    asked: asyncio.Event = field(default_factory=asyncio.Event)  # once, whatever came of it


class VerdictError(Exception):
    """A pod gave no verdict that can be used; the text says why."""


class VerdictSource:
    """Follows pods and remembers what they said. `changed` is called with the service whose news it is."""

    def __init__(
        self,
        changed: Callable[[Key], None],
        port: int = PORT_VERDICT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed = changed
        self._port = port
        self._clock = clock
        self._pods: dict[str, _Followed] = {}

    def follow(self, key: Key, targets: tuple[Target, ...]) -> None:
        """From now on ask these pods of the service, and no others of it."""
        now = self._clock()
        wanted = {target.uid: target for target in targets}
        for uid in [uid for uid, pod in self._pods.items() if pod.key == key and uid not in wanted]:
            del self._pods[uid]
        for uid, target in wanted.items():
            pod = self._pods.get(uid)
            if pod is None:
                self._pods[uid] = _Followed(key, target, now, now)
                continue
            if replace(pod.target, asked=target.asked) != target or pod.target.asked.since != target.asked.since:
                pod.due = now
                if replace(pod.target, ready=target.ready, asked=target.asked) != target:
                    pod.verdict = None  # it spoke of another address or revision
                elif pod.verdict is not None and pod.target.asked.since != target.asked.since:
                    pod.verdict = pod.verdict.model_copy(update={"windows": []})  # it counted other windows
            pod.due = min(pod.due, now + target.asked.every_seconds)
            pod.target, pod.last_followed = target, now

    def of(self, uid: str) -> Verdict | None:
        """The last answer of this pod; None where the last question had none."""
        pod = self._pods.get(uid)
        return pod.verdict if pod else None

    async def first_asked(self, key: Key) -> bool:
        """Returns when every Ready pod of the service was asked once; False if all were before.

        A new leader has heard nobody: to judge by that would call pods unverified that serve, and leave out of a record
        what they were verified by.
        """
        waiting = [pod.asked.wait() for pod in self._pods.values() if self._unasked(pod, key)]
        if not waiting:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * TIMEOUT_SECONDS):
                await asyncio.gather(*waiting)
        return True

    @staticmethod
    def _unasked(pod: _Followed, key: Key) -> bool:
        return pod.key == key and pod.target.ready and not pod.asked.is_set()

    async def run(self) -> None:
        """Ask until cancelled."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(limit=PARALLEL, force_close=True)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as session,
            asyncio.TaskGroup() as tasks,
        ):
            while True:
                for pod in self._due():
                    pod.asking = True
                    tasks.create_task(self._ask(session, pod))
                await asyncio.sleep(TICK_SECONDS)

    def _due(self) -> list[_Followed]:
        """At most PARALLEL at a time: one that waits for a connection would spend its time-out waiting."""
        now = self._clock()
        for uid in [uid for uid, pod in self._pods.items() if now - pod.last_followed > FORGET_SECONDS]:
            del self._pods[uid]
        asking = sum(pod.asking for pod in self._pods.values())
        due = sorted((pod for pod in self._pods.values() if pod.due <= now and not pod.asking), key=lambda pod: pod.due)
        return due[: max(0, PARALLEL - asking)]

    async def _ask(self, session: aiohttp.ClientSession, pod: _Followed) -> None:
        target = pod.target
        try:
            verdict: Verdict | None = await fetch_verdict(session, target, self._port)
        except VerdictError as error:
            logger.debug("pod %s of %s: %s", target.uid, target.service, error)
            verdict = None
        pod.asking = False
        pod.asked.set()
        now = self._clock()
        every = pod.target.asked.every_seconds
        growing = verdict is not None and _bad(verdict) > _bad(pod.verdict) and bool(target.asked.since)
        pod.due = now + (min(GROWING_SECONDS, every) if growing else every)
        if self._pods.get(target.uid) is not pod or (pod.target.ip, pod.target.asked.since) != (
            target.ip,
            target.asked.since,
        ):
            return
        before, pod.verdict = pod.verdict, verdict
        if verdict == before:
            return
        if growing or _without_counts(verdict) != _without_counts(before) or now - pod.told >= NEWS_SECONDS:
            pod.told = now
            self._changed(pod.key)


def _bad(verdict: Verdict | None) -> int:
    return sum(one.errors + one.slow + one.golden_errors + one.golden_slow for one in verdict.windows) if verdict else 0


def _without_counts(verdict: Verdict | None) -> Verdict | None:
    """What is news at once: all but how many requests there were; the first counts are."""
    if verdict is None:
        return None
    windows = [window.model_copy(update=dict.fromkeys(COUNTS, 0)) for window in verdict.windows]
    return verdict.model_copy(update={"windows": windows, "p99_milliseconds": None})


COUNTS = ("seconds", "requests", "errors", "slow", "golden", "golden_errors", "golden_slow")


async def fetch_verdict(session: aiohttp.ClientSession, target: Target, port: int) -> Verdict:
    """One question. Raises VerdictError for all but a well-formed verdict on the revision that was asked about."""
    host = f"[{target.ip}]" if ":" in target.ip else target.ip
    try:
        query = target.asked.question(datetime.now(UTC)).query()
        url = f"http://{host}:{port}{PATH_VERDICT}?{query}"
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise VerdictError(f"status {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_chunked(VERDICT_BYTES + 1):
                body += chunk
                if len(body) > VERDICT_BYTES:
                    raise VerdictError(f"more than {VERDICT_BYTES} bytes")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise VerdictError(f"no answer: {type(error).__name__} {error}") from error
    try:
        verdict = Verdict.model_validate_json(bytes(body))
    except ValidationError as error:
        raise VerdictError(f"not a verdict: {error.error_count()} errors") from error
    said, asked = (verdict.service, verdict.revision, verdict.digest), (target.service, target.revision, target.digest)
    if said != asked:
        raise VerdictError(f"speaks of {said}, asked about {asked}")
    return verdict
