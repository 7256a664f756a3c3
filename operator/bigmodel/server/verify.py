"""Sidecar `verifier`: proves that the Triton beside it answers as published, says so on port 8271, and asks for its
restart when it is dead.

Loading → Replaying → Verified, or Failed with a reason. A verified pod is watched: every second by Triton's counters,
every ten by a golden request. Triton's own readiness says nothing about a model process that died (2.51, tried).
"""

import argparse
import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path

from bigmodel.api.names import ENV_SERVING_RUN, ENV_TRITON_KEY, PORT_TRITON_HTTP, PORT_VERDICT
from bigmodel.api.run import ServingRun
from bigmodel.api.serving import ARTIFACT, FETCHED, MODEL_DIRECTORY, describe_load_error
from bigmodel.api.verdict import FetchResult, LoadTimings, Parity, Question, Verdict, VerdictStage
from bigmodel.artifact import fetch as artifacts
from bigmodel.artifact import manifest as manifests
from bigmodel.artifact.layout import MANIFEST
from bigmodel.server.endpoints import serve
from bigmodel.server.golden_requests import GoldenRequest, golden_requests
from bigmodel.server.history import QUANTILES, History
from bigmodel.server.parity import DEFAULTS, Comparison, Tolerance, compare
from bigmodel.server.triton import Counters, Malformed, Refused, TimedOut, Triton, Unreachable

MESSAGE_BYTES = 1500  # of a verdict, which has VERDICT_BYTES in all, in JSON, where a quote has two


@dataclass(frozen=True)
class Timing:
    """How often and how long; tests shorten it."""

    poll_seconds: float = 1.0
    watched_seconds: float = 0.5  # instead, while the controller asks what users' requests did
    forget_seconds: float = 15.0  # it asks no more
    golden_seconds: float = 10.0  # between two golden requests to a verified model
    request_timeout_seconds: float = 30.0
    failures: int = 3  # golden requests in a row, before a verified pod is taken out
    restarts: int = 3  # of Triton that are asked for, without a verified model in between


NOTHING = Question()


class Outcome(Enum):
    PASSED = auto()
    FAILED = auto()  # the verdict says why
    GONE = auto()  # Triton stopped or restarts: all that was known of it is void


