"""How good and how fast recipe mlp is, in numbers: `python -m tests.bench.trainer [--seeds 10] [--optimizers]
[--steps 60]`, JSON on stdout.

Quality: validation MSE of the default recipe over splits of several seeds, beside predicting the mean and ridge
regression on the same split. Speed: seconds of an update on one rank (wall and CPU: the second does not depend on who
else uses the machine).
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bigmodel.api.job import Checkpoint, Optimizer, Recipe
from bigmodel.api.names import DATASETS_DIRECTORY
from bigmodel.trainer.checkpoint.cadence import Cadence
from bigmodel.trainer.data import datasets
from bigmodel.trainer.loop import TrainState, train
from bigmodel.trainer.notices import Notices
from bigmodel.trainer.optimizers import VARIANTS, build_optimizer
from bigmodel.trainer.process import seed_everything
from bigmodel.trainer.recipes import mlp
from bigmodel.trainer.report import Reporter
from bigmodel.trainer.saving import Saving


def measure(recipe: Recipe, data: datasets.Dataset, group: dist.ProcessGroup) -> dict[str, Any]:
    seed_everything(recipe.seed)
    task = mlp.build(recipe, data)
    model = DistributedDataParallel(task.model, process_group=group, forward_sync_buffers=False)
    state = TrainState(model, build_optimizer(recipe.optimizer, model.parameters(), task.learning_rates))
    wall, cpu = time.perf_counter(), time.process_time()
    report = Reporter(0, 1, None, time.monotonic)
    saving = Saving(None, Cadence(Checkpoint()), Notices(None), report, time.monotonic)
    metrics = train(task, recipe, state, group, torch.device("cpu"), report, saving)
    steps = {"wall": (time.perf_counter() - wall) / state.step, "cpu": (time.process_time() - cpu) / state.step}
    return {
        "seed": recipe.seed,
        "optimizer": recipe.optimizer.name,
        **metrics,
        **task.baselines(),
        **{f"{clock}_seconds_per_step": round(seconds, 4) for clock, seconds in steps.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.trainer")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--optimizers", action="store_true", help="each optimizer at its own rate, seed 1, instead of seeds"
    )
    parser.add_argument("--steps", type=int, help="instead of the recipe's own")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    data = datasets.load("dataset://diabetes", Path(DATASETS_DIRECTORY))
    recipes = [Recipe(name="mlp", seed=seed, steps=arguments.steps) for seed in range(arguments.seeds)]
    if arguments.optimizers:
        recipes = [
            Recipe(name="mlp", seed=1, steps=arguments.steps, optimizer=Optimizer(name=name)) for name in VARIANTS
        ]
    runs = []
    for recipe in recipes:
        runs.append(measure(recipe, data, dist.group.WORLD))
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    numbers = [name for name, value in runs[0].items() if isinstance(value, float)]
    means = {name: round(statistics.mean(run[name] for run in runs), 4) for name in numbers}
    print(json.dumps({"torch": torch.__version__, "threads": 1, "mean": means, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
