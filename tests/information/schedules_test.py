"""Step sizes: golden values of THEORY 3 and 5, sums and errors; the optimum is what exhaustive search finds."""

import functools
import itertools
import pathlib
import runpy
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax.information import cosine_sizes, error, logodds_sizes, schedules, uniform_sizes
from dlm_jax.information import distributions as d
from dlm_jax.information.curve import InformationCurve
from dlm_jax.information.schedules import check_sizes, reverse_cosine_sizes

golden = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("golden.py"))))

ALL = [uniform_sizes, cosine_sizes, reverse_cosine_sizes, logodds_sizes]


@pytest.mark.parametrize(
    ("make", "length", "num_steps", "want"),
    [
        (cosine_sizes, 256, 8, (5, 14, 24, 32, 39, 44, 48, 50)),
        (reverse_cosine_sizes, 256, 8, (50, 48, 44, 39, 32, 24, 14, 5)),
        (logodds_sizes, 256, 8, (1, 5, 29, 93, 93, 29, 5, 1)),
        (logodds_sizes, 256, 2, (128, 128)),
        (uniform_sizes, 256, 8, (32,) * 8),
        (uniform_sizes, 8, 3, (2, 3, 3)),
        (uniform_sizes, 8, 5, (1, 2, 1, 2, 2)),
        (uniform_sizes, 8, 6, (1, 1, 2, 1, 1, 2)),
    ],
)
def test_sizes_equal_the_golden_ones(make, length, num_steps, want):
    have = make(length, num_steps)
    assert tuple(have) == want
    assert have.dtype == np.int64
    # Variation: one token moved between steps is another schedule, though its sum is the same.
    moved = np.array(want)
    moved[0], moved[1] = moved[0] + 1, moved[1] - 1
    assert tuple(have) != tuple(moved)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(ALL), st.integers(1, 700), st.data())
def test_every_size_is_at_least_one_and_they_sum_to_the_length(make, length, data):
    num_steps = data.draw(st.integers(1, length))
    sizes = make(length, num_steps)
    assert len(sizes) == num_steps
    assert sizes.min() >= 1
    assert sizes.sum() == length
    np.testing.assert_array_equal(check_sizes(sizes, length), sizes)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("num_steps", [0, -1, 9])
def test_step_counts_outside_the_length_are_refused(make, num_steps):
    with pytest.raises(ValueError, match=f"num_steps={num_steps}: must be between 1 and the length 8"):
        make(8, num_steps)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([4, 3], "sum 7 must be the length 8"),
        ([2**62, 2**62, 2**62, 2**62 + 8], "sum 18446744073709551624 must be the length 8"),
        ([8, 0], "at least 1 token, not 0"),
        ([9, -1], "at least 1 token, not -1"),
        ([4.0, 4.0], "whole numbers"),
        ([], "whole numbers"),
        ([[4], [4]], "whole numbers"),
        (8, "whole numbers"),
    ],
)
def test_wrong_sizes_are_refused_by_name(sizes, message):
    with pytest.raises(ValueError, match=message) as error:
        check_sizes(sizes, 8, "sample.sizes")
    assert str(error.value).startswith("sample.sizes=")


@functools.cache
def curve_of(name, length):
    return {8: golden.BEDS_8, 256: golden.BEDS_256}[length][name].curve()


def matching(have, rows, half_a_digit):
    return [name for name, want in rows.items() if np.allclose(have, want, rtol=0, atol=half_a_digit + 1e-9)]


@pytest.mark.parametrize("name", golden.BEDS_8)
def test_errors_of_optimal_sizes_equal_table_5_2(name):
    errors, sizes = schedules.optimal_schedules(curve_of(name, 8), 8)
    have = [errors[t] for t in range(1, 9)]
    assert name in matching(have, golden.OPTIMAL_KL_8, 0.5e-6)
    np.testing.assert_allclose([error.expected_kl(curve_of(name, 8), sizes[t]) for t in errors], have, atol=1e-9)
    # Variation: the uniform sizes are worse, but where nothing or each pair depends, and no other bed has this row.
    assert (name in matching(have, golden.UNIFORM_KL_8, 0.5e-6)) == (name in ("IND4", "EQB2"))
    assert len(matching(have, golden.OPTIMAL_KL_8, 0.5e-6)) == 1


