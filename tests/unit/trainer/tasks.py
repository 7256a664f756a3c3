"""Small tasks and runs that start valid; keyword arguments change one thing or another."""

from typing import Any

import numpy as np
import torch
from torch import nn

from bigmodel.api.job import Checkpoint, Output, Parallelism, Recipe
from bigmodel.api.run import Budgets, StoreLocation, TrainingRun
from bigmodel.artifact.manifest import Dimension, Signature, Tensor, digest_of
from bigmodel.trainer.checkpoint.cadence import Cadence
from bigmodel.trainer.losses import mae, mse
from bigmodel.trainer.notices import Notices
from bigmodel.trainer.recipes.task import Samples, Task
from bigmodel.trainer.report import Reporter
from bigmodel.trainer.saving import Saving

INPUTS = 5


def a_recipe(**changes: Any) -> Recipe:
    return Recipe(
        **({"name": "mlp", "batch_size": 8, "steps": 6, "optimizer": {"name": "sgd", "learning_rate": 0.05}} | changes)
    )


def a_run(store: str, **changes: Any) -> TrainingRun:
    fields: dict[str, Any] = {
        "namespace": "ml",
        "job": "mlp",
        "uid": "0-1",
        "attempt": 1,
        "nodes": 1,
        "processes_per_node": 1,
        "coordinator": "localhost:1",
        "start_deadline_seconds": 60,
        "termination_grace_seconds": 30,
        "framework": "pytorch",
        "recipe": a_recipe(),
        "parallelism": Parallelism(),
        "checkpoint": Checkpoint(),
        "output": Output(),
        "store": StoreLocation(uri=store),
        "budgets": Budgets(max_restarts=0, max_hang_restarts=0, hang_timeout_seconds=60),
        "image": "trainer:1",
    }
    return TrainingRun(**(fields | changes))


def no_saving(report: Reporter) -> Saving:
    return Saving(None, Cadence(Checkpoint()), Notices(None), report, lambda: 0.0)


def a_task(model: nn.Module | None = None, train: int = 21, **changes: Any) -> Task:
    """Regression of a noisy linear function of INPUTS numbers, by a small network; 7 validation samples."""
    rng = np.random.default_rng(7)
    inputs = rng.standard_normal((train + 7, INPUTS)).astype(np.float32)
    targets = (inputs.sum(axis=1, keepdims=True) + 0.1 * rng.standard_normal((train + 7, 1))).astype(np.float32)
    samples = [
        Samples(torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows]))
        for rows in (slice(train), slice(train, None))
    ]
    torch.manual_seed(3)
    fields: dict[str, Any] = {
        "model": model if model is not None else nn.Sequential(nn.Linear(INPUTS, 6), nn.Tanh(), nn.Linear(6, 1)),
        "train": samples[0],
        "validation": samples[1],
        "loss": mse,
        "metrics": {"val_mse": mse, "val_mae": mae},
        "baselines": lambda: {"baseline_mean_mse": 5.0},
        "steps": 6,
        "learning_rates": {"sgd": 0.01, "adam": 0.001},
        "signature": Signature(
            inputs=[Tensor(name="x", datatype="float32", shape=["batch", INPUTS])],
            outputs=[Tensor(name="y", datatype="float32", shape=["batch", 1])],
            dimensions={"batch": Dimension(minimum=1, maximum=256)},
        ),
        "build_model": lambda parameters: nn.Linear(INPUTS, 1),
        "random_inputs": lambda count, generator: torch.randn(count, INPUTS, generator=generator),
        "data_uri": "dataset://made-up",
        "data_digest": digest_of(b"data"),
        "validation_digest": digest_of(b"validation"),
    }
    return Task(**(fields | changes))
