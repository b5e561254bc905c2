"""The network in one file: pre-norm transformer with RMSNorm, RoPE, SwiGLU, and adaLN when time is given.

Modules hold parameters only (no random state, no shared references); `denoiser.py` stacks the blocks and runs them
with `lax.scan`. Master weights are float32, the computation runs in the dtype of the activations, norms in float32.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from dlm_jax import axes
from dlm_jax.diffusion.masking import scored_rows
from dlm_jax.kernels.attention import attention
from dlm_jax.kernels.embedding import embed
from dlm_jax.models import cache as key_value_cache

# The name under which rematerialisation policies find the result of attention.
ATTENDED = "attended"


def parameter(rngs, shape, logical_axes, *, fan_in=None, scale=1.0, value=None):
    """Returns a float32 nnx.Param: constant `value`, or normal with standard deviation scale / sqrt(fan_in)."""
    if value is not None:
        array = jnp.full(shape, value, jnp.float32)
    else:
        array = jax.random.normal(rngs.params(), shape, jnp.float32) * (scale / math.sqrt(fan_in))
    return nnx.Param(array, logical_axes=logical_axes)


def project(x, kernel):
    """x [..., d] times kernel [d, f], as one matrix product: on CPU twice the speed of the batched form."""
    flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, in float32, cast back."""

    def __init__(self, size, logical_axis, rngs):
        self.scale = parameter(rngs, (size,), (logical_axis,), value=1.0)

    def __call__(self, x):
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)
        return (wide * self.scale[...]).astype(x.dtype)


def rotary(x, positions, theta):
    """Rotates pairs (i, i + K/2) of the head dimension by position * theta^(-2i/K).

    Args:
      x: [B, H, L, K].
      positions: int32[B or 1, L].
      theta: float, the base.
    Returns:
      [B, H, L, K] in the dtype of x.
    Source: Su et al. 2021 (RoFormer), in the rotate-half convention of NeoX and LLaMA.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, None, :, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half], x[..., half:]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head attention with grouped key-value heads and optional query-key norm."""

    def __init__(self, config, rngs, platform):
        d, h, g, k = config.embed_dim, config.num_heads, config.kv_heads, config.head_dim
        self.config, self.platform = config, platform
        self.query = parameter(rngs, (d, h, k), (axes.EMBED, axes.HEADS, axes.HEAD_DIM), fan_in=d)
        self.key = parameter(rngs, (d, g, k), (axes.EMBED, axes.KV_HEADS, axes.HEAD_DIM), fan_in=d)
        self.value = parameter(rngs, (d, g, k), (axes.EMBED, axes.KV_HEADS, axes.HEAD_DIM), fan_in=d)
        # Residual branches start small, so that depth does not set the scale of the stream.
        self.out = parameter(
            rngs, (h, k, d), (axes.HEADS, axes.HEAD_DIM, axes.EMBED), fan_in=d, scale=(2 * config.num_layers) ** -0.5
        )
        if config.qk_norm:
            self.query_norm = RMSNorm(k, axes.HEAD_DIM, rngs)
            self.key_norm = RMSNorm(k, axes.HEAD_DIM, rngs)

    def __call__(self, x, asking, positions, asking_positions, mask, cache, answered=None):
        """Mixes the values of x [B, L, D] for the queries of `asking` [B, R, D]; with `answered` only those leave."""
        q = self._heads(asking, self.query[...])
        k = self._heads(x, self.key[...])
        v = self._heads(x, self.value[...])
        if self.config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        q = rotary(q, asking_positions, self.config.rope_theta)
        k = rotary(k, positions, self.config.rope_theta)
        if cache is not None:  # the tokens of this call are consecutive: their first position says where they belong
            k, v = (key_value_cache.write(kept, new, positions[0, 0]) for kept, new in zip(cache, (k, v), strict=True))
            cache = (k, v)
        mixed = checkpoint_name(attention(q, k, v, mask=mask, platform=self.platform), ATTENDED)
        mixed = jnp.swapaxes(mixed, 1, 2)  # [B, R, H, K]
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        if answered is not None:
            mixed = scored_rows(mixed, answered)
        out = self.out[...]
        return project(mixed, out.reshape(-1, out.shape[-1])), cache

    def _heads(self, x, kernel):
        """[B, L, D] times [D, H, K] -> [B, H, L, K]."""
        flat = project(x, kernel.reshape(kernel.shape[0], -1))
        return jnp.swapaxes(flat.reshape(*x.shape[:2], *kernel.shape[1:]), 1, 2)


class SwiGLU(nnx.Module):
    """(silu(x gate) * (x up)) down."""

    def __init__(self, config, rngs):
        d, f = config.embed_dim, config.hidden_dim
        self.gate = parameter(rngs, (d, f), (axes.EMBED, axes.MLP), fan_in=d)
        self.up = parameter(rngs, (d, f), (axes.EMBED, axes.MLP), fan_in=d)
        self.down = parameter(rngs, (f, d), (axes.MLP, axes.EMBED), fan_in=f, scale=(2 * config.num_layers) ** -0.5)

    def __call__(self, x):
        return project(jax.nn.silu(project(x, self.gate[...])) * project(x, self.up[...]), self.down[...])


