"""Orders of revealing: every family is a permutation, prefixes are spread, bisection is exact on Markov chains."""

import functools
import itertools
import math
import pathlib
import runpy
import types

import jax
import numpy as np
import pytest
from scipy import stats

from dlm_jax.information import distributions as d
from dlm_jax.information import orders, uniform_sizes

golden = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("golden.py"))))

LENGTHS = (*range(1, 41), 64, 100, 257)
SPREAD = ("spaced", "golden", "blue_noise")


@functools.cache
def base(name, length):
    """The family's order before a row rotates it."""
    make, _ = orders._BASES[name]
    return make(length)


@functools.cache
def program(name, num_rows, length):
    return jax.jit(
        lambda key: orders.draw(name, key, num_rows, length), compiler_options={"xla_backend_optimization_level": 0}
    )


def draw(name, seed, num_rows, length):
    """`orders.draw` inside a program, compiled in a hurry."""
    return np.asarray(program(name, num_rows, length)(jax.random.key(seed)))


def is_permutation(order, length):
    return sorted(np.asarray(order).tolist()) == list(range(length))


@pytest.mark.parametrize("name", orders._BASES)
def test_every_family_is_a_permutation_of_any_length(name):
    for length in LENGTHS:
        order = base(name, length)
        assert is_permutation(order, length), length
        assert order.dtype == np.int32
    assert not is_permutation(base(name, 40) % 39, 40)  # variation: a position twice


@pytest.mark.parametrize("name", [*orders.NAMES, "blocks:1", "blocks:5"])
def test_every_drawn_row_is_a_permutation(name):
    for length in (1, 12) if name in ("random", "spaced", "blocks:5") else (12,):
        drawn = draw(name, 3, 6, length)
        assert drawn.shape == (6, length) and drawn.dtype == np.int32
        assert all(is_permutation(row, length) for row in drawn)


def largest_gap(cells, length):
    """Distance of the two neighbours on the circle that are farthest apart."""
    cells = np.sort(cells)
    return int(np.max(np.append(np.diff(cells), cells[0] + length - cells[-1])))


@pytest.mark.parametrize("name", SPREAD)
def test_every_prefix_is_spread_evenly_around_the_circle(name):
    """All three: gaps of at most 2 ceil(L / k); bit reversal and blue noise: of at most ceil(L / 2^floor(log2 k))."""
    for length in LENGTHS:
        for k in range(1, length + 1, 1 if length < 100 else 7):
            gap = largest_gap(base(name, length)[:k], length)
            assert gap <= 2 * math.ceil(length / k), (length, k)
            assert name == "golden" or gap <= math.ceil(length / (1 << k.bit_length() - 1)), (length, k)
            turned = (base(name, length)[:k] + 5) % length
            assert largest_gap(turned, length) == gap  # a rotation changes nothing
    # Variation: the other families leave gaps.
    for other in ("left_to_right", "bisection"):
        assert any(largest_gap(base(other, 64)[:k], 64) > 2 * math.ceil(64 / k) for k in range(1, 65)), other


