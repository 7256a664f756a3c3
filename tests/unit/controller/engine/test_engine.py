"""Passes over objects: convergence, rest, failures, refusals, and crashes after every single write."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from bigmodel.api.names import ANNOTATION_HASH
from bigmodel.controller.decision import BIG_MODEL_JOB, POD, SERVICE, Decision, Event, Manifest, Relabel, ResourceKind
from bigmodel.controller.engine import related_key
from bigmodel.controller.kube import errors
from tests.unit.controller.engine.gang import KEY, GangReconciler, Seen, engine_of, job, owner_reference, pod
from tests.unit.controller.engine.memory_api import MemoryApi
from tests.unit.controller.engine.virtual_time import run

QUIET_SECONDS = 30.0  # longer than every back-off that a settled object could still be in


async def settle() -> None:
    await asyncio.sleep(QUIET_SECONDS)


def pods_of(api: MemoryApi) -> list[str]:
    return sorted(name for kind, _, name in api.objects if kind == "Pod")


def status_of(api: MemoryApi) -> Manifest:
    return api.objects["BigModelJob", "ml", "mlp"].get("status") or {}


def test_children_and_status_become_what_is_wanted_and_then_nothing_is_written() -> None:
    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job(nodes=3))
        async with engine_of(api, GangReconciler()) as running:
            running.queue.add(KEY)
            await settle()
            assert pods_of(api) == ["mlp-0", "mlp-1", "mlp-2"]
            assert status_of(api) == {"observedGeneration": 1, "pods": 3}
            before = len(api.calls)
            for _ in range(5):
                running.queue.add(KEY)
                await asyncio.sleep(1)
            assert {verb for verb, *_ in api.calls[before:]} == {"get"}

    run(main())


def test_own_writes_are_seen_by_the_next_pass_though_the_watch_is_silent() -> None:
    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job(nodes=2))
        reconciler = GangReconciler()
        async with engine_of(api, reconciler) as running:
            await running.pods.synced()
            await api.break_watches()
            running.queue.add(KEY)
            await asyncio.sleep(0.05)
            assert [len(seen.pods) for seen in reconciler.passes] == [0, 2]
            assert api.writes()["create", "Pod"] == 2

    run(main())


def test_a_child_that_went_comes_back_and_a_surplus_one_goes() -> None:
    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job(nodes=2))
        async with engine_of(api, GangReconciler()) as running:
            running.queue.add(KEY)
            await settle()
            await api.remove(POD, "ml", "mlp-0")
            await settle()
            assert pods_of(api) == ["mlp-0", "mlp-1"]
            await api.put(BIG_MODEL_JOB, {**api.objects["BigModelJob", "ml", "mlp"], "spec": {"nodes": 1}})
            running.queue.add(KEY)
            await settle()
            assert pods_of(api) == ["mlp-0"]

    run(main())


@pytest.mark.parametrize("executed", [True, False], ids=["after the write", "before the write"])
def test_killed_at_any_write_the_next_process_ends_in_the_same_state(executed: bool) -> None:
    """Every write of a whole life (create, scale down, delete) is tried as the last one of a process."""

    async def life(kill_at: int | None) -> tuple[list[str], Manifest, int]:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job(nodes=3))
        writes = 0

        class Client:
            def __getattr__(self, name: str) -> Any:
                method = getattr(api, name)
                if name in ("get", "pages", "watch"):
                    return method

                async def write(*args: Any, **kwargs: Any) -> Any:
                    nonlocal writes
                    writes += 1
                    if writes == kill_at and not executed:
                        await dead()
                    answer = await method(*args, **kwargs)
                    if writes == kill_at:
                        await dead()
                    return answer

                return write

        async def dead() -> None:
            killed.set()
            await asyncio.Event().wait()

        for nodes in (3, 1):
            await api.put(BIG_MODEL_JOB, {**api.objects["BigModelJob", "ml", "mlp"], "spec": {"nodes": nodes}})
            for _ in range(2):  # the process, and its successor
                killed = asyncio.Event()
                async with engine_of(Client(), GangReconciler()) as running:
                    running.queue.add(KEY)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(killed.wait(), QUIET_SECONDS)
        return pods_of(api), status_of(api), writes

    async def main() -> None:
        undisturbed = await life(None)
        assert undisturbed[:2] == (["mlp-0"], {"observedGeneration": 1, "pods": 1})
        for kill_at in range(1, undisturbed[2] + 1):
            assert (await life(kill_at))[:2] == undisturbed[:2], f"killed at write {kill_at}"

    run(main())


def failing(verb: str, error: Exception, until: float = float("inf")) -> Callable[[str, ResourceKind, str], Any]:
    loop = asyncio.get_running_loop()
    return lambda v, kind, name: error if v == verb and kind != BIG_MODEL_JOB and loop.time() < until else None


@pytest.mark.parametrize(
    ("error", "most"),
    [
        (errors.Unavailable("500", 500), 80),
        (errors.Forbidden("no", 403), 25),
        (errors.QuotaExceeded("exceeded quota", 403), 25),
        (errors.WebhookFailed("failed calling webhook", 500), 25),
        (RuntimeError("a bug"), 25),
    ],
    ids=["outage", "forbidden", "quota", "webhook", "bug"],
)
def test_a_permanent_failure_costs_at_most_a_write_a_second_and_ends_when_its_cause_does(
    error: Exception, most: int
) -> None:
    """I9: the back-off grows; but nobody tells when an API server is back."""

    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job(nodes=1))
        loop = asyncio.get_running_loop()
        api.fault = failing("create", error, until=loop.time() + 600)
        async with engine_of(api, GangReconciler()) as running:
            running.queue.add(KEY)
            for seconds in (10, 60, 500):
                before = sum(api.writes().values())
                await asyncio.sleep(seconds)
                assert sum(api.writes().values()) - before <= seconds
            assert sum(api.writes().values()) < most
            await asyncio.sleep(120)
            assert pods_of(api) == ["mlp-0"]
            assert status_of(api) == {"observedGeneration": 1, "pods": 1}

    run(main())


@pytest.mark.parametrize("seconds", [10, 31, 60, 300])
def test_an_outage_is_over_ten_seconds_after_it_ended(seconds: float) -> None:
    """C10, C20: however long the API server was away."""

    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job(nodes=1))
        until = asyncio.get_running_loop().time() + seconds
        api.fault = lambda verb, kind, name: (
            errors.Unavailable("connection refused") if asyncio.get_running_loop().time() < until else None
        )
        async with engine_of(api, GangReconciler()) as running:
            running.queue.add(KEY)
            await asyncio.sleep(seconds + 10)
            assert pods_of(api) == ["mlp-0"]

    run(main())


def test_what_the_api_server_refuses_is_shown_to_the_reconciler_at_once_and_taken_back_when_it_succeeds() -> None:
    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job(nodes=2))
        quota = errors.QuotaExceeded("exceeded quota: gpus", 403)
        api.fault = lambda verb, kind, name: quota if (verb, name) == ("create", "mlp-1") else None
        async with engine_of(api, GangReconciler()) as running:
            running.queue.add(KEY)
            await asyncio.sleep(0.5)
            assert status_of(api) == {"observedGeneration": 1, "pods": 1, "refused": ["mlp-1 403"]}
            api.fault = lambda verb, kind, name: None
            await asyncio.sleep(60)
            assert status_of(api) == {"observedGeneration": 1, "pods": 2}

    run(main())


def test_a_foreign_object_of_the_wanted_name_is_left_alone_and_reported() -> None:
    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job(nodes=2))
        foreign = {"kind": "Pod", "metadata": {"name": "mlp-1", "namespace": "ml"}, "spec": {}}
        await api.put(POD, foreign)
        reconciler = GangReconciler()
        async with engine_of(api, reconciler) as running:
            running.queue.add(KEY)
            await asyncio.sleep(5)
            assert status_of(api)["refused"] == ["mlp-1 409"]
            assert "mlp-1 exists and belongs to somebody else" in reconciler.passes[-1].rejections[0].message
            assert "ownerReferences" not in api.objects["Pod", "ml", "mlp-1"]["metadata"]

    run(main())


def test_an_existing_child_of_ours_that_the_reflector_has_not_seen_is_success() -> None:
    async def main() -> None:
        api = MemoryApi()
        owner = await api.put(BIG_MODEL_JOB, job(nodes=1))
        async with engine_of(api, GangReconciler()) as running:
            await running.pods.synced()
            await api.break_watches()
            await asyncio.sleep(0.01)
            await api.put(POD, pod(owner, "mlp-0"))  # by a predecessor that died before the answer
            running.queue.add(KEY)
            await asyncio.sleep(0.1)
            assert status_of(api) == {"observedGeneration": 1, "pods": 1}

    run(main())


def test_a_status_conflict_is_answered_by_looking_again() -> None:
    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job(nodes=1))
        meddled = 0

        def somebody_else_writes(verb: str, kind: ResourceKind, name: str) -> None:
            nonlocal meddled
            if verb == "apply status" and meddled < 3:
                meddled += 1
                api.objects["BigModelJob", "ml", "mlp"]["metadata"]["resourceVersion"] = str(10_000 + meddled)

        api.fault = somebody_else_writes
        async with engine_of(api, GangReconciler()) as running:
            running.queue.add(KEY)
            await asyncio.sleep(3)
            assert meddled == 3
            assert status_of(api) == {"observedGeneration": 1, "pods": 1}

    run(main())


def test_an_object_that_is_being_deleted_gets_no_more_children() -> None:
    async def main() -> None:
        api = MemoryApi()
        dying = job(nodes=2)
        dying["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        await api.put(BIG_MODEL_JOB, dying)
        async with engine_of(api, GangReconciler()) as running:
            running.queue.add(KEY)
            await settle()
            assert api.writes() == {}

    run(main())


def test_an_object_that_is_gone_is_forgotten_and_a_new_one_of_its_name_starts_afresh() -> None:
    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job(nodes=1))
        api.fault = failing("create", errors.Invalid("bad", 422))
        reconciler = GangReconciler()
        async with engine_of(api, reconciler) as running:
            running.queue.add(KEY)
            await asyncio.sleep(1)
            assert reconciler.passes[-1].rejections
            await api.remove(BIG_MODEL_JOB, "ml", "mlp")
            running.queue.add(KEY)
            await asyncio.sleep(600)
            looks = api.count("get")
            await asyncio.sleep(3600)
            assert api.count("get") == looks  # nobody asks for it any more
            await api.put(BIG_MODEL_JOB, job(nodes=1))
            count = len(reconciler.passes)
            running.queue.add(KEY)
            await asyncio.sleep(0.05)
            assert reconciler.passes[count].rejections == ()

    run(main())


def test_one_object_that_always_fails_does_not_hold_up_another() -> None:
    class Picky(GangReconciler):
        def decide(self, snapshot: Seen, now: datetime) -> Decision:
            if snapshot.owner["metadata"]["name"] == "broken":
                raise ZeroDivisionError("a rule's mistake")
            return super().decide(snapshot, now)

    async def main() -> None:
        api = MemoryApi()
        for name in ("broken", "mlp"):
            await api.put(BIG_MODEL_JOB, job(name, nodes=1))
        async with engine_of(api, Picky()) as running:
            running.queue.add(replace(KEY, name="broken"))
            running.queue.add(KEY)
            await asyncio.sleep(10)
            assert pods_of(api) == ["mlp-0"]

    run(main())


def test_an_object_is_looked_at_now_and_then_without_a_reason() -> None:
    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job(nodes=1))
        reconciler = GangReconciler()
        async with engine_of(api, reconciler) as running:
            running.queue.add(KEY)
            await settle()
            settled = len(reconciler.passes)
            await asyncio.sleep(3600)
            assert 6 <= len(reconciler.passes) - settled <= 20

    run(main())


def test_a_rule_that_never_settles_does_not_take_the_machine() -> None:
    class Restless(GangReconciler):
        def decide(self, snapshot: Seen, now: datetime) -> Decision:
            self.passes.append(snapshot)
            return Decision(again=True)

    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job())
        reconciler = Restless()
        async with engine_of(api, reconciler) as running:
            running.queue.add(KEY)
            await asyncio.sleep(60)
            assert len(reconciler.passes) < 25

    run(main())


def test_kinds_are_created_in_order_and_a_refused_one_holds_back_the_rest() -> None:
    class Ordered(GangReconciler):
        children = (POD, SERVICE)

        def decide(self, snapshot: Seen, now: datetime) -> Decision:
            service = {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "mlp", "namespace": "ml", "ownerReferences": [owner_reference(snapshot.owner)]},
            }
            return Decision(create=(service, pod(snapshot.owner, "mlp-0"), pod(snapshot.owner, "mlp-1")))

    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job())
        api.latency = 0.1
        api.fault = lambda verb, kind, name: errors.Invalid("no", 422) if (verb, kind) == ("create", SERVICE) else None
        async with engine_of(api, Ordered()) as running:
            running.queue.add(KEY)
            await asyncio.sleep(5)
            assert pods_of(api) == []
            api.fault = lambda verb, kind, name: None
            await asyncio.sleep(60)
            assert pods_of(api) == ["mlp-0", "mlp-1"]

    run(main())


def service(owner: Manifest, selector: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "mlp", "namespace": "ml", "ownerReferences": [owner_reference(owner)]},
        "spec": {"selector": {"revision": selector}},
    }


class Selecting(GangReconciler):
    """Creates its Service, then applies the selector that the spec names."""

    children = (POD, SERVICE)

    async def observe(self, owner: Manifest, children: Any, rejections: Any) -> Seen:
        return Seen(owner, children.of(SERVICE), rejections)

    def decide(self, snapshot: Seen, now: datetime) -> Decision:
        self.passes.append(snapshot)
        wanted = service(snapshot.owner, snapshot.owner["spec"]["selector"])
        return Decision(apply=(wanted,)) if snapshot.pods else Decision(create=(wanted,))


def test_a_change_is_applied_once_by_uid_and_an_equal_manifest_never() -> None:
    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, {**job(), "spec": {"selector": "1"}})
        async with engine_of(api, Selecting()) as running:
            for selector in ("1", "2"):
                await api.put(
                    BIG_MODEL_JOB, {**api.objects["BigModelJob", "ml", "mlp"], "spec": {"selector": selector}}
                )
                for _ in range(3):
                    running.queue.add(KEY)
                    await asyncio.sleep(1)
            live = api.objects["Service", "ml", "mlp"]
            assert live["spec"] == {"selector": {"revision": "2"}}
            assert ANNOTATION_HASH in live["metadata"]["annotations"]
            assert api.writes() == {("create", "Service"): 1, ("apply", "Service"): 1}

    run(main())


def test_an_apply_never_takes_over_a_foreign_object() -> None:
    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, {**job(), "spec": {"selector": "1"}})
        reconciler = Selecting()
        async with engine_of(api, reconciler) as running:
            running.queue.add(KEY)
            await asyncio.sleep(1)
            await api.break_watches()
            await api.remove(SERVICE, "ml", "mlp")  # and somebody else is faster than we
            await api.put(SERVICE, {"kind": "Service", "metadata": {"name": "mlp", "namespace": "ml"}, "spec": {}})
            await api.put(BIG_MODEL_JOB, {**api.objects["BigModelJob", "ml", "mlp"], "spec": {"selector": "2"}})
            running.queue.add(KEY)
            await asyncio.sleep(0.1)
            assert api.objects["Service", "ml", "mlp"]["spec"] == {}
            assert reconciler.passes[-1].rejections[0].code == 409

    run(main())


def test_a_relabel_is_written_once_and_never_to_a_successor_of_that_name() -> None:
    class Relabelling(GangReconciler):
        uid = ""

        def decide(self, snapshot: Seen, now: datetime) -> Decision:
            self.passes.append(snapshot)
            return Decision(relabel=(Relabel(POD, "mlp-0", self.uid, {"bigmodel.io/active": "false"}),))

    async def main() -> None:
        api = MemoryApi()
        owner = await api.put(BIG_MODEL_JOB, job())
        reconciler = Relabelling()
        reconciler.uid = (await api.put(POD, pod(owner, "mlp-0")))["metadata"]["uid"]
        async with engine_of(api, reconciler) as running:
            for _ in range(3):
                running.queue.add(KEY)
                await asyncio.sleep(1)
            assert api.objects["Pod", "ml", "mlp-0"]["metadata"]["labels"]["bigmodel.io/active"] == "false"
            assert api.count("patch") == 1
            await api.remove(POD, "ml", "mlp-0")
            await api.put(POD, pod(owner, "mlp-0"))
            running.queue.add(KEY)
            await asyncio.sleep(3)
            assert "bigmodel.io/active" not in api.objects["Pod", "ml", "mlp-0"]["metadata"]["labels"]

    run(main())


def test_a_delete_by_an_old_uid_spares_the_successor_of_that_name() -> None:
    async def main() -> None:
        api = MemoryApi()
        owner = await api.put(BIG_MODEL_JOB, job(nodes=1))
        async with engine_of(api, GangReconciler()) as running:
            running.queue.add(KEY)
            await settle()
            await api.break_watches()
            await asyncio.sleep(0.01)
            await api.remove(POD, "ml", "mlp-0")
            successor = await api.put(POD, pod(owner, "mlp-0"))
            await api.put(BIG_MODEL_JOB, {**api.objects["BigModelJob", "ml", "mlp"], "spec": {"nodes": 0}})
            running.queue.add(KEY)
            await asyncio.sleep(0.1)
            assert api.count("delete") == 0
            assert api.objects["Pod", "ml", "mlp-0"]["metadata"]["uid"] == successor["metadata"]["uid"]

    run(main())


def test_events_follow_the_status_and_are_sent_once() -> None:
    class Telling(GangReconciler):
        def decide(self, snapshot: Seen, now: datetime) -> Decision:
            event = Event("Normal", "Started", "2 pods", about="a1-started")
            return Decision(status={"phase": "Running"}, events=(event,))

    async def main() -> None:
        api = MemoryApi()
        await api.put(BIG_MODEL_JOB, job())
        async with engine_of(api, Telling()) as running:
            for _ in range(3):
                running.queue.add(KEY)
                await asyncio.sleep(1)
        async with engine_of(api, Telling()) as running:  # the next process says the same again
            running.queue.add(KEY)
            await asyncio.sleep(1)
        writes = [(verb, kind) for verb, kind, _ in api.calls if verb not in ("get", "list", "watch")]
        assert writes == [("apply status", "BigModelJob"), ("create", "Event"), ("create", "Event")]
        assert sum(kind == "Event" for kind, _, _ in api.objects) == 1

    run(main())


LABELS = {
    "a pod of a Deployment": ({"bigmodel.io/service": "mlp"}, [], "BigModelService"),
    "a slice of a job's Service": ({"bigmodel.io/job": "mlp"}, [], "BigModelJob"),
    "no label": ({}, [], None),
    "controlled by the resource itself": (
        {"bigmodel.io/job": "mlp"},
        [{"apiVersion": "bigmodel.io/v1alpha1", "kind": "BigModelJob", "name": "mlp", "uid": "1", "controller": True}],
        None,
    ),
}


@pytest.mark.parametrize(("labels", "owners", "kind"), LABELS.values(), ids=LABELS)
def test_related_objects_are_known_by_label(labels: dict[str, str], owners: list[Manifest], kind: str | None) -> None:
    key = related_key({"metadata": {"name": "x", "namespace": "ml", "labels": labels, "ownerReferences": owners}})
    assert (key.kind if key else None) == kind
