"""The error of a schedule is what enumeration finds, and the bounds on it are bounds: THEORY 1.3 to 1.5, 5.2, 5.4."""

import functools
import itertools
import math
import pathlib
import runpy
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from dlm_jax.information import distributions as d
from dlm_jax.information import error, schedules
from dlm_jax.information.curve import InformationCurve

golden = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("golden.py"))))

STEPS_256 = (4, 8, 16, 32, 64, 128)
FEW = settings(max_examples=100, deadline=None, derandomize=True)


@functools.cache
def curve_of(name, length):
    return {8: golden.BEDS_8, 256: golden.BEDS_256}[length][name].curve()


def matching(have, rows, half_a_digit):
    return [name for name, want in rows.items() if np.allclose(have, want, rtol=0, atol=half_a_digit + 1e-9)]


@pytest.mark.parametrize("name", golden.BEDS_8)
def test_errors_of_uniform_sizes_equal_table_5_2_and_no_other_row_of_it(name):
    have = [error.expected_kl(curve_of(name, 8), schedules.uniform_sizes(8, t)) for t in range(1, 9)]
    assert matching(have, golden.UNIFORM_KL_8, 0.5e-6) == [name]


@pytest.mark.parametrize("schedule", [*schedules.FIXED, "sqrt"])
@pytest.mark.parametrize("name", golden.BEDS_256)
def test_errors_of_fixed_schedules_equal_table_5_4_and_no_other_bed_of_it(name, schedule):
    curve = curve_of(name, 256)
    make = schedules.FIXED.get(schedule, lambda _, num_steps: schedules.sqrt_sizes(curve, num_steps))
    have = [error.expected_kl(curve, make(256, t)) for t in STEPS_256]
    rows = {row: want for row, want in golden.KL_256.items() if row.endswith(f":{schedule}")}
    found = matching(have, rows, 0.5e-4)
    if max(have) < 1e-9:  # a single jump, at a boundary: nothing tells such beds apart
        assert name in ("EQ4", "PAR", "RS128") and found == [row for row, want in rows.items() if max(want) == 0]
    else:  # RS128 and EQB4 are not in the table
        assert found == [row for row in rows if row == f"{name}:{schedule}"]


@pytest.mark.parametrize("bound", [error.upper_bound, error.li_cai_upper_bound])
def test_upper_bounds_of_uniform_sizes_equal_table_5_4(bound):
    for row, want in golden.KL_256.items():
        name, what = row.split(":")
        if what == "li_cai":
            mass = curve_of(name, 256).mutual_information
            have = [bound(mass, schedules.uniform_sizes(256, t)) for t in STEPS_256]
            np.testing.assert_allclose(have, want, rtol=0, atol=0.5e-3 + 1e-9)
            # Variation: uneven sizes, as many, have another bound.
            assert bound(mass, schedules.cosine_sizes(256, 4)) > have[0] + 0.1


def test_the_bound_of_li_and_cai_rounds_the_largest_size_up_to_a_power_of_two():
    for largest, rounded in ((1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (9, 16), (16, 16)):
        sizes = [largest] + [1] * (20 - largest)
        np.testing.assert_allclose(error.li_cai_upper_bound(3.0, sizes), (rounded - 1) / 20 * 3.0, rtol=1e-12)
        np.testing.assert_allclose(error.upper_bound(3.0, sizes), (largest - 1) / 20 * 3.0, rtol=1e-12, atol=1e-15)


SMALL = {
    "independent": d.Independent([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.1, 0.1, 0.8], [0.0, 0.4, 0.6]]),
    "repeated": d.Repeated(3, 5),
    "parity": d.Parity(5),
    "one_hot": d.OneHot(5),
    "permutation": d.Permutation(4),
    "balanced_bits": d.BalancedBits(4),
    "blocks_of_repeated": d.Blocks(d.Repeated(2, 3), 2),
    "blocks_of_parity": d.Blocks(d.Parity(3), 2),
    "blocks_of_one_hot": d.Blocks(d.OneHot(3), 2),
    "markov": d.stationary_markov_chain(golden.M2, 5),
    "markov_from_one_state": d.MarkovChain([1.0, 0.0, 0.0], golden.M3, 4),
    "hidden_markov": golden.hidden_markov(4),
    "noisy_bit": golden.noisy_bit(0.1, 5),
    "mix3": golden.mix3(5),
    "mixture": d.Mixture([0.3, 0.7], [d.Repeated(2, 4), d.MarkovChain([0.9, 0.1], golden.M2, 4)]),
    "reed_solomon": d.ReedSolomon(5, 4, 2),
}


