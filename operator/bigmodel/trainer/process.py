"""This process among the others: ranks, device, process group. Built once in `main`, passed down; nothing is read
from the environment later.
"""

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.utils.deterministic


@dataclass(frozen=True)
class Rank:
    """`rank` of `world_size`; `local_rank` counts the processes of this pod and chooses the GPU."""

    rank: int
    world_size: int
    local_rank: int
    generation: int


def rank_of(environ: Mapping[str, str], generation_variable: str) -> Rank:
    """From torchrun's variables; without them the only rank of a world of one."""
    return Rank(
        rank=int(environ.get("RANK", "0")),
        world_size=int(environ.get("WORLD_SIZE", "1")),
        local_rank=int(environ.get("LOCAL_RANK", "0")),
        generation=int(environ.get(generation_variable, "1")),
    )


def choose_device(rank: Rank) -> torch.device:
    """This rank's GPU where the pod has one for it, else the CPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(rank.local_rank)
        return torch.device("cuda", rank.local_rank)
    return torch.device("cpu")


@contextmanager
def process_group(rank: Rank, device: torch.device, timeout_seconds: int, environ: Mapping[str, str]) -> Iterator[None]:
    """Join the default process group: env:// where somebody set the gang up (TORCHELASTIC_USE_AGENT_STORE: its
    store), else alone.

    gloo carries CPU tensors everywhere; NCCL the GPU's. A collective that takes longer than `timeout_seconds` raises.
    """
    alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # type: ignore[attr-defined]
    if device.type == "cuda":
        # The watchdog must not shoot before the collective's own timeout had its say (torch's default is 8 minutes).
        os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(max(480, timeout_seconds)))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        timeout=timedelta(seconds=timeout_seconds),
        device_id=device if device.type == "cuda" else None,
        **({} if {"MASTER_ADDR", "RANK"} <= environ.keys() else alone),
    )
    yield
    # Not in a finally: after a failure a peer may be gone, and taking the group down would wait for it. The process
    # ends anyway.
    dist.destroy_process_group()


def seed_everything(*parts: int) -> None:
    """Every generator, from the same numbers on every machine."""
    state = np.random.SeedSequence(parts).generate_state(2, np.uint64)
    torch.manual_seed(int(state[0]))  # of the CPU and all GPUs
    random.seed(int(state[1]))
    np.random.seed(int(state[1]) & 0xFFFFFFFF)


def be_deterministic() -> None:
    """The same numbers from the same run, where torch has such a kernel; a warning where it has not."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling finds bugs of programs and costs a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
