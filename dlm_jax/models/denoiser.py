"""The seam between the network and everything else.

A `Denoiser` is two calls on purpose: `hidden` runs the body, `logits` the head. Losses and samplers ask the head only
for the rows they need. Parameters are a plain nested dict; what happens inside is flax and stays here.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from dlm_jax import axes, rng
from dlm_jax.config import ModelConfig
from dlm_jax.kernels import product
from dlm_jax.kernels.cross_entropy import cross_entropy, cross_entropy_and_entropy
from dlm_jax.kernels.unmask import unmask
from dlm_jax.models import cache as key_value_cache
from dlm_jax.models import transformer
from dlm_jax.models.cache import KeyValueCache


@dataclass(frozen=True)
class Denoiser:
    """A network that predicts tokens from partly masked ones.

    Args:
      config: ModelConfig.
      vocab_size: V; the mask is token V, which can be read but never predicted.
      platform: whose kernels and dtype are used, "cpu", "gpu" or "tpu"; None: those of the devices at hand.
    """

    config: ModelConfig
    vocab_size: int
    platform: str | None = None

    @property
    def _platform(self):
        return self.platform or jax.default_backend()

    @property
    def mask_id(self):
        return self.vocab_size

    @property
    def needs_time(self):
        return self.config.time_conditioning

    @functools.cached_property
    def _parts(self):
        """(graphdef of the stem, graphdef of one block, logical axes)."""
        stem = nnx.eval_shape(lambda: transformer.Stem(self.config, self.vocab_size, nnx.Rngs(params=0)))
        block = nnx.eval_shape(lambda: transformer.Block(self.config, nnx.Rngs(params=0), self._platform))
        stem_graph, stem_state = nnx.split(stem)
        block_graph, block_state = nnx.split(block)

        def axes_of(state, prefix):
            return {path: prefix + tuple(variable.logical_axes) for path, variable in nnx.to_flat_state(state)}

        logical = {
            "stem": _unflatten(axes_of(stem_state, ())),
            "blocks": _unflatten(axes_of(block_state, (axes.LAYERS,))),
        }
        return stem_graph, block_graph, logical

    def init(self, key):
        """Returns new parameters, {"stem": ..., "blocks": ... stacked over layers}, float32."""

        def pure(module):
            return nnx.to_pure_dict(nnx.state(module, nnx.Param))

        def init_block(block_key):
            return pure(transformer.Block(self.config, nnx.Rngs(params=block_key), self._platform))

        layer_keys = rng.per_row(rng.stream(key, "blocks"), self.config.num_layers)
        stem = transformer.Stem(self.config, self.vocab_size, nnx.Rngs(params=rng.stream(key, "stem")))
        return {"stem": pure(stem), "blocks": jax.vmap(init_block)(layer_keys)}

    @property
    def logical_axes(self):
        """The logical axes of every parameter, in the structure of `init`; leaves are tuples of names."""
        return self._parts[2]

    @property
    def dtype(self):
        """The dtype of the computation."""
        name = self.config.dtype
        if name == "auto":
            name = "float32" if self._platform == "cpu" else "bfloat16"
        return jnp.dtype(name)

    def hidden(
        self, params, tokens, *, rows=None, time=None, positions=None, segment_ids=None, mask=None, cache=None, key=None
    ):
        """Runs the body.

        Args:
          params: as returned by `init`.
          tokens: int32[B, L] in [0, V]; V is the mask.
          rows: int32[P, R], the positions wanted, within groups of B / P consecutive rows of the batch (P = B: one's
            own); None for all. The last layer is computed only there.
          time: float32[B], 0 = data, 1 = noise; needed if and only if the model is time-conditioned.
          positions: int32[B or 1, L] for RoPE; None for 0..L-1. With a cache: consecutive, the same for all rows.
          segment_ids: int32[B, L]; attention stays inside a segment.
          mask: bool broadcastable to [B, 1, L, L], True where a query may look; None for the model's own.
          cache: models.cache.KeyValueCache of all positions, or None. `tokens` may then be only some of the sequence;
            their keys and values are written into the cache, and they look at everything in it.
          key: PRNG key for dropout; None for none.
        Returns:
          (H[P, R, D], cache with the new keys and values); H goes to `logits`.
        Raises:
          ValueError: at trace time, naming the argument.
        """
        if (time is None) == self.config.time_conditioning:
            need = "must be given" if time is None else "must be None"
            raise ValueError(f"time: {need}, because model.time_conditioning={self.config.time_conditioning}")
        if cache is not None and (segment_ids is not None or mask is not None):
            raise ValueError("cache: cannot be used with segment_ids or a mask; both must be None")
        if tokens.ndim != 2:
            raise ValueError(f"tokens: shape {list(tokens.shape)} must be [B, L]")
        length = tokens.shape[1]
        stem_graph, block_graph, _ = self._parts
        stem = nnx.merge(stem_graph, params["stem"])
        if positions is None:
            positions = jnp.arange(length)[None]
        key_positions = positions if cache is None else jnp.arange(cache.keys.shape[3])[None]
        sees = VISIBILITY[self.config.attention](positions, key_positions, self.config.block_length)
        mask = _combine_masks(mask, sees, segment_ids)
        conditioning = None if time is None else stem.embed_time(time)
        use_dropout = key is not None and self.config.dropout > 0
        layer_keys = rng.per_row(key, self.config.num_layers) if use_dropout else None

        def run_block(x, layer, rows):
            block_params, layer_key, layer_cache = layer
            block = nnx.merge(block_graph, block_params)
            return block(
                x, rows=rows, positions=positions, mask=mask, conditioning=conditioning, key=layer_key,
                cache=layer_cache,
            )  # fmt: skip

        # A CPU gains a tenth from layers written out, for a few of them compiled soon enough.
        unroll = self._platform == "cpu" and self.config.num_layers <= _MAX_UNROLLED
        remat = REMAT[self.config.remat]
        run_full = remat(lambda x, layer: run_block(x, layer, None))
        layers = (params["blocks"], layer_keys, None if cache is None else tuple(cache))
        x = stem.embed(tokens, self.dtype)
        if rows is None:
            x, kept = jax.lax.scan(run_full, x, layers, unroll=unroll)
        else:
            x, kept = jax.lax.scan(run_full, x, jax.tree.map(lambda leaf: leaf[:-1], layers), unroll=unroll)
            x, last = remat(functools.partial(run_block, rows=rows))(x, jax.tree.map(lambda leaf: leaf[-1], layers))
            kept = jax.tree.map(lambda most, one: jnp.concatenate([most, one[None]]), kept, last)
        return stem.finish(x, conditioning, rows, length), None if cache is None else KeyValueCache(*kept)

    def empty_cache(self, batch_size, length):
        """Returns a KeyValueCache for `hidden`, of B rows and L positions."""
        return key_value_cache.empty(self.config, batch_size, length, self.dtype)

    def head_kernel(self, params):
        """Returns float32[V, D], the output head."""
        return nnx.merge(self._parts[0], params["stem"]).head_kernel()

    def logits(self, params, hidden):
        """Returns float32[..., V], unnormalised log-probabilities of [..., D]."""
        return product("...d,vd->...v", hidden, self.head_kernel(params).astype(hidden.dtype))

    def unmask(self, params, hidden, keys, temperature):
        """Returns the kernels.unmask.Unmasked of [..., R, D]: tokens drawn with keys[..., R], and their certainty."""
        return unmask(hidden, self.head_kernel(params), keys, temperature, platform=self._platform)

    def token_losses(self, params, hidden, targets):
        """Returns float32[...], -log p(target) in nats of [..., D], without ever holding all logits."""
        return cross_entropy(hidden, self.head_kernel(params), targets)

    def token_losses_and_entropies(self, params, hidden, targets):
        """Returns (-log p(target), entropy of the prediction), float32[...] in nats; to measure with, not to train."""
        return cross_entropy_and_entropy(hidden, self.head_kernel(params), targets)

    @property
    def num_params(self):
        """Number of parameters, by formula."""
        c, d, v = self.config, self.config.embed_dim, self.vocab_size
        attention = 2 * d * c.num_heads * c.head_dim + 2 * d * c.kv_heads * c.head_dim
        block = attention + 3 * d * c.hidden_dim + 2 * d + (2 * c.head_dim if c.qk_norm else 0)
        stem = (v + 1) * d + d + (0 if c.tie_embeddings else v * d)
        if c.time_conditioning:
            block += (c.time_dim + 1) * 6 * d
            stem += 2 * c.time_dim**2 + (c.time_dim + 1) * 2 * d
        return c.num_layers * block + stem

    def flops(self, length, head_fraction=1.0):
        """Returns the floating-point operations of one forward pass, per token, by formula.

        Counts matrix products only: 2 a multiply-add, attention over all L keys (nothing is halved for a causal mask),
        the head on `head_fraction` of the tokens. A training step costs three times this.

        Args:
          length: L.
          head_fraction: share of tokens whose logits are needed.
        """
        c, d = self.config, self.config.embed_dim
        projections = 2 * d * c.num_heads * c.head_dim + 2 * d * c.kv_heads * c.head_dim
        attention = 2 * length * c.num_heads * c.head_dim
        block = projections + attention + 3 * d * c.hidden_dim
        return 2 * (c.num_layers * block + head_fraction * self.vocab_size * d)


def _unflatten(flat):
    tree = {}
    for path, value in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def _combine_masks(mask, sees, segment_ids):
    masks = [one for one in (mask, sees) if one is not None]
    if segment_ids is not None:
        masks.append((segment_ids[:, :, None] == segment_ids[:, None, :])[:, None])
    return functools.reduce(jnp.logical_and, masks) if masks else None


# attention -> (positions of queries int32[B, R], of keys int32[B, L], block length) -> bool[B, 1, R, L]; None: all.
VISIBILITY = {
    "bidirectional": lambda queries, keys, block: None,
    "block_causal": lambda queries, keys, block: (keys[:, None] // block <= queries[:, :, None] // block)[:, None],
    "causal": lambda queries, keys, block: (keys[:, None] <= queries[:, :, None])[:, None],
}
_MAX_UNROLLED = 8
_policies = jax.checkpoint_policies
# What the backward pass finds kept of a layer; what it does not find it computes again.
REMAT = {
    "none": lambda layer: layer,
    "elementwise": functools.partial(
        jax.checkpoint,
        prevent_cse=False,
        policy=_policies.save_from_both_policies(
            _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names(transformer.ATTENDED)
        ),
    ),
    "dots": functools.partial(jax.checkpoint, prevent_cse=False, policy=_policies.dots_with_no_batch_dims_saveable),
    "full": functools.partial(jax.checkpoint, prevent_cse=False),
}
