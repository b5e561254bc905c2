"""Costs of steps: sums of what was measured, the best schedule among measured boundaries, errors by document."""

import functools
import math

import numpy as np
import pytest

from dlm_jax.information import costs, schedules, statistics
from dlm_jax.information.curve import InformationCurve

COUNTS, LENGTH = np.array([0, 1, 3, 4, 7]), 9


@functools.cache
def every_sizes(counts, length):
    """All sizes whose boundaries are among the counts."""
    inner = counts[1:]
    chosen = ([k for bit, k in enumerate(inner) if bits >> bit & 1] for bits in range(1 << len(inner)))
    return [np.diff([0, *cuts, length]) for cuts in chosen]


def measured(counts=COUNTS, length=LENGTH, rows=20, seed=0):
    noise = np.random.default_rng(seed)
    by_row = np.triu(noise.gamma(2.0, 1.0, (rows, len(counts), len(counts))))
    return costs.StepCosts(
        "random", length, counts, by_row, noise.integers(0, 6, rows), noise.integers(5, 40, rows)
    )  # fmt: skip


def direct(step_costs, sizes):
    """Cell by cell: the slots of each cell, given the tokens that were there before the cell's step."""
    boundaries = np.cumsum(sizes) - sizes
    total = np.zeros(len(step_costs.by_row))
    for cell, first in enumerate(step_costs.counts):
        start = max(b for b in boundaries if b <= first)
        total += step_costs.by_row[:, list(step_costs.counts).index(start), cell]
    return total


def test_the_likelihood_of_sizes_is_the_sum_of_their_steps():
    step_costs = measured()
    for sizes in every_sizes(tuple(COUNTS), LENGTH):
        np.testing.assert_allclose(step_costs.nll(sizes), direct(step_costs, sizes), rtol=1e-12)
        if len(sizes) > 1:  # variation: all at once costs something else
            assert np.abs(step_costs.nll([9]) - direct(step_costs, sizes)).min() > 1e-6
    np.testing.assert_allclose(step_costs.nll([9]), step_costs.by_row[:, 0].sum(axis=1), rtol=1e-12)
    by_hand = step_costs.by_row[:, 0, :2].sum(axis=1) + step_costs.by_row[:, 2, 2:].sum(axis=1)
    np.testing.assert_allclose(step_costs.nll((3, 6)), by_hand, rtol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([2, 7], "a step starts at 2 revealed tokens, which was not measured; measured are 0, 1, 3, 4, 7"),
        ([1, 4, 3, 1], "a step starts at 5 revealed tokens"),
        ([4, 4], "sum 8 must be the length 9"),
        ([9, 0], "at least 1 token"),
    ],
)
def test_boundaries_that_were_not_measured_are_refused_by_their_count(sizes, message):
    with pytest.raises(ValueError, match=message):
        measured().nll(sizes)


@pytest.mark.parametrize("seed", range(6))
def test_the_optimal_sizes_are_the_exhaustive_ones(seed):
    step_costs = measured(seed=seed)
    found = step_costs.optimal_sizes(20)
    assert sorted(found) == [1, 2, 3, 4, 5]
    assert sorted(step_costs.optimal_sizes(2)) == [1, 2]
    for t, sizes in found.items():
        every = [other for other in every_sizes(tuple(COUNTS), LENGTH) if len(other) == t]
        means = [step_costs.nll(other).mean() for other in every]
        assert len(schedules.check_sizes(sizes, LENGTH)) == t
        np.testing.assert_allclose(step_costs.nll(sizes).mean(), min(means), rtol=1e-12)
        assert t in (1, 5) or max(means) > min(means) + 0.1  # variation: it matters which are taken


def test_costs_of_a_random_order_come_from_the_mean_loss_of_what_is_hidden():
    noise = np.random.default_rng(4)
    losses = noise.gamma(2.0, 1.0, (12, len(COUNTS)))
    by_row = costs.exchangeable(COUNTS, LENGTH, losses)
    assert by_row.shape == (12, 5, 5)
    cells = [1, 2, 1, 3, 2]
    for i in range(5):
        for j in range(5):
            np.testing.assert_allclose(by_row[:, i, j], losses[:, i] * cells[j] if j >= i else 0.0)
    document = np.arange(12) // 2
    step_costs = costs.StepCosts("random", LENGTH, COUNTS, by_row, document, np.full(12, 30))
    curve = InformationCurve.exact(np.interp(np.arange(LENGTH), COUNTS, losses.mean(axis=0)))
    for sizes in every_sizes(tuple(COUNTS), LENGTH):
        starts = np.cumsum(sizes) - sizes
        want = losses[:, np.searchsorted(COUNTS, starts)] @ sizes  # sum of s_t f(k_t), row by row
        np.testing.assert_allclose(step_costs.nll(sizes), want, rtol=1e-12)
    # The optimum of these costs is the optimum of the curve restricted to the counts.
    for t, sizes in step_costs.optimal_sizes(5).items():
        best = schedules.optimal_sizes(curve, t, counts=COUNTS)
        np.testing.assert_allclose(step_costs.nll(sizes).mean(), step_costs.nll(best).mean(), rtol=1e-12)
    worst = step_costs.nll((1, 2, 1, 3, 2)).mean()
    assert abs(worst - step_costs.nll((9,)).mean()) > 1e-3  # variation


