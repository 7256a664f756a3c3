"""One rank's checkpoints: what is saved comes back, bit for bit; what is damaged is noticed; what is old goes."""

import json
import random
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bigmodel.api.job import Checkpoint, Optimizer, Schedule
from bigmodel.api.run import StoreLocation
from bigmodel.artifact.stores import ObjectNotFound, Store, StoreUnreachable, open_store
from bigmodel.trainer.checkpoint.cadence import Cadence
from bigmodel.trainer.checkpoint.checkpoints import Checkpoints, checkpoint_group
from bigmodel.trainer.checkpoint.errors import CorruptCheckpoint, InvalidState, MismatchedState, SaveFailed
from bigmodel.trainer.checkpoint.manifest import parse
from bigmodel.trainer.loop import TrainState, train
from bigmodel.trainer.notices import Notices
from bigmodel.trainer.optimizers import VARIANTS, build_optimizer
from bigmodel.trainer.report import Reporter
from bigmodel.trainer.saving import Saving
from tests.unit.trainer.tasks import a_recipe, a_task

ROOT = "ml/mlp/0-1/checkpoint"


@pytest.fixture(scope="module")
def group(alone: dist.ProcessGroup) -> dist.ProcessGroup:
    return checkpoint_group()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(StoreLocation(uri=f"file://{tmp_path}"), {})


Life = Callable[..., Checkpoints]


@pytest.fixture
def life(store: Store, group: dist.ProcessGroup) -> Life:
    """The checkpoints of one generation, which loads first, as all do."""

    def begin(generation: int | None = 1, attempt: int = 1, keep: int = 3, state: dict[str, Any] | None = None) -> Any:
        saved = Checkpoints(store, ROOT, group, attempt, generation, keep, wall_clock=lambda: 1000.0)
        saved.load(a_state() if state is None else state)
        return saved

    return begin


def a_state(step: int = 0) -> dict[str, Any]:
    return {"weight": torch.full((3, 5), float(step)), "step": step}


def paths(directory: Path) -> list[str]:
    """Of what is committed."""
    return sorted(f"{path.parent.relative_to(directory / ROOT)}" for path in directory.rglob("manifest.json"))


# What comes back


VALUES: dict[str, Any] = {
    "numbers": [0, -(2**70), 1.5, 1e-320, float("inf"), True, None],
    "a tuple in a list": [(0.9, 0.999), ()],
    "keys that are no text": {80: 1, ("a", 2): {1.5: "x"}, True: None},
    "names with slashes": {"a/b": torch.arange(3), "a~b": torch.arange(2), "~1": {"": torch.ones(1)}},
    "an ordered dict": OrderedDict(b=1, a=2),
    "numbers of numpy": np.float64(0.1),
    "text": "ü “quoted” \n",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_plain_values_come_back(life: Life, value: Any):
    life().save({"value": value}, 1, 0.0)
    state: dict[str, Any] = {"value": None}
    life(2, state=state)
    want = dict(value) if isinstance(value, OrderedDict) else value
    assert str(state["value"]) == str(want)


TENSORS = {
    str(dtype): torch.tensor([[0, 1], [1, 0]]).to(dtype)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool)
} | {
    "a complex number": torch.tensor(1 + 2j),
    "an 8-bit float": torch.ones(3).to(torch.float8_e4m3fn),
    "a scalar": torch.tensor(7),
    "an empty one": torch.empty(0, 3),
    "a transposed one": torch.arange(6.0).reshape(2, 3).T,
    "a slice": torch.arange(100.0)[::7],
    "NaN and minus zero": torch.tensor([float("nan"), -0.0]),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_tensors_come_back_bit_for_bit(life: Life, tensor: Tensor):
    life().save({"tensor": tensor, "other": torch.ones(11)}, 1, 0.0)
    into = {"tensor": torch.zeros_like(tensor), "other": torch.zeros(11)}
    life(2, state=into)
    assert (
        into["tensor"]
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .equal(tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8))
    )
    assert into["other"].equal(torch.ones(11))


