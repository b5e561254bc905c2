"""How many tokens each step reveals: sizes int64[T], each at least 1, that sum to L.

| sizes      | need to know           | small steps are                                             |
|------------|------------------------|-------------------------------------------------------------|
| uniform    | nothing                | nowhere (the log-linear schedule of MDLM is this one)       |
| cosine     | nothing                | first                                                       |
| reverse_cosine | nothing            | last                                                        |
| logodds    | nothing                | at both ends                                                |
| affine     | bounds on TC or DTC    | last (TC) or first (DTC), with a guarantee                  |
| sqrt       | the curve              | where it falls, by the continuous limit                     |
| optimal    | the curve              | where they help most: the exact minimum of the expected KL  |

A curve is an InformationCurve or its entropy, float64[L]: f(k), mean entropy of a token given k revealed ones, nats.
"""

import math

import numpy as np


def check_sizes(sizes, length, name="sizes"):
    """Returns sizes as int64[T].

    Raises:
      ValueError: unless they are whole numbers, each at least 1, that sum to the length.
    """
    array = np.asarray(sizes)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise ValueError(f"{name}={_short(sizes)}: must be a list of whole numbers")
    if array.min() < 1:
        raise ValueError(f"{name}={_short(sizes)}: every step must reveal at least 1 token, not {array.min()}")
    total = sum(array.tolist())  # in whole numbers of Python, which do not wrap around
    if total != length:
        raise ValueError(f"{name}={_short(sizes)}: sum {total} must be the length {length}")
    return array.astype(np.int64)