class Verifier:
    """The state of one serving pod. `run` never returns; the rest is read at any time by the endpoints."""

    def __init__(
        self, run: ServingRun, directory: Path, triton: Triton, timing: Timing, clock: Callable[[], float]
    ) -> None:
        """`directory` is what `fetch` filled. `clock` counts seconds from anywhere, and never backwards."""
        self._run = run
        self._directory = directory
        self._triton = triton
        self._timing = timing
        self._clock = clock
        self._manifest = manifests.parse((directory / ARTIFACT / MANIFEST).read_bytes(), run.digest)
        self._requests = golden_requests(run, self._manifest, directory / ARTIFACT)
        default = DEFAULTS[self._manifest.variant(run.variant).precision]
        self._tolerance = Tolerance(
            default.absolute if run.parity_absolute is None else run.parity_absolute,
            default.relative if run.parity_relative is None else run.parity_relative,
        )
        fetched = directory / FETCHED
        download = FetchResult.model_validate_json(fetched.read_bytes()).download_seconds if fetched.exists() else None
        self._timings = LoadTimings(download_seconds=download)
        self._counters = Counters(0, 0, 0.0)
        self._history = History()
        self._own = Counters(0, 0, 0.0)  # golden requests since the counters were last read
        self._quantiles: tuple[float, ...] = ()
        self._question = NOTHING
        self._questioned = -math.inf  # when
        self._server_version: str | None = None
        self._parity: Parity | None = None
        self._verified_since_load = False
        self._restarts_left = timing.restarts
        self._stage = VerdictStage.LOADING
        self._message = "Triton is loading the model"
        self._reason: str | None = None
        self.restart_wanted = False

    @property
    def verified(self) -> bool:
        return self._stage is VerdictStage.VERIFIED

    def verdict(self, question: Question = NOTHING) -> Verdict:
        """What is known now. A question with windows also makes the verifier look more often for a while."""
        now = self._clock()
        if question.windows:
            self._question, self._questioned = question, now
        p99 = self._quantiles[QUANTILES.index(0.99)] if len(self._quantiles) == len(QUANTILES) else None
        return Verdict(
            service=self._run.service,
            revision=self._run.revision,
            digest=self._run.digest,
            stage=self._stage,
            reason=self._reason,
            message=self._message,
            parity=self._parity,
            timings=self._timings,
            server_version=self._server_version,
            windows=self._history.windows(question, now),
            p99_milliseconds=p99,
        )

    @property
    def _watched(self) -> bool:
        return self._clock() - self._questioned < self._timing.forget_seconds

    async def watch(self) -> None:
        """Verify each life of Triton, and watch it while it is verified. Runs until cancelled.

        `fetch` has just hashed the files of the first life; later ones may load what somebody changed meanwhile.
        """
        hashed = True
        while True:
            await self._until_loaded()
            intact = hashed or await self._files_are_intact()
            outcome = await self._replay(tries=self._timing.failures) if intact else Outcome.FAILED
            hashed = False
            while outcome is Outcome.PASSED:
                outcome = await self._hold()
                if outcome is Outcome.FAILED:  # three in a row: it stays out until all samples pass again
                    outcome = await self._verify_anew()
            if outcome is Outcome.FAILED:
                await self._until_gone()
            self.restart_wanted = False
            self._say(VerdictStage.LOADING, f"Triton restarts; before, it was {self._stage}: {self._message}")

    async def _until_loaded(self) -> None:
        began = self._clock()
        starts = False
        self._verified_since_load = False
        while True:
            try:
                self._counters = await self._triton.counters(self._timing.request_timeout_seconds)
                self._own = Counters(0, 0, 0.0)
                break
            except Refused:
                await self._note_load_error()
            except (Unreachable, TimedOut, Malformed) as error:
                starts = True
                waited = self._clock() - began
                if waited > self._run.startup_deadline_seconds and self._stage is not VerdictStage.FAILED:
                    self._fail(
                        "ModelLoadFailed",
                        f"no model after {waited:.0f} s (spec.server.startupDeadlineSeconds): {error}; "
                        "its log says more: kubectl logs -c server",
                    )
            await asyncio.sleep(self._timing.poll_seconds)
        if (
            starts
        ):  # else Triton is older than this process: nothing is known of its start, and users' requests are counted
            self._timings = self._timings.model_copy(
                update={
                    "load_seconds": round(self._clock() - began, 3),
                    "warmup_seconds": round(self._counters.executing_seconds, 3),
                }
            )
        self._say(VerdictStage.REPLAYING, f"replaying {len(self._requests)} golden requests")

    async def _note_load_error(self) -> None:
        """Triton runs without the model: it says why in its repository index, unless it is still at it."""
        try:
            error = await self._triton.load_error(self._timing.request_timeout_seconds)
        except (Unreachable, TimedOut, Refused, Malformed):
            return
        if error is not None:
            failure = describe_load_error(error)
            self._fail(failure.reason, f"Triton did not load the model: {failure.message}")

    async def _replay(self, tries: int) -> Outcome:
        """Every golden request, each up to `tries` times while it gets no answer; one wrong answer decides."""
        worst = 0.0
        try:
            if self._server_version is None:
                self._server_version = await self._triton.server_version(self._timing.request_timeout_seconds)
            for request in self._requests:
                comparison = await self._ask_patiently(request, tries)
                worst = max(worst, comparison.worst)
                self._parity = self._as_parity(worst)
                if not comparison.passed:
                    self._fail("ParityFailed", f"{comparison.message} (spec.gates.parity)")
                    # A model that never passed fails again; one that did may have a damaged process.
                    self.restart_wanted = self._verified_since_load
                    return Outcome.FAILED
        except Unreachable:
            return Outcome.GONE
        except (Refused, TimedOut, Malformed) as error:
            self._fail("GoldenRequestFailed", f"a golden request failed {self._timing.failures} times: {error}")
            self.restart_wanted = self._restarts_left > 0
            self._restarts_left -= 1
            return Outcome.FAILED
        self._verified_since_load = True
        self._restarts_left = self._timing.restarts
        assert self._parity is not None
        self._say(
            VerdictStage.VERIFIED,
            f"{self._parity.samples} golden samples answered as published, by {self._parity.compared}: "
            f"the largest difference is {worst:.3g} of the tolerance",
        )
        return Outcome.PASSED

    async def _ask_patiently(self, request: GoldenRequest, tries: int) -> Comparison:
        for _ in range(tries - 1):
            try:
                return await self._ask(request)
            except (Refused, TimedOut, Malformed):
                await asyncio.sleep(self._timing.poll_seconds)
        return await self._ask(request)

    async def _ask(self, request: GoldenRequest) -> Comparison:
        """One golden request. Triton counts it as anybody's, so it is counted here too, to be taken out again."""
        began, passed = self._clock(), False
        try:
            answer = await self._triton.infer(
                request.inputs, list(request.outputs), self._timing.request_timeout_seconds
            )
            self._own = replace(self._own, succeeded=self._own.succeeded + 1)
            comparison = compare(answer, request.outputs, self._tolerance, request.values)
            passed = comparison.passed
            return comparison
        except Refused as error:
            if error.status >= 500:
                self._own = replace(self._own, failed=self._own.failed + 1)
            raise
        except TimedOut:
            self._own = replace(self._own, succeeded=self._own.succeeded + 1)  # it finishes without us, mostly
            raise
        finally:
            if self._stage is VerdictStage.VERIFIED:
                self._history.golden(passed, self._clock() - began)

    async def _hold(self) -> Outcome:
        """While the model is verified. FAILED after three golden failures in a row, GONE when Triton was restarted."""
        failures = 0
        due = self._clock() + self._timing.golden_seconds
        turn = 0
        while True:
            await asyncio.sleep(self._pause())
            before = self._counters
            if await self._is_gone():
                return Outcome.GONE
            # Failed requests of users make it due at once: a dead model process is out within seconds when it matters.
            if self._clock() < due and self._counters.failed == before.failed:
                continue
            try:
                comparison = await self._ask(self._requests[turn % len(self._requests)])
                failed = not comparison.passed
            except Unreachable:
                return Outcome.GONE
            except TimedOut:
                # Slow is not dead: under overload a restart would only move the load to the other pods.
                failed = not await self._progressed(before)
            except (Refused, Malformed):
                failed = True
            if failed:
                failures += 1
                if failures == self._timing.failures:
                    return Outcome.FAILED
                due = self._clock()  # again at the next poll, with the same request
                continue
            failures = 0
            turn += 1
            due = self._clock() + self._golden_pause()

    def _pause(self) -> float:
        """Until the counters are read again, or the next golden request, whichever is first."""
        if not self._watched:
            return self._timing.poll_seconds
        return min(self._timing.watched_seconds, self._timing.poll_seconds, self._golden_pause())

    def _golden_pause(self) -> float:
        """A controller that watches a quiet service asks for more golden requests."""
        asked = self._question.replay_per_second if self._watched else 0.0
        return min(self._timing.golden_seconds, 1 / asked) if asked else self._timing.golden_seconds

    async def _verify_anew(self) -> Outcome:
        """A verified model failed: are its files still those of the digest, does it answer at all?"""
        self._say(
            VerdictStage.REPLAYING, f"{self._timing.failures} golden requests in a row failed: replaying all of them"
        )
        if await self._is_gone():  # what users saw meanwhile is told before the files are read, which takes longer
            return Outcome.GONE
        return await self._replay(tries=1) if await self._files_are_intact() else Outcome.FAILED

    async def _files_are_intact(self) -> bool:
        try:
            files = self._manifest.files_of(self._run.variant)
            await asyncio.to_thread(artifacts.verify, self._directory / ARTIFACT, files)
        except (manifests.DigestMismatch, OSError) as error:
            self._fail("DigestMismatch", str(error))  # no restart: Triton would load the same files
            return False
        return True

    async def _until_gone(self) -> None:
        while not await self._is_gone():  # noqa: ASYNC110
            await asyncio.sleep(self._timing.poll_seconds)

    async def _is_gone(self) -> bool:
        """Whether this is another life of Triton than the one whose counters were seen last, or none."""
        try:
            counters = await self._triton.counters(self._timing.request_timeout_seconds)
        except (Unreachable, Refused):
            return self._gone()
        except (TimedOut, Malformed):
            return False
        earlier, self._counters = self._counters, counters
        if counters.fell_below(earlier):
            return self._gone()
        self._count_users(earlier, counters)
        await self._note_times()
        return False

    def _gone(self) -> bool:
        """Requests that Triton held when it died are counted nowhere: at least one is lost if users asked it lately."""
        lately = self._history.windows(Question((self._timing.golden_seconds,)), self._clock())[0]
        if lately.requests:
            self._history.users(1, 1)
            self._history.sample(self._clock(), self._quantiles)
        self._own = Counters(0, 0, 0.0)
        return True

    def _count_users(self, earlier: Counters, now: Counters) -> None:
        own, self._own = self._own, Counters(0, 0, 0.0)
        succeeded = max(0, now.succeeded - earlier.succeeded - own.succeeded)
        failed = max(0, now.failed - earlier.failed - own.failed)
        self._history.users(succeeded + failed, failed)
        self._history.sample(self._clock(), self._quantiles)

    async def _note_times(self) -> None:
        """How slow it is, where somebody wants to know and Triton says it."""
        if not self._watched:
            return
        try:
            self._quantiles = await self._triton.quantiles(self._timing.request_timeout_seconds)
        except (Unreachable, TimedOut, Refused, Malformed):
            self._quantiles = ()

    async def _progressed(self, before: Counters) -> bool:
        await self._is_gone()
        return self._counters.succeeded > before.succeeded

    def _as_parity(self, worst: float) -> Parity:
        values = self._requests[0].values
        return Parity(
            samples=sum(request.samples for request in self._requests),
            absolute=self._tolerance.absolute,
            relative=self._tolerance.relative,
            worst=worst,
            compared="values" if values else "shape, dtype and finiteness",
        )

    def _fail(self, reason: str, message: str) -> None:
        self._say(VerdictStage.FAILED, message, reason)

    def _say(self, stage: VerdictStage, message: str, reason: str | None = None) -> None:
        printable = "".join(character if character.isprintable() else "?" for character in message)
        said = stage, printable.encode()[:MESSAGE_BYTES].decode(errors="ignore"), reason
        if said != (self._stage, self._message, self._reason):  # a failed load is asked about every second
            print(f"{stage}{f' {reason}' if reason else ''}: {said[1]}", flush=True)  # noqa: T201
        self._stage, self._message, self._reason = said


async def verify(verifier: Verifier, host: str | None, port: int) -> None:
    """Until SIGTERM. Ends at once: a terminating pod is not probed any more, and Triton drains without us."""
    async with await serve(verifier, host, port):
        watching = asyncio.create_task(verifier.watch())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, watching.cancel)
        try:
            await watching
        except asyncio.CancelledError:
            return


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bigmodel.server.verify", description="See the module's docstring.")
    parser.add_argument("--directory", type=Path, default=Path(MODEL_DIRECTORY), help="default: %(default)s")
    parser.add_argument("--triton", default=f"127.0.0.1:{PORT_TRITON_HTTP}", help="default: %(default)s")
    parser.add_argument("--host", default=None, help="address to listen on; default: all")
    parser.add_argument("--port", type=int, default=PORT_VERDICT, help="default: %(default)s")
    arguments = parser.parse_args()
    run = ServingRun.model_validate_json(os.environ[ENV_SERVING_RUN])
    triton = Triton(arguments.triton, run.model, run.revision, key=os.environ.get(ENV_TRITON_KEY))
    verifier = Verifier(run, arguments.directory, triton, Timing(), time.monotonic)
    asyncio.run(verify(verifier, arguments.host, arguments.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
