"""Which of many jobs a service takes: `spec.model.fromJobs`, told against a small cluster in memory."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from bigmodel.controller.decision import Manifest
from tests.unit.controller.service.world import (
    DIGEST_A,
    DIGEST_B,
    PARITY_FAILS,
    START,
    World,
    a_job,
    a_service,
    a_training_job,
    time_text,
)

DIGEST_C = "sha256:" + "c" * 64
VALIDATION, OTHER_VALIDATION = "sha256:" + "7" * 64, "sha256:" + "8" * 64
BEST = {"metric": "val_mse", "goal": "minimize"}


def following(**more: Any) -> Manifest:
    return a_service(
        model={"fromJobs": {"selector": {"matchLabels": {"model": "mlp"}}, "minIntervalSeconds": 0} | more}
    )


def labelled(
    name: str, digest: str, minutes: int = 0, val_mse: str | None = None, validation: str = VALIDATION
) -> Manifest:
    """A job with the labels that has published so many minutes after the start."""
    job = a_job(digest, uid=f"uid-of-{name}")
    job["metadata"] |= {"name": name, "labels": {"model": "mlp"}}
    job["status"]["conditions"][0]["lastTransitionTime"] = time_text(START + timedelta(minutes=minutes))
    if val_mse is not None:
        job["status"]["artifact"] |= {
            "metrics": [{"name": "val_mse", "value": val_mse}],
            "validationDigest": validation,
        }
    return job


def a_world(owner: Manifest, *jobs: Manifest) -> World:
    world = World(owner)
    add(world, *jobs)
    world.run()
    return world


def add(world: World, *jobs: Manifest) -> None:
    world.jobs |= {job["metadata"]["name"]: job for job in jobs}


def served(world: World) -> str:
    return str(world.status["stable"]["job"])


def test_the_newest_published_artefact_is_taken_whatever_order_the_jobs_come_in() -> None:
    world = a_world(following(), labelled("b", DIGEST_B, minutes=2), labelled("a", DIGEST_A, minutes=1))
    assert served(world) == "b"
    add(world, labelled("c", DIGEST_C, minutes=3))
    world.run()
    assert served(world) == "c"
    assert world.condition("SourceAvailable") == ("True", "ArtifactAvailable")


def test_jobs_without_the_labels_are_nothing_to_it() -> None:
    foreign = labelled("b", DIGEST_B, minutes=9)
    foreign["metadata"]["labels"] = {"model": "other"}
    world = a_world(following(), labelled("a", DIGEST_A), foreign)
    assert served(world) == "a"


def test_an_older_job_does_not_come_back_when_the_newest_is_cleaned_up() -> None:
    world = a_world(following(), labelled("a", DIGEST_A, minutes=1), labelled("b", DIGEST_B, minutes=2))
    del world.jobs["b"]
    world.later(400)
    world.run()
    assert served(world) == "b"
    assert world.names_of("ControllerRevision") == ["mlp-r1"]


def test_when_all_jobs_are_gone_it_serves_on_and_says_so() -> None:
    world = a_world(following(), labelled("a", DIGEST_A))
    world.jobs.clear()
    world.run()
    assert world.condition("SourceAvailable") == ("False", "JobNotFound")
    assert "labels model=mlp" in world.message("SourceAvailable")
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Promoted") == ("True", "Promoted")


def test_while_none_has_published_it_waits_for_the_newest() -> None:
    training = a_training_job("62%")
    training["metadata"] |= {"name": "a", "labels": {"model": "mlp"}}
    world = a_world(following(), training)
    assert world.status["rollout"] == "waiting bmj/a 62%"
    assert world.condition("SourceAvailable") == ("False", "JobNotFinished")


def test_two_rollouts_are_so_far_apart_as_is_asked() -> None:
    world = a_world(following(minIntervalSeconds=600), labelled("a", DIGEST_A, minutes=1))
    world.later(300)
    add(world, labelled("b", DIGEST_B, minutes=2))
    decision = world.reconcile()
    world.run()
    assert served(world) == "a"
    assert "12:10:00 UTC" in world.message("SourceAvailable")
    assert decision.requeue_after is not None
    assert decision.requeue_after <= 300
    world.later(300)
    world.run()
    assert served(world) == "b"


def test_a_rejected_artefact_is_not_tried_again_and_the_next_one_is() -> None:
    world = a_world(following(), labelled("a", DIGEST_A, minutes=1))
    world.health[2] = PARITY_FAILS
    add(world, labelled("b", DIGEST_B, minutes=2))
    world.run()
    world.later(7200)
    world.run()
    assert (served(world), world.status["rollout"]) == ("a", "r2 rejected: parity")
    add(world, labelled("c", DIGEST_C, minutes=3))
    world.run()
    assert served(world) == "c"


def test_the_record_says_which_job_of_which_labels_it_is_and_how_good() -> None:
    world = a_world(following(), labelled("a", DIGEST_A, minutes=1, val_mse="3000"))
    data = world.objects["ControllerRevision", "mlp-r1"]["data"]
    assert {key: data[key] for key in ("job", "jobUid", "publishedAt", "selectedBy", "metrics", "validation")} == {
        "job": "a",
        "jobUid": "uid-of-a",
        "publishedAt": "2026-03-01T12:01:00Z",
        "selectedBy": {"model": "mlp"},
        "metrics": [{"name": "val_mse", "value": "3000"}],
        "validation": VALIDATION,
    }


BEST_CASES: dict[str, tuple[dict[str, Any], list[Manifest], str]] = {
    "a better one is taken though it is older": (
        {},
        [labelled("b", DIGEST_B, minutes=-5, val_mse="2900"), labelled("c", DIGEST_C, minutes=5, val_mse="2950")],
        "b",
    ),
    "a worse one is not": ({}, [labelled("b", DIGEST_B, minutes=5, val_mse="3001")], "a"),
    "one that is as good is not": ({}, [labelled("b", DIGEST_B, minutes=5, val_mse="3000")], "a"),
    "one that is not better by enough is not": (
        {"minImprovement": 101},
        [labelled("b", DIGEST_B, minutes=5, val_mse="2900")],
        "a",
    ),
    "one that is better by just enough is": (
        {"minImprovement": 100},
        [labelled("b", DIGEST_B, minutes=5, val_mse="2900")],
        "b",
    ),
    "metrics on other validation data are not compared": (
        {},
        [labelled("b", DIGEST_B, minutes=5, val_mse="1", validation=OTHER_VALIDATION)],
        "a",
    ),
    "one without the metric is left out": ({}, [labelled("b", DIGEST_B, minutes=5)], "a"),
    "one whose metric is no number is left out": ({}, [labelled("b", DIGEST_B, minutes=5, val_mse="nan")], "a"),
    "with the other goal the larger is better": (
        {"goal": "maximize"},
        [labelled("b", DIGEST_B, minutes=5, val_mse="3001")],
        "b",
    ),
}


@pytest.mark.parametrize(("best", "jobs", "want"), BEST_CASES.values(), ids=BEST_CASES)
def test_best_is_by_the_metric_on_the_same_validation_data(
    best: dict[str, Any], jobs: list[Manifest], want: str
) -> None:
    world = a_world(following(pick="best", best=BEST | best), labelled("a", DIGEST_A, val_mse="3000"))
    add(world, *jobs)
    world.run()
    assert served(world) == want


def test_what_serves_is_compared_with_though_its_job_is_gone() -> None:
    world = a_world(following(pick="best", best=BEST), labelled("a", DIGEST_A, val_mse="3000"))
    world.jobs.clear()
    add(world, labelled("b", DIGEST_B, minutes=5, val_mse="3100"))
    world.run()
    assert served(world) == "a"
    assert "bmj/a stays, with val_mse 3000" in world.message("SourceAvailable")
    add(world, labelled("c", DIGEST_C, minutes=6, val_mse="2900"))
    world.run()
    assert served(world) == "c"


def test_the_second_best_gets_its_turn_when_the_best_was_rejected() -> None:
    world = a_world(following(pick="best", best=BEST), labelled("a", DIGEST_A, val_mse="3000"))
    world.health[2] = PARITY_FAILS
    add(world, labelled("b", DIGEST_B, minutes=5, val_mse="2800"))
    world.run()
    assert world.status["rollout"] == "r2 rejected: parity"
    assert world.condition("Promoted") == ("False", "Rejected")
    add(world, labelled("c", DIGEST_C, minutes=6, val_mse="2900"))
    world.run()
    assert served(world) == "c"


def test_without_any_such_metric_nothing_is_taken_and_the_field_is_named() -> None:
    world = a_world(following(pick="best", best=BEST), labelled("a", DIGEST_A))
    assert world.condition("SourceAvailable") == ("False", "MetricNotFound")
    assert "spec.model.fromJobs.best.metric" in world.message("SourceAvailable")
    assert world.names_of("ControllerRevision") == []
