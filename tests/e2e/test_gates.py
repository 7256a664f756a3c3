"""Bad candidates on real nodes: none of them gets a request, while stable answers all the time."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bigmodel.api.run import StoreLocation
from bigmodel.artifact.stores import Store, open_store
from tests.cluster.kubectl import get
from tests.demo.infer import Sample, ask, from_here, golden_sample
from tests.demo.install import STORE_SECRET
from tests.e2e.user import Namespace, a_job, a_service, condition, eventually

GATES = {"accuracy": [{"metric": "val_mse", "goal": "minimize", "maxRelativeDrop": 0.02}]}


@pytest.fixture(scope="module")
def serving(new_namespace: Callable[[], Namespace]) -> Namespace:
    """`mlp` serves what job `good` published; job `worse` made one step."""
    namespace = new_namespace()
    worse = a_job("worse", nodes=1, recipe={"name": "mlp", "parameters": {"hidden": [16]}, "steps": 1})
    namespace.apply(a_service(job="good", gates=GATES), a_job("good", nodes=1), worse)
    namespace.wait("bms/mlp", "Promoted", 240)
    namespace.wait("bmj/worse", "Finished", 240)
    return namespace


@contextmanager
def asked_all_the_time(namespace: Namespace, sample: Sample) -> Iterator[list[str]]:
    """The versions that answered, by HTTP and gRPC; a request that is lost raises at the end."""
    versions: list[str] = []
    errors: list[Exception] = []
    stop = threading.Event()

    def go() -> None:
        while not stop.wait(0.2):
            try:
                versions.extend(answer.version for answer in ask(namespace.name, "mlp", "mlp", sample))
            except Exception as error:  # every kind of lost request counts
                errors.append(error)

    asking = threading.Thread(target=go)
    asking.start()
    try:
        yield versions
    finally:
        stop.set()
        asking.join()
    assert errors == []


def artefact_of(namespace: Namespace, job: str) -> tuple[Store, dict[str, Any], dict[str, Any]]:
    """The artefact's directory, its manifest, and how a service names its store."""
    status = namespace.get("bmj", job)["status"]
    login = get(namespace.name, "secret", STORE_SECRET)
    assert login is not None
    environment = {key: base64.b64decode(value).decode() for key, value in login["data"].items()}
    known = status["resolved"]["store"]
    location = StoreLocation(uri=status["artifact"]["uri"], endpoint=from_here(known["s3"]["endpoint"]))
    store = open_store(location, {**os.environ, **environment})
    return store, json.loads(store.read("manifest.json", 1 << 20)), known


def published_anew(namespace: Namespace, manifest: dict[str, Any]) -> dict[str, Any]:
    """`spec.model.artifact` of a manifest beside the good one, with no files of its own."""
    store, _, known = artefact_of(namespace, "good")
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(data).hexdigest()
    uri = f"{store.uri.rstrip('/')}/{digest}"
    login = get(namespace.name, "secret", STORE_SECRET)
    assert login is not None
    environment = {key: base64.b64decode(value).decode() for key, value in login["data"].items()}
    location = StoreLocation(uri=uri, endpoint=from_here(known["s3"]["endpoint"]))
    open_store(location, {**os.environ, **environment}).create("manifest.json", data)
    return {"uri": uri, "digest": f"sha256:{digest}", "store": known}


def renamed(namespace: Namespace) -> dict[str, Any]:
    _, manifest, _ = artefact_of(namespace, "good")
    manifest["signature"]["inputs"][0]["name"] = "renamed"
    return {"artifact": published_anew(namespace, manifest)}


def corrupt(namespace: Namespace) -> dict[str, Any]:
    """The manifest is as it should be, the files are not there."""
    _, manifest, _ = artefact_of(namespace, "good")
    manifest["provenance"]["step"] += 1
    return {"artifact": published_anew(namespace, manifest)}


CANDIDATES: dict[str, tuple[Callable[[Namespace], dict[str, Any]], str, str, bool]] = {
    "a worse model": (lambda namespace: {"fromJob": {"name": "worse"}}, "AccuracyFailed", "accuracy", False),
    "a renamed input": (renamed, "IncompatibleSignature", "contract", False),
    "files that are lost": (corrupt, "ArtifactNotFound", "ArtifactNotFound", True),
}


@pytest.mark.parametrize(("model", "reason", "gate", "has_pods"), CANDIDATES.values(), ids=CANDIDATES)
def test_a_bad_candidate_gets_no_request_while_stable_serves(
    serving: Namespace, model: Callable[[Namespace], dict[str, Any]], reason: str, gate: str, has_pods: bool
) -> None:
    sample = golden_sample(serving.get("bmj", "good"), serving.name, STORE_SECRET)
    before = {d["metadata"]["name"] for d in serving.items("deployments")}
    with asked_all_the_time(serving, sample) as versions:
        serving.apply(a_service(job="good", gates=GATES) | {"spec": _spec(model(serving))})

        def rejected() -> dict[str, Any] | None:
            found = serving.get("bms", "mlp")
            return found if condition(found, "Progressing").get("reason") == reason else None

        found = eventually(f"it is rejected: {reason}", rejected, 120)
    assert condition(found, "Promoted")["reason"] == "Rejected"
    assert condition(found, "Ready")["status"] == "True"
    assert found["status"]["history"][0]["gate"] == gate
    assert found["status"]["stable"]["revision"] == 1
    assert set(versions) == {"1"}
    if not has_pods:
        assert {d["metadata"]["name"] for d in serving.items("deployments")} <= before


def test_a_good_candidate_is_asked_beside_stable_and_goes_through(serving: Namespace) -> None:
    """The same model in other batches: no answer may change."""
    spec = _spec({"fromJob": {"name": "good"}}) | {"batching": {"maxBatchSize": 32}}
    spec["gates"] = GATES | {"change": {"maxChangedShare": 0.0}}
    serving.apply(a_service() | {"spec": spec})

    def promoted() -> dict[str, Any] | None:
        found = serving.get("bms", "mlp")
        return found if found["status"].get("stable", {}).get("revision", 1) > 1 else None

    found = eventually("it is promoted", promoted, 180)
    rows = {row["name"]: row for row in found["status"]["gates"]}
    assert {row["verdict"] for row in rows.values()} == {"Pass"}
    assert rows["change"]["value"].startswith("0.0%, 0 of ")


def _spec(model: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = a_service(gates=GATES)["spec"]
    return spec | {"model": model}
