"""An event's name follows from what it says about whom."""

from datetime import UTC, datetime

from bigmodel.controller.decision import Event, Manifest
from bigmodel.controller.kube.events import event_manifest

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def owner(uid: str = "u1") -> Manifest:
    metadata = {"name": "mlp", "namespace": "ml", "uid": uid}
    return {"apiVersion": "bigmodel.io/v1alpha1", "kind": "BigModelJob", "metadata": metadata}


def name(event: Event, uid: str = "u1", at: datetime = AT) -> str:
    return str(event_manifest(owner(uid), event, at, "pod-1")["metadata"]["name"])


def test_the_same_transition_has_the_same_name_whenever_it_is_told() -> None:
    one = Event("Normal", "Started", "2 pods", about="a1-started")
    assert name(one) == name(Event("Normal", "Started", "other words", about="a1-started"), at=AT.replace(year=2027))
    assert len({name(one), name(one, uid="u2"), name(Event("Normal", "Started", "", about="a2-started"))}) == 3


def test_the_whole_event() -> None:
    event = Event("Warning", "Failed", "x" * 1020 + "ääää", about="a1-failed")
    manifest = event_manifest(owner(), event, AT, "pod-1")
    assert manifest["eventTime"] == "2026-01-02T03:04:05.678901Z"
    assert manifest["regarding"] == {
        "apiVersion": "bigmodel.io/v1alpha1",
        "kind": "BigModelJob",
        "namespace": "ml",
        "name": "mlp",
        "uid": "u1",
    }
    note = manifest["note"]
    assert (len(note.encode()) <= 1024, note.endswith("…"), note[:1020]) == (True, True, "x" * 1020)
