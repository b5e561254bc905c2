"""The tiled cross-entropy is the plain one, whatever the tile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.kernels import cross_entropy as cross_entropy_module
from dlm_jax.kernels import tiles as module
from dlm_jax.kernels.cross_entropy import cross_entropy, cross_entropy_reference


def make_inputs(vocab_size, seed=0, shape=(2, 3), dim=5, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (*shape, dim)).astype(dtype)
    kernel = jax.random.normal(keys[1], (vocab_size, dim))
    targets = jax.random.randint(keys[2], shape, 0, vocab_size)
    return hidden, kernel, targets, jax.random.normal(keys[3], shape)


def values_and_gradients(function, hidden, kernel, targets, cotangent):
    @jax.jit
    def run(hidden, kernel, cotangent):
        out, pull = jax.vjp(lambda h, w: function(h, w, targets), hidden, kernel)
        return [out, *pull(cotangent)]

    return run(hidden, kernel, cotangent)


# Tiles that divide V and tiles that do not; a tile of one; a last tile with one new entry.
@pytest.mark.parametrize(("vocab_size", "tile"), [(12, 4), (12, 5), (11, 10), (5, 1)])
def test_tiled_equals_reference_for_any_tile_and_any_cotangent(vocab_size, tile):
    inputs = make_inputs(vocab_size, seed=tile)
    for have, want in zip(
        values_and_gradients(lambda h, w, t: cross_entropy(h, w, t, tile=tile), *inputs),
        values_and_gradients(cross_entropy_reference, *inputs),
        strict=True,
    ):
        np.testing.assert_allclose(have, want, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_kept_logits_equal_tiles_in_values_and_gradients(dtype, monkeypatch):
    monkeypatch.setattr(cross_entropy_module, "default_tile", lambda size: 4)
    inputs = make_inputs(11, dim=16, dtype=dtype)
    used = []
    kept = cross_entropy_module._kept
    monkeypatch.setattr(cross_entropy_module, "_kept", lambda *x: used.append(1) or kept(*x))
    have = values_and_gradients(cross_entropy, *inputs)
    monkeypatch.setattr(cross_entropy_module, "_KEPT_BYTES", 4 * inputs[2].size * 11 - 1)
    want = values_and_gradients(cross_entropy, *inputs)
    assert len(used) == 1  # the second time the logits were one byte too many
    tolerance = {"rtol": 2e-5, "atol": 5e-6} if dtype == jnp.float32 else {"rtol": 0.05, "atol": 0.05}
    for a, b in zip(have, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), **tolerance)


@pytest.mark.parametrize("target", [7, 8])
def test_targets_in_the_overlap_of_the_last_tile_count_once(target):
    # V = 11, tile 4: tiles start at 0, 4 and 7; token 7 lies in the last two.
    hidden, kernel, targets, cotangent = make_inputs(11)
    targets = jnp.full_like(targets, target)
    have = values_and_gradients(lambda h, w, t: cross_entropy(h, w, t, tile=4), hidden, kernel, targets, cotangent)
    want = values_and_gradients(cross_entropy_reference, hidden, kernel, targets, cotangent)
    for a, b in zip(have, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6)
    # Variation: a wrong target fails.
    wrong = cross_entropy_reference(hidden, kernel, (targets + 1) % 11)
    assert np.abs(have[0] - wrong).max() > 0.1


def test_uniform_logits_cost_log_vocab():
    hidden, kernel, targets, _ = make_inputs(13)
    np.testing.assert_allclose(cross_entropy(0 * hidden, kernel, targets, tile=4), np.log(13), rtol=1e-6)


def test_bfloat16_hidden_stays_close_and_master_gradient_stays_float32():
    hidden, kernel, targets, cotangent = make_inputs(50, dim=16, dtype=jnp.bfloat16)
    have = values_and_gradients(lambda h, w, t: cross_entropy(h, w, t, tile=16), hidden, kernel, targets, cotangent)
    wide = values_and_gradients(cross_entropy_reference, hidden.astype(jnp.float32), kernel, targets, cotangent)
    assert [x.dtype for x in have] == [jnp.float32, jnp.bfloat16, jnp.float32]
    for a, b in zip(have, wide, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.05, atol=0.05)


def test_extreme_logits_neither_overflow_nor_lose_the_target():
    hidden, kernel, targets, cotangent = make_inputs(11)
    big = 1e3 * hidden, kernel, targets, cotangent
    have = values_and_gradients(lambda h, w, t: cross_entropy(h, w, t, tile=4), *big)
    for a, b in zip(have, values_and_gradients(cross_entropy_reference, *big), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("vocab_size", "tile"), [(27, 27), (8192, 8192), (8193, 384), (32768, 1024), (50257, 1664)])
def test_default_tile_keeps_small_vocabularies_whole_and_splits_large_ones(vocab_size, tile):
    have = module.default_tile(vocab_size)
    assert have == vocab_size if vocab_size <= 8192 else have % 128 == 0 and have < vocab_size / 16
    # The exact size, too: one thirty-second, rounded up to a multiple of 128.
    assert have == tile
