"""Sampling in a given order: every family, any array, with prompts; on a Markov chain the right one makes no error.

The chi-square test fails by chance once in 10,000 (p > 1e-4); keys are fixed.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from dlm_jax import sampling
from dlm_jax.information import distributions, orders

LENGTH, BATCH, MANY = 6, 32, 20_000
BED = distributions.stationary_markov_chain([[0.9, 0.1], [0.2, 0.8]], LENGTH)
SIZES = orders.bisection_sizes(LENGTH)  # 1, 2, 3
BISECTION, LEFT_TO_RIGHT = np.asarray([3, 1, 5, 0, 2, 4]), np.arange(LENGTH)
EMPTY = np.full((BATCH, LENGTH), BED.mask_id, np.int32)


@pytest.fixture(autouse=True)
def one_group_of_steps(monkeypatch):
    """Grouping steps does not change samples (groups_test), and one group is the least to compile."""
    monkeypatch.setattr("dlm_jax.sampling.loop._MAX_GROUPS", 1)


def draw(key=0, num_samples=BATCH, sizes=SIZES, **options):
    return sampling.sample(
        BED.denoise, key=jax.random.key(key), mask_id=BED.mask_id, num_samples=num_samples, length=LENGTH, sizes=sizes,
        **options,
    )  # fmt: skip


def expected_steps(order, canvas, sizes):
    """int[B, L]: which step reveals a position, -1 where it is frozen; some row has nothing frozen."""
    found, is_frozen = np.full(canvas.shape, -1), canvas != BED.mask_id
    for row, turns in enumerate(np.broadcast_to(order, canvas.shape)):
        masked = [position for position in turns if not is_frozen[row, position]]
        slots = is_frozen[row].sum() + np.arange(len(masked))
        found[row, masked] = np.searchsorted(np.cumsum(sizes), slots, side="right")
    return found


def fitting(base, reveal_step, canvas):
    """For each row, the set of rotations of an order that its steps follow."""
    steps = [expected_steps((base + shift) % LENGTH, canvas, SIZES) for shift in range(LENGTH)]
    return [
        frozenset(shift for shift in range(LENGTH) if (steps[shift][row] == taken).all())
        for row, taken in enumerate(reveal_step)
    ]


@functools.cache
def prompts():
    """Canvases of which every row has frozen positions of its own: none in the first, all in the last."""
    canvas = EMPTY.copy()
    is_frozen = np.random.default_rng(2).random(canvas.shape) < 0.4
    is_frozen[0], is_frozen[-1] = False, True
    canvas[is_frozen] = np.random.default_rng(3).integers(0, BED.vocab_size, is_frozen.sum())
    return canvas


def test_a_named_order_is_followed_step_by_step():
    out = draw(order="bisection")
    np.testing.assert_array_equal(out.reveal_step, expected_steps(BISECTION, EMPTY, SIZES))
    assert (out.nfe == len(SIZES)).all()
    assert (out.tokens < BED.vocab_size).all()
    # Variations: other sizes and another order would be seen.
    assert (out.reveal_step != expected_steps(BISECTION, EMPTY, SIZES[::-1])).any()
    assert (out.reveal_step != expected_steps(LEFT_TO_RIGHT, EMPTY, SIZES)).any()


def test_a_family_that_rotates_is_followed_in_a_rotation_of_each_rows_own_with_and_without_a_prompt():
    base = np.asarray(orders.draw("spaced", jax.random.key(0), 1, LENGTH))[0]
    free = fitting(base, draw(order="spaced").reveal_step, EMPTY)
    assert all(free)
    assert len(set(free)) > 2
    prompted = draw(order="spaced", canvas=prompts())
    given = fitting(base, prompted.reveal_step, prompts())
    assert all(a & b for a, b in zip(free, given, strict=True))  # the same rotation
    # Variations: rotations of another order do not fit, and another key's are others.
    assert not all(fitting(LEFT_TO_RIGHT, prompted.reveal_step, prompts()))
    other = fitting(base, draw(key=1, order="spaced").reveal_step, EMPTY)
    assert not all(a & b for a, b in zip(free, other, strict=True))


def test_no_order_is_random_order_and_rows_have_their_own():
    none, random = draw(order=None), draw(order="random")
    np.testing.assert_array_equal(none.reveal_step, random.reveal_step)
    np.testing.assert_array_equal(none.tokens, random.tokens)
    np.testing.assert_array_equal(np.sort(random.reveal_step, axis=1), np.tile([0, 1, 1, 2, 2, 2], (BATCH, 1)))
    assert len({tuple(row) for row in random.reveal_step.tolist()}) > BATCH // 2
    assert (random.reveal_step != draw(key=1, order="random").reveal_step).any()  # variation


def test_frozen_positions_count_as_revealed_and_the_rest_keep_the_order():
    canvas = prompts()
    is_frozen = canvas != BED.mask_id
    out = draw(order="bisection", canvas=canvas)
    np.testing.assert_array_equal(out.tokens[is_frozen], canvas[is_frozen])
    assert (out.tokens < BED.vocab_size).all()
    want = expected_steps(BISECTION, canvas, SIZES)
    np.testing.assert_array_equal(out.reveal_step, want)
    np.testing.assert_array_equal(out.nfe, [len(set(row[row >= 0])) for row in want])
    # Variations: were frozen positions not counted as revealed, other steps would reveal the rest; in another order so.
    assert (out.reveal_step != np.where(is_frozen, -1, expected_steps(BISECTION, EMPTY, SIZES))).any()
    assert (out.reveal_step != expected_steps(LEFT_TO_RIGHT, canvas, SIZES)).any()


@functools.cache
def many_in_array_order(name, sizes=tuple(SIZES)):
    order = {
        "bisection": BISECTION,
        "left_to_right": LEFT_TO_RIGHT,
        "random": np.random.default_rng(0).permuted(np.tile(LEFT_TO_RIGHT, (MANY, 1)), axis=1),
    }[name]
    return order, draw(num_samples=MANY, order=order, sizes=sizes)


@pytest.mark.parametrize("name", ["bisection", "left_to_right", "random"])
def test_an_array_of_one_order_or_one_a_row_is_followed(name):
    order, out = many_in_array_order(name)
    want = expected_steps(order[:BATCH] if order.ndim == 2 else order, EMPTY, SIZES)
    np.testing.assert_array_equal(out.reveal_step[:BATCH], want)
    assert (out.reveal_step[:BATCH] != np.roll(want, 1, axis=1)).any()  # variation


def test_an_array_draws_the_same_tokens_as_the_family_of_the_same_order_whatever_the_batch():
    _, array = many_in_array_order("bisection")
    np.testing.assert_array_equal(array.tokens[:BATCH], draw(order="bisection").tokens)
    # Variations: with another key, in another order.
    assert (array.tokens[:BATCH] != draw(key=1, order="bisection").tokens).any()
    assert (array.tokens != many_in_array_order("left_to_right")[1].tokens).any()


# ------------------------------------------------------------------------------------------------------ the exact law


def all_sequences():
    return np.array(list(itertools.product(range(BED.vocab_size), repeat=LENGTH)), np.int32)


def p_value(tokens):
    """Chi-square of samples against the chain; outcomes expected less than 5 times are pooled."""
    sequences = all_sequences()
    code = tokens @ BED.vocab_size ** np.arange(LENGTH)[::-1]
    observed = np.bincount(code, minlength=len(sequences))
    expected = np.exp(BED.log_prob(sequences)) * len(tokens)
    rare = expected < 5
    observed, expected = (np.append(part[~rare], part[rare].sum()) for part in (observed, expected))
    keep = expected > 0
    return stats.chisquare(observed[keep], expected[keep] * observed.sum() / expected.sum()).pvalue


def test_bisection_draws_a_markov_chain_exactly_and_random_order_of_as_many_steps_does_not():
    assert len(SIZES) == 3
    assert p_value(many_in_array_order("bisection")[1].tokens) > 1e-4
    # Variations: as many steps in random order, or from left to right, and other sizes in this order.
    assert p_value(many_in_array_order("random")[1].tokens) < 1e-4
    assert p_value(many_in_array_order("left_to_right")[1].tokens) < 1e-4
    assert p_value(many_in_array_order("bisection", tuple(SIZES[::-1]))[1].tokens) < 1e-4


def test_a_row_does_not_depend_on_how_many_others_there_are():
    large, small = draw(order="spaced"), draw(order="spaced", num_samples=8)
    np.testing.assert_array_equal(large.tokens[:8], small.tokens)
    np.testing.assert_array_equal(large.reveal_step[:8], small.reveal_step)
    # Variation: with another key.
    assert (large.tokens[:8] != draw(key=1, order="spaced", num_samples=8).tokens).any()


# ---------------------------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "zigzag"}, r"^order='zigzag': must be one of spaced, golden, .*random, blocks:N with N at least 1$"),
        ({"order": ""}, r"^order='': must be one of"),
        ({"order": "Spaced"}, r"^order='Spaced': must be one of"),
        ({"order": "blocks"}, r"^order='blocks': must be one of"),
        ({"order": "blocks:0"}, r"^order='blocks:0': must be one of"),
        ({"order": "blocks:1.5"}, r"^order='blocks:1.5': must be one of"),
        ({"order": [0, 1, 2, 3, 4, 4]}, r"^order: must hold every position 0\.\.5 exactly once$"),
        ({"order": [1, 2, 3, 4, 5, 6]}, r"^order: must hold every position 0\.\.5 exactly once$"),
        ({"order": [0, 1, 2]}, r"^order: shape \[3\] must be \[6\] or \[2, 6\], whole numbers$"),
        ({"order": [[0, 1, 2, 3, 4, 5]] * 3}, r"^order: shape \[3, 6\] must be \[6\] or \[2, 6\], whole numbers$"),
        ({"order": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}, r"^order: shape \[6\] must be .* whole numbers$"),
        (
            {"order": "spaced", "selection": "confidence"},
            r"^order: selection='confidence' chooses its own; must be None",
        ),
        ({"order": [0, 1, 2, 3, 4, 5], "selection": "confidence"}, r"^order: selection='confidence' chooses its own"),
    ],
)
def test_a_wrong_order_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        draw(num_samples=2, **options)
    assert "\n" not in str(caught.value)
