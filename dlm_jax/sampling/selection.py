"""Which positions are revealed first.

| name       | first comes                                                                              |
|------------|------------------------------------------------------------------------------------------|
| random     | what an order known beforehand says: a random one, a family of information.orders, or given |
| confidence | the most probable marginal, max_v p(x_i = v | revealed)                                  |
| margin     | the largest gap between the two most probable tokens                                     |
| entropy    | the least entropy of the marginal                                                        |
| drawn      | the most probable *drawn* token (LLaDA, Dream): biased where the temperature is above 0  |

All but the last look at the marginals only, never at a drawn token, so they are exact at T = L. A selection whose order
is known beforehand asks the head only for the rows that it reveals; one that scores positions asks for all rows.
"""

import jax
import jax.numpy as jnp

from dlm_jax.config import SELECTIONS


def confidence(seen):
    """kernels.unmask.Unmasked of [B, W] -> float32[B, W], log-probability of the most probable token."""
    return seen.largest


def margin(seen):
    """Unmasked of [B, W] -> float32[B, W], the largest probability minus the second."""
    return jnp.exp(seen.largest) - jnp.exp(seen.second)


def negative_entropy(seen):
    """Unmasked of [B, W] -> float32[B, W], minus the entropy, nats."""
    return -seen.entropy


def drawn(seen):
    """Unmasked of [B, W] -> float32[B, W], log-probability of the drawn token."""
    return seen.log_prob


def turns(scores, is_candidate, spacing=1):
    """Returns int32[B, W], each candidate's place by falling score, from 0 (ties: lowest position first); W elsewhere.

    Args:
      scores: float32[B, W].
      is_candidate: bool[B, W].
      spacing: int, static: each next one is the best of those at least so far from all before it; where none is left,
        the best of the rest, and the spacing starts anew.
    """
    width = scores.shape[1]
    if spacing == 1:
        ranked = jnp.argsort(jnp.where(is_candidate, -scores, jnp.inf), axis=1, stable=True)
        return jnp.where(is_candidate, jnp.argsort(ranked, axis=1), width).astype(jnp.int32)
    places = jnp.arange(width)

    def pick(turn, state):
        found, is_left, is_near = state
        is_near = is_near & (is_left & ~is_near).any(axis=1, keepdims=True)
        is_free = is_left & ~is_near
        best = jnp.argmax(jnp.where(is_free, scores, -jnp.inf), axis=1)[:, None]
        is_best = (places == best) & is_free
        is_near = is_near | (jnp.abs(places - best) < spacing)
        return jnp.where(is_best, turn, found), is_left & ~is_best, is_near

    start = (jnp.full(scores.shape, width, jnp.int32), is_candidate, jnp.zeros(scores.shape, bool))
    return jax.lax.fori_loop(0, width, pick, start)[0]


def check(name, argument="selection"):
    """Raises ValueError unless `name` is a selection."""
    if name not in SELECTIONS:
        raise ValueError(f"{argument}={name!r}: must be one of {', '.join(SELECTIONS)}")


# "random" has none.
SCORES = {"confidence": confidence, "margin": margin, "entropy": negative_entropy, "drawn": drawn}
