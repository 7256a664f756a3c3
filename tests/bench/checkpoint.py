"""How long a save blocks training: `python -m tests.bench.checkpoint [--megabytes 25] [--saves 20]`, a table on stdout.

Two ranks over gloo, each with its own share of a sharded state (DTensor), saved in turns by torch.save (each rank its
share, a pickle, nothing flushed), by DCP as it comes (pickled metadata, flushed to the disk) and by ours (flushed,
sha256 of every file, committed). Ratios in one run count, not milliseconds: they are the disk's.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from bigmodel.api.run import StoreLocation
from bigmodel.artifact.stores import open_store
from bigmodel.trainer.checkpoint.checkpoints import Checkpoints, checkpoint_group

RANKS = 2
TENSORS = 24


def rank_main(rank: int, directory: Path, megabytes: int, saves: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{directory}/gang", RANKS), rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    rows = megabytes * 1_000_000 // 4 // 256 // TENSORS * RANKS
    state: dict[str, DTensor] = {
        f"layers.{i}": distribute_tensor(torch.randn(rows, 256), mesh, [Shard(0)]) for i in range(TENSORS)
    }
    group = checkpoint_group()
    saved = Checkpoints(open_store(StoreLocation(uri=directory.as_uri()), {}), "ours", group, 1, 1, keep=2)
    saved.load({"state": {}})

    def by_torch(step: int) -> None:
        torch.save({name: tensor.to_local() for name, tensor in state.items()}, directory / f"torch-{rank}-{step % 3}")

    def by_dcp(step: int) -> None:
        writer = FileSystemWriter(directory / f"dcp-{step % 3}", overwrite=True)
        state_dict_saver.save(dict(state), storage_writer=writer, process_group=group)

    def by_us(step: int) -> None:
        saved.save({"state": state}, step, 0.0)

    ways: dict[str, Callable[[int], None]] = {"torch.save": by_torch, "dcp.save": by_dcp, "ours": by_us}
    blocked: dict[str, list[float]] = {way: [] for way in ways}
    for step in range(1, saves + 4):
        for way, save in ways.items():
            dist.barrier()
            began = time.perf_counter()
            save(step)
            blocked[way].append(1000 * (time.perf_counter() - began))
    if rank == 0:
        print(f"{megabytes} MB a rank, {RANKS} ranks, {TENSORS} tensors, torch {torch.__version__}, {directory}")
        print(f"{'':12}{'median ms':>10}{'worst ms':>10}{'× torch.save':>14}")
        for way, times in blocked.items():
            kept = times[3:]  # the first ones open and allocate
            ratio = statistics.median(kept) / statistics.median(blocked["torch.save"][3:])
            print(f"{way:12}{statistics.median(kept):10.1f}{max(kept):10.1f}{ratio:14.2f}")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.checkpoint")
    parser.add_argument("--megabytes", type=int, default=25)
    parser.add_argument("--saves", type=int, default=20)
    parser.add_argument("--directory", type=Path, help="on the disk to be measured; default: the temporary directory")
    arguments = parser.parse_args()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        context = torch.multiprocessing.get_context("spawn")
        ranks = [
            context.Process(target=rank_main, args=(rank, Path(directory), arguments.megabytes, arguments.saves))
            for rank in range(RANKS)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()


if __name__ == "__main__":
    main()
