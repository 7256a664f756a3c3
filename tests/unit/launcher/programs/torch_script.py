"""What programs of others do, one after the other: MODE is env | tcp | own-master-port | workers | spawn.

Each joins a process group of all ranks in its own way and adds their ranks up.
"""

import os
import sys
import threading
import time

import neighbour
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, Dataset

MODE = os.environ["MODE"]
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
HOST = os.environ["MASTER_ADDR"]


class Numbers(Dataset):
    """Of the main module, as in most scripts: workers that are spawned must find it there."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> int:
        return index


def total_of(rank: int, world: int, **how: object) -> int:
    dist.init_process_group("gloo", rank=rank, world_size=world, **how)
    total = torch.tensor(rank)
    dist.all_reduce(total)
    dist.barrier()
    dist.destroy_process_group()
    return int(total)


def child(local: int, port: int) -> None:
    assert total_of(local, 2, init_method=f"tcp://127.0.0.1:{port}") == 1


def main() -> object:
    port = int(os.environ["OWN_PORT"])
    match MODE:
        case "env":
            return total_of(RANK, WORLD, init_method="env://")
        case "tcp":
            return total_of(RANK, WORLD, init_method=f"tcp://{HOST}:{port}")
        case "own-master-port":
            os.environ["MASTER_PORT"] = str(port)
            return total_of(RANK, WORLD)
        case "workers":
            totals = []
            for start in ("fork", "spawn"):
                loader = DataLoader(Numbers(), batch_size=4, num_workers=2, multiprocessing_context=start)
                totals.append(int(sum(batch.sum() for batch in loader)))
            return totals
        case "spawn":
            mp.spawn(child, args=(port + 1 + RANK,), nprocs=2)
            return "joined"


if __name__ == "__main__":
    assert os.path.dirname(neighbour.HERE) == sys.path[0]
    from diary import note

    note("result", value=main(), argv=sys.argv, file=__file__, main=sys.modules["__main__"].__dict__ is globals())

    def last() -> None:
        time.sleep(0.2)
        note("last", mode=MODE)  # after the last line of the script, with its globals

    threading.Thread(target=last).start()
    sys.exit(int(os.environ.get("CODE", "0")))
