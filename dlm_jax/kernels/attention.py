"""Attention in [B, H, L, K] layout: one function, one implementation a backend, one reference.

On CPU batched matrix products in this layout, with an unnormalised exponential and one division at the end, run
several times faster than the general function; accelerators use `jax.nn.dot_product_attention`.
"""

import jax
import jax.numpy as jnp


def attention(q, k, v, *, mask=None, implementation=None):
    """Returns softmax(q k^T / sqrt(K)) v, computed in float32.

    Args:
      q: [B, H, R, K] queries.
      k: [B, G, L, K] keys; G divides H, and each group of H / G query heads shares one key head.
      v: [B, G, L, K] values.
      mask: bool broadcastable to [B, 1, R, L], True where a query may look, or None for everywhere. Every query must
        see at least one key.
      implementation: a name in IMPLEMENTATIONS, or None for the backend's own.
    Returns:
      [B, H, R, K] in the dtype of q.
    """
    if implementation is None:
        implementation = "batched" if jax.default_backend() == "cpu" else "library"
    return IMPLEMENTATIONS[implementation](q, k, v, mask)


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
    q = (q * head_dim**-0.5).reshape(batch, kv_heads, heads // kv_heads * rows, head_dim)
    scores = jnp.einsum("bgrk,bglk->bgrl", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (mask.shape[0], 1, rows, k.shape[2]))
        scores = jnp.where(jnp.tile(mask, (1, 1, heads // kv_heads, 1)), scores, -jnp.inf)
    # The maximum only guards the exponential; the result does not depend on it, so neither does the gradient.
    unnormalised = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    values = jnp.einsum("bgrl,bglk->bgrk", unnormalised.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = values / unnormalised.sum(axis=-1, keepdims=True)
    return out.reshape(batch, heads, rows, head_dim).astype(q.dtype)


def _library(q, k, v, mask):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, mask=mask), 1, 2)


IMPLEMENTATIONS = {"reference": _reference, "batched": _batched, "library": _library}
