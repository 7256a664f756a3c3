"""The store under a watch that lags behind our own writes, and under lists after a gap."""

from typing import Any

import pytest

from bigmodel.controller.kube.reflector import Store


def manifest(name: str, version: int, uid: str = "", owner: str = "", related: str = "") -> dict[str, Any]:
    owners = [{"uid": owner, "controller": True}] if owner else []
    return {
        "metadata": {
            "namespace": "ml",
            "name": name,
            "uid": uid or f"uid-{name}",
            "resourceVersion": str(version),
            "ownerReferences": owners,
            "labels": {"related": related} if related else {},
        }
    }


def store() -> Store:
    return Store(lambda one: one["metadata"]["labels"].get("related"))


def told(changes: list[Any]) -> list[tuple[str, str, str]]:
    return [
        (change.type, change.object["metadata"]["uid"], change.object["metadata"]["resourceVersion"])
        for change in changes
    ]


# Each step is (method, name, version, uid); wanted is what each step tells, left what is there at the end.
CASES: dict[str, tuple[list[tuple[str, str, int, str]], list[list[tuple[str, str, str]]], list[str]]] = {
    "our write, then the watch tells the same: one change": (
        [("written", "a", 5, ""), ("seen", "a", 5, "")],
        [[("ADDED", "uid-a", "5")], []],
        ["uid-a@5"],
    ),
    "the watch is faster than the answer to our write": (
        [("seen", "a", 7, ""), ("written", "a", 5, "")],
        [[("ADDED", "uid-a", "7")], []],
        ["uid-a@7"],
    ),
    "deleted before the answer to our write arrives: no ghost": (
        [("seen", "a", 5, ""), ("removed", "a", 6, ""), ("written", "a", 5, "")],
        [[("ADDED", "uid-a", "5")], [("DELETED", "uid-a", "5")], []],
        [],
    ),
    "our delete, then the watch tells of an older change: it is there until the watch says deleted": (
        [("seen", "a", 5, ""), ("removed", "a", 5, ""), ("seen", "a", 6, ""), ("removed", "a", 7, "")],
        [
            [("ADDED", "uid-a", "5")],
            [("DELETED", "uid-a", "5")],
            [("ADDED", "uid-a", "6")],
            [("DELETED", "uid-a", "6")],
        ],
        [],
    ),
    "re-created under the same name: the old one goes, the new one comes": (
        [("seen", "a", 5, "old"), ("seen", "a", 9, "new")],
        [[("ADDED", "old", "5")], [("DELETED", "old", "5"), ("ADDED", "new", "9")]],
        ["new@9"],
    ),
    "a late deletion of the predecessor spares the successor": (
        [("seen", "a", 9, "new"), ("removed", "a", 6, "old")],
        [[("ADDED", "new", "9")], []],
        ["new@9"],
    ),
}


@pytest.mark.parametrize(("steps", "wanted", "left"), CASES.values(), ids=CASES)
def test_writes_and_watch_events_in_any_order(steps: Any, wanted: Any, left: list[str]) -> None:
    one = store()
    assert [told(getattr(one, method)(manifest(name, version, uid))) for method, name, version, uid in steps] == wanted
    assert [f"{o['metadata']['uid']}@{o['metadata']['resourceVersion']}" for o in one.all()] == left


def test_a_list_after_a_gap_tells_what_was_deleted_and_keeps_newer_writes_of_ours() -> None:
    one = store()
    for changed in (
        manifest("stays", 3),
        manifest("changed", 4),
        manifest("deleted", 5),
        manifest("renewed", 6, "old"),
    ):
        one.seen(changed)
    one.written(manifest("ours", 30))
    changes = one.listed(
        [manifest("stays", 3), manifest("changed", 14), manifest("renewed", 15, "new"), manifest("born", 16)], "20"
    )
    assert sorted(told(changes)) == [
        ("ADDED", "new", "15"),
        ("ADDED", "uid-born", "16"),
        ("DELETED", "old", "6"),
        ("DELETED", "uid-deleted", "5"),
        ("MODIFIED", "uid-changed", "14"),
    ]
    assert sorted(o["metadata"]["name"] for o in one.all()) == ["born", "changed", "ours", "renewed", "stays"]


def test_a_list_of_one_namespace_says_nothing_of_another() -> None:
    one = store()
    elsewhere = manifest("a", 3)
    elsewhere["metadata"]["namespace"] = "other"
    one.seen(elsewhere)
    assert one.listed([], "20", "ml") == []
    assert told(one.listed([], "20", "other")) == [("DELETED", "uid-a", "3")]


def test_both_indexes_follow_every_change() -> None:
    one = store()
    one.seen(manifest("a", 1, owner="job-1"))
    one.seen(manifest("b", 2, owner="job-1", related="svc"))
    assert [o["metadata"]["name"] for o in one.owned_by("job-1")] == ["a", "b"]
    one.seen(manifest("b", 3, owner="job-2"))
    assert [o["metadata"]["name"] for o in one.owned_by("job-1")] == ["a"]
    assert [o["metadata"]["name"] for o in one.owned_by("job-2")] == ["b"]
    assert one.related_to("svc") == ()
    one.removed(manifest("a", 4))
    assert one.owned_by("job-1") == ()
    assert len(one) == 1
