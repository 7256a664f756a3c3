"""The variables of a command job, put to the test: torchrun itself, without a flag, twice on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bigmodel.controller.decision import Children
from bigmodel.controller.job import build
from bigmodel.controller.job.observe import observed_job
from tests.builders import a_job

TRAIN = Path(__file__).parents[4] / "examples" / "any-image" / "train.py"


def start(command: list[str], port: int, index: int) -> subprocess.Popen[str]:
    job = a_job().spec(recipe=None, command=command)
    observed = observed_job(job.manifest, Children(), (), None, True)
    told = build.gang_environment(observed, 2, index)
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    told |= {name: here[name.removeprefix("PET_")] for name in told if name.removeprefix("PET_") in here}
    environment = {**os.environ, **told, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize(
    "command",
    [["-m", "torch.distributed.run", str(TRAIN)], [str(TRAIN)]],
    ids=["by torchrun", "without it"],
)
def test_a_program_of_two_pods_is_one_gang(command: list[str]) -> None:
    """A1; two pods that silently become two jobs would both end with 0."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pods = [start(command, port, index) for index in (0, 1)]
    said = [pod.communicate(timeout=240)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], said
    for index, text in enumerate(said):
        assert f"rank {index} of 2: done, loss 0.00" in text
