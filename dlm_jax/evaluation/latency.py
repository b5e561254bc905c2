"""How long a step of the sampler takes on this device, by how many tokens it reveals."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.config import SampleConfig
from dlm_jax.information.plan import Latency
from dlm_jax.progress import Progress
from dlm_jax.sampling import loop

_STEPS = 8  # per timed call, so that the call itself weighs little


def measure(denoiser, params, length, batch_size, *, time_at=None, repeats=5, quiet=False, interval=10.0):
    """Returns the Latency of the real sampler in random order, and of the same network left to right.

    Every size is run as a few equal steps on a canvas that leaves them to do, interleaved over the repeats.

    Args:
      denoiser, params: the model.
      length: int, L.
      batch_size: int, B.
      time_at: masked share -> time, of the schedule.
      repeats: int, timed calls a size.
      quiet, interval: of the progress report.
    """
    sizes = np.unique(np.round(np.geomspace(1, length, min(4, length))).astype(int))
    key = jax.random.key(0)
    seconds = np.full((repeats + 1, len(sizes)), np.nan)
    floor = np.full(repeats + 1, np.nan)
    one_token = _one_token(denoiser, params, batch_size, time_at)
    with Progress("timing the sampler", (repeats + 1) * len(sizes), quiet=quiet, interval=interval) as progress:
        for repeat in range(repeats + 1):
            for index, size in enumerate(sizes):
                steps = max(1, min(_STEPS, length // size))
                canvas = np.zeros((batch_size, length), np.int32)
                canvas[:, length - steps * size :] = denoiser.mask_id
                plan = [size] * steps if steps * size == length else [length - steps * size, *[size] * steps]
                start = time.perf_counter()
                loop.run(denoiser, params, key, canvas, SampleConfig(), sizes=plan, time_at=time_at)
                seconds[repeat, index] = (time.perf_counter() - start) / steps
                progress.update(repeat * len(sizes) + index + 1)
            start = time.perf_counter()
            jax.block_until_ready(one_token())
            floor[repeat] = time.perf_counter() - start
    low, middle, high = np.quantile(seconds[1:], (0.25, 0.5, 0.75), axis=0)  # the first repeat compiles
    return Latency(
        device=jax.devices()[0].device_kind,
        batch_size=batch_size,
        step_sizes=sizes,
        seconds=np.maximum.accumulate(middle),  # a wider step is not faster: what looks so is noise
        spread=(high - low) / 2,
        autoregressive={"uncached": float(middle[0]), "cached_floor": float(np.median(floor[1:]))},
    )


def _one_token(denoiser, params, batch_size, time_at):
    """A forward pass over one token a row: the least a step of an autoregressive sampler with a cache can do."""
    tokens = jnp.zeros((batch_size, 1), jnp.int32)

    @jax.jit
    def forward(params):
        time_of = time_at(jnp.zeros(batch_size)) if denoiser.needs_time else None
        hidden, _ = denoiser.hidden(params, tokens, time=time_of)
        return denoiser.logits(params, hidden)

    return lambda: forward(params)
