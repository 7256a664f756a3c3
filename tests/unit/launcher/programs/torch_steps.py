"""Data-parallel training over gloo, with checkpoints: rank 0 saves at each step, all load at the start. STEPS, PAUSE as
in steps.py."""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))
import torch
import torch.distributed as dist
from diary import RANK, note, report

STEPS = int(os.environ.get("STEPS", "20"))
PAUSE = float(os.environ.get("PAUSE", "0.01"))
CHECKPOINT = f"{os.environ['DIARY']}.pt"

note("start", pid=os.getpid(), threads=torch.get_num_threads())
report("Starting")
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
begin = 0
if os.path.exists(CHECKPOINT):
    state = torch.load(CHECKPOINT, weights_only=True)
    model.load_state_dict(state["model"])
    begin = state["step"]
for step in range(begin + 1, STEPS + 1):
    time.sleep(PAUSE)
    optimizer.zero_grad()
    x_B8 = torch.randn(16, 8)
    loss = ((model(x_B8) - x_B8.sum(1, keepdim=True)) ** 2).mean()
    report("Training", step - 1, inCollective=True) if step > 1 else None
    loss.backward()
    optimizer.step()
    report("Training", step, inCollective=False, metrics=[{"name": "loss", "value": f"{loss.item():.4f}"}])
    note("step", step=step)
    if RANK == 0:
        torch.save({"model": model.state_dict(), "step": step}, CHECKPOINT + ".part")
        os.rename(CHECKPOINT + ".part", CHECKPOINT)
dist.destroy_process_group()
note("end")
