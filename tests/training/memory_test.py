"""Training never holds the logits of a large vocabulary: no array of B L V / 16 elements in the compiled step."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp

from dlm_jax import config
from dlm_jax.aot.programs import peak_memory_bytes
from dlm_jax.bench import works
from dlm_jax.diffusion.objectives import make_objective
from dlm_jax.kernels import cross_entropy
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.training import optimizers, state, step

B, L, V = 16, 256, 32768
THRESHOLD = B * L * V // 16


def largest_array():
    """Elements of the largest array of any shape in the compiled train step, its biggest parameter being smaller."""
    run = config.from_dict(
        {
            "model": {"num_layers": 2, "embed_dim": 64, "num_heads": 2, "mlp_dim": 64},
            "data": {"length": L},
            "train": {"batch_size": B},
        }
    )
    denoiser = Denoiser(run.model, V)
    optimizer = optimizers.make_optimizer(run.optimizer, 10, denoiser.logical_axes)
    objective = make_objective(run.diffusion, V)
    train_step = step.make_train_step(denoiser, objective, optimizer, run.train, jax.random.key(0))
    abstract = jax.eval_shape(lambda key: state.init_state(denoiser, optimizer, key), jax.random.key(0))
    assert max(leaf.size for leaf in jax.tree.leaves(abstract)) < THRESHOLD
    batch = {"tokens": jax.ShapeDtypeStruct((B, L), jnp.int32)}
    text = jax.jit(train_step).lower(abstract, batch).compile().as_text()
    shapes = re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]", text)
    assert len(shapes) > 100
    return max(math.prod(int(size) for size in shape.split(",")) for shape in shapes)


def test_no_array_of_the_compiled_step_reaches_a_sixteenth_of_the_logits():
    assert largest_array() < THRESHOLD


def test_without_tiles_the_same_check_fails(monkeypatch):
    monkeypatch.setattr(cross_entropy, "default_tile", lambda vocab_size: vocab_size)
    assert largest_array() >= THRESHOLD


def peak_and_formula(vocab_size):
    """Bytes of the compiled step of reference work B, and of what it cannot do without."""
    _, large = works.reference_shapes()
    shape = dataclasses.replace(large, vocab_size=vocab_size)
    run, denoiser = shape.config, shape.denoiser
    optimizer = optimizers.make_optimizer(run.optimizer, 10, denoiser.logical_axes)
    objective = make_objective(run.diffusion, vocab_size)
    train_step = step.make_train_step(denoiser, objective, optimizer, run.train, jax.random.key(0))
    abstract = jax.eval_shape(lambda key: state.init_state(denoiser, optimizer, key), jax.random.key(0))
    batch = {"tokens": jax.ShapeDtypeStruct((run.train.batch_size, run.data.length), jnp.int32)}
    compiled = jax.jit(train_step, donate_argnums=0).lower(abstract, batch).compile()
    # Parameters, their average, two moments and the gradient; of each layer and token: the stream, queries,
    # keys, values, what attention and its projection give, and the two halves of the MLP.
    tokens = run.train.batch_size * run.data.length
    activations = tokens * run.model.num_layers * (6 * run.model.embed_dim + 2 * run.model.hidden_dim)
    return peak_memory_bytes(compiled), 4 * (5 * denoiser.num_params + activations)


def test_peak_memory_is_what_must_be_kept_and_grows_with_the_vocabulary_as_its_parameters_do():
    (small, small_formula), (large, large_formula) = peak_and_formula(32_768), peak_and_formula(131_072)
    assert small < 1.5 * small_formula and large < 1.5 * large_formula
    assert large - small < 1.2 * (large_formula - small_formula)
    # Variation: the logits of all tokens would not fit into that.
    assert small_formula + 2 * 4 * 1024 * 32_768 > 1.5 * small_formula
