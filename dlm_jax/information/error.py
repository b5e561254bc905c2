"""What revealing many tokens at once costs: exact errors, and bounds on them.

The sampler reveals sizes s_1 .. s_T of tokens in a random order, each step drawing its tokens independently given all
revealed before; k_t tokens are revealed before step t. Its expected KL error is

  E KL = sum_t [ s_t f(k_t) - (f(k_t) + ... + f(k_t + s_t - 1)) ]

(Chen, Cong & Li 2511.04647, Theorem 4; Lavenant & Zanella 2510.25544), the mean over orders of the error given the
order; the law with the order forgotten is at most that far off.
"""

import math

import numpy as np
from scipy import special

from dlm_jax.information.schedules import check_sizes, entropy_of


def error_weights(sizes, length):
    """Returns float64[L], such that weights . f is the expected KL of the sizes: s_t at k_t, minus 1 everywhere.

    Raises:
      ValueError: unless the sizes are whole numbers of at least 1 that sum to the length.
    """
    sizes = check_sizes(sizes, length)
    weights = np.full(length, -1.0)
    weights[np.cumsum(sizes) - sizes] += sizes
    return weights


def expected_kl(curve, sizes):
    """Returns the expected KL error of a sampler with these sizes in random order, nats per sequence.

    On an exact curve with exact conditionals this is the KL. On a measured one: the excess over revealing one by one
    with the same model; that model's own error comes on top and cannot be told from entropy by its losses.

    Args:
      curve: InformationCurve or float64[L].
      sizes: int[T], sum L.
    Raises:
      ValueError: if the sizes are not valid.
    """
    entropy = entropy_of(curve)
    return float(error_weights(sizes, len(entropy)) @ entropy)


def expected_kl_with_error(curve, sizes):
    """Returns (nats per sequence, standard error) of the expected KL; from the raw means, so it is linear in them."""
    return curve.linear(error_weights(sizes, curve.length))


def negative_log_likelihood(curve, sizes):
    """Returns (nats per sequence, standard error) of sum_t s_t f(k_t), what the T-step sampler assigns to the corpus.

    Minus the entropy H(X) of the data it is the whole error, sampling and model (THEORY: the total error identity):
    differences between schedules need neither H(X) nor the true curve.
    """
    return curve.linear(error_weights(sizes, curve.length) + 1.0)


def li_cai_upper_bound(mutual_information, sizes):
    """Returns the upper bound of Li & Cai on the expected KL (the model's own error not included), nats.

    Holds for every distribution and every sizes. Loose by 2 for linear curves; see `upper_bound` for the sharper form.

    Args:
      mutual_information: float, sum_i I(X_i; X_-i), nats per sequence.
      sizes: int[T].
    Source: Li & Cai 2505.21400, Theorem 1.
    """
    sizes = np.asarray(sizes)
    return float((2.0 ** math.ceil(math.log2(sizes.max())) - 1) / sizes.sum() * mutual_information)


def upper_bound(mutual_information, sizes):
    """Returns (s_max - 1) / L times the mutual information: the sharper upper bound, attained by MDS codes.

    Args as in `li_cai_upper_bound`. Source: Chen, Cong & Li 2511.04647, appendix F.1.
    """
    sizes = np.asarray(sizes)
    return float((sizes.max() - 1) / sizes.sum() * mutual_information)


def li_cai_lower_bound(curve, max_size):
    """Returns nats: some schedule whose largest step is about `max_size` has at least this expected KL.

    A statement of existence, not about each schedule: the best one may be far below.

    Args:
      curve: InformationCurve or float64[L].
      max_size: int in 1..L.
    Source: Li & Cai 2505.21400, Theorem 2, with the constant 1/16 and subsets of L - max_size 2^-j tokens.
    """
    entropy = entropy_of(curve)
    length = len(entropy)
    if not 1 <= max_size <= length:
        raise ValueError(f"max_size={max_size}: must be between 1 and the length {length}")
    if max_size == 1:
        return 0.0  # the theorem's constants are for schedules that reveal tokens together
    total, j = 0.0, 0
    while True:
        subset = min(length - 1, max(0, math.floor(length - max_size * 2.0**-j)))
        gain = entropy[0] - entropy[subset]
        if subset == length - 1:
            return float(max_size / 16 * (total + 2.0 ** (1 - j) * gain))  # all further terms are the same
        total += 2.0**-j * gain
        j += 1


