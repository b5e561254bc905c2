"""Every implementation of attention is the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.kernels import attention as module
from dlm_jax.kernels.attention import IMPLEMENTATIONS, attention, best_implementation

HERE = ["batched", "library", "reference"]  # the others need their platform: see below, and compile_test
FAST = ["batched", "library"]
# (batch, heads, kv heads, rows, length, head_dim)
SHAPES = [(2, 4, 4, 5, 5, 8), (1, 6, 2, 3, 7, 2), (3, 4, 1, 1, 9, 6)]


def make_inputs(shape, dtype=jnp.float32):
    batch, heads, kv_heads, rows, length, head_dim = shape
    keys = jax.random.split(jax.random.key(1), 5)
    q = jax.random.normal(keys[0], (batch, heads, rows, head_dim), dtype)
    k = jax.random.normal(keys[1], (batch, kv_heads, length, head_dim), dtype)
    v = jax.random.normal(keys[2], (batch, kv_heads, length, head_dim), dtype)
    cotangent = jax.random.normal(keys[3], q.shape, dtype)
    mask = jax.random.bernoulli(keys[4], 0.5, (batch, 1, rows, length)).at[..., 0].set(True)
    return q, k, v, cotangent, mask


def values_and_gradients(name, q, k, v, cotangent, mask):
    @jax.jit
    def run(q, k, v, cotangent):
        out, pull = jax.vjp(lambda *x: attention(*x, mask=mask, implementation=name), q, k, v)
        return [out, *pull(cotangent)]

    return run(q, k, v, cotangent)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masking", ["none", "random", "shared"])
@pytest.mark.parametrize("name", FAST)
def test_implementation_equals_reference_in_values_and_gradients(name, masking, shape):
    q, k, v, cotangent, mask = make_inputs(shape)
    mask = {"none": None, "random": mask, "shared": mask[:1]}[masking]
    for have, want in zip(
        values_and_gradients(name, q, k, v, cotangent, mask),
        values_and_gradients("reference", q, k, v, cotangent, mask),
        strict=True,
    ):
        np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", HERE)
def test_one_visible_key_returns_its_value(name):
    q, k, v, _, mask = make_inputs((2, 4, 2, 3, 5, 4))
    mask = jnp.zeros_like(mask).at[..., 3].set(True)
    want = np.broadcast_to(np.repeat(v[:, :, 3:4], 2, axis=1), q.shape)
    np.testing.assert_allclose(attention(q, k, v, mask=mask, implementation=name), want, rtol=1e-6)
    # Variation: with every key visible the answer is another one.
    assert np.abs(attention(q, k, v, implementation=name) - want).max() > 0.1


@pytest.mark.parametrize("name", FAST)
def test_query_heads_share_consecutively_not_interleaved(name):
    q, k, v, _, _ = make_inputs((1, 4, 2, 3, 5, 4))
    have = attention(q, k, v, implementation=name)
    wrong = jnp.tile(k, (1, 2, 1, 1)), jnp.tile(v, (1, 2, 1, 1))
    np.testing.assert_allclose(have, attention(q, k, v, implementation="reference"), atol=2e-6)
    assert np.abs(have - attention(q, *wrong, implementation="reference")).max() > 0.05


@pytest.mark.parametrize("name", HERE)
def test_large_scores_do_not_overflow(name):
    q, k, v, cotangent, mask = make_inputs((2, 4, 2, 3, 5, 4))
    for array in values_and_gradients(name, 100 * q, 100 * k, v, cotangent, mask):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("name", FAST)
def test_bfloat16_stays_close_and_keeps_its_dtype(name):
    q, k, v, _, mask = make_inputs((2, 4, 2, 6, 9, 8), jnp.bfloat16)
    have = attention(q, k, v, mask=mask, implementation=name)
    wide = attention(*(x.astype(jnp.float32) for x in (q, k, v)), mask=mask, implementation="reference")
    assert have.dtype == jnp.bfloat16
    np.testing.assert_allclose(have.astype(jnp.float32), wide, atol=0.04)


def test_backward_in_chunks_of_rows_is_backward_at_once(monkeypatch):
    inputs = make_inputs((6, 4, 2, 5, 7, 8))
    for mask in (None, inputs[-1], inputs[-1][:1]):
        want = values_and_gradients("reference", *inputs[:-1], mask)
        for chunk_bytes in (1, 2 * 4 * 2 * 10 * 7, 1 << 20):  # one row, two rows, all
            monkeypatch.setattr(module, "_CHUNK_BYTES", chunk_bytes)
            jax.clear_caches()
            for have, expected in zip(values_and_gradients("batched", *inputs[:-1], mask), want, strict=True):
                np.testing.assert_allclose(have, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_splash_attention_interpreted_equals_reference(kv_heads, monkeypatch):
    q, k, v, cotangent, _ = make_inputs((2, 2, kv_heads, 128, 256, 64))
    monkeypatch.setitem(IMPLEMENTATIONS, "splash", functools.partial(module._splash, interpret=True))
    have = values_and_gradients("splash", q, k, v, cotangent, None)
    for a, b in zip(have, values_and_gradients("reference", q, k, v, cotangent, None), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
    assert np.abs(have[0] - attention(q, k[:, :, ::-1], v, implementation="reference")).max() > 0.01  # variation


def test_every_platform_has_an_implementation_for_every_argument(monkeypatch):
    monkeypatch.setattr(module, "_has_cudnn", lambda: True)
    q, k, _, _, mask = make_inputs((2, 4, 4, 5, 5, 8))
    tiles = jnp.zeros((2, 4, 256, 64), jnp.bfloat16)
    assert best_implementation("cpu", q, k, mask) == "batched"
    assert [best_implementation(p, tiles, tiles, None) for p in ("tpu", "gpu")] == ["splash", "cudnn"]
    assert [best_implementation(p, tiles, tiles, mask) for p in ("tpu", "gpu")] == ["library", "library"]
    assert [best_implementation(p, q, k, None) for p in ("tpu", "gpu")] == ["library", "library"]  # too small, too wide
    assert set(IMPLEMENTATIONS) == {*HERE, "splash", "cudnn"}