@pytest.mark.parametrize("name", sorted({row.split(":")[0] for row in golden.KL_256}))
def test_errors_of_optimal_sizes_equal_table_5_4(name):
    errors, sizes = schedules.optimal_schedules(curve_of(name, 256), 128)
    have = [errors[t] for t in (4, 8, 16, 32, 64, 128)]
    np.testing.assert_allclose(have, golden.KL_256[f"{name}:optimal"], rtol=0, atol=0.5e-4 + 1e-9)
    again = [error.expected_kl(curve_of(name, 256), sizes[t]) for t in (4, 8, 16, 32, 64, 128)]
    np.testing.assert_allclose(again, have, atol=1e-9)
    # Variation: no other schedule of the table does as well at T = 4, but where there is nothing left to lose.
    others = [want[0] for row, want in golden.KL_256.items() if row.startswith(name + ":") and "optimal" not in row]
    assert min(others) > have[0] + 0.5e-4 or have[0] < 1e-9


def uniform_needs(curve, max_kl):
    """The T from which the uniform sizes stay within max_kl."""
    errors = [np.inf] + [error.expected_kl(curve, uniform_sizes(curve.length, t)) for t in range(1, curve.length + 1)]
    return [int(np.flatnonzero(np.asarray(errors) > allowed + 1e-9)[-1]) + 1 for allowed in max_kl]


@pytest.mark.parametrize("name", golden.BEDS_256)
def test_fewest_steps_equal_table_5_5(name):
    curve, have = curve_of(name, 256), []
    for max_kl in (1, 0.1, 0.01):
        sizes, kl = schedules.fewest_steps(curve, max_kl)
        have.append(len(sizes))
        np.testing.assert_allclose(error.expected_kl(curve, sizes), kl, atol=1e-9)
        assert kl <= max_kl + 1e-9
        if len(sizes) > 1:  # variation: one step fewer is not enough
            assert schedules.optimal_schedules(curve, len(sizes) - 1)[0][len(sizes) - 1] > max_kl
    assert (*have, *uniform_needs(curve, (1, 0.1, 0.01))) == golden.STEPS_256[name]


@pytest.mark.parametrize(
    ("bed", "want"),
    [
        (d.Permutation(8), (3, 2, 2, 1)),
        (d.Permutation(16), (6, 5, 3, 2)),
        (d.Permutation(32), (12, 9, 7, 4)),
        (golden.BEDS_256["PERM"], (54, 48, 42, 35, 29, 23, 16, 9)),
        (golden.BEDS_256["M2"], (21, 23, 26, 29, 32, 37, 41, 47)),
    ],
)
def test_optimal_profiles_are_the_golden_ones(bed, want):
    curve = bed.curve()
    have = schedules.optimal_sizes(curve, len(want))
    assert tuple(have) == want and have.dtype == np.int64
    kl = {8: 1.049822, 16: 3.691206, 32: 9.322906}.get(bed.length)
    assert kl is None or abs(error.expected_kl(curve, have) - kl) <= 0.5e-6 + 1e-9
    assert error.expected_kl(curve, have[::-1]) > error.expected_kl(curve, have) + 0.1  # variation


@functools.cache
def compositions(length):
    """All sizes that sum to the length, and the weights of their errors."""
    cuts = ([i for i in range(1, length) if bits >> i & 1] for bits in range(0, 1 << length, 2))
    every = [np.diff([0, *cut, length]) for cut in cuts]
    return every, np.array([error.error_weights(sizes, length) for sizes in every]), np.array(list(map(len, every)))


def falling_curve(noise, length):
    jumps = noise.gamma(noise.choice([0.03, 0.3, 2.0]), 1.0, length)
    return np.cumsum(np.where(noise.random(length) < 0.3, 0.0, jumps)[::-1])[::-1]