def compositions(length):
    cuts = ([i for i in range(1, length) if bits >> i & 1] for bits in range(0, 1 << length, 2))
    return [np.diff([0, *cut, length]) for cut in cuts]


def kls_by_order(table, sizes):
    orders = golden.partitions(range(table.ndim), sizes)
    return np.array([golden.divergence(table, golden.sampler_law(table, blocks)) for blocks in orders])


@pytest.mark.parametrize("name", SMALL)
def test_the_expected_error_of_every_schedule_equals_the_mean_over_all_ordered_partitions(name):
    curve, table = SMALL[name].curve(), golden.joint_table(SMALL[name])
    rejected = 0
    for sizes in compositions(table.ndim):
        want = kls_by_order(table, sizes).mean()
        np.testing.assert_allclose(error.expected_kl(curve, sizes), want, atol=1e-9)
        rejected += abs(error.expected_kl(curve, sizes[::-1]) - want) > 1e-3
    assert rejected > 0 or name == "independent"  # variation: the sizes backwards are another schedule


@pytest.mark.parametrize("name", ["M2", "BAL", "PARB4", "HOT4", "PAR"])
@pytest.mark.parametrize("sizes", [(4, 4), (5, 2, 1), (1, 7)], ids=str)
def test_the_expected_error_equals_the_mean_over_partitions_of_eight_bits(name, sizes):
    want = kls_by_order(golden.joint_table(golden.BEDS_8[name]), sizes).mean()
    np.testing.assert_allclose(error.expected_kl(curve_of(name, 8), sizes), want, atol=1e-9)
    # Variation: the last of the eight tokens is not revealed at once.
    assert name == "PAR" or abs(error.expected_kl(curve_of(name, 8), (7, 1)) - want) > 1e-3


@pytest.mark.parametrize(
    ("name", "mean", "low", "high"),
    [("HMM", 0.3795864750, 0.286002, 0.603270), ("M2", 0.6871682479, 0.356735, 1.313222)],
)
def test_the_error_of_all_seventy_orders_of_two_halves_is_the_golden_one(name, mean, low, high):
    found = kls_by_order(golden.joint_table(golden.BEDS_8[name]), (4, 4))
    assert len(found) == 70
    np.testing.assert_allclose([found.mean(), error.expected_kl(curve_of(name, 8), (4, 4))], mean, atol=0.5e-10 + 1e-9)
    np.testing.assert_allclose([found.min(), found.max()], [low, high], atol=0.5e-6 + 1e-9)
    assert found.std() > 0.01  # variation: no single order has the mean


def test_the_law_with_the_order_forgotten_is_closer_than_the_mean_over_orders():
    bed = d.stationary_markov_chain(golden.M2, 6)
    table = golden.joint_table(bed)
    laws = [golden.sampler_law(table, blocks) for blocks in golden.partitions(range(6), (3, 3))]
    np.testing.assert_allclose(golden.divergence(table, np.mean(laws, axis=0)), 0.261402, atol=0.5e-6 + 1e-9)
    np.testing.assert_allclose(error.expected_kl(bed.curve(), (3, 3)), 0.460380, atol=0.5e-6 + 1e-9)


