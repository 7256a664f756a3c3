"""Which artefacts of a namespace are still needed, and which may go. Pure.

A store outlives clusters and is shared by them: an artefact goes only when nobody names it, it is old, and its
namespace's prefix is known to be this cluster's own (`OWNER`).
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from bigmodel.artifact.layout import MANIFEST
from bigmodel.artifact.stores import Entry

OWNER = "owner.json"  # below the namespace's prefix: {"cluster": UID of namespace kube-system}
YOUNG = timedelta(days=7)  # a service may be about to name it


class ForeignStore(Exception):
    """The prefix is not known to be this cluster's own: nothing of it may be deleted."""


@dataclass(frozen=True)
class Stored:
    """One artefact's directory as it lies in the store; keys are below the store's URI."""

    job: str
    uid: str
    digest: str
    keys: tuple[str, ...]
    size_bytes: int
    newest: datetime  # when the last of its files was written
    committed: bool  # False: without a manifest it is no artefact, but what is left of a try

    def deletion_order(self) -> list[str]:
        """The manifest first: what is half deleted must not look whole."""
        return sorted(self.keys, key=lambda key: not key.endswith(f"/{MANIFEST}"))


def artefacts(namespace: str, entries: Iterable[Entry]) -> list[Stored]:
    """From a listing of the namespace's prefix, oldest first; checkpoints, which belong to their trainer, left out."""
    found: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        match entry.key.split("/"):
            case [owner, job, uid, "artifact", name, _, *_] if owner == namespace:
                found.setdefault((job, uid, name), []).append(entry)
    stored = [
        Stored(
            job,
            uid,
            f"sha256:{name}",
            tuple(entry.key for entry in files),
            sum(entry.size_bytes for entry in files),
            max(entry.modified for entry in files),
            any(entry.key.endswith(f"/artifact/{name}/{MANIFEST}") for entry in files),
        )
        for (job, uid, name), files in found.items()
    ]
    return sorted(stored, key=lambda one: (one.newest, one.digest))


def why_kept(one: Stored, named: Collection[str], now: datetime) -> str | None:
    """The reason in one word; None: it may go. `named`: digests of revision records and of jobs' statuses."""
    if one.digest in named:
        return "named"
    return "young" if now - one.newest < YOUNG else None


def check_owner(mark: bytes | None, cluster: str, namespace: str) -> None:
    """`mark`: the content of OWNER, None where there is none. Raises ForeignStore."""
    if mark is None:
        raise ForeignStore(
            f"nothing says whose {namespace}/ is: if no other cluster keeps models there, say so once with --claim"
        )
    try:
        owner = json.loads(mark)["cluster"]
    except (ValueError, KeyError, TypeError):
        raise ForeignStore(f"{namespace}/{OWNER} can't be read: correct or remove it by hand") from None
    if owner != cluster:
        raise ForeignStore(
            f"{namespace}/ belongs to cluster {owner}, this one is {cluster}: collect it from there, or give this "
            "cluster a prefix of its own (store.s3.prefix)"
        )
