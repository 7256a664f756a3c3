"""Small published artefacts to serve: a real torch.export program with golden samples, in a file:// store."""

from dataclasses import dataclass, replace
from pathlib import Path

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
    run = ServingRun(
        namespace="ml",
        service="mlp",
        revision=3,
        model="mlp",
        artifact_uri=join(location.uri, key),
        digest=digest,
        variant=variant.name,
        store=location,
        backend="auto",
        max_batch_size=8,
        max_queue_delay_microseconds=500,
        instances=1,
    )
    return Artefact(store, run)


def exported(path: Path) -> tuple[bytes, list[golden.GoldenCase]]:
    """A small network as a torch.export program, with golden cases of 1 and 20 samples: more than fit a batch."""
    import torch
    from torch import nn
    from torch.export import Dim

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    batch = Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.zeros(2, WIDTH),), dynamic_shapes=({0: batch},))
    program.example_inputs = None  # they would be stored as a pickle
    torch.export.save(program, path)
    samples = np.random.default_rng(1).standard_normal((21, WIDTH), np.float32)
    with torch.no_grad():
        answers = network(torch.from_numpy(samples)).numpy()
    one = golden.GoldenCase({"features": samples[:1]}, {"target": answers[:1]})
    many = golden.GoldenCase({"features": samples[1:]}, {"target": answers[1:]})
    return path.read_bytes(), [one, many]
