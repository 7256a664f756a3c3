"""The contract gate: does the candidate take every request that stable takes, and give the same outputs? Pure.

Of signatures alone: what `spec.batching` says is the user's own wish, not the model's.
"""

from collections.abc import Mapping

from bigmodel.artifact.manifest import Dimension, Signature, Tensor
from bigmodel.artifact.summary import Summary


def differences(stable: Summary, candidate: Summary) -> list[str]:
    """What breaks for a client of stable, one sentence each; empty: nothing."""
    if stable.signature_digest == candidate.signature_digest:
        return []
    if stable.signature is None or candidate.signature is None:
        return ["the signatures differ, and are too long to be compared one tensor at a time"]
    return _inputs(stable.signature, candidate.signature) + _outputs(stable.signature, candidate.signature)


def _inputs(stable: Signature, candidate: Signature) -> list[str]:
    before, after = _by_name(stable.inputs), _by_name(candidate.inputs)
    found = [f"input {name} is gone" for name in before if name not in after]
    found += [f"input {name} is new, and no request has it" for name in after if name not in before]
    for name in before:
        if name in after and not _takes(after[name], candidate, before[name], stable):
            found.append(f"input {name} was {_text(before[name], stable)} and is {_text(after[name], candidate)}")
    return found or _tied(stable, candidate)


def _outputs(stable: Signature, candidate: Signature) -> list[str]:
    after = _by_name(candidate.outputs)
    found = []
    for name, tensor in _by_name(stable.outputs).items():
        if name not in after:
            found.append(f"output {name} is gone")
        elif not _alike(tensor, after[name]):
            found.append(f"output {name} was {_text(tensor, stable)} and is {_text(after[name], candidate)}")
    return found


def _takes(after: Tensor, candidate: Signature, before: Tensor, stable: Signature) -> bool:
    """Whether every tensor of the one is one of the other."""
    if after.datatype != before.datatype or len(after.shape) != len(before.shape):
        return False
    sizes = zip(after.shape, before.shape, strict=True)
    return all(_covers(_range(a, candidate), _range(b, stable)) for a, b in sizes)


def _covers(wide: Dimension, narrow: Dimension) -> bool:
    return wide.minimum <= narrow.minimum and narrow.maximum <= wide.maximum


def _range(size: int | str, signature: Signature) -> Dimension:
    return Dimension(minimum=size, maximum=size) if isinstance(size, int) else signature.dimensions[size]


def _tied(stable: Signature, candidate: Signature) -> list[str]:
    """Two sizes that the candidate wants equal, and stable did not."""
    sizes: dict[str, dict[int | str, str]] = {}  # of each of the candidate's dimensions: what stable has there, where
    before = _by_name(stable.inputs)
    for name, tensor in _by_name(candidate.inputs).items():
        for size, was in zip(tensor.shape, before[name].shape, strict=True):
            if isinstance(size, str):
                sizes.setdefault(size, {}).setdefault(was, name)
    return [
        f"inputs {' and '.join(dict.fromkeys(places.values()))} must now have the same size in {dimension}"
        for dimension, places in sizes.items()
        if len(places) > 1
    ]


def _alike(before: Tensor, after: Tensor) -> bool:
    """A client that reads the one can read the other: sizes that were fixed still are what they were."""
    if after.datatype != before.datatype or len(after.shape) != len(before.shape):
        return False
    return all(a == b or isinstance(b, str) for a, b in zip(after.shape, before.shape, strict=True))


def _by_name(tensors: list[Tensor]) -> Mapping[str, Tensor]:
    return {tensor.name: tensor for tensor in tensors}


def _text(tensor: Tensor, signature: Signature) -> str:
    """float32[batch 1-64, 1000]."""

    def size(one: int | str) -> str:
        return (
            str(one)
            if isinstance(one, int)
            else f"{one} {_range(one, signature).minimum}-{_range(one, signature).maximum}"
        )

    return f"{tensor.datatype}[{', '.join(map(size, tensor.shape))}]"
