"""Likelihoods of held-out rows: bound, T-step sampler, autoregressive; each with a clustered standard error."""

import functools
import hashlib
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax import files, rng
from dlm_jax.evaluation import reveal
from dlm_jax.information import orders, statistics
from dlm_jax.parallel import sharding
from dlm_jax.progress import Progress


def row_losses(
    losses, rows, *, batch_size, key, mesh=None, label="evaluating", quiet=False, interval=10.0, inputs=(), keep_in=None
):
    """Runs a loss over rows, batch by batch.

    Args:
      losses: (int32[B, L] tokens, key, segment_ids or None, *inputs) -> float32[B, ...], nats a row, or a tuple of such
        arrays; called as it is, so compile it.
      rows: packing.Rows, or anything with `.tokens` and `.segment_ids`.
      batch_size: int; the last batch is padded with its first row.
      key: PRNG key; batch i uses stream(key, "eval", i).
      mesh: Mesh or None.
      label, quiet, interval: of the progress report.
      inputs: further arrays [N, ...], handed over in the same batches.
      keep_in: Kept or None: finished batches are kept there, and not computed again by a second call.
    Returns:
      float64[N, ...], nats a row; a tuple where `losses` returns one.
    """
    count = len(rows.tokens)
    batch_size = min(batch_size, count)
    if mesh is not None:
        ways = mesh.shape["replica"] * mesh.shape["fsdp"]
        batch_size = math.ceil(batch_size / ways) * ways
    parts = keep_in.read(batch_size) if keep_in else []
    with Progress(label, count, quiet=quiet, interval=interval) as progress:
        progress.start_at(min(count, len(parts) * batch_size))
        for index, start in enumerate(range(0, count, batch_size)):
            if index < len(parts):
                continue
            chosen = np.arange(start, start + batch_size)
            chosen[chosen >= count] = start
            tokens = np.asarray(rows.tokens[chosen], np.int32)
            segments = None if rows.segment_ids is None else np.asarray(rows.segment_ids[chosen], np.int32)
            others = tuple(np.asarray(array[chosen]) for array in inputs)
            if mesh is not None:
                where = sharding.batch_sharding(mesh)
                tokens, segments, others = jax.device_put((tokens, segments, others), where)
            with sharding.on_mesh(mesh):
                answer = losses(tokens, rng.stream(key, "eval", index), segments, *others)
            parts.append(jax.tree.map(lambda part, n=count - start: np.asarray(part, np.float64)[:n], answer))
            progress.update(min(count, start + batch_size))
            if keep_in:
                keep_in.write(parts, batch_size, is_last=start + batch_size >= count)
    return jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)


class Kept:
    """Finished batches of a long evaluation in a file, so that an interrupted one goes on where it stopped.

    Args:
      path: .npz file.
      rows: packing.Rows that are evaluated.
      identity: everything else that decides the numbers; a file of another identity is not used.
      seconds: at least this long between two writes; 0 = write every batch.
    """

    def __init__(self, path, rows, *identity, seconds=5.0):
        digest = hashlib.sha256(np.ascontiguousarray(rows.tokens, np.int32)).hexdigest()
        self.path, self.seconds = pathlib.Path(path), seconds
        self.identity = " ".join(map(str, (digest, *identity)))
        self._next = time.monotonic() + seconds

    def read(self, batch_size):
        """Returns the finished batches, an empty list where there are none of this identity."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                if str(file["identity"]) != f"{self.identity} {batch_size}":
                    return []
                width = int(file["width"])
                flat = [file[f"part{i}"] for i in range(int(file["count"]) * max(width, 1))]
        except Exception:  # what a damaged archive raises is anything, and all of it means: not there
            return []  # measured anew: the model and the corpus are still there
        return flat if width == 0 else [tuple(flat[i : i + width]) for i in range(0, len(flat), width)]

    def write(self, parts, batch_size, is_last):
        """Keeps the finished batches, at most every few seconds."""
        started = time.monotonic()
        if not is_last and started < self._next:
            return
        width = len(parts[0]) if isinstance(parts[0], tuple) else 0
        flat = [piece for part in parts for piece in (part if width else [part])]
        arrays = {f"part{i}": piece for i, piece in enumerate(flat)}
        with files.atomic_path(self.path) as temporary, open(temporary, "wb") as file:
            np.savez(file, identity=f"{self.identity} {batch_size}", width=width, count=len(parts), **arrays)
        now = time.monotonic()
        self._next = now + (self.seconds and max(self.seconds, 20 * (now - started)))  # writing stays a small part


def bound(denoiser, params, schedule, num_orders):
    """Returns a loss for `row_losses`: the likelihood bound of a diffusion model."""

    def losses(params, tokens, key, segment_ids):
        return reveal.bound_losses(denoiser, params, tokens, key, num_orders, schedule)

    return functools.partial(jax.jit(losses), params)


def t_step(denoiser, params, schedule, sizes, order="random", widest=None):
    """Returns a loss for `row_losses`: -log p of the T-step sampler, given its order.

    Args:
      sizes: int[T], sum L.
      order: str, a family of information.orders; None where int32[B, L] orders come as the input of `row_losses`.
      widest: int, at least the largest size: sizes of one T with the same `widest` share a program.
    """
    boundaries = jnp.asarray(np.concatenate([[0], np.cumsum(sizes)]), jnp.int32)
    program = _t_step_program(denoiser, widest or int(np.max(sizes)), order, schedule.time_at)
    return functools.partial(program, params, boundaries)


@functools.lru_cache(maxsize=16)
def _t_step_program(denoiser, widest, order, time_at):
    @jax.jit
    def losses(params, boundaries, tokens, key, segment_ids, given=None):
        chosen = orders.draw(order, key, *tokens.shape) if given is None else given
        return reveal.t_step_losses(denoiser, params, tokens, chosen, boundaries, widest, time_at).sum(axis=0)

    return losses


def one_by_one(denoiser, params, schedule, order, num_counts):
    """Returns a loss for `row_losses`: -log p of revealing one token at a time, given an order of a family.

    Args:
      order: str or int32[L].
      num_counts: int, prefixes of the order to look at a row; with L or more of them the loss is exact, else unbiased.
    """

    def losses(params, tokens, key, segment_ids):
        chosen = orders.draw(order, rng.stream(key, "order"), *tokens.shape)
        count_key = rng.stream(key, "count")
        return reveal.order_losses(denoiser, params, tokens, chosen, count_key, num_counts, schedule.time_at)

    return functools.partial(jax.jit(losses), params)


def autoregressive(denoiser, params):
    """Returns a loss for `row_losses`: -log p left to right, of a causal model."""

    def losses(params, tokens, key, segment_ids):
        return reveal.autoregressive_losses(denoiser, params, tokens, segment_ids).sum(axis=1)

    return functools.partial(jax.jit(losses), params)


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
    per_token, stderr = statistics.ratio(nats, tokens, document)
    per_byte, byte_stderr = statistics.ratio(nats / math.log(2), num_bytes, document)
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
