"""Batches are a pure function of the step, the seed and the rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax.data.batches import Batches, permute
from dlm_jax.data.packing import Rows

LENGTH = 3


def rows_of(size, segments=False):
    tokens = np.arange(size * LENGTH, dtype=np.uint16).reshape(size, LENGTH)
    zeros = np.zeros(size, np.int32)
    return Rows(tokens, zeros, zeros, (tokens % 2).astype(np.uint16) if segments else None)


def epoch_indices(batches, epoch, size):
    """The rows of one epoch, from the stream of all batches."""
    first, last = epoch * size, (epoch + 1) * size
    steps = range(first // batches.batch_size, -(-last // batches.batch_size))
    stream = np.concatenate([batches.indices(step) for step in steps])
    start = first - steps[0] * batches.batch_size
    return stream[start : start + size]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size, key):
    with np.errstate(over="ignore"):
        out = permute(np.arange(size, dtype=np.uint64), size, np.full(size, key, np.uint64))
    assert np.array_equal(np.sort(out), np.arange(size, dtype=np.uint64))


def test_permute_is_no_bijection_when_the_keys_differ():
    size = 1000
    with np.errstate(over="ignore"):
        out = permute(np.arange(size, dtype=np.uint64), size, np.arange(size, dtype=np.uint64))
    assert len(set(out.tolist())) < size


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.integers(1, 300), batch_size=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 5))
def test_an_epoch_visits_each_row_exactly_once(size, batch_size, seed, epoch):
    found = epoch_indices(Batches(rows_of(size), batch_size, seed), epoch, size)
    assert np.array_equal(np.sort(found), np.arange(size))


def test_a_window_across_two_epochs_is_not_an_epoch():
    size, batches = 101, Batches(rows_of(101), 101, 0)
    stream = np.concatenate([batches.indices(0), batches.indices(1)])
    assert len(set(stream[50 : 50 + size].tolist())) < size


def test_another_seed_and_another_epoch_give_another_order():
    size = 256
    first = epoch_indices(Batches(rows_of(size), 16, 0), 0, size)
    assert np.array_equal(first, epoch_indices(Batches(rows_of(size), 16, 0), 0, size))
    assert not np.array_equal(first, epoch_indices(Batches(rows_of(size), 16, 1), 0, size))
    assert not np.array_equal(first, epoch_indices(Batches(rows_of(size), 16, 0), 1, size))
    assert not np.array_equal(first, np.arange(size))


def test_a_batch_depends_on_the_step_alone_and_not_on_what_was_asked_before():
    batches = Batches(rows_of(77, segments=True), 8, 3)
    fresh = Batches(rows_of(77, segments=True), 8, 3)(123)
    for step in (5, 0, 122, 123, 10**9):
        batches(step)
    again = batches(123)
    assert set(again) == {"tokens", "segment_ids"}
    for name, array in fresh.items():
        assert array.dtype == np.int32
        assert np.array_equal(again[name], array)
    assert not np.array_equal(batches(124)["tokens"], fresh["tokens"])


def test_rows_without_segments_give_batches_without_segments():
    assert set(Batches(rows_of(9), 4, 0)(0)) == {"tokens"}


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_the_hosts_together_hold_the_global_batch_bit_for_bit(num_hosts):
    batches = Batches(rows_of(53, segments=True), 8, 11)
    for step in (0, 6, 7, 1000):
        whole = batches(step)
        share = 8 // num_hosts
        parts = [batches(step, slice(host * share, (host + 1) * share)) for host in range(num_hosts)]
        for name, array in whole.items():
            assert all(part[name].shape == (8 // num_hosts, LENGTH) for part in parts)
            assert np.concatenate([part[name] for part in parts]).tobytes() == array.tobytes()
            if num_hosts > 1:
                assert np.concatenate([part[name] for part in parts[::-1]]).tobytes() != array.tobytes()


def test_the_order_of_rows_is_kept_for_ever():
    """Pinned: a change of these numbers would make resumed runs see other batches."""
    assert Batches(rows_of(10), 5, 0).indices(0).tolist() == [0, 1, 2, 9, 8]
    assert Batches(rows_of(1000), 4, 7).indices(10**6).tolist() == [11, 831, 413, 643]
