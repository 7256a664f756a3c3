"""Fits y = 3x - 1 with plain DistributedDataParallel: nothing here knows the operator."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
torch.manual_seed(dist.get_rank())
model = DistributedDataParallel(torch.nn.Linear(1, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss = torch.tensor(float("inf"))
for step in range(200):
    x = torch.randn(64, 1)
    loss = torch.nn.functional.mse_loss(model(x), 3 * x - 1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"rank {dist.get_rank()} of {dist.get_world_size()}: step {step}, loss {loss.item():.4f}", flush=True)
print(f"rank {dist.get_rank()} of {dist.get_world_size()}: done, loss {loss.item():.6f}", flush=True)
dist.destroy_process_group()