def test_the_negative_log_likelihood_is_the_whole_error_of_a_model_that_is_wrong():
    # THEORY 1.4: for any conditionals, even incoherent ones, E KL = sum s_t f_theta(k_t) - H(X).
    noise = np.random.default_rng(0)
    table = noise.dirichlet(np.full(81, 0.5)).reshape((3,) * 4)
    predicted = {}

    def conditional(revealed, i):
        key = (tuple(sorted(revealed)), i)
        if key not in predicted:
            others = tuple(j for j in range(4) if j not in (*revealed, i))
            joint = table.sum(axis=others, keepdims=True)
            joint = joint * np.exp(0.3 * noise.normal(size=joint.shape))
            predicted[key] = joint / joint.sum(axis=i, keepdims=True)
        return predicted[key]

    losses = [
        np.mean(
            [
                -np.sum(table * np.log(conditional(revealed, i)))
                for revealed in itertools.combinations(range(4), k)
                for i in range(4)
                if i not in revealed
            ]
        )
        for k in range(4)
    ]
    curve = InformationCurve.exact(losses)
    for sizes in compositions(4):
        found = []
        for blocks in golden.partitions(range(4), sizes):
            law, revealed = np.ones_like(table), ()
            for block in blocks:
                law = law * math.prod(conditional(revealed, i) for i in block)
                revealed = (*revealed, *block)
            found.append(golden.divergence(table, law))
        entropy = -np.sum(table * np.log(table))
        value, stderr = error.negative_log_likelihood(curve, sizes)
        np.testing.assert_allclose(value - entropy, np.mean(found), atol=1e-9)
        assert stderr == 0.0
        above, _ = error.expected_kl_with_error(curve, sizes)
        np.testing.assert_allclose(above, value - sum(losses), atol=1e-9)  # above one token at a time
        assert abs(above - np.mean(found)) > 1e-3  # variation: the model's own error is not in the excess


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (1, 2, 5), (1,) * 8], ids=str)
def test_weights_are_the_sizes_at_their_boundaries_minus_one(sizes):
    f = np.random.default_rng(3).normal(size=8)
    starts = np.cumsum(sizes) - sizes
    want = sum(s * f[k] - f[k : k + s].sum() for s, k in zip(sizes, starts, strict=True))
    np.testing.assert_allclose(error.error_weights(sizes, 8) @ f, want, atol=1e-12)
    np.testing.assert_allclose(error.expected_kl(f, sizes), want, atol=1e-12)
    with pytest.raises(ValueError, match="must be the length 9"):
        error.expected_kl(np.append(f, 0.0), sizes)


@pytest.mark.parametrize(
    ("bed", "sizes", "want"),
    [
        (d.Repeated(4, 5), (2, 3), 0.25),
        (d.Parity(6), (3, 3), 0.5),
        (d.ReedSolomon(5, 4, 2), (3, 1), 0.2),
        (d.ReedSolomon(5, 5, 3), (2, 3), 0.04),
        (d.Permutation(5), (2, 2, 1), 0.53333333),
    ],
)
def test_the_share_of_valid_samples_is_the_golden_one_and_its_lower_bound_is_attained(bed, sizes, want):
    table = golden.joint_table(bed)
    orders = list(golden.partitions(range(bed.length), sizes))[:12]  # all orders are alike
    shares = [golden.sampler_law(table, blocks)[table > 0].sum() for blocks in orders]
    np.testing.assert_allclose(shares, want, atol=0.5e-8 + 1e-9)
    bound = error.valid_share_lower_bound(error.expected_kl(bed.curve(), sizes))
    np.testing.assert_allclose(bound, want, atol=0.5e-8 + 1e-9)
    # Variation: ten times the share would break the bound.
    assert error.valid_share_lower_bound(error.expected_kl(bed.curve(), sizes) + np.log(10)) < want - 0.03


def test_the_share_of_valid_balanced_strings_is_above_its_lower_bound():
    bed = d.BalancedBits(6)
    table = golden.joint_table(bed)
    orders = golden.partitions(range(6), (3, 3))
    share = np.mean([golden.sampler_law(table, blocks)[table > 0].sum() for blocks in orders])
    np.testing.assert_allclose(share, 0.58333333, atol=0.5e-8 + 1e-9)
    bound = error.valid_share_lower_bound(error.expected_kl(bed.curve(), (3, 3)))
    np.testing.assert_allclose(bound, 0.44829781, atol=0.5e-8 + 1e-9)


