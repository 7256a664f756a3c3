"""The generated CRDs: what a structural schema must be, what users are promised, and that the files are the models'."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from bigmodel.api import crd
from bigmodel.api.job import JobSpec
from bigmodel.api.model import Model
from bigmodel.api.service import ServiceSpec

RESOURCES = pytest.mark.parametrize("resource", crd.RESOURCES, ids=lambda resource: resource.kind)
Fields = Iterator[tuple[str, dict[str, Any]]]


def schema(resource: crd.Resource) -> dict[str, Any]:
    root: dict[str, Any] = version(resource)["schema"]["openAPIV3Schema"]
    return root


@cache
def version(resource: crd.Resource) -> dict[str, Any]:
    (only,) = crd.definition(resource)["spec"]["versions"]
    assert isinstance(only, dict)
    return only


def nodes(node: dict[str, Any], path: str = "") -> Fields:
    """Every schema in a schema, with its path."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from nodes(node[key], f"{path}[]")


def offenders(found: Fields) -> list[str]:
    return [path for path, _ in found]


@RESOURCES
def test_it_is_small(resource: crd.Resource) -> None:
    compact = json.dumps(crd.definition(resource), separators=(",", ":"), ensure_ascii=False).encode()
    assert len(compact) <= 60_000
    assert len(crd.text(resource).encode()) <= 100_000


@RESOURCES
def test_every_field_is_described(resource: crd.Resource) -> None:
    fields = ((path, node) for path, node in nodes(schema(resource)) if path not in ("", ".metadata"))
    assert (
        offenders(
            (p, n) for p, n in fields if not p.endswith("[]") and not n.get("description", "").endswith((".", ":"))
        )
        == []
    )


@RESOURCES
def test_it_is_structural(resource: crd.Resource) -> None:
    for path, node in nodes(schema(resource)):
        assert not {"$ref", "$defs", "anyOf", "allOf", "oneOf", "not", "const", "title", "nullable"} & node.keys(), path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not ("properties" in node and "additionalProperties" in node), path


@RESOURCES
def test_everything_is_bounded(resource: crd.Resource) -> None:
    found = [(path, node) for path, node in nodes(schema(resource)) if path.startswith((".spec", ".status"))]
    strings = ((p, n) for p, n in found if n.get("type") == "string" or n.get("x-kubernetes-int-or-string"))
    assert offenders((p, n) for p, n in strings if not {"maxLength", "enum", "format"} & n.keys()) == []
    assert offenders((p, n) for p, n in found if n.get("type") == "array" and "maxItems" not in n) == []
    maps = ((p, n) for p, n in found if n.get("type") == "object" and "properties" not in n)
    assert offenders((p, n) for p, n in maps if "maxProperties" not in n) == []


@RESOURCES
def test_every_list_says_how_it_merges(resource: crd.Resource) -> None:
    for path, node in nodes(schema(resource)):
        if node.get("type") != "array":
            continue
        match node["x-kubernetes-list-type"]:
            case "map":
                assert set(node["x-kubernetes-list-map-keys"]) <= set(node["items"]["required"]), path
            case "set":
                assert node["items"]["type"] == "string", path
            case kind:
                assert kind == "atomic", path
    keys = {
        path: node["x-kubernetes-list-map-keys"]
        for path, node in nodes(schema(resource))
        if "x-kubernetes-list-map-keys" in node
    }
    assert keys[".status.conditions"] == ["type"]
    if resource is crd.JOB:
        assert {path: keys[f".spec.{path}"] for path in ("env", "volumes", "imagePullSecrets", "volumeMounts")} == {
            "env": ["name"],
            "volumes": ["name"],
            "imagePullSecrets": ["name"],
            "volumeMounts": ["mountPath"],
        }


@RESOURCES
def test_status_has_neither_defaults_nor_rules(resource: crd.Resource) -> None:
    found = nodes(schema(resource)["properties"]["status"])
    assert offenders((p, n) for p, n in found if {"default", "x-kubernetes-validations"} & n.keys()) == []


def fill_in(node: dict[str, Any], value: Any) -> Any:
    """What the API server makes of a value by the schema's defaults."""
    if isinstance(value, dict):
        for name, child in node.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = copy.deepcopy(child["default"])
            if name in value:
                value[name] = fill_in(child, value[name])
    if isinstance(value, list):
        return [fill_in(node["items"], item) for item in value]
    return value


