"""Which objects to look at next: each waits at most once, is worked on by at most one worker, and can be put off."""

import asyncio
from collections import OrderedDict

from bigmodel.controller.decision import Key


class QueueClosed(Exception):
    """No more work is handed out."""


class WorkQueue:
    """A set with order and delay, for one event loop; every method but `get` returns at once.

    A key added while a worker has it is handed out again after `done`: what changed meanwhile is not lost. Handing a
    key out forgets its delay, because the pass that begins decides anew when to look next.
    """

    def __init__(self) -> None:
        self._ready: OrderedDict[Key, float] = OrderedDict()  # since when each waits, event loop time
        self._working: set[Key] = set()
        self._again: set[Key] = set()  # added while a worker has it
        self._delayed: dict[Key, asyncio.TimerHandle] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False

    def __len__(self) -> int:
        """Keys that wait for a worker."""
        return len(self._ready)

    @property
    def delayed(self) -> int:
        """Keys that are put off."""
        return len(self._delayed)

    @property
    def working(self) -> int:
        """Keys that a worker has."""
        return len(self._working)

    def oldest_seconds(self) -> float:
        """How long the key at the head has waited for a worker; 0 when none waits."""
        if not self._ready:
            return 0.0
        return asyncio.get_running_loop().time() - next(iter(self._ready.values()))

    def add(self, key: Key) -> None:
        if key in self._working:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = asyncio.get_running_loop().time()
            self._wake()

    def add_after(self, key: Key, seconds: float) -> None:
        """Add in `seconds`, or at the earlier moment already set."""
        loop = asyncio.get_running_loop()
        if (before := self._delayed.get(key)) is not None:
            if before.when() <= loop.time() + seconds:
                return
            before.cancel()
        self._delayed[key] = loop.call_later(seconds, self._due, key)

    async def get(self) -> Key:
        """The key that waited longest. Call `done` with it afterwards. Raises QueueClosed."""
        while not self._ready:
            if self._closed:
                raise QueueClosed
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and self._ready:  # woken and cancelled at once: pass the news on
                    self._wake()
                raise
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        if self._closed:
            raise QueueClosed
        key, _ = self._ready.popitem(last=False)
        self._working.add(key)
        if (delayed := self._delayed.pop(key, None)) is not None:
            delayed.cancel()
        return key

    def done(self, key: Key) -> None:
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """Hand out nothing more; those who wait get QueueClosed."""
        self._closed = True
        for delayed in self._delayed.values():
            delayed.cancel()
        self._delayed.clear()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _due(self, key: Key) -> None:
        del self._delayed[key]
        self.add(key)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
                return
