"""Steps are grouped so that one program serves any sizes with little padding."""

import jax
import numpy as np
import pytest

from dlm_jax import sampling
from dlm_jax.information import cosine_sizes, distributions, logodds_sizes, uniform_sizes
from dlm_jax.sampling.loop import group_steps


@pytest.mark.parametrize("make", [uniform_sizes, cosine_sizes, logodds_sizes])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 16, 64])
def test_groups_cover_every_step_and_hold_its_size(make, num_steps):
    sizes = make(256, num_steps)
    groups = group_steps(sizes)
    assert 1 <= len(groups) <= 4
    assert sum(count for count, _ in groups) == num_steps
    padded = np.concatenate([[size] * count for count, size in groups])
    assert (padded >= sizes).all()


def test_uniform_sizes_are_one_group_and_uneven_ones_pay_for_more():
    assert group_steps([4] * 8) == ((8, 4),)
    assert group_steps([1] * 15 + [100]) == ((15, 1), (1, 100))


def test_tokens_do_not_depend_on_how_steps_are_grouped(monkeypatch):
    bed = distributions.stationary_markov_chain([[0.9, 0.1], [0.2, 0.8]], 16)
    options = {"num_samples": 64, "length": 16, "mask_id": 2, "sizes": [1, 1, 1, 1, 12]}
    grouped = sampling.sample(bed.denoise, key=jax.random.key(0), **options)
    monkeypatch.setattr("dlm_jax.sampling.loop._MAX_GROUPS", 1)
    single = sampling.sample(bed.denoise, key=jax.random.key(0), **options)
    assert len(group_steps(options["sizes"])) == 1
    np.testing.assert_array_equal(grouped.tokens, single.tokens)
    assert (grouped.tokens != sampling.sample(bed.denoise, key=jax.random.key(1), **options).tokens).any()
