"""Triton's config.pbtxt from the signature of an artefact. Pure.

Field names: `ModelConfig` of triton-inference-server/common, protobuf/model_config.proto.
"""

import json

from bigmodel.api.run import ServingRun
from bigmodel.artifact.manifest import BATCH, DataType, Dimension, Signature, Tensor, Variant

TRITON_TYPES = {
    DataType.BOOL: "TYPE_BOOL",
    DataType.UINT8: "TYPE_UINT8",
    DataType.INT8: "TYPE_INT8",
    DataType.INT16: "TYPE_INT16",
    DataType.INT32: "TYPE_INT32",
    DataType.INT64: "TYPE_INT64",
    DataType.FLOAT16: "TYPE_FP16",
    DataType.FLOAT32: "TYPE_FP32",
    DataType.FLOAT64: "TYPE_FP64",
}
BACKENDS = {"torch-export": "python"}  # program format → the backend that `auto` means


class InvalidConfig(Exception):
    """Artefact, backend and batching of a revision do not go together; the message names the field to change."""


def synthesise(run: ServingRun, signature: Signature, variant: Variant) -> str:
    """The text of config.pbtxt. Raises InvalidConfig.

    The order of inputs and outputs is the program's: `backend/model.py` passes them by position.
    """
    batched = is_batched(signature)
    max_batch_size = largest_batch(run, signature) if batched else 0
    blocks = [
        f"name: {_quoted(run.model)}",
        f'backend: "{backend(run, variant)}"',
        f"max_batch_size: {max_batch_size}",
        *(_tensor("input", tensor, batched) for tensor in signature.inputs),
        *(_tensor("output", tensor, batched) for tensor in signature.outputs),
        f"version_policy {{ specific {{ versions: [ {run.revision} ] }} }}",
        # On GPUs `count` is per GPU of the pod, which is what a model on several GPUs of a pod wants.
        f"instance_group [ {{ count: {run.instances} kind: {'KIND_GPU' if run.accelerators else 'KIND_CPU'} }} ]",
        *(
            [f"dynamic_batching {{ max_queue_delay_microseconds: {run.max_queue_delay_microseconds} }}"]
            if batched
            else []
        ),
        # The first call of a program is the slow one (allocation, kernels' choice): before Ready, not with a user's
        # request.
        *(_warmup(signature, batched, size) for size in sorted({1, max(1, max_batch_size)})),
    ]
    return "\n".join(blocks) + "\n"


def is_batched(signature: Signature) -> bool:
    """Whether every tensor's first dimension is the batch. Raises InvalidConfig when only some are."""
    first = [tensor.name for tensor in (*signature.inputs, *signature.outputs) if tensor.shape[:1] == [BATCH]]
    every = [tensor.name for tensor in (*signature.inputs, *signature.outputs)]
    if first and first != every:
        missing = ", ".join(name for name in every if name not in first)
        raise InvalidConfig(
            f"signature: the first dimension of {missing} is not {BATCH!r}, that of {', '.join(first)} is; "
            "Triton batches all tensors of a model or none: export the model so"
        )
    return bool(first)


def largest_batch(run: ServingRun, signature: Signature) -> int:
    """The batch that Triton may give to the program. Raises InvalidConfig when the program does not take 1 to that
    many.
    """
    sizes: Dimension = signature.dimensions[BATCH]
    if sizes.minimum > 1:
        raise InvalidConfig(
            f"signature: the program takes batches from {sizes.minimum}, a request may hold 1: export it from 1"
        )
    if run.max_batch_size > sizes.maximum:
        raise InvalidConfig(
            f"spec.batching.maxBatchSize is {run.max_batch_size}, the program takes at most {sizes.maximum}: "
            f"set it to {sizes.maximum} or less"
        )
    return run.max_batch_size


def backend(run: ServingRun, variant: Variant) -> str:
    wanted = BACKENDS.get(variant.program.format)
    if wanted is None:
        raise InvalidConfig(
            f"variant {variant.name}: format {variant.program.format} is not served yet, only {', '.join(BACKENDS)}"
        )
    if run.backend not in ("auto", wanted):
        raise InvalidConfig(
            f"spec.server.backend is {run.backend}, variant {variant.name} is a {variant.program.format} program, "
            f"which the backend {wanted} serves: set auto or {wanted}"
        )
    return wanted


def _tensor(side: str, tensor: Tensor, batched: bool) -> str:
    sizes = tensor.shape[1:] if batched else tensor.shape
    dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in sizes)
    # A batched scalar has no dimension besides the batch; Triton wants at least one and reshapes it away.
    shape = f"dims: [ {dims} ]" if sizes else "dims: [ 1 ] reshape { shape: [ ] }"
    return f"{side} [ {{ name: {_quoted(tensor.name)} data_type: {_type(tensor)} {shape} }} ]"


def _type(tensor: Tensor) -> str:
    if tensor.datatype not in TRITON_TYPES:
        raise InvalidConfig(
            f"signature: tensor {tensor.name} is of type {tensor.datatype}, which no program here takes or answers"
        )
    return TRITON_TYPES[tensor.datatype]


def _warmup(signature: Signature, batched: bool, batch_size: int) -> str:
    """One request of zeros: inside the range of every input, indices into tables included."""
    inputs = []
    for tensor in signature.inputs:
        sizes = tensor.shape[1:] if batched else tensor.shape
        dims = [size if isinstance(size, int) else signature.dimensions[size].minimum for size in sizes] or [1]
        value = f"data_type: {_type(tensor)} dims: [ {', '.join(map(str, dims))} ] zero_data: true"
        inputs.append(f"inputs {{ key: {_quoted(tensor.name)} value {{ {value} }} }}")
    return f'model_warmup [ {{ name: "batch-{batch_size}" batch_size: {batch_size} {" ".join(inputs)} }} ]'


def _quoted(text: str) -> str:
    """A string of protobuf's text format; names are ASCII, where JSON's quoting is the same."""
    return json.dumps(text)
