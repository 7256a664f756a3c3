"""The environment of a rank: torchrun's variables, with RANK fixed by the pod's index. Pure, but for `processor_count`
and `process_count`."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigmodel.api.names import ENV_GENERATION, ENV_NOTICE, ENV_REPORT_SOCKET, PORT_MASTER, SCRIPT_DIRECTORY
from bigmodel.api.run import TrainingRun

TRAINER = "bigmodel.trainer.main"


@dataclass(frozen=True)
class RankFiles:
    """Where one rank of one generation and its launcher exchange what is no report. All in the launcher's private
    directory."""

    directory: Path
    generation: int
    rank: int

    def _file(self, kind: str) -> Path:
        return self.directory / f"g{self.generation}-r{self.rank}-{kind}"

    @property
    def error(self) -> Path:
        return self._file("error.json")

    @property
    def stacks(self) -> Path:
        return self._file("stacks.txt")

    @property
    def output(self) -> Path:
        return self._file("output")

    @property
    def notice(self) -> Path:
        return self._file("notice.json")


def program(run: TrainingRun) -> dict[str, object]:
    """What a rank runs, in the fork server's words. The working directory is the pod's, wherever the files are."""
    if run.script is None:
        return {"module": TRAINER}
    directory = run.script.path if run.script.path is not None else SCRIPT_DIRECTORY
    return {"path": str(Path(directory) / run.script.entrypoint), "args": list(run.args)}


def tensorflow_cluster(peers: Sequence[str], processes: int) -> list[str]:
    """Where the worker of each rank listens, by the ranks: on its pod's host name, which a replacement keeps."""
    hosts = [peer.rpartition(":")[0] for peer in peers]
    return [f"{host}:{PORT_MASTER + local_rank}" for host in hosts for local_rank in range(processes)]


def rank_environment(
    base: Mapping[str, str],
    start: Mapping[str, str],
    files: RankFiles,
    report_socket: Path,
    *,
    index: int,
    nodes: int,
    processes: int,
    processors: float,
    workers: Sequence[str] = (),
) -> dict[str, str]:
    """`base` is the container's environment, `start` what the coordinator said. Ours win: a rank that lies about its
    rank hangs the gang. `workers`: the cluster of a TensorFlow job."""
    local_rank = files.rank - index * processes
    world = nodes * processes
    environment = {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_BUFFER_SIZE": "2000",
        "OMP_NUM_THREADS": str(max(1, int(processors / processes))),
        **({"GLOO_SOCKET_IFNAME": "lo"} if start["MASTER_ADDR"].startswith("127.") else {}),
        **base,
        **start,
        "RANK": str(files.rank),
        "LOCAL_RANK": str(local_rank),
        "GROUP_RANK": str(index),
        "NODE_RANK": str(index),
        "ROLE_RANK": str(files.rank),
        "ROLE_NAME": "default",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_WORLD_SIZE": str(nodes),
        "ROLE_WORLD_SIZE": str(world),
        "TORCHELASTIC_ERROR_FILE": str(files.error),
        ENV_GENERATION: str(files.generation),
        ENV_NOTICE: str(files.notice),
        ENV_REPORT_SOCKET: str(report_socket),
    }
    if workers:
        task = {"type": "worker", "index": files.rank}
        environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": list(workers)}, "task": task})
    # A variable of the pod that speaks of an agent which is not there would make torch wait for it.
    if "TORCHELASTIC_USE_AGENT_STORE" not in start:
        environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    return environment


def process_count(wanted: int | str, devices: Path = Path("/dev")) -> int:
    """Ranks of this pod. `auto`: one for each NVIDIA GPU that the pod was given, else one."""
    if isinstance(wanted, int):
        return wanted
    return len([path for path in devices.glob("nvidia*") if path.name[6:].isdecimal()]) or 1


def processor_count(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Processors this pod may use: its CPU limit (cgroup v2) or, without one, what the scheduler lets it run on."""
    available = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return available
    return available if quota == "max" else min(available, int(quota) / int(period))
