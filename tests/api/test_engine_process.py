"""The controller as a process, against an API server of its own: start, leadership, rest, end."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import CRDS
from tests.api.controller import ControllerProcess
from tests.api.kubectl import Kubectl
from tests.cluster import api_server as control_plane
from tests.cluster.build import cluster_programs

WAIT_SECONDS = 60.0  # for what takes a few seconds on a machine that does nothing else


class Plane:
    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        self._folder, self.kubeconfig = folder, kubeconfig
        self.kubectl = Kubectl(cluster_programs() / "kubectl", kubeconfig)
        self._started = 0

    @contextmanager
    def controllers(self, count: int, *watch_namespaces: str) -> Iterator[list[ControllerProcess]]:
        started = []
        try:
            for _ in range(count):
                self._started += 1
                name = f"controller-{self._started}"
                started.append(ControllerProcess(self._folder, self.kubeconfig, name, watch_namespaces))
            yield started
        finally:
            for one in started:
                one.kill()

    def get(self, *what: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", *what, "-o", "json"))["items"]
        return items

    def new_job(self, name: str, namespace: str = "default") -> None:
        """Of two nodes."""
        job = {
            "apiVersion": "bigmodel.io/v1alpha1",
            "kind": "BigModelJob",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"recipe": {"name": "mlp"}, "nodes": 2},
        }
        self.kubectl.apply(job, "--server-side")

    def pods_of(self, name: str) -> int:
        """In any namespace."""
        return len(self.get("pods", "-A", "-l", f"bigmodel.io/job={name}"))


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """An API server that does not know our kinds yet."""
    with control_plane.api_server() as kubeconfig:
        yield Plane(tmp_path_factory.mktemp("controllers"), kubeconfig)


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.1)


def leader_of(controllers: list[ControllerProcess]) -> ControllerProcess:
    until(lambda: any(one.leads() for one in controllers), "somebody leads")
    return next(one for one in controllers if one.leads())


@pytest.fixture(scope="class")
def one(plane: Plane) -> Iterator[ControllerProcess]:
    with plane.controllers(1) as (one,):
        yield one


class TestOneController:
    """Started once, in this order: before the CRDs, in the end after they were taken away."""

    def test_started_before_the_crds_it_waits_for_them_and_then_works(
        self, plane: Plane, one: ControllerProcess
    ) -> None:
        until(lambda: one.said("not installed: apply the chart's CRDs"), "the reason is logged")
        assert (one.get("/healthz"), one.get("/readyz")) == ((200, "ok"), (200, "ok"))
        plane.kubectl("apply", "--server-side", "-f", str(CRDS))
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        plane.new_job("early")
        until(lambda: plane.pods_of("early") == 2, "two pods")

    def test_the_users_object_carries_nothing_of_ours_but_its_status(
        self, plane: Plane, one: ControllerProcess
    ) -> None:
        plane.new_job("untouched")
        until(lambda: plane.pods_of("untouched") == 2, "two pods")
        text = plane.kubectl("get", "bmj", "untouched", "-o", "json", "--show-managed-fields")
        metadata = json.loads(text)["metadata"]
        assert ("finalizers" in metadata, "annotations" in metadata) == (False, False)
        writers = {(entry["manager"], entry.get("subresource", "")) for entry in metadata["managedFields"]}
        assert writers == {("kubectl", ""), ("bigmodel-operator", "status")}
        assert one.metric('bigmodel_reconciles_total{kind="BigModelJob",outcome="error"}') == 0

    def test_at_rest_nothing_is_written_but_the_lease(self, plane: Plane, one: ControllerProcess) -> None:
        plane.new_job("resting")
        until(lambda: plane.pods_of("resting") == 2, "two pods")

        def writes() -> float:
            verbs = ("create", "apply", "patch", "delete")
            return sum(
                one.metric(f'bigmodel_api_requests_total{{code="{code}",verb="{verb}"}}')
                for verb in verbs
                for code in (200, 201, 409, 422)
            )

        def versions() -> dict[str, str]:
            return {
                item["metadata"]["uid"]: item["metadata"]["resourceVersion"]
                for item in plane.get("bmj,bms,pods,services,networkpolicies")
            }

        def quiet() -> bool:
            before = writes(), versions()
            time.sleep(5)
            return before[0] > 0 and (writes(), versions()) == before

        until(quiet, "nothing is written for 5 s")

    def test_the_watch_of_our_kinds_is_started_again_in_the_same_process(
        self, plane: Plane, one: ControllerProcess
    ) -> None:
        """C14, C35: the CRD is deleted and made again."""
        plane.new_job("before")
        until(lambda: plane.pods_of("before") == 2, "works")
        plane.kubectl("delete", "crd", "bigmodeljobs.bigmodel.io", "--timeout=30s")
        until(lambda: one.metric("bigmodel_trigger_restarts") > 0, "kopf ended")
        plane.kubectl("apply", "--server-side", "-f", str(CRDS))
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        plane.new_job("after")
        until(lambda: plane.pods_of("after") == 2, "works again")
        assert (one.process.poll(), one.get("/healthz")[0]) == (None, 200)


def test_with_namespaces_it_touches_no_other(plane: Plane) -> None:
    for namespace in ("watched", "also-watched"):
        plane.kubectl("create", "namespace", namespace)
    plane.new_job("elsewhere")
    with plane.controllers(1, "watched", "also-watched"):
        plane.new_job("here", "watched")
        plane.new_job("here-too", "also-watched")
        until(lambda: (plane.pods_of("here"), plane.pods_of("here-too")) == (2, 2), "both gangs")
        assert plane.pods_of("elsewhere") == 0
    plane.kubectl("delete", "bmj", "elsewhere")


def test_a_killed_leader_is_replaced_and_its_successor_goes_on(plane: Plane) -> None:
    """C22."""
    with plane.controllers(2) as both:
        until(lambda: all(one.get("/readyz")[0] == 200 for one in both), "both are ready")
        leader = leader_of(both)
        (standby,) = (one for one in both if one is not leader)
        assert not standby.leads()
        assert standby.metric("bigmodel_watched_objects") == 0  # it holds nothing
        plane.new_job("first")
        until(lambda: plane.pods_of("first") == 2, "the leader works")
        leader.process.kill()
        plane.new_job("second")
        until(lambda: plane.pods_of("second") == 2, "the successor works")
        assert standby.leads()


def test_told_to_stop_it_ends_in_order_and_the_successor_need_not_wait_for_the_lease(plane: Plane) -> None:
    """C3, C23."""
    with plane.controllers(2) as both:
        leader = leader_of(both)
        (standby,) = (one for one in both if one is not leader)
        leader.process.send_signal(signal.SIGTERM)
        assert leader.process.wait(WAIT_SECONDS) == 0
        assert leader.said("released")
        until(standby.leads, "the standby leads")
        standby.process.send_signal(signal.SIGTERM)
        assert standby.process.wait(WAIT_SECONDS) == 0


def test_a_leader_whose_lease_was_taken_ends_at_once_and_says_why(plane: Plane) -> None:
    with plane.controllers(1) as (one,):
        leader_of([one])
        plane.kubectl(
            "patch", "lease", "bigmodel-operator", "--type=merge", "-p", '{"spec": {"holderIdentity": "thief"}}'
        )
        assert one.process.wait(WAIT_SECONDS) == 1
        critical = [line["message"] for line in one.log() if line["level"] == "critical"]
        assert critical == [
            "lease default/bigmodel-operator is lost: thief holds it now; this process ends, a standby takes over"
        ]