def check_optimum(f):
    """The fast optimum, the plain programme and exhaustive search agree on this curve, for every number of steps."""
    length = len(f)
    _, weights, steps = compositions(length)
    errors, sizes = schedules.optimal_schedules(f, length)
    edges = np.arange(length + 1)
    plain = schedules.optimal_on_grid(edges, (edges[None] - edges[:-1, None]) * f[:, None], length)
    assert set(errors) == set(sizes) == set(plain) == set(range(1, length + 1))
    found = weights @ f
    for t in range(1, length + 1):
        best = found[steps == t].min()
        assert abs(errors[t] - best) < 1e-9
        for have in (sizes[t], plain[t], schedules.optimal_sizes(f, t)):
            assert len(check_sizes(have, length)) == t
            assert abs(error.expected_kl(f, have) - best) < 1e-9
    return found[steps == (length + 1) // 2].max() > errors[(length + 1) // 2] + 1e-6


def test_the_fast_optimum_is_the_exhaustive_one_on_curves_that_fall():
    noise = np.random.default_rng(0)
    differs = [check_optimum(falling_curve(noise, int(noise.integers(1, 11)))) for _ in range(200)]
    assert sum(differs) > 120  # variation: it matters which schedule is taken


def test_the_optimum_is_the_exhaustive_one_on_curves_that_also_rise():
    noise = np.random.default_rng(1)
    rises = 0
    for _ in range(60):
        f = noise.normal(size=int(noise.integers(1, 11)))
        check_optimum(f)
        if len(f) > 4 and np.any(np.diff(f) > 1e-3):  # variation: sorting the curve first is another question
            _, weights, steps = compositions(len(f))
            rises += abs((weights @ f)[steps == 3].min() - (weights @ np.sort(f)[::-1])[steps == 3].min()) > 1e-3
    assert rises > 20


def test_rounding_that_rises_a_little_does_not_harm_the_fast_optimum():
    noise = np.random.default_rng(2)
    for _ in range(20):
        f = falling_curve(noise, 9) + 1e-12 * noise.normal(size=9)
        check_optimum(f)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.just(0.0), st.floats(0.001, 5)), min_size=1, max_size=40))
def test_the_least_error_is_convex_in_the_steps_never_rises_and_ends_at_nothing(jumps):
    f = np.cumsum(jumps[::-1])[::-1]
    errors, _ = schedules.optimal_schedules(f, len(f))
    errors = np.array([errors[t] for t in range(1, len(f) + 1)])
    assert np.all(np.diff(errors) <= 1e-9)
    assert np.all(np.diff(errors, 2) >= -1e-9)
    assert abs(errors[-1]) < 1e-9


def test_the_least_error_need_not_be_convex_where_the_curve_rises():
    # Variation of the test above: it rejects a curve that rises.
    rejected = 0
    for f in np.random.default_rng(3).normal(size=(20, 8)):
        errors = np.array([*schedules.optimal_schedules(f, 8)[0].values()])
        rejected += bool(np.any(np.diff(errors) > 1e-9) or np.any(np.diff(errors, 2) < -1e-9))
    assert rejected > 10


@pytest.mark.parametrize("is_falling", [True, False])
def test_restricted_boundaries_give_the_exhaustive_optimum_among_them(is_falling):
    noise = np.random.default_rng(4)
    for _ in range(60):
        length = int(noise.integers(2, 11))
        f = falling_curve(noise, length) if is_falling else noise.normal(size=length)
        counts = np.concatenate([[0], np.flatnonzero(noise.random(length - 1) < 0.5) + 1])
        every, weights, steps = compositions(length)
        is_allowed = np.array([set(np.cumsum(sizes) - sizes) <= set(counts.tolist()) for sizes in every])
        errors, found = schedules.optimal_schedules(f, length, counts=counts)
        assert set(errors) == set(range(1, len(counts) + 1))
        for t, kl in errors.items():
            np.testing.assert_allclose(kl, (weights @ f)[is_allowed & (steps == t)].min(), atol=1e-9)
            np.testing.assert_allclose(error.expected_kl(f, found[t]), kl, atol=1e-9)
            np.testing.assert_array_equal(schedules.optimal_sizes(f, t, counts=counts), found[t])
            assert set(np.cumsum(found[t]) - found[t]) <= set(counts.tolist())
    # Variation: boundaries that were not measured would do better on this curve.
    f = np.array([3.0, 3.0, 3.0, 0.0, 0.0, 0.0])
    assert schedules.optimal_schedules(f, 2)[0][2] == 0
    assert schedules.optimal_schedules(f, 2, counts=[0, 1, 5])[0][2] > 1


