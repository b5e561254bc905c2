"""Keys and values that are kept between calls, so that a call need not look at every token again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KeyValueCache(NamedTuple):
    """What the layers know of L positions; a call writes those of its own tokens, at consecutive positions.

    Whether a key may be seen follows from the model's attention and the positions: bidirectional models see all of
    them, so all must have been written; block-causal and causal models never see a position after their own block.
    """

    keys: jax.Array  # [N, B, G, L, K], rotated
    values: jax.Array  # [N, B, G, L, K]


def empty(config, batch_size, length, dtype):
    """Returns a KeyValueCache of zeros.

    Args:
      config: ModelConfig.
      batch_size, length: B, L.
      dtype: of the computation.
    """
    shape = (config.num_layers, batch_size, config.kv_heads, length, config.head_dim)
    return KeyValueCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def write(kept, new, start):
    """Returns [B, G, L, K] `kept` with [B, G, W, K] `new` at positions start .. start + W - 1."""
    return jax.lax.dynamic_update_slice_in_dim(kept, new.astype(kept.dtype), start, axis=2)