@st.composite
def curves_and_sizes(draw):
    length = draw(st.integers(1, 14))
    jumps = draw(st.lists(st.one_of(st.just(0.0), st.floats(0.001, 5)), min_size=length - 1, max_size=length - 1))
    entropy = np.append(np.cumsum(jumps[::-1])[::-1], 0.0) + draw(st.floats(0, 2))
    cuts = sorted(draw(st.sets(st.integers(1, length - 1)))) if length > 1 else []
    return InformationCurve.exact(entropy), np.diff([0, *cuts, length])


@FEW
@given(curves_and_sizes())
def test_the_error_is_below_its_upper_bounds_and_they_below_one_another(given_):
    curve, sizes = given_
    kl, mass = error.expected_kl(curve, sizes), curve.mutual_information
    sharper = error.upper_bound(mass, sizes)
    assert -1e-9 <= kl <= sharper + 1e-9
    assert sharper <= error.li_cai_upper_bound(mass, sizes) + 1e-9
    total, dual = curve.total_correlation, curve.dual_total_correlation
    assert kl <= error.upper_bound_from_correlations(total, dual, sizes) + 1e-9
    assert error.upper_bound_from_correlations(total, dual, sizes) <= sharper + 1e-9
    np.testing.assert_allclose(total + dual, mass, atol=1e-9)


@pytest.mark.parametrize(("length", "sizes"), [(8, (3, 3, 2)), (8, (1, 4, 3)), (10, (2, 2, 5, 1))])
def test_the_upper_bound_is_attained_by_mds_codes_and_by_no_other_place_of_their_step(length, sizes):
    largest = int(np.argmax(sizes))
    start = int(np.sum(sizes[:largest]))

    def gap(dimension, slack=0):
        curve = d.ReedSolomon(11, length, dimension).curve()
        bound = (max(sizes) - 1 - slack) / length * curve.mutual_information
        return bound - error.expected_kl(curve, sizes)

    assert abs(gap(start + 1)) < 1e-9
    assert gap(start + 2) > 1.0  # variation: dependence that is resolved one token later
    assert gap(start + 1, slack=1) < -0.1  # variation: a bound with s_max - 2 is none


def test_the_upper_bound_from_correlations_is_the_value_of_the_linear_programme():
    noise = np.random.default_rng(1)
    for _ in range(60):
        length = int(noise.integers(2, 13))
        cuts = np.flatnonzero(noise.random(length - 1) < noise.choice([0.2, 0.5])) + 1
        sizes = np.diff([0, *cuts, length])
        total, dual = noise.gamma(0.5, 2.0, 2)
        j = np.arange(1, length)
        to_end = np.repeat(np.cumsum(sizes), sizes)[1:] - j
        weights = np.where(np.isin(j, np.cumsum(sizes)), 0, to_end)
        found = optimize.linprog(-weights.astype(float), A_ub=[length - j, j], b_ub=[total, dual])
        have = error.upper_bound_from_correlations(total, dual, sizes)
        np.testing.assert_allclose(have, -found.fun, atol=1e-8)
        if len(sizes) < length:  # variation: with twice the correlations it is not the same
            assert error.upper_bound_from_correlations(2 * total, 2 * dual, sizes) > have + 1e-6
    assert error.upper_bound_from_correlations(0.0, 0.0, [3, 3]) == 0.0


def random_curve(noise, length):
    jumps = noise.gamma(noise.choice([0.05, 0.3, 1.0]), 1.0, length - 1) + 1e-12
    return np.append(np.cumsum(jumps[::-1])[::-1] / jumps.sum(), 0.0)


@pytest.mark.parametrize("length", [2, 5, 9])
def test_the_lower_bound_of_li_and_cai_is_below_the_upper_one_and_attained_by_some_schedule(length):
    # From max_size = 2 on: with single tokens every schedule is exact, and only a constant factor saves the theorem.
    noise = np.random.default_rng(2)
    every = compositions(length)
    weights = np.array([error.error_weights(sizes, length) for sizes in every])
    largest = np.array([sizes.max() for sizes in every])
    for _ in range(40):
        f = random_curve(noise, length)
        errors = weights @ f
        for size in range(2, length + 1):
            lower = error.li_cai_lower_bound(f, size)
            sizes = [size] + [1] * (length - size)
            assert 0 <= lower <= error.li_cai_upper_bound(length * (f[0] - f[-1]), sizes) + 1e-12
            assert lower <= errors[largest == size].max() + 1e-12
            assert 9 * lower > errors[largest == size].max() / 2  # variation: nine times the constant is too much
            terms = [2.0**-j * (f[0] - f[min(length - 1, math.floor(length - size * 2.0**-j))]) for j in range(60)]
            np.testing.assert_allclose(lower, size / 16 * sum(terms), rtol=1e-9)


