"""Which token a position gets: exact draws from its own conditional.

The mask outcome is never one of the categories: positions are picked first, then tokens, with separate keys. Noise is
drawn in float32 from 32 + 32 random bits whatever the dtype of the logits; low-range Gumbel noise drops rare tokens
and 16-bit noise is far off (Zheng et al. 2409.02908).
"""

import jax
import jax.numpy as jnp


def gumbel(key, shape):
    """Returns float32[shape] standard Gumbel noise over its whole range."""
    return jax.random.gumbel(key, shape, jnp.float32, mode="high")


def categorical(keys, logits, temperature):
    """Draws one token a row from softmax(logits / temperature).

    Args:
      keys: key[...], one a row: the draw of a row depends on its own key only.
      logits: float[..., V] of any dtype, unnormalised.
      temperature: float32[], 0 = the most probable token.
    Returns:
      int32[...].
    """
    logits = logits.astype(jnp.float32)
    draw = gumbel
    for _ in keys.shape:
        draw = jax.vmap(draw, (0, None))
    noise = draw(keys, logits.shape[-1:])
    # Multiplying the noise instead of dividing the logits covers temperature 0 without a division.
    return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)
