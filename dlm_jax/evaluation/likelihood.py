"""Likelihoods of held-out rows: bound, T-step sampler, autoregressive; each with a clustered standard error."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax import rng
from dlm_jax.evaluation import reveal
from dlm_jax.parallel import sharding
from dlm_jax.progress import Progress


def row_losses(losses, rows, *, batch_size, key, mesh=None, label="evaluating", quiet=False, interval=10.0):
    """Runs a loss over rows, batch by batch.

    Args:
      losses: (int32[B, L] tokens, key, segment_ids or None) -> float32[B], nats a row.
      rows: packing.Rows, or anything with `.tokens` and `.segment_ids`.
      batch_size: int; the last batch is padded with its first row.
      key: PRNG key; batch i uses stream(key, "eval", i).
      mesh: Mesh or None.
      label, quiet, interval: of the progress report.
    Returns:
      float64[N], nats a row.
    """
    count = len(rows.tokens)
    batch_size = min(batch_size, count)
    if mesh is not None:
        ways = mesh.shape["replica"] * mesh.shape["fsdp"]
        batch_size = math.ceil(batch_size / ways) * ways
    compiled = jax.jit(losses)
    out = []
    with Progress(label, count, quiet=quiet, interval=interval) as progress:
        for index, start in enumerate(range(0, count, batch_size)):
            chosen = np.arange(start, start + batch_size)
            chosen[chosen >= count] = start
            tokens = np.asarray(rows.tokens[chosen], np.int32)
            segments = None if rows.segment_ids is None else np.asarray(rows.segment_ids[chosen], np.int32)
            if mesh is not None:
                where = sharding.batch_sharding(mesh)
                tokens, segments = jax.device_put((tokens, segments), where)
            answer = compiled(tokens, rng.stream(key, "eval", index), segments)
            out.append(np.asarray(answer, np.float64)[: count - start])
            progress.update(min(count, start + batch_size))
    return np.concatenate(out)


def bound(denoiser, params, schedule, num_orders):
    """Returns a loss for `row_losses`: the likelihood bound of a diffusion model."""

    def losses(params, tokens, key, segment_ids):
        return reveal.bound_losses(denoiser, params, tokens, key, num_orders, schedule)

    return functools.partial(losses, params)


def t_step(denoiser, params, schedule, sizes, order=None):
    """Returns a loss for `row_losses`: -log p of the T-step sampler, given its order.

    Args:
      sizes: int[T], sum L.
      order: int32[L] or None for a random one a row.
    """
    boundaries = jnp.asarray(np.concatenate([[0], np.cumsum(sizes)]), jnp.int32)
    max_size = int(np.max(sizes))

    def losses(params, tokens, key, segment_ids):
        batch, length = tokens.shape
        chosen = rng.random_orders(key, batch, length) if order is None else jnp.broadcast_to(order, tokens.shape)
        by_step = reveal.t_step_losses(denoiser, params, tokens, chosen, boundaries, max_size, schedule.time_at)
        return by_step.sum(axis=0)

    return functools.partial(losses, params)


def autoregressive(denoiser, params):
    """Returns a loss for `row_losses`: -log p left to right, of a causal model."""

    def losses(params, tokens, key, segment_ids):
        return reveal.autoregressive_losses(denoiser, params, tokens, segment_ids).sum(axis=1)

    return functools.partial(losses, params)


def summarize(nats, num_bytes, document, length):
    """Returns the mean and its standard error, clustered by document.

    Args:
      nats: float64[N], per row.
      num_bytes: int[N], bytes of text a row stands for.
      document: int[N], the cluster of each row.
      length: int, tokens a row.
    Returns:
      {"nll_nats_per_token", "stderr" (of it), "bits_per_byte", "bits_per_byte_stderr", "bits_per_token",
      "perplexity" (per token), "num_rows", "num_documents"}.
    """
    tokens = np.full(len(nats), length)
    per_token, stderr = _ratio(nats, tokens, document)
    per_byte, byte_stderr = _ratio(nats / math.log(2), num_bytes, document)
    return {
        "nll_nats_per_token": per_token,
        "stderr": stderr,
        "bits_per_byte": per_byte,
        "bits_per_byte_stderr": byte_stderr,
        "bits_per_token": per_token / math.log(2),
        "perplexity": math.exp(min(per_token, 700.0)),
        "num_rows": len(nats),
        "num_documents": len(np.unique(document)),
    }


def _ratio(values, sizes, cluster):
    """(sum values / sum sizes, its standard error over clusters by linearisation)."""
    _, index = np.unique(cluster, return_inverse=True)
    values, sizes = np.bincount(index, values), np.bincount(index, sizes)
    ratio = values.sum() / sizes.sum()
    count = len(values)
    if count < 2:
        return float(ratio), float("nan")
    residual = values - ratio * sizes
    variance = count / (count - 1) * np.sum(residual**2) / sizes.sum() ** 2
    return float(ratio), float(math.sqrt(variance))
