"""Which positions are revealed now.

| name       | positions                                                                |
|------------|--------------------------------------------------------------------------|
| random     | known before the first step: a random order, or one that is given         |
| confidence | the most probable marginal, max_v p(x_i = v | revealed), first            |

A selection that knows its order beforehand asks the head only for the rows it reveals; one that scores positions asks
for all rows. Scores come from the marginals, never from a drawn token, so every selection is exact at T = L.
"""

import jax.numpy as jnp


def confidence(log_p):
    """float32[B, L, V], log-probabilities -> float32[B, L], log of the largest one."""
    return log_p.max(axis=-1)


def best_first(scores, is_masked):
    """Returns int32[B, L], masked positions by falling score, then the visible ones; ties by lowest position."""
    return jnp.argsort(jnp.where(is_masked, -scores, jnp.inf), axis=-1, stable=True)


def is_scored(name):
    """Returns whether a selection needs the marginals of every masked position."""
    return SCORES[name] is not None


def check(name, argument="selection"):
    """Raises ValueError unless `name` is a selection."""
    if name not in SCORES:
        raise ValueError(f"{argument}={name!r}: must be one of {', '.join(SCORES)}")


# None: the order is known beforehand.
SCORES = {"random": None, "confidence": confidence}
