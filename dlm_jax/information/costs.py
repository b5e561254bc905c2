"""Measured costs of steps: what revealing the next tokens of an order costs, row by row of a corpus."""

import itertools
from dataclasses import dataclass

import numpy as np

from dlm_jax.information import schedules, statistics


@dataclass(frozen=True)
class StepCosts:
    """What a step costs that starts and ends at measured numbers of revealed tokens.

    The T-step sampler's -log p of a row, given its order, is the sum of the costs of its steps: any sizes whose
    boundaries were measured are evaluated without another forward pass, and without interpolation.

    Args:
      order: str or list, the order family it was measured in.
      length: int, L.
      counts: int64[K], increasing, the first is 0.
      by_row: float64[N, K, K], nats of the slots counts[j] .. counts[j + 1] - 1 given the first counts[i].
      document: int[N], the cluster of each row.
      num_bytes: int[N], bytes of text a row stands for.
    """

    order: object
    length: int
    counts: np.ndarray
    by_row: np.ndarray
    document: np.ndarray
    num_bytes: np.ndarray

    def nll(self, sizes):
        """Returns float64[N], -log p of each row in nats, of the sampler with these sizes in this order.

        Raises:
          ValueError: if a step starts at a number of revealed tokens that was not measured.
        """
        sizes = schedules.check_sizes(sizes, self.length)
        edges = np.append(self.counts, self.length)
        boundaries = np.concatenate([[0], np.cumsum(sizes)])
        missing = sorted(set(boundaries.tolist()) - set(edges.tolist()))
        if missing:
            raise ValueError(
                f"sizes: a step starts at {missing[0]} revealed tokens, which was not measured; "
                f"measured are {', '.join(map(str, self.counts))}"
            )
        place = np.searchsorted(edges, boundaries)
        return sum(self.by_row[:, start, start:stop].sum(axis=1) for start, stop in itertools.pairwise(place))

    @property
    def mean_losses(self):
        """float64[N, K], mean cost of a hidden token of each row, nats, from every measured count."""
        return self.by_row.sum(axis=2) / (self.length - self.counts)

    def select(self, rows):
        """Returns the StepCosts of some rows (an index array or a mask)."""
        return StepCosts(
            self.order, self.length, self.counts, self.by_row[rows], self.document[rows], self.num_bytes[rows]
        )

    def summary(self, sizes):
        """Returns {"nll_nats", "stderr_nats"} a row and {"bits_per_byte", "bits_per_byte_stderr"} of these sizes."""
        nats = self.nll(sizes)
        per_row, stderr = statistics.ratio(nats, np.ones(len(nats)), self.document)
        bits, bits_stderr = statistics.ratio(nats / np.log(2), self.num_bytes, self.document)
        return {"nll_nats": per_row, "stderr_nats": stderr, "bits_per_byte": bits, "bits_per_byte_stderr": bits_stderr}

    def optimal_sizes(self, max_steps, num_single_last=0):
        """Returns {T: int64[T]} for T up to min(max_steps, K), the best sizes whose boundaries were measured.

        Args:
          max_steps: int.
          num_single_last: int, so many last steps reveal one token each; these boundaries must have been measured.
        """
        mean = np.triu(self.by_row.mean(axis=0))
        to_edge = np.concatenate([np.zeros((len(mean), 1)), np.cumsum(mean, axis=1)], axis=1)  # [K, K + 1]
        edges = np.append(self.counts, self.length)
        wide = int(np.searchsorted(edges, self.length - num_single_last))  # boundaries up to the single steps
        found = schedules.optimal_on_grid(edges[: wide + 1], to_edge[:wide, : wide + 1], max_steps - num_single_last)
        ones = np.ones(num_single_last, np.int64)
        return {steps + num_single_last: np.concatenate([sizes, ones]) for steps, sizes in found.items()}


def exchangeable(counts, length, mean_losses):
    """Returns float64[N, K, K], the costs of a random order from the mean loss of all hidden tokens.

    In a random order the hidden tokens are exchangeable: their mean is the expected loss of each, with less noise.

    Args:
      counts: int64[K].
      length: int.
      mean_losses: float64[N, K].
    """
    cells = np.diff(np.append(counts, length))
    is_ahead = np.arange(len(counts))[None] >= np.arange(len(counts))[:, None]
    return mean_losses[:, :, None] * np.where(is_ahead, cells[None], 0)
