"""Writes the CustomResourceDefinitions from the models: `python -m bigmodel.api.crd [--check]`.

A structural schema is OpenAPI 3.0 with everything in place: no $ref, no null, a type everywhere. The same bytes go to
crds/ and to the chart. `--check` writes nothing and exits 1 if a file differs.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bigmodel.api import rules
from bigmodel.api.job import JobSpec, JobStatus
from bigmodel.api.model import Model
from bigmodel.api.names import GROUP, VERSION
from bigmodel.api.not_yet import TABLE
from bigmodel.api.service import ServiceSpec, ServiceStatus

Schema = dict[str, Any]

REPOSITORY = Path(__file__).parents[3]
FOLDERS = (REPOSITORY / "crds", REPOSITORY / "charts/bigmodel-operator/files/crds")
HEADER = "# Made by `make generate` from operator/bigmodel/api. Do not edit.\n"

# What a structural schema may hold and ours does. Anything else pydantic says is an error here: dropped silently it
# would be a bound that nobody checks.
KEPT = {
    *("type", "description", "default", "enum", "format", "properties", "required", "items", "additionalProperties"),
    *("minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength", "pattern", "minItems", "maxItems"),
    *("minProperties", "maxProperties", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
}
# Without meaning for the API server. The keys of maps (propertyNames) cannot be bounded in a CRD: rules do it.
DROPPED = {"title", "propertyNames"}


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; `wide` ones appear with -o wide."""

    name: str
    json_path: str
    type: str = "string"
    description: str = ""
    wide: bool = False

    def schema(self) -> Schema:
        column: Schema = {"name": self.name, "type": self.type, "jsonPath": self.json_path}
        if self.description:
            column["description"] = self.description
        return column | ({"priority": 1} if self.wide else {})


@dataclass(frozen=True)
class Resource:
    """All that makes one CRD."""

    kind: str
    short_name: str
    description: str
    spec: type[Model]
    status: type[Model]
    spec_description: str
    replicas: str
    ready: str
    columns: tuple[Column, ...]
    selectable: tuple[str, ...]

    @property
    def plural(self) -> str:
        return f"{self.kind.lower()}s"


AGE = Column("AGE", ".metadata.creationTimestamp", "date")
JOB = Resource(
    kind="BigModelJob",
    short_name="bmj",
    description="BigModelJob trains a model on a gang of pods and publishes it as one verified artefact. "
    "The smallest: spec: {recipe: {name: mlp}}.",
    spec=JobSpec,
    status=JobStatus,
    spec_description="What to train, on what, and what a failure costs.",
    replicas=".spec.nodes",
    ready=".status.nodes.ready",
    columns=(
        Column("PHASE", ".status.phase"),
        Column("NODES", ".status.nodes.summary", description="Pods ready and wanted"),
        Column("PROGRESS", ".status.progress.summary"),
        Column("LOSS", ".status.progress.loss"),
        Column("GOODPUT", ".status.goodput.summary", description="Share of the time that made steps that count"),
        Column("RESTARTS", ".status.restarts.total", "integer"),
        Column("CHECKPOINT", ".status.checkpoint.savedAt", "date", "Age of the newest checkpoint"),
        AGE,
        Column("ETA", ".status.progress.etaSeconds", "integer", "Seconds to the last step", wide=True),
        Column("STEP", ".status.progress.step", "integer", wide=True),
        Column("STEPS/S", ".status.progress.stepsPerSecond", wide=True),
        Column("ATTEMPT", ".status.attempt", "integer", wide=True),
        Column("ARTIFACT", ".status.artifact.shortDigest", wide=True),
        Column("MESSAGE", ".status.message", wide=True),
    ),
    selectable=(".status.phase", ".spec.suspend"),
)
SERVICE = Resource(
    kind="BigModelService",
    short_name="bms",
    description="BigModelService serves a trained model on Triton under one stable address; a new model takes over "
    "only after it passed its gates. The smallest: spec: {model: {fromJob: {name: mlp}}}.",
    spec=ServiceSpec,
    status=ServiceStatus,
    spec_description="What to serve, where, and what a new model must pass.",
    replicas=".spec.server.replicas",
    ready=".status.replicas.ready",
    columns=(
        Column("READY", '.status.conditions[?(@.type=="Ready")].status'),
        Column("SERVING", ".status.stable.summary", description="Revision that takes the traffic"),
        Column("ROLLOUT", ".status.rollout", description="Revision on its way"),
        Column("REPLICAS", ".status.replicas.summary", description="Pods verified and wanted"),
        Column("URL", ".status.url"),
        AGE,
        Column("P99", ".status.traffic.p99", wide=True),
        Column("ERRORS", ".status.traffic.errors", wide=True),
        Column("DIGEST", ".status.stable.shortDigest", wide=True),
        Column("BACKEND", ".status.stable.backend", wide=True),
        Column("MESSAGE", ".status.message", wide=True),
    ),
    selectable=(".status.phase",),
)
RESOURCES = (JOB, SERVICE)


