"""Leader election by a coordination.k8s.io Lease: at most one process acts, if clocks run about equally fast.

Nobody compares wall clocks: a candidate takes the lease when it has itself watched it stay unchanged for the lease's
duration, and the holder gives up when its own last renewal began longer ago than that, minus a margin. Every write
carries the resourceVersion read before, so of two takers one gets a Conflict.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from bigmodel.controller.decision import Manifest, ResourceKind
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client

LEASE = ResourceKind("Lease", "coordination.k8s.io/v1", "leases")
HOLD_SHARE = 0.8  # of the lease's duration: the holder stops before anybody may take over

logger = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another process may act from now on: this one must end at once."""


@dataclass
class _Observed:
    """The lease as last read, and since when it has looked like that."""

    lease: Manifest
    since: float  # event loop time


class Elector:
    """One candidate. `acquire`, then `hold` until it raises; `release` on the way out."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        name: str,
        identity: str,
        lease_seconds: float,
        renew_seconds: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`identity` is unique to this process, not to its pod: a restarted container is another candidate.

        `now` is for people who read the lease; no decision depends on it.
        """
        self._client = client
        self._namespace, self._name, self._identity = namespace, name, identity
        self._lease_seconds, self._renew_seconds = lease_seconds, renew_seconds
        self._now = now
        self._observed: _Observed | None = None
        self._renewed = 0.0  # event loop time at which the last successful write began
        self.leading = False

    def valid(self) -> bool:
        """Whether nobody else can hold the lease yet: to be asked before every write."""
        return self.leading and asyncio.get_running_loop().time() < self._until()

    def _until(self) -> float:
        """Event loop time."""
        return self._renewed + self._lease_seconds * HOLD_SHARE

    async def acquire(self) -> None:
        """Returns when this process holds the lease."""
        waiting_for = ""
        while True:
            began = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(self._renew_seconds * 2):
                    if await self._try_acquire():
                        self.leading = True
                        logger.info("leading: lease %s/%s is ours", self._namespace, self._name)
                        return
            except (errors.Conflict, errors.AlreadyExists):
                pass  # somebody was faster
            except (errors.ApiError, TimeoutError) as error:
                logger.warning("can't read or take lease %s/%s: %s", self._namespace, self._name, error or "no answer")
            if (holder := self.holder()) != waiting_for:
                waiting_for = holder
                logger.info("standing by: lease %s/%s is held by %s", self._namespace, self._name, holder or "nobody")
            await asyncio.sleep(max(0.0, began + self._renew_seconds - asyncio.get_running_loop().time()))

    async def hold(self) -> None:
        """Renew until cancelled. Raises LeaseLost."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.0, self._renewed + self._renew_seconds - loop.time()))
            deadline = self._until()
            while True:
                began = loop.time()
                if began >= deadline:
                    self._lose(f"no renewal succeeded for {self._lease_seconds * HOLD_SHARE:.1f} s")
                try:
                    async with asyncio.timeout_at(min(deadline, began + self._renew_seconds * 2)):
                        await self._renew(began)
                    break
                except (errors.ApiError, TimeoutError) as error:
                    logger.warning("lease not renewed: %s", error or "no answer")
                await asyncio.sleep(min(self._renew_seconds / 4, max(0.0, deadline - loop.time())))

    async def release(self) -> None:
        """Let the next candidate take over at once. Best effort: else the lease runs out."""
        if not self.leading or self._observed is None:
            return
        self.leading = False
        lease = self._lease(self._observed.lease, holder="", duration=1)
        try:
            async with asyncio.timeout(self._renew_seconds):
                await self._client.replace(LEASE, lease)
            logger.info("lease %s/%s released", self._namespace, self._name)
        except (errors.ApiError, TimeoutError) as error:
            logger.warning("lease not released, it runs out by itself: %s", error or "no answer")

    def holder(self) -> str:
        """Who held it when last read; empty for nobody."""
        return str(self._observed.lease["spec"].get("holderIdentity") or "") if self._observed else ""

    async def _try_acquire(self) -> bool:
        began = asyncio.get_running_loop().time()
        try:
            await self._read()
        except errors.NotFound:
            self._wrote(await self._client.create(LEASE, self._lease(None, self._identity)), began)
            return True
        assert self._observed is not None
        duration = float(self._observed.lease["spec"].get("leaseDurationSeconds") or self._lease_seconds)
        holder = self.holder()
        # Our own name there is a write of ours whose answer got lost: identities are unique.
        if holder not in ("", self._identity) and began < self._observed.since + duration:
            return False
        self._wrote(await self._client.replace(LEASE, self._lease(self._observed.lease, self._identity)), began)
        return True

    async def _renew(self, began: float) -> None:
        assert self._observed is not None
        try:
            self._wrote(await self._client.replace(LEASE, self._lease(self._observed.lease, self._identity)), began)
        except (errors.Conflict, errors.NotFound):
            # An answer that got lost, somebody's annotation, or the end: a read tells.
            try:
                await self._read()
            except errors.NotFound:
                self._wrote(await self._client.create(LEASE, self._lease(None, self._identity)), began)
                return
            if self.holder() != self._identity:
                self._lose(f"{self.holder() or 'nobody'} holds it now")
            raise

    async def _read(self) -> None:
        lease = await self._client.get(LEASE, self._namespace, self._name)
        before = self._observed
        if before is None or before.lease["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"]:
            self._observed = _Observed(lease, asyncio.get_running_loop().time())

    def _wrote(self, lease: Manifest, began: float) -> None:
        self._observed = _Observed(lease, began)
        self._renewed = began

    def _lose(self, why: str) -> None:
        self.leading = False
        raise LeaseLost(f"lease {self._namespace}/{self._name} is lost: {why}; this process ends, a standby takes over")

    def _lease(self, before: Manifest | None, holder: str, duration: float | None = None) -> Manifest:
        """The lease to write. With `before`, only if it still is what was read."""
        moment = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        metadata = dict(before["metadata"]) if before else {"namespace": self._namespace, "name": self._name}
        metadata.pop("managedFields", None)
        spec = dict(before["spec"]) if before else {}
        if spec.get("holderIdentity") != holder:
            spec["acquireTime"] = moment
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (1 if holder and before else 0)
        spec |= {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(duration or self._lease_seconds)),
            "renewTime": moment,
        }
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}
