"""Routes against the Gateway API's own definitions: what becomes of them, who may edit what, whose host it is."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bigmodel.controller.decision import GRPC_ROUTE, HTTP_ROUTE, Manifest
from bigmodel.controller.kube import errors
from tests.api.kubectl import Kubectl
from tests.api.serving import Place, serving_place
from tests.api.training import told
from tests.cluster import gateway

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
namespaces = (f"route-{number}" for number in itertools.count(1))


def route_to(host: str, **more: Any) -> dict[str, Any]:
    return {"parentRefs": [{"name": "gateway", "namespace": "gateway"}], "hostnames": [host], **more}


@pytest.fixture(scope="module")
def gateway_api(kubectl: Kubectl) -> None:
    kubectl("apply", "--server-side", "-f", str(gateway.definitions()))
    kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")


class Gateway:
    """Says in the status of every route of the namespace what a gateway's controller would."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.refuses: str | None = None

    async def run(self) -> None:
        while True:
            for kind in (HTTP_ROUTE, GRPC_ROUTE):
                for route in await self.place.nodes.all(kind):
                    with contextlib.suppress(errors.ApiError):
                        await self.answer(kind, route)
            await asyncio.sleep(0.1)

    async def answer(self, kind: Any, route: Manifest) -> None:
        metadata = route["metadata"]
        accepted = {
            "type": "Accepted",
            "status": "False" if self.refuses else "True",
            "reason": "NotAllowedByListeners" if self.refuses else "Accepted",
            "message": self.refuses or "",
            "observedGeneration": metadata["generation"],
            "lastTransitionTime": "2026-03-01T12:00:00Z",
        }
        said = {
            "parents": [
                {"parentRef": parent, "controllerName": "example.com/gateway", "conditions": [accepted]}
                for parent in route["spec"]["parentRefs"]
            ]
        }
        if route.get("status") != said:
            patch = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": said}
            await self.place.client.merge_patch(kind, metadata["namespace"], metadata["name"], patch, "status")


@pytest.fixture
async def place(api_server: Path, kubectl: Kubectl, gateway_api: None) -> AsyncIterator[Place]:
    async with serving_place(api_server, kubectl, next(namespaces)) as place:
        yield place


@pytest.fixture
async def gateway_of(place: Place) -> AsyncIterator[Gateway]:
    working = asyncio.create_task((found := Gateway(place)).run())
    yield found
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working


async def shares(place: Place) -> dict[str, int]:
    route = await place.get(HTTP_ROUTE, "mlp")
    return {} if route is None else {ref["name"]: ref["weight"] for ref in route["spec"]["rules"][0]["backendRefs"]}


def text(status: dict[str, Any], kind: str) -> str:
    return str(next(c["message"] for c in status["conditions"] if c["type"] == kind))


FAST = {"steps": [50], "intervalSeconds": 1}


async def test_a_canary_goes_through_one_route_for_http_and_grpc(place: Place, gateway_of: Gateway) -> None:
    """B11: every step in order, promoted, no pod made again."""
    place.nodes.seen = {1: (2000, 0), 2: (2000, 0)}
    await place.service(route=route_to("canary.example.com", grpcHostnames=["grpc.example.com"]), rollout=FAST)
    await place.publish("a")
    status = await place.until_serves(1)
    assert (status["url"], status["grpcUrl"]) == ("http://canary.example.com", "grpc.example.com:80")
    await place.until("the route is accepted", lambda s: told(s, "Ready") == ("True", "Serving"))
    await place.publish("b")
    status = await place.until("half is r2's", lambda s: s["rollout"] == "r2 50% (1/1)")
    assert (status["stable"]["weight"], status["candidate"]["weight"]) == (50, 50)
    for kind in (HTTP_ROUTE, GRPC_ROUTE):
        route = await place.get(kind, "mlp")
        assert route is not None
        for rule in route["spec"]["rules"]:
            assert {ref["name"]: ref["weight"] for ref in rule["backendRefs"]} == {"mlp-r1": 50, "mlp-r2": 50}
    verifiers = dict(place.nodes.verifiers)
    await place.until_serves(2)
    assert await shares(place) == {"mlp-r2": 100}
    assert place.nodes.verifiers == verifiers


async def test_a_candidate_with_errors_loses_its_share_and_then_its_pods(place: Place, gateway_of: Gateway) -> None:
    """B6."""
    place.nodes.seen = {1: (2000, 0), 2: (20, 5)}
    await place.service(route=route_to("errors.example.com"), rollout=FAST)
    await place.publish("a")
    await place.until_serves(1)
    await place.publish("b")
    status = await place.until("r2 is rejected", lambda s: told(s, "Promoted") == ("False", "Rejected"))
    assert "5 of 20" in status["message"]
    assert told(status, "Ready") == ("True", "Serving")
    await place.until("its share goes", lambda s: s["rollout"] == "r2 rejected: errors")
    assert await shares(place) == {"mlp-r1": 100}
    await place.until("its pods go", lambda s: not any("-r2-" in name for name in place.nodes.verifiers))


