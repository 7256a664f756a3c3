"""Pod `inspect`: reads an artefact's manifest, and nothing else of it, before anything is asked for that costs.

Ends with an InspectResult as its termination message. Exit code 0: this is the answer, good or bad. Exit code 1: the
store could not be asked; the kubelet tries again.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bigmodel.api.names import ENV_SERVING_RUN, ENV_TERMINATION_LOG, TERMINATION_LOG
from bigmodel.api.run import ServingRun
from bigmodel.artifact import fetch as artifacts
from bigmodel.artifact import stores
from bigmodel.artifact.summary import InspectResult, summarise
from bigmodel.server.config import synthesise
from bigmodel.server.fetch import REASONS, RETRY_PAUSES_SECONDS, patiently

SURROUNDINGS = frozenset({"StoreUnreachable", "StoreForbidden", "VolumeFailed"})  # not the artefact's fault


def inspect(run: ServingRun, environ: Mapping[str, str], pause: Callable[[float], None]) -> InspectResult:
    """`pause` sleeps between two tries of a store that does not answer."""
    try:
        store = stores.open_store(run.store.model_copy(update={"uri": run.artifact_uri}), environ)
        pauses = iter(RETRY_PAUSES_SECONDS)
        manifest = patiently(lambda: artifacts.read_manifest(store, run.digest), pauses, pause)
        synthesise(run, manifest.signature, manifest.variant(run.variant))
    except tuple(REASONS) as error:
        reason = next(reason for kind, reason in REASONS.items() if isinstance(error, kind))
        return InspectResult(ok=False, reason=reason, message=f"{run.service} r{run.revision}: {error}"[:1500])
    summary = summarise(manifest, run.variant)
    message = f"{run.digest} variant {run.variant}: {summary.size_bytes} bytes, {len(summary.metrics)} metrics"
    return InspectResult(ok=True, message=message, summary=summary)


def main() -> int:
    run = ServingRun.model_validate_json(os.environ[ENV_SERVING_RUN])
    result = inspect(run, os.environ, time.sleep)
    print(result.message, flush=True)  # noqa: T201
    Path(os.environ.get(ENV_TERMINATION_LOG, TERMINATION_LOG)).write_text(result.fitted())
    return 1 if result.reason in SURROUNDINGS else 0


if __name__ == "__main__":
    sys.exit(main())
