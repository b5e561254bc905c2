"""Measures the information curve and the costs of steps on rows of a corpus: forward passes in, plain numbers out."""

import functools

import numpy as np

from dlm_jax import rng
from dlm_jax.evaluation import likelihood, reveal
from dlm_jax.information import costs as step_costs
from dlm_jax.information import orders


def measured_counts(length, most=24):
    """Returns int64[K <= most], numbers of revealed tokens to measure at: 0, L - 1, and log-spaced from both ends.

    Args:
      length: int, L.
      most: int, at least 2; all counts where L is no larger.
    """
    if length <= most:
        return np.arange(length)
    # Evenly spaced in the log-odds of the revealed share, densified until rounding leaves `most` distinct ones.
    for num in range(most, 8 * most):
        reach = np.log(length - 0.5) - np.log(0.5)
        inner = length / (1 + np.exp(-np.linspace(-reach, reach, num)))
        counts = np.unique(np.clip(np.round(inner), 0, length - 1).astype(np.int64))
        if len(counts) > most:
            break
        found = counts
    return np.unique(np.concatenate([[0], found, [length - 1]]))


def measure(
    denoiser, params, schedule, rows, *, order, counts, batch_size, key, mesh=None, quiet=False, interval=10.0,
    keep_in=None,
):  # fmt: skip
    """Returns what steps cost on every row, in one order family.

    Args:
      denoiser, params: the model.
      schedule: diffusion Schedule, for the time of a time-conditioned model.
      rows: packing.Rows.
      order: str, a family of information.orders, or int32[L].
      counts: int64[K], numbers of revealed tokens to measure at.
      Others as in `likelihood.row_losses`.
    Returns:
      (information.costs.StepCosts, float64[N, K] mean entropies of the predictions, nats per token).
    """
    length = rows.tokens.shape[1]
    counts = tuple(int(k) for k in counts)

    def losses(params, tokens, key, segment_ids):
        chosen = orders.draw(order, rng.stream(key, "order"), *tokens.shape)
        return reveal.prefix_costs(denoiser, params, tokens, chosen, counts, schedule.time_at)

    name = order if isinstance(order, str) else "computed"
    by_row, entropies = likelihood.row_losses(
        functools.partial(losses, params), rows, batch_size=batch_size, key=key, mesh=mesh,
        label=f"measuring {len(counts)} counts in {name} order", quiet=quiet, interval=interval, keep_in=keep_in,
    )  # fmt: skip
    counts = np.asarray(counts)
    if isinstance(order, str) and order == "random":
        by_row = step_costs.exchangeable(counts, length, by_row.sum(axis=2) / (length - counts))
    order = order if isinstance(order, str) else np.asarray(order).tolist()
    costs = step_costs.StepCosts(order, length, counts, by_row, np.asarray(rows.document), np.asarray(rows.num_bytes))
    return costs, entropies
