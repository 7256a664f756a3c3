"""What the schema already has and this version does not do yet: refused with a message, never silently ignored.

ONE table. The API server refuses by CEL rules made from it, the controller by `refused`; whoever builds a behaviour
deletes its row and runs `make generate`. Empty at the end.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Scalar = str | int | float | bool


@dataclass(frozen=True)
class NotYet:
    """One field. `path` is as in YAML, `[]` for every element of a list.

    `served` are the values this version does; none: the field must be left out. An empty list counts as left out.
    """

    path: str
    served: tuple[Scalar | list[int], ...]
    way_out: str

    def message(self) -> str:
        return f"not served by this version: {self.way_out}"


def _only(path: str, *served: Scalar | list[int]) -> NotYet:
    values = [_yaml(value) for value in served]
    return NotYet(path, served, f"use {' or '.join(filter(None, [', '.join(values[:-1]), values[-1]]))}")


def _without(path: str, way_out: str = "leave it out") -> NotYet:
    return NotYet(path, (), way_out)


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


TABLE: tuple[NotYet, ...] = (
    # BigModelJob
    _only("spec.recipe.name", "mlp"),
    _only("spec.recipe.data.uri", "dataset://diabetes"),
    _only("spec.recipe.data.onBadRecord", "fail"),
    _only("spec.recipe.loss", "mse", "mae", "huber"),
    _only("spec.recipe.precision", "fp32", "bf16"),
    _only("spec.recipe.compile", False),
    _only("spec.parallelism.pipeline", 1),
    _without("spec.output.optimize"),
    _only("spec.output.export[]", "torch"),
    # BigModelService
    _only("spec.model.variant", "default"),
    _only("spec.server.backend", "auto", "python"),
)


def refused(spec: Mapping[str, Any]) -> list[str]:
    """Why this version cannot do `spec` (of either kind, as JSON): for each field a sentence with value and way out.

    The same verdict as the API server's, for objects that came past it: under a CRD of another version.
    """
    found = ((row, value) for row in TABLE for value in _values({"spec": spec}, row.path.split(".")))
    return [_sentence(row, value) for row, value in found if value not in row.served]


def _sentence(row: NotYet, value: object) -> str:
    path = row.path.removesuffix("[]")
    return f"{path}: {_yaml(value)} is {row.message()}" if row.served else f"{path} is {row.message()}"


def _values(node: object, path: list[str]) -> Iterator[object]:
    """The values at `path`; nothing where a field on the way, or the last, is left out, null or an empty list."""
    if node is None or node == []:
        return
    if not path:
        yield node
        return
    name = path[0].removesuffix("[]")
    if not isinstance(node, Mapping) or name not in node:
        return
    children = node[name] if path[0].endswith("[]") else [node[name]]
    for child in children if isinstance(children, list) else ():  # else a shape that no schema allows
        yield from _values(child, path[1:])
