"""Init container `fetch`: puts one variant of an artefact, every byte verified, before Triton as a model repository.

Everything is checked here, before Triton starts: Triton 2.51 waits for ever on a version directory without model.py.
Ends with a FetchResult as the pod's termination message, and exit code 1 when it is not ok.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from bigmodel.api.names import ENV_SERVING_RUN, ENV_TERMINATION_LOG, TERMINATION_LOG
from bigmodel.api.run import ServingRun
from bigmodel.api.serving import ARTIFACT, FETCHED, MODEL_DIRECTORY, REPOSITORY
from bigmodel.api.verdict import FetchResult
from bigmodel.artifact import fetch as artifacts
from bigmodel.artifact import stores
from bigmodel.artifact.archive import UnsafeProgram
from bigmodel.artifact.layout import PROGRAM
from bigmodel.artifact.manifest import DigestMismatch, InvalidManifest, Manifest
from bigmodel.server.config import InvalidConfig, synthesise

BACKEND_FILE = Path(__file__).parent / "backend" / "model.py"
# A store that restarts or moves is back within this; what lasts longer is shown, and the kubelet starts this container
# again.
RETRY_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0)

Result = TypeVar("Result")

# Looked up in this order.
REASONS: dict[type[Exception], str] = {
    DigestMismatch: "DigestMismatch",
    stores.ObjectNotFound: "ArtifactNotFound",
    stores.StoreForbidden: "StoreForbidden",
    stores.InvalidLocation: "InvalidConfig",
    stores.StoreError: "StoreUnreachable",  # and its subclass of that name
    InvalidManifest: "InvalidConfig",
    UnsafeProgram: "InvalidConfig",
    InvalidConfig: "InvalidConfig",
    OSError: "VolumeFailed",
}


def fetch(run: ServingRun, directory: Path, environ: Mapping[str, str], pause: Callable[[float], None]) -> FetchResult:
    """Write artifact, repository and FetchResult below `directory`; whatever was there before is replaced, at the very
    end.

    `pause` sleeps between two tries of a store that does not answer.
    """
    began = time.monotonic()
    try:
        manifest = _fetch(run, directory, environ, pause)
    except tuple(REASONS) as error:
        reason = next(reason for kind, reason in REASONS.items() if isinstance(error, kind))
        return FetchResult(ok=False, reason=reason, message=f"{run.service} r{run.revision}: {error}"[:1500])
    size_bytes = sum(file.size_bytes for file in manifest.files_of(run.variant))
    result = FetchResult(
        ok=True,
        message=f"{run.digest} variant {run.variant}: {len(manifest.files_of(run.variant))} files verified",
        download_seconds=round(time.monotonic() - began, 3),
        size_bytes=size_bytes,
    )
    (directory / FETCHED).write_text(result.model_dump_json(by_alias=True))
    return result


def _fetch(run: ServingRun, directory: Path, environ: Mapping[str, str], pause: Callable[[float], None]) -> Manifest:
    store = stores.open_store(run.store.model_copy(update={"uri": run.artifact_uri}), environ)
    pauses = iter(RETRY_PAUSES_SECONDS)
    manifest = patiently(lambda: artifacts.read_manifest(store, run.digest), pauses, pause)
    # Before the download, which may be long.
    config = synthesise(run, manifest.signature, manifest.variant(run.variant))
    patiently(lambda: artifacts.fetch(store, run.digest, run.variant, directory / ARTIFACT), pauses, pause)
    program = directory / ARTIFACT / manifest.variant(run.variant).program.path
    write_repository(directory, run, config, program)
    return manifest


def write_repository(directory: Path, run: ServingRun, config: str, program: Path) -> None:
    """Triton's repository of one model with one version, complete when it appears."""
    partial = directory / f".{REPOSITORY}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    version = partial / run.model / str(run.revision)
    version.mkdir(parents=True)
    (partial / run.model / "config.pbtxt").write_text(config)
    shutil.copyfile(BACKEND_FILE, version / "model.py")
    os.link(program, version / PROGRAM)
    repository = directory / REPOSITORY
    if repository.exists():  # this container ran before in the same pod
        shutil.rmtree(repository)
    partial.rename(repository)


def patiently(act: Callable[[], Result], pauses: Iterator[float], pause: Callable[[float], None]) -> Result:
    """`act`, again after each of the remaining pauses while the store does not answer."""
    while True:
        try:
            return act()
        except stores.StoreUnreachable as error:
            seconds = next(pauses, None)
            if seconds is None:
                raise
            print(f"{error}; again in {seconds:g} s", flush=True)  # noqa: T201
            pause(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bigmodel.server.fetch", description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path(MODEL_DIRECTORY), help="default: %(default)s")
    arguments = parser.parse_args()
    run = ServingRun.model_validate_json(os.environ[ENV_SERVING_RUN])
    result = fetch(run, arguments.directory, os.environ, time.sleep)
    print(result.message, flush=True)  # noqa: T201
    Path(os.environ.get(ENV_TERMINATION_LOG, TERMINATION_LOG)).write_text(result.model_dump_json(by_alias=True))
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
