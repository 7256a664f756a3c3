"""Triton's Python backend for a `torch.export` program: `fetch` copies this file beside program.pt2 into the version
directory.

Self-contained: it runs in Triton's Python, which has torch, numpy and triton_python_backend_utils only. Names and order
of inputs and outputs are those of config.pbtxt, which is written from the artefact's signature: the k-th input is the
program's k-th argument. Errors are raised, never returned: Triton counts a returned error as a success (2.51, tried).
"""

import os

# Before torch is imported: torch.export.load unpickles the archive's sample inputs, and without this it would run code
# from them.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance: one process with its own copy of the program."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the program. Raises whatever torch raises; Triton shows it as the reason of the failed load."""
        config = json.loads(args["model_config"])
        self.inputs: list[str] = [tensor["name"] for tensor in config["input"]]
        self.outputs: list[str] = [tensor["name"] for tensor in config["output"]]
        self.output_dtypes = [pb_utils.triton_string_to_numpy(tensor["data_type"]) for tensor in config["output"]]
        self.batches = config["max_batch_size"] > 0
        instances = sum(group["count"] for group in config["instance_group"])
        processors = len(os.sched_getaffinity(0))
        torch.set_num_threads(threads(instances, os.environ.get("OMP_NUM_THREADS"), processors, cpu_max()))
        on_gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        with short_error("program.pt2 does not load"):
            exported = torch.export.load(Path(args["model_repository"]) / args["model_version"] / "program.pt2")
            if on_gpu:
                from torch.export.passes import move_to_device_pass

                # Devices are constants of an exported graph: moving the parameters alone is not enough.
                exported = move_to_device_pass(exported, self.device)
            self.program = exported.module()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of one dynamic batch with one call of the program; the first axis is the batch."""
        if not self.batches:
            return [self._respond(self._run(self._arrays(request))) for request in requests]
        arrays = [self._arrays(request) for request in requests]
        outputs = self._run([np.concatenate(parts) for parts in zip(*arrays, strict=True)])
        ends = np.cumsum([request_arrays[0].shape[0] for request_arrays in arrays])
        for name, output in zip(self.outputs, outputs, strict=True):
            if output.shape[:1] != (ends[-1],):
                raise ValueError(
                    f"output {name} has shape {output.shape}, its first axis must be the batch of {ends[-1]}"
                )
        starts = [0, *ends[:-1]]
        return [
            self._respond([output[start:end] for output in outputs]) for start, end in zip(starts, ends, strict=True)
        ]

    def _arrays(self, request: Any) -> list[np.ndarray[Any, Any]]:
        return [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]

    def _run(self, arrays: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        # Triton's arrays are read-only views of shared memory; torch wants writable ones, although nothing writes to
        # them.
        tensors = [torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device) for array in arrays]
        with short_error("the program failed"), torch.inference_mode():
            answer = self.program(*tensors)
        if isinstance(answer, dict):
            answer = [answer[name] for name in self.outputs]
        elif isinstance(answer, torch.Tensor):
            answer = [answer]
        if len(answer) != len(self.outputs):
            raise ValueError(f"the program returned {len(answer)} outputs, its signature names {len(self.outputs)}")
        return [
            np.ascontiguousarray(output.cpu().numpy(), dtype=dtype)
            for output, dtype in zip(answer, self.output_dtypes, strict=True)
        ]

    def _respond(self, outputs: list[np.ndarray[Any, Any]]) -> Any:
        tensors = [pb_utils.Tensor(name, output) for name, output in zip(self.outputs, outputs, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)


@contextmanager
def short_error(what: str) -> Iterator[None]:
    """Raise errors without torch's stack, after its end was printed to the log.

    Triton puts an error with its whole stack into the answer to the client, and into a log line of which the kubelet
    keeps 2048 bytes.
    """
    try:
        yield
    except Exception as error:
        traceback.print_exc(limit=-4)
        text = " ".join(str(error).split())
        raise RuntimeError(f"{what}: {type(error).__name__}: {text[:400]}") from None


def threads(instances: int, chosen: str | None, processors: int, cpu_max: str) -> int:
    """Threads of one instance: `chosen` (OMP_NUM_THREADS) if set, else the container's processors shared out among all.

    torch counts the node's processors, not the container's quota, and would start dozens of threads that throttle each
    other. `cpu_max` is the text of cgroup v2's cpu.max, "" where there is none.
    """
    if chosen:
        return max(1, int(chosen))
    quota, _, period = cpu_max.strip().partition(" ")
    if quota and quota != "max":
        processors = min(processors, int(quota) // int(period))
    return max(1, processors // instances)


def cpu_max() -> str:
    try:
        return Path("/sys/fs/cgroup/cpu.max").read_text()
    except OSError:
        return ""  # cgroup v1, or no cgroup file system
