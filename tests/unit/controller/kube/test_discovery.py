"""What a cluster serves, as its discovery documents say it."""

from __future__ import annotations

from typing import Any

import pytest

from bigmodel.controller.decision import POD_GROUP, WORKLOAD, Manifest, ResourceKind
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.discovery import WORKLOADS, ClusterFacts
from bigmodel.controller.kube.reflector import Reflector
from bigmodel.controller.main import follow_version

V1BETA2, V1BETA1 = WORKLOADS


class Discovery:
    """An API server that serves these kinds."""

    def __init__(self, *kinds: ResourceKind) -> None:
        self.kinds = kinds

    async def get_path(self, url_path: str) -> Manifest:
        found = [{"name": kind.plural} for kind in self.kinds if url_path == f"/apis/{kind.api_version}"]
        if not found:
            raise errors.NotFound(f"{url_path} not found")
        return {"resources": found}


async def _facts(*kinds: ResourceKind) -> ClusterFacts:
    facts, client = ClusterFacts(), Discovery(*kinds)
    await facts.refresh(client)  # type: ignore[arg-type]
    return facts


@pytest.mark.parametrize(
    ("served", "wanted"),
    [
        pytest.param((), None, id="no Kueue"),
        pytest.param((V1BETA1,), V1BETA1, id="an older Kueue"),
        pytest.param((V1BETA1, V1BETA2), V1BETA2, id="both: the newer"),
        pytest.param((POD_GROUP,), None, id="Kubernetes' own group scheduling is none"),
    ],
)
async def test_kueue_is_spoken_to_in_the_newest_version_that_is_served(
    served: tuple[ResourceKind, ...], wanted: ResourceKind | None
) -> None:
    """A32"""
    facts = await _facts(*served)
    assert facts.workload == wanted
    assert facts.pod_group_served == (POD_GROUP in served)


async def test_workloads_are_listed_in_the_version_that_was_found_last() -> None:
    """Kueue may be installed, upgraded or removed while the controller runs."""
    nobody: Any = None
    reflectors = {WORKLOAD.kind: Reflector(nobody, WORKLOAD)}
    for served, wanted in (((V1BETA1,), V1BETA1), ((), V1BETA1), ((V1BETA2, V1BETA1), V1BETA2)):
        follow_version(reflectors, await _facts(*served))
        assert reflectors[WORKLOAD.kind].kind == wanted
    follow_version({}, await _facts(V1BETA2))  # not switched on: nothing is listed
