"""What comes before a candidate's pods, against a real API server: one-off pods, what they said kept on the record."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bigmodel.artifact.summary import InspectResult
from bigmodel.controller.decision import CONTROLLER_REVISION, DEPLOYMENT, POD
from tests.api.kubectl import Kubectl
from tests.api.serving import Place, serving_place
from tests.api.training import told
from tests.unit.controller.service.world import a_summary

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
namespaces = (f"gates-{number}" for number in itertools.count(1))


@pytest.fixture
async def place(api_server: Path, kubectl: Kubectl) -> AsyncIterator[Place]:
    async with serving_place(api_server, kubectl, next(namespaces)) as place:
        yield place


async def test_a_worse_model_never_has_a_pod_and_status_says_why(place: Place) -> None:
    """B8. The namespace enforces Pod Security restricted: the inspect pod passes it, too."""
    worse = a_summary(metrics=[{"name": "val_mse", "value": "3500"}])
    place.nodes.inspected[2] = InspectResult(ok=True, message="read", summary=worse).fitted()
    gate = {"metric": "val_mse", "goal": "minimize", "atMost": 3000, "maxRelativeDrop": 0.02}
    await place.service(gates={"accuracy": [gate]})
    await place.publish("a")
    await place.until_serves(1)
    await place.publish("b")
    status = await place.until("r2 is rejected", lambda s: told(s, "Promoted") == ("False", "Rejected"))
    assert status["rollout"] == "r2 rejected: accuracy"
    assert [(row["name"], row["verdict"]) for row in status["gates"]] == [("contract", "Pass"), ("accuracy", "Fail")]
    assert told(status, "Ready") == ("True", "Serving")
    assert [d["metadata"]["name"] for d in await place.nodes.all(DEPLOYMENT)] == ["mlp-r1"]
    record = await place.get(CONTROLLER_REVISION, "mlp-r2")
    assert record is not None
    outcome = json.loads(record["metadata"]["annotations"]["bigmodel.io/outcome"])
    assert (outcome["result"], outcome["gate"], outcome["gates"]) == ("Rejected", "accuracy", status["gates"])
    assert not [pod for pod in await place.nodes.all(POD) if pod["metadata"]["name"].endswith("-inspect")]


async def test_a_service_follows_jobs_by_their_labels(place: Place) -> None:
    follow = {"selector": {"matchLabels": {"model": "mlp"}}, "minIntervalSeconds": 0}
    await place.apply("BigModelService", model={"fromJobs": follow})
    await place.until("it waits", lambda s: told(s, "SourceAvailable") == ("False", "JobNotFound"))
    await place.publish("a")
    await place.kubectl("label", "bmj", "mlp", "model=mlp")
    status = await place.until_serves(1)
    assert status["stable"]["job"] == "mlp"
    await place.kubectl("delete", "bmj", "mlp")
    status = await place.until("it is gone", lambda s: told(s, "SourceAvailable") == ("False", "JobNotFound"))
    assert told(status, "Ready") == ("True", "Serving")
