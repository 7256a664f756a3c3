"""What this version does not do is refused by the API server and by the controller alike, never ignored."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import yaml

from bigmodel.api import crd
from bigmodel.api.names import API_VERSION
from bigmodel.api.not_yet import TABLE, NotYet, refused
from tests.api.kubectl import Kubectl, Refused

BASE: dict[str, dict[str, Any]] = {
    "BigModelJob": {"recipe": {"name": "mlp"}},
    "BigModelService": {"model": {"fromJob": {"name": "mlp"}}},
}
# Values for fields whose schema does not say one.
SAMPLES: dict[str, Any] = {
    "spec.recipe.data.uri": "s3://data/train",
    "spec.output.optimize": [{"name": "int8", "quantize": {"method": "dynamic-int8"}}],
    "spec.model.fromJobs": {"selector": {"matchLabels": {"model": "mlp"}}},
    "spec.model.variant": "int8",
    "spec.route": {"parentRefs": [{"name": "gateway"}], "hostnames": ["mlp.example.com"]},
    "spec.gates.accuracy": [{"metric": "val_mse", "goal": "minimize", "atMost": 3000}],
    "spec.gates.evaluation": {
        "data": {"uri": "s3://data/test"}, "metric": "mse", "goal": "minimize", "maxRelativeDrop": 0.02
    },
    "spec.gates.change": {"maxChangedShare": 0.05},
    "spec.rollout.steps": [10, 20],
    "spec.rollout.pin": {"revision": 6},
}  # fmt: skip


def rows_of(resource: crd.Resource) -> list[NotYet]:
    return [row for row in TABLE if crd.at(schema(resource), row.path) is not None]


@cache
def schema(resource: crd.Resource) -> dict[str, Any]:
    root: dict[str, Any] = crd.definition(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return root


def unserved(resource: crd.Resource, row: NotYet) -> Any:
    """A value the schema allows and the row does not."""
    if row.path in SAMPLES:
        return SAMPLES[row.path]
    field = crd.at(schema(resource), row.path)
    assert field is not None
    match field["type"]:
        case "boolean":
            return True not in row.served
        case "integer" | "number":
            least = field.get("minimum", 0)
            return next(value for value in (least + 1, least + 2) if value not in row.served)
        case "string" if "enum" in field:
            return next(value for value in field["enum"] if value not in row.served)
    raise AssertionError(f"add an example of {row.path} to SAMPLES")


def with_values(resource: crd.Resource, values: dict[str, Any]) -> dict[str, Any]:
    """A manifest with these values at these paths."""
    manifest: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": resource.kind,
        "metadata": {"name": "not-yet"},
        "spec": yaml.safe_load(yaml.safe_dump(BASE[resource.kind])),
    }
    for path, value in values.items():
        *parents, last = path.split(".")
        node = manifest
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last.removesuffix("[]")] = [value] if last.endswith("[]") else value
    return manifest


def test_every_row_is_about_a_field_of_one_resource() -> None:
    assert [row.path for resource in crd.RESOURCES for row in rows_of(resource)] == [row.path for row in TABLE]


@pytest.mark.parametrize("resource", crd.RESOURCES, ids=lambda resource: resource.kind)
def test_what_is_not_served_is_refused_with_the_way_out(kubectl: Kubectl, resource: crd.Resource) -> None:
    rows = rows_of(resource)
    manifest = with_values(resource, {row.path: unserved(resource, row) for row in rows})
    with pytest.raises(Refused) as answer:
        kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(manifest))
    lines = str(answer.value).splitlines()
    unsaid = [
        row.path
        for row in rows
        if not any(
            line.startswith(f"* {row.path.replace('[]', '[0]')}: ") and line.endswith(row.message()) for line in lines
        )
    ]
    assert unsaid == []
    sentences = refused(manifest["spec"])
    assert [sentence.partition(" ")[0].rstrip(":") for sentence in sentences] == [
        row.path.removesuffix("[]") for row in rows
    ]
    assert all(sentence.endswith(row.message()) for sentence, row in zip(sentences, rows, strict=True))


@pytest.mark.parametrize("resource", crd.RESOURCES, ids=lambda resource: resource.kind)
def test_every_served_value_is_accepted(kubectl: Kubectl, resource: crd.Resource) -> None:
    rows = [row for row in rows_of(resource) if row.served]
    for turn in range(max((len(row.served) for row in rows), default=0)):
        manifest = with_values(resource, {row.path: row.served[turn % len(row.served)] for row in rows})
        kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(manifest))
        assert refused(manifest["spec"]) == []
