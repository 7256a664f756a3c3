"""Pod `evaluate`: asks the dark candidate and stable the same questions, at the addresses that users' requests take.

The samples are the user's own (`spec.gates.evaluation.data`), one safetensors file laid out as golden samples are:
`input/NAME` and `output/NAME`, the first axis of each the sample; without them the artefact's golden inputs.
Ends with an EvaluateResult as its termination message. Exit code 0: this is the answer. Exit code 1: somebody could not
be reached; the kubelet tries again.
"""

import asyncio
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bigmodel.api.evaluation import Change, EvaluateResult, EvaluationRun, Scores
from bigmodel.api.names import ENV_EVALUATION, ENV_SERVING_RUN, ENV_TERMINATION_LOG, TERMINATION_LOG
from bigmodel.api.run import ServingRun
from bigmodel.artifact import fetch as artifacts
from bigmodel.artifact import golden, stores
from bigmodel.artifact.golden import Arrays, GoldenCase
from bigmodel.artifact.layout import GOLDEN, variant_directory
from bigmodel.artifact.manifest import DigestMismatch, InvalidManifest, Manifest
from bigmodel.server.config import is_batched
from bigmodel.server.golden_requests import GoldenRequest, random_case, split
from bigmodel.server.parity import DEFAULTS, WORST, Array, Tolerance, excess_ratio
from bigmodel.server.triton import Malformed, Refused, TimedOut, Triton, Unreachable

DATA_DIRECTORY = Path("/data")  # where the PersistentVolumeClaim of pvc://CLAIM/PATH is mounted
DATA_BYTES = 256 << 20
REQUEST_SECONDS = 60.0
TRIES = 3
AGAIN_SECONDS = 1.0


class InvalidData(Exception):
    """The evaluation data can't be used; the message names what is wrong with it."""


class Refusal(Exception):
    """One of the two does not answer a question."""


@dataclass(frozen=True)
class Answers:
    """Row by row, in the order of the samples."""

    candidate: Arrays
    stable: Arrays


def evaluate(run: ServingRun, asked: EvaluationRun, environ: Mapping[str, str]) -> EvaluateResult:
    """Raises Unreachable, StoreUnreachable and StoreForbidden: worth another try."""
    try:
        store = stores.open_store(run.store.model_copy(update={"uri": run.artifact_uri}), environ)
        manifest = artifacts.read_manifest(store, run.digest)
        cases = [_own_data(run, asked.data, environ)] if asked.data else _golden(run, manifest, store)
        if not is_batched(manifest.signature):
            raise InvalidData("the model takes one sample a request, without a batch dimension: it can't be evaluated")
        default = DEFAULTS[manifest.variant(run.variant).precision]
        tolerance = Tolerance(
            default.absolute if asked.absolute is None else asked.absolute,
            default.relative if asked.relative is None else asked.relative,
        )
        requests = [request for case in cases for request in split(case, asked.max_batch_size, values=False)]
        answers = asyncio.run(_ask_both(run, asked, requests))
        targets = _joined([case.outputs for case in cases])
        scores = _scores(asked, answers, targets) if asked.metric else None
    except (InvalidData, golden.InvalidGolden, stores.ObjectNotFound, DigestMismatch, InvalidManifest) as error:
        return EvaluateResult(ok=False, reason="InvalidEvaluationData", message=str(error)[:1500])
    except Refusal as error:
        return EvaluateResult(ok=False, reason="EvaluationFailed", message=str(error)[:1500])
    samples = sum(request.samples for request in requests)
    change = changed(answers, tolerance)
    return EvaluateResult(ok=True, message=f"{samples} samples asked", samples=samples, scores=scores, change=change)


def _own_data(run: ServingRun, uri: str, environ: Mapping[str, str]) -> GoldenCase:
    if uri.startswith("pvc://"):
        path = DATA_DIRECTORY / uri.removeprefix("pvc://").partition("/")[2]
        if not path.resolve().is_relative_to(DATA_DIRECTORY) or not path.is_file():
            raise InvalidData(f"{uri} is no file (spec.gates.evaluation.data.uri)")
        if path.stat().st_size > DATA_BYTES:
            raise InvalidData(f"{uri} holds more than {DATA_BYTES >> 20} MiB")
        return golden.parse(path.read_bytes(), uri)
    folder, _, name = uri.rpartition("/")
    data = stores.open_store(run.store.model_copy(update={"uri": folder}), environ).read(name, DATA_BYTES + 1)
    if len(data) > DATA_BYTES:
        raise InvalidData(f"{uri} holds more than {DATA_BYTES >> 20} MiB")
    return golden.parse(data, uri)


def _golden(run: ServingRun, manifest: Manifest, store: stores.Store) -> list[GoldenCase]:
    """The inputs that every server of this artefact answered; random ones where it has none."""
    folder = f"{variant_directory(run.variant)}/{GOLDEN}/"
    cases = []
    for file in manifest.files_of(run.variant):
        if file.path.startswith(folder):
            data = store.read(file.path, file.size_bytes + 1)
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise DigestMismatch(f"{store.uri}/{file.path} is not the file that was published")
            cases.append(golden.parse(data, file.path))
    return cases or [random_case(manifest.signature, manifest.signature.dimensions["batch"].maximum)]


