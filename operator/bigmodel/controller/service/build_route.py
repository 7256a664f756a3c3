"""The manifests of a service's routes: the same bytes for the same arguments. One write changes all weights."""

import json
from typing import Any

from bigmodel.api import names
from bigmodel.controller.decision import GRPC_ROUTE, HTTP_ROUTE, Manifest
from bigmodel.controller.service.build import child_metadata
from bigmodel.controller.service.observe import ObservedService
from bigmodel.controller.service.route import ANNOTATION_TRAFFIC, GRPC_PATH, HTTP_PATH, Split, shape


def http_route(service: ObservedService, split: Split) -> Manifest:
    """HTTP and gRPC in one object: Gateway API refuses an HTTPRoute and a GRPCRoute on one host name."""
    assert service.spec is not None
    assert service.spec.route is not None
    extras = service.route.extras if service.route is not None else ({}, {})
    spec = {
        "parentRefs": _parents(service),
        "hostnames": list(service.spec.route.hostnames),
        "rules": [
            _rule(service, split, path, port, extra)
            for path, port, extra in (
                (GRPC_PATH, names.PORT_TRITON_GRPC, extras[0]),
                (HTTP_PATH, names.PORT_TRITON_HTTP, extras[1]),
            )
        ],
    }
    return {
        "apiVersion": HTTP_ROUTE.api_version,
        "kind": HTTP_ROUTE.kind,
        "metadata": _metadata(service, split, spec),
        "spec": spec,
    }


def grpc_route(service: ObservedService, split: Split) -> Manifest | None:
    """For host names that carry gRPC alone; None where there are none."""
    assert service.spec is not None
    assert service.spec.route is not None
    if not service.spec.route.grpc_hostnames:
        return None
    spec = {
        "parentRefs": _parents(service),
        "hostnames": list(service.spec.route.grpc_hostnames),
        "rules": [{"backendRefs": _backends(service, split, names.PORT_TRITON_GRPC)}],
    }
    return {
        "apiVersion": GRPC_ROUTE.api_version,
        "kind": GRPC_ROUTE.kind,
        "metadata": _metadata(service, split, spec),
        "spec": spec,
    }


def _rule(service: ObservedService, split: Split, path: str, port: int, extra: Manifest) -> dict[str, Any]:
    return {
        **extra,
        "matches": [{"path": {"type": "PathPrefix", "value": path}}],
        "backendRefs": _backends(service, split, port),
    }


def _backends(service: ObservedService, split: Split, port: int) -> list[dict[str, Any]]:
    """A revision without a share is not named: its pods may go."""
    shares = [(split.stable, 100 - split.weight), (split.candidate, split.weight)]
    return [
        {
            "group": "",
            "kind": "Service",
            "name": names.revision_name(service.name, revision),
            "port": port,
            "weight": share,
        }
        for revision, share in shares
        if revision is not None and share > 0
    ]


def _parents(service: ObservedService) -> list[dict[str, Any]]:
    assert service.spec is not None
    assert service.spec.route is not None
    fixed = {"group": "gateway.networking.k8s.io", "kind": "Gateway"}
    return [fixed | parent.wire() for parent in service.spec.route.parent_refs]


def _metadata(service: ObservedService, split: Split, spec: dict[str, Any]) -> dict[str, Any]:
    asked = split.model_copy(update={"shape": shape(spec)})
    text = json.dumps(asked.wire(), sort_keys=True, separators=(",", ":"))
    return {**child_metadata(service, service.name), "annotations": {ANNOTATION_TRAFFIC: text}}
