"""Save and load, by all ranks together."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner

from bigmodel.api.progress import CheckpointSummary
from bigmodel.artifact.layout import MANIFEST, join
from bigmodel.artifact.manifest import File
from bigmodel.artifact.stores import AlreadyExists, ObjectNotFound, Store, StoreError
from bigmodel.trainer.checkpoint import state as states
from bigmodel.trainer.checkpoint.catalog import Catalog, Place, read_catalog, superfluous
from bigmodel.trainer.checkpoint.errors import CorruptCheckpoint, SaveFailed
from bigmodel.trainer.checkpoint.manifest import MANIFEST_BYTES, CheckpointManifest, SavedTensor, parse
from bigmodel.trainer.checkpoint.storage import Reader, Writer

log = logging.getLogger(__name__)


# A rank that waits for another one's upload; who is dead is found out by the launcher.
SAVE_TIMEOUT = timedelta(hours=1)


def checkpoint_group() -> dist.ProcessGroup:
    """Of all ranks, over gloo: made once. Collective. Its own, since saving must neither wait for the collectives of
    training nor time out as they do.
    """
    group = dist.new_group(backend="gloo", timeout=SAVE_TIMEOUT)
    assert isinstance(group, dist.ProcessGroup)
    return group


@dataclass(frozen=True)
class Loaded:
    """The checkpoint that training goes on from."""

    manifest: CheckpointManifest
    summary: CheckpointSummary


@dataclass
class Checkpoints:
    """Those of one job. Every method but `forget` is collective over `group`.

    Args: root: key of the directory of all checkpoints of the job. group: of all ranks, gloo, used for nothing else.
          generation: None where nobody numbers them; the first free one of the attempt is taken then.
          wall_clock: seconds since the epoch.
    """

    store: Store
    root: str
    group: dist.ProcessGroup
    attempt: int
    generation: int | None
    keep: int
    wall_clock: Callable[[], float] = time.time
    corrupt: list[str] = field(default_factory=list)  # what `load` had to skip, and why

    def __post_init__(self) -> None:
        self._rank, self._ranks = dist.get_rank(self.group), dist.get_world_size(self.group)

    def load(self, state: states.State) -> Loaded | None:
        """Put the newest checkpoint that is whole into `state`; None where there is none, and nothing is changed then.

        A torn one is none; a corrupt one is skipped for the one before, and told in `corrupt`.
        Raises: StoreError where the store does not answer: to begin anew would throw the training away.
                MismatchedState where the checkpoint is of another program.
        """
        places, self.generation = self._from_rank_0(self._survey)
        for place in places:
            try:
                manifest, digest = parse(self._from_rank_0(partial(self._manifest, place)))
                written_at = Place(manifest.step, manifest.attempt, manifest.generation)
                if written_at != place:
                    raise CorruptCheckpoint(f"manifest.json is that of {written_at.path}")
                self._load(state, place, manifest)
            except CorruptCheckpoint as error:
                self.corrupt.append(f"checkpoint {place.path} is corrupt and was skipped: {error}")
                if self._rank == 0:
                    log.warning("%s", self.corrupt[-1])
                continue
            summary = CheckpointSummary(
                step=place.step, uri=self._uri(place), digest=digest, saved_at=manifest.saved_at
            )
            return Loaded(manifest, summary)
        return None

    def save(self, state: Mapping[str, Any], step: int, trained_seconds: float) -> CheckpointSummary | None:
        """Commit `state` as it is after `step` updates; then remove what `keep` does not keep. None but on rank 0.

        Raises: SaveFailed on every rank, whichever had the trouble; InvalidState where no save can ever succeed.
        """
        assert self.generation is not None, "load comes first"
        place = Place(step, self.attempt, self.generation)
        tensors, values = states.collect(state)
        committed: list[CheckpointSummary] = []

        def commit(files: list[File], saved: dict[str, SavedTensor]) -> None:
            manifest = CheckpointManifest(
                step=step,
                world_size=self._ranks,
                attempt=place.attempt,
                generation=place.generation,
                torch=torch.__version__,
                saved_at=self.wall_clock(),
                trained_seconds=trained_seconds,
                files=files,
                tensors=saved,
                values=values,
            )
            data, digest = manifest.sealed()
            key = f"{self.root}/{place.path}/{MANIFEST}"
            try:
                self.store.create(key, data)
            except AlreadyExists:
                if self.store.read(key, MANIFEST_BYTES) != data:  # else ours, its answer was lost
                    raise
            committed.append(
                CheckpointSummary(step=step, uri=self._uri(place), digest=digest, saved_at=manifest.saved_at)
            )
            self._tidy(place, self.keep)

        try:
            state_dict_saver.save(
                dict(tensors),
                storage_writer=Writer(self.store, f"{self.root}/{place.path}", self._rank, commit),
                planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=self.group,
            )
        except CheckpointException as error:
            raise SaveFailed(
                f"the checkpoint of step {step} was not saved: {_outside(error)}; training goes on, the next one is "
                "tried at the next interval"
            ) from error
        return committed[0] if committed else None

    def forget(self, newest_step: int, keep: int) -> None:
        """Leave only the `keep` newest, now that the model is published. Rank 0 alone. Never raises a StoreError."""
        assert self.generation is not None
        self._tidy(Place(newest_step, self.attempt, self.generation), keep)

    def _tidy(self, newest: Place, keep: int) -> None:
        try:
            self.store.delete(superfluous(read_catalog(self.store, self.root), newest, keep))
        except StoreError as error:  # space is lost, nothing else
            log.warning("older checkpoints were not removed: %s", error)

    def _load(self, state: states.State, place: Place, manifest: CheckpointManifest) -> None:
        staged = states.staging(state, manifest.tensors, manifest.values)
        try:
            state_dict_loader.load(
                dict(staged),
                storage_reader=Reader(self.store, f"{self.root}/{place.path}", manifest, self._rank, self._ranks),
                planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=self.group,
            )
        except CheckpointException as error:
            causes = _causes(error)
            for cause in causes.values():  # a store that does not answer says nothing about the checkpoint
                if not isinstance(cause, CorruptCheckpoint):
                    raise cause from error
            raise CorruptCheckpoint(_words(causes)) from error
        states.restore(state, staged, manifest.values)

    def _survey(self) -> tuple[list[Place], int]:
        try:
            catalog = read_catalog(self.store, self.root)
        except ObjectNotFound:
            # There is no bucket. A server that makes one for its first object does so now; any other says no now,
            # and not after hours of training.
            self.store.create(f"{self.root}/begun.json", b"{}")
            catalog = Catalog()
        used = [place.generation for place in catalog.files if place.attempt == self.attempt]
        return catalog.committed, self.generation if self.generation is not None else max(used, default=0) + 1

    def _manifest(self, place: Place) -> bytes:
        try:
            return self.store.read(f"{self.root}/{place.path}/{MANIFEST}", MANIFEST_BYTES)
        except ObjectNotFound:  # removed since the list was made
            return b""

    def _uri(self, place: Place) -> str:
        return join(self.store.uri, f"{self.root}/{place.path}")

    def _from_rank_0(self, compute: Callable[[], Any]) -> Any:
        """What rank 0 finds, on every rank; or its StoreError, on every rank."""
        answer: list[Any] = [None]
        if self._rank == 0:
            try:
                answer = [compute()]
            except StoreError as error:
                answer = [error]
        dist.broadcast_object_list(answer, src=dist.get_global_rank(self.group, 0), group=self.group)
        if isinstance(answer[0], StoreError):
            raise answer[0]
        return answer[0]


def _causes(error: CheckpointException) -> dict[int, BaseException]:
    return {rank: failure[0] for rank, failure in sorted(error.failures.items())}


def _outside(error: CheckpointException) -> str:
    """The causes in words, if all of them lie outside the program; else the first that does not is raised."""
    causes = _causes(error)
    for cause in causes.values():
        if not isinstance(cause, StoreError | OSError):
            raise cause from error
    return _words(causes)


def _words(causes: Mapping[int, BaseException]) -> str:
    by_text: dict[str, list[str]] = {}
    for rank, cause in causes.items():
        by_text.setdefault(str(cause), []).append(str(rank))
    return "; ".join(f"rank {', '.join(ranks)}: {text}" for text, ranks in by_text.items())
