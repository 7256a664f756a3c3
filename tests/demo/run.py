"""The quickstart as a user lives it: apply two files, watch, ask the model."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from tests.cluster.kubectl import get, kubectl
from tests.demo.infer import Answer, ask, golden_sample
from tests.demo.install import DEMO_NAMESPACE, STORE_SECRET
from tests.demo.terminal import BOLD, GREEN, RESET, step

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
NAME = "bigmodel"
TRAIN_SECONDS = 900
SERVE_SECONDS = 300


class DemoFailed(RuntimeError):
    """The job or the service ended otherwise than well; the text is its own message."""


def run() -> None:
    """Train, serve and ask; raises DemoFailed with the resource's own message where it does not work."""
    begin = time.monotonic()
    for manifest in ("job.yaml", "service.yaml"):
        print(kubectl("apply", "-n", DEMO_NAMESPACE, "-f", str(QUICKSTART / manifest)).strip())
    with step("train on two nodes: kubectl get bmj,bms"):
        _watch("bigmodeljob", "Finished", TRAIN_SECONDS)
        _require("bigmodeljob", "Complete", "Failed")
    with step("verify and serve on Triton: kubectl get bmj,bms"):
        _watch("bigmodelservice", "Promoted", SERVE_SECONDS)
        _require("bigmodelservice", "Promoted", "Promoted")
    with step("infer"):
        _infer()
    print(
        f"\n{BOLD}From apply to answers in {time.monotonic() - begin:.0f} s.{RESET} The cluster goes on running. Try:"
    )
    for line in (
        'eval "$(make -s env)"',
        f"kubectl get bmj,bms -n {DEMO_NAMESPACE} -o wide",
        f"kubectl describe bmj {NAME} -n {DEMO_NAMESPACE}",
        f"kubectl logs -n {DEMO_NAMESPACE} -l bigmodel.io/job={NAME},bigmodel.io/index=0",
    ):
        print(f"  {line}")
    print("and `make down` takes it away.")


def _condition(kind: str, type_: str) -> dict[str, Any] | None:
    found = get(DEMO_NAMESPACE, kind, NAME)
    conditions = (found or {}).get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == type_), None)


def _watch(kind: str, condition: str, timeout_seconds: float) -> None:
    """Print both resources whenever a line changes, until the condition is decided."""
    deadline = time.monotonic() + timeout_seconds
    shown = ""
    while time.monotonic() < deadline:
        table = kubectl("get", "bmj,bms", "-n", DEMO_NAMESPACE)
        if (news := _without_ages(table)) != shown:
            print(f"\n{table.rstrip()}", flush=True)
            shown = news
        decided = _condition(kind, condition)
        if decided is not None and decided["status"] != "Unknown" and decided["reason"] != "RolloutInProgress":
            return
        time.sleep(1)
    raise DemoFailed(
        f"{kind}/{NAME} had no condition {condition} after {timeout_seconds:.0f} s: "
        f"look at `kubectl describe {kind} {NAME} -n {DEMO_NAMESPACE}`"
    )


def _without_ages(table: str) -> str:
    """What is worth printing again: ages change by themselves."""
    return re.sub(r"\b(\d+d)?(\d+h)?(\d+m)?(\d+s)?\b", "", table)


def _require(kind: str, good: str, told_by: str) -> None:
    condition = _condition(kind, good)
    if condition is not None and condition["status"] == "True":
        return
    why = _condition(kind, told_by) or {"reason": "Unknown", "message": "no condition says why"}
    raise DemoFailed(f"{kind}/{NAME}: {why['reason']}: {why['message']}")


def _infer() -> None:
    service = get(DEMO_NAMESPACE, "bigmodelservice", NAME)
    job = get(DEMO_NAMESPACE, "bigmodeljob", NAME)
    assert service is not None
    assert job is not None
    sample = golden_sample(job, DEMO_NAMESPACE, STORE_SECRET)
    answers = ask(DEMO_NAMESPACE, NAME, service["status"]["model"]["name"], sample)
    _print_table(sample.outputs, answers)
    metrics = {m["name"]: m["value"] for m in job["status"]["artifact"]["metrics"]}
    print(f"    validation: {metrics}")


def _print_table(golden: list[float], answers: list[Answer]) -> None:
    print(f"    {'sample':>8} {'golden':>14} " + " ".join(f"{a.protocol:>14}" for a in answers))
    for row, expected in enumerate(golden):
        values = " ".join(f"{a.outputs[row]:>14.5f}" for a in answers)
        print(f"    {row:>8} {expected:>14.5f} {values}")
        for answer in answers:
            if abs(answer.outputs[row] - expected) > 1e-4 + 1e-3 * abs(expected):
                raise DemoFailed(f"sample {row} by {answer.protocol}: {answer.outputs[row]} is not {expected}")
    print(
        f"    {GREEN}equal within 1e-4 + 0.1 %{RESET}, answered by "
        + ", ".join(f"{a.protocol} {a.milliseconds:.1f} ms" for a in answers)
    )
