"""Live objects ↔ named tensors and plain values.

A state is what the program hands over: `{"model": module, "optimizer": optimizer, "epoch": 3, …}`. Every tensor in it
gets a name, a JSON pointer such as `model/layers.0.weight`; whatever else is in it becomes JSON with tags for what
JSON has not (tuples, keys that are no text, NaN). Parameters are called by name, not by number, so that plain, DDP and
FSDP2 models (DTensor) exchange checkpoints, whatever the number of ranks.

Values that are no tensors are those of rank 0: what differs from rank to rank must be a tensor with the rank in its
name.
"""

import math
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from bigmodel.trainer.checkpoint.errors import InvalidState, MismatchedState
from bigmodel.trainer.checkpoint.manifest import SavedTensor

Json = Any
State = MutableMapping[str, Any]


@runtime_checkable
class Stateful(Protocol):
    """Learning-rate schedules, gradient scalers, data loaders that know their place, and whatever else has these."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


def collect(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """(live tensors by name, everything else by entry). Copies nothing, changes nothing. Raises InvalidState."""
    tensors: dict[str, Tensor] = {}
    names = _parameter_names(state)
    values = {entry: _encoded(_plain(value, entry, names), (entry,), tensors) for entry, value in state.items()}
    return tensors, values


def staging(
    state: Mapping[str, Any], saved: Mapping[str, SavedTensor], values: Mapping[str, Json]
) -> dict[str, Tensor]:
    """Empty tensors, by name, for everything a checkpoint holds; sharded as the live ones are.

    Loading goes into these and not into the live ones: a checkpoint that turns out corrupt must leave no trace.
    Raises MismatchedState where the checkpoint is of another program.
    """
    _check_entries(state, values)
    parameters = {name: parameter for parameter, name in _parameters(state)}
    empty: dict[str, Tensor] = {}
    for entry, value in state.items():
        inside = {name: tensor for name, tensor in saved.items() if name.split("/", 1)[0] == _escaped(entry)}
        match value:
            case nn.Module() | Tensor():
                live: dict[str, Tensor] = {}
                _encoded(_plain(value, entry, {}), (entry,), live)
                _check_tensors(live, inside)
                empty |= {name: torch.empty_like(tensor, requires_grad=False) for name, tensor in live.items()}
            case Optimizer():
                empty |= {name: _like(parameters, name, tensor) for name, tensor in inside.items()}
            case _:
                empty |= {name: torch.empty(tensor.shape, dtype=dtype(tensor)) for name, tensor in inside.items()}
    return empty


@torch.no_grad()
def restore(state: State, loaded: Mapping[str, Tensor], values: Mapping[str, Json]) -> None:
    """Put what was loaded into the live objects; numbers and other plain values are replaced in `state` itself."""
    names = _parameter_names(state)
    for entry, value in state.items():
        found = _decoded(values[entry], loaded)
        match value:
            case nn.Module():
                unwrapped(value).load_state_dict(found)
            case Optimizer():
                value.load_state_dict(_by_number(value, found, entry, names))
            case Tensor():
                value.copy_(found)
            case Stateful():
                value.load_state_dict(found)
            case _:
                state[entry] = found


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that DDP and torch.compile were given: its names carry no prefix."""
    while True:
        if isinstance(module, DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def dtype(tensor: SavedTensor) -> torch.dtype:
    found = getattr(torch, tensor.dtype, None)
    if not isinstance(found, torch.dtype):
        raise MismatchedState(f"this torch ({torch.__version__}) has no element type {tensor.dtype!r}")
    return found


# Optimizers, by name of their parameters


def _parameters(state: Mapping[str, Any]) -> list[tuple[Tensor, str]]:
    modules = {entry: unwrapped(value) for entry, value in state.items() if isinstance(value, nn.Module)}
    return [(parameter, f"{entry}.{name}") for entry, m in modules.items() for name, parameter in m.named_parameters()]


def _parameter_names(state: Mapping[str, Any]) -> dict[int, str]:
    return {id(parameter): name for parameter, name in _parameters(state)}


def _names_of(optimizer: Optimizer, entry: str, names: Mapping[int, str]) -> list[str]:
    """Of its parameters, in the order by which its state numbers them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if missing := [tuple(parameter.shape) for parameter in parameters if id(parameter) not in names]:
        raise InvalidState(
            f"{entry!r} updates {len(missing)} parameters (first shape: {missing[0]}) of no module in the state; "
            'hand over the module too: {"model": model, "optimizer": optimizer}'
        )
    return [names[id(parameter)] for parameter in parameters]


def _plain(value: Any, entry: str, names: Mapping[int, str]) -> Any:
    match value:
        case nn.Module():
            return dict(unwrapped(value).state_dict())
        case Optimizer():
            numbered, known = value.state_dict(), _names_of(value, entry, names)
            return {
                "state": {known[number]: dict(of) for number, of in numbered["state"].items()},
                "groups": [
                    {**group, "params": [known[number] for number in group["params"]]}
                    for group in numbered["param_groups"]
                ],
            }
        case Tensor():
            return value
        case Stateful():
            return value.state_dict()
        case _:
            return value


def _by_number(optimizer: Optimizer, found: Any, entry: str, names: Mapping[int, str]) -> dict[str, Any]:
    """What `Optimizer.load_state_dict` takes: the hyperparameters of the checkpoint, the numbers of the live one."""
    known = _names_of(optimizer, entry, names)
    numbers = {name: number for number, name in enumerate(known)}
    live = optimizer.state_dict()["param_groups"]
    want = [[known[number] for number in group["params"]] for group in live]
    have = [group["params"] for group in found["groups"]]
    if [sorted(group) for group in want] != [sorted(group) for group in have]:
        raise MismatchedState(
            f"{entry!r}: the checkpoint's optimizer has {sum(map(len, have))} parameters in {len(have)} groups, the "
            f"program's has {sum(map(len, want))} in {len(want)}, or others; it is of another program"
        )
    return {
        "state": {numbers[name]: of for name, of in found["state"].items()},
        "param_groups": [
            {**saved, "params": group["params"]} for saved, group in zip(found["groups"], live, strict=True)
        ],
    }


def _like(parameters: Mapping[str, Tensor], name: str, saved: SavedTensor) -> Tensor:
    """Optimizer state of a sharded parameter's shape is sharded as it is; the rest is the same on every rank."""
    _, _, parameter_name, *_ = *name.split("/"), "", ""
    parameter = parameters.get(_unescaped(parameter_name))
    if isinstance(parameter, DTensor) and list(parameter.shape) == saved.shape:
        return torch.empty_like(parameter, dtype=dtype(saved), requires_grad=False)
    return torch.empty(saved.shape, dtype=dtype(saved))


def _check_entries(state: Mapping[str, Any], values: Mapping[str, Json]) -> None:
    if state.keys() != values.keys():
        raise MismatchedState(
            f"the checkpoint holds {', '.join(sorted(values))}, the program's state is {', '.join(sorted(state))}; "
            "they must have the same entries: make a new job for another program"
        )


def _check_tensors(live: Mapping[str, Tensor], saved: Mapping[str, SavedTensor]) -> None:
    for name in sorted(live.keys() | saved.keys()):
        have = tuple(saved[name].shape) if name in saved else "missing"
        want = tuple(live[name].shape) if name in live else "missing"
        if have != want:
            raise MismatchedState(
                f"{name} is {have} in the checkpoint and {want} in the program; it is of another program: "
                "make a new job for another model"
            )


# Values


def _encoded(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Json:
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        case Tensor():
            name = "/".join(map(_escaped, path))
            tensors[name] = value.detach()
            return {"tensor": name}
        case list():
            return [_encoded(item, (*path, str(index)), tensors) for index, item in enumerate(value)]
        case tuple():
            return {"tuple": [_encoded(item, (*path, str(index)), tensors) for index, item in enumerate(value)]}
        case Mapping():
            if other := [key for key in value if not isinstance(key, str | int | float | bool | tuple | None)]:
                raise InvalidState(f"{'/'.join(path)} has a key of type {type(other[0]).__name__}; use text or numbers")
            return {
                "map": [
                    [_encoded(key, path, {}), _encoded(item, (*path, str(key)), tensors)] for key, item in value.items()
                ]
            }
    raise InvalidState(
        f"{'/'.join(path)} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds tensors, "
        "numbers, text, lists, tuples, dicts and, as entries, objects with state_dict() and load_state_dict()"
    )


def _decoded(value: Json, tensors: Mapping[str, Tensor]) -> Any:
    match value:
        case list():
            return [_decoded(item, tensors) for item in value]
        case {"tensor": name}:
            return tensors[name]
        case {"tuple": items}:
            return tuple(_decoded(item, tensors) for item in items)
        case {"map": pairs}:
            return {_decoded(key, tensors): _decoded(item, tensors) for key, item in pairs}
        case {"float": text}:
            return float(text)
    return value


def _escaped(part: str) -> str:
    """As in RFC 6901."""
    return part.replace("~", "~0").replace("/", "~1")


def _unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