def definition(resource: Resource) -> Schema:
    """The complete CustomResourceDefinition, as JSON."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{resource.plural}.{GROUP}",
            # `helm uninstall` must not take every job and service of the cluster with it.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [resource.short_name],
                "categories": ["bigmodel"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": resource.replicas,
                            "statusReplicasPath": resource.ready,
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [column.schema() for column in resource.columns],
                    "selectableFields": [{"jsonPath": path} for path in resource.selectable],
                    "schema": {"openAPIV3Schema": _root(resource)},
                }
            ],
        },
    }


def _root(resource: Resource) -> Schema:
    spec = structural(resource.spec) | {"description": resource.spec_description}
    status = structural(resource.status) | {"description": "What is true, as the operator last saw it."}
    _keep_shape_only(status)
    root: Schema = {
        "type": "object",
        "description": resource.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"{resource.kind}."},
            "metadata": {"type": "object"},  # the API server describes it
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": [rule.schema() for rule in rules.at_root(resource.spec)],
    }
    for row in TABLE:
        node = at(root, row.path)
        if node is not None:
            node.setdefault("x-kubernetes-validations", []).append(rules.not_served(row, node["type"]).schema())
    return root


def at(root: Schema, path: str) -> Schema | None:
    """The schema of the field at `path` as not_yet writes it (`spec.output.export[]`), None if there is none."""
    node: Schema | None = root
    for part in path.split("."):
        node = node.get("properties", {}).get(part.removesuffix("[]")) if node else None
        if node and part.endswith("[]"):
            node = node["items"]
    return node


def structural(model: type[Model]) -> Schema:
    """The structural schema of a model, with the rules of every model in it."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    validations = {kind.__name__: [rule.schema() for rule in found] for kind, found in rules.OF_MODEL.items()}
    result = _structural(schema, definitions, validations)
    if model.__name__ in validations:
        result["x-kubernetes-validations"] = validations[model.__name__]
    return result


def _structural(node: Schema, definitions: Mapping[str, Schema], validations: Mapping[str, list[Schema]]) -> Schema:
    node, model = _in_place(node, definitions)
    if node.pop("x-kubernetes-int-or-string", False):
        node = _int_or_string(node)
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if "exclusiveMinimum" in node:  # a number in JSON Schema, a flag beside minimum in OpenAPI 3.0
        node |= {"minimum": node["exclusiveMinimum"], "exclusiveMinimum": True}
    if node.get("additionalProperties") is True:
        del node["additionalProperties"]
    if node.get("minLength") == 1 and not re.search(node.get("pattern", ""), ""):
        del node["minLength"]  # the pattern refuses the empty string already
    for name in DROPPED & node.keys():
        del node[name]
    if unknown := node.keys() - KEPT - {"x-kubernetes-validations"}:
        raise TypeError(f"no rule how to write {sorted(unknown)} of {node} into a CRD: extend bigmodel.api.crd")

    if "properties" in node:
        node["properties"] = {
            name: _structural(child, definitions, validations) for name, child in node["properties"].items()
        }
    if "items" in node:
        node["items"] = _structural(node["items"], definitions, validations)
        node.setdefault("x-kubernetes-list-type", "atomic")
    if "additionalProperties" in node:
        node["additionalProperties"] = _structural(node["additionalProperties"], definitions, validations)
    if model in validations:
        node["x-kubernetes-validations"] = list(validations[model])
    _set_default(node)
    return {key: node[key] for key in sorted(node, key=_reading_order)}


