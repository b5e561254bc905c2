"""Cross-entropy of a large vocabulary without the logits: the head product tile by tile over the vocabulary.

Forward keeps a running log-sum-exp; backward computes each tile's logits again. Peak memory holds [rows, tile], never
[rows, V], unless all logits together are small: then they are kept, which saves a quarter of the work. On a mesh every
device works on its own rows and its own part of the vocabulary: one gather of the head, one scatter of its gradient,
and sums over the vocabulary of a few numbers a row.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dlm_jax import axes
from dlm_jax.kernels import product
from dlm_jax.kernels.tiles import default_tile, scan_tiles
from dlm_jax.parallel import sharding

# Logits of at most so many bytes are kept for the backward pass.
_KEPT_BYTES = 80 << 20


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
    size = kernel.shape[0]
    chosen = tile or default_tile(size)
    if chosen >= size:
        return cross_entropy_reference(hidden, kernel, targets)
    if tile is None and 4 * targets.size * size <= _KEPT_BYTES and jax.sharding.get_abstract_mesh().empty:
        return _kept(hidden, kernel, targets)
    return _tiled(hidden, kernel, targets, chosen)


def cross_entropy_reference(hidden, kernel, targets):
    """The same as `cross_entropy`, with all logits at once."""
    logits = product("...d,vd->...v", hidden, kernel.astype(hidden.dtype))
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def cross_entropy_and_entropy(hidden, kernel, targets, *, tile=None):
    """Returns (-log p(target), entropy of p), p = softmax(hidden kernel^T), both float32[..., R] in nats.

    For measuring: it has no derivative of its own. Arguments as in `cross_entropy`.
    """
    kernel = kernel.astype(hidden.dtype)

    def add_tile(carry, first, rows):
        (largest, total), weighted = carry
        logits = product("...d,vd->...v", hidden, rows)
        new = _add_mass((largest, total), logits)
        mass = jnp.exp(logits - new[0][..., None])
        weighted = weighted * jnp.exp(largest - new[0]) + jnp.where(mass > 0, mass * logits, 0.0).sum(axis=-1)
        return (new, weighted), None

    start = (_no_mass(targets.shape), jnp.zeros(targets.shape))
    ((largest, total), weighted), _ = scan_tiles(add_tile, start, kernel, tile or default_tile(kernel.shape[0]))
    log_normaliser = largest + jnp.log(total)
    return log_normaliser - _picked(hidden, kernel, targets), log_normaliser - weighted / total


def _no_mass(shape):
    return jnp.full(shape, -jnp.inf), jnp.zeros(shape)


def _add_mass(running, logits):
    """(largest, sum of exp(logit - largest)) with the logits [..., v] of one more tile."""
    largest, total = running
    new_largest = jnp.maximum(largest, logits.max(axis=-1))
    return new_largest, total * jnp.exp(largest - new_largest) + jnp.exp(logits - new_largest[..., None]).sum(axis=-1)


def _picked(hidden, kernel, targets):
    """float32[..., R], the logits of the targets."""
    return product("...d,...d->...", hidden, kernel[targets])


@jax.custom_vjp
def _kept(hidden, kernel, targets):
    return _kept_forward(hidden, kernel, targets)[0]


def _kept_forward(hidden, kernel, targets):
    # Tokens first, as in the backward pass: its products then need no transposed copy.
    logits = product("vd,rd->vr", kernel.astype(hidden.dtype), hidden.reshape(-1, hidden.shape[-1]))
    largest = logits.max(axis=0)
    mass = jnp.exp(logits - largest)
    total = mass.sum(axis=0)
    losses = (largest + jnp.log(total)).reshape(targets.shape) - _picked(hidden, kernel.astype(hidden.dtype), targets)
    return losses, (hidden, kernel, targets, mass, total)  # kept as exponentials, which cost more than the logits


def _kept_backward(kept, cotangent):
    hidden, kernel, targets, mass, total = kept
    flat, cotangent = hidden.reshape(-1, hidden.shape[-1]), cotangent.reshape(-1)
    is_target = jnp.arange(len(kernel))[:, None] == targets.reshape(-1)
    change = (mass * (cotangent / total) - jnp.where(is_target, cotangent, 0.0)).astype(hidden.dtype)
    hidden_grad = product("vr,vd->rd", change, kernel.astype(hidden.dtype))
    kernel_grad = product("vr,rd->vd", change, flat)
    return hidden_grad.reshape(hidden.shape).astype(hidden.dtype), kernel_grad.astype(kernel.dtype), None


_kept.defvjp(_kept_forward, _kept_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _tiled(hidden, kernel, targets, tile):
    return _tiled_forward(hidden, kernel, targets, tile)[0]


def _tiled_forward(hidden, kernel, targets, tile):
    split = _Split.of(hidden, kernel)

    def on_device(hidden, kernel, targets):
        kernel, first_own = split.whole_rows(kernel, hidden.dtype)

        def add_tile(running, first, rows):
            return _add_mass(running, product("...d,vd->...v", hidden, rows)), None

        (largest, total), _ = scan_tiles(add_tile, _no_mass(targets.shape), kernel, tile)
        is_own = (targets >= first_own) & (targets < first_own + len(kernel))
        picked = _picked(hidden, kernel, jnp.clip(targets - first_own, 0, len(kernel) - 1))
        if split.vocab:
            top = jax.lax.pmax(largest, split.vocab)
            total = jax.lax.psum(total * jnp.exp(largest - top), split.vocab)
            picked, largest = jax.lax.psum(jnp.where(is_own, picked, 0.0), split.vocab), top
        log_normaliser = largest + jnp.log(total)
        return log_normaliser - picked, log_normaliser

    rows = split.rows(targets)
    losses, log_normaliser = sharding.shard_by(
        on_device, (split.rows(hidden), split.head, rows), (rows, rows)
    )(hidden, kernel, targets)  # fmt: skip
    return losses, (hidden, kernel, targets, log_normaliser)


def _tiled_backward(tile, kept, cotangent):
    hidden, kernel = kept[:2]
    split = _Split.of(hidden, kernel)

    def on_device(hidden, kernel, targets, log_normaliser, cotangent):
        dtype = kernel.dtype
        kernel, first_own = split.whole_rows(kernel, hidden.dtype)
        flat = hidden.reshape(-1, hidden.shape[-1])
        targets, log_normaliser, cotangent = (x.reshape(-1) for x in (targets, log_normaliser, cotangent))

        def add_tile(hidden_grad, first, rows):
            # Tokens first: the products with the head's rows then need no transposed copy.
            probabilities = jnp.exp(product("vd,rd->vr", rows, flat) - log_normaliser)
            is_target = (first_own + first + jnp.arange(len(rows)))[:, None] == targets
            change = ((probabilities - is_target) * cotangent).astype(flat.dtype)
            return hidden_grad + product("vr,vd->rd", change, rows), product("vr,rd->vd", change, flat)

        hidden_grad, kernel_grad = scan_tiles(add_tile, jnp.zeros(flat.shape, jnp.float32), kernel, tile)
        if split.vocab:
            hidden_grad = jax.lax.psum(hidden_grad, split.vocab)
        return hidden_grad.reshape(hidden.shape).astype(hidden.dtype), split.own_part(kernel_grad).astype(dtype)

    specs = [split.rows(x) for x in (*kept[2:], cotangent)]
    grads = sharding.shard_by(
        on_device, (split.rows(hidden), split.head, *specs), (split.rows(hidden), split.head)
    )(*kept, cotangent)  # fmt: skip
    return *grads, None


class _Split:
    """How the mesh in use divides the head float[V, D] and the rows."""

    def __init__(self, batch, vocab, embed):
        self.batch, self.vocab, self.embed = batch, vocab, embed

    @classmethod
    def of(cls, hidden, kernel):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return cls((), (), ())
        sizes = (axes.BATCH, len(hidden)), (axes.VOCAB, kernel.shape[0]), (axes.EMBED, kernel.shape[1])
        return cls(*(sharding.split(axis, size, mesh) for axis, size in sizes))

    @property
    def head(self):
        return PartitionSpec(self.vocab or None, self.embed or None)

    def rows(self, array):
        return PartitionSpec(self.batch or None, *[None] * (array.ndim - 1))

    def whole_rows(self, kernel, dtype):
        """This device's rows of the head, whole, in the dtype of the products, and the token of the first."""
        kernel = kernel.astype(dtype)
        if self.embed:
            kernel = jax.lax.all_gather(kernel, self.embed, axis=1, tiled=True)
        return kernel, jax.lax.axis_index(self.vocab) * len(kernel) if self.vocab else 0

    def own_part(self, kernel_grad):
        """The sum over all rows, of the part of the head that this device keeps."""
        if self.embed:
            kernel_grad = jax.lax.psum_scatter(kernel_grad, self.embed, scatter_dimension=1, tiled=True)
        others = tuple(axis for axis in self.batch if axis not in self.embed)
        return jax.lax.psum(kernel_grad, others) if others else kernel_grad


_tiled.defvjp(_tiled_forward, _tiled_backward)
