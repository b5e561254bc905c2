"""A large vocabulary in tiles: how large they are, and how to walk over them."""

import jax
import jax.numpy as jnp

# Below this many vocabulary entries the logits are small enough to be kept whole.
_WHOLE_VOCAB = 8192
# A tile is at most this share of the vocabulary: well under the 1/16 that the memory test allows.
_TILE_SHARE = 32


def default_tile(vocab_size):
    """Returns the number of vocabulary entries computed at a time."""
    if vocab_size <= _WHOLE_VOCAB:
        return vocab_size
    return -(-vocab_size // _TILE_SHARE // 128) * 128


def scan_tiles(step, carry, kernel, tile):
    """Runs a step over the rows of a head, tile by tile; the last tile may be shorter.

    Args:
      step: (carry, int32[] first token, [v, D] rows) -> (carry, out [v, ...] or None).
      carry: what the first step gets.
      kernel: [V, D].
      tile: int.
    Returns:
      (the last carry, out [V, ...] or None).
    """
    size = kernel.shape[0]
    tile = min(tile, size)
    starts = jnp.arange(size // tile) * tile
    carry, out = jax.lax.scan(
        lambda carry, first: step(carry, first, jax.lax.dynamic_slice_in_dim(kernel, first, tile)), carry, starts
    )
    out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
    if size % tile:
        first = size - size % tile
        carry, last = step(carry, first, kernel[first:])
        out = jax.tree.map(lambda *parts: jnp.concatenate(parts), out, last)
    return carry, out