def _in_place(node: Schema, definitions: Mapping[str, Schema]) -> tuple[Schema, str]:
    """The node without $ref and null, and the name of the model it came from. Its own keys win over the model's."""
    node, model = dict(node), ""
    while "$ref" in node or "anyOf" in node:
        if "$ref" in node:
            model = node.pop("$ref").rpartition("/")[2]
            node = definitions[model] | node
            continue
        choices = [choice for choice in node["anyOf"] if choice.get("type") != "null"]
        if len(choices) > 1:  # int or string
            break
        del node["anyOf"]
        node = choices[0] | node
        if node.get("default", 0) is None:
            del node["default"]
    if node.get("x-kubernetes-int-or-string") is None and "anyOf" in node and len(node["anyOf"]) > 1:
        merged = [_in_place(choice, definitions)[0] for choice in node["anyOf"] if choice.get("type") != "null"]
        raise TypeError(f"a field of {len(merged)} types cannot be written into a CRD: {merged}")
    return node, model


def _int_or_string(node: Schema) -> Schema:
    choices = [choice for choice in node.pop("anyOf") if choice.get("type") != "null"]
    number = next(choice for choice in choices if choice.get("type") == "integer")
    rule = rules.QUANTITY
    if any("const" in choice for choice in choices):
        rule = rules.count(number["minimum"], number["maximum"])
    node.pop("type", None)
    return node | {
        "x-kubernetes-int-or-string": True,
        "maxLength": 32,  # of the string; bounds the cost of rules
        "x-kubernetes-validations": [rule.schema()],
    }


def _set_default(node: Schema) -> None:
    """Leave only defaults that say something; `{}` on a parent makes the API server fill in those of its fields."""
    default = node.get("default")
    if "properties" in node and default is not None:
        node["default"] = {}
        if not any("default" in child for child in node["properties"].values()):
            del node["default"]
        return
    if default in (None, [], {}):
        node.pop("default", None)
    elif "Default:" not in node.get("description", "Default:"):  # kubectl explain shows no defaults
        shown = yaml.safe_dump(default, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
        node["description"] += f" Default: {shown}."
    if isinstance(default, float) and default.is_integer():
        node["default"] = int(default)  # as the API server stores it


def _keep_shape_only(node: Schema) -> None:
    """The operator writes status whole: a default there would be a fact nobody observed, a rule a check too late."""
    for child in _children(node):
        child.pop("default", None)
        child.pop("x-kubernetes-validations", None)
        _keep_shape_only(child)


def _children(node: Schema) -> Iterator[Schema]:
    yield from node.get("properties", {}).values()
    yield from (node[key] for key in ("items", "additionalProperties") if key in node)


def _reading_order(key: str) -> tuple[int, str]:
    first = ("description", "type", "format", "enum", "default")
    last = ("required", "x-kubernetes-validations", "properties", "items", "additionalProperties")
    if key in first:
        return first.index(key), key
    return (len(first) + 1 + last.index(key), key) if key in last else (len(first), key)


def text(resource: Resource) -> str:
    """The file."""
    return HEADER + yaml.safe_dump(definition(resource), sort_keys=False, allow_unicode=True, width=120)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bigmodel.api.crd", description="Write the CRDs from the models.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    check = parser.parse_args(arguments).check
    wanted = {
        folder / f"{GROUP}_{resource.plural}.yaml": text(resource) for folder in FOLDERS for resource in RESOURCES
    }
    stale = [path for path, content in wanted.items() if not path.exists() or path.read_text() != content]
    for path in stale:
        if check:
            print(f"{path.relative_to(REPOSITORY)} differs from the models: run make generate", file=sys.stderr)  # noqa: T201
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
