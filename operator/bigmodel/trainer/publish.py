"""From a trained model to a committed artefact. Rank 0 only; no collective."""

import hashlib
import logging
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bigmodel
from bigmodel.api.model import Metric
from bigmodel.api.progress import ArtifactSummary, ArtifactVariant
from bigmodel.api.run import TrainingRun
from bigmodel.artifact import golden, publish
from bigmodel.artifact.layout import DEFAULT_VARIANT, GOLDEN, PROGRAM, WEIGHTS, join, variant_directory
from bigmodel.artifact.manifest import (
    BATCH,
    Manifest,
    Program,
    Provenance,
    Signature,
    Validation,
    Variant,
)
from bigmodel.artifact.stores import Store
from bigmodel.trainer.errors import ExportMismatch
from bigmodel.trainer.recipes.task import Task
from bigmodel.trainer.report import metric_list

PACKAGE = Path(bigmodel.__file__).parent

log = logging.getLogger(__name__)

# One tensor for each input of the signature, the first axis of each is the batch.
Inputs = tuple[Tensor, ...]
Run = Callable[..., Any]


@dataclass(frozen=True)
class Product:
    """What is published: a model in evaluation mode on the CPU, and what it is to be known by."""

    model: nn.Module
    signature: Signature
    example: Inputs  # a batch of two, to trace the model with
    golden: list[Inputs]  # requests whose answers every server must repeat: a single sample, and the largest batch
    golden_kind: Literal["validation", "random", "none"]
    precision: Literal["fp32", "bf16", "fp16"]
    metrics: list[Metric]
    validation: Validation | None
    provenance: Provenance


def publish_model(
    run: TrainingRun, task: Task, step: int, metrics: Mapping[str, float], store: Store
) -> ArtifactSummary:
    """What a recipe trained. Raises as `publish_product`."""
    assert run.recipe is not None
    product = Product(
        model=task.model.cpu().eval(),
        signature=task.signature,
        example=(task.random_inputs(2, torch.Generator().manual_seed(0)),),
        golden=golden_batches((golden_samples(run.output.golden, task, run.recipe.seed),)),
        golden_kind=run.output.golden,
        precision="fp32",
        metrics=metric_list({**metrics, **task.baselines()}),
        validation=Validation(digest=task.validation_digest, samples=len(task.validation)),
        provenance=_provenance(run, task, step),
    )
    return publish_product(product, run.output.serve, store)


