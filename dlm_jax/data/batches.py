"""Batches as a pure function of the step: resume is one integer, and the number of hosts may change.

Rows are visited in a new random order each epoch. The order is a keyed permutation that is computed, not stored
(a Feistel network with cycle walking), so any batch can be asked for directly.
"""

from dataclasses import dataclass

import numpy as np

_ROUNDS = 6


def _mix(x):
    """splitmix64: uint64 -> well-mixed uint64."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index, size, key):
    """Returns where a keyed permutation of range(size) sends each index.

    Args:
      index: uint64[n] in [0, size).
      size: int.
      key: uint64[n], one a permutation.
    Returns:
      uint64[n] in [0, size).
    """
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    out = index.astype(np.uint64)
    pending = np.ones(len(out), bool)
    while pending.any():  # walk the cycle until the value is back inside the range: below 4 rounds on average
        value, keys = out[pending], key[pending]
        left, right = value >> half, value & low
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ _mix(keys + np.uint64(number))) & low)
        out[pending] = (left << half) | right
        pending &= out >= np.uint64(size)
    return out


@dataclass(frozen=True)
class Batches:
    """The batches of a run.

    Args:
      rows: packing.Rows.
      batch_size: int, global.
      seed: int; the same rows, batch size and seed give the same batches for ever.
    """

    rows: object
    batch_size: int
    seed: int

    def indices(self, step):
        """Returns int64[B], the rows of the global batch of a step; every row is visited once an epoch."""
        with np.errstate(over="ignore"):
            position = np.uint64(step) * np.uint64(self.batch_size) + np.arange(self.batch_size, dtype=np.uint64)
            size = np.uint64(len(self.rows))
            epoch = position // size
            key = _mix(_mix(np.full(self.batch_size, self.seed, np.uint64)) + epoch)
            return permute(position % size, len(self.rows), key).astype(np.int64)

    def __call__(self, step, part=slice(None)):
        """Returns the batch of a step: {"tokens": int32[B, L]} and "segment_ids" where the corpus has them.

        Args:
          step: int.
          part: slice, which rows of the global batch.
        """
        chosen = self.indices(step)[part]
        batch = {"tokens": np.asarray(self.rows.tokens[chosen], np.int32)}
        if self.rows.segment_ids is not None:
            batch["segment_ids"] = np.asarray(self.rows.segment_ids[chosen], np.int32)
        return batch
