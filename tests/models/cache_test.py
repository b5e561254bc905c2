"""Keys and values that are kept: the same hidden states as without, where the attention allows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax import config
from dlm_jax.models.denoiser import Denoiser

V, L, BLOCK = 11, 12, 4


def build(**fields):
    fields = {"num_layers": 3, "embed_dim": 8, "num_heads": 2, "mlp_dim": 8, "dtype": "float32", **fields}
    return Denoiser(config.ModelConfig(**fields), V)


def random_params(denoiser, seed=0):
    abstract = jax.eval_shape(denoiser.init, jax.random.key(0))
    noise = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * noise.normal(size=leaf.shape), jnp.float32), abstract)


TOKENS = np.random.default_rng(1).integers(0, V + 1, (2, L))


def by_blocks(denoiser, params, tokens, rows=None):
    """Hidden states of each block, computed on the tokens of that block alone."""
    cache, found = denoiser.empty_cache(len(tokens), tokens.shape[1]), []
    for start in range(0, tokens.shape[1], BLOCK):
        positions = start + jnp.arange(BLOCK)[None]
        hidden, cache = denoiser.hidden(
            params, tokens[:, start : start + BLOCK], positions=positions, cache=cache, rows=rows
        )
        found.append(hidden)
    return np.concatenate(found, axis=1)


BLOCK_CAUSAL = {"attention": "block_causal", "block_length": BLOCK}


@pytest.mark.parametrize("more", [{}, {"num_kv_heads": 1, "qk_norm": True}])
@pytest.mark.parametrize("attention", [BLOCK_CAUSAL, {"attention": "causal"}])
def test_block_by_block_with_a_cache_is_all_at_once_without(attention, more):
    denoiser = build(**attention, **more)
    params = random_params(denoiser)
    whole, none = denoiser.hidden(params, TOKENS)
    assert none is None
    np.testing.assert_allclose(by_blocks(denoiser, params, TOKENS), whole, atol=2e-5)
    rows = np.asarray([[1, 3], [0, 2]])
    everywhere = np.concatenate([rows + start for start in range(0, L, BLOCK)], axis=1)
    few, _ = denoiser.hidden(params, TOKENS, rows=everywhere)
    np.testing.assert_allclose(by_blocks(denoiser, params, TOKENS, rows), few, atol=2e-5)
    np.testing.assert_allclose(few, np.take_along_axis(np.asarray(whole), everywhere[..., None], axis=1), atol=2e-5)


def test_a_bidirectional_model_is_not_the_same_block_by_block_before_all_is_written():
    denoiser = build()
    params = random_params(denoiser)
    whole, _ = denoiser.hidden(params, TOKENS)
    assert np.abs(by_blocks(denoiser, params, TOKENS) - whole).max() > 1e-2
    # Once every position has been written, a call on some of them sees what a call on all of them saw.
    _, cache = denoiser.hidden(params, TOKENS, cache=denoiser.empty_cache(2, L))
    again, _ = denoiser.hidden(params, TOKENS[:, 4:8], positions=4 + jnp.arange(4)[None], cache=cache)
    np.testing.assert_allclose(again, whole[:, 4:8], atol=2e-5)


def test_a_token_sees_its_own_block_and_those_before_by_gradient():
    denoiser = build(**BLOCK_CAUSAL)
    params = random_params(denoiser)

    def hidden(embedding, position):
        changed = {**params, "stem": {**params["stem"], "embedding": embedding}}
        return denoiser.hidden(changed, jnp.arange(L)[None])[0][0, position].sum()

    embedding = params["stem"]["embedding"]
    assert embedding.shape[0] == V + 1 == L  # one row of the table a position
    for position in range(L):
        seen = np.abs(jax.grad(hidden)(embedding, position)).max(axis=1) > 0
        np.testing.assert_array_equal(seen, np.arange(L) // BLOCK <= position // BLOCK)


def test_block_length_and_attention_go_together():
    for fields in ({"attention": "block_causal"}, {"block_length": 4}, {"attention": "causal", "block_length": 4}):
        with pytest.raises(ValueError, match="a block length and 'block_causal' go together"):
            build(**fields)
