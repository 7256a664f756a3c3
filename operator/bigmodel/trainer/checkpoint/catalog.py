"""Which checkpoints of a job are in the store, and which may go."""

import re
from dataclasses import dataclass, field

from bigmodel.artifact.layout import MANIFEST, checkpoint_path
from bigmodel.artifact.stores import Store

_KEY = re.compile(r"(\d{1,15})\.(\d{1,15})/(\d{1,15})/[^/]+")


@dataclass(frozen=True, order=True)
class Place:
    """One checkpoint. The greatest is the newest: the furthest step, of those the latest attempt and generation."""

    step: int
    attempt: int
    generation: int

    @property
    def path(self) -> str:
        return checkpoint_path(self.attempt, self.generation, self.step)

    @property
    def life(self) -> tuple[int, int]:
        return self.attempt, self.generation


@dataclass
class Catalog:
    """`files` are the keys below each place, the manifest first where there is one."""

    files: dict[Place, list[str]] = field(default_factory=dict)

    @property
    def committed(self) -> list[Place]:
        """Newest first."""
        return sorted((place for place, keys in self.files.items() if keys[0].endswith(f"/{MANIFEST}")), reverse=True)

    @property
    def torn(self) -> list[Place]:
        """Without a manifest: being written, or left by a save that did not end."""
        return sorted(self.files.keys() - set(self.committed))


def read_catalog(store: Store, root: str) -> Catalog:
    """`root` is the directory of all checkpoints of the job. Raises the errors of `stores`."""
    catalog = Catalog()
    for key, _ in store.list(root):
        if found := _KEY.fullmatch(key.removeprefix(f"{root}/")):
            attempt, generation, step = map(int, found.groups())
            keys = catalog.files.setdefault(Place(step, attempt, generation), [])
            keys.insert(0 if key.endswith(f"/{MANIFEST}") else len(keys), key)
    return catalog


def superfluous(catalog: Catalog, newest: Place, keep: int) -> list[str]:
    """Keys to delete now that `newest` is committed and the `keep` newest up to it are to stay, in that order: a
    manifest before its files, so that nothing half deleted looks whole.

    Never anything newer than `newest`, nor anything of a later attempt or generation: what it writes is not ours.
    """
    ours = [place for place in catalog.committed if place <= newest and place.life <= newest.life]
    dead = [place for place in catalog.torn if (*place.life, place.step) < (*newest.life, newest.step)]
    return [key for place in (*ours[keep:], *dead) for key in catalog.files[place]]
