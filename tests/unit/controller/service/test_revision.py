"""What is the same revision, and what is another."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from bigmodel.api.service import ServiceSpec
from bigmodel.api.store import Store
from bigmodel.controller.service.revision import Attempt, Outcome, Record, RevisionData, inputs, next_number, record_of
from bigmodel.controller.service.source import Artifact
from tests.unit.controller.service.world import DIGEST_A, DIGEST_B, NAME, START, serving_world

STORE = Store.model_validate({"s3": {"bucket": "models"}})
ARTIFACT = Artifact("s3://models/x/", DIGEST_A, "default", STORE, "mlp", "job-uid")


def _fingerprint(artifact: Artifact = ARTIFACT, **spec: Any) -> str:
    parsed = ServiceSpec.model_validate({"model": {"fromJob": {"name": "mlp"}}} | spec)
    return inputs(NAME, parsed, artifact).fingerprint()


SAME: dict[str, dict[str, Any]] = {
    "replicas": {"server": {"replicas": 5}},
    "a route": {"route": {"parentRefs": [{"name": "g"}], "hostnames": ["x.example.com"]}},
    "gates that no pod knows": {"gates": {"contract": "ignore", "online": {"maxErrorRatio": 0.5}}},
    "how traffic moves": {"rollout": {"intervalSeconds": 5, "paused": True}},
    "a default written out": {"batching": {"maxBatchSize": 64}, "server": {"backend": "auto"}},
    "the model's default name": {"model": {"fromJob": {"name": "mlp"}, "name": NAME}},
    "another job with this artefact": {"model": {"fromJob": {"name": "other"}}},
}
OTHER: dict[str, dict[str, Any]] = {
    "batching": {"batching": {"instances": 2}},
    "resources": {"server": {"resources": {"limits": {"cpu": 2}}}},
    "the user's image": {"server": {"image": "own/triton:1"}},
    "nodes": {"server": {"nodeSelector": {"gpu": "h100"}}},
    "identity": {"server": {"serviceAccountName": "serving"}},
    "longest request": {"server": {"maxRequestSeconds": 60}},
    "deadline": {"server": {"startupDeadlineSeconds": 60}},
    "parity": {"gates": {"parity": {"absolute": 0.1}}},
    "the model's name": {"model": {"fromJob": {"name": "mlp"}, "name": "other"}},
}


@pytest.mark.parametrize("spec", SAME.values(), ids=SAME)
def test_what_changes_no_pod_is_the_same_revision(spec: dict[str, Any]) -> None:
    assert _fingerprint(**spec) == _fingerprint()


@pytest.mark.parametrize("spec", OTHER.values(), ids=OTHER)
def test_what_changes_a_pod_is_another_revision(spec: dict[str, Any]) -> None:
    assert _fingerprint(**spec) != _fingerprint()


@pytest.mark.parametrize(
    "artifact",
    [
        Artifact("s3://models/x/", DIGEST_B, "default", STORE),
        Artifact("s3://models/y/", DIGEST_A, "default", STORE),
        Artifact("s3://models/x/", DIGEST_A, "int8", STORE),
        Artifact("s3://models/x/", DIGEST_A, "default", Store.model_validate({"s3": {"bucket": "other"}})),
    ],
    ids=["digest", "place", "variant", "store"],
)
def test_another_artefact_is_another_revision(artifact: Artifact) -> None:
    assert _fingerprint(artifact) != _fingerprint()


def test_a_quantity_as_number_or_text_is_the_same_wish() -> None:
    number = _fingerprint(server={"resources": {"limits": {"cpu": 8}}})
    assert number == _fingerprint(server={"resources": {"limits": {"cpu": "8"}}})


def test_the_fingerprint_is_pinned_so_that_an_upgrade_rolls_nothing() -> None:
    """A changed value here means that every service of every user starts a rollout at the next upgrade."""
    assert _fingerprint() == "6bd7ae2eee50208749bf4d77ab4305daa21c581c9a31e784a1f53cb4cab69b55"


@pytest.mark.parametrize(
    ("taken", "number"),
    [
        ([], 1),
        (["mlp"], 1),
        (["mlp-r1", "mlp-r9", "mlp-r2"], 10),
        (["mlp-r1", "mlp-r10"], 11),
        (["mlp-x-r7", "mlp-r3-r8", "mlp-r0", "mlp-r02"], 1),
    ],
    ids=["none", "the address", "a gap", "two digits", "names of others"],
)
def test_a_number_is_never_used_twice(taken: list[str], number: int) -> None:
    assert next_number("mlp", taken) == number


def _record(outcome: Outcome | None, attempt: int) -> Record:
    world = serving_world()
    manifest = world.objects["ControllerRevision", "mlp-r1"]
    data = RevisionData.model_validate(manifest["data"])
    return Record(1, "uid", START, data, outcome, Attempt(number=attempt, since=START))


@pytest.mark.parametrize(
    ("result", "reason", "attempt", "seconds"),
    [
        ("Rejected", "ParityFailed", 1, None),
        ("Promoted", "Promoted", 1, None),
        ("Aborted", "Superseded", 3, 0),
        ("Aborted", "StartupDeadlineExceeded", 1, 30),
        ("Aborted", "StartupDeadlineExceeded", 2, 60),
        ("Aborted", "StartupDeadlineExceeded", 7, 1800),
        ("Aborted", "StartupDeadlineExceeded", 5000, 1800),
    ],
)
def test_only_what_was_aborted_is_tried_again_later_and_later(
    result: Any, reason: str, attempt: int, seconds: int | None
) -> None:
    record = _record(Outcome(result=result, reason=reason, message="x", at=START), attempt)
    assert record.retry_at() == (None if seconds is None else START + timedelta(seconds=seconds))


@pytest.mark.parametrize("broken", ["data", "revision", "outcome"])
def test_a_record_that_cannot_be_read_is_no_record_but_keeps_its_number(broken: str) -> None:
    world = serving_world()
    manifest = world.objects["ControllerRevision", "mlp-r1"]
    if broken == "outcome":
        manifest["metadata"]["annotations"]["bigmodel.io/outcome"] = "{"
    elif broken == "data":
        manifest["data"] = manifest["data"] | {"fingerprint": None}
    else:
        manifest["revision"] = None
    assert record_of(manifest) is None
    pods = dict(world.pods)
    world.change_spec(batching={"maxBatchSize": 8})
    world.run()
    assert world.selected == 2, "the address moves on, from a revision whose record is gone, once the next is verified"
    assert {name: pod for name, pod in world.pods.items() if "-r1-" in name} == pods, "what may serve is left alone"
