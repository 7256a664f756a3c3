"""Small published artefacts to serve: a real torch.export program with golden samples, in a file:// store."""

import io
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel.api.run import ServingRun, StoreLocation
from bigmodel.artifact import golden
from bigmodel.artifact.layout import join
from bigmodel.artifact.manifest import (
    DataType,
    Dimension,
    Manifest,
    Program,
    Provenance,
    Signature,
    Tensor,
    Variant,
    digest_of,
)
from bigmodel.artifact.publish import inventory, publish
from bigmodel.artifact.stores import open_store

WIDTH = 16
SIGNATURE = Signature(
    inputs=[Tensor(name="features", datatype=DataType.FLOAT32, shape=["batch", WIDTH])],
    outputs=[Tensor(name="target", datatype=DataType.FLOAT32, shape=["batch"])],
    dimensions={"batch": Dimension(minimum=1, maximum=64)},
)
VARIANT = Variant(
    name="default",
    precision="fp32",
    program=Program(format="torch-export", path="model/program.pt2"),
    golden="validation",
    deterministic=True,
)
PROVENANCE = Provenance(
    namespace="ml",
    job="mlp",
    uid="u1",
    attempt=1,
    step=10,
    image="trainer:1",
    code=digest_of(b"code"),
    data="dataset://diabetes",
    data_digest=digest_of(b"data"),
    frameworks={"torch": "2.13.0"},
)


def a_run(**changes: object) -> ServingRun:
    """Revision 3 of service mlp, with one change or another."""
    run = ServingRun(
        namespace="ml",
        service="mlp",
        revision=3,
        model="mlp",
        artifact_uri="file:///nowhere",
        digest=digest_of(b"nothing"),
        variant="default",
        store=StoreLocation(uri="file:///nowhere"),
        backend="auto",
        max_batch_size=8,
        max_queue_delay_microseconds=500,
        instances=1,
    )
    return run.model_copy(update=changes)


@dataclass(frozen=True)
class Artefact:
    """Published in `store`; `run` serves it as revision 3 of service mlp."""

    store: Path
    run: ServingRun

    @property
    def directory(self) -> Path:
        return Path(self.run.artifact_uri.removeprefix("file://"))

    def served(self, **changes: object) -> "Artefact":
        return replace(self, run=self.run.model_copy(update=changes))


def published(
    folder: Path,
    program: bytes,
    cases: list[golden.GoldenCase],
    variant: Variant = VARIANT,
    signature: Signature = SIGNATURE,
) -> Artefact:
    """Publish `program` with golden `cases` from a work folder below `folder`."""
    work, store = folder / "work", folder / "store"
    (work / "model").mkdir(parents=True)
    (work / "model" / "program.pt2").write_bytes(program)
    if cases:
        golden.write(work / "model" / "golden", cases)
    manifest = Manifest(files=inventory(work), signature=signature, variants=[variant], provenance=PROVENANCE)
    store.mkdir()
    location = StoreLocation(uri=f"file://{store}")
    key, digest = publish(open_store(location, {}), work, manifest)
    run = a_run(artifact_uri=join(location.uri, key), digest=digest, variant=variant.name, store=location)
    return Artefact(store, run)


def a_program() -> bytes:
    """An archive that looks like a program of torch.export and holds nothing: for tests that load none."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in ("archive_format", "archive_version", "byteorder", "models/model.json"):
            archive.writestr(zipfile.ZipInfo(f"program/{name}"), b"")
    return data.getvalue()


def exported(path: Path, seed: int = 0) -> tuple[bytes, list[golden.GoldenCase]]:
    """A small network as a torch.export program, with golden cases of 1 and 20 samples: more than fit a batch."""
    import torch
    from torch import nn
    from torch.export import Dim

    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    batch = Dim("batch", min=1, max=64)
    save(torch.export.export(network, (torch.zeros(2, WIDTH),), dynamic_shapes=({0: batch},)), path)
    samples = np.random.default_rng(1).standard_normal((21, WIDTH), np.float32)
    with torch.no_grad():
        answers = network(torch.from_numpy(samples)).numpy()
    one = golden.GoldenCase({"features": samples[:1]}, {"target": answers[:1]})
    many = golden.GoldenCase({"features": samples[1:]}, {"target": answers[1:]})
    return path.read_bytes(), [one, many]


VOCABULARY = 50
TEXT = Signature(
    inputs=[
        Tensor(name="tokens", datatype=DataType.INT64, shape=["batch", "length"]),
        Tensor(name="mask", datatype=DataType.BOOL, shape=["batch", "length"]),
    ],
    outputs=[
        Tensor(name="mean", datatype=DataType.FLOAT16, shape=["batch", 4]),
        Tensor(name="count", datatype=DataType.INT64, shape=["batch"]),
    ],
    dimensions={"batch": Dimension(minimum=1, maximum=64), "length": Dimension(minimum=2, maximum=32)},
)


def exported_text(path: Path) -> tuple[bytes, list[golden.GoldenCase]]:
    """Two inputs of variable length, two outputs, four types; tokens outside the vocabulary make it raise."""
    import torch
    from torch import nn
    from torch.export import Dim

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(VOCABULARY, 4)

        def forward(self, tokens_BT: torch.Tensor, mask_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            count_B = mask_BT.sum(1)
            sum_BE = (self.table(tokens_BT) * mask_BT[..., None]).sum(1)
            return (sum_BE / count_B.clamp(min=1)[:, None]).half(), count_B

    torch.manual_seed(0)
    network = Text()
    sizes = {0: Dim("batch", min=1, max=64), 1: Dim("length", min=2, max=32)}
    example = (torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.bool))
    save(torch.export.export(network, example, dynamic_shapes=(sizes, sizes)), path)
    generator = np.random.default_rng(2)
    cases = []
    for samples, length in ((1, 3), (4, 7)):
        tokens = generator.integers(0, VOCABULARY, (samples, length))
        mask = generator.random((samples, length)) < 0.7
        with torch.no_grad():
            mean, count = network(torch.from_numpy(tokens), torch.from_numpy(mask))
        cases.append(
            golden.GoldenCase({"tokens": tokens, "mask": mask}, {"mean": mean.numpy(), "count": count.numpy()})
        )
    return path.read_bytes(), cases


IMAGE = Signature(
    inputs=[Tensor(name="image", datatype=DataType.UINT8, shape=[4, 4])],
    outputs=[Tensor(name="brightest", datatype=DataType.INT64, shape=[1])],
)


def exported_image(path: Path) -> tuple[bytes, list[golden.GoldenCase]]:
    """A program without a batch dimension."""
    import torch
    from torch import nn

    class Brightest(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten().argmax().reshape(1)

    save(torch.export.export(Brightest(), (torch.zeros(4, 4, dtype=torch.uint8),)), path)
    image = np.random.default_rng(3).permutation(16).reshape(4, 4).astype(np.uint8)
    return path.read_bytes(), [golden.GoldenCase({"image": image}, {"brightest": np.array([image.argmax()])})]


def save(program: Any, path: Path) -> None:
    import torch

    program.example_inputs = None  # they would be stored as a pickle
    torch.export.save(program, path)
