"""Counter-based noise: jax's own Threefry at 20 rounds, the right distribution at 13, the rarest values included."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from scipy import stats

from dlm_jax.kernels import noise


def as_int32(values):
    return jnp.asarray(np.asarray(values, np.uint32).view(np.int32))


def test_twenty_rounds_are_the_threefry_of_jax():
    words = np.random.default_rng(0).integers(0, 2**32, (4, 50), dtype=np.uint64).astype(np.uint32)
    for key_a, key_b, count_a, count_b in words.T:
        want = threefry_2x32(np.array([key_a, key_b]), np.array([count_a, count_b]))
        have = noise.threefry(as_int32([key_a, key_b]), as_int32([count_a, count_b]), rounds=20)
        assert [int(np.asarray(x).view(np.uint32)) for x in have] == [int(x) for x in want]
        assert [int(np.asarray(x).view(np.uint32)) for x in noise.threefry((1, 2), (3, 4))] != [int(x) for x in want]


def test_noise_is_gumbel():
    # Kolmogorov-Smirnov over 2e6 draws of 2000 keys; fails by chance once in 1e6.
    draws = np.asarray(noise.gumbel_of_rows(jax.random.split(jax.random.key(1), 2000), 1000)).ravel()
    assert stats.kstest(draws, "gumbel_r").pvalue > 1e-6
    assert stats.kstest(draws * 1.01, "gumbel_r").pvalue < 1e-6  # variation
    # Uncorrelated between neighbouring tokens and between neighbouring keys: |r| sqrt(n) is normal.
    table = draws.reshape(2000, 1000)
    for a, b in ((table[:, 1:], table[:, :-1]), (table[1:], table[:-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * np.sqrt(a.size) < 5


def test_the_largest_values_have_their_chance():
    # Of 1e8 Gumbels about 100 exceed -log(1e-6), and the largest is near log(1e8); 23-bit noise stops at 15.94.
    count, largest = 0, 0.0
    draw = jax.jit(lambda key: noise.gumbel_of_rows(jax.random.split(key, 100), 100_000))
    for index in range(10):
        values = np.asarray(draw(jax.random.key(index)))
        count, largest = count + (values > -np.log(1e-6)).sum(), max(largest, values.max())
    assert abs(count - 100) <= 50  # 5 standard errors
    assert np.isfinite(values).all() and largest > 16


def test_a_token_has_its_noise_in_any_company():
    keys = jax.random.split(jax.random.key(2), 6)
    whole = np.asarray(noise.gumbel_of_rows(keys, 40))
    np.testing.assert_array_equal(whole[:, :17], noise.gumbel_of_rows(keys, 17))
    np.testing.assert_array_equal(whole[2:4], noise.gumbel_of_rows(keys[2:4], 40))
    words = tuple(word[:, None] for word in noise.words(keys))
    np.testing.assert_array_equal(whole[:, 30:33], noise.gumbel(words, jnp.arange(30, 33, dtype=jnp.int32)[None]))
    assert len(np.unique(whole)) == whole.size  # variation: no key or token repeats another's
