"""Block decoding with kept keys and values: the same samples where it is exact, measurably others where it is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dlm_jax import config
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.sampling import loop

L, BLOCK, V = 6, 3, 2


@functools.cache
def network(attention):
    fields = {"attention": attention, "block_length": BLOCK if attention == "block_causal" else 0}
    made = Denoiser(
        config.ModelConfig(num_layers=2, embed_dim=16, num_heads=2, mlp_dim=16, dtype="float32", **fields), V
    )
    noise = np.random.default_rng(1)
    abstract = jax.eval_shape(made.init, jax.random.key(0))
    return made, jax.tree.map(lambda leaf: jnp.asarray(0.6 * noise.normal(size=leaf.shape), jnp.float32), abstract)


def run(attention, cache, n=64, key=0, prompt=0, **choices):
    denoiser, params = network(attention)
    canvas = np.full((n, L), V, np.int32)
    canvas[:, :prompt] = 1
    made = config.SampleConfig(block_length=BLOCK, cache=cache, **choices)
    return loop.run(denoiser, params, jax.random.key(key), canvas, made)


WAYS = {
    "random": {},
    "two steps a block": {"num_steps": 4},
    "confidence": {"selection": "confidence"},
    "entropy bound": {"selection": "entropy", "transition": "entropy_bound:0.3"},
    "quotas": {"selection": "drawn", "transition": "quota_llada", "num_steps": 4},
}


@pytest.mark.parametrize("prompt", [0, 2, 4])
@pytest.mark.parametrize("way", WAYS)
def test_an_exact_cache_gives_the_same_samples(way, prompt):
    cached = run("block_causal", "exact", prompt=prompt, **WAYS[way])
    plain = run("block_causal", "none", prompt=prompt, **WAYS[way])
    np.testing.assert_array_equal(cached.tokens, plain.tokens)
    # One more call for the second of two blocks, to keep what the first came to.
    assert (cached.nfe - plain.nfe == 1).all()
    assert (cached.tokens != run("block_causal", "exact", key=1, prompt=prompt, **WAYS[way]).tokens).any()


def law(out):
    return np.bincount(out.tokens @ V ** np.arange(L)[::-1], minlength=V**L)


def apart(first, second):
    """(chi-square p value that two samples are of one law, KL of their frequencies in nats, ours + 1/2 each)."""
    a, b = law(first) + 0.5, law(second) + 0.5
    p, q = a / a.sum(), b / b.sum()
    return stats.chi2_contingency([a, b]).pvalue, float(np.sum(p * np.log(p / q)))


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_an_approximate_cache_is_biased_by_a_stated_distance(cache, capsys):
    """The same two-sample test passes for two seeds of the uncached sampler (p > 1e-4)."""
    n = 20_000
    plain, again = (run("bidirectional", "none", n=n, key=key) for key in (0, 1))
    same, noise = apart(plain, again)
    assert same > 1e-4
    biased, distance = apart(plain, run("bidirectional", cache, n=n, key=2))
    with capsys.disabled():
        print(f"\ncache {cache}: KL from the uncached sampler {distance:.4f} nats (noise {noise:.4f})", end=" ")
    assert biased < 1e-4
    assert 3 * noise < distance < 0.5


def test_approximate_caches_are_refreshed_when_a_block_begins():
    """With one token a step the first token of each block is drawn from what an uncached call predicts."""
    plain, dual, prefix = (run("bidirectional", cache) for cache in ("none", "dual", "prefix"))
    first = plain.reveal_step == 0
    for out in (dual, prefix):
        np.testing.assert_array_equal(out.reveal_step, plain.reveal_step)
        np.testing.assert_array_equal(out.tokens[first], plain.tokens[first])
        assert (out.nfe == L + 2).all()  # and a refresh for each of two blocks
        assert (out.tokens != plain.tokens).any()
    assert (plain.nfe == L).all()