SPECS: dict[str, tuple[crd.Resource, type[Model], dict[str, Any]]] = {
    "the smallest job": (crd.JOB, JobSpec, {"recipe": {"name": "mlp"}}),
    "a job with something in every part that has defaults": (
        crd.JOB,
        JobSpec,
        {
            "recipe": {"name": "mlp", "data": {}, "optimizer": {"name": "sgd"}, "schedule": {}},
            "checkpoint": {"everySeconds": 5},
            "failurePolicy": {"rules": [{"action": "Restart"}]},
            "output": {"optimize": [{"name": "a", "distill": {}}]},
        },
    ),
    "the smallest service": (crd.SERVICE, ServiceSpec, {"model": {"fromJob": {"name": "mlp"}}}),
    "a service with something in every part that has defaults": (
        crd.SERVICE,
        ServiceSpec,
        {"model": {"fromJobs": {"selector": {"matchLabels": {"a": "b"}}}}, "gates": {"parity": {}}},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("resource", "model", "spec"), SPECS.values(), ids=SPECS)
def test_the_api_server_fills_in_what_the_models_would(
    resource: crd.Resource, model: type[Model], spec: dict[str, Any]
) -> None:
    filled = fill_in(schema(resource)["properties"]["spec"], copy.deepcopy(spec))
    assert model.model_validate(filled) == model.model_validate(spec)
    assert filled.keys() <= model.model_validate(spec).wire().keys()


@RESOURCES
def test_columns_scale_and_selectors_point_at_fields(resource: crd.Resource) -> None:
    def field(path: str) -> dict[str, Any]:
        found = crd.at(schema(resource), path.removeprefix("."))
        assert found is not None, path
        return found

    for column in version(resource)["additionalPrinterColumns"]:
        path = column["jsonPath"]
        if path == ".metadata.creationTimestamp":
            continue
        found = field(path.partition("[?")[0])
        if "[?" not in path:
            expected = found.get("format", "").replace("date-time", "date") or found["type"]
            assert column["type"] == expected, path
    scale = version(resource)["subresources"]["scale"]
    assert field(scale["specReplicasPath"])["type"] == field(scale["statusReplicasPath"])["type"] == "integer"
    assert field(scale["labelSelectorPath"])["type"] == "string"
    for selectable in version(resource)["selectableFields"]:
        assert field(selectable["jsonPath"])["type"] in ("string", "boolean", "integer")


def test_names_are_those_people_type() -> None:
    assert [
        (names["plural"], names["shortNames"], names["categories"])
        for names in (crd.definition(resource)["spec"]["names"] for resource in crd.RESOURCES)
    ] == [("bigmodeljobs", ["bmj"], ["bigmodel"]), ("bigmodelservices", ["bms"], ["bigmodel"])]


def test_the_committed_files_are_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main(["--check"]) == 0, capsys.readouterr().err


def test_check_names_the_file_that_differs_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crd, "REPOSITORY", tmp_path)
    monkeypatch.setattr(crd, "FOLDERS", (tmp_path / "crds",))
    assert crd.main([]) == 0
    file = tmp_path / "crds/bigmodel.io_bigmodeljobs.yaml"
    assert yaml.safe_load(file.read_text()) == crd.definition(crd.JOB)
    assert crd.main(["--check"]) == 0
    file.write_text(file.read_text().replace("minimum: 1", "minimum: 0", 1))
    edited = file.read_text()
    assert crd.main(["--check"]) == 1
    assert capsys.readouterr().err == "crds/bigmodel.io_bigmodeljobs.yaml differs from the models: run make generate\n"
    assert file.read_text() == edited


class Unwritable(Model):
    either: Annotated[int | bool, Field(description="Of two types.")] = 0


class Multiple(Model):
    even: Annotated[int, Field(multiple_of=2, description="A bound a CRD could hold and ours does not know.")] = 0


@pytest.mark.parametrize("model", [Unwritable, Multiple])
def test_what_cannot_be_written_is_an_error_not_a_lost_bound(model: type[Model]) -> None:
    with pytest.raises(TypeError, match="into a CRD"):
        crd.structural(model)