def test_a_restricted_curve_that_falls_at_the_measured_counts_only_is_still_optimal():
    f = np.array([5.0, 9.0, 4.0, 9.0, 1.0, 9.0, 0.5])
    every, weights, steps = compositions(7)
    is_allowed = np.array([set(np.cumsum(sizes) - sizes) <= {0, 2, 4, 6} for sizes in every])
    for t, kl in schedules.optimal_schedules(f, 4, counts=[0, 2, 4, 6])[0].items():
        np.testing.assert_allclose(kl, (weights @ f)[is_allowed & (steps == t)].min(), atol=1e-9)


def test_thousands_of_tokens_are_no_obstacle():
    k = np.arange(4096)
    for f in (np.log(4096 - k), 1 / (1 + k) + 0.3 * (k < 1000)):
        errors, sizes = schedules.optimal_schedules(f, 256)
        assert sorted(errors) == list(range(1, 257))
        for t in (1, 2, 3, 17, 64, 255, 256):
            assert len(check_sizes(sizes[t], 4096)) == t
            np.testing.assert_allclose(error.expected_kl(f, sizes[t]), errors[t], rtol=1e-9, atol=1e-7)
            for make in ALL:  # variation: any fixed schedule is worse
                assert t == 1 or error.expected_kl(f, make(4096, t)) > errors[t]
        gains = np.diff([errors[t] for t in range(1, 257)])
        assert np.all(gains <= 1e-7) and np.all(np.diff(gains) >= -1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: schedules.optimal_sizes(f, 9), "num_steps=9: must be between 1 and the 8 boundaries"),
        (lambda f: schedules.optimal_sizes(f, 0), "num_steps=0: must be between 1 and the 8 boundaries"),
        (lambda f: schedules.optimal_sizes(f, 3, counts=[0, 4]), "num_steps=3: must be between 1 and the 2 boundaries"),
        (lambda f: schedules.optimal_sizes(f, 1, counts=[1, 4]), "counts=.* must increase from 0 and stay below"),
        (lambda f: schedules.optimal_sizes(f, 1, counts=[0, 4, 4]), "counts=.* must increase from 0"),
        (lambda f: schedules.optimal_sizes(f, 1, counts=[0, 8]), "stay below the length 8"),
        (lambda f: schedules.fewest_steps(f, -0.1), "max_kl=-0.1: must be at least 0 nats"),
        (lambda f: schedules.fewest_steps(f, float("nan")), "max_kl=nan: must be at least 0 nats"),
        (lambda f: schedules.fewest_steps(f, 0.1, counts=[0, 4]), "max_kl=0.1: .*at 2 measured counts; .* in 2 steps"),
        (lambda f: schedules.sqrt_sizes(f, 9), "num_steps=9: must be between 1 and the length 8"),
        (lambda f: schedules.few_distinct_sizes(f, 9), "num_steps=9: must be between 1 and the length 8"),
        (lambda f: schedules.affine_sizes(8, -1.0, 0.0), "alpha=-1.0, beta=0.0: must be at least 0"),
        (lambda f: schedules.affine_sizes(8, 0.0, float("nan")), "beta=nan: must be at least 0"),
        (lambda f: schedules.guaranteed_sizes(8, 0.0, total_correlation=1.0), "max_kl=0.0: must be above 0 nats"),
        (lambda f: schedules.guaranteed_sizes(8, 1.0), "at least one must be given"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.log(8.0 - np.arange(8)))


