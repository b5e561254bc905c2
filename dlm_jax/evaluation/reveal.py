"""Losses of tokens given some others: the one place where evaluation runs forward passes.

An order says when each position is revealed: order[b, j] is the j-th position of row b. Everything is a question of
the form: the first k positions of the order are visible, what do the others cost?
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax import rng
from dlm_jax.diffusion import masking, objectives

_MAX_GROUPS = 4  # of counts; see prefix_costs


def ranks(order):
    """Returns int32[B, L], when each position is revealed: the inverse of an order."""
    return jnp.argsort(order, axis=-1)


def losses_given_prefix(denoiser, params, tokens, order, start, stop, num_slots, time_at):
    """Returns what the tokens in slots start..stop-1 of the order cost, given those before.

    Args:
      denoiser: Denoiser or PlainDenoiser.
      params: its parameters.
      tokens: int32[B, L].
      order: int32[B, L].
      start, stop: int32[], first slot scored and the one after the last; earlier slots are visible, later ones hidden.
      num_slots: int, static, at least stop - start.
      time_at: masked share -> time, of the schedule.
    Returns:
      float32[B, num_slots], nats; 0 beyond `stop`.
    """
    batch, length = tokens.shape
    xt = jnp.where(ranks(order) < start, tokens, denoiser.mask_id)
    time = jnp.broadcast_to(time_at((length - start) / length), (batch,)) if denoiser.needs_time else None
    padded = jnp.pad(order, ((0, 0), (0, num_slots)))  # so that a slice near the end is never moved back
    rows = jax.lax.dynamic_slice_in_dim(padded, start, num_slots, axis=1)
    hidden, _ = denoiser.hidden(params, xt, rows=rows, time=time)
    losses = denoiser.token_losses(params, hidden, jnp.take_along_axis(tokens, rows, axis=1))
    return jnp.where(jnp.arange(num_slots) < stop - start, losses, 0.0)


def prefix_costs(denoiser, params, tokens, order, counts, time_at):
    """Returns what revealing costs from every measured number of revealed tokens, all hidden tokens scored.

    One order a row and its nested prefixes: the same noise enters every count, which is what makes differences
    between counts, and so between schedules, precise.

    Args:
      order: int32[B, L].
      counts: int[K], static, increasing, the first is 0: how many tokens of the order are visible.
      Others as in `losses_given_prefix`.
    Returns:
      costs: float32[B, K, K], nats of the slots counts[j] .. counts[j + 1] - 1 given the first counts[i] (0 for j < i).
      entropies: float32[B, K], nats, mean entropy of the model's predictions for the hidden tokens.
    """
    batch, length = tokens.shape
    counts = np.asarray(counts)
    cell = jnp.asarray(np.searchsorted(counts, np.arange(length), side="right") - 1)
    by_turn = ranks(order)
    costs, entropies = [], []
    # In a few groups of counts, each padded to its longest question: one program a group instead of one a count.
    for group in np.array_split(counts, min(_MAX_GROUPS, len(counts))):
        num_slots = int(length - group[0])

        def ask(_, start, num_slots=num_slots):
            xt = jnp.where(by_turn < start, tokens, denoiser.mask_id)
            time = jnp.broadcast_to(time_at((length - start) / length), (batch,)) if denoiser.needs_time else None
            slots = length - num_slots + jnp.arange(num_slots)
            rows = order[:, length - num_slots :]
            hidden, _ = denoiser.hidden(params, xt, rows=rows, time=time)
            targets = jnp.take_along_axis(tokens, rows, axis=1)
            losses, entropy = denoiser.token_losses_and_entropies(params, hidden, targets)
            is_hidden = slots >= start
            losses = jnp.where(is_hidden, losses, 0.0)
            by_cell = jax.ops.segment_sum(losses.T, cell[slots], len(counts), indices_are_sorted=True).T
            return None, (by_cell, jnp.where(is_hidden, entropy, 0.0).sum(axis=1) / (length - start))

        _, (by_cell, entropy) = jax.lax.scan(ask, None, jnp.asarray(group, jnp.int32))
        costs.append(by_cell)
        entropies.append(entropy)
    return jnp.concatenate(costs).swapaxes(0, 1), jnp.concatenate(entropies).T


def rotated_losses(denoiser, params, tokens, order, questions, time_at):
    """Returns mean losses of the few tokens that a random order leaves hidden near its end, asked several times.

    One row has a single hidden token at L - 1 revealed, so its mean is noisy; a rotation of the row's order hides
    other tokens. Unbiased for random orders only.

    Args:
      order: int32[B, L], uniformly random.
      questions: int[Q, 2], static: (how many tokens are hidden, first hidden slot); they may wrap around the end.
      Others as in `losses_given_prefix`.
    Returns:
      float32[B, Q], float32[B, Q]: mean loss and mean entropy of the hidden tokens, nats.
    """
    batch, length = tokens.shape
    num_slots = int(np.max(np.asarray(questions)[:, 0]))
    by_turn = ranks(order)

    def ask(_, question):
        hidden_count, first = question
        after = jnp.mod(by_turn - first, length)  # slots from the first hidden one on
        xt = jnp.where(after < hidden_count, denoiser.mask_id, tokens)
        time = jnp.broadcast_to(time_at(hidden_count / length), (batch,)) if denoiser.needs_time else None
        rows = jnp.take(order, jnp.mod(first + jnp.arange(num_slots), length), axis=1)
        hidden, _ = denoiser.hidden(params, xt, rows=rows, time=time)
        targets = jnp.take_along_axis(tokens, rows, axis=1)
        answers = denoiser.token_losses_and_entropies(params, hidden, targets)
        is_hidden = jnp.arange(num_slots) < hidden_count
        return None, tuple(jnp.where(is_hidden, part, 0.0).sum(axis=1) / hidden_count for part in answers)

    _, (losses, entropies) = jax.lax.scan(ask, None, jnp.asarray(questions, jnp.int32))
    return losses.T, entropies.T


def t_step_losses(denoiser, params, tokens, order, boundaries, max_size, time_at):
    """Returns -log p(tokens | order) of the T-step sampler: step t reveals slots boundaries[t]..boundaries[t+1]-1.

    Args:
      boundaries: int32[T + 1], from 0 to L (or to the number of tokens that count).
      max_size: int, static, the largest step.
      Others as in `losses_given_prefix`.
    Returns:
      float32[T, B], nats a step; their sum over T is the negative log-likelihood, exact given the order.
    Source: the chain rule over steps, inside a step independent draws given what is revealed.
    """

    def step(_, bounds):
        losses = losses_given_prefix(denoiser, params, tokens, order, bounds[0], bounds[1], max_size, time_at)
        return None, losses.sum(axis=1)

    _, losses = jax.lax.scan(step, None, (boundaries[:-1], boundaries[1:]))
    return losses


def order_losses(denoiser, params, tokens, order, key, num_counts, time_at):
    """Returns -log p(tokens | order) of revealing one token at a time, from some of its L terms.

    Args:
      order: int32[B, L].
      key: PRNG key of the terms: one offset a call, then every (L / num_counts)-th prefix.
      num_counts: int, static; L or more: all terms, exact. Fewer: unbiased.
      Others as in `losses_given_prefix`.
    Returns:
      float32[B], nats a row.
    Source: the chain rule in the given order.
    """
    length = tokens.shape[1]
    num_counts = min(num_counts, length)
    offset = jax.random.uniform(key) if num_counts < length else 0.0
    starts = jnp.minimum(jnp.floor((jnp.arange(num_counts) + offset) * (length / num_counts)), length - 1)

    def term(_, start):
        losses = losses_given_prefix(denoiser, params, tokens, order, start, start + 1, 1, time_at)
        return None, losses[:, 0]

    _, losses = jax.lax.scan(term, None, starts.astype(jnp.int32))
    return losses.sum(axis=0) * (length / num_counts)


def bound_losses(denoiser, params, tokens, key, num_orders, schedule):
    """Returns a Monte Carlo estimate of each row's likelihood bound (any-order, one token at a time).

    Every row is masked `num_orders` times with n tokens and as often with L + 1 - n, n stratified over the row's
    draws and over the batch; masked tokens are weighted L / n. Unbiased for the NELBO, row by row.

    Args:
      tokens: int32[B, L].
      key: PRNG key.
      num_orders: int, static.
      schedule: diffusion Schedule, for the time of a time-conditioned model.
    Returns:
      float32[B], nats a row.
    Source: exact counts are the continuous-time NELBO of any schedule (Ou et al. 2024, Eq. 4.4; LLaDA, Eq. 6).
    """
    batch = len(tokens)

    # Pair p = k * B + b masks row b for the k-th time: the counts of one row are then evenly spread.
    paired = jnp.tile(jnp.repeat(tokens, 2, axis=0), (num_orders, 1))
    noised = masking.exact_count(key, paired, denoiser.mask_id, schedule)
    time = noised.time if denoiser.needs_time else None
    hidden, _ = denoiser.hidden(params, noised.xt, rows=noised.scored, time=time)
    losses = denoiser.token_losses(params, hidden, masking.scored_rows(paired, noised.scored))
    per_pair = jnp.sum(noised.weights * losses, axis=1) / 2
    return per_pair.reshape(num_orders, batch).mean(axis=0)


def prefix_losses(denoiser, params, tokens, key, count, boundaries, num_orders, time_at, *, is_bound):
    """Returns the nats of the first `count` tokens of each row, the others staying hidden.

    Args:
      tokens: int32[B, L]; only the first `count` positions are read.
      key: PRNG key.
      count: int, static.
      boundaries: int[T + 1], static, of the steps, ending at `count`.
      num_orders: int, static, random orders to average over.
      time_at: masked share -> time.
      is_bound: instead of all steps, draw for each order one number of revealed tokens and its mirror image, and
        weight the cost of the rest: an unbiased estimate of the mean over complete orders, for two passes instead of
        `count`.
    Returns:
      float32[B].
    """
    batch, length = tokens.shape
    hidden_tail = jnp.broadcast_to(jnp.arange(count, length), (batch, length - count))

    def one_order(order_key):
        order = jnp.concatenate([rng.random_orders(rng.stream(order_key, "order"), batch, count), hidden_tail], axis=1)
        if not is_bound:
            steps = jnp.asarray(boundaries, jnp.int32)
            size = max(int(b) - int(a) for a, b in itertools.pairwise(boundaries))
            return t_step_losses(denoiser, params, tokens, order, steps, size, time_at).sum(axis=0)
        revealed = jax.random.randint(rng.stream(order_key, "count"), (), 0, count)

        def masked(start):
            losses = losses_given_prefix(denoiser, params, tokens, order, start, jnp.int32(count), count, time_at)
            return losses.sum(axis=1) * count / (count - start)

        return (masked(revealed) + masked(count - 1 - revealed)) / 2

    keys = jax.vmap(lambda index: rng.stream(key, "orders", index))(jnp.arange(num_orders))
    return jax.lax.map(one_order, keys).mean(axis=0)


def autoregressive_losses(denoiser, params, tokens, segment_ids=None):
    """Returns float32[B, L], -log p of each token given those to its left, in nats; exact."""
    inputs = objectives.shift_right(tokens, denoiser.mask_id, segment_ids)
    hidden, _ = denoiser.hidden(params, inputs, segment_ids=segment_ids)
    return denoiser.token_losses(params, hidden, tokens)
