"""How training masks are drawn: the absorbing (masked) process, in one of three ways.

| name         | masks of a row                                          | head runs on    | schedules |
|--------------|---------------------------------------------------------|-----------------|-----------|
| exact_count  | exactly n of L, n uniform, paired; any n equally likely | (L + 1) / 2L    | linear    |
| order_prefix | exactly n of L, n uniform, paired; the last n of an     | (L + 1) / 2L    | linear    |
|              | order of a family, the ones before it visible           |                 |           |
| independent  | each with probability 1 - alpha(t)                      | all rows        | all       |

All return a `Corruption`; nothing downstream knows which one drew it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dlm_jax import rng
from dlm_jax.information import orders


class Corruption(NamedTuple):
    """Noised tokens and what is to be scored.

    Rows are scored in P groups of B / P consecutive rows each, so that gathering stays inside a device.
    """

    xt: jax.Array  # int32[B, L], tokens with masks
    time: jax.Array  # float32[B], the time at which the schedule masks this share
    scored: jax.Array  # int32[P, R], positions within a group's B / P * L tokens
    weights: jax.Array  # float32[P, R], such that sum(weights * cross-entropy) estimates the rows' NELBO, in nats
    is_masked: jax.Array  # bool[P, R], False where a scored position is visible (its weight is 0)


def scored_rows(values, scored):
    """Returns what belongs to the scored positions; gathering stays inside a group, so nothing crosses a device.

    Args:
      values: [B, L, ...], one a token.
      scored: int32[P, R], of a Corruption.
    Returns:
      [P, R, ...].
    """
    groups = scored.shape[0]
    grouped = values.reshape(groups, -1, *values.shape[2:])
    return jnp.take_along_axis(grouped, scored.reshape(*scored.shape, *[1] * (values.ndim - 2)), axis=1)


def exact_count(key, x0, mask_id, schedule):
    """Masks exactly n tokens of one row and L + 1 - n of its partner, both sets uniformly random.

    n is uniform in 1..L and stratified over the pairs of the batch. A batch holds exactly B (L + 1) / 2 masked tokens,
    so shapes are static without padding, and the weight L / n makes the sum an unbiased estimate of the NELBO.

    Args:
      key: PRNG key.
      x0: int32[B, L], clean tokens, B even; rows 2p and 2p + 1 are a pair.
      mask_id: int.
      schedule: Schedule, used for the time of a mask count only.
    Returns:
      Corruption with P = B / 2 and R = L + 1.
    """
    masked_first = jnp.argsort(jax.random.bits(rng.stream(key, "order"), x0.shape), axis=-1)
    return _mask_counts(key, x0, mask_id, schedule, masked_first)


def order_prefix(key, x0, mask_id, schedule, order, random_order_share=0.0):
    """Masks as `exact_count` does, but always the last positions of an order: what a sampler in that order sees.

    All masked positions are scored with weight L / n. For a random order that is the NELBO; for another family it is
    a training objective only, because the masked positions are not exchangeable: the likelihood under the order,
    which scores the next position of each prefix, is `evaluation.reveal.order_losses`.

    Args:
      order: str, a family of information.orders.
      random_order_share: float in [0, 1], share of the pairs of rows that take a random order instead, so that
        the model also learns masks outside the family (prompts, infilling).
      Others as in `exact_count`.
    Returns:
      Corruption with P = B / 2 and R = L + 1.
    """
    batch, length = x0.shape
    drawn = orders.draw(order, rng.stream(key, "order"), batch, length)
    if random_order_share > 0:
        # Systematic sampling: as many pairs as the share says, up to one.
        steps = jax.random.uniform(rng.stream(key, "share")) + random_order_share * jnp.arange(batch // 2 + 1)
        is_random = jnp.repeat(jnp.diff(jnp.floor(steps)) > 0, 2)
        random = orders.draw("random", rng.stream(key, "random order"), batch, length)
        drawn = jnp.where(is_random[:, None], random, drawn)
    return _mask_counts(key, x0, mask_id, schedule, drawn[:, ::-1])


def _mask_counts(key, x0, mask_id, schedule, order):
    """Masks the first n positions of an order int32[B, L], with n and L + 1 - n in the two rows of a pair."""
    batch, length = x0.shape
    pairs = batch // 2
    offset = jax.random.randint(rng.stream(key, "count"), (), 0, length * pairs)
    count = 1 + (offset + jnp.arange(pairs) * length) % (length * pairs) // pairs  # int32[P], each uniform in 1..L
    order = order.reshape(pairs, 2, length)
    slot = jnp.arange(length + 1)[None]
    first = jnp.take_along_axis(order[:, 0], jnp.minimum(slot, length - 1), axis=1)
    second = jnp.take_along_axis(order[:, 1], jnp.clip(slot - count[:, None], 0, length - 1), axis=1)
    is_first = slot < count[:, None]
    scored = jnp.where(is_first, first, length + second)
    counts = jnp.stack([count, length + 1 - count], axis=1)  # int32[P, 2]
    weights = length / jnp.where(is_first, counts[:, :1], counts[:, 1:])
    masked = jnp.zeros((pairs, 2 * length), bool).at[jnp.arange(pairs)[:, None], scored].set(True)
    return Corruption(
        xt=jnp.where(masked.reshape(batch, length), mask_id, x0),
        time=schedule.time_at(counts.reshape(batch) / length),
        scored=scored,
        weights=weights,
        is_masked=jnp.ones_like(scored, bool),
    )


def independent(key, x0, mask_id, schedule, time_epsilon=1e-3):
    """Masks every token with probability 1 - alpha(t), t stratified over the batch in [time_epsilon, 1].

    Args:
      key: PRNG key.
      x0: int32[B, L], clean tokens.
      mask_id: int.
      schedule: Schedule.
      time_epsilon: float, smallest time; the part below it is covered by `constant_below`.
    Returns:
      Corruption with P = B and R = L.
    """
    batch, length = x0.shape
    offset = jax.random.uniform(rng.stream(key, "time"))
    unit = (offset + jnp.arange(batch) / batch) % 1.0
    time = time_epsilon + (1 - time_epsilon) * unit
    draws = jax.random.uniform(rng.stream(key, "mask"), (batch, length))
    is_masked = draws < (1 - schedule.alpha(time))[:, None]
    weight = (1 - time_epsilon) * schedule.weight(time)[:, None]
    return Corruption(
        xt=jnp.where(is_masked, mask_id, x0),
        time=time,
        scored=jnp.broadcast_to(jnp.arange(length), (batch, length)),
        weights=jnp.where(is_masked, weight, 0.0),
        is_masked=is_masked,
    )


def constant_below(schedule, time_epsilon, vocab_size):
    """Returns the bound's part for t < time_epsilon, in nats per token.

    A share 1 - alpha(time_epsilon) of the tokens is masked there and decoded uniformly, which costs log V each; with
    it the NELBO of independent masking stays an upper bound. Source: MD4, the reconstruction term.
    """
    return float((1 - schedule.alpha(time_epsilon)) * jnp.log(vocab_size))
