"""What the route of a service says: how traffic is split and since when, who edited it, what the gateway thinks of it.

Reads manifests, judges nothing. The annotation beside the weights is what was asked for: where the weights say
otherwise somebody edited them, and a rollout goes on from the lower.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from bigmodel.api import names
from bigmodel.api.model import Model
from bigmodel.controller.decision import Manifest

ANNOTATION_TRAFFIC = f"{names.GROUP}/traffic"  # Split as JSON
GRPC_PATH = "/inference.GRPCInferenceService/"
HTTP_PATH = "/"
OURS = frozenset({"matches", "backendRefs"})  # of a rule; its filters, timeouts, … are whoever's who wrote them


class Split(Model):
    """Who gets which share, since when. Written with the weights in one write."""

    stable: int
    candidate: int | None = None
    weight: int = 0  # of the candidate, in percent
    since: datetime  # this weight
    began: datetime  # this candidate's first weight
    synthetic: bool = False  # golden requests decided that `stable` gets all
    shape: str = ""  # digest of what was asked for, beside this annotation


@dataclass(frozen=True)
class Refusal:
    """What a gateway has against the route."""

    reason: str  # its word
    message: str


@dataclass(frozen=True)
class ObservedRoute:
    uid: str
    created: datetime
    weights: Mapping[int, int]  # live, by revision
    split: Split | None  # as it was asked for; None where the annotation can't be read
    edited: bool = False
    refusal: Refusal | None = None
    accepted: bool = False  # by a gateway, in this generation or one before
    taken_up: bool = False  # by a gateway, in this very generation
    extras: tuple[Manifest, ...] = ({}, {})  # fields of others in the gRPC rule and in the HTTP rule

    def share(self, revision: int) -> int:
        """What the revision gets in percent: the lower of what was asked for and what is there."""
        live = self.weights.get(revision, 0)
        if self.split is None:
            return live
        asked = self.split.weight if revision == self.split.candidate else 100 - self.split.weight
        return min(live, asked) if revision in (self.split.candidate, self.split.stable) else 0


def observed_route(service: str, manifest: Manifest) -> ObservedRoute:
    metadata, spec = manifest["metadata"], manifest.get("spec") or {}
    split = _split((metadata.get("annotations") or {}).get(ANNOTATION_TRAFFIC))
    refusal, accepted, taken_up = _verdict_of_gateways(manifest)
    return ObservedRoute(
        uid=metadata["uid"],
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        weights=_weights(service, spec),
        split=split,
        edited=split is None or split.shape != shape(spec),
        refusal=refusal,
        accepted=accepted,
        taken_up=taken_up,
        extras=(_extras(spec, GRPC_PATH), _extras(spec, HTTP_PATH)),
    )


def shape(spec: Mapping[str, Any]) -> str:
    """Digest of the fields that are ours, with the API server's defaults left out."""
    ours = {
        "parents": [
            [parent.get("name"), parent.get("namespace"), parent.get("sectionName")]
            for parent in spec.get("parentRefs") or ()
        ],
        "hosts": spec.get("hostnames") or [],
        "rules": [
            [
                [_path(match) for match in rule.get("matches") or ()],
                [[ref.get("name"), ref.get("port"), ref.get("weight", 1)] for ref in rule.get("backendRefs") or ()],
            ]
            for rule in spec.get("rules") or ()
        ],
    }
    return hashlib.sha256(json.dumps(ours, sort_keys=True).encode()).hexdigest()[:16]


def hosts_of(manifest: Manifest) -> frozenset[tuple[str, str, str]]:
    """Gateway namespace, gateway name and host name, of each way into the route."""
    spec, namespace = manifest.get("spec") or {}, manifest["metadata"].get("namespace", "")
    return frozenset(
        (parent.get("namespace") or namespace, parent.get("name") or "", host)
        for parent in spec.get("parentRefs") or ()
        for host in spec.get("hostnames") or ()
    )


def _split(text: str | None) -> Split | None:
    try:
        return None if text is None else Split.model_validate_json(text)
    except ValidationError:
        return None


def _weights(service: str, spec: Mapping[str, Any]) -> dict[int, int]:
    """By revision, the lowest over the rules; what is no revision of ours does not count."""
    found: dict[int, int] = {}
    rules = spec.get("rules") or ()
    prefix = names.revision_name(service, 0)[:-1]
    for rule in rules:
        for ref in rule.get("backendRefs") or ():
            number = str(ref.get("name", "")).removeprefix(prefix)
            if number.isdigit():
                weight = ref.get("weight", 1)
                found[int(number)] = min(found.get(int(number), weight), weight)
    return found


def _path(match: Mapping[str, Any]) -> list[Any]:
    path = match.get("path") or {}
    method = match.get("method")
    return [path.get("type"), path.get("value"), method if isinstance(method, str) else None]


def _extras(spec: Mapping[str, Any], path: str) -> Manifest:
    for rule in spec.get("rules") or ():
        if any((match.get("path") or {}).get("value") == path for match in rule.get("matches") or ()):
            return {name: value for name, value in rule.items() if name not in OURS}
    return {}


def _verdict_of_gateways(manifest: Manifest) -> tuple[Refusal | None, bool, bool]:
    """The first condition against it as it is now; whether a gateway ever accepted it, and as it is now."""
    generation = manifest["metadata"].get("generation", 0)
    accepted = taken_up = False
    for condition in _conditions((manifest.get("status") or {}).get("parents") or ()):
        current = condition.get("observedGeneration", generation) >= generation
        if condition["status"] == "False" and current and condition["type"] in {"Accepted", "ResolvedRefs"}:
            return Refusal(condition.get("reason", "NotAccepted"), condition.get("message", "")), False, False
        if condition["status"] == "True" and condition["type"] == "Accepted":
            accepted, taken_up = True, taken_up or current
    return None, accepted, taken_up


def _conditions(parents: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for parent in parents:
        yield from parent.get("conditions") or ()
