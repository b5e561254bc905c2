"""Measured costs of steps: what revealing the next tokens of an order costs, row by row of a corpus."""

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from dlm_jax.information import schedules, statistics
from dlm_jax.information.curve import smoothed

_FOLDS = 5  # of documents, to tell a gain from chance


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
        return self._optimum(self.by_row.mean(axis=0), max_steps, num_single_last)

    def _optimum(self, mean, max_steps, num_single_last):
        """`optimal_sizes` of a table float64[K, K] of mean costs."""
        mean = np.triu(mean)
        to_edge = np.concatenate([np.zeros((len(mean), 1)), np.cumsum(mean, axis=1)], axis=1)  # [K, K + 1]
        edges = np.append(self.counts, self.length)
        wide = int(np.searchsorted(edges, self.length - num_single_last))  # boundaries up to the single steps
        found = schedules.optimal_on_grid(edges[: wide + 1], to_edge[:wide, : wide + 1], max_steps - num_single_last)
        ones = np.ones(num_single_last, np.int64)
        return {steps + num_single_last: np.concatenate([sizes, ones]) for steps, sizes in found.items()}

    def planned_sizes(self, max_steps, num_single_last=0):
        """Returns {T: int64[T]}, good sizes for other rows than these: what only chance would favour is not planned.

        The optimum of a measured table is in part the optimum of its noise. So three kinds of sizes are compared by
        cross-validation over documents: uniform ones, the optimum of a smooth curve (random order only), the optimum of
        the table. For every T the first of them is taken that the best does not beat by more than one standard error.

        Args:
          max_steps, num_single_last: as in `optimal_sizes`.
        """
        ways = [
            functools.partial(way, max_steps=max_steps, num_single_last=num_single_last)
            for way in (StepCosts._uniform, StepCosts._smooth_optimum, StepCosts.optimal_sizes)
        ]
        on_all = [way(self) for way in ways]
        documents, fold = np.unique(self.document, return_inverse=True)
        fold %= min(_FOLDS, len(documents))
        if len(documents) < 2:
            return on_all[-1]
        elsewhere = [[way(self.select(fold != index)) for index in range(fold.max() + 1)] for way in ways]
        found = {}
        for steps in on_all[-1]:
            nats = {}
            for number, plans in enumerate(elsewhere):
                if all(steps in plan for plan in plans) and steps in on_all[number]:
                    nats[number] = np.zeros(len(self.document))
                    for index, plan in enumerate(plans):
                        nats[number][fold == index] = self.select(fold == index).nll(plan[steps])
            best = min(nats, key=lambda number: nats[number].mean())
            for number in sorted(nats):
                worse, stderr = statistics.ratio(nats[number] - nats[best], np.ones(len(nats[best])), self.document)
                if worse <= stderr:
                    found[steps] = on_all[number][steps]
                    break
        return found

    def _uniform(self, max_steps, num_single_last):
        edges = set(self.counts.tolist())
        made = {
            steps: schedules.uniform_sizes(self.length, steps) for steps in range(1, min(max_steps, self.length) + 1)
        }
        fits = {steps: sizes for steps, sizes in made.items() if set((np.cumsum(sizes) - sizes).tolist()) <= edges}
        return {} if num_single_last else fits

    def _smooth_optimum(self, max_steps, num_single_last):
        if not isinstance(self.order, str) or self.order != "random":
            return {}
        losses = self.mean_losses
        smooth = smoothed(self.length, self.counts, losses.mean(axis=0), losses.std(axis=0))
        return self._optimum(exchangeable(self.counts, self.length, smooth[None])[0], max_steps, num_single_last)


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
