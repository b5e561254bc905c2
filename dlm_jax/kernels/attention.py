"""Attention in [B, H, L, K] layout: one function, one implementation a platform, one reference.

| name      | platform | how                                                                              |
|-----------|----------|----------------------------------------------------------------------------------|
| reference | any      | all scores, float32                                                              |
| batched   | cpu      | batched matrix products; backward in chunks of rows whose scores stay in cache    |
| library   | gpu, tpu | jax.nn.dot_product_attention, where the two below do not apply                    |
| cudnn     | gpu      | the same through cuDNN: 16-bit, no mask                                          |
| splash    | tpu      | Pallas splash attention with a full mask, inside shard_map where there is a mesh  |
"""

import ctypes.util
import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from dlm_jax import axes
from dlm_jax.kernels import product
from dlm_jax.parallel.sharding import RULES, shard_by

# Scores of one chunk of the backward pass; a few such arrays fit in the cache of a CPU core.
_CHUNK_BYTES = 4 << 20
_SPLASH_BLOCK = 512


def attention(q, k, v, *, mask=None, platform=None, implementation=None):
    """Returns softmax(q k^T / sqrt(K)) v, computed in float32.

    Args:
      q: [B, H, R, K] queries.
      k: [B, G, L, K] keys; G divides H, and each group of H / G query heads shares one key head.
      v: [B, G, L, K] values.
      mask: bool broadcastable to [B, 1, R, L], True where a query may look, or None for everywhere. Every query must
        see at least one key.
      platform: "cpu", "gpu" or "tpu", or None for that of the devices at hand.
      implementation: a name in IMPLEMENTATIONS, or None for the platform's best.
    Returns:
      [B, H, R, K] in the dtype of q.
    """
    if implementation is None:
        implementation = best_implementation(platform or jax.default_backend(), q, k, mask)
    return IMPLEMENTATIONS[implementation](q, k, v, mask)


def best_implementation(platform, q, k, mask):
    """Returns the name of the fastest implementation that a platform has for these arguments."""
    if platform == "cpu":
        return "batched"
    if mask is None and platform == "tpu" and q.shape[2] % 128 == 0 and k.shape[2] % 128 == 0:
        return "splash"
    is_narrow = q.dtype.itemsize == 2 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    if mask is None and platform == "gpu" and is_narrow and _has_cudnn():
        return "cudnn"
    return "library"


@functools.cache
def _has_cudnn():
    """Whether cuDNN is installed, as a Python package or on the system."""
    is_package = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cudnn")
    return bool(is_package or ctypes.util.find_library("cudnn"))


def _reference(q, k, v, mask):
    group = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(x, group, axis=1).astype(jnp.float32) for x in (k, v))
    scores = jnp.einsum("bhrk,bhlk->bhrl", q.astype(jnp.float32), k) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jnp.einsum("bhrl,bhlk->bhrk", jax.nn.softmax(scores, axis=-1), v).astype(q.dtype)


def _batched(q, k, v, mask):
    batch, heads, rows, head_dim = q.shape
    kv_heads = k.shape[1]
    # The query heads that share a key head are stacked along the rows: one matrix product a key head.
    stacked = (q * head_dim**-0.5).reshape(batch, kv_heads, heads // kv_heads * rows, head_dim)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (mask.shape[0], 1, rows, k.shape[2]))
        mask = jnp.tile(mask, (1, 1, heads // kv_heads, 1))
    return _stacked(stacked, k, v, mask).reshape(q.shape).astype(q.dtype)


@jax.custom_vjp
def _stacked(q, k, v, mask):
    """softmax(q k^T) v of scaled queries [B, G, M, K]: one division at the end, which XLA fuses into one loop."""
    unnormalised = _unnormalised(q, k, mask)
    values = product("bgml,bglk->bgmk", unnormalised.astype(v.dtype), v)
    return values / unnormalised.sum(axis=-1, keepdims=True)


def _unnormalised(q, k, mask):
    scores = product("bgmk,bglk->bgml", q, k)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    # The maximum only guards the exponential: the result does not depend on it.
    return jnp.exp(scores - scores.max(axis=-1, keepdims=True))


def _stacked_forward(q, k, v, mask):
    return _stacked(q, k, v, mask), (q, k, v, mask)


def _stacked_backward(kept, cotangent):
    """Computes the scores again, a chunk of batch rows at a time: nothing of size [B, H, L, L] is ever kept."""
    q, k, v, mask = kept
    batch = len(q)
    limit = max(1, _CHUNK_BYTES // (4 * q.shape[1] * q.shape[2] * k.shape[2]))
    rows = max(size for size in range(1, batch + 1) if batch % size == 0 and size <= limit)

    def of_chunk(part):
        q, k, v, cotangent, mask = part
        unnormalised = _unnormalised(q, k, mask)
        probabilities = unnormalised / unnormalised.sum(axis=-1, keepdims=True)
        change = product("bgmk,bglk->bgml", cotangent, v)
        change = probabilities * (change - (probabilities * change).sum(axis=-1, keepdims=True))
        probabilities, change = probabilities.astype(v.dtype), change.astype(q.dtype)
        grads = (
            product("bgml,bglk->bgmk", change, k),
            product("bgml,bgmk->bglk", change, q),
            product("bgml,bgmk->bglk", probabilities, cotangent),
        )
        return tuple(grad.astype(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True))

    if mask is not None and rows < batch:
        mask = jnp.broadcast_to(mask, (batch, *mask.shape[1:]))
    whole = (q, k, v, cotangent.astype(q.dtype), mask)
    if rows == batch:
        return *of_chunk(whole), None
    grads = jax.lax.map(of_chunk, jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), whole))
    return *(grad.reshape(x.shape) for grad, x in zip(grads, (q, k, v), strict=True)), None


_stacked.defvjp(_stacked_forward, _stacked_backward)


def _library(q, k, v, mask, implementation=None):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation), 1, 2)


def _splash(q, k, v, mask, interpret=False):
    if mask is not None:
        raise ValueError("mask: splash attention is used without one; must be None")
    heads, rows, keys = q.shape[1], q.shape[2], k.shape[2]

    def on_device(q, k, v):
        full = splash_attention.MultiHeadMask([splash_attention.FullMask((rows, keys))] * q.shape[1])
        over_rows, over_keys = (math.gcd(size, _SPLASH_BLOCK) for size in (rows, keys))
        blocks = splash_attention.BlockSizes(
            block_q=over_rows, block_kv=over_keys, block_q_dkv=over_rows, block_kv_dkv=over_keys, block_q_dq=over_rows,
            block_kv_dq=over_keys,
        )  # fmt: skip
        kernel = splash_attention.make_splash_mha(
            full, head_shards=1, q_seq_shards=1, block_sizes=blocks, interpret=interpret
        )
        return jax.vmap(kernel)(q, k, v)

    k, v = (jnp.repeat(x, heads // x.shape[1], axis=1) for x in (k, v))
    where = PartitionSpec(RULES[axes.BATCH], RULES[axes.HEADS])
    return shard_by(on_device, (where, where, where), where)(q * q.shape[-1] ** -0.5, k, v)


IMPLEMENTATIONS = {
    "reference": _reference,
    "batched": _batched,
    "library": _library,
    "cudnn": functools.partial(_library, implementation="cudnn"),
    "splash": _splash,
}