async def test_what_others_wrote_into_a_route_stays_and_what_is_ours_is_restored(
    place: Place, gateway_of: Gateway
) -> None:
    """B20."""
    await place.service(route=route_to("edited.example.com"))
    await place.publish("a")
    await place.until_serves(1)
    header = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-team", "value": "ml"}]}}
    route = await place.get(HTTP_ROUTE, "mlp")
    assert route is not None
    for rule in route["spec"]["rules"]:
        rule["filters"] = [header]
        rule["backendRefs"][0]["name"] = "somewhere-else"
    patch = {"metadata": {"annotations": {"team": "ml"}}, "spec": {"rules": route["spec"]["rules"]}}
    await place.kubectl("patch", "httproute", "mlp", "--type=merge", "-p", json.dumps(patch))
    async with asyncio.timeout(20):
        while await shares(place) != {"mlp-r1": 100}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    restored = await place.get(HTTP_ROUTE, "mlp")
    assert restored is not None
    assert [rule["filters"] for rule in restored["spec"]["rules"]] == [[header], [header]]
    assert restored["metadata"]["annotations"]["team"] == "ml"
    events = json.loads(await place.kubectl("get", "events.events.k8s.io", "-o", "json"))["items"]
    assert any(event["reason"] == "Restored" and "HTTPRoute" in event["note"] for event in events)


async def test_a_gateway_that_refuses_is_told_in_ready(place: Place, gateway_of: Gateway) -> None:
    """B19."""
    gateway_of.refuses = "this namespace is not allowed"
    await place.service(route=route_to("refused.example.com"))
    await place.publish("a")
    status = await place.until("it says so", lambda s: told(s, "Ready") == ("False", "RouteNotAccepted"))
    assert "this namespace is not allowed" in text(status, "Ready")
    gateway_of.refuses = None
    await place.until("it serves", lambda s: told(s, "Ready") == ("True", "Serving"))


async def test_a_host_belongs_to_the_older_service(place: Place, gateway_of: Gateway) -> None:
    """B28: the conflict is reported, neither breaks the other."""
    await place.service(route=route_to("shared.example.com"))
    await place.publish("a")
    await place.until_serves(1)
    younger = {
        "apiVersion": "bigmodel.io/v1alpha1",
        "kind": "BigModelService",
        "metadata": {"name": "younger"},
        "spec": {"model": {"fromJob": {"name": "mlp"}}, "route": route_to("shared.example.com")},
    }
    await place.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(younger))
    await place.kubectl("wait", "bms/younger", "--for=jsonpath={.status.stable.revision}=1", "--timeout=20s")
    said = json.loads(await place.kubectl("get", "bms", "younger", "-o", "json"))["status"]
    assert told(said, "Ready") == ("False", "HostnameTaken")
    assert f"{place.namespace}/mlp" in text(said, "Ready")
    assert await place.get(HTTP_ROUTE, "younger") is None
    assert told(await place.status(), "Ready") == ("True", "Serving")


async def test_a_settled_route_causes_no_writes(place: Place, gateway_of: Gateway) -> None:
    await place.service(route=route_to("settled.example.com"), rollout={"rollbackWindowSeconds": 0})
    await place.publish("a")
    await place.until_serves(1)
    await place.until("the route is accepted", lambda s: told(s, "Ready") == ("True", "Serving"))
    await asyncio.sleep(4)
    before = await place.get(HTTP_ROUTE, "mlp"), await place.versions()
    await place.kubectl("annotate", "bms", "mlp", "someone=looks")
    await asyncio.sleep(2)
    after = await place.get(HTTP_ROUTE, "mlp"), await place.versions()
    assert before[0] == after[0]
    assert {k for k in after[1] if before[1].get(k) != after[1][k]} == {"BigModelService/mlp"}


async def test_a_deleted_service_leaves_nothing_that_holds_it_up(place: Place, gateway_of: Gateway) -> None:
    """B27: children go by their owner references, which name the service as controller; no finalizer anywhere."""
    await place.service(route=route_to("gone.example.com"))
    await place.publish("a")
    await place.until_serves(1)
    route = await place.get(HTTP_ROUTE, "mlp")
    assert route is not None
    assert [owner["controller"] for owner in route["metadata"]["ownerReferences"]] == [True]
    assert "finalizers" not in route["metadata"]
    await place.kubectl("delete", "bms", "mlp", "--timeout=10s")
