"""What the controller and the containers of a serving pod must agree on: paths, Triton's command line, probes, the
drain's seconds.

Pure: the controller builds pods from it, and `bigmodel.server` reads and writes below the same paths.
"""

import re
from dataclasses import dataclass

from bigmodel.api import names

# One emptyDir, mounted at MODEL_DIRECTORY: writable for `fetch`, read-only for `server` and `verifier`. artifact/
# manifest.json and the variant's files at their paths of the artefact; golden samples too, because Triton takes every
# folder of its repository for a model repository/<model>/   config.pbtxt, <revision>/model.py, <revision>/program.pt2
# (a hard link) fetched.json          FetchResult
MODEL_DIRECTORY = "/model"
ARTIFACT = "artifact"
REPOSITORY = "repository"
FETCHED = "fetched.json"

# The paths of the verifier, on names.PORT_VERDICT.
PATH_VERDICT = "/v1/verdict"
PATH_READY = "/readyz"  # 200 while this pod's model answers its golden samples
PATH_LIVE = "/livez"  # 503 only when Triton should be restarted; Triton's liveness probe

# Until kube-proxies and gateways of a large cluster have dropped the endpoint; 6 lost nothing on a small one (tried).
PRE_STOP_SECONDS = 10
KILL_MARGIN_SECONDS = 15  # Triton's exit timeout is soft: 2 s asked were 4.4 s taken


@dataclass(frozen=True)
class Drain:
    """How a serving pod stops without losing a request: sleep, then Triton finishes what it holds, then the kubelet may
    kill.

    `exit_timeout_seconds` is the longest request and not more: idle connections of a gateway's pool hold Triton for all
    of it.
    """

    pre_stop_seconds: int
    exit_timeout_seconds: int
    termination_grace_seconds: int


def drain(max_request_seconds: int) -> Drain:
    grace = PRE_STOP_SECONDS + max_request_seconds + KILL_MARGIN_SECONDS
    return Drain(PRE_STOP_SECONDS, max_request_seconds, grace)


# Triton's APIs that change it or tell of its inside; without the key it answers 403. Health, metadata and inference are
# open to every caller.
RESTRICTED_APIS = "shared-memory,model-config,model-repository,statistics,trace,logging"
KEY_HEADER = "bigmodel-key"
_KEY = f"{RESTRICTED_APIS}:{KEY_HEADER}=$({names.ENV_TRITON_KEY})"  # the kubelet puts the variable in


def triton_arguments(exit_timeout_seconds: int) -> list[str]:
    """Arguments of `tritonserver` in a serving pod; everything about the model stands in the repository that `fetch`
    wrote.
    """
    return [
        f"--model-repository={MODEL_DIRECTORY}/{REPOSITORY}",
        "--backend-directory=/opt/tritonserver/backends",
        "--model-control-mode=none",  # the load API lets a caller run code
        "--disable-auto-complete-config",  # else a missing config.pbtxt is guessed, not refused
        "--exit-on-error=true",
        "--strict-readiness=true",
        f"--http-restricted-api={_KEY}",
        f"--grpc-restricted-protocol={_KEY}",
        f"--exit-timeout-secs={exit_timeout_seconds}",
        "--metrics-config=summary_latencies=true",
        "--allow-gpu-metrics=false",  # DCGM wants more rights than the pod has
        # The kubelet keeps the last 2048 bytes of the log as termination message: without these two they are Triton's
        # option table, with them the error of the model (`load_failure`).
        "--log-info=false",
        "--log-warning=false",
    ]


def ready_path(model: str, revision: int) -> str:
    """On Triton's HTTP port: 200 once this version is loaded. Says nothing about a model process that died since: see
    PATH_LIVE.
    """
    return f"/v2/models/{model}/versions/{revision}/ready"


_LOAD_FAILURE = re.compile(
    r"failed to load '[^']*' version \d+: (?P<error>.*)"
    r"|(?P<poll>Poll failed for model directory .*)"
    r"|(?P<server>error: creating server: .*)"
)


@dataclass(frozen=True)
class LoadFailure:
    """Why Triton did not load a model. `reason` is one of the service's reasons."""

    reason: str  # ModelLoadFailed | WarmupFailed
    message: str  # Triton's own text, one line, without the Python stack


def load_failure(text: str) -> LoadFailure | None:
    """The first load error in the end of Triton's log or in a `reason` of its repository index; None where there is
    none.

    Source: model_lifecycle.cc and model_config_utils.cc of triton-inference-server/core, as printed by 2.51.
    """
    found = _LOAD_FAILURE.search(text)
    return None if found is None else describe_load_error(next(group for group in found.groups() if group is not None))


def describe_load_error(error: str) -> LoadFailure:
    # The log escapes line breaks, the repository index does not.
    head = error.replace("\\n", "\n").split("\n\nAt:")[0].strip().rstrip('";').strip()
    message = " ".join(head.split())[:1024]
    reason = "WarmupFailed" if "warmup" in message.lower() or "warm-up" in message.lower() else "ModelLoadFailed"
    return LoadFailure(reason, message or "Triton gave no reason")
