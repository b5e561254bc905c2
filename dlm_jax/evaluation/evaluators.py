"""Evaluations of a run, as values: functions (params, step) -> {name: number} for the training loop, and the table
of `dlm evaluate`."""

import numpy as np

from dlm_jax import rng
from dlm_jax.data.packing import Rows
from dlm_jax.diffusion import schedules
from dlm_jax.evaluation import likelihood
from dlm_jax.information.schedules import uniform_sizes

# Prefixes of an order to look at, per eval.num_orders: each scores one token, so the head costs nothing.
_COUNTS_PER_ORDER = 8


def spread_rows(rows, count):
    """Returns `count` rows spread evenly over a split (all for 0 or None): as many documents as can be had."""
    if not count or count >= len(rows):
        return rows
    chosen = np.linspace(0, len(rows) - 1, count).round().astype(int)
    segments = None if rows.segment_ids is None else rows.segment_ids[chosen]
    return Rows(rows.tokens[chosen], rows.num_bytes[chosen], rows.document[chosen], segments)


def schedule_of(config):
    """Returns the noise schedule of a RunConfig."""
    diffusion = config.diffusion
    return schedules.make_schedule(diffusion.schedule, power=diffusion.schedule_power, epsilon=diffusion.time_epsilon)


def is_autoregressive(config):
    """Returns whether a RunConfig trains the autoregressive baseline."""
    return config.diffusion.objective == "autoregressive"


def order_of(config):
    """Returns the family of orders that a RunConfig trains for: the one to sample and to evaluate in."""
    diffusion = config.diffusion
    return diffusion.order if diffusion.masking == "order_prefix" else "random"


def likelihood_summary(config, denoiser, params, rows, key, *, mesh=None, quiet=False):
    """Returns `likelihood.summarize` of the run's own likelihood, and in which order tokens are revealed ("order").

    A bound over all orders; for masking "order_prefix" the likelihood one token at a time under that order family
    (a bound too, named by its order); exact for the autoregressive baseline.

    Args:
      config: RunConfig.
      denoiser, params: the model.
      rows: packing.Rows.
      key: PRNG key.
      mesh: Mesh or None.
      quiet: no progress.
    """
    order = order_of(config)
    if is_autoregressive(config):
        order = "left_to_right"
        losses, label = likelihood.autoregressive(denoiser, params), "evaluating left to right"
    elif order != "random":
        counts = _COUNTS_PER_ORDER * config.eval.num_orders
        losses = likelihood.one_by_one(denoiser, params, schedule_of(config), order, counts)
        label = f"evaluating the {order} order"
    else:
        losses = likelihood.bound(denoiser, params, schedule_of(config), config.eval.num_orders)
        label = "evaluating the bound"
    nats = likelihood.row_losses(
        losses, rows, batch_size=config.eval.batch_size, key=rng.stream(key, "bound"), mesh=mesh, label=label,
        quiet=quiet, interval=config.log.progress_seconds,
    )  # fmt: skip
    return {"order": order, **likelihood.summarize(nats, rows.num_bytes, rows.document, rows.tokens.shape[1])}


def t_step_summary(config, denoiser, params, rows, key, num_steps, *, mesh=None, quiet=False):
    """Returns `likelihood.summarize` of the T-step sampler with uniform sizes, in the order trained for.

    Args:
      num_steps: T.
      Others as in `likelihood_summary`.
    """
    sizes = uniform_sizes(config.data.length, num_steps)
    losses = likelihood.t_step(denoiser, params, schedule_of(config), sizes, order_of(config))
    nats = likelihood.row_losses(
        losses, rows, batch_size=config.eval.batch_size, key=rng.stream(key, "t_step"), mesh=mesh,
        label=f"evaluating {num_steps} steps", quiet=quiet, interval=config.log.progress_seconds,
    )  # fmt: skip
    return likelihood.summarize(nats, rows.num_bytes, rows.document, rows.tokens.shape[1])


def during_training(run):
    """Returns the evaluators of a Run: validation likelihood on at most eval.num_rows rows."""
    rows = spread_rows(run.corpus.validation, run.config.eval.num_rows)
    key = rng.stream(run.root_key, "evaluate")

    def evaluate(params, step):
        summary = likelihood_summary(run.config, run.denoiser, params, rows, key, mesh=run.mesh, quiet=True)
        return {f"validation_{name}": summary[name] for name in ("nll_nats_per_token", "stderr", "bits_per_byte")}

    return [evaluate]


def t_step_rows(config, rows):
    """Returns the rows on which T-step likelihoods are measured."""
    return spread_rows(rows, config.eval.t_step_rows)
