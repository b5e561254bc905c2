"""Steps that are not taken: a loss or gradient that is not finite, or far above the usual, changes nothing.

The step decides on the device, so bad values never reach a parameter; the loop reads the counts and follows the policy
`train.bad_steps`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

_MEMORY = 50.0  # steps over which the usual is averaged
_WARM = 50  # steps before anything counts as unusual


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guard:
    """What is usual, and how many steps were not taken."""

    mean: jax.Array  # float32[2], of the loss (nats per token) and the gradient's norm, over the steps taken
    variance: jax.Array  # float32[2]
    taken: jax.Array  # int32[], steps taken
    in_a_row: jax.Array  # int32[], steps not taken since the last that was
    skipped: jax.Array  # int32[], steps not taken
    first_bad: jax.Array  # int32[], the first step not taken since this process restored its state; -1 = none


def fresh():
    """Returns the Guard before the first step."""
    zero = np.int32(0)
    return Guard(np.zeros(2, np.float32), np.zeros(2, np.float32), zero, zero, zero, np.int32(-1))


def judge(guard, step, loss, grad_norm, spike_sigmas):
    """Returns (bool[] whether the step must not be taken, the next Guard).

    Args:
      guard: Guard.
      step: int32[], finished steps.
      loss: float32[], nats per token.
      grad_norm: float32[].
      spike_sigmas: float, so many standard deviations above the mean are a spike; 0 = only what is not finite is bad.
    """
    values = jnp.stack([loss, grad_norm]).astype(jnp.float32)
    is_bad = ~jnp.all(jnp.isfinite(values))
    if spike_sigmas:
        limit = guard.mean + spike_sigmas * jnp.sqrt(guard.variance)
        is_bad |= (guard.taken >= _WARM) & jnp.any(values > limit)
    share = jnp.maximum(1 / (1.0 + guard.taken), 1 / _MEMORY)
    change = jnp.where(is_bad, 0.0, values - guard.mean)
    bad = is_bad.astype(jnp.int32)
    return is_bad, Guard(
        mean=guard.mean + share * change,
        variance=jnp.where(is_bad, guard.variance, (1 - share) * (guard.variance + share * change**2)),
        taken=guard.taken + 1 - bad,
        in_a_row=bad * (guard.in_a_row + 1),
        skipped=guard.skipped + bad,
        first_bad=jnp.where(is_bad & (guard.first_bad < 0), step, guard.first_bad),
    )


def counts(guard):
    """Returns what the loop must know of a Guard, {name: int32[]}."""
    return {"skipped_steps": guard.skipped, "skipped_in_a_row": guard.in_a_row, "first_skipped_step": guard.first_bad}


def to_meta(guard):
    """Returns a Guard as plain numbers, exact in JSON."""
    return {name: np.asarray(value).tolist() for name, value in dataclasses.asdict(jax.device_get(guard)).items()}


def from_meta(values):
    """Returns the Guard that `to_meta` wrote, with no first bad step yet; a fresh one where there is none."""
    start = dataclasses.asdict(fresh())
    given = {name: np.asarray((values or {}).get(name, value), value.dtype) for name, value in start.items()}
    return Guard(**{**given, "first_bad": start["first_bad"]})
