"""A training that is cut off and taken up again, by real ranks over gloo, forked from one process that imported torch.

    python lives.py < cases.json        {case: {"kind": "recipe" or "fsdp", "lives": [{"ranks": 2, "killed_at": 5}, …]}}

A life without `killed_at` trains to the end. Prints, for each case, what rank 0 of the last life holds, and the steps
that each life made.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it, a second each: once here, not in every fork
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bigmodel.api.job import Checkpoint, Optimizer, Schedule
from bigmodel.api.run import StoreLocation
from bigmodel.artifact.stores import open_store
from bigmodel.trainer.checkpoint.cadence import Cadence
from bigmodel.trainer.checkpoint.checkpoints import Checkpoints, checkpoint_group
from bigmodel.trainer.loop import TrainState, train
from bigmodel.trainer.mesh import build_mesh, degrees
from bigmodel.trainer.notices import Notices
from bigmodel.trainer.optimizers import build_optimizer
from bigmodel.trainer.process import be_deterministic
from bigmodel.trainer.report import Reporter
from bigmodel.trainer.saving import Saving
from tests.unit.trainer.tasks import a_recipe, a_run, a_task

STEPS = 30
EVERY = 4


def recipe_life(life: dict[str, Any], rank: int, saved: Checkpoints, generation: int) -> dict[str, Any]:
    """The loop of recipes, with dropout, Adam, a schedule and uneven shares."""
    torch.manual_seed(3)
    task = a_task(nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Dropout(0.3), nn.Linear(40, 30), nn.Linear(30, 1)))
    recipe = a_recipe(
        steps=STEPS,
        batch_size=8,
        clip_norm=1.0,
        gradient_accumulation=2,
        optimizer=Optimizer(name="adam", learning_rate=0.01),
        schedule=Schedule(name="cosine", warmup_steps=5),
    )
    steps: list[int] = []
    report = Reporter(rank, generation, None, time.monotonic)

    def stepped(step: int, values: dict[str, float]) -> None:
        steps.append(step)
        if step == life.get("killed_at"):
            leave(life, {"steps": steps})

    report.stepped = stepped  # type: ignore[method-assign]
    data = build_mesh(degrees(a_run("file:///x").parallelism, life["ranks"]), torch.device("cpu")).get_group("data")
    model = DistributedDataParallel(
        task.model, process_group=data, forward_sync_buffers=False, gradient_as_bucket_view=True
    )
    state = TrainState(model, build_optimizer(recipe.optimizer, model.parameters(), task.learning_rates))
    torch.manual_seed(generation * 1000 + rank)  # whatever a new process drew before
    saving = Saving(saved, Cadence(Checkpoint(every_steps=EVERY)), Notices(None), report, time.monotonic)
    metrics = train(task, recipe, state, data, torch.device("cpu"), report, saving)
    return {"steps": steps, "metrics": metrics, **held(dict(model.named_parameters()))}


def fsdp_life(life: dict[str, Any], rank: int, saved: Checkpoints, generation: int) -> dict[str, Any]:
    """Plain FSDP2: every parameter a DTensor, one of them with fewer rows than there are ranks."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    state: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "seen": torch.zeros((), dtype=torch.int64),
        "note": {"a": (1, 2.5, float("inf"))},
    }
    loaded = saved.load(state)
    steps = []
    for step in range(loaded.manifest.step if loaded else 0, STEPS):
        inputs = torch.randn(12, 5, generator=torch.Generator().manual_seed(step)).chunk(life["ranks"])[rank]
        optimizer.zero_grad()
        (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        schedule.step()
        state["seen"] += 1
        steps.append(step + 1)
        if step + 1 == life.get("killed_at"):
            leave(life, {"steps": steps})
        if (step + 1) % EVERY == 0:
            saved.save(state, step + 1, 0.0)
    rate = optimizer.param_groups[0]["lr"]
    plain = {"seen": int(state["seen"]), "note": state["note"] == {"a": (1, 2.5, float("inf"))}, "rate": rate}
    return {"steps": steps, "plain": plain, **held(dict(model.named_parameters()))}


def held(parameters: dict[str, Tensor]) -> dict[str, Any]:
    whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in parameters.items()}
    data = b"".join(tensor.detach().numpy().tobytes() for tensor in whole.values())
    values = [float(value) for tensor in whole.values() for value in tensor.detach().flatten()]
    return {"bits": hashlib.sha256(data).hexdigest(), "parameters": values}


def leave(life: dict[str, Any], result: dict[str, Any]) -> None:
    with open(f"{life['out']}.part", "w") as out:
        json.dump(result, out)
    os.rename(f"{life['out']}.part", life["out"])
    os._exit(0)


def live(kind: str, life: dict[str, Any], rank: int, store: str, rendezvous: str, generation: int) -> None:
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(life["ranks"]), "MASTER_ADDR": "127.0.0.1"})
    be_deterministic()
    dist.init_process_group(
        "gloo", store=dist.FileStore(rendezvous, life["ranks"]), rank=rank, world_size=life["ranks"]
    )
    location = StoreLocation(uri=f"file://{store}")
    saved = Checkpoints(open_store(location, {}), "ml/x/checkpoint", checkpoint_group(), 1, generation, keep=2)
    leave(life, (recipe_life if kind == "recipe" else fsdp_life)(life, rank, saved, generation))


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, case in json.load(sys.stdin).items():
        with tempfile.TemporaryDirectory() as directory:
            results[name] = []
            for number, life in enumerate(case["lives"], 1):
                children = []
                for rank in range(life["ranks"]):
                    life["out"] = f"{directory}/{number}-{rank}"
                    if (pid := os.fork()) == 0:
                        live(case["kind"], life, rank, f"{directory}/store", f"{directory}/gang{number}", number)
                    children.append(pid)
                codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
                if any(codes):
                    sys.exit(f"{name}, life {number}: exit codes {codes}")
                with open(f"{directory}/{number}-0") as file:
                    results[name].append(json.load(file))
    json.dump(results, sys.stdout)


main()
