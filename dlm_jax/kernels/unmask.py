"""What a sampler needs of the head, without the logits: a drawn token and how certain it is, for every row.

| name      | platform | how                                                                                    |
|-----------|----------|----------------------------------------------------------------------------------------|
| reference | any      | all logits                                                                             |
| tiled     | cpu      | tile by tile over the vocabulary, in XLA; below 8,192 tokens the reference is used     |
| mosaic    | tpu      | Pallas: a tile's logits live and die in VMEM; the head is read once for 1,024 rows     |
| triton    | gpu      | Pallas: parts of the vocabulary side by side, then merged                              |

All keep the same running numbers a row, merged by the same function, with noise that depends on a row's key and the
token only: the same keys draw the same tokens whatever the tiling and the platform, but for float ties.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu
from jax.sharding import PartitionSpec

from dlm_jax import axes
from dlm_jax.kernels import noise, product
from dlm_jax.kernels.tiles import default_tile, scan_tiles
from dlm_jax.parallel.sharding import RULES, shard_by

# Of the TPU kernel: rows of hidden states in VMEM at a time, and head rows a tile.
_MAX_ROWS, _HIDDEN_BYTES, _TILE = 1024, 2 << 20, 256
# Of the GPU kernel: rows and head rows a block, the slice of D a product takes, and parts of the vocabulary.
_GPU_ROWS, _GPU_TILE, _GPU_DEPTH, _GPU_PARTS = 32, 128, 64, 32


class Unmasked(NamedTuple):
    """A row of the head's answer; probabilities are those of softmax(logits), whatever the temperature."""

    tokens: jax.Array  # int32[..., R], drawn at the temperature; the most probable where nothing is drawn
    log_prob: jax.Array  # float32[..., R], log p(token), nats
    largest: jax.Array  # float32[..., R], log p of the most probable token
    second: jax.Array  # float32[..., R], log p of the next
    entropy: jax.Array  # float32[..., R], nats


def unmask(hidden, kernel, keys, temperature, *, tile=None, platform=None, implementation=None):
    """Returns the Unmasked of every row.

    Args:
      hidden: [..., R, D].
      kernel: float32[V, D], the output head.
      keys: PRNG key[..., R], the draw of a row depends on its own key only; or None: nothing is drawn.
      temperature: float32[], 0 = the most probable token.
      tile: int or None, vocabulary entries at a time of "tiled".
      platform: "cpu", "gpu" or "tpu", or None for that of the devices at hand.
      implementation: a name in IMPLEMENTATIONS, or None for the platform's best.
    """
    if implementation is None:
        implementation = best_implementation(platform or jax.default_backend(), kernel, tile)
    if implementation == "reference":
        return of_logits(product("...d,vd->...v", hidden, kernel.astype(hidden.dtype)), keys, temperature)
    run = functools.partial(IMPLEMENTATIONS[implementation], **({"tile": tile} if tile else {}))

    def on_device(hidden, kernel, first, second, temperature):
        shape = hidden.shape[:-1]
        words = None if keys is None else (first.reshape(1, -1), second.reshape(1, -1))
        found = run(hidden.reshape(-1, hidden.shape[-1]), kernel.astype(hidden.dtype), words, temperature)
        return _finish(found, shape)

    shape = hidden.shape[:-1]
    words = (jnp.zeros(shape, jnp.int32),) * 2 if keys is None else noise.words(keys)
    rows = PartitionSpec(RULES[axes.BATCH])
    whole = PartitionSpec()
    return shard_by(on_device, (rows, whole, rows, rows, whole), rows)(
        hidden, kernel, *words, jnp.asarray(temperature, jnp.float32)
    )


def best_implementation(platform, kernel, tile=None):
    """Returns the name of the fastest implementation that a platform has for a head."""
    size, dim = kernel.shape
    if platform == "tpu" and dim % 128 == 0 and size >= _TILE:
        return "mosaic"
    if platform == "gpu" and dim % _GPU_DEPTH == 0 and size >= _GPU_TILE:
        return "triton"
    return "reference" if (tile or default_tile(size)) >= size else "tiled"