@pytest.mark.parametrize("size", [0, 9])
def test_the_lower_bound_of_li_and_cai_refuses_steps_that_cannot_be(size):
    with pytest.raises(ValueError, match=f"max_size={size}: must be between 1 and the length 8"):
        error.li_cai_lower_bound(np.zeros(8), size)


def nested_binomials(f, shares):
    """The error of revealing every hidden token by its own coin, over all chains of counts k_0 = 0, k_1, ..., L."""
    length, chance, total = len(f), np.eye(len(f) + 1)[0], 0.0
    for before, after in itertools.pairwise(shares):
        coin = 1.0 if after == 1 else (after - before) / (1 - before)
        moved = np.zeros(length + 1)
        for k in range(length + 1):
            m = np.arange(length - k + 1)
            weights = chance[k] * stats.binom.pmf(m, length - k, coin)
            moved[k:] += weights
            if k < length:
                total += weights @ (m * f[k] - np.concatenate([[0.0], np.cumsum(f[k:])]))
        chance = moved
    return total


@pytest.mark.parametrize("bed", [golden.BEDS_8["M2"], golden.BEDS_8["PERM"], d.Parity(5), d.Repeated(3, 2)])
@pytest.mark.parametrize("shares", [1, 2, 3, 7, (0, 0.1, 0.5, 1), (0, 0.9, 0.9, 1)], ids=str)
def test_the_error_of_a_coin_a_token_equals_all_nested_binomial_counts(bed, shares):
    f = bed.curve().entropy
    points = np.linspace(0, 1, shares + 1) if isinstance(shares, int) else np.array(shares)
    want = nested_binomials(f, points)
    np.testing.assert_allclose(error.bernoulli_kl(bed.curve(), shares), want, atol=1e-10)
    if len(points) > 2:  # variation: later shares, and fixed sizes, are something else
        assert abs(error.bernoulli_kl(f, points**2) - want) > 1e-3
        fixed = error.expected_kl(f, schedules.uniform_sizes(len(f), min(len(f), len(points) - 1)))
        assert abs(fixed - want) > 1e-3
    else:
        np.testing.assert_allclose(want, bed.curve().total_correlation, atol=1e-9)


def test_the_error_of_a_coin_a_token_equals_its_integral():
    f = golden.BEDS_8["M3"].curve().entropy
    k = np.arange(8)

    def derivative(u):  # of h(u) = 8 E[f(0) - f(Bin(7, u))]
        pmf = stats.binom.pmf(k[:7], 6, u)
        return 8 * 7 * pmf @ (f[:-1] - f[1:])

    shares = (0, 0.2, 0.45, 1)
    pairs = itertools.pairwise(shares)
    want = sum(integrate.quad(lambda u, q=q: (q - u) * derivative(u), p, q)[0] for p, q in pairs)
    np.testing.assert_allclose(error.bernoulli_kl(f, shares), want, atol=1e-9)


@pytest.mark.parametrize("shares", [(0, 0.5), (0.1, 1), (0, 0.6, 0.5, 1), (1,), ((0, 1), (0, 1))], ids=str)
def test_shares_that_do_not_rise_from_none_to_all_are_refused(shares):
    with pytest.raises(ValueError, match="shares: must rise from 0 to 1"):
        error.bernoulli_kl(np.ones(4), shares)


@pytest.mark.parametrize("entropy", [np.ones((2, 2)), [], [1.0, np.nan]], ids=str)
def test_curves_that_are_no_finite_vectors_are_refused(entropy):
    with pytest.raises(ValueError, match="curve: shape"):
        error.expected_kl(entropy, [1])