@pytest.mark.parametrize("name", SPREAD)
def test_rotations_are_uniform_and_a_row_is_its_family_rotated(name):
    drawn = draw(name, 0, 3000, 10)
    offset = (drawn[:, 0] - base(name, 10)[0]) % 10
    np.testing.assert_array_equal(drawn, (base(name, 10) + offset[:, None]) % 10)
    counts = np.bincount(offset, minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-6  # fails by chance once in a million
    assert stats.chisquare(counts, 3000 * np.array([0.15, 0.05] * 5)).pvalue < 1e-6  # variation


def test_random_orders_are_uniform():
    drawn = draw("random", 1, 3000, 3)
    counts = np.bincount(drawn @ [9, 3, 1], minlength=27)
    counts = counts[counts > 0]
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > 1e-6
    assert stats.chisquare(counts, 3000 * np.array([0.25, 0.15, 0.15, 0.15, 0.15, 0.15])).pvalue < 1e-6  # variation


@pytest.mark.parametrize("name", [*orders.NAMES, "blocks:5"])
def test_a_row_depends_on_the_key_and_its_number_only(name):
    length = 12
    drawn = draw(name, 7, 6, length)
    np.testing.assert_array_equal(draw(name, 7, 2, length), drawn[:2])
    other = draw(name, 8, 6, length)
    is_fixed = name in ("bisection", "left_to_right")
    assert (drawn == other).all() == is_fixed  # variation: another key
    assert (len(np.unique(drawn, axis=0)) == 1) == is_fixed  # and other rows


def test_blocks_are_revealed_left_to_right_and_at_random_inside():
    drawn = draw("blocks:4", 2, 600, 10)
    np.testing.assert_array_equal(np.sort(drawn[:, :4]), np.tile(np.arange(4), (600, 1)))
    np.testing.assert_array_equal(np.sort(drawn[:, 4:8]), np.tile(np.arange(4, 8), (600, 1)))
    np.testing.assert_array_equal(np.sort(drawn[:, 8:]), np.tile(np.arange(8, 10), (600, 1)))
    for first in (np.bincount(drawn[:, 0], minlength=4), np.bincount(drawn[:, 9] - 8, minlength=2)):
        assert stats.chisquare(first).pvalue > 1e-6
    np.testing.assert_array_equal(draw("blocks:1", 2, 6, 12), np.tile(np.arange(12), (6, 1)))


def test_a_fixed_order_is_given_to_every_row():
    fixed = [2, 0, 1]
    drawn = orders.draw(fixed, jax.random.key(0), 4, 3)
    np.testing.assert_array_equal(drawn, [fixed] * 4)
    by_row = np.array([[0, 1, 2], [2, 1, 0]])
    np.testing.assert_array_equal(orders.draw(by_row, jax.random.key(0), 2, 3), by_row)


@pytest.mark.parametrize("name", ["golden", "random"])
def test_draws_are_the_same_inside_and_outside_of_a_program(name):
    np.testing.assert_array_equal(draw(name, 5, 2, 12), orders.draw(name, jax.random.key(5), 2, 12))


def test_a_spaced_order_is_the_rotated_bit_reversal():
    np.testing.assert_array_equal(base("spaced", 8), [0, 4, 2, 6, 1, 5, 3, 7])
    order = orders.spaced_order(8, jax.random.key(4))
    assert order.dtype == np.int32
    np.testing.assert_array_equal((order - order[0]) % 8, base("spaced", 8))
    assert order[0] != orders.spaced_order(8, jax.random.key(6))[0]  # variation: another key, another rotation


@pytest.mark.parametrize(
    "name",
    [
        "",
        "randomly",
        "Random",
        "blocks",
        "blocks:",
        "blocks:0",
        "blocks:-4",
        "blocks:1.5",
        "block:4",
        None,
        4,
        ["random"],
    ],
)
def test_unknown_names_are_refused_and_the_known_ones_listed(name):
    with pytest.raises(ValueError, match=r"must be one of spaced, .* random, blocks:N") as caught:
        orders.check(name, "sample.order")
    assert str(caught.value).startswith(f"sample.order={name!r}")
    if isinstance(name, str):
        with pytest.raises(ValueError, match="order="):
            orders.draw(name, jax.random.key(0), 1, 4)


def test_a_digit_that_is_no_number_is_refused_by_name_too():
    with pytest.raises(ValueError, match="order='blocks:²': must be one of"):
        orders.check("blocks:²")


@pytest.mark.parametrize("name", [*orders.NAMES, "blocks:7"])
def test_known_names_are_returned(name):
    assert orders.check(name) == name


def test_bisection_reveals_level_by_level_between_what_is_there():
    for length in range(1, 41):
        sizes = orders.bisection_sizes(length)
        assert len(sizes) == math.ceil(math.log2(length + 1))
        assert sizes.sum() == length and sizes.min() >= 1 and sizes.dtype == np.int64
        revealed = {-1, length}
        for size, end in zip(sizes, np.cumsum(sizes), strict=True):
            level = base("bisection", length)[end - size : end].tolist()
            gaps = [max(r for r in revealed if r < place) for place in level]
            assert len(set(gaps)) == size  # no two in one gap
            revealed |= set(level)


def kl_of_order(table, order, sizes):
    edges = itertools.pairwise(np.concatenate([[0], np.cumsum(sizes)]))
    blocks = [tuple(order[low:high].tolist()) for low, high in edges]
    return golden.divergence(table, golden.sampler_law(table, blocks))


@pytest.mark.parametrize("length", range(1, 10))
def test_bisection_with_its_sizes_is_exact_on_markov_chains(length):
    sizes = orders.bisection_sizes(length)
    for bed in (d.MarkovChain([1.0, 0.0], golden.M2, length), d.stationary_markov_chain(golden.M2S, length)):
        table = golden.joint_table(bed)
        # The KL is the sum over levels of the total correlation inside, given the levels before.
        assert abs(kl_of_order(table, base("bisection", length), sizes)) < 1e-12
        if length > 2:  # variation: other orders with these sizes are not
            assert kl_of_order(table, base("left_to_right", length), sizes) > 0.01
    hidden = golden.joint_table(golden.noisy_bit(0.1, length))
    assert kl_of_order(hidden, base("bisection", length), sizes) > 0.01 or length < 3  # variation: nor other data


@pytest.mark.parametrize(
    ("bed", "left_to_right", "bisection"),
    [
        (golden.BEDS_8["M2"], 0.655231, 0.0),
        (golden.BEDS_8["M2s"], 0.806996, 0.0),
        (golden.BEDS_8["NB.1"], 0.278992, 0.142228),
        (golden.BEDS_8["BAL"], 0.494805, 0.403881),
        (d.Blocks(d.Repeated(2, 4), 2), 1.386294, 0.0),
    ],
)
def test_errors_of_fixed_orders_equal_the_golden_ones_of_section_4(bed, left_to_right, bisection):
    table, tolerance = golden.joint_table(bed), 0.5e-6 + 1e-9
    have = kl_of_order(table, base("left_to_right", 8), uniform_sizes(8, 4))
    assert abs(have - left_to_right) <= tolerance
    have = kl_of_order(table, base("bisection", 8), orders.bisection_sizes(8))
    assert abs(have - bisection) <= tolerance
    assert abs(kl_of_order(table, base("bisection", 8), (4, 4)) - bisection) > 1e-3  # variation: two levels at once


def test_errors_of_a_hidden_chain_of_six_equal_the_golden_ones_of_section_4():
    table = golden.joint_table(golden.hidden_markov(6))
    have = kl_of_order(table, base("left_to_right", 6), (2, 2, 2))
    assert abs(have - 0.201189) <= 0.5e-6 + 1e-9
    have = kl_of_order(table, base("bisection", 6), orders.bisection_sizes(6))
    assert abs(have - 0.038872) <= 0.5e-6 + 1e-9


def test_a_dispersed_order_keeps_pairs_that_depend_on_each_other_apart():
    noise = np.random.default_rng(0)
    for _ in range(10):
        partner = noise.permutation(16).reshape(8, 2)
        dependence = 0.01 * noise.random((16, 16))
        dependence = dependence + dependence.T
        dependence[partner[:, 0], partner[:, 1]] = dependence[partner[:, 1], partner[:, 0]] = 1.0
        np.fill_diagonal(dependence, noise.normal(size=16))  # not read
        order = orders.dispersed_order(dependence)
        assert is_permutation(order, 16) and order.dtype == np.int32
        turn = np.argsort(order)
        first, second = turn[partner].min(axis=1), turn[partner].max(axis=1)
        assert first.max() < 8 <= second.min()  # one of each pair in either half
        blind = np.argsort(orders.dispersed_order(np.zeros((16, 16))))  # variation: without the dependence
        assert np.sum((blind[partner] < 8).sum(axis=1) != 1) > 0


def test_a_dispersed_order_is_greedy_turn_by_turn():
    noise = np.random.default_rng(1)
    dependence = noise.random((9, 9))
    dependence = dependence + dependence.T
    order = orders.dispersed_order(dependence).tolist()
    off_diagonal = dependence * (1 - np.eye(9))
    assert order[0] == np.argmax(off_diagonal.sum(axis=1))
    for turn in range(1, 9):
        free = [i for i in range(9) if i not in order[:turn]]
        assert order[turn] == min(free, key=lambda i: dependence[i, order[:turn]].sum())


def test_an_order_from_distances_reveals_neighbours_late():
    order = orders.order_from_distances([1.0, 0.5, 0.25, 0.0], 32)
    assert is_permutation(order, 32)
    assert np.abs(np.diff(order[:8])).min() >= 4 and np.diff(np.sort(order[:8])).min() >= 3
    nothing = orders.order_from_distances([0.0, 0.0], 32)
    np.testing.assert_array_equal(orders.order_from_distances([-1.0, -0.5], 32), nothing)  # noise below 0
    far = orders.order_from_distances([0.0, 0.0, 1.0], 32)  # variation: only what is far depends
    assert np.diff(np.sort(far[:3])).max() <= 2
    for length in (1, 2, 5):
        assert is_permutation(orders.order_from_distances([0.0], length), length)
