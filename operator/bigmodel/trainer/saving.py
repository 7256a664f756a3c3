"""Checkpoints in the life of a rank: when one is made, what is told about it, and leaving after it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from bigmodel.api.progress import RunPhase
from bigmodel.api.run import TrainingRun
from bigmodel.trainer.checkpoint.cadence import Cadence
from bigmodel.trainer.checkpoint.checkpoints import Checkpoints
from bigmodel.trainer.checkpoint.errors import SaveFailed
from bigmodel.trainer.checkpoint.state import State
from bigmodel.trainer.notices import Notices
from bigmodel.trainer.report import Reporter

GENERATIONS_OF_A_LIFE = 10_000  # each life of index 0 numbers them from a multiple of its own
EXIT_LEFT = 143  # 128 + SIGTERM: told to leave, and left in order

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What one rank, or all of them together, want after the step that is being made. `leave` includes `save`."""

    save: bool = False
    leave: bool = False


def failures_of(run: TrainingRun | None, generation: int) -> int:
    """How often this job failed, as far as a rank can know: every attempt and generation but the first came of it."""
    if run is None:
        return 0
    spent = run.budgets.spent
    return spent.program + spent.hang + run.attempt - 1 + max(0, generation % GENERATIONS_OF_A_LIFE - 1)


class Saving:
    """One for each rank. All ranks call `resume`, then at each step `wish`, agree, and `obey` what was agreed.

    `checkpoints` is None where there is no store: leaving still works, and loses what was trained.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        cadence: Cadence,
        notices: Notices,
        report: Reporter,
        clock: Callable[[], float],
    ) -> None:
        self._checkpoints = checkpoints
        self._cadence = cadence
        self._notices = notices
        self._report = report
        self._clock = clock
        self._step: int | None = None  # of the newest checkpoint that we know to be committed

    def resume(self, state: State) -> int:
        """Load the newest whole checkpoint into `state`. Returns the step it was made at, 0 without one. Collective.

        Raises: StoreError, MismatchedState (see `Checkpoints.load`).
        """
        loaded = self._checkpoints.load(state) if self._checkpoints is not None else None
        if self._checkpoints is not None and self._checkpoints.corrupt and self._report.rank == 0:
            self._report.checkpoint_error = "; ".join(self._checkpoints.corrupt)
        if loaded is not None:
            self._step = loaded.manifest.step
            self._cadence.trained_seconds = loaded.manifest.trained_seconds
            self._report.resumed(loaded.manifest.step, loaded.summary)
            log.info("going on from step %d: %s", loaded.manifest.step, loaded.summary.uri)
        self._cadence.start(self._clock())
        return self._step or 0

    def wish(self, step: int) -> Wish:
        """What this rank wants once `step` updates are made. The clock that counts is rank 0's."""
        if (notice := self._notices.pending()) is not None:
            return Wish(save=True, leave=notice.leave)
        return Wish(save=self._report.rank == 0 and self._cadence.due(step, self._clock()))

    def obey(self, agreed: Wish, state: State, step: int, *, last: bool) -> None:
        """Save if that was agreed, and leave if that was. After the `last` step only leaving is a reason to save.
        Collective where `agreed` asks for anything.

        Raises: SystemExit(143) on every rank, to leave.
        """
        if agreed.leave or (agreed.save and not last):
            self._notices.hear()
            self._save(state, step)
        if agreed.leave:
            log.info("told to leave: going at step %d", step)
            raise SystemExit(EXIT_LEFT)

    def published(self, keep: int) -> None:
        """The model is in the store: of its checkpoints, `keep` stay. Rank 0 alone."""
        if self._checkpoints is not None and self._step is not None:
            self._checkpoints.forget(self._step, keep)

    def _save(self, state: State, step: int) -> None:
        if self._checkpoints is None or self._step == step:
            return
        began = self._clock()
        self._report.enter(RunPhase.CHECKPOINTING)
        summary = None
        try:
            summary = self._checkpoints.save(state, step, self._cadence.trained(began))
            self._step = step
            self._report.checkpoint_error = None
        except SaveFailed as failure:
            log.warning("%s", failure)
            if self._report.rank == 0:
                self._report.checkpoint_error = str(failure)
        now = self._clock()
        self._cadence.saved(now, now - began)
        self._report.checkpoint_seconds += now - began
        # The uri and digest are rank 0's to tell; the others say that they go on.
        self._report.enter(RunPhase.TRAINING, checkpoint=summary)
        if summary is not None:
            log.info("checkpoint of step %d in %.0f ms: %s", step, 1000 * (now - began), summary.uri)
