"""`python -m bigmodel.server.store ls | gc`: what a namespace keeps in the store; `gc --delete` removes what is not
needed.

Runs in a pod with the store's login, because the user's machine has none. Prints one JSON object a line, so that
whoever started it can show a table. Exit code 2: it refuses to delete, and says why.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

from bigmodel.api.names import ENV_STORE
from bigmodel.api.run import StoreLocation
from bigmodel.artifact import stores
from bigmodel.artifact.retention import OWNER, ForeignStore, artefacts, check_owner, why_kept

Print = Callable[[dict[str, Any]], None]


def collect(
    store: stores.Store, namespace: str, named: Collection[str], delete: bool, now: datetime, tell: Print
) -> None:
    """Every artefact of the namespace, oldest first; with `delete`, those that are not kept go. Raises StoreError."""
    for one in artefacts(namespace, store.entries(namespace)):
        kept = why_kept(one, named, now)
        if delete and kept is None:
            store.delete(one.deletion_order())
        tell(
            {
                "digest": one.digest,
                "job": one.job,
                "uid": one.uid,
                "sizeBytes": one.size_bytes,
                "writtenAt": one.newest.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "committed": one.committed,
                "kept": kept,
                "deleted": delete and kept is None,
            }
        )


def own(store: stores.Store, namespace: str, cluster: str, claim: bool) -> None:
    """Returns where the namespace's prefix is this cluster's own. Raises ForeignStore, StoreError."""
    key = f"{namespace}/{OWNER}"
    if claim:
        with contextlib.suppress(stores.AlreadyExists):
            store.create(key, json.dumps({"cluster": cluster}).encode())
    try:
        mark: bytes | None = store.read(key, 4096)
    except stores.ObjectNotFound:
        mark = None
    check_owner(mark, cluster, namespace)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bigmodel.server.store", description="See the module's docstring.")
    parser.add_argument("command", choices=["ls", "gc"])
    parser.add_argument("--namespace", required=True, help="only below its prefix")
    parser.add_argument("--named", default="-", help="file of digests in use, one a line; default: stdin")
    parser.add_argument("--cluster", help="UID of namespace kube-system: whose prefix it must be")
    parser.add_argument("--delete", action="store_true", help="remove what is not kept; without it, only say so")
    parser.add_argument("--claim", action="store_true", help="mark the prefix as this cluster's own, where nobody has")
    arguments = parser.parse_args()
    delete = arguments.command == "gc" and arguments.delete
    if delete and not arguments.cluster:
        parser.error("--delete needs --cluster")
    with sys.stdin if arguments.named == "-" else open(arguments.named) as lines:
        named = frozenset(line.strip() for line in lines if line.strip())
    try:
        store = stores.open_store(StoreLocation.model_validate_json(os.environ[ENV_STORE]), os.environ)
        if delete:
            own(store, arguments.namespace, arguments.cluster, arguments.claim)
        collect(store, arguments.namespace, named, delete, datetime.now(UTC), lambda line: print(json.dumps(line)))  # noqa: T201
    except ForeignStore as error:
        print(f"refused: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except stores.StoreError as error:
        print(str(error), file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
