"""Times works in turn, so that a slow minute of the machine falls on all of them, beside the machine's ceilings."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.progress import Progress

_MATMULS = (1024, 2048, 4096)
_COPY_BYTES = 1 << 27


@dataclass(frozen=True)
class Work:
    """Something to be timed.

    Args:
      name: str, for example "train/A".
      run: () -> anything, does the work once and waits until it is done; a float is how long the host took to ask
        for it, where that is known.
      tokens: int, that one run is about; 0 where there are none.
      flops: float, operations required by formula, whatever the implementation; 0 where they do not count.
      peak_memory_bytes: int, of its program by the compiler's account, or None.
      notes: dict of plain values.
    """

    name: str
    run: Callable
    tokens: int = 0
    flops: float = 0.0
    peak_memory_bytes: int | None = None
    notes: dict = field(default_factory=dict)


def ceilings(dtype):
    """Returns the Works whose best speeds are this machine's ceilings: square matrix products, and a copy of memory.

    Args:
      dtype: of the computation.
    """

    def product(size):
        # Random numbers: some processors are faster on zeros.
        left, right = (jax.random.normal(jax.random.key(i), (size, size), jnp.float32).astype(dtype) for i in (0, 1))
        multiply = jax.jit(jnp.matmul)
        return Work(f"ceiling/matmul {size}", lambda: jax.block_until_ready(multiply(left, right)), flops=2.0 * size**3)

    source = jnp.ones(_COPY_BYTES // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return [
        *map(product, _MATMULS),
        Work("ceiling/copy", lambda: jax.block_until_ready(copy(source)), notes={"bytes": 2 * _COPY_BYTES}),
    ]


def measure(works, *, repeats=5, quiet=False, interval=10.0, clock=time.perf_counter):
    """Returns {name: {"seconds", "spread", "first_seconds", "dispatch_seconds"}}: medians of interleaved runs after one
    that compiles.

    Args:
      works: list of Work.
      repeats: int, timed runs of each.
      quiet, interval: of the progress report.
      clock: () -> seconds.
    """
    seconds, dispatch = np.zeros((2, repeats + 1, len(works)))
    with Progress("timing", (repeats + 1) * len(works), quiet=quiet, interval=interval) as progress:
        for repeat in range(repeats + 1):
            for index, work in enumerate(works):
                started = clock()
                asked = work.run()
                dispatch[repeat, index] = asked if isinstance(asked, float) else np.nan
                seconds[repeat, index] = clock() - started
                progress.update(progress.done + 1)
    low, middle, high = np.quantile(seconds[1:], (0.25, 0.5, 0.75), axis=0)
    return {
        work.name: {
            "seconds": float(middle[index]), "spread": float(high[index] - low[index]) / 2,
            "first_seconds": float(seconds[0, index]),
            "dispatch_seconds": None if np.isnan(dispatch[1:, index]).any() else float(np.median(dispatch[1:, index])),
        }
        for index, work in enumerate(works)
    }  # fmt: skip


def table(works, timings):
    """Returns (ceiling, rows) of plain values, as `dlm bench` prints them.

    ceiling: {"flops_per_second" of the best matrix product, "bytes_per_second"}; a row: name, seconds, spread (half the
    range of the middle half), first_seconds, dispatch_seconds (of the host, to ask for it), tokens_per_second,
    share_of_ceiling, peak_memory_bytes, and the notes of its work (compile_seconds where it was compiled beforehand).
    """
    best = max(work.flops / timings[work.name]["seconds"] for work in works if work.name.startswith("ceiling/matmul"))
    copied = next(work for work in works if work.name == "ceiling/copy")
    ceiling = {
        "flops_per_second": best,
        "bytes_per_second": copied.notes["bytes"] / timings["ceiling/copy"]["seconds"],
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "jax": jax.__version__,
    }
    rows = []
    for work in works:
        if work.name.startswith("ceiling/"):
            continue
        timing = timings[work.name]
        rows.append({
            "name": work.name, **timing,
            "tokens_per_second": work.tokens / timing["seconds"] if work.tokens else None,
            "share_of_ceiling": work.flops / timing["seconds"] / best if work.flops else None,
            "peak_memory_bytes": work.peak_memory_bytes, **work.notes,
        })  # fmt: skip
    return ceiling, rows
