"""How many tokens each step reveals: sizes int64[T], each at least 1, that sum to L."""

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
    if array.sum() != length:
        raise ValueError(f"{name}={_short(sizes)}: sum {array.sum()} must be the length {length}")
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
