"""One rank, from its environment to the published model. `main` is what the fork server calls in every fork."""

import copy
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from bigmodel.api.job import Recipe
from bigmodel.api.names import DATASETS_DIRECTORY, ENV_GENERATION, ENV_REPORT_SOCKET, ENV_TRAINING_RUN
from bigmodel.api.progress import ArtifactSummary, RunPhase
from bigmodel.api.run import TrainingRun
from bigmodel.artifact.layout import checkpoints_key
from bigmodel.artifact.stores import Store, open_store
from bigmodel.trainer.checkpoint.cadence import Cadence
from bigmodel.trainer.checkpoint.checkpoints import Checkpoints, checkpoint_group
from bigmodel.trainer.checkpoint.state import unwrapped
from bigmodel.trainer.data import datasets
from bigmodel.trainer.errors import InvalidRecipe
from bigmodel.trainer.loop import TrainState, train
from bigmodel.trainer.mesh import Degrees, build_mesh, degrees, sample_ranks
from bigmodel.trainer.notices import notices_of, outlive_sigterm
from bigmodel.trainer.optimizers import build_optimizer
from bigmodel.trainer.parallel import gather, parallelize
from bigmodel.trainer.process import Rank, be_deterministic, choose_device, process_group, rank_of, seed_everything
from bigmodel.trainer.publish import publish_model
from bigmodel.trainer.recipes.registry import known
from bigmodel.trainer.recipes.task import Task
from bigmodel.trainer.report import Reporter
from bigmodel.trainer.saving import Saving, failures_of

log = logging.getLogger(__name__)

# bf16 has the range of fp32, so gradients need no scaling.
AUTOCAST: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


def main() -> None:
    """Read the environment once, then train and publish. Errors leave through the top: whoever started the process
    records them.
    """
    if ENV_TRAINING_RUN not in os.environ:
        raise InvalidRecipe(f"{ENV_TRAINING_RUN} is not set; it holds the TrainingRun as JSON (bigmodel/api/run.py)")
    outlive_sigterm(os.environ)
    rank = rank_of(os.environ, ENV_GENERATION)
    logging.basicConfig(
        level=logging.INFO if rank.local_rank == 0 else logging.WARNING,  # one voice for each pod
        stream=sys.stdout,
        format=f"%(asctime)s rank {rank.rank} %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    # torch.export.load would unpickle otherwise; what we load is our own program, but habits of one process become
    # those of another.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    run = TrainingRun.model_validate_json(os.environ[ENV_TRAINING_RUN])
    with closing(Reporter(rank.rank, rank.generation, os.environ.get(ENV_REPORT_SOCKET), time.monotonic)) as report:
        run_rank(run, rank, report, os.environ, Path(DATASETS_DIRECTORY))


def run_rank(
    run: TrainingRun, rank: Rank, report: Reporter, environ: Mapping[str, str], datasets_directory: Path
) -> ArtifactSummary | None:
    """Train this rank's share and, on rank 0, publish. Returns what was published, None on other ranks."""
    kind, recipe = known(run.recipe), run.recipe
    assert recipe is not None
    report.enter(RunPhase.STARTING)
    wanted = degrees(run.parallelism, rank.world_size)
    store = open_store(run.store, environ)
    device = choose_device(rank)
    be_deterministic()
    with process_group(rank, device, run.budgets.hang_timeout_seconds, environ):
        mesh = build_mesh(wanted, device)
        data_ranks = sample_ranks(mesh)
        uri = recipe.data.uri if recipe.data is not None and recipe.data.uri is not None else kind.DATA
        dataset = datasets.load(uri, datasets_directory)
        seed_everything(recipe.seed)  # the initial weights: the same on every rank
        task = kind.build(recipe, dataset)
        plain = copy.deepcopy(task.model)  # what is published: nothing is applied to it
        model = parallelize(
            task.model.to(device), task.plan, mesh, data_ranks, recompute=recipe.activation_checkpointing
        )
        optimizer = build_optimizer(recipe.optimizer, model.parameters(), task.learning_rates)
        if wanted.tensor > 1:
            for group in optimizer.param_groups:
                group["foreach"] = False  # torch updates no list of whole and split parameters at once
        state = TrainState(model, optimizer, autocast=AUTOCAST[recipe.precision])
        if rank.rank == 0:
            log_start(task, recipe, wanted, str(device))
        saving = saving_of(run, checkpoint_group(), store, report, environ)
        metrics = train(task, recipe, state, data_ranks, device, report, saving, dist.group.WORLD)
        whole = gather(unwrapped(model), plain, rank.rank)
    summary = None
    if whole is not None:
        report.enter(RunPhase.PUBLISHING)
        summary = publish_model(run, replace(task, model=whole), state.step, metrics, store)
        log.info("published %s (%d bytes): %s", summary.uri, summary.size_bytes, summary.digest)
        log.info("%s", ", ".join(f"{metric.name} {metric.value}" for metric in summary.metrics))
        saving.published(run.checkpoint.keep_after_success)
    report.enter(RunPhase.DONE, artifact=summary)
    return summary


def saving_of(
    run: TrainingRun, group: dist.ProcessGroup, store: Store, report: Reporter, environ: Mapping[str, str]
) -> Saving:
    """The checkpoints of a run, as its spec and its launcher want them."""
    return Saving(
        Checkpoints(
            store,
            checkpoints_key(run.namespace, run.job, run.uid),
            group,
            run.attempt,
            report.generation if ENV_GENERATION in environ else None,
            run.checkpoint.keep,
        ),
        Cadence(run.checkpoint, failures=failures_of(run, report.generation)),
        notices_of(environ),
        report,
        time.monotonic,
    )


def log_start(task: Task, recipe: Recipe, ranks: Degrees, device: str) -> None:
    log.info(
        "recipe %s: %d parameters, %d training and %d validation samples, %s on %s, batch %d, %s",
        recipe.name,
        sum(parameter.numel() for parameter in task.model.parameters()),
        len(task.train),
        len(task.validation),
        ranks,
        device,
        recipe.batch_size,
        recipe.optimizer.name,
    )
