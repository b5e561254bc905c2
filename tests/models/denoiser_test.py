"""The denoiser: counted parameters, wanted rows, visibility by gradient, and the seam's errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax import config
from dlm_jax.diffusion.objectives import shift_right
from dlm_jax.models.denoiser import Denoiser

V, L = 11, 6
TINY = {"num_layers": 2, "embed_dim": 8, "num_heads": 2, "mlp_dim": 8, "time_dim": 4, "dtype": "float32"}


def build(**fields):
    return Denoiser(config.ModelConfig(**{**TINY, **fields}), V)


def random_params(denoiser):
    """Normal numbers in every leaf, the zero-initialised gates of adaLN included."""
    abstract = jax.eval_shape(denoiser.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32), abstract)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("fields", [{}, {"qk_norm": True, "num_kv_heads": 1}, {"time_conditioning": True}])
def test_number_of_parameters_by_formula_equals_those_built(fields, tied):
    denoiser = build(tie_embeddings=tied, **fields)
    leaves = jax.tree.leaves(jax.eval_shape(denoiser.init, jax.random.key(0)))
    assert denoiser.num_params == sum(leaf.size for leaf in leaves)
    assert build(tie_embeddings=not tied, **fields).num_params != denoiser.num_params  # variation


def test_logical_axes_name_every_dimension_of_every_parameter():
    denoiser = build(qk_norm=True, time_conditioning=True)
    abstract = jax.eval_shape(denoiser.init, jax.random.key(0))
    named = jax.tree.map(lambda leaf, axes: len(axes) == leaf.ndim, abstract, denoiser.logical_axes)
    assert all(jax.tree.leaves(named))


def test_rows_equal_gathering_the_full_output():
    denoiser = build(num_kv_heads=1, qk_norm=True)
    params = random_params(denoiser)
    tokens, rows = jnp.arange(2 * L).reshape(2, L) % V, jnp.array([[4, 0, 2], [1, 1, 5]])
    segments = jnp.array([[0, 0, 0, 1, 1, 1]] * 2)
    run = jax.jit(lambda rows: denoiser.hidden(params, tokens, rows=rows, segment_ids=segments)[0])
    full = np.asarray(run(None))
    have = run(rows)
    np.testing.assert_allclose(have, np.take_along_axis(full, np.asarray(rows)[..., None], 1), rtol=1e-5, atol=1e-5)
    assert np.abs(have - full[:, :3]).max() > 0.01  # variation: other rows


def visibility(denoiser, params, tokens, shift=False, **kwargs):
    """bool[L, L]: whether output i depends on the embedding of token j; all tokens of the row are distinct."""
    read = shift_right(tokens, V, kwargs.get("segment_ids")) if shift else tokens

    def outputs(table):
        changed = {**params, "stem": {**params["stem"], "embedding": table}}
        hidden = denoiser.hidden(changed, read, **kwargs)[0][0]
        return hidden @ jnp.linspace(-1.0, 2.0, hidden.shape[-1])  # a plain sum would vanish after a norm

    jacobian = jax.jit(jax.jacrev(outputs))(params["stem"]["embedding"])  # [L, V + 1, D]
    return np.abs(np.asarray(jacobian)[:, np.asarray(tokens[0])]).max(-1) > 1e-7


TOKENS = jnp.array([[3, 0, 7, 1, 9, 5]])
SEGMENTS = jnp.array([[0, 0, 1, 1, 1, 2]])
SAME = np.asarray(SEGMENTS[0])[:, None] == np.asarray(SEGMENTS[0])


def test_every_output_depends_on_every_input():
    denoiser = build(time_conditioning=True)
    time = jnp.array([0.3])
    assert visibility(denoiser, random_params(denoiser), TOKENS, time=time).all()
    # Variation: with the zero-initialised gates the check would be vacuous, every output sees only itself.
    fresh = denoiser.init(jax.random.key(0))
    np.testing.assert_array_equal(visibility(denoiser, fresh, TOKENS, time=time), np.eye(L, dtype=bool))


def test_no_output_depends_on_another_segment():
    denoiser = build()
    have = visibility(denoiser, random_params(denoiser), TOKENS, segment_ids=SEGMENTS)
    np.testing.assert_array_equal(have, SAME)


def test_a_causal_model_looks_left_and_autoregression_never_at_the_token_itself():
    denoiser = build(attention="causal")
    params = random_params(denoiser)
    np.testing.assert_array_equal(visibility(denoiser, params, TOKENS), np.tri(L, dtype=bool))
    shifted = visibility(denoiser, params, TOKENS, shift=True, segment_ids=SEGMENTS)
    np.testing.assert_array_equal(shifted, SAME & np.tri(L, k=-1, dtype=bool))


@pytest.mark.parametrize(
    ("fields", "kwargs", "tokens", "message"),
    [
        ({"time_conditioning": True}, {}, TOKENS, "time: must be given"),
        ({}, {"time": jnp.zeros(1)}, TOKENS, "time: must be None"),
        (
            {},
            {"cache": build().empty_cache(1, L), "mask": jnp.ones((1, 1, 1, 1), bool)},
            TOKENS,
            "cache: cannot be used with",
        ),
        (
            {},
            {"cache": build().empty_cache(1, L), "segment_ids": jnp.ones((1, 1), int)},
            TOKENS,
            "cache: cannot be used with",
        ),
        ({}, {}, TOKENS[0], "tokens: shape"),
    ],
)
def test_the_seam_refuses_by_name(fields, kwargs, tokens, message):
    denoiser = build(**fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda key: denoiser.hidden(denoiser.init(key), tokens, **kwargs), jax.random.key(0))
