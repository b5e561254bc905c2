"""What the denoiser computes does not depend on how it is computed; its cost is what the formula says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dlm_jax.config import ModelConfig
from dlm_jax.models.denoiser import Denoiser

SMALL = ModelConfig(num_layers=3, embed_dim=32, num_heads=4, num_kv_heads=2, qk_norm=True)
TOKENS = np.random.default_rng(0).integers(0, 20, (2, 8)).astype(np.int32)


def matrix_product_flops(jaxpr, times=1):
    """2 x multiply-adds of every dot_general, scans counted as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * times * int(np.prod(equation.outvars[0].aval.shape) * np.prod([left[d] for d in contracted]))
        inner = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(part, "eqns"):
                    total += matrix_product_flops(part, inner)
                elif hasattr(part, "jaxpr"):
                    total += matrix_product_flops(part.jaxpr, inner)
    return total


@pytest.mark.parametrize("config", [SMALL, ModelConfig(num_layers=2, embed_dim=64, num_heads=2)], ids=["gqa", "plain"])
def test_flops_per_token_equal_the_matrix_products_of_the_program(config):
    denoiser = Denoiser(config, 20)
    params = jax.eval_shape(denoiser.init, jax.random.key(0))
    program = jax.make_jaxpr(lambda p, x: denoiser.logits(p, denoiser.hidden(p, x)[0]))(params, TOKENS)
    assert matrix_product_flops(program.jaxpr) == denoiser.flops(8) * TOKENS.size
    assert matrix_product_flops(program.jaxpr) != denoiser.flops(9) * TOKENS.size


def test_the_scan_over_layers_equals_a_loop_over_blocks():
    denoiser = Denoiser(SMALL, 20)
    params = denoiser.init(jax.random.key(0))
    stem_graph, block_graph, _ = denoiser._parts
    stem = nnx.merge(stem_graph, params["stem"])

    def loop(order):
        x = stem.embed(TOKENS, jnp.float32)
        for layer in order:
            block = nnx.merge(block_graph, jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"]))
            x, _ = block(
                x, rows=None, positions=jnp.arange(8)[None], mask=None, conditioning=None, key=None, cache=None
            )
        return stem.finish(x, None)

    scanned, _ = denoiser.hidden(params, TOKENS)
    np.testing.assert_allclose(scanned, loop([0, 1, 2]), atol=1e-5)
    assert np.abs(scanned - loop([1, 0, 2])).max() > 1e-3


def gradient_of(remat):
    denoiser = Denoiser(dataclasses.replace(SMALL, remat=remat), 20)
    params = denoiser.init(jax.random.key(0))

    def loss(params):
        return denoiser.token_losses(params, denoiser.hidden(params, TOKENS)[0], jnp.asarray(TOKENS)).sum()

    return jax.jit(jax.value_and_grad(loss))(params), matrix_product_flops(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)


def test_remat_changes_the_work_and_not_the_gradient():
    (value, gradient), work = gradient_of("none")
    for remat in ("elementwise", "dots", "full"):
        (other_value, other_gradient), other_work = gradient_of(remat)
        assert abs(value - other_value) <= 1e-5 * value
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())
        # Something is computed again, but no matrix product where those are kept.
        assert other_work == work if remat == "elementwise" else other_work > work
    assert gradient_of("full")[1] > gradient_of("dots")[1]


def test_dropout_acts_with_a_key_and_only_then():
    denoiser = Denoiser(dataclasses.replace(SMALL, dropout=0.5), 20)
    params = denoiser.init(jax.random.key(0))
    plain, _ = denoiser.hidden(params, TOKENS)
    first, _ = denoiser.hidden(params, TOKENS, key=jax.random.key(1))
    again, _ = denoiser.hidden(params, TOKENS, key=jax.random.key(1))
    other, _ = denoiser.hidden(params, TOKENS, key=jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - plain).max() > 1e-3 and np.abs(first - other).max() > 1e-3


def test_bfloat16_is_the_dtype_of_the_computation_and_not_of_weights_or_logits():
    denoiser = Denoiser(dataclasses.replace(SMALL, dtype="bfloat16"), 20)
    params = denoiser.init(jax.random.key(0))
    hidden, _ = denoiser.hidden(params, TOKENS)
    assert hidden.dtype == jnp.bfloat16 and denoiser.logits(params, hidden).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    wide, _ = Denoiser(SMALL, 20).hidden(params, TOKENS)
    assert 0 < np.abs(wide - hidden.astype(jnp.float32)).max() < 0.2
