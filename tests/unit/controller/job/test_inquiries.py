"""What is asked about jobs that wait: bounded, cached, and only while somebody waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from bigmodel.controller.decision import NODE, POD, Key, Manifest, ResourceKind
from bigmodel.controller.job import inquiries
from bigmodel.controller.job.inquiries import Inquiries, Stuck
from bigmodel.controller.job.observe import Complaint
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.events import EVENT

KEY = Key("BigModelJob", "ml", "mlp")
STUCK = Stuck("ml", "mlp-gyjmk-a1-0", "uid-1")


def an_event(note: str, at: str = "2026-03-01T12:00:00Z", reason: str = "FailedMount") -> Manifest:
    return {"reason": reason, "note": note, "deprecatedLastTimestamp": at}


def a_node(name: str) -> Manifest:
    return {"metadata": {"name": name}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}


@dataclass
class Cluster:
    """Answers lists as it is told; a page holds one object."""

    objects: dict[str, list[Manifest]] = field(default_factory=dict)
    refuses: errors.ApiError | None = None
    asked: list[tuple[str, str | None, str]] = field(default_factory=list)
    pages_taken: int = 0

    async def pages(
        self, kind: ResourceKind, namespace: str | None, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[tuple[list[Manifest], str]]:
        self.asked.append((kind.plural, namespace, field_selector))
        if self.refuses is not None:
            raise self.refuses
        for item in self.objects.get(kind.kind, []):
            self.pages_taken += 1
            yield [item], "1"


@dataclass
class Asking:
    """Inquiries with a clock that the test moves."""

    cluster: Cluster
    namespaces: tuple[str, ...] = ()
    now: float = 0.0
    changed: list[Key] = field(default_factory=list)

    def __post_init__(self) -> None:
        client: Any = self.cluster
        self.inquiries = Inquiries(client, self.namespaces, self.changed.append, lambda: self.now)

    async def after(self, seconds: float) -> None:
        self.now += seconds
        await self.inquiries.turn()


async def test_nothing_is_asked_while_nobody_waits() -> None:
    asking = Asking(Cluster())
    await asking.after(1000)
    assert asking.cluster.asked == []


async def test_many_jobs_that_wait_share_one_listing_and_are_told() -> None:
    asking = Asking(Cluster({NODE.kind: [a_node("gpu-1")]}))
    keys = [Key("BigModelJob", "ml", f"job-{n}") for n in range(50)]
    assert [asking.inquiries.room(key) for key in keys] == [None] * 50
    await asking.after(1)
    assert asking.cluster.asked == [("nodes", None, ""), ("pods", None, inquiries.BOUND_AND_ALIVE)]
    assert asking.changed == keys
    room = asking.inquiries.room(keys[0])
    assert room is not None
    assert [node.name for node in room.nodes] == ["gpu-1"]
    await asking.after(inquiries.ROOM_SECONDS - 1)
    assert len(asking.cluster.asked) == 2, "it is kept for a while"
    await asking.after(1)
    assert len(asking.cluster.asked) == 4
    assert asking.changed == keys, "the same again is no news"


async def test_what_was_seen_is_forgotten_with_the_last_job_that_waits() -> None:
    """The controller's memory does not grow with the cluster."""
    asking = Asking(Cluster({NODE.kind: [a_node("gpu-1")]}))
    asking.inquiries.room(KEY)
    await asking.after(1)
    asking.inquiries.placed(KEY)
    await asking.after(inquiries.ROOM_SECONDS)
    assert asking.inquiries.room(KEY) is None


async def test_a_job_that_is_gone_is_not_waited_for() -> None:
    asking = Asking(Cluster())
    asking.inquiries.room(KEY)
    asking.inquiries.complaint(KEY, STUCK)
    await asking.after(inquiries.FORGET_SECONDS + 1)
    assert asking.cluster.asked == []


async def test_a_cluster_too_large_is_not_listed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiries, "MOST_PODS", 3)
    pod = {"metadata": {}, "spec": {"nodeName": "gpu-1"}}
    asking = Asking(Cluster({NODE.kind: [a_node("gpu-1")], POD.kind: [pod] * 10}))
    asking.inquiries.room(KEY)
    await asking.after(1)
    room = asking.inquiries.room(KEY)
    assert room is not None
    assert (room.nodes, room.unknown) == ((), inquiries.TOO_LARGE)
    assert asking.cluster.pages_taken == 1 + 4


@pytest.mark.parametrize(
    ("namespaces", "refuses", "unknown"),
    [
        ((), errors.Forbidden("nodes is forbidden", 403), inquiries.NO_RIGHT),
        ((), errors.Unavailable("no answer in time"), "the API server did not answer"),
        (("ml",), None, inquiries.ONE_NAMESPACE),
    ],
    ids=["without the right", "without an answer", "in single namespaces"],
)
async def test_what_is_not_known_says_why(
    namespaces: tuple[str, ...], refuses: errors.ApiError | None, unknown: str
) -> None:
    asking = Asking(Cluster(refuses=refuses), namespaces)
    asking.inquiries.room(KEY)
    await asking.after(1)
    room = asking.inquiries.room(KEY)
    assert room is not None
    assert room.unknown == unknown


async def test_a_stuck_pod_is_asked_about_after_some_patience_and_its_newest_warning_is_told() -> None:
    """C31."""
    events = [
        an_event("it never was", "2026-03-01T12:00:09Z", "FailedScheduling"),
        an_event('configmap "my-code" not found', "2026-03-01T12:00:02Z"),
        an_event("older", "2026-03-01T12:00:01Z"),
    ]
    asking = Asking(Cluster({EVENT.kind: events}))

    async def pages(*_: Any, field_selector: str = "", **__: Any) -> AsyncIterator[tuple[list[Manifest], str]]:
        asking.cluster.asked.append(("events", "ml", field_selector))
        yield events, "1"

    asking.cluster.pages = pages  # type: ignore[method-assign]
    assert asking.inquiries.complaint(KEY, STUCK) is None
    await asking.after(inquiries.PATIENCE_SECONDS - 0.1)
    assert asking.cluster.asked == [], "most pods start by themselves"
    await asking.after(0.1)
    assert asking.cluster.asked == [("events", "ml", "regarding.uid=uid-1,type=Warning")]
    assert asking.changed == [KEY]
    assert asking.inquiries.complaint(KEY, STUCK) == Complaint("uid-1", 'configmap "my-code" not found')
    await asking.after(inquiries.COMPLAINT_SECONDS)
    assert asking.changed == [KEY], "the same again is no news"
    other = Stuck("ml", "mlp-gyjmk-a2-0", "uid-2")
    assert asking.inquiries.complaint(KEY, other) is None, "another pod's trouble"


async def test_events_that_may_not_be_read_are_no_trouble() -> None:
    asking = Asking(Cluster(refuses=errors.Forbidden("events is forbidden", 403)))
    asking.inquiries.complaint(KEY, STUCK)
    await asking.after(inquiries.PATIENCE_SECONDS)
    assert asking.inquiries.complaint(KEY, STUCK) is None
    assert asking.changed == []
