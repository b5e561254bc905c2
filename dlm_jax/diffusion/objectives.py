"""Training objectives: what the denoiser is asked, and how its cross-entropies become a loss.

| name           | loss                                                         |
|----------------|--------------------------------------------------------------|
| nelbo          | bound on -log p(x), nats per token (with masking             |
|                | order_prefix: the same sum, not a bound)                     |
| cross_entropy  | mean over masked tokens, unweighted, nats per masked token   |
| autoregressive | -log p(x) left to right, nats per token                      |

An objective is a function (key, x0, segment_ids) -> Question; training/step.py asks it and sums the answers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dlm_jax.diffusion import masking, schedules


class Question(NamedTuple):
    """What the denoiser is asked; the loss is sum(weights * cross-entropy) / sum(normaliser) + constant."""

    inputs: jax.Array  # int32[B, L], tokens that the denoiser reads
    time: jax.Array  # float32[B]
    scored: jax.Array  # int32[P, R], positions within a group of B / P consecutive rows
    targets: jax.Array  # int32[P, R]
    weights: jax.Array  # float32[P, R]
    normaliser: jax.Array  # float32[], in tokens
    constant: float  # nats per token

    @property
    def rows(self):
        """The scored positions, or None where that is every position in its place."""
        return None if self.scored.shape == self.inputs.shape else self.scored


def make_objective(config, vocab_size):
    """Returns the objective of a DiffusionConfig: (key, x0, segment_ids or None) -> Question.

    Args:
      config: DiffusionConfig.
      vocab_size: V; the mask is token V.
    """
    schedule = schedules.make_schedule(config.schedule, power=config.schedule_power, epsilon=config.time_epsilon)
    corrupt, constant = MASKINGS[config.masking](config, schedule, vocab_size)
    return OBJECTIVES[config.objective](corrupt, constant, vocab_size)


def _nelbo(corrupt, constant, mask_id):
    def ask(key, x0, segment_ids=None):
        noised = corrupt(key, x0, mask_id)
        return _masked_question(noised, x0, noised.weights, jnp.float32(x0.size), constant)

    return ask


def _cross_entropy(corrupt, constant, mask_id):
    def ask(key, x0, segment_ids=None):
        noised = corrupt(key, x0, mask_id)
        weights = noised.is_masked.astype(jnp.float32)
        return _masked_question(noised, x0, weights, weights.sum(), 0.0)

    return ask


def _masked_question(noised, x0, weights, normaliser, constant):
    targets = masking.scored_rows(x0, noised.scored)
    return Question(noised.xt, noised.time, noised.scored, targets, weights, normaliser, constant)


def _autoregressive(corrupt, constant, mask_id):
    def ask(key, x0, segment_ids=None):
        batch, length = x0.shape
        return Question(
            inputs=shift_right(x0, mask_id, segment_ids),
            time=jnp.zeros(batch),
            scored=jnp.broadcast_to(jnp.arange(length), (batch, length)),
            targets=x0,
            weights=jnp.ones((batch, length)),
            normaliser=jnp.float32(x0.size),
            constant=0.0,
        )

    return ask


def shift_right(x0, mask_id, segment_ids=None):
    """Returns what an autoregressive model reads: the previous token, and the mask where nothing is known.

    Args:
      x0: int32[B, L].
      mask_id: int; the first position of a row, or of a segment, reads it.
      segment_ids: int32[B, L] or None.
    Returns:
      int32[B, L].
    """
    shifted = jnp.concatenate([jnp.full_like(x0[:, :1], mask_id), x0[:, :-1]], axis=1)
    if segment_ids is None:
        return shifted
    is_start = jnp.concatenate(
        [jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
    )
    return jnp.where(is_start, mask_id, shifted)


def _exact_count(config, schedule, vocab_size):
    return lambda key, x0, mask_id: masking.exact_count(key, x0, mask_id, schedule), 0.0


def _independent(config, schedule, vocab_size):
    def corrupt(key, x0, mask_id):
        return masking.independent(key, x0, mask_id, schedule, config.time_epsilon)

    return corrupt, masking.constant_below(schedule, config.time_epsilon, vocab_size)


def _order_prefix(config, schedule, vocab_size):
    def corrupt(key, x0, mask_id):
        return masking.order_prefix(key, x0, mask_id, schedule, config.order, config.random_order_share)

    return corrupt, 0.0


MASKINGS = {"exact_count": _exact_count, "order_prefix": _order_prefix, "independent": _independent}
OBJECTIVES = {"nelbo": _nelbo, "cross_entropy": _cross_entropy, "autoregressive": _autoregressive}
