"""Optimizers: optax chains with warm-up, a learning-rate schedule, decay of matrices only, and clipping."""

import jax
import jax.numpy as jnp
import optax

from dlm_jax import axes


def lr_schedule(config, num_steps):
    """Returns the learning rate as a function of the step: linear warm-up, then cosine, linear or constant.

    Args:
      config: OptimizerConfig.
      num_steps: int, length of the run.
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_lr_fraction
    after = DECAYS[config.lr_schedule](peak, final, max(1, num_steps - config.warmup_steps))
    if config.warmup_steps == 0:
        return after
    # The first step already learns: warm-up ends at the peak after warmup_steps steps.
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, max(1, config.warmup_steps - 1))
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config, num_steps, logical_axes):
    """Returns the optax transformation of an OptimizerConfig; its update takes grad_norm, the gradient's global norm.

    Args:
      config: OptimizerConfig.
      num_steps: int, length of the run, for the learning-rate schedule.
      logical_axes: tree of axis names, as of Denoiser.logical_axes; decides what is a matrix.
    """
    is_matrix = jax.tree.map(_is_matrix, logical_axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    rate = lr_schedule(config, num_steps)
    parts = [_clip(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*parts, OPTIMIZERS[config.name](config, rate, is_matrix, logical_axes))


def _clip(limit):
    """optax.clip_by_global_norm for a norm that is already known: computed again, it costs a pass over the gradient."""

    def update(grads, state, params=None, *, grad_norm, **_):
        return jax.tree.map(lambda leaf: jnp.where(grad_norm < limit, leaf, leaf / grad_norm * limit), grads), state

    return optax.GradientTransformationExtraArgs(optax.clip_by_global_norm(limit).init, update)


def _is_matrix(logical):
    return len([axis for axis in logical if axis != axes.LAYERS]) > 1


def _adamw(config, rate, is_matrix, logical_axes):
    return optax.adamw(
        rate, b1=config.beta1, b2=config.beta2, eps=config.eps, weight_decay=config.weight_decay, mask=is_matrix
    )


def _sgd(config, rate, is_matrix, logical_axes):
    return optax.sgd(rate, momentum=config.beta1 or None)


def _muon(config, rate, is_matrix, logical_axes):
    """Orthogonalised momentum for the matrices inside the blocks, AdamW for embeddings, head and vectors.

    Source: Jordan et al. 2024 (Muon), through optax.contrib.muon, with the update scaled to the size of AdamW's.
    """
    numbers = jax.tree.map(_muon_numbers, logical_axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return optax.contrib.muon(
        rate,
        beta=0.95,
        weight_decay=config.weight_decay,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        adam_weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=numbers,
        consistent_rms=0.2,
    )


def _muon_numbers(logical):
    """Input and output dimensions of a block's matrix; None for what AdamW takes."""
    if logical[0] != axes.LAYERS or not _is_matrix(logical) or None in logical:
        return None
    dims = range(1, len(logical))
    if logical[1] == axes.EMBED:  # embed -> heads, mlp
        return optax.contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=tuple(dims)[1:])
    return optax.contrib.MuonDimensionNumbers(reduction_axis=tuple(dims)[:-1], output_axis=(dims[-1],))


DECAYS = {
    "cosine": lambda peak, final, steps: optax.cosine_decay_schedule(peak, steps, alpha=final / peak),
    "linear": optax.linear_schedule,
    "constant": lambda peak, final, steps: optax.constant_schedule(peak),
}
OPTIMIZERS = {"adamw": _adamw, "muon": _muon, "sgd": _sgd}
