"""How far jobs are: asks the pod of index 0 of each on a schedule and keeps the last good answer.

An answer is untrusted input: bounded, timed out, validated, and of the very job and attempt that were asked about.
A slow or hanging pod costs one of PARALLEL questions for TIMEOUT_SECONDS, and delays no other job beyond that.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import aiohttp

from bigmodel.api.names import PORT_PROGRESS
from bigmodel.api.progress import PROGRESS_BYTES, Progress
from bigmodel.controller.decision import Key
from bigmodel.controller.job.observe import Pulled
from bigmodel.controller.job.reports import BadReport, progress_of
from bigmodel.controller.job.status import UNREACHABLE_SECONDS

PATH = "/v1/progress"
YOUNG_SECONDS = 60.0  # of a pod that is followed: its first steps are news
EVERY_SECONDS_YOUNG = 2.0
EVERY_SECONDS = 10.0
TIMEOUT_SECONDS = 2.0
PARALLEL = 32
TICK_SECONDS = 0.25
# A job that nobody has followed for so long is gone: every job is looked at more often.
FORGET_SECONDS = 1800.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """The pod to ask, and what its answer must be of."""

    pod_uid: str
    ip: str
    job_uid: str
    attempt: int
    formation: tuple[str, ...] = ()  # UIDs of the pods that run: when it changes, so does what there is to tell


@dataclass
class _Followed:
    target: Target
    since: float  # on the monotonic clock, as the next two
    due: float
    last_followed: float
    pulled: Pulled | None = None
    asking: bool = False


class NoAnswer(Exception):
    """A pod gave no progress that can be used; the text says why."""


class ProgressSource:
    """Follows one pod of each job. `changed` is called with the job whose news it is."""

    def __init__(
        self,
        changed: Callable[[Key], None],
        port: int = PORT_PROGRESS,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._changed = changed
        self._port = port
        self._clock = clock
        self._now = now
        self._jobs: dict[Key, _Followed] = {}

    def follow(self, key: Key, target: Target | None) -> None:
        """From now on ask this pod for the job, and no other; None: none."""
        now = self._clock()
        followed = self._jobs.get(key)
        if target is None:
            self._jobs.pop(key, None)
        elif followed is not None and followed.target == target:
            followed.last_followed = now
        else:
            same_pod = followed is not None and replace(followed.target, formation=target.formation) == target
            told = followed.pulled if followed is not None and same_pod else None
            self._jobs[key] = _Followed(target, since=now, due=now, last_followed=now, pulled=told)

    def latest(self, key: Key) -> Pulled | None:
        """The last answer of the followed pod, and since when there is none; None before the first."""
        followed = self._jobs.get(key)
        return followed.pulled if followed is not None else None

    async def run(self) -> None:
        """Ask until cancelled."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(limit=PARALLEL, force_close=True)
        async with (
            aiohttp.ClientSession(
                timeout=timeout, connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            asyncio.TaskGroup() as tasks,
        ):
            while True:
                for key, followed in self._due():
                    followed.asking = True
                    tasks.create_task(self._ask(session, key, followed))
                await asyncio.sleep(TICK_SECONDS)

    def _due(self) -> list[tuple[Key, _Followed]]:
        """At most PARALLEL at a time: one that waits for a connection would spend its time-out waiting."""
        now = self._clock()
        for key in [key for key, job in self._jobs.items() if now - job.last_followed > FORGET_SECONDS]:
            del self._jobs[key]
        asking = sum(job.asking for job in self._jobs.values())
        waiting = [(key, job) for key, job in self._jobs.items() if job.due <= now and not job.asking]
        return sorted(waiting, key=lambda entry: entry[1].due)[: max(0, PARALLEL - asking)]

    async def _ask(self, session: aiohttp.ClientSession, key: Key, followed: _Followed) -> None:
        target = followed.target
        try:
            answer: Progress | NoAnswer = await fetch_progress(session, target, self._port)
        except NoAnswer as error:
            logger.debug("pod %s of %s: %s", target.pod_uid, key.name, error)
            answer = error
        now = self._clock()
        followed.asking = False
        followed.due = now + (EVERY_SECONDS_YOUNG if now - followed.since < YOUNG_SECONDS else EVERY_SECONDS)
        if self._jobs.get(key) is not followed:
            return
        before = followed.pulled
        followed.pulled = self._pulled(target, before, answer)
        if _is_news(before, followed.pulled, self._now()):
            self._changed(key)

    def _pulled(self, target: Target, before: Pulled | None, answer: Progress | NoAnswer) -> Pulled:
        now = self._now()
        if isinstance(answer, Progress):
            return Pulled(target.pod_uid, now, answer)
        if before is None:
            return Pulled(target.pod_uid, now, None, failing_since=now, failure=str(answer))
        return replace(before, failing_since=before.failing_since or now, failure=str(answer))


def _is_news(before: Pulled | None, after: Pulled, now: datetime) -> bool:
    """Another answer; or silence that has lasted long enough to be spoken of."""
    if after.failing_since is not None:
        return (now - after.failing_since).total_seconds() >= UNREACHABLE_SECONDS
    return before is None or before.failing_since is not None or before.progress != after.progress


async def fetch_progress(session: aiohttp.ClientSession, target: Target, port: int) -> Progress:
    """One question. Raises NoAnswer for all but well-formed, sensible progress of the attempt that was asked about."""
    host = f"[{target.ip}]" if ":" in target.ip else target.ip
    try:
        async with session.get(f"http://{host}:{port}{PATH}", allow_redirects=False) as response:
            if response.status != 200:
                raise NoAnswer(f"GET {PATH} is answered with status {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_chunked(PROGRESS_BYTES + 1):
                body += chunk
                if len(body) > PROGRESS_BYTES:
                    raise NoAnswer(f"the answer is longer than {PROGRESS_BYTES} bytes")
    except TimeoutError as error:
        raise NoAnswer(f"no answer within {TIMEOUT_SECONDS:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise NoAnswer(f"no answer: {error or type(error).__name__}") from error
    try:
        return progress_of(bytes(body), target.job_uid, target.attempt)
    except BadReport as error:
        raise NoAnswer(f"the answer makes no sense: {error}") from error
