"""What the cluster can do, asked again every minute: optional kinds may be installed or removed while we run."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from bigmodel.controller.decision import GRPC_ROUTE, HTTP_ROUTE, POD_GROUP, WORKLOAD, ResourceKind
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client

REFRESH_SECONDS = 60.0
WORKLOADS = (WORKLOAD, replace(WORKLOAD, api_version="kueue.x-k8s.io/v1beta1"))  # the first that is served

logger = logging.getLogger(__name__)


class ClusterFacts:
    """Read the attributes; `refresh` renews them."""

    def __init__(
        self,
        pod_group_served: bool = False,
        http_route_served: bool = False,
        workload: ResourceKind | None = None,
        grpc_route_served: bool = False,
    ) -> None:
        """`workload`: Kueue's, in the version that is served; None: it is not."""
        self.pod_group_served = pod_group_served
        self.http_route_served = http_route_served
        self.grpc_route_served = grpc_route_served
        self.workload = workload

    async def refresh(self, client: Client) -> None:
        """Raises ApiError when the API server can't say; the facts stay as they were."""
        pod_group = await served(client, POD_GROUP)
        http_route = await served(client, HTTP_ROUTE)
        self.grpc_route_served = await served(client, GRPC_ROUTE)
        workloads = [kind for kind in WORKLOADS if await served(client, kind)]
        workload = workloads[0] if workloads else None
        if (pod_group, http_route, workload) != (self.pod_group_served, self.http_route_served, self.workload):
            kueue = workload.api_version if workload is not None else "not served"
            logger.info("the cluster serves PodGroup: %s, HTTPRoute: %s, Kueue: %s", pod_group, http_route, kueue)
        self.pod_group_served, self.http_route_served, self.workload = pod_group, http_route, workload

    async def keep_fresh(self, client: Client, told: Callable[[], None]) -> None:
        """Until cancelled; calls `told` after each look."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.refresh(client)
            except errors.ApiError as error:
                logger.warning("discovery failed, the cluster's last known facts stay: %s", error)
            else:
                told()


async def served(client: Client, kind: ResourceKind) -> bool:
    """Whether the API server knows the kind in this version. Raises ApiError."""
    try:
        resources = await client.get_path(f"/apis/{kind.api_version}")
    except errors.NotFound:
        return False
    return any(resource["name"] == kind.plural for resource in resources["resources"])