def of_logits(logits, keys, temperature, *, drawn_from=None, draw=noise.gumbel_of_rows):
    """The same from logits: the reference.

    Args:
      logits: float[..., V]; the statistics are theirs.
      keys, temperature: as in `unmask`.
      drawn_from: float[..., V] or None, what is left of the logits to draw from.
      draw: (keys, V) -> Gumbel noise.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    best = jnp.argmax(log_p, axis=-1).astype(jnp.int32)
    is_best = jnp.arange(log_p.shape[-1]) == best[..., None]
    p = jnp.exp(log_p)
    tokens = best
    if keys is not None:
        drawn_from = (logits if drawn_from is None else drawn_from).astype(jnp.float32)
        # Multiplying the noise instead of dividing the logits covers temperature 0 without a division.
        tokens = jnp.argmax(drawn_from + temperature * draw(keys, log_p.shape[-1]), axis=-1).astype(jnp.int32)
    return Unmasked(
        tokens=tokens,
        log_prob=jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0],
        largest=log_p.max(axis=-1),
        second=jnp.where(is_best, -jnp.inf, log_p).max(axis=-1),
        entropy=-jnp.where(p > 0, p * log_p, 0.0).sum(axis=-1),
    )


# ------------------------------------------------------------------------------- the running numbers of every kernel


class _Running(NamedTuple):
    """What is known of each row after some tiles, [1, R]."""

    largest: jax.Array  # float32, logit
    second: jax.Array
    mass: jax.Array  # sum of exp(logit - largest)
    weighted: jax.Array  # sum of exp(logit - largest) * logit
    score: jax.Array  # float32, best of logit + temperature * noise
    logit: jax.Array  # of the token that has it
    token: jax.Array  # int32


_MANY = jnp.iinfo(jnp.int32).max


def _of_tile(logits, ids, words, temperature):
    """The _Running of one tile of logits [v, R], tokens first; ids int32[v, R], -1 for entries that do not count."""
    logits = jnp.where(ids >= 0, logits, -jnp.inf)
    score = logits
    if words is not None:
        score = logits + temperature * noise.gumbel(words, ids)
    column = functools.partial(jnp.max, axis=0, keepdims=True)

    def first_of(best, values):  # the first token that has the best value
        return jnp.min(jnp.where(values == best, ids, _MANY), axis=0, keepdims=True)

    largest, best = column(logits), column(score)
    token = first_of(best, score)
    mass = jnp.where(ids >= 0, jnp.exp(logits - largest), 0.0)
    return _Running(
        largest=largest,
        second=column(jnp.where(ids == first_of(largest, logits), -jnp.inf, logits)),
        mass=mass.sum(axis=0, keepdims=True),
        weighted=jnp.where(mass > 0, mass * logits, 0.0).sum(axis=0, keepdims=True),
        score=best,
        logit=column(jnp.where(ids == token, logits, -jnp.inf)),
        token=token,
    )


def _merge(a, b):
    """Two _Running of different tokens as one; ties go to the first."""
    largest = jnp.maximum(a.largest, b.largest)
    shrink_a, shrink_b = (jnp.where(x.mass > 0, jnp.exp(x.largest - largest), 0.0) for x in (a, b))
    is_new = b.score > a.score
    return _Running(
        largest=largest,
        second=jnp.maximum(jnp.minimum(a.largest, b.largest), jnp.maximum(a.second, b.second)),
        mass=a.mass * shrink_a + b.mass * shrink_b,
        weighted=a.weighted * shrink_a + b.weighted * shrink_b,
        score=jnp.where(is_new, b.score, a.score),
        logit=jnp.where(is_new, b.logit, a.logit),
        token=jnp.where(is_new, b.token, a.token),
    )


def _nothing(rows):
    low, zero = jnp.full((1, rows), -jnp.inf), jnp.zeros((1, rows))
    return _Running(low, low, zero, zero, low, low, jnp.zeros((1, rows), jnp.int32))


def _finish(running, shape):
    running = _Running(*(x.reshape(shape) for x in running))
    log_normaliser = running.largest + jnp.log(running.mass)
    return Unmasked(
        tokens=running.token,
        log_prob=running.logit - log_normaliser,
        largest=running.largest - log_normaliser,
        second=running.second - log_normaliser,
        entropy=log_normaliser - running.weighted / running.mass,
    )


# The head's rows [v, D] times hidden states [R, D], tokens first.
_logits = functools.partial(product, "vd,rd->vr")


def _padded(hidden, words, multiple):
    """Hidden states [R, D] and keys int32[2, R], zeros where there are none, filled up to a multiple of R."""
    more = -len(hidden) % multiple
    keys = jnp.zeros((2, len(hidden)), jnp.int32) if words is None else jnp.concatenate(words)
    return jnp.pad(hidden, ((0, more), (0, 0))), jnp.pad(keys, ((0, 0), (0, more)))


# ------------------------------------------------------------------------------------------------------------- tiled


def _tiled(hidden, kernel, words, temperature, tile=None):
    def add(running, first, rows):
        logits = _logits(rows, hidden)
        ids = first + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
        return _merge(running, _of_tile(logits, ids, words, temperature)), None

    return scan_tiles(add, _nothing(len(hidden)), kernel, tile or default_tile(len(kernel)))[0]


# ------------------------------------------------------------------------------------------------------------ mosaic


def _mosaic(hidden, kernel, words, temperature, interpret=False):
    (count, dim), size = hidden.shape, len(kernel)
    rows = max(128, min(_MAX_ROWS, _HIDDEN_BYTES // (dim * hidden.dtype.itemsize) // 128 * 128))
    rows = min(rows, -(-count // 128) * 128)
    hidden, keys = _padded(hidden, words, rows)
    padded, is_drawn = len(hidden), words is not None

    def body(temperature, hidden, kernel, keys, floats, tokens, *running):
        index = pl.program_id(1)

        @pl.when(index == 0)
        def _():
            for ref, value in zip(running, _nothing(rows), strict=True):
                ref[...] = value

        logits = _logits(kernel[...], hidden[...])
        ids = index * _TILE + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
        ids = jnp.where(ids < size, ids, -1)  # past the end of the vocabulary
        words = (keys[0:1], keys[1:2]) if is_drawn else None
        found = _merge(_Running(*(ref[...] for ref in running)), _of_tile(logits, ids, words, temperature[0, 0]))
        for ref, value in zip(running, found, strict=True):
            ref[...] = value

        @pl.when(index == pl.num_programs(1) - 1)
        def _():
            floats[...] = jnp.concatenate(found[:-1])
            tokens[...] = found.token

    tiles = -(-size // _TILE)
    floats, tokens = pl.pallas_call(
        body,
        name="unmask",
        out_shape=(jax.ShapeDtypeStruct((6, padded), jnp.float32), jax.ShapeDtypeStruct((1, padded), jnp.int32)),
        grid=(padded // rows, tiles),
        in_specs=[
            pl.BlockSpec((1, 1), lambda i, j: (0, 0), memory_space=pltpu.SMEM),
            pl.BlockSpec((rows, dim), lambda i, j: (i, 0)),
            pl.BlockSpec((_TILE, dim), lambda i, j: (j, 0)),
            pl.BlockSpec((2, rows), lambda i, j: (0, i)),
        ],
        out_specs=(pl.BlockSpec((6, rows), lambda i, j: (0, i)), pl.BlockSpec((1, rows), lambda i, j: (0, i))),
        scratch_shapes=[pltpu.VMEM((1, rows), x.dtype) for x in _nothing(1)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=cost_estimate(padded, size, dim, rows, hidden.dtype.itemsize, is_drawn),
        interpret=interpret,
    )(temperature.reshape(1, 1), hidden, kernel, keys)
    return _Running(*(x[None, :count] for x in floats), tokens[:, :count])


def cost_estimate(count, size, dim, rows, itemsize, is_drawn=True):
    """Returns the pl.CostEstimate of the kernel: the head is read once for each block of rows, the logits never.

    Args:
      count: R, hidden states.
      size, dim: V, D of the head.
      rows: R of a block.
      itemsize: bytes of a number of the product.
      is_drawn: whether there is noise.
    """
    return pl.CostEstimate(
        flops=2 * count * size * dim,
        transcendentals=count * size * (3 if is_drawn else 1),
        bytes_accessed=(-(-count // rows) * size * dim + count * dim) * itemsize + 9 * 4 * count,
    )


# ------------------------------------------------------------------------------------------------------------ triton


def _triton(hidden, kernel, words, temperature, interpret=False):
    (count, dim), size = hidden.shape, len(kernel)
    hidden, keys = _padded(hidden, words, _GPU_ROWS)
    padded, is_drawn = len(hidden), words is not None
    tiles = -(-size // _GPU_TILE)
    parts = min(_GPU_PARTS, tiles)
    per_part = -(-tiles // parts)

    def body(temperature, hidden, kernel, keys, floats, tokens):
        at = pl.ds(pl.program_id(0) * _GPU_ROWS, _GPU_ROWS)
        part = pl.program_id(1)
        words = (keys[0:1, at], keys[1:2, at]) if is_drawn else None

        def add(index, running):
            wanted = (part * per_part + index) * _GPU_TILE
            start = jnp.minimum(wanted, size - _GPU_TILE)  # the last tile is moved back; what it repeats does not count

            def deeper(step, logits):
                slice_ = pl.ds(step * _GPU_DEPTH, _GPU_DEPTH)
                return logits + _logits(kernel[pl.ds(start, _GPU_TILE), slice_], hidden[at, slice_])

            logits = jax.lax.fori_loop(0, dim // _GPU_DEPTH, deeper, jnp.zeros((_GPU_TILE, _GPU_ROWS), jnp.float32))
            ids = start + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
            ids = jnp.where(ids >= wanted, ids, -1)
            return _merge(running, _of_tile(logits, ids, words, temperature[0, 0]))

        found = jax.lax.fori_loop(0, jnp.minimum(per_part, tiles - part * per_part), add, _nothing(_GPU_ROWS))
        for number, value in enumerate(found[:-1]):
            floats[pl.ds(part, 1), number, at] = value
        tokens[pl.ds(part, 1), at] = found.token

    floats, tokens = pl.pallas_call(
        body,
        name="unmask",
        out_shape=(
            jax.ShapeDtypeStruct((parts, 6, padded), jnp.float32),
            jax.ShapeDtypeStruct((parts, padded), jnp.int32),
        ),
        grid=(padded // _GPU_ROWS, parts),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        cost_estimate=cost_estimate(padded, size, dim, _GPU_ROWS, hidden.dtype.itemsize, is_drawn),
        interpret=interpret,
    )(temperature.reshape(1, 1), hidden, kernel, keys)
    found = [_Running(*floats[part, :, None, :count], tokens[part, None, :count]) for part in range(parts)]
    return functools.reduce(_merge, found)


IMPLEMENTATIONS = {"reference": of_logits, "tiled": _tiled, "mosaic": _mosaic, "triton": _triton}
