"""An FSDP2 model with two inputs and named outputs under a Session: `sharded.py DIRECTORY STEPS`. Rank 0 prints what
it did."""

import json
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from bigmodel.trainer import Session


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.names = nn.Embedding(3, 5)
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.head = nn.Linear(5, 1)

    def forward(self, numbers: Tensor, words: Tensor) -> dict[str, Tensor]:
        total = self.head(self.layers(numbers) + self.names(words).sum(1))
        return {"total": total, "half": total / 2}


with Session(sys.argv[1]) as session:
    torch.manual_seed(0)
    model = Sum()
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "seen": 0}
    steps = []
    for step in session.steps(int(sys.argv[2]), state):
        torch.manual_seed(step * session.world_size + session.rank)
        numbers, words = torch.randn(8, 4), torch.randint(0, 3, (8, 2))
        loss = (model(numbers, words)["total"] - numbers.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        session.report(loss=loss.item())
        state["seen"] += 1
        steps.append(step)
    answer = model(torch.ones(1, 4), torch.ones(1, 2, dtype=torch.int64))["total"].item()
    artifact = session.publish(model, (torch.randn(6, 4), torch.ones(6, 2, dtype=torch.int64)), plain=Sum())
    if artifact is not None:
        told = {"uri": artifact.uri, "digest": artifact.digest, "answer": answer, "seen": state["seen"]}
        print(json.dumps({"steps": steps, **told}))
