"""What the reconciler gathers for `decide`, and whom it tells."""

from __future__ import annotations

from typing import Any

from bigmodel.api.verdict import Verdict
from bigmodel.controller.decision import Children, Key, Manifest
from bigmodel.controller.kube.discovery import ClusterFacts
from bigmodel.controller.service.questions import IDLE_SECONDS, LOADING_SECONDS
from bigmodel.controller.service.reconciler import ServiceReconciler
from bigmodel.controller.service.verdicts import Target
from tests.unit.controller.service.world import DIGEST_A, SETTINGS, Health, World, a_job, a_service, serving_world


class Jobs:
    def __init__(self, *jobs: Manifest) -> None:
        self._jobs = {(job["metadata"]["namespace"], job["metadata"]["name"]): job for job in jobs}

    def get(self, namespace: str, name: str) -> Manifest | None:
        return self._jobs.get((namespace, name))

    def all(self) -> tuple[Manifest, ...]:
        return tuple(self._jobs.values())


class Verdicts:
    """`answers`, by pod, are heard only once somebody has waited for them."""

    def __init__(self, answers: dict[str, Verdict] | None = None) -> None:
        self.followed: list[tuple[Key, tuple[Target, ...]]] = []
        self._answers, self._heard = answers or {}, False

    def follow(self, key: Key, targets: tuple[Target, ...]) -> None:
        self.followed.append((key, targets))

    async def first_asked(self, key: Key) -> bool:
        waited, self._heard = not self._heard, True
        return waited

    def of(self, uid: str) -> Verdict | None:
        return self._answers.get(uid) if self._heard else None


def _children(world: World) -> Children:
    by_kind: dict[str, tuple[Manifest, ...]] = {}
    for (kind, _), manifest in world.objects.items():
        by_kind[kind] = (*by_kind.get(kind, ()), manifest)
    return Children(by_kind, {"Pod": tuple(world.pods.values()), "EndpointSlice": world.slices()})


async def test_services_are_looked_at_when_their_job_changes_and_not_when_another_does() -> None:
    reconciler = ServiceReconciler(SETTINGS, ClusterFacts(), Jobs(a_job()), Verdicts())
    owner = a_service()
    await reconciler.observe(owner, Children(), ())
    mlp = a_job()
    assert reconciler.followers_of(mlp) == (Key("BigModelService", "ml", "mlp"),)
    assert reconciler.followers_of(_elsewhere(mlp, namespace="other")) == ()
    owner["spec"]["model"] = {"fromJob": {"name": "next"}}
    await reconciler.observe(owner, Children(), ())
    assert reconciler.followers_of(mlp) == ()
    assert reconciler.followers_of(_elsewhere(mlp, name="next")) == (Key("BigModelService", "ml", "mlp"),)


def _elsewhere(job: Manifest, **metadata: Any) -> Manifest:
    return job | {"metadata": job["metadata"] | metadata}


async def test_services_are_looked_at_when_a_job_with_their_labels_comes_or_loses_them() -> None:
    labelled = _elsewhere(a_job(), labels={"model": "mlp", "team": "a"})
    reconciler = ServiceReconciler(
        SETTINGS, ClusterFacts(), Jobs(labelled, _elsewhere(a_job(), name="other")), Verdicts()
    )
    owner = a_service(model={"fromJobs": {"selector": {"matchLabels": {"model": "mlp"}}}})
    observed = await reconciler.observe(owner, Children(), ())
    assert observed.jobs == (labelled,)
    service = (Key("BigModelService", "ml", "mlp"),)
    assert reconciler.followers_of(labelled) == service
    assert reconciler.followers_of(_elsewhere(labelled, name="new")) == service
    assert reconciler.followers_of(_elsewhere(labelled, labels={})) == service
    assert reconciler.followers_of(_elsewhere(labelled, name="other", labels={})) == ()
    assert reconciler.followers_of(_elsewhere(labelled, namespace="other")) == ()


async def test_pods_are_asked_often_while_a_revision_is_on_its_way_else_rarely() -> None:
    world, verdicts = serving_world(), Verdicts()
    reconciler = ServiceReconciler(SETTINGS, ClusterFacts(), Jobs(a_job()), verdicts)
    await reconciler.observe(world.owner, _children(world), ())
    key, targets = verdicts.followed[-1]
    assert key == Key("BigModelService", "ml", "mlp")
    assert [(t.revision, t.digest, t.ip, t.ready) for t in targets] == [(1, DIGEST_A, "10.0.0.1", True)]
    assert [t.asked.every_seconds for t in targets] == [IDLE_SECONDS]
    world.health[2] = Health(ready=False)
    world.change_spec(batching={"maxBatchSize": 8})
    world.run()
    await reconciler.observe(world.owner, _children(world), ())
    assert {t.revision for t in verdicts.followed[-1][1]} == {1, 2}
    assert {t.asked.every_seconds for t in verdicts.followed[-1][1]} == {LOADING_SECONDS}


async def test_a_pod_that_only_carries_our_label_is_not_ours() -> None:
    world, verdicts = serving_world(), Verdicts()
    pod = next(iter(world.pods.values()))
    pod["metadata"]["ownerReferences"] = []
    reconciler = ServiceReconciler(SETTINGS, ClusterFacts(), Jobs(a_job()), verdicts)
    observed = await reconciler.observe(world.owner, _children(world), ())
    assert observed.pods == ()
    assert verdicts.followed[-1][1] == ()


async def test_a_spec_of_no_shape_at_all_is_a_condition_not_an_exception() -> None:
    reconciler = ServiceReconciler(SETTINGS, ClusterFacts(), Jobs(), Verdicts())
    for spec in ({}, {"model": None}, {"model": "x"}, {"model": {"fromJob": 3}}):
        observed = await reconciler.observe(a_service() | {"spec": spec}, Children(), ())
        assert observed.spec is None
        assert observed.problems


async def test_a_new_leader_judges_no_pod_before_it_has_asked_it() -> None:
    """C43: it has no verdict in memory, and must not tell of a pod that serves as if it were unverified."""
    world = serving_world()
    (uid,) = (pod["metadata"]["uid"] for pod in world.pods.values())
    verdict = Verdict(service="mlp", revision=1, digest=DIGEST_A, stage="Verified", message="64 samples")
    observed = await ServiceReconciler(SETTINGS, ClusterFacts(), Jobs(a_job()), Verdicts({uid: verdict})).observe(
        world.owner, _children(world), ()
    )
    assert [pod.verdict for pod in observed.pods] == [verdict]
