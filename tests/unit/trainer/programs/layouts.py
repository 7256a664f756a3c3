"""One small task under several layouts, by real ranks over gloo; prints what each rank saw as JSON.

    python layouts.py < cases.json

A case: {"ranks": 4, "parallelism": {…}, "recipe": {…}} and, where wanted, "store" (a name), "stop" (a step), "poison"
([step, rank]), "width" (of the hidden layer).
Cases run one after the other in the same four processes; those with the same store go on from each other's checkpoints.
"""

import copy
import json
import math
import os
import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn

from bigmodel.api.job import Checkpoint, Parallelism
from bigmodel.api.run import StoreLocation
from bigmodel.artifact.stores import open_store
from bigmodel.trainer.checkpoint.cadence import Cadence
from bigmodel.trainer.checkpoint.checkpoints import Checkpoints
from bigmodel.trainer.checkpoint.state import unwrapped
from bigmodel.trainer.errors import InvalidMesh, NonFiniteStep
from bigmodel.trainer.loop import TrainState, train
from bigmodel.trainer.main import AUTOCAST
from bigmodel.trainer.mesh import build_mesh, degrees, sample_ranks
from bigmodel.trainer.notices import Notices
from bigmodel.trainer.optimizers import build_optimizer
from bigmodel.trainer.parallel import gather, parallelize
from bigmodel.trainer.recipes.task import Plan
from bigmodel.trainer.report import Reporter
from bigmodel.trainer.saving import Saving
from tests.unit.trainer.tasks import INPUTS, a_recipe, a_task, no_saving

WORLD = 4
EVERY = 3  # steps between checkpoints
CPU = torch.device("cpu")


class Stopped(Exception):
    pass


def model(width: int) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Sequential(nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, 6), nn.Tanh()), nn.Linear(6, 1)
    )


def case(rank: int, number: int, wanted: dict[str, Any], directory: str) -> dict[str, Any]:
    ranks = wanted["ranks"]
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{directory}/rendezvous-{number}", ranks), rank=rank, world_size=ranks
    )
    recipe = a_recipe(**wanted.get("recipe", {}))
    plan = Plan(blocks=("0",), tensor={"0.0": "columns", "0.2": "rows"})
    task = replace(a_task(model(wanted.get("width", 8))), plan=plan)
    plain = copy.deepcopy(task.model)
    losses: dict[int, float] = {}
    report = Reporter(rank, number + 1, None, lambda: 0.0)
    error = None
    poison = wanted.get("poison")

    def stepped(step: int, values: dict[str, float]) -> None:
        losses[step] = values["loss"]
        if step == wanted.get("stop"):
            raise Stopped

    report.stepped = stepped  # type: ignore[method-assign,assignment]
    saving = no_saving(report)
    if store := wanted.get("store"):
        checkpoints = Checkpoints(
            open_store(StoreLocation(uri=f"file://{directory}/{store}"), {}),
            "checkpoints", dist.group.WORLD, 1, number + 1, 3,
        )  # fmt: skip
        saving = Saving(checkpoints, Cadence(Checkpoint(every_steps=EVERY)), Notices(None), report, lambda: 0.0)
    metrics, parameters, local, step = None, None, 0, 0
    try:
        mesh = build_mesh(degrees(Parallelism(**wanted["parallelism"]), ranks), CPU)
        samples = sample_ranks(mesh)
        spread = parallelize(task.model, plan, mesh, samples, recompute=recipe.activation_checkpointing)
        state = TrainState(
            spread,
            build_optimizer(recipe.optimizer, spread.parameters(), task.learning_rates),
            autocast=AUTOCAST[recipe.precision],
        )
        if poison:
            batches = [0]

            def poisoned(outputs: Tensor, targets: Tensor) -> Tensor:
                losses_B = (outputs - targets).square().mean(dim=1)
                if spread.training:
                    batches[0] += 1
                return losses_B * (math.nan if batches[0] == poison[0] + 1 and rank == poison[1] else 1.0)

            task = replace(task, loss=poisoned)
        try:
            metrics = train(task, recipe, state, samples, CPU, report, saving, dist.group.WORLD)
        except Stopped:
            pass
        except NonFiniteStep as stopped:
            error = str(stopped)
        step = state.step
        local = sum(_local(parameter) for parameter in spread.parameters())
        if (whole := gather(unwrapped(spread), plain, rank)) is not None:
            parameters = [float(value) for tensor in whole.parameters() for value in tensor.detach().flatten()]
    except InvalidMesh as refused:
        error = str(refused)
    dist.destroy_process_group()
    return {
        "losses": list(losses.values()), "steps": list(losses), "metrics": metrics, "error": error, "step": step,
        "parameters": parameters, "local": local,
    }  # fmt: skip


def _local(parameter: Tensor) -> int:
    return parameter.to_local().numel() if hasattr(parameter, "to_local") else parameter.numel()


def main() -> None:
    torch.set_num_threads(1)
    cases: dict[str, dict[str, Any]] = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as directory:
        children = []
        for rank in range(WORLD):
            if (pid := os.fork()) == 0:
                results = {
                    name: case(rank, number, wanted, directory)
                    for number, (name, wanted) in enumerate(cases.items())
                    if rank < wanted["ranks"]
                }
                with open(f"{directory}/{rank}.json", "w") as out:
                    json.dump(results, out)
                os._exit(0)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        if any(codes):
            sys.exit(f"exit codes {codes}")
        every = [json.load(open(f"{directory}/{rank}.json")) for rank in range(WORLD)]  # noqa: SIM115
    json.dump({name: [seen[name] for seen in every if name in seen] for name in cases}, sys.stdout)


main()