class Modulation(nnx.Module):
    """adaLN: shift, scale and gate from the time embedding; zero at the start, so the block begins as identity."""

    def __init__(self, config, rngs, num_chunks):
        self.num_chunks = num_chunks
        shape = (config.time_dim, num_chunks * config.embed_dim)
        self.kernel = parameter(rngs, shape, (None, axes.EMBED), value=0.0)
        self.bias = parameter(rngs, shape[1:], (axes.EMBED,), value=0.0)

    def __call__(self, conditioning, dtype):
        chunks = (conditioning @ self.kernel[...] + self.bias[...]).astype(dtype)[:, None, :]
        return jnp.split(chunks, self.num_chunks, axis=-1)


class Block(nnx.Module):
    """Attention and MLP, each in a pre-norm residual branch; with `rows` only those positions leave the block.

    `rows` is int32[P, R], positions within groups of B / P consecutive rows of the batch.
    `cache` is None, or the keys and values of this layer; it comes back with those of the tokens of this call.
    """

    def __init__(self, config, rngs, platform):
        self.config = config
        self.attention_norm = RMSNorm(config.embed_dim, axes.EMBED, rngs)
        self.attention = Attention(config, rngs, platform)
        self.mlp_norm = RMSNorm(config.embed_dim, axes.EMBED, rngs)
        self.mlp = SwiGLU(config, rngs)
        if config.time_conditioning:
            self.modulation = Modulation(config, rngs, 6)

    def __call__(self, x, *, rows, positions, mask, conditioning, key, cache):
        shift_a = scale_a = shift_m = scale_m = 0.0
        gate_a = gate_m = 1.0
        if conditioning is not None:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(conditioning, x.dtype)
        keys = (None, None) if key is None else jax.random.split(key)
        normed = self.attention_norm(x) * (1 + scale_a) + shift_a
        asking, asking_positions, answered = normed, positions, None
        if rows is not None:
            # The last layer needs keys and values everywhere, but queries and the MLP only for the rows asked for.
            batch, length = x.shape[:2]
            x = scored_rows(x, rows)
            if len(rows) == batch:
                asking = scored_rows(normed, rows)
                asking_positions = scored_rows(jnp.broadcast_to(positions, (batch, length)), rows)
                if mask is not None:
                    mask = jnp.broadcast_to(mask, (batch, *mask.shape[1:]))
                    mask = jnp.take_along_axis(mask, rows[:, None, :, None], axis=2)
            else:  # a row of keys answers a number of queries that is known only for the group: all ask, some leave
                answered = rows
                gate_a, shift_m, scale_m, gate_m = (
                    _of_group(part, rows, length) for part in (gate_a, shift_m, scale_m, gate_m)
                )
        branch, cache = self.attention(normed, asking, positions, asking_positions, mask, cache, answered)
        x = x + gate_a * dropout(branch, self.config.dropout, keys[0])
        branch = self.mlp(self.mlp_norm(x) * (1 + scale_m) + shift_m)
        return x + gate_m * dropout(branch, self.config.dropout, keys[1]), cache


def _of_group(modulation, rows, length):
    """[B, 1, D] of the rows of a batch -> [P, R, D], each position's own; numbers stay as they are."""
    if isinstance(modulation, float):
        return modulation
    per_group = modulation.reshape(len(rows), -1, modulation.shape[-1])
    return jnp.take_along_axis(per_group, (rows // length)[..., None], axis=1)


def dropout(x, rate, key):
    """Zeroes a share `rate` of x and rescales the rest; the identity without a key."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


class Stem(nnx.Module):
    """What surrounds the blocks: embedding (one more row than the vocabulary, for the mask), final norm, head."""

    def __init__(self, config, vocab_size, rngs):
        self.config, self.vocab_size = config, vocab_size
        d = config.embed_dim
        # The mask's row is not a vocabulary entry, so the table is never split over the vocabulary.
        fan_in = d if config.tie_embeddings else 1
        self.embedding = parameter(rngs, (vocab_size + 1, d), (None, axes.EMBED), fan_in=fan_in)
        self.final_norm = RMSNorm(d, axes.EMBED, rngs)
        if not config.tie_embeddings:
            self.head = parameter(rngs, (vocab_size, d), (axes.VOCAB, axes.EMBED), fan_in=d)
        if config.time_conditioning:
            self.time_in = parameter(rngs, (config.time_dim, config.time_dim), (None, None), fan_in=config.time_dim)
            self.time_out = parameter(rngs, (config.time_dim, config.time_dim), (None, None), fan_in=config.time_dim)
            self.final_modulation = Modulation(config, rngs, 2)

    def embed(self, tokens, dtype):
        return embed(self.embedding[...], tokens, dtype)

    def embed_time(self, time):
        """float32[B] in [0, 1] -> float32[B, time_dim]; sinusoids of 1000 t, then a two-layer MLP."""
        half = self.config.time_dim // 2
        frequencies = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angles = 1000.0 * time[:, None] * frequencies
        features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        return jax.nn.silu(jax.nn.silu(features @ self.time_in[...]) @ self.time_out[...])

    def finish(self, x, conditioning, rows=None, length=None):
        x = self.final_norm(x)
        if conditioning is not None:
            shift, scale = self.final_modulation(conditioning, x.dtype)
            if rows is not None and len(rows) < len(shift):
                shift, scale = _of_group(shift, rows, length), _of_group(scale, rows, length)
            x = x * (1 + scale) + shift
        return x

    def head_kernel(self):
        """float32[V, D]; the mask has no logit."""
        return self.embedding[...][: self.vocab_size] if self.config.tie_embeddings else self.head[...]