def trained(kind: str, model: nn.Module, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    optimizer = build_optimizer(Optimizer(name=kind), model.parameters(), dict.fromkeys(VARIANTS, 0.01))
    learn(model, optimizer, range(steps))
    return model, optimizer


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def a_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


@pytest.mark.parametrize("kind", VARIANTS)
def test_each_optimizer_goes_on_as_if_nothing_had_been(life: Life, alone: dist.ProcessGroup, kind: str):
    """Also from a DDP model into a plain one: names have no prefix."""
    model, optimizer = trained(kind, DistributedDataParallel(a_model(), process_group=alone), 3)
    life().save({"model": model, "optimizer": optimizer}, 3, 0.0)
    other, other_optimizer = trained(kind, a_model(), 0)
    life(2, state={"model": other, "optimizer": other_optimizer})
    learn(model, optimizer, range(3, 6))
    learn(other, other_optimizer, range(3, 6))
    for (name, want), have in zip(other.state_dict().items(), model.module.state_dict().values(), strict=True):
        assert torch.equal(want, have), name


def test_saving_before_the_first_update_changes_nothing(life: Life):
    (saved_model, saved_optimizer), (model, optimizer) = (trained("adam", a_model(), 0) for _ in range(2))
    life().save({"model": saved_model, "optimizer": saved_optimizer}, 0, 0.0)
    learn(saved_model, saved_optimizer, range(2))
    learn(model, optimizer, range(2))
    assert all(map(torch.equal, model.parameters(), saved_model.parameters()))


def test_schedules_and_whatever_else_keeps_a_state(life: Life):
    model, optimizer = trained("sgd", a_model(), 1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 80])
    for step in range(3):
        learn(model, optimizer, range(step, step + 1))
        schedule.step()
    life().save({"model": model, "optimizer": optimizer, "schedule": schedule}, 3, 0.0)
    other, other_optimizer = trained("sgd", a_model(), 0)
    again = torch.optim.lr_scheduler.MultiStepLR(other_optimizer, [2, 80])
    life(2, state={"model": other, "optimizer": other_optimizer, "schedule": again})
    assert (again.last_epoch, again.get_last_lr()) == (3, schedule.get_last_lr())
    learn(other, other_optimizer, range(3, 4))
    again.step()
    assert again.get_last_lr() == schedule.get_last_lr()


def test_nothing_in_the_store_is_a_pickle(life: Life, tmp_path: Path):
    model, optimizer = trained("adam", a_model(), 1)
    life().save({"model": model, "optimizer": optimizer}, 1, 0.0)
    files = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(files) == ["manifest.json", "rank-0.bin"]
    manifest, digest = parse(files["manifest.json"])
    assert sum(piece.length for tensor in manifest.tensors.values() for piece in tensor.pieces) == sum(
        tensor.nbytes for tensor in [*model.state_dict().values(), *_tensors(optimizer)]
    )
    assert json.loads(files["manifest.json"])["digest"] == digest


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for of in optimizer.state.values() for value in of.values() if isinstance(value, Tensor)]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a set": ({"x": {"y": {1, 2}}}, r"x/y is a builtins\.set; a checkpoint holds tensors, numbers"),
    "a function": ({"x": [print]}, r"x/0 is a builtins\.builtin_function"),
    "an optimizer without its model": ({"optimizer": trained("adam", a_model(), 0)[1]}, r"hand over the module too"),
}


