"""kopf as the trigger for the two custom kinds: an event of theirs queues the object's key, and nothing else.

kopf runs in a thread with an event loop of its own, because an operator that ends cancels every task of its loop, ours
included, and takes over the signals of the main thread. When its watch dies it is started again here: a restart of the
container would meet CrashLoopBackOff.

What it must not do, it can't: no handler that stores state is registered (no finalizer, no annotation), both storages
write nothing, events are not posted, peering is off.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import kopf
from kubernetes.aio.client import Configuration

from bigmodel.controller import metrics
from bigmodel.controller.decision import BIG_MODEL_JOB, BIG_MODEL_SERVICE, Key, ResourceKind
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client
from bigmodel.controller.kube.discovery import served
from bigmodel.controller.kube.reflector import SERVER_SECONDS, SILENCE_SECONDS

KINDS = (BIG_MODEL_JOB, BIG_MODEL_SERVICE)
RESTART_SECONDS = 1.0
NOT_SERVED_SECONDS = 2.0

logger = logging.getLogger(__name__)
logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it warns that signals are not its business
logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # a line for every event of every object


async def run(
    client: Client, configuration: Configuration, namespaces: Sequence[str], add: Callable[[Key], None]
) -> None:
    """Call `add`, in this event loop, for every object of both kinds that is there, comes, changes or goes.

    Until cancelled. Waits for the kinds to be installed.
    """
    while True:
        await installed(client)
        try:
            await _operator(configuration, namespaces, add)
            logger.warning("kopf ended, starting it again")
        except Exception as error:  # whatever it died of, the cure is the same
            logger.warning("kopf ended, starting it again: %s", error)
        metrics.KOPF_RESTARTS.inc()
        await asyncio.sleep(RESTART_SECONDS)


async def installed(client: Client) -> None:
    """Returns when the API server knows both kinds: kopf looks for them only once, at its start."""
    told = False
    while True:
        try:
            missing = [kind.kind for kind in KINDS if not await served(client, kind)]
            if not missing:
                return
            text = f"{' and '.join(missing)} not installed: apply the chart's CRDs"
        except errors.ApiError as error:
            text = str(error)
        if not told:
            logger.warning("waiting for both kinds: %s", text)
            told = True
        await asyncio.sleep(NOT_SERVED_SECONDS)


async def _operator(configuration: Configuration, namespaces: Sequence[str], add: Callable[[Key], None]) -> None:
    """One life of kopf in a thread of its own. Raises what it died of; cancelled, it stops the thread first."""
    ours = asyncio.get_running_loop()
    ended: asyncio.Future[None] = ours.create_future()
    stop: list[Callable[[], object]] = []

    def end(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_exception(error) if error else ended.set_result(None)

    async def live() -> None:
        theirs = asyncio.get_running_loop()
        # An event of kopf's own loop. It would wait for a flag of another thread in an executor, which then never ends:
        # a kopf that died would look alive for ever.
        flag = asyncio.Event()
        stop.append(lambda: theirs.call_soon_threadsafe(flag.set))
        await kopf.operator(
            registry=_registry(configuration, lambda key: ours.call_soon_threadsafe(add, key)),
            settings=_settings(),
            standalone=True,  # leadership is our Lease's business
            # Peering is off; but without a name kopf asks for that of the user, and a container's has none.
            identity=cast(Any, "bigmodel"),
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=flag,
        )

    def thread() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(live())
        except Exception as raised:
            error = raised
        stop.clear()
        if not ours.is_closed():
            ours.call_soon_threadsafe(end, error)

    # A daemon: should kopf hang on its way out, the process still ends.
    threading.Thread(target=thread, name="kopf", daemon=True).start()
    try:
        await ended
    finally:
        for tell in stop:
            tell()


def _registry(configuration: Configuration, add: Callable[[Key], object]) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        """The credentials of our own client; asked again after a 401, when a token has been renewed."""
        header = await configuration.get_api_key_with_prefix("BearerToken") or ""
        scheme, token = header.split(" ", 1) if " " in header else ("", header)
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            scheme=scheme or None,
            token=token or None,
        )

    def watch(kind: ResourceKind) -> None:
        group, version = kind.api_version.split("/")

        @kopf.on.event(group, version, kind.plural, registry=registry)
        async def changed(*, namespace: str | None, name: str, **_: Any) -> None:
            add(Key(kind.kind, namespace or "", name))

    for kind in KINDS:
        watch(kind)
    return registry


def _settings() -> kopf.OperatorSettings:
    """kopf's settings that differ from its defaults, each with the reason."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # no rights to watch CRDs and namespaces are needed; `installed` replaces it
    settings.posting.enabled = False  # kube.events sends each transition once
    settings.watching.server_timeout = SERVER_SECONDS  # as our own reflectors
    settings.watching.inactivity_timeout = SILENCE_SECONDS
    settings.watching.connect_timeout = 10.0
    settings.networking.request_timeout = 10.0  # the default of 300 s outlives the lease by far
    settings.queueing.idle_timeout = 1.0  # seconds that an object's task lives after its last event; 5 cost memory
    settings.process.ultimate_exiting_timeout = None  # else it would kill this process when it is stopped
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()
    return settings


class _NoDiffBase(kopf.DiffBaseStorage):
    """No handler compares with the last handled state: none is computed, none stored on users' objects."""

    def build(self, *, body: kopf.Body, extra_fields: object = None, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """No handler is retried by kopf: nothing to remember."""

    def fetch(self, **_: Any) -> kopf.ProgressRecord | None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence
