"""Triton's config.pbtxt from signatures."""

from pathlib import Path

import pytest

from bigmodel.api.run import ServingRun
from bigmodel.artifact.manifest import DataType, Dimension, Program, Signature, Tensor
from bigmodel.server.config import InvalidConfig, synthesise
from tests.unit.server.artefacts import SIGNATURE, VARIANT, a_run

GOLDEN = Path(__file__).parent / "golden"
BATCH = {"batch": Dimension(minimum=1, maximum=64)}
FEATURES = Tensor(name="features", datatype=DataType.FLOAT32, shape=["batch", 16])
SCALE = Tensor(name="scale", datatype=DataType.FLOAT32, shape=[1])
STRINGS = Tensor(name="text", datatype=DataType.STRING, shape=["batch"])
TARGET = Tensor(name="target", datatype=DataType.FLOAT32, shape=["batch"])

TEXT = Signature(
    inputs=[
        Tensor(name="tokens", datatype=DataType.INT64, shape=["batch", "length"]),
        Tensor(name="mask", datatype=DataType.BOOL, shape=["batch", "length"]),
    ],
    outputs=[Tensor(name="logits", datatype=DataType.FLOAT16, shape=["batch", 2])],
    dimensions={**BATCH, "length": Dimension(minimum=3, maximum=512)},
)
UNBATCHED = Signature(
    inputs=[Tensor(name="image", datatype=DataType.UINT8, shape=[8, 8])],
    outputs=[Tensor(name="label", datatype=DataType.INT64, shape=[1])],
)

FILES = {
    "one-output-without-a-dimension-of-its-own": (SIGNATURE, a_run()),
    "named-dimensions-and-several-inputs-on-two-gpus": (
        TEXT,
        a_run(model='a"b', revision=12, max_batch_size=1, instances=2, accelerators=2, max_queue_delay_microseconds=0),
    ),
    "without-a-batch-dimension": (UNBATCHED, a_run(backend="python")),
}


@pytest.mark.parametrize(("signature", "run"), FILES.values(), ids=FILES)
def test_config_is_the_golden_file(signature: Signature, run: ServingRun, request: pytest.FixtureRequest) -> None:
    text = synthesise(run, signature, VARIANT)
    assert text == (GOLDEN / f"{request.node.callspec.id}.pbtxt").read_text()


REFUSED = {
    "a batch larger than the program takes": (
        SIGNATURE, a_run(max_batch_size=65),
        r"spec\.batching\.maxBatchSize is 65, the program takes at most 64: set it to 64 or less",
    ),
    "a program that takes no single sample": (
        SIGNATURE.model_copy(update={"dimensions": {"batch": Dimension(minimum=2, maximum=64)}}),
        a_run(), "export it from 1",
    ),
    "a batch dimension on some tensors only": (
        Signature(inputs=[FEATURES, SCALE], outputs=[TARGET], dimensions=BATCH), a_run(),
        "first dimension of scale is not 'batch', that of features, target is",
    ),
    "strings": (
        Signature(inputs=[STRINGS], outputs=[TARGET], dimensions=BATCH), a_run(),
        "tensor text is of type string",
    ),
    "a backend that cannot load the program": (
        SIGNATURE, a_run(backend="onnxruntime"), r"spec\.server\.backend is onnxruntime, .* set auto or python",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("signature", "run", "message"), REFUSED.values(), ids=REFUSED)
def test_config_is_refused(signature: Signature, run: ServingRun, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        synthesise(run, signature, VARIANT)


def test_a_program_of_another_format_is_refused() -> None:
    onnx = VARIANT.model_copy(update={"program": Program(format="onnx", path="model/program.onnx")})
    with pytest.raises(InvalidConfig, match="variant default: format onnx is not served yet"):
        synthesise(a_run(), SIGNATURE, onnx)
