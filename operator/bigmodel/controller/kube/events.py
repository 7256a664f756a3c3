"""The story of an object, as events.k8s.io/v1: each line once, under a name that follows from what it says."""

import hashlib
import logging
from collections import OrderedDict
from datetime import datetime

from bigmodel.api.names import FIELD_MANAGER
from bigmodel.controller.decision import Event, Manifest, ResourceKind
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client

EVENT = ResourceKind("Event", "events.k8s.io/v1", "events")
NOTE_BYTES = 1024  # the API server's limit
REMEMBERED = 4096  # names sent by this process: a repeated decision costs no request

logger = logging.getLogger(__name__)


class Recorder:
    """Sends events. A failure to do so never fails a reconcile: status, not the story, is the truth."""

    def __init__(self, client: Client, instance: str) -> None:
        """`instance` names this process, for people."""
        self._client = client
        self._instance = instance
        self._sent: OrderedDict[str, None] = OrderedDict()

    async def send(self, regarding: Manifest, event: Event, now: datetime) -> None:
        """Send once: by this process, and by name across processes (409 is success)."""
        manifest = event_manifest(regarding, event, now, self._instance)
        key = manifest["metadata"]["name"]
        if key in self._sent:
            return
        try:
            await self._client.create(EVENT, manifest)
        except errors.AlreadyExists:
            pass
        except errors.ApiError as error:
            logger.warning("event %s not sent: %s", event.reason, error)
            return
        self._sent[key] = None
        if len(self._sent) > REMEMBERED:
            self._sent.popitem(last=False)


def event_manifest(regarding: Manifest, event: Event, now: datetime, instance: str) -> Manifest:
    """The same object, reason and `about` always give the same name; `now` and the note do not count."""
    metadata = regarding["metadata"]
    identity = f"{metadata['uid']}/{event.reason}/{event.about}"
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {
            "namespace": metadata["namespace"],
            "name": f"{metadata['name']}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
        },
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"bigmodel.io/{FIELD_MANAGER}",
        "reportingInstance": instance[:128],
        "action": event.action,
        "reason": event.reason,
        "type": event.type,
        "note": cut(event.note, NOTE_BYTES),
        "regarding": {
            "apiVersion": regarding["apiVersion"],
            "kind": regarding["kind"],
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
    }


def cut(text: str, limit_bytes: int) -> str:
    """At most so many bytes of UTF-8, with an ellipsis where something is missing."""
    encoded = text.encode()
    if len(encoded) <= limit_bytes:
        return text
    return encoded[: limit_bytes - 3].decode(errors="ignore") + "…"
