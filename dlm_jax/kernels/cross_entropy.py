"""Cross-entropy of a large vocabulary without the logits: the head product tile by tile over the vocabulary.

Forward keeps a running log-sum-exp; backward computes each tile's logits again. Peak memory holds [rows, tile], never
[rows, V].
"""

import functools

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


def cross_entropy(hidden, kernel, targets, *, tile=None):
    """Returns -log softmax(hidden kernel^T)[target], in nats, float32.

    Args:
      hidden: [..., R, D].
      kernel: float32[V, D], the output head.
      targets: int32[..., R] in [0, V).
      tile: vocabulary entries at a time; None for `default_tile(V)`. The result does not depend on it beyond rounding.
    Returns:
      float32[..., R].
    """
    tile = tile or default_tile(kernel.shape[0])
    if tile >= kernel.shape[0]:
        return cross_entropy_reference(hidden, kernel, targets)
    return _tiled(hidden, kernel, targets, tile)


def cross_entropy_and_entropy(hidden, kernel, targets, *, tile=None):
    """Returns (-log p(target), entropy of p), p = softmax(hidden kernel^T), both float32[..., R] in nats.

    For measuring: it has no derivative of its own. Arguments as in `cross_entropy`.
    """
    size = kernel.shape[0]
    tile = min(tile or default_tile(size), size)

    def add_tile(carry, starts):
        largest, total, weighted, picked = carry
        _, _, logits = _tile_logits(hidden, kernel, *starts, tile)
        new_largest = jnp.maximum(largest, logits.max(axis=-1))
        shrink = jnp.exp(largest - new_largest)
        mass = jnp.exp(logits - new_largest[..., None])
        total = total * shrink + mass.sum(axis=-1)
        weighted = weighted * shrink + jnp.where(mass > 0, mass * logits, 0.0).sum(axis=-1)
        offset = targets - starts[0]
        inside = (targets >= starts[1]) & (offset < tile)
        here = jnp.take_along_axis(logits, jnp.clip(offset, 0, tile - 1)[..., None], axis=-1)[..., 0]
        return (new_largest, total, weighted, jnp.where(inside, here, picked)), None

    shape = targets.shape
    start = (jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(shape))
    (largest, total, weighted, picked), _ = jax.lax.scan(add_tile, start, _tiles(size, tile))
    log_normaliser = largest + jnp.log(total)
    return log_normaliser - picked, log_normaliser - weighted / total


def cross_entropy_reference(hidden, kernel, targets):
    """The same as `cross_entropy`, with all logits at once."""
    logits = jnp.einsum("...d,vd->...v", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def _tiles(vocab_size, tile):
    """Start of each tile; the last one is moved back to end at V, its overlap counted only once."""
    starts = jnp.minimum(jnp.arange(-(-vocab_size // tile)) * tile, vocab_size - tile)
    return starts, jnp.arange(-(-vocab_size // tile)) * tile


def _tile_logits(hidden, kernel, start, first_new, tile):
    rows = jax.lax.dynamic_slice_in_dim(kernel, start, tile, axis=0)
    logits = jnp.einsum("...d,vd->...v", hidden, rows.astype(hidden.dtype), preferred_element_type=jnp.float32)
    ids = start + jnp.arange(tile)
    return rows, ids, jnp.where(ids >= first_new, logits, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _tiled(hidden, kernel, targets, tile):
    return _tiled_forward(hidden, kernel, targets, tile)[0]


def _tiled_forward(hidden, kernel, targets, tile):
    def add_tile(carry, starts):
        largest, total, picked = carry
        _, _, logits = _tile_logits(hidden, kernel, *starts, tile)
        new_largest = jnp.maximum(largest, logits.max(axis=-1))
        total = total * jnp.exp(largest - new_largest) + jnp.exp(logits - new_largest[..., None]).sum(axis=-1)
        offset = targets - starts[0]
        inside = (targets >= starts[1]) & (offset < tile)
        here = jnp.take_along_axis(logits, jnp.clip(offset, 0, tile - 1)[..., None], axis=-1)[..., 0]
        return (new_largest, total, jnp.where(inside, here, picked)), None

    shape = targets.shape
    start = (jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros(shape))
    (largest, total, picked), _ = jax.lax.scan(add_tile, start, _tiles(kernel.shape[0], tile))
    log_normaliser = largest + jnp.log(total)
    return log_normaliser - picked, (hidden, kernel, targets, log_normaliser)


def _tiled_backward(tile, residuals, cotangent):
    hidden, kernel, targets, log_normaliser = residuals

    def add_tile(carry, starts):
        hidden_grad, kernel_grad = carry
        rows, ids, logits = _tile_logits(hidden, kernel, *starts, tile)
        probabilities = jnp.exp(logits - log_normaliser[..., None])
        is_target = (ids == targets[..., None]) & (ids >= starts[1])
        logits_grad = ((probabilities - is_target) * cotangent[..., None]).astype(hidden.dtype)
        hidden_grad += jnp.einsum(
            "...v,vd->...d", logits_grad, rows.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        flat = logits_grad.reshape(-1, tile)
        rows_grad = jnp.einsum(
            "rv,rd->vd", flat, hidden.reshape(-1, hidden.shape[-1]), preferred_element_type=jnp.float32
        )
        rows_grad += jax.lax.dynamic_slice_in_dim(kernel_grad, starts[0], tile, axis=0)
        kernel_grad = jax.lax.dynamic_update_slice_in_dim(kernel_grad, rows_grad, starts[0], axis=0)
        return (hidden_grad, kernel_grad), None

    start = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(kernel.shape, jnp.float32))
    (hidden_grad, kernel_grad), _ = jax.lax.scan(add_tile, start, _tiles(kernel.shape[0], tile))
    return hidden_grad.astype(hidden.dtype), kernel_grad.astype(kernel.dtype), None


_tiled.defvjp(_tiled_forward, _tiled_backward)