def uniform_sizes(length, num_steps):
    """Returns the most even sizes: boundaries floor(t L / T). The log-linear schedule of MDLM is this one.

    Raises:
      ValueError: unless 1 <= num_steps <= length.
    """
    _check_steps(length, num_steps)
    return np.diff([t * length // num_steps for t in range(num_steps + 1)])


def cosine_sizes(length, num_steps):
    """Returns sizes of the cosine schedule, small steps first: boundaries round(L (1 - cos(pi t / 2T))).

    Raises:
      ValueError: unless 1 <= num_steps <= length.
    """
    _check_steps(length, num_steps)
    return _from_boundaries(
        [round(length * (1 - math.cos(math.pi * t / (2 * num_steps)))) for t in range(num_steps + 1)], length
    )


def reverse_cosine_sizes(length, num_steps):
    """Returns sizes of the cosine schedule backwards, small steps last: boundaries round(L sin(pi t / 2T)).

    Raises:
      ValueError: unless 1 <= num_steps <= length.
    """
    _check_steps(length, num_steps)
    return _from_boundaries(
        [round(length * math.sin(math.pi * t / (2 * num_steps))) for t in range(num_steps + 1)], length
    )


def logodds_sizes(length, num_steps):
    """Returns sizes whose boundaries are evenly spaced in the log-odds of the revealed share; at T = 2, halves.

    Raises:
      ValueError: unless 1 <= num_steps <= length.
    Source: the natural clock of Wainwright (2608.13520).
    """
    _check_steps(length, num_steps)
    if num_steps <= 2:
        return uniform_sizes(length, num_steps)
    reach = math.log(length - 1)
    inner = [round(length / (1 + math.exp(reach - 2 * reach * u / (num_steps - 2)))) for u in range(num_steps - 1)]
    return _from_boundaries([0, *inner, length], length)


# Schedules that need nothing but the length: name -> (length, num_steps) -> int64[T].
FIXED = {
    "uniform": uniform_sizes,
    "cosine": cosine_sizes,
    "reverse_cosine": reverse_cosine_sizes,
    "logodds": logodds_sizes,
}


def sqrt_sizes(curve, num_steps):
    """Returns sizes by the square-root rule: boundaries at equal increments of the integral of sqrt(-f').

    Close to the optimum for smooth curves, poor for spiky ones; a check on `optimal_sizes`, not a rival.

    Raises:
      ValueError: unless 1 <= num_steps <= length.
    Source: the continuous limit of the exact error (Lavenant & Zanella 2510.25544; Wainwright 2608.13520).
    """
    entropy = entropy_of(curve)
    length = len(entropy)
    _check_steps(length, num_steps)
    if length == 1:
        return np.ones(1, np.int64)
    density = np.sqrt(np.maximum(entropy[:-1] - entropy[1:], 0.0))
    reached = np.concatenate([[0.0], np.cumsum(np.append(density, density[-1:]))])  # at 0 .. L revealed
    targets = reached[-1] * np.arange(num_steps + 1) / num_steps
    return _from_boundaries([round(k) for k in np.interp(targets, reached, np.arange(length + 1))], length)


def affine_sizes(length, alpha, beta):
    """Returns the fewest steps of sizes at most 1 + alpha (L - k - 1) + beta (k + 1), k being revealed before the step.

    For every distribution their expected KL is at most alpha TC + beta DTC.

    Args:
      length: int, L.
      alpha, beta: float >= 0.
    Source: from the exact error as a mixture of steps; sharper than Chen, Cong & Li 2511.04647, Theorem 9.
    """
    if not (alpha >= 0 and beta >= 0):
        raise ValueError(f"alpha={alpha}, beta={beta}: must be at least 0")
    sizes, revealed = [], 0
    while revealed < length:
        allowed = alpha * (length - revealed - 1) + beta * (revealed + 1)
        sizes.append(int(min(length - revealed, 1 + math.floor(min(allowed, length) + 1e-12))))
        revealed += sizes[-1]
    return np.asarray(sizes, np.int64)


def guaranteed_sizes(length, max_kl, *, total_correlation=None, dual_total_correlation=None, resolution=400):
    """Returns the fewest affine steps whose expected KL is at most `max_kl` for all data with such TC and DTC.

    Args:
      length: int, L.
      max_kl: float > 0, nats per sequence.
      total_correlation, dual_total_correlation: float, nats per sequence, upper bounds; at least one.
      resolution: int, how many ways to split the budget between the two are tried.
    Raises:
      ValueError: if neither is given or the budget is not above 0.
    """
    if not max_kl > 0:
        raise ValueError(f"max_kl={max_kl}: must be above 0 nats")
    if total_correlation is None and dual_total_correlation is None:
        raise ValueError("total_correlation, dual_total_correlation: at least one must be given")
    shares = np.linspace(0, 1, resolution + 1)
    if total_correlation is None:
        shares = [0.0]
    elif dual_total_correlation is None:
        shares = [1.0]

    def rate(share, mass):
        return 0.0 if share == 0 else length if mass * length <= share * max_kl else share * max_kl / mass

    tried = [affine_sizes(length, rate(s, total_correlation), rate(1 - s, dual_total_correlation)) for s in shares]
    return min(tried, key=len)


def entropy_of(curve):
    """Returns float64[L], f(k), of a curve or of an array.

    Raises:
      ValueError: unless it is a finite vector.
    """
    entropy = np.asarray(getattr(curve, "entropy", curve), np.float64)
    if entropy.ndim != 1 or not len(entropy) or not np.isfinite(entropy).all():
        raise ValueError(f"curve: shape {list(entropy.shape)} must be finite numbers [L]")
    return entropy


def optimal_sizes(curve, num_steps, *, counts=None):
    """Returns the int64[T] with the least expected KL among all sizes.

    Args:
      curve: InformationCurve or float64[L].
      num_steps: int, T.
      counts: int[K], starting with 0: only these numbers of revealed tokens may be boundaries (those that were
        measured, so that no interpolation enters); None for all.
    Raises:
      ValueError: if there are fewer boundaries than steps.
    """
    entropy = entropy_of(curve)
    allowed = np.arange(len(entropy)) if counts is None else np.asarray(counts)
    if not 1 <= num_steps <= len(allowed):
        raise ValueError(f"num_steps={num_steps}: must be between 1 and the {len(allowed)} boundaries that are allowed")
    return optimal_schedules(entropy, num_steps, counts=allowed)[1][num_steps]


def optimal_schedules(curve, max_steps, *, counts=None, is_enough=None):
    """Returns the best schedules for every number of steps at once.

    Minimises sum s_t f(k_t), which is the expected KL up to the constant sum f(k): a shortest path with T edges. Where
    f never rises the path costs are Monge and each layer takes O(K log K) (monotone minima); else O(K^2).

    Args:
      curve: InformationCurve or float64[L].
      max_steps: int, T.
      counts: as in `optimal_sizes`.
      is_enough: expected KL -> bool, stops early; or None.
    Returns:
      ({T: nats of the best T steps, above one token at a time}, {T: int64[T]}).
    Source: the exact error is additive over steps (Chen, Cong & Li 2511.04647, Theorem 4); Monge by its second
      difference (d - c)(f(a) - f(b)).
    """
    entropy = entropy_of(curve)
    length = len(entropy)
    starts = np.arange(length) if counts is None else _check_counts(counts, length)
    edges = np.append(starts, length)
    heights = entropy[starts]
    is_monotone = bool(np.all(np.diff(heights) <= 1e-10))  # rounding of exact curves is smaller
    layer = _monotone_layer if is_monotone else _any_layer
    best, cuts = np.full(len(edges), np.inf), []
    best[0] = 0.0
    total, errors = entropy.sum(), {}
    for step in range(1, min(max_steps, len(starts)) + 1):
        best, cut = layer(best, edges, heights, step)
        cuts.append(cut)
        errors[step] = float(best[-1] - total)
        if is_enough is not None and is_enough(errors[step]):
            break
    return errors, {step: _trace(cuts[:step], edges) for step in errors}


def _check_counts(counts, length):
    counts = np.asarray(counts)
    if counts.ndim != 1 or not len(counts) or counts[0] != 0 or np.any(np.diff(counts) < 1) or counts[-1] >= length:
        raise ValueError(f"counts={_short(counts)}: must increase from 0 and stay below the length {length}")
    return counts.astype(np.int64)


def _any_layer(best, edges, heights, step):
    """best'[b] = min over a < b of best[a] + (edges[b] - edges[a]) heights[a], and the a."""
    lines = best[:-1] - edges[:-1] * heights
    values = np.full((len(edges), len(heights)), np.inf)
    below = np.tril_indices(len(heights))
    values[below[0] + 1, below[1]] = lines[below[1]] + edges[below[0] + 1] * heights[below[1]]
    cut = values.argmin(axis=1)
    return values[np.arange(len(edges)), cut], cut


def _monotone_layer(best, edges, heights, step):
    """The same where the minimising a never falls as b rises: rows halfway between known ones, all at once."""
    with np.errstate(invalid="ignore"):
        lines = best[:-1] - edges[:-1] * heights
    size = len(edges)
    new, cut = np.full(size, np.inf), np.zeros(size, np.int64)
    stride = 1 << max(0, (size - step - 1).bit_length())
    while stride:
        rows = np.arange(step + stride - 1, size, 2 * stride)
        if len(rows):
            # The neighbours at distance `stride` are known, where they exist.
            low = np.where(rows - stride >= step, cut[np.maximum(rows - stride, 0)], step - 1)
            has_next = rows + stride < size
            high = np.where(has_next, cut[np.minimum(rows + stride, size - 1)], rows - 1)
            high = np.maximum(np.minimum(high, rows - 1), low)
            widths = high - low + 1
            first = np.concatenate([[0], np.cumsum(widths)[:-1]])
            columns = np.arange(widths.sum()) - np.repeat(first - low, widths)
            values = lines[columns] + np.repeat(edges[rows], widths) * heights[columns]
            least = np.minimum.reduceat(values, first)
            hit = np.flatnonzero(values == np.repeat(least, widths))
            leftmost = hit[np.searchsorted(hit, first)]
            new[rows], cut[rows] = least, columns[leftmost]
        stride //= 2
    return new, cut


def _trace(cuts, edges):
    place, boundaries = len(edges) - 1, [len(edges) - 1]
    for cut in reversed(cuts):
        place = cut[place]
        boundaries.append(place)
    return np.diff(edges[boundaries[::-1]])


def optimal_on_grid(edges, costs, max_steps):
    """Returns {T: int64[T]}, the sizes of least total cost, for any table of costs.

    Args:
      edges: int64[K + 1], 0 = edges[0] < ... < edges[K] = L, the boundaries allowed.
      costs: float64[K, K + 1], of the step from edges[a] to edges[b].
      max_steps: int.
    """
    edges = np.asarray(edges)
    count = len(edges) - 1
    table = np.where(np.arange(count + 1)[None] > np.arange(count)[:, None], costs, np.inf)
    best, cuts, found = np.concatenate([[0.0], np.full(count, np.inf)]), [], {}
    for step in range(1, min(max_steps, count) + 1):
        values = best[:-1, None] + table
        cuts.append(values.argmin(axis=0))
        best = values.min(axis=0)
        found[step] = _trace(cuts, edges)
    return found


def fewest_steps(curve, max_kl, *, counts=None):
    """Returns (sizes, kl): the smallest T whose best schedule keeps the expected KL at or below a budget.

    Args:
      curve: InformationCurve or float64[L].
      max_kl: float, nats per sequence (on a measured curve: above one token at a time with the same model).
      counts: as in `optimal_sizes`.
    Raises:
      ValueError: if no number of steps can meet the budget; the message says what could be met.
    """
    if not max_kl >= 0:
        raise ValueError(f"max_kl={max_kl}: must be at least 0 nats")
    slack = 1e-9  # one token at a time is exact; its rounding is not
    length = len(entropy_of(curve))
    errors, sizes = optimal_schedules(curve, length, counts=counts, is_enough=lambda kl: kl <= max_kl + slack)
    last = max(errors)
    if errors[last] > max_kl + slack:
        raise ValueError(
            f"max_kl={max_kl}: cannot be met with boundaries at {last} measured counts; the least possible is "
            f"{errors[last]:.4g} nats, in {last} steps"
        )
    return sizes[last], max(errors[last], 0.0)


def few_distinct_sizes(curve, num_steps, max_runs=4):
    """Returns the best sizes that consist of at most `max_runs` runs of equal steps: few compiled loops, no padding.

    Args:
      curve: InformationCurve or float64[L].
      num_steps: int, T; fewer are used only where they do as well.
      max_runs: int.
    Returns:
      (int64[T' <= T], float): the sizes, and their price: nats above `optimal_sizes` with as many steps.
    """
    entropy = entropy_of(curve)
    length = len(entropy)
    _check_steps(length, num_steps)
    optimum = optimal_schedules(entropy, num_steps)
    # Candidates: every size where that is cheap, else those that the optimum uses and the even one.
    step_sizes = np.arange(1, length + 1)
    if length * length * num_steps > 5e7:
        step_sizes = np.unique(np.concatenate([optimum[1][num_steps], [length // num_steps], [1]]))
    runs = [np.full((num_steps + 1, length + 1), np.inf)]  # [steps used, revealed]
    runs[0][0, 0] = 0.0
    choices = []
    for _ in range(max_runs):
        before = runs[-1]
        after, chosen, first = before.copy(), np.zeros(before.shape, np.int64), {}
        for size in step_sizes:
            going = np.full(before.shape, np.inf)
            starts_here = np.zeros(before.shape, bool)
            cost = size * entropy[: length - size + 1]
            for t in range(1, num_steps + 1):
                fresh, onward = before[t - 1, : length - size + 1], going[t - 1, : length - size + 1]
                starts_here[t, size:] = fresh <= onward
                going[t, size:] = np.minimum(fresh, onward) + cost
            better = going < after - 1e-12
            after[better], chosen[better] = going[better], size
            first[size] = starts_here
        runs.append(after)
        choices.append((chosen, first))
    used = int(np.argmin(np.where(np.isfinite(runs[-1][:, length]), runs[-1][:, length].round(12), np.inf)))
    sizes = _trace_runs(choices, used, length)
    price = float(np.sum(sizes * entropy[np.cumsum(sizes) - sizes]) - entropy.sum() - optimum[0][len(sizes)])
    return sizes, max(price, 0.0)


def _trace_runs(choices, steps, revealed):
    sizes = []
    for chosen, first in reversed(choices):
        size = chosen[steps, revealed]
        while size:
            is_first = first[size][steps, revealed]
            sizes.append(size)
            steps, revealed = steps - 1, revealed - size
            if is_first:
                break
    return np.asarray(sizes[::-1], np.int64)


def _check_steps(length, num_steps):
    if not 1 <= num_steps <= length:
        raise ValueError(f"num_steps={num_steps}: must be between 1 and the length {length}")


def _from_boundaries(boundaries, length):
    """Makes every size at least 1: push up from the left, then down from the right."""
    boundaries = list(boundaries)
    boundaries[0], boundaries[-1] = 0, length
    for t in range(1, len(boundaries)):
        boundaries[t] = max(boundaries[t], boundaries[t - 1] + 1)
    boundaries[-1] = length
    for t in range(len(boundaries) - 2, 0, -1):
        boundaries[t] = min(boundaries[t], boundaries[t + 1] - 1)
    return np.diff(boundaries)


def _short(sizes):
    text = str(list(sizes)) if isinstance(sizes, (list, tuple, np.ndarray)) else repr(sizes)
    return text if len(text) <= 60 else text[:57] + "..."