def publish_product(product: Product, serve: str, store: Store) -> ArtifactSummary:
    """Export the model, check the program against it, and commit both with golden samples.

    Raises: ExportMismatch; errors of `artifact.stores`. Nothing is committed then.
    """
    with tempfile.TemporaryDirectory(prefix="artifact-") as staging:
        directory = Path(staging)
        files = directory / variant_directory(DEFAULT_VARIANT)
        files.mkdir(parents=True)
        save_file(weights_of(product.model), files / WEIGHTS)
        export(product, files / PROGRAM)
        program = load(files / PROGRAM)
        names = [tensor.name for tensor in product.signature.outputs]
        outputs = [run_once(program, batch, names) for batch in product.golden]
        again = [run_once(program, batch, names) for batch in product.golden]
        deterministic = all(map(torch.equal, chain(*outputs), chain(*again)))
        for batch, answers in zip(product.golden, outputs, strict=True):
            check_answers(run_once(product.model, batch, names), answers, deterministic)
        if product.golden_kind != "none":
            cases = [_case(product.signature, *pair) for pair in zip(product.golden, outputs, strict=True)]
            golden.write(files / GOLDEN, cases)
        manifest = Manifest(
            files=publish.inventory(directory),
            signature=product.signature,
            variants=[
                Variant(
                    name=DEFAULT_VARIANT,
                    precision=product.precision,
                    program=Program(format="torch-export", path=(files / PROGRAM).relative_to(directory).as_posix()),
                    weights=(files / WEIGHTS).relative_to(directory).as_posix(),
                    golden=product.golden_kind,
                    deterministic=deterministic,
                    metrics=product.metrics,
                )
            ],
            serve=serve,
            validation=product.validation,
            provenance=product.provenance,
        )
        key, digest = publish.publish(store, directory, manifest)
    return _summary(join(store.uri, key), digest, manifest, product.metrics)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Every name with memory of its own: safetensors refuses tensors that share it, as tied weights do."""
    seen: set[int] = set()
    weights = {}
    for name, tensor in model.state_dict().items():
        pointer = tensor.untyped_storage().data_ptr()
        weights[name] = tensor.clone() if pointer in seen else tensor.contiguous()
        seen.add(pointer)
    return weights


def export(product: Product, path: Path) -> None:
    """The model as a program with a dynamic batch dimension. The file holds no pickle: no sample inputs."""
    size = product.signature.dimensions[BATCH]
    batch = torch.export.Dim(BATCH, min=size.minimum, max=size.maximum)
    with torch.no_grad():
        program = torch.export.export(
            product.model, product.example, dynamic_shapes=tuple({0: batch} for _ in product.example)
        )
    program.example_inputs = None
    torch.export.save(program, path)


def load(path: Path) -> Run:
    """The program as a server gets it: from the file."""
    return torch.export.load(path).module()


def run_once(program: Run, batch: Inputs, names: Sequence[str]) -> list[Tensor]:
    """The answers to one batch, in the order of `names`."""
    with torch.no_grad():
        answer = program(*batch)
    if isinstance(answer, Tensor):
        return [answer]
    return [answer[name] for name in names] if isinstance(answer, Mapping) else list(answer)


def golden_samples(kind: str, task: Task, seed: int) -> Tensor:
    """Validation samples, or random ones of the same size."""
    if kind == "validation":
        return task.validation.inputs
    return task.random_inputs(golden.MAX_SAMPLES, torch.Generator().manual_seed(seed))


def golden_batches(samples: Inputs) -> list[Inputs]:
    """A single sample, and the largest batch that fits into the limits."""
    sample_bytes = max(1, sum(tensor[:1].nbytes for tensor in samples))
    kept = min(len(samples[0]), golden.MAX_SAMPLES, golden.MAX_BYTES // (2 * sample_bytes))
    single, rest = tuple(tensor[:1] for tensor in samples), tuple(tensor[1:kept] for tensor in samples)
    return [single, rest] if kept > 1 else [single]


def check_answers(want: list[Tensor], answers: list[Tensor], deterministic: bool) -> None:
    """Raises ExportMismatch unless the program's answers to one batch are numbers and, where it gives the same ones
    twice, those of the eager model up to the rounding of another order of sums.
    """
    for output, wanted in zip(answers, want, strict=True):
        if not torch.isfinite(output).all():
            raise ExportMismatch(
                f"{int((~torch.isfinite(output)).sum())} of {output.numel()} golden answers of the trained model "
                "are no finite numbers; it is not published"
            )
        scale = float(wanted.abs().max())
        if deterministic and not torch.allclose(output, wanted, rtol=1e-4, atol=1e-5 * scale):
            raise ExportMismatch(
                f"the exported program differs from the trained model by up to {(output - wanted).abs().max():.3g} "
                f"over a batch of {len(output)} (answers up to {scale:.3g}); the model does something that "
                "torch.export changes"
            )


def _case(signature: Signature, inputs: Inputs, outputs: list[Tensor]) -> golden.GoldenCase:
    return golden.GoldenCase(
        inputs={spec.name: np.asarray(tensor) for spec, tensor in zip(signature.inputs, inputs, strict=True)},
        outputs={spec.name: np.asarray(tensor) for spec, tensor in zip(signature.outputs, outputs, strict=True)},
    )


def _provenance(run: TrainingRun, task: Task, step: int) -> Provenance:
    assert run.recipe is not None
    return Provenance(
        namespace=run.namespace,
        job=run.job,
        uid=run.uid,
        attempt=run.attempt,
        step=step,
        image=run.image,
        code=code_digest(PACKAGE),
        data=task.data_uri,
        data_digest=task.data_digest,
        frameworks=frameworks(),
        recipe=run.recipe.wire(),
    )


def frameworks() -> dict[str, str]:
    return {"torch": torch.__version__, "python": platform.python_version()}


def code_digest(*roots: Path) -> str:
    """Of every source file below `roots`: an image's tag may move, this does not."""
    found = hashlib.sha256()
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            found.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return f"sha256:{found.hexdigest()}"


def _summary(uri: str, digest: str, manifest: Manifest, metrics: list[Metric]) -> ArtifactSummary:
    return ArtifactSummary(
        uri=uri,
        digest=digest,
        size_bytes=manifest.size_bytes,
        variant=manifest.serve,
        metrics=metrics,
        validation_digest=manifest.validation.digest if manifest.validation is not None else None,
        variants=[
            ArtifactVariant(
                name=variant.name,
                size_bytes=sum(file.size_bytes for file in manifest.files_of(variant.name)),
                metrics=variant.metrics,
                offered=variant.offered,
                message=variant.message,
            )
            for variant in manifest.variants
        ],
    )
