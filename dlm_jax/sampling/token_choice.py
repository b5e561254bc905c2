"""Which token a position gets: exact draws from its own conditional, or from what filters leave of it.

The mask outcome is never one of the categories: positions are picked first, then tokens, with separate keys. Noise is
drawn in float32 from 48 random bits whatever the dtype of the logits; low-range Gumbel noise drops rare tokens
and 16-bit noise is far off (Zheng et al. 2409.02908). `NOISE["published"]` and `published_mixture` do what old
float32 samplers did, to compare with published figures only.
"""

import jax
import jax.numpy as jnp

from dlm_jax.kernels import noise


def gumbel(key, shape):
    """Returns float32[shape] standard Gumbel noise over its whole range."""
    return jax.random.gumbel(key, shape, jnp.float32, mode="high")


def low_range_gumbel(key, shape):
    """Returns float32[shape] Gumbel noise from 23 bits: never above 15.95."""
    return jax.random.gumbel(key, shape, jnp.float32, mode="low")


def low_range_of_rows(keys, size):
    """Returns float32[..., size] of it, one key[...] a row."""
    draw = low_range_gumbel
    for _ in keys.shape:
        draw = jax.vmap(draw, (0, None))
    return draw(keys, (size,))


# numerics -> (keys[...], V) -> float32[..., V] Gumbel noise; a row's depends on its own key only.
NOISE = {"exact": noise.gumbel_of_rows, "published": low_range_of_rows}


def keep_likely(logits, temperature, *, top_k=None, top_p=None):
    """Returns the logits with -inf for tokens that the filters leave out; ties with the last one kept stay.

    Temperature comes first, then top-k, then top-p, as in most samplers of text. Nothing is sorted: the limit is
    found by bisection over the bit patterns of float32, as in MD4.

    Args:
      logits: float32[..., V].
      temperature: float32[]; at 0 the most probable token alone is kept.
      top_k: int32[] or None, so many most probable tokens.
      top_p: float32[] or None, the most probable tokens that together have at least this probability.
    """
    weights = jnp.exp(_scaled(logits, temperature))  # of the most probable token: 1
    if top_k is not None:
        limit = _largest_limit(weights, lambda kept: kept.sum(axis=-1) >= top_k)
        weights = jnp.where(weights >= limit, weights, 0.0)
    if top_p is not None:
        total = weights.sum(axis=-1)
        limit = _largest_limit(weights, lambda kept: jnp.where(kept, weights, 0.0).sum(axis=-1) >= top_p * total)
        weights = jnp.where(weights >= limit, weights, 0.0)
    return jnp.where(weights > 0, logits, -jnp.inf)


def _scaled(logits, temperature):
    """(logits - the largest) / temperature; at temperature 0: 0 for the largest, -inf elsewhere."""
    below = logits - logits.max(axis=-1, keepdims=True)
    return jnp.where(below == 0, 0.0, below / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny))


def _largest_limit(weights, is_enough):
    """float32[..., 1], the largest limit for which the weights at or above it are enough; 0 where none is.

    Non-negative floats are ordered as their bit patterns are, so 31 halvings of the pattern find it exactly.
    """

    def halve(_, bounds):
        low, high = bounds  # enough at low; not at high
        middle = low + (high - low) // 2
        limit = jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = is_enough(weights >= limit[..., None])
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    shape = weights.shape[:-1]
    one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32)
    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.zeros(shape, jnp.int32), jnp.full(shape, one + 1)))
    return jax.lax.bitcast_convert_type(low, jnp.float32)[..., None]


def published_mixture(keys, logits, temperature, share, convention):
    """Draws a token or "stay masked" in one float32 draw, as MD4 and MDLM did: rare tokens are all but lost.

    Args:
      keys: key[...].
      logits: float32[..., V].
      temperature: float32[].
      share: float32[], probability of being revealed.
      convention: "md4" (categorical of log-probabilities, low-range Gumbel noise) or "mdlm" (probabilities divided by
        1e-10 - log(u + 1e-10)).
    Returns:
      int32[...], V = stay masked.
    Source: md4/models/diffusion/md4.py `mean_sample_step`; mdlm/diffusion.py `_sample_categorical`.
    """
    log_p = jax.nn.log_softmax(_scaled(logits, temperature), axis=-1)
    p = jnp.concatenate([share * jnp.exp(log_p), jnp.broadcast_to(1 - share, (*log_p.shape[:-1], 1))], axis=-1)
    if convention == "md4":
        return jnp.argmax(jnp.log(p) + low_range_of_rows(keys, p.shape[-1]), axis=-1).astype(jnp.int32)
    draw = jax.random.uniform
    for _ in keys.shape:
        draw = jax.vmap(draw, (0, None))
    uniform = draw(keys, p.shape[-1:])
    return jnp.argmax(p / (1e-10 - jnp.log(uniform + 1e-10)), axis=-1).astype(jnp.int32)
