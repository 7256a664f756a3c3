"""From a trained model to a committed artefact. Rank 0 only; no collective."""

import hashlib
import logging
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

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
    Validation,
    Variant,
)
from bigmodel.artifact.stores import Store
from bigmodel.trainer.errors import ExportMismatch
from bigmodel.trainer.recipes.task import Task
from bigmodel.trainer.report import metric_list

log = logging.getLogger(__name__)

Run = Callable[[Tensor], Tensor]


def publish_model(
    run: TrainingRun, task: Task, step: int, metrics: Mapping[str, float], store: Store
) -> ArtifactSummary:
    """Export `task.model`, check the program against it, and commit both with golden samples.

    Raises: ExportMismatch; errors of `artifact.stores`. Nothing is committed then.
    """
    assert run.recipe is not None
    model = task.model.cpu().eval()
    with tempfile.TemporaryDirectory(prefix="artifact-") as staging:
        directory = Path(staging)
        files = directory / variant_directory(DEFAULT_VARIANT)
        files.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, files / WEIGHTS)
        export(model, task, files / PROGRAM)
        program = load(files / PROGRAM)
        inputs = golden_inputs(run.output.golden, task, run.recipe.seed)
        outputs = [run_once(program, batch) for batch in inputs]
        deterministic = all(map(torch.equal, outputs, [run_once(program, batch) for batch in inputs]))
        check_answers(model, inputs, outputs, deterministic)
        if run.output.golden != "none":
            golden.write(files / GOLDEN, [_case(task, *pair) for pair in zip(inputs, outputs, strict=True)])
        reported = metric_list({**metrics, **task.baselines()})
        manifest = Manifest(
            files=publish.inventory(directory),
            signature=task.signature,
            variants=[
                Variant(
                    name=DEFAULT_VARIANT,
                    precision="fp32",
                    program=Program(format="torch-export", path=(files / PROGRAM).relative_to(directory).as_posix()),
                    weights=(files / WEIGHTS).relative_to(directory).as_posix(),
                    golden=run.output.golden,
                    deterministic=deterministic,
                    metrics=reported,
                )
            ],
            serve=run.output.serve,
            validation=Validation(digest=task.validation_digest, samples=len(task.validation)),
            provenance=_provenance(run, task, step),
        )
        key, digest = publish.publish(store, directory, manifest)
    return _summary(join(store.uri, key), digest, manifest, reported)


def export(model: nn.Module, task: Task, path: Path) -> None:
    """The model as a program with a dynamic batch dimension. The file holds no pickle: no sample inputs."""
    example = task.random_inputs(2, torch.Generator().manual_seed(0))
    size = task.signature.dimensions[BATCH]
    batch = torch.export.Dim(BATCH, min=size.minimum, max=size.maximum)
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    program.example_inputs = None
    torch.export.save(program, path)


def load(path: Path) -> Run:
    """The program as a server gets it: from the file."""
    return torch.export.load(path).module()


def run_once(program: Run, batch: Tensor) -> Tensor:
    with torch.no_grad():
        return program(batch)


def golden_inputs(kind: str, task: Task, seed: int) -> list[Tensor]:
    """A single sample, and the largest batch that fits into the limits: validation samples, or random ones of the
    same size.
    """
    if kind == "validation":
        samples = task.validation.inputs
    else:
        samples = task.random_inputs(golden.MAX_SAMPLES, torch.Generator().manual_seed(seed))
    sample_bytes = max(1, samples[:1].nbytes)
    kept = min(len(samples), golden.MAX_SAMPLES, golden.MAX_BYTES // (2 * sample_bytes))
    return [samples[:1], samples[1:kept]] if kept > 1 else [samples[:1]]


def check_answers(model: nn.Module, inputs: list[Tensor], outputs: list[Tensor], deterministic: bool) -> None:
    """Raises ExportMismatch unless the program's answers are numbers and, where it gives the same ones twice, those of
    the eager model up to the rounding of another order of sums.
    """
    for batch, output in zip(inputs, outputs, strict=True):
        if not torch.isfinite(output).all():
            raise ExportMismatch(
                f"{int((~torch.isfinite(output)).sum())} of {output.numel()} golden answers of the trained model "
                "are no finite numbers; it is not published"
            )
        want = run_once(model, batch)
        scale = float(want.abs().max())
        if deterministic and not torch.allclose(output, want, rtol=1e-4, atol=1e-5 * scale):
            raise ExportMismatch(
                f"the exported program differs from the trained model by up to {(output - want).abs().max():.3g} over "
                f"a batch of {len(batch)} (answers up to {scale:.3g}); the recipe's model does something that "
                "torch.export changes"
            )


def _case(task: Task, inputs: Tensor, outputs: Tensor) -> golden.GoldenCase:
    return golden.GoldenCase(
        inputs={task.signature.inputs[0].name: np.asarray(inputs)},
        outputs={task.signature.outputs[0].name: np.asarray(outputs)},
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
        code=_code_digest(),
        data=task.data_uri,
        data_digest=task.data_digest,
        frameworks={"torch": torch.__version__, "python": platform.python_version()},
        recipe=run.recipe.wire(),
    )


def _code_digest() -> str:
    """Of every source file of this package: an image's tag may move, this does not."""
    root = Path(bigmodel.__file__).parent
    found = hashlib.sha256()
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
