"""Data-parallel training over gloo, with checkpoints: rank 0 saves at each step, all load at the start.

STEPS and PAUSE as in steps.py. HANG=rank:generation:step is where one never comes to the collective; that the other
waits in it is only told by its stack.
"""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))
import torch
import torch.distributed as dist
from diary import GENERATION, RANK, note, report

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
    if os.environ.get("HANG") == f"{RANK}:{GENERATION}:{step}":
        while True:
            time.sleep(0.001)
    loss.backward()
    optimizer.step()
    report("Training", step, metrics=[{"name": "loss", "value": f"{loss.item():.4f}"}])
    note("step", step=step)
    if RANK == 0:
        torch.save({"model": model.state_dict(), "step": step}, CHECKPOINT + ".part")
        os.rename(CHECKPOINT + ".part", CHECKPOINT)
dist.destroy_process_group()
note("end")