async def _ask_both(run: ServingRun, asked: EvaluationRun, requests: Sequence[GoldenRequest]) -> Answers:
    answered: list[list[Arrays]] = []
    for contender in (asked.candidate, asked.stable):
        triton = Triton(contender.address, run.model, contender.revision)
        answered.append([await _ask(triton, request) for request in requests])
    return Answers(*(_joined(arrays) for arrays in answered))


async def _ask(triton: Triton, request: GoldenRequest) -> Arrays:
    """Raises Refusal after TRIES, Unreachable at once."""
    for left in reversed(range(TRIES)):
        try:
            return await triton.infer(request.inputs, list(request.outputs), REQUEST_SECONDS)
        except (Refused, TimedOut, Malformed) as error:
            if not left:
                raise Refusal(f"r{triton.version} does not answer: {error}") from error
            await asyncio.sleep(AGAIN_SECONDS)
    raise AssertionError("unreachable")


def _joined(arrays: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([one[name] for one in arrays]) for name in arrays[0]}


def _scores(asked: EvaluationRun, answers: Answers, targets: Arrays) -> Scores:
    assert asked.metric is not None
    values = [score(asked.metric, side, targets) for side in (answers.candidate, answers.stable)]
    return Scores(candidate=f"{values[0]:.9g}", stable=f"{values[1]:.9g}")


def score(metric: str, answers: Arrays, targets: Arrays) -> float:
    """Mean over every number of every target; of `accuracy`, over every sample. Raises InvalidData."""
    parts = [_parts(metric, name, answers[name], target) for name, target in targets.items()]
    return float(np.concatenate(parts).mean())


def _parts(metric: str, name: str, answer: Array, target: Array) -> npt.NDArray[np.float64]:
    rows = len(answer)
    if metric == "accuracy":
        flat = answer.reshape(rows, -1)
        labels = target.reshape(rows, -1)
        if labels.shape[1] == 1 and flat.shape[1] > 1:
            return np.asarray(flat.astype(np.float64).argmax(axis=1) == labels[:, 0], np.float64)
        if flat.shape == labels.shape and answer.dtype.kind != "f":
            return np.asarray((flat == labels).all(axis=1), np.float64)
        raise InvalidData(
            f"output/{name} has shape {list(target.shape)} where the model answers {answer.dtype}{list(answer.shape)}: "
            "accuracy wants one label for a row of scores, or classes for classes"
        )
    if answer.size != target.size or answer.dtype.kind not in "fiub" or target.dtype.kind not in "fiub":
        raise InvalidData(
            f"output/{name} is {target.dtype}{list(target.shape)} where the model answers "
            f"{answer.dtype}{list(answer.shape)}"
        )
    difference = answer.astype(np.float64).reshape(-1) - target.astype(np.float64).reshape(-1)
    return np.square(difference) if metric == "mse" else np.abs(difference)


def changed(answers: Answers, tolerance: Tolerance) -> Change:
    """How many samples the two answer differently, in any output, and the largest shift."""
    rows = len(next(iter(answers.candidate.values())))
    differ = np.zeros(rows, bool)
    largest, told = 0.0, None
    for name, a in answers.candidate.items():
        b = answers.stable.get(name)
        if b is None or a.shape != b.shape:
            return Change(changed=rows, largest=f"output {name} has another shape")
        if a.dtype.kind not in "fiub":
            differ |= (a != b).reshape(rows, -1).any(axis=1)
            continue
        excess = excess_ratio(a, b, tolerance).reshape(rows, -1)
        differ |= (excess > 1).any(axis=1)
        if (worst := float(excess.max(initial=0.0))) > largest:
            largest = worst
            row, column = np.unravel_index(int(excess.argmax()), excess.shape)
            here, there = (float(side.astype(np.float64).reshape(rows, -1)[row, column]) for side in (a, b))
            times = f", {worst:.3g} times the tolerance" if worst < WORST else ""
            told = f"output {name} of sample {row}: {here:.6g}, stable said {there:.6g}{times}"
    return Change(changed=int(differ.sum()), largest=told)


def main() -> int:
    run = ServingRun.model_validate_json(os.environ[ENV_SERVING_RUN])
    asked = EvaluationRun.model_validate_json(os.environ[ENV_EVALUATION])
    code = 0
    try:
        result = evaluate(run, asked, os.environ)
    except (Unreachable, stores.StoreError) as error:
        result = EvaluateResult(ok=False, reason="ErrandFailed", message=str(error)[:1500])
        code = 1
    print(result.message, flush=True)  # noqa: T201
    text = result.model_dump_json(by_alias=True, exclude_none=True)
    Path(os.environ.get(ENV_TERMINATION_LOG, TERMINATION_LOG)).write_text(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
