"""Measures the information curve and the costs of steps on rows of a corpus: forward passes in, plain numbers out."""

import functools

import jax
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
    reach = np.log(length - 0.5) - np.log(0.5)
    found = np.asarray([0, length - 1])
    for num in range(2, 16 * most):
        spread = length / (1 + np.exp(-np.linspace(-reach, reach, num))) - 0.5
        counts = np.unique(np.clip(np.round(spread), 0, length - 1).astype(np.int64))
        if len(counts) > most:
            break
        found = counts
    return found


_ASKED = 8  # hidden tokens of a row that are looked at where a random order leaves fewer hidden


def _late_questions(length, counts):
    """int[Q, 2], (hidden tokens, first hidden slot) beside the prefixes themselves, and int[Q], which count it is."""
    questions, which = [], []
    for index, count in enumerate(counts):
        hidden = length - count
        for turn in range(1, min(_ASKED, length) // hidden):
            questions.append((hidden, (count - turn * hidden) % length))
            which.append(index)
    return np.asarray(questions).reshape(-1, 2), np.asarray(which, int)


@functools.lru_cache(maxsize=16)
def _program(denoiser, counts, time_at, length, is_random):
    questions, _ = _late_questions(length, counts)

    @jax.jit
    def losses(params, tokens, key, segment_ids, order):
        costs, entropies = reveal.prefix_costs(denoiser, params, tokens, order, counts, time_at)
        if not is_random or not len(questions):
            return costs, entropies
        return costs, entropies, *reveal.rotated_losses(denoiser, params, tokens, order, questions, time_at)

    return losses


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
    # Orders are drawn here and handed over, so that one program measures all of them.
    drawn = np.asarray(orders.draw(order, rng.stream(key, "order"), len(rows.tokens), length))
    name = order if isinstance(order, str) else "computed"
    is_random = isinstance(order, str) and order == "random"
    program = _program(denoiser, counts, schedule.time_at, length, is_random)
    by_row, entropies, *late = likelihood.row_losses(
        functools.partial(program, params), rows, batch_size=batch_size, key=key,
        mesh=mesh, label=f"measuring {len(counts)} counts in {name} order", quiet=quiet, interval=interval,
        inputs=(drawn,), keep_in=keep_in,
    )  # fmt: skip
    counts = np.asarray(counts)
    if is_random:
        means = by_row.sum(axis=2) / (length - counts)
        if late:
            _, which = _late_questions(length, counts)
            asked = 1 + np.bincount(which, minlength=len(counts))
            for table, more in ((means, late[0]), (entropies, late[1])):
                np.add.at(table.T, which, more.T)
                table /= asked
        by_row = step_costs.exchangeable(counts, length, means)
    order = order if isinstance(order, str) else np.asarray(order).tolist()
    costs = step_costs.StepCosts(order, length, counts, by_row, np.asarray(rows.document), np.asarray(rows.num_bytes))
    return costs, entropies
