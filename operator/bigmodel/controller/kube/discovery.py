"""What the cluster can do, asked again every minute: optional kinds may be installed or removed while we run."""

import asyncio
import logging

from bigmodel.controller.decision import HTTP_ROUTE, POD_GROUP, ResourceKind
from bigmodel.controller.kube import errors
from bigmodel.controller.kube.client import Client

REFRESH_SECONDS = 60.0

logger = logging.getLogger(__name__)


class ClusterFacts:
    """Read the attributes; `refresh` renews them."""

    def __init__(self, pod_group_served: bool = False, http_route_served: bool = False) -> None:
        self.pod_group_served = pod_group_served
        self.http_route_served = http_route_served

    async def refresh(self, client: Client) -> None:
        """Raises ApiError when the API server can't say; the facts stay as they were."""
        pod_group = await served(client, POD_GROUP)
        http_route = await served(client, HTTP_ROUTE)
        if (pod_group, http_route) != (self.pod_group_served, self.http_route_served):
            logger.info("the cluster serves PodGroup: %s, HTTPRoute: %s", pod_group, http_route)
        self.pod_group_served, self.http_route_served = pod_group, http_route

    async def keep_fresh(self, client: Client) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.refresh(client)
            except errors.ApiError as error:
                logger.warning("discovery failed, the cluster's last known facts stay: %s", error)


async def served(client: Client, kind: ResourceKind) -> bool:
    """Whether the API server knows the kind in this version. Raises ApiError."""
    try:
        resources = await client.get_path(f"/apis/{kind.api_version}")
    except errors.NotFound:
        return False
    return any(resource["name"] == kind.plural for resource in resources["resources"])