def upper_bound_from_correlations(total_correlation, dual_total_correlation, sizes):
    """Returns the largest expected KL that any data with at most such TC and DTC can have under these sizes, nats.

    The error is sum_j w_j D_j over the jumps D_j = f(j-1) - f(j) >= 0, with w_j the distance from j to the end of its
    step; TC = sum (L - j) D_j and DTC = sum j D_j. The largest value of this linear programme lies on the concave
    hull of the points (j, w_j).

    Args:
      total_correlation, dual_total_correlation: float, nats per sequence.
      sizes: int[T].
    Source: linear programming over the jumps; sharper than Chen, Cong & Li 2511.04647, Theorem 9.
    """
    sizes = np.asarray(sizes)
    length = int(sizes.sum())
    mass = total_correlation + dual_total_correlation
    if mass <= 0:
        return 0.0
    ends = np.repeat(np.cumsum(sizes), sizes)
    to_end = (ends - np.arange(length)).astype(float)
    to_end[np.cumsum(sizes) - sizes] = 0.0  # a boundary costs nothing
    hull = []  # the upper concave hull of (0, 0), (j, w_j), (L, 0)
    for point in [*enumerate(to_end.tolist()), (length, 0.0)]:
        while len(hull) > 1 and _is_below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    x, y = np.asarray(hull).T
    return float(mass / length * np.interp(length * dual_total_correlation / mass, x, y))


def _is_below(left, middle, right):
    slope = (right[1] - left[1]) * (middle[0] - left[0])
    return (middle[1] - left[1]) * (right[0] - left[0]) <= slope


def bernoulli_kl(curve, shares):
    """Returns the error of the sampler that unmasks every token by its own coin, nats per sequence.

    The ancestral sampler of MDLM, SEDD and MD4: numbers of tokens per step are random, some steps reveal none. The
    error of its path; an upper bound on the error of its samples.

    Args:
      curve: InformationCurve or float64[L].
      shares: float[T + 1], the expected share revealed after each step, from 0 to 1; or int, T equal steps.
    Source: Wainwright 2608.13520, the exact error of one step, sum of integrals of (q - u) h'(u).
    """
    entropy = entropy_of(curve)
    length = len(entropy)
    shares = np.linspace(0, 1, shares + 1) if isinstance(shares, int) else np.asarray(shares, np.float64)
    if shares.ndim != 1 or len(shares) < 2 or shares[0] != 0 or shares[-1] != 1 or np.any(np.diff(shares) < 0):
        raise ValueError("shares: must rise from 0 to 1")
    k = np.arange(length)
    resolved = entropy[0] - entropy
    # h(t) = L E[resolved(Bin(L - 1, t))]; the integral of a binomial weight over t is an incomplete beta function.
    integral = special.betainc(k + 1, length - k, shares[:, None]) @ resolved
    n = length - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        log_weight = (
            special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
            + special.xlogy(k, shares[:, None]) + special.xlog1py(n - k, -shares[:, None])
        )  # fmt: skip
    level = length * np.exp(log_weight) @ resolved
    return float(np.sum(np.diff(integral) - np.diff(shares) * level[:-1]))


def valid_share_lower_bound(kl):
    """Returns exp(-kl), the least share of samples that can lie in the support of the data.

    Exact for uniform families whose error is the same for every order (repeated token, parity, MDS codes).

    Args:
      kl: float, expected KL in nats per sequence.
    Source: data processing applied to the event "in the support".
    """
    return math.exp(-kl)
