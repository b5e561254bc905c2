"""Learning rates, decay of matrices only, clipping, and which matrices Muon takes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlm_jax import config
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.training.optimizers import _muon_numbers, lr_schedule, make_optimizer

AXES = {"matrix": ("embed", "mlp"), "stacked": ("layers", "embed"), "blocks": ("layers", "embed", "mlp")}
PARAMS = {"matrix": jnp.ones((2, 3)), "stacked": jnp.ones((4, 2)), "blocks": jnp.ones((4, 2, 3))}


def rates(name, steps, **fields):
    schedule = lr_schedule(config.OptimizerConfig(learning_rate=1.0, lr_schedule=name, **fields), 110)
    return [float(schedule(step)) for step in steps]


def test_warmup_starts_above_zero_and_ends_at_the_peak():
    np.testing.assert_allclose(rates("constant", [0, 4, 9, 10, 99], warmup_steps=10), [0.1, 0.5, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(rates("constant", [0, 5], warmup_steps=0), [1, 1])  # variation: without warm-up


@pytest.mark.parametrize(("name", "middle"), [("cosine", 0.6), ("linear", 0.6), ("constant", 1.0)])
def test_schedules_run_from_the_peak_to_the_final_fraction(name, middle):
    have = rates(name, [10, 60, 110], warmup_steps=10, final_lr_fraction=0.2)
    np.testing.assert_allclose(have, [1, middle, 1.0 if name == "constant" else 0.2], rtol=1e-6)


def updated(grads, **fields):
    settings = config.OptimizerConfig(learning_rate=0.1, warmup_steps=0, lr_schedule="constant", **fields)
    optimizer = make_optimizer(settings, 10, AXES)
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS, grad_norm=optax.tree.norm(grads))
    return updates


def test_decay_applies_to_matrices_and_not_to_stacked_vectors():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    have = updated(zero, weight_decay=0.5)
    for name, want in {"matrix": -0.05, "blocks": -0.05, "stacked": 0.0}.items():
        np.testing.assert_allclose(have[name], want, rtol=1e-6)


def test_clipping_scales_the_whole_gradient_to_the_norm():
    grads = jax.tree.map(lambda x: 10 * x, PARAMS)
    clipped = updated(grads, name="sgd", beta1=0.0, clip_norm=2.0)
    np.testing.assert_allclose(optax.tree.norm(clipped), 0.2, rtol=1e-5)
    free = updated(grads, name="sgd", beta1=0.0, clip_norm=0.0)
    np.testing.assert_allclose(free["matrix"], -1.0, rtol=1e-6)  # variation


def test_muon_takes_the_block_matrices_and_only_them():
    model = config.ModelConfig(num_layers=1, embed_dim=8, num_heads=2, time_conditioning=True, qk_norm=True, time_dim=4)
    axes = Denoiser(model, 5).logical_axes
    is_leaf = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_leaf)
    numbers = {jax.tree_util.keystr(path, simple=True, separator="/"): _muon_numbers(leaf) for path, leaf in leaves}
    taken = {name: (n.reduction_axis, n.output_axis) for name, n in numbers.items() if n is not None}
    assert taken == {
        "blocks/attention/query": ((1,), (2, 3)),
        "blocks/attention/key": ((1,), (2, 3)),
        "blocks/attention/value": ((1,), (2, 3)),
        "blocks/attention/out": ((1, 2), (3,)),
        "blocks/mlp/gate": ((1,), (2,)),
        "blocks/mlp/up": ((1,), (2,)),
        "blocks/mlp/down": ((1,), (2,)),
    }
