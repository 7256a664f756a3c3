"""Real ranks over gloo: forks them from one process that imported torch once, as the fork server does, and prints
what each saw as JSON.

    python gang.py WORLD_SIZE… < cases.json        {case: {"ranks": 2, "recipe": {…}, "poison": [step, rank] or null}}
"""

import json
import math
import os
import sys
import tempfile
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it, a second each: once here, not in every fork
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bigmodel.trainer.errors import NonFiniteStep
from bigmodel.trainer.loop import TrainState, train
from bigmodel.trainer.mesh import build_mesh, degrees
from bigmodel.trainer.optimizers import build_optimizer
from bigmodel.trainer.report import Reporter
from tests.unit.trainer.tasks import a_recipe, a_run, a_task, no_saving


class PoisonedAt(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.linear, self.step, self.batches = nn.Linear(5, 1), step, 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += self.training
        outputs: Tensor = self.linear(x)
        return outputs * (math.nan if self.batches == self.step + 1 else 1.0)


def run(rank: int, ranks: int, store: str, recipe: dict[str, Any], poison: list[int] | None) -> dict[str, Any]:
    task = a_task(PoisonedAt(poison[0] if poison[1] == rank else -1) if poison else None)
    wanted = a_recipe(**recipe)
    losses: list[float] = []
    report = Reporter(rank, 1, None, lambda: 0.0)
    report.stepped = lambda step, values: losses.append(values["loss"])  # type: ignore[method-assign]
    environ = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(environ)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    data = build_mesh(degrees(a_run("file:///x").parallelism, ranks), torch.device("cpu")).get_group("data")
    model = DistributedDataParallel(
        task.model, process_group=data, forward_sync_buffers=False, gradient_as_bucket_view=True
    )
    state = TrainState(model, build_optimizer(wanted.optimizer, model.parameters(), task.learning_rates))
    try:
        metrics: dict[str, float] | None = train(
            task, wanted, state, data, torch.device("cpu"), report, no_saving(report)
        )
        error = None
    except NonFiniteStep as stopped:
        metrics, error = None, str(stopped)
    parameters = [float(value) for parameter in model.parameters() for value in parameter.detach().flatten()]
    return {"losses": losses, "metrics": metrics, "error": error, "step": state.step, "parameters": parameters}


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, case in json.load(sys.stdin).items():
        with tempfile.TemporaryDirectory() as directory:
            children = []
            for rank in range(case["ranks"]):
                if (pid := os.fork()) == 0:
                    result = run(rank, case["ranks"], f"{directory}/store", case.get("recipe", {}), case.get("poison"))
                    with open(f"{directory}/{rank}", "w") as out:
                        json.dump(result, out)
                    os._exit(0)
                children.append(pid)
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
            if any(codes):
                sys.exit(f"{name}: exit codes {codes}")
            results[name] = [json.load(open(f"{directory}/{rank}")) for rank in range(case["ranks"])]  # noqa: SIM115
    json.dump(results, sys.stdout)


main()
