"""Noise schedules: alpha(t), the probability that a token is still clean at time t, with alpha(0) = 1.

| name       | alpha(t)            | weight(t) = -alpha'(t) / (1 - alpha(t)) |
|------------|---------------------|------------------------------------------|
| linear     | 1 - t               | 1 / t                                    |
| cosine     | 1 - cos(pi/2 (1-t)) | pi/2 / tan(pi/2 t)                       |
| polynomial | 1 - t^K             | K / t                                    |
| log_linear | 1 - (1 - eps) t     | 1 / t                                    |
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp


@dataclass(frozen=True)
class Schedule:
    """A noise schedule.

    Args:
      alpha: float32[...] -> float32[...], keep probability at time t; decreasing.
      weight: float32[...] -> float32[...], the NELBO weight -alpha'(t) / (1 - alpha(t)) of a masked token.
      time_at: float32[...] -> float32[...], the time at which the masked share 1 - alpha is the argument.
    """

    alpha: Callable
    weight: Callable
    time_at: Callable


def linear():
    """alpha = 1 - t. Source: MD4 (Shi et al. 2024), Table 1; LLaDA."""
    return Schedule(alpha=lambda t: 1 - t, weight=lambda t: 1 / t, time_at=lambda share: share)


def cosine():
    """alpha = 1 - cos(pi/2 (1 - t)). Source: MD4, Table 1."""
    quarter = jnp.pi / 2
    return Schedule(
        alpha=lambda t: 1 - jnp.sin(quarter * t),
        weight=lambda t: quarter / jnp.tan(quarter * t),
        time_at=lambda share: jnp.arcsin(share) / quarter,
    )


def polynomial(power):
    """alpha = 1 - t^power. Source: MD4, Table 1."""
    return Schedule(
        alpha=lambda t: 1 - t**power, weight=lambda t: power / t, time_at=lambda share: share ** (1 / power)
    )


def log_linear(epsilon=1e-3):
    """alpha = 1 - (1 - epsilon) t: a share epsilon stays clean at t = 1, as in MDLM (Sahoo et al. 2024)."""
    keep = 1 - epsilon
    return Schedule(
        alpha=lambda t: 1 - keep * t,
        weight=lambda t: 1 / t,
        time_at=lambda share: jnp.minimum(share / keep, 1.0),
    )


@functools.cache
def make_schedule(name, *, power=2.0, epsilon=1e-3):
    """Returns the named Schedule.

    Args:
      name: a key of SCHEDULES.
      power: exponent of the polynomial schedule.
      epsilon: clean share at t = 1 of the log-linear schedule.
    """
    return SCHEDULES[name](power, epsilon)


SCHEDULES = {
    "linear": lambda power, epsilon: linear(),
    "cosine": lambda power, epsilon: cosine(),
    "polynomial": lambda power, epsilon: polynomial(power),
    "log_linear": lambda power, epsilon: log_linear(epsilon),
}
