import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigmodel.trainer.data.order import Order, share, split

sizes = st.integers(1, 60)


@given(samples=sizes, batch_size=sizes, seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 5))
def test_every_sample_comes_exactly_once_an_epoch(samples: int, batch_size: int, seed: int, epoch: int):
    order = Order(samples, batch_size, seed)
    first = epoch * order.batches_per_epoch
    batches = [order.global_batch(first + step) for step in range(order.batches_per_epoch)]
    assert sorted(np.concatenate(batches)) == list(range(samples))
    assert [len(batch) for batch in batches[:-1]] == [min(batch_size, samples)] * (len(batches) - 1)


@given(samples=st.integers(0, 60), ranks=st.integers(1, 9))
def test_the_ranks_share_a_batch_evenly_and_in_order(samples: int, ranks: int):
    batch = np.random.default_rng(0).permutation(samples)
    shares = [share(batch, rank, ranks) for rank in range(ranks)]
    np.testing.assert_array_equal(np.concatenate(shares), batch)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_any_step_can_be_asked_first():
    order = Order(100, 7, seed=5)
    assert order.global_batch(40).tolist() == [order.global_batch(step) for step in range(41)][40].tolist()


def test_epochs_and_seeds_shuffle_differently():
    batches = {tuple(Order(50, 50, seed).global_batch(step)) for seed in (0, 1) for step in (0, 1)}
    assert len(batches) == 4


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_a_split_is_disjoint_complete_and_repeatable(seed: int):
    train, validation = split(442, 0.2, seed)
    assert len(validation) == 88
    assert sorted([*train, *validation]) == list(range(442))
    np.testing.assert_array_equal(split(442, 0.2, seed)[1], validation)
    assert split(442, 0.2, seed + 1)[1].tolist() != validation.tolist()