@pytest.mark.parametrize(("state", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_checkpoint_can_hold_is_refused(life: Life, state: dict[str, Any], message: str):
    with pytest.raises(InvalidState, match=message):
        life().save(state, 1, 0.0)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "other entries": ({"model": a_model(), "epoch": 1}, "holds model, optimizer, the program's state is epoch, model"),
    "another width": (
        dict(zip(("model", "optimizer"), trained("adam", nn.Linear(5, 2), 0), strict=True)),
        r"model/0\.bias is \(4,\) in the checkpoint and missing in the program",
    ),
}


@pytest.mark.parametrize(("state", "message"), OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_program_is_refused(life: Life, state: dict[str, Any], message: str):
    life().save(dict(zip(("model", "optimizer"), trained("adam", a_model(), 1), strict=True)), 1, 0.0)
    with pytest.raises(MismatchedState, match=message):
        life(2, state=state)


# What is damaged


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a tensor": (lambda place: flip(place / "rank-0.bin", 7), r"rank-0\.bin is not what was saved"),
    "a bit of the padding": (lambda place: flip(place / "rank-0.bin", -1), r"rank-0\.bin is not what was saved"),
    "a bit of the manifest": (lambda place: flip(place / "manifest.json", 40), r"manifest\.json"),
    "an empty manifest": (lambda place: (place / "manifest.json").write_bytes(b""), r"manifest\.json is no manifest"),
    "a file cut short": (
        lambda place: (place / "rank-0.bin").write_bytes((place / "rank-0.bin").read_bytes()[:-64]),
        r"rank-0\.bin is not what was saved: 0 bytes",
    ),
    "a file too long": (
        lambda place: (place / "rank-0.bin").write_bytes((place / "rank-0.bin").read_bytes() + b"x"),
        r"rank-0\.bin is not what was saved: 65 bytes",
    ),
    "a file gone": (lambda place: (place / "rank-0.bin").unlink(), r"rank-0\.bin is missing"),
    "the manifest of another step": (
        lambda place: shutil.copy(place.parent / "10/manifest.json", place / "manifest.json"),
        r"manifest\.json is that of 1\.1/10",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_corrupt_checkpoint_is_skipped_for_the_one_before(
    life: Life, tmp_path: Path, damage: Callable[[Path], object], message: str
):
    """Fault 40."""
    saved = life()
    for step in (10, 20):
        saved.save(a_state(step), step, 0.0)
    damage(tmp_path / ROOT / "1.1/20")
    state = a_state()
    again = life(2, state=state)
    assert state["step"] == 10
    assert state["weight"].eq(10).all()
    [told] = again.corrupt
    assert told.startswith("checkpoint 1.1/20 is corrupt and was skipped: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(told)


def test_with_nothing_whole_left_the_state_is_untouched(life: Life, tmp_path: Path):
    life().save(a_state(10) | {"more": torch.ones(4)}, 10, 0.0)
    flip(tmp_path / ROOT / "1.1/10/rank-0.bin", 0)
    state = a_state(3) | {"more": torch.zeros(4)}
    again = life(2, state=state)
    assert len(again.corrupt) == 1
    assert state["step"] == 3
    assert state["weight"].eq(3).all()
    assert state["more"].eq(0).all()


def test_a_torn_checkpoint_is_none(life: Life, tmp_path: Path):
    saved = life()
    for step in (10, 20):
        saved.save(a_state(step), step, 0.0)
    (tmp_path / ROOT / "1.1/20/manifest.json").unlink()
    state = a_state()
    assert life(2, state=state).corrupt == []
    assert state["step"] == 10


def test_the_furthest_step_counts_then_the_latest_generation(life: Life):
    for attempt, generation, step, value in ((1, 1, 10, 1), (1, 2, 10, 2), (2, 1, 10, 3), (3, 1, 9, 4)):
        life(generation, attempt).save(a_state(value), step, 0.0)
    state = a_state()
    life(9, 9, state=state)
    assert state["step"] == 3


# What fails


class Failing:
    """A store in which one operation fails, with what the real ones raise."""

    def __init__(self, store: Store, operation: str) -> None:
        self._store, self._operation = store, operation

    def __getattr__(self, name: str) -> Any:
        if name == self._operation:
            raise StoreUnreachable("/store: No space left on device; check the volume, its free space")
        return getattr(self._store, name)


@pytest.mark.parametrize("operation", ["write", "create"])
def test_a_save_that_fails_commits_nothing_and_the_next_one_can(life: Life, store: Store, operation: str):
    """Fault 40: disk full."""
    saved = life()
    saved.save(a_state(10), 10, 0.0)
    saved.store = Failing(store, operation)  # type: ignore[assignment]
    with pytest.raises(
        SaveFailed, match=r"step 20 was not saved: rank 0: .*No space left on device.*; training goes on"
    ):
        saved.save(a_state(20), 20, 0.0)
    state = a_state()
    life(2, state=state)
    assert state["step"] == 10
    saved.store = store
    assert saved.save(a_state(30), 30, 0.0).step == 30  # type: ignore[union-attr]


@pytest.mark.parametrize("operation", ["list", "chunks", "read"])
def test_a_store_that_does_not_answer_is_no_reason_to_begin_anew(
    life: Life, store: Store, group: dist.ProcessGroup, operation: str
):
    life().save(a_state(10), 10, 0.0)
    with pytest.raises(StoreUnreachable):
        Checkpoints(Failing(store, operation), ROOT, group, 1, 2, 3).load(a_state())  # type: ignore[arg-type]


@pytest.mark.parametrize("makes_it", [True, False], ids=["made by the first object", "refused"])
def test_a_missing_bucket_is_found_out_before_the_training(store: Store, group: dist.ProcessGroup, makes_it: bool):
    class Server:
        uri = store.uri
        made: ClassVar[list[str]] = []

        def list(self, prefix: str) -> list[tuple[str, int]]:
            raise ObjectNotFound("there is no such bucket")

        def create(self, key: str, data: bytes) -> None:
            if not makes_it:
                raise ObjectNotFound("there is no such bucket")
            self.made.append(key)

    checkpoints = Checkpoints(Server(), ROOT, group, 1, 2, 3)  # type: ignore[arg-type]
    if makes_it:
        assert checkpoints.load(a_state()) is None
        assert Server.made == [f"{ROOT}/begun.json"]
    else:
        with pytest.raises(ObjectNotFound):
            checkpoints.load(a_state())


def test_what_cannot_be_removed_stops_no_save(life: Life, store: Store):
    saved = life(keep=1)
    saved.store = Failing(store, "delete")  # type: ignore[assignment]
    for step in (1, 2):
        assert saved.save(a_state(step), step, 0.0) is not None


# What goes


def test_the_newest_are_kept(life: Life, tmp_path: Path):
    saved = life(keep=2)
    for step in range(1, 6):
        saved.save(a_state(step), step, 0.0)
    assert paths(tmp_path) == ["1.1/4", "1.1/5"]
    assert sorted(path.name for path in (tmp_path / ROOT / "1.1").iterdir()) == ["4", "5"]


def test_nothing_newer_and_nothing_of_a_later_life_is_removed(life: Life, tmp_path: Path):
    """Invariant I5: an older attempt never deletes the newest committed checkpoint."""
    old = life(1, attempt=1, keep=1)
    late = life(1, attempt=2, keep=9)
    late.save(a_state(30), 30, 0.0)
    late.save(a_state(5), 5, 0.0)
    for step in (10, 20):
        old.save(a_state(step), step, 0.0)
    assert paths(tmp_path) == ["1.1/20", "2.1/30", "2.1/5"]


def test_a_corrupt_one_that_was_skipped_does_not_push_out_the_good_ones(life: Life, tmp_path: Path):
    saved = life(keep=1)
    for step in (10, 20):
        saved.save(a_state(step), step, 0.0)
    flip(tmp_path / ROOT / "1.1/20/rank-0.bin", 0)
    life(2, keep=1).save(a_state(15), 15, 0.0)
    assert paths(tmp_path) == ["1.1/20", "1.2/15"]


def test_what_dead_generations_left_torn_is_removed(life: Life, tmp_path: Path):
    saved = life(1)
    for step in (10, 20):
        saved.save(a_state(step), step, 0.0)
    (tmp_path / ROOT / "1.1/10/manifest.json").unlink()
    assert (tmp_path / ROOT / "1.1/10/rank-0.bin").exists()
    life(2).save(a_state(30), 30, 0.0)
    assert not (tmp_path / ROOT / "1.1/10").exists()
    assert paths(tmp_path) == ["1.1/20", "1.2/30"]


@pytest.mark.parametrize(("keep", "left"), [(2, ["1.1/20", "1.1/30"]), (1, ["1.1/30"]), (0, [])])
def test_after_the_model_is_published_few_stay(life: Life, tmp_path: Path, keep: int, left: list[str]):
    saved = life()
    for step in (10, 20, 30):
        saved.save(a_state(step), step, 0.0)
    saved.forget(30, keep)
    assert paths(tmp_path) == left


def test_where_nobody_numbers_generations_each_gets_its_own(life: Life, tmp_path: Path):
    for step in (10, 20):
        life(None).save(a_state(step), step, 0.0)
    life(None).save(a_state(20), 20, 0.0)
    assert paths(tmp_path) == ["1.1/10", "1.2/20", "1.3/20"]


def test_a_summary_names_the_manifest(life: Life, tmp_path: Path):
    summary = life().save(a_state(10), 10, 12.5)
    assert summary is not None
    manifest, digest = parse((tmp_path / ROOT / "1.1/10/manifest.json").read_bytes())
    assert (summary.step, summary.digest, summary.saved_at) == (10, digest, 1000.0)
    assert summary.uri == f"file://{tmp_path}/{ROOT}/1.1/10"
    assert (manifest.step, manifest.trained_seconds, manifest.world_size) == (10, 12.5, 1)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"digest": 1}', b'{"digest":' * 1000])
def test_bytes_that_are_no_manifest(data: bytes):
    with pytest.raises(CorruptCheckpoint):
        parse(data)


# A whole training in one process


class Killed(Exception):
    pass


def a_training(store: Store, group: dist.ProcessGroup, generation: int, killed_at: int | None) -> list[Tensor]:
    task = a_task(nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 1)))
    recipe = a_recipe(
        steps=60, optimizer=Optimizer(name="adam", learning_rate=0.01), schedule=Schedule(name="cosine", warmup_steps=9)
    )
    report = Reporter(0, generation, None, lambda: 0.0)

    def stepped(step: int, values: dict[str, float]) -> None:
        if step == killed_at:
            raise Killed

    report.stepped = stepped  # type: ignore[method-assign]
    torch.manual_seed(3)
    for layer in task.model:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    model = DistributedDataParallel(task.model, process_group=dist.group.WORLD, forward_sync_buffers=False)
    state = TrainState(model, build_optimizer(recipe.optimizer, model.parameters(), task.learning_rates))
    torch.manual_seed(generation)  # whatever a new process drew before
    saved = Checkpoints(store, ROOT, group, 1, generation, keep=2)
    saving = Saving(saved, Cadence(Checkpoint(every_steps=3)), Notices(None), report, lambda: 0.0)
    train(task, recipe, state, dist.group.WORLD, torch.device("cpu"), report, saving)
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_a_training_killed_60_times_ends_with_the_same_bits(
    store: Store, group: dist.ProcessGroup, tmp_path_factory: pytest.TempPathFactory
):
    """The slower sibling of test_lives: more interruptions, bounded to some seconds by staying in one process."""
    elsewhere = open_store(StoreLocation(uri=f"file://{tmp_path_factory.mktemp('whole')}"), {})
    whole = a_training(elsewhere, group, 1, None)
    rng = random.Random(5)
    begin = 0
    for generation in range(1, 61):
        killed_at = rng.randint(begin + 1, min(begin + 5, 60))
        with pytest.raises(Killed):
            a_training(store, group, generation, killed_at)
        begin = (killed_at - 1) // 3 * 3
    assert all(map(torch.equal, a_training(store, group, 61, None), whole))
