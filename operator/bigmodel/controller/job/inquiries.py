"""What is asked of the cluster about jobs that wait: how much room nodes have, and why a pod does not start.

Asked on demand, bounded, and forgotten with the last job that waits: nothing of it is watched, so a large cluster costs
nothing while jobs run.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bigmodel.controller.decision import NODE, POD, Key, Manifest
from bigmodel.controller.job.capacity import Tally
from bigmodel.controller.job.observe import Complaint, Room
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client
from bigmodel.controller.kube.events import EVENT

ROOM_SECONDS = 60.0  # a listing is good for so long
MOST_NODES, MOST_PODS = 2000, 50_000  # beyond, the scheduler's text must do
# A pod that does not start is asked about after this, then every so often; at most so many in a row.
PATIENCE_SECONDS = 3.0
COMPLAINT_SECONDS = 10.0
COMPLAINTS_AT_ONCE = 8
TICK_SECONDS = 0.5
FORGET_SECONDS = 900.0  # longer than the engine leaves any object alone

BOUND_AND_ALIVE = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"
NO_RIGHT = "the operator may not list nodes and pods of the whole cluster (chart value clusterReads)"
ONE_NAMESPACE = "the operator watches single namespaces and does not see the others' pods"
TOO_LARGE = f"the cluster has more than {MOST_NODES} nodes or {MOST_PODS} pods"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stuck:
    """A pod that has a node and whose container does not start."""

    namespace: str
    name: str
    uid: str


@dataclass
class _Asked:
    stuck: Stuck
    due: float  # on the monotonic clock, as the next
    last_wanted: float
    answer: Complaint | None = None


class Inquiries:
    """`changed` is called with each job to which an answer is news."""

    def __init__(
        self,
        client: Client,
        namespaces: Sequence[str],
        changed: Callable[[Key], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`namespaces`: those that are watched; empty: all."""
        self._client = client
        self._namespaces = namespaces
        self._changed = changed
        self._clock = clock
        self._waiting: dict[Key, float] = {}  # jobs that do not fit, and when they last asked
        self._room: Room | None = None
        self._room_due = 0.0
        self._asked: dict[Key, _Asked] = {}

    def room(self, key: Key) -> Room | None:
        """What nodes have free, for a job that does not fit; None: not known yet, it is looked for."""
        self._waiting[key] = self._clock()
        return self._room

    def complaint(self, key: Key, stuck: Stuck) -> Complaint | None:
        """The last thing that went wrong with a pod that does not start; None: nothing known, it is asked for."""
        now = self._clock()
        known = self._asked.get(key)
        if known is None or known.stuck != stuck:
            known = self._asked[key] = _Asked(stuck, due=now + PATIENCE_SECONDS, last_wanted=now)
        known.last_wanted = now
        return known.answer

    def placed(self, key: Key) -> None:
        """The job fits, or is gone."""
        self._waiting.pop(key, None)

    def started(self, key: Key) -> None:
        """No pod of it is stuck."""
        self._asked.pop(key, None)

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(TICK_SECONDS)

    async def turn(self) -> None:
        """Whatever is due now."""
        now = self._clock()
        self._forget(now)
        due = [(key, asked) for key, asked in self._asked.items() if asked.due <= now]
        await asyncio.gather(*(self._ask(key, asked) for key, asked in due[:COMPLAINTS_AT_ONCE]))
        if self._waiting and now >= self._room_due:
            room = await self._look_for_room()
            news, self._room = room != self._room, room
            self._room_due = self._clock() + ROOM_SECONDS
            for key in list(self._waiting) if news else ():
                self._changed(key)

    def _forget(self, now: float) -> None:
        for key in [key for key, at in self._waiting.items() if now - at > FORGET_SECONDS]:
            del self._waiting[key]
        for key in [key for key, asked in self._asked.items() if now - asked.last_wanted > FORGET_SECONDS]:
            del self._asked[key]
        if not self._waiting and now >= self._room_due:
            self._room = None

    async def _ask(self, key: Key, asked: _Asked) -> None:
        stuck = asked.stuck
        selector = f"regarding.uid={stuck.uid},type=Warning"
        answer = None
        try:
            async for events, _ in self._client.pages(EVENT, stuck.namespace, field_selector=selector):
                answer = _last(events, stuck) or answer
                break  # a pod has few
        except errors.ApiError as error:  # no right, or no answer: the pod's own status must do
            logger.debug("events of pod %s: %s", stuck.name, error)
        asked.due = self._clock() + COMPLAINT_SECONDS
        if self._asked.get(key) is asked and answer != asked.answer:
            asked.answer = answer
            self._changed(key)

    async def _look_for_room(self) -> Room:
        if self._namespaces:
            return Room((), ONE_NAMESPACE)
        tally, pods = Tally(), 0
        try:
            # Not with resourceVersion=0, by which the server ignores the limit and sends all in one answer.
            async for page, _ in self._client.pages(NODE, None):
                if tally.add_nodes(page) > MOST_NODES:
                    return Room((), TOO_LARGE)
            async for page, _ in self._client.pages(POD, None, field_selector=BOUND_AND_ALIVE):
                tally.add_pods(page)
                pods += len(page)
                if pods > MOST_PODS:
                    return Room((), TOO_LARGE)
        except errors.Forbidden:
            return Room((), NO_RIGHT)
        except errors.ApiError as error:
            logger.warning("what nodes have free is not known: %s", error)
            return self._room or Room((), "the API server did not answer")
        return Room(tally.rooms())


def _last(events: Sequence[Manifest], stuck: Stuck) -> Complaint | None:
    """The newest, but for what the scheduler said before it found a node."""
    told = [event for event in events if event.get("reason") != "FailedScheduling" and event.get("note")]
    newest = max(told, key=_when, default=None)
    return Complaint(stuck.uid, newest["note"]) if newest is not None else None


def _when(event: Mapping[str, object]) -> str:
    series = event.get("series")
    last = series.get("lastObservedTime") if isinstance(series, Mapping) else None
    return str(last or event.get("deprecatedLastTimestamp") or event.get("eventTime") or "")