def test_a_budget_of_nothing_is_met_by_the_fewest_exact_steps():
    assert tuple(schedules.fewest_steps(d.Repeated(4, 8).curve(), 0)[0]) == (1, 7)
    assert tuple(schedules.fewest_steps(d.Permutation(8).curve(), 0)[0]) == (1,) * 8
    assert schedules.fewest_steps(d.Permutation(8).curve(), 0)[1] == 0.0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.just(0.0), st.floats(0.001, 5)), min_size=1, max_size=60), st.data())
def test_the_square_root_rule_gives_valid_sizes_that_no_scale_of_the_curve_changes(jumps, data):
    f = np.cumsum(jumps[::-1])[::-1]
    num_steps = data.draw(st.integers(1, len(f)))
    sizes = schedules.sqrt_sizes(f, num_steps)
    assert len(check_sizes(sizes, len(f))) == num_steps
    np.testing.assert_array_equal(schedules.sqrt_sizes(InformationCurve.exact(4.0 * f), num_steps), sizes)
    assert error.expected_kl(f, sizes) >= schedules.optimal_schedules(f, num_steps)[0][num_steps] - 1e-9


def num_runs(sizes):
    return sum(1 for _ in itertools.groupby(sizes))


@pytest.mark.parametrize("max_runs", [1, 2, 3, 4])
def test_few_runs_of_equal_steps_are_the_exhaustive_best_of_their_kind(max_runs):
    noise = np.random.default_rng(max_runs)
    restricted = 0
    for trial in range(25):
        length = int(noise.integers(1, 11))
        f = falling_curve(noise, length) if trial % 2 else noise.normal(size=length)
        num_steps = int(noise.integers(1, length + 1))
        every, weights, steps = compositions(length)
        runs = np.array([num_runs(sizes) for sizes in every])
        found = weights @ f
        sizes, price = schedules.few_distinct_sizes(f, num_steps, max_runs)
        assert len(check_sizes(sizes, length)) <= num_steps
        assert num_runs(sizes) <= max_runs
        least = found[(steps <= num_steps) & (runs <= max_runs)].min()
        np.testing.assert_allclose(error.expected_kl(f, sizes), least, atol=1e-9)
        optimum = found[steps == len(sizes)].min()
        np.testing.assert_allclose(price, least - optimum, atol=1e-9)
        restricted += price > 1e-6
    assert restricted > 0 or max_runs > 2  # variation: few runs do cost something


@pytest.mark.parametrize(("name", "num_steps"), [("M2", 16), ("PERM", 8), ("NB.1", 16), ("EQ4", 4), ("BAL", 16)])
def test_few_runs_are_valid_priced_and_free_where_runs_are_enough(name, num_steps):
    curve = curve_of(name, 256)
    errors, optimum = schedules.optimal_schedules(curve, num_steps)
    prices = []
    for max_runs in (1, 2, 4, num_runs(optimum[num_steps])):
        sizes, price = schedules.few_distinct_sizes(curve, num_steps, max_runs)
        assert len(check_sizes(sizes, 256)) <= num_steps and num_runs(sizes) <= max_runs
        np.testing.assert_allclose(error.expected_kl(curve, sizes) - errors[len(sizes)], price, atol=1e-9)
        prices.append(price)
        assert price < 1e-9 or max_runs < num_runs(optimum[num_steps])
    assert prices[0] > 1e-3  # variation: a single run is dearer


def test_few_runs_of_many_tokens_take_their_sizes_from_the_optimum():
    # L L T > 3e8: only some sizes are tried.
    f = np.log(4096.0 - np.arange(4096))
    sizes, price = schedules.few_distinct_sizes(f, 20)
    errors, _ = schedules.optimal_schedules(f, 20)
    assert len(check_sizes(sizes, 4096)) <= 20 and num_runs(sizes) <= 4
    np.testing.assert_allclose(error.expected_kl(f, sizes) - errors[len(sizes)], price, rtol=1e-9, atol=1e-6)
    assert error.expected_kl(f, sizes) <= error.expected_kl(f, uniform_sizes(4096, 16)) + 1e-6


