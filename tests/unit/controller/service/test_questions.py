"""Whom to ask, how often, about which windows; who has the host name, and who may roll out now."""

from __future__ import annotations

from datetime import timedelta

from bigmodel.api.verdict import Question
from bigmodel.controller.decision import HTTP_ROUTE, Manifest, ResourceKind
from bigmodel.controller.kube.discovery import ClusterFacts
from bigmodel.controller.service.questions import BESIDE_SECONDS, IDLE_SECONDS, SHARE_SECONDS, targets
from bigmodel.controller.service.reconciler import ServiceReconciler
from bigmodel.controller.service.verdicts import Asked
from bigmodel.controller.settings import Rollout
from tests.unit.controller.service.test_canary import ROUTE, canary_world, step
from tests.unit.controller.service.test_reconciler import Jobs, Verdicts, _children
from tests.unit.controller.service.world import DIGEST_B, SETTINGS, START, World, a_job, a_service, serving_world


def _asked(world: World) -> dict[int, Asked]:
    return {target.revision: target.asked for target in targets(world.observe())}


def test_a_candidate_with_a_share_is_asked_twice_a_second_about_its_step_and_the_whole_rollout() -> None:
    world = canary_world(replicas=1, gates={"online": {"p99Milliseconds": 50}})
    step(world)
    asked = _asked(world)
    assert asked[2].since == (START + timedelta(seconds=63 + 3), START)
    assert (asked[2].every_seconds, asked[2].slow_milliseconds) == (SHARE_SECONDS, 50)
    assert asked[2].replay_per_second * 60 >= 200, "golden requests enough for a step of a quiet service"
    assert (asked[1].since, asked[1].every_seconds) == (asked[2].since, BESIDE_SECONDS)
    assert asked[1].replay_per_second == 0


def test_a_new_stable_is_asked_about_its_time_as_stable_while_the_one_before_is_warm() -> None:
    world = canary_world(replicas=1)
    for _ in range(3):
        step(world)
    promoted = START + timedelta(seconds=3 * 63)
    assert _asked(world)[2] == Asked(BESIDE_SECONDS, (promoted + timedelta(seconds=3),))
    step(world, 301)
    assert _asked(world)[2] == Asked(IDLE_SECONDS)


def test_a_question_speaks_of_ages_because_clocks_of_pods_differ() -> None:
    asked = Asked(5, (START, START + timedelta(seconds=60)), 50, 4)
    question = asked.question(START + timedelta(seconds=90))
    assert question == Question((90, 30), 50, 4)
    assert Question.parse(question.query()) == question
    assert Asked(300).question(START).windows == (300,)


def _route(name: str, host: str, created: str) -> Manifest:
    return {
        "metadata": {"namespace": "ml", "name": name, "creationTimestamp": created},
        "spec": {"parentRefs": [{"name": "gateway"}], "hostnames": [host]},
    }


async def _rival(world: World, *routes: Manifest) -> str | None:
    reconciler = ServiceReconciler(SETTINGS, ClusterFacts(http_route_served=True), Jobs(a_job()), Verdicts())
    reconciler.cached = lambda kind: routes if kind is HTTP_ROUTE else ()
    return (await reconciler.observe(world.owner, _children(world), ())).surroundings.rival


async def test_a_host_belongs_to_the_route_that_was_first() -> None:
    world = World(a_service(route=ROUTE), a_job())
    elder = _route("elder", "mlp.example.com", "2026-01-01T00:00:00Z")
    assert await _rival(world, elder) == "ml/elder"
    assert await _rival(world, _route("other", "other.example.com", "2026-01-01T00:00:00Z")) is None
    world = canary_world()
    assert await _rival(world, _route("younger", "mlp.example.com", "2026-06-01T00:00:00Z")) is None
    assert await _rival(world, elder) == "ml/elder"


async def test_only_so_many_services_roll_out_at_once() -> None:
    settings = SETTINGS.model_copy(update={"rollout": Rollout(max_concurrent=1)})
    reconciler = ServiceReconciler(settings, ClusterFacts(), Jobs(a_job()), Verdicts())
    world = serving_world()
    world.job = a_job(DIGEST_B, "job-2")
    world.execute(world.decide())  # the record is made, nothing else of it
    elsewhere = {"namespace": "ml", "name": "other-r2", "labels": {"bigmodel.io/service": "other"}}
    busy = True

    def cached(kind: ResourceKind) -> tuple[Manifest, ...]:
        others: tuple[Manifest, ...] = ({"metadata": elsewhere},) if busy else ()
        return (*others, *(m for (found, _), m in world.objects.items() if found == kind.kind))

    reconciler.cached = cached
    assert not (await reconciler.observe(world.owner, _children(world), ())).surroundings.slot
    busy = False
    assert (await reconciler.observe(world.owner, _children(world), ())).surroundings.slot
    first = World(a_service(), a_job())
    first.execute(first.decide())
    busy = True
    assert (await reconciler.observe(first.owner, _children(first), ())).surroundings.slot, "a first revision waits not"
