"""Every implementation of the fused head draws the reference's tokens and states its certainties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.kernels import unmask as module
from dlm_jax.kernels.unmask import IMPLEMENTATIONS, best_implementation, unmask
from dlm_jax.parallel import mesh as meshes
from dlm_jax.parallel import sharding

KERNELS = ["tiled", "mosaic", "triton"]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    for name in ("mosaic", "triton"):
        monkeypatch.setitem(IMPLEMENTATIONS, name, functools.partial(IMPLEMENTATIONS[name], interpret=True))


def make_inputs(shape=(3, 7), vocab_size=500, dim=128, seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    hidden = jax.random.normal(keys[0], (*shape, dim)).astype(dtype)
    kernel = 0.2 * jax.random.normal(keys[1], (vocab_size, dim))
    return hidden, kernel, jax.random.split(keys[2], shape)


def assert_same(have, want, atol=2e-5):
    np.testing.assert_array_equal(have.tokens, want.tokens)
    for field in ("log_prob", "largest", "second", "entropy"):
        np.testing.assert_allclose(getattr(have, field), getattr(want, field), rtol=1e-5, atol=atol)


# Vocabularies that the tiles divide, and that they do not; more rows than one block of the GPU kernel has.
@pytest.mark.parametrize(("shape", "vocab_size"), [((3, 7), 512), ((1, 40), 300)])
@pytest.mark.parametrize("name", KERNELS)
def test_tokens_and_certainties_are_those_of_the_reference(name, shape, vocab_size):
    hidden, kernel, keys = make_inputs(shape, vocab_size)
    for temperature in (0.7, 0.0):
        want = unmask(hidden, kernel, keys, temperature, implementation="reference")
        assert_same(unmask(hidden, kernel, keys, temperature, implementation=name), want)
    assert (want.tokens == jnp.argmax(hidden @ kernel.T, axis=-1)).all()  # temperature 0
    # Variation: other keys draw other tokens, with the same certainties.
    other = unmask(hidden, kernel, jax.random.split(jax.random.key(9), shape), 1.0, implementation=name)
    assert (other.tokens != unmask(hidden, kernel, keys, 1.0, implementation=name).tokens).any()
    np.testing.assert_allclose(other.entropy, want.entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_without_keys_the_most_probable_token_comes_back(name):
    hidden, kernel, _ = make_inputs()
    have = unmask(hidden, kernel, None, 1.0, implementation=name)
    assert_same(have, unmask(hidden, kernel, None, 1.0, implementation="reference"))
    np.testing.assert_array_equal(have.tokens, jnp.argmax(hidden @ kernel.T, axis=-1))
    np.testing.assert_array_equal(have.log_prob, have.largest)


@pytest.mark.parametrize("tile", [1, 7, 128, 499, 500, 5000])
def test_the_tiling_does_not_change_a_token(tile):
    hidden, kernel, keys = make_inputs()
    want = unmask(hidden, kernel, keys, 1.0, implementation="reference")
    assert_same(unmask(hidden, kernel, keys, 1.0, tile=tile, implementation="tiled"), want)


def test_certainties_by_definition():
    hidden, kernel, keys = make_inputs((4,), 50)
    seen = unmask(hidden, kernel, keys, 1.0, implementation="reference")
    log_p = np.asarray(jax.nn.log_softmax(hidden @ kernel.T))
    ranked = np.sort(log_p, axis=-1)
    np.testing.assert_allclose(seen.largest, ranked[:, -1], atol=1e-6)
    np.testing.assert_allclose(seen.second, ranked[:, -2], atol=1e-6)
    np.testing.assert_allclose(seen.entropy, -(np.exp(log_p) * log_p).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(seen.log_prob, log_p[np.arange(4), seen.tokens], atol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_two_equal_logits_tie_as_in_the_reference(name):
    hidden, kernel, _ = make_inputs((5,), 300)
    kernel = kernel.at[290].set(kernel[3])  # in another tile
    hidden = 10 * kernel[3] + 0 * hidden
    have = unmask(hidden, kernel, None, 0.0, implementation=name)
    assert (have.tokens == 3).all()  # the first of them
    np.testing.assert_allclose(have.second, have.largest, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_extreme_logits_stay_finite(name):
    hidden, kernel, keys = make_inputs((4,))
    seen = unmask(1e4 * hidden, kernel, keys, 1.0, implementation=name)
    assert all(np.isfinite(part).all() for part in (seen.log_prob, seen.largest, seen.entropy))
    assert (np.asarray(seen.log_prob) <= 1e-3).all() and (np.asarray(seen.entropy) >= -1e-2).all()


def test_rows_on_eight_devices_draw_the_same_tokens():
    hidden, kernel, keys = make_inputs((8, 5))
    want = unmask(hidden, kernel, keys, 1.0, implementation="tiled", tile=100)
    mesh = meshes.make_mesh((2, 4, 1))
    with sharding.on_mesh(mesh):
        ask = jax.jit(lambda *x: unmask(*x, 1.0, implementation="tiled", tile=100))
        have = ask(jax.device_put(hidden, sharding.batch_sharding(mesh, 3)), kernel, keys)
    assert_same(have, want)
    assert not have.tokens.sharding.is_fully_replicated


def test_bytes_at_a_large_vocabulary_are_a_tenth_of_those_of_the_logits():
    # One step of 64 rows of 1024 tokens in 64 steps: 1,024 rows reach a head of 131,072 x 768.
    rows, vocab_size, dim = 1024, 131_072, 768
    fused = module.cost_estimate(rows, vocab_size, dim, 1024, 2).bytes_accessed
    # The logits written once in float32, and read once to draw and once to normalise.
    materialised = 3 * 4 * rows * vocab_size + 2 * vocab_size * dim
    assert fused * 8 < materialised
    shapes = (jax.ShapeDtypeStruct((rows, dim), jnp.bfloat16), jax.ShapeDtypeStruct((vocab_size, dim), jnp.bfloat16))
    reference = jax.jit(
        lambda h, w: unmask(h, w, jax.random.split(jax.random.key(0), rows), 1.0, implementation="reference")
    )
    assert fused * 10 < reference.lower(*shapes).compile().cost_analysis()["bytes accessed"]


def test_every_platform_has_an_implementation_for_every_head():
    large, narrow, small = (jnp.zeros(shape) for shape in ((9000, 256), (9000, 60), (97, 256)))
    best = {
        platform: [best_implementation(platform, head) for head in (large, narrow, small)]
        for platform in ("cpu", "tpu", "gpu")
    }
    assert best == {
        "cpu": ["tiled", "tiled", "reference"],
        "tpu": ["mosaic", "tiled", "reference"],
        "gpu": ["triton", "tiled", "reference"],
    }