def test_the_summary_is_a_clustered_mean_in_nats_and_in_bits_a_byte():
    step_costs, sizes = measured(), (3, 6)
    nats, document, num_bytes = step_costs.nll(sizes), step_costs.document, step_costs.num_bytes
    summary = step_costs.summary(sizes)
    np.testing.assert_allclose(summary["nll_nats"], nats.mean(), rtol=1e-12)
    np.testing.assert_allclose(summary["bits_per_byte"], nats.sum() / np.log(2) / num_bytes.sum(), rtol=1e-12)
    groups = [np.flatnonzero(document == name) for name in np.unique(document)]

    def spread(residual, size):
        sums = [residual[group].sum() for group in groups]
        return math.sqrt(len(groups) / (len(groups) - 1) * np.square(sums).sum()) / size

    np.testing.assert_allclose(summary["stderr_nats"], spread(nats - nats.mean(), 20), rtol=1e-9)
    bits = nats / np.log(2) - summary["bits_per_byte"] * num_bytes
    np.testing.assert_allclose(summary["bits_per_byte_stderr"], spread(bits, num_bytes.sum()), rtol=1e-9)
    # Variation: rows as clusters of their own have another error.
    assert abs(statistics.ratio(nats, np.ones(20), np.arange(20))[1] / summary["stderr_nats"] - 1) > 0.01


def test_selected_rows_keep_their_costs_documents_and_bytes():
    step_costs = measured()
    for rows in (np.array([3, 5, 8]), step_costs.document == step_costs.document[0]):
        part = step_costs.select(rows)
        np.testing.assert_array_equal(part.nll((3, 6)), step_costs.nll((3, 6))[rows])
        np.testing.assert_array_equal(part.document, step_costs.document[rows])
        np.testing.assert_array_equal(part.num_bytes, step_costs.num_bytes[rows])
        assert (part.order, part.length) == ("random", LENGTH)
        assert len(part.by_row) < len(step_costs.by_row)  # variation: not all of them


def test_a_single_count_or_token_leaves_a_single_schedule():
    step_costs = costs.StepCosts("random", 5, np.array([0]), np.full((3, 1, 1), 2.5), np.arange(3), np.ones(3))
    np.testing.assert_array_equal(step_costs.nll([5]), [2.5] * 3)
    found = step_costs.optimal_sizes(4)
    assert list(found) == [1] and tuple(found[1]) == (5,)
    one = costs.StepCosts("random", 1, np.array([0]), np.full((3, 1, 1), 0.5), np.arange(3), np.ones(3))
    assert one.summary([1])["nll_nats"] == 0.5
    with pytest.raises(ValueError, match="a step starts at 2 revealed tokens"):
        step_costs.nll([2, 3])


# ------------------------------------------------------------------------------- planning on rows, sampling others


def noisy(truth, spread, rows=120, seed=0):
    """Costs of a random order whose curve is `truth`, float64[L], measured at every count on rows of own noise."""
    noise = np.random.default_rng(seed).normal(0.0, spread, (rows, len(truth)))
    table = costs.exchangeable(np.arange(len(truth)), len(truth), truth + noise)
    return costs.StepCosts("random", len(truth), np.arange(len(truth)), table, np.arange(rows), np.full(rows, 9))


def true_excess(truth, sizes):
    """How much more than the best sizes of as many steps, nats, by the true curve."""
    left = np.cumsum(sizes) - sizes
    best = schedules.optimal_sizes(InformationCurve.exact(truth), len(sizes))
    return float(np.dot(sizes, truth[left]) - np.dot(best, truth[np.cumsum(best) - best]))


def test_what_only_chance_favours_is_not_planned():
    """A straight curve, for which uniform sizes are the best: the optimum of 120 noisy rows is not."""
    truth = np.linspace(3.0, 2.5, 32)
    lost = {"planned": 0.0, "optimum": 0.0}
    for seed in range(5):
        table = noisy(truth, spread=1.0, seed=seed)
        for name, found in (("planned", table.planned_sizes(16)), ("optimum", table.optimal_sizes(16))):
            lost[name] += sum(true_excess(truth, found[t]) for t in (2, 4, 8, 16))
    assert lost["planned"] < 0.2 * lost["optimum"]  # and the optimum of the table, the variation, does lose
    assert lost["optimum"] > 5.0


@pytest.mark.parametrize("drop", [3, 20])
def test_a_sharp_curve_is_planned_for(drop):
    """All that is uncertain is decided after `drop` tokens: no smooth curve shows it, and uniform sizes waste it."""
    truth = np.where(np.arange(32) < drop, 3.0, 0.5)
    found = noisy(truth, spread=0.3).planned_sizes(4)
    assert true_excess(truth, found[2]) < 1e-9
    assert true_excess(truth, schedules.uniform_sizes(32, 2)) > 5.0  # variation


def test_planning_needs_no_second_document_and_keeps_single_steps_at_the_end():
    table = noisy(np.linspace(3.0, 2.0, 12), spread=0.1)
    alone = costs.StepCosts("random", 12, table.counts, table.by_row, np.zeros(120, int), table.num_bytes)
    assert alone.planned_sizes(3)[3].tolist() == alone.optimal_sizes(3)[3].tolist()
    for sizes in table.planned_sizes(6, num_single_last=3).values():
        assert sizes[-3:].tolist() == [1, 1, 1] and sizes.sum() == 12
    other = costs.StepCosts("spaced", 12, table.counts, table.by_row, table.document, table.num_bytes)
    assert sorted(other.planned_sizes(6)) == [1, 2, 3, 4, 5, 6]