@pytest.mark.parametrize("row", golden.AFFINE_256)
def test_steps_with_a_guarantee_equal_table_3_3(row):
    name, max_kl = row.split(":")[0], float(row.split(":")[1])
    curve, want = curve_of(name, 256), golden.AFFINE_256[row]
    total, dual, mass = curve.total_correlation, curve.dual_total_correlation, curve.mutual_information
    rates = ((max_kl / total, 0), (0, max_kl / dual), (max_kl / mass, max_kl / mass))
    for place, (alpha, beta) in enumerate(rates):
        sizes = schedules.affine_sizes(256, alpha, beta)
        assert len(check_sizes(sizes, 256)) == want[2 * place]
        assert abs(error.expected_kl(curve, sizes) - want[2 * place + 1]) <= 0.5e-3 + 1e-9
        # Variation: twice the rates are another schedule, unless even they allow single tokens only.
        twice = schedules.affine_sizes(256, 2 * alpha, 2 * beta)
        assert len(twice) < want[2 * place] or max(twice) == 1
    by_total = schedules.guaranteed_sizes(256, max_kl, total_correlation=total)
    by_dual = schedules.guaranteed_sizes(256, max_kl, dual_total_correlation=dual)
    both = schedules.guaranteed_sizes(256, max_kl, total_correlation=total, dual_total_correlation=dual)
    fewest = schedules.fewest_steps(curve, max_kl)[0]
    assert [len(by_total), len(by_dual), len(both), len(fewest)] == [want[0], want[2], *want[6:]]
    for sizes in (by_total, by_dual, both):
        assert error.expected_kl(curve, sizes) <= max_kl + 1e-9


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(0.001, 5)), min_size=1, max_size=30),
    st.floats(0, 1.5),
    st.floats(0, 1.5),
    st.floats(0.01, 10),
)
def test_affine_sizes_keep_their_guarantee_on_every_curve(jumps, alpha, beta, max_kl):
    curve = InformationCurve.exact(np.cumsum(jumps[::-1])[::-1])
    total, dual = max(curve.total_correlation, 0.0), max(curve.dual_total_correlation, 0.0)
    sizes = check_sizes(schedules.affine_sizes(curve.length, alpha, beta), curve.length)
    assert error.expected_kl(curve, sizes) <= alpha * total + beta * dual + 1e-7
    for known in ({"total_correlation": total}, {"dual_total_correlation": dual}):
        sizes = check_sizes(schedules.guaranteed_sizes(curve.length, max_kl, **known), curve.length)
        assert error.expected_kl(curve, sizes) <= max_kl + 1e-7
    sizes = schedules.guaranteed_sizes(
        curve.length, max_kl, total_correlation=total, dual_total_correlation=dual, resolution=20
    )
    assert error.expected_kl(curve, check_sizes(sizes, curve.length)) <= max_kl + 1e-7


def test_larger_steps_than_the_affine_ones_break_the_guarantee_on_some_mds_code():
    alpha, beta = 0.11, 0.07
    sizes = schedules.affine_sizes(16, alpha, beta)

    def worst(sizes):
        codes = [np.where(np.arange(16) < dimension, 1.0, 0.0) for dimension in range(1, 16)]
        return max(error.expected_kl(f, sizes) - alpha * (16 - n) - beta * n for n, f in enumerate(codes, 1))

    assert worst(sizes) <= 1e-9
    for step in range(len(sizes) - 1):  # variation: any step one larger
        larger = sizes.copy()
        larger[step] += 1
        larger[-1] -= 1
        assert worst(larger[larger > 0]) > 1e-3


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.3), (0.11, 0.07), (0.9, 0.2), (2.0, 0.0)])
def test_affine_sizes_are_the_fewest_that_obey_their_limit(alpha, beta):
    for length in range(1, 11):
        every, _, steps = compositions(length)

        def obeys(sizes, length=length):
            revealed = np.cumsum(sizes) - sizes
            return np.all(sizes <= 1 + alpha * (length - revealed - 1) + beta * (revealed + 1) + 1e-12)

        sizes = schedules.affine_sizes(length, alpha, beta)
        assert obeys(sizes)
        assert len(sizes) == min(t for t, other in zip(steps, every, strict=True) if obeys(other))
