"""The canvas: stages cover every position once, prompts and frozen tokens stay, orders go stage by stage."""

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dlm_jax.information import orders
from dlm_jax.sampling import canvas as canvases

MASK = 9


@st.composite
def layouts(draw):
    """(length, block_length, critical) that can be laid out."""
    length = draw(st.integers(1, 24))
    block_length = draw(st.integers(0, length))
    critical = draw(st.lists(st.integers(0, length - 1), unique=True, max_size=length - 1))
    return length, block_length, critical


# ------------------------------------------------------------------------------------------------------------ stages


@settings(max_examples=300, deadline=None)
@given(layouts())
def test_stages_cover_every_position_once_blocks_first_and_then_the_critical_ones(case):
    length, block_length, critical = case
    layout = canvases.make_layout(length, block_length, critical)
    assert layout.length == length and layout.stage.shape == (length,)
    assert layout.critical == tuple(critical)
    assert sum(layout.lengths) == length and min(layout.lengths) >= 1
    assert list(layout.starts) == [sum(layout.lengths[:stage]) for stage in range(len(layout.lengths))]
    assert [int((layout.stage == stage).sum()) for stage in range(len(layout.lengths))] == list(layout.lengths)
    # Critical positions come last, one a stage, in the order given.
    num_blocks = len(layout.lengths) - len(critical)
    assert [int(layout.stage[place]) for place in critical] == list(range(num_blocks, len(layout.lengths)))
    # The others keep their block, from left to right.
    others = [place for place in range(length) if place not in critical]
    blocks = [place // (block_length or length) for place in others]
    stages = [int(layout.stage[place]) for place in others]
    assert stages == [sorted(set(blocks)).index(block) for block in blocks]
    if len(layout.lengths) > 1:  # variation: without blocks or critical positions all are one stage
        assert (canvases.make_layout(length).stage != layout.stage).any()


@pytest.mark.parametrize(
    ("arguments", "stage"),
    [
        ((6,), [0, 0, 0, 0, 0, 0]),
        ((6, 2), [0, 0, 1, 1, 2, 2]),
        ((6, 6), [0, 0, 0, 0, 0, 0]),
        ((7, 3), [0, 0, 0, 1, 1, 1, 2]),  # the last block is shorter
        ((4, 0, (2, 0)), [2, 0, 1, 0]),
        ((6, 2, (3, 1)), [0, 4, 1, 3, 2, 2]),
        ((4, 2, (0, 1)), [1, 2, 0, 0]),  # a block of critical positions only is no stage
        ((1,), [0]),
    ],
    ids=str,
)
def test_layouts_by_hand(arguments, stage):
    assert canvases.make_layout(*arguments).stage.tolist() == stage
    assert canvases.make_layout(*arguments).stage.dtype == np.int32
    if len(arguments) == 3:  # variation: in another order of the critical positions
        other = (*arguments[:2], arguments[2][::-1])
        assert canvases.make_layout(*other).stage.tolist() != stage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 7), r"^block_length=7: must be at most the length 6$"),
        ((6, 0, (6,)), r"^critical=\[6\]: must be different positions from 0 to 5$"),
        ((6, 0, (-1,)), r"^critical=\[-1\]: must be different positions from 0 to 5$"),
        ((6, 0, (2, 1, 2)), r"^critical=\[2, 1, 2\]: must be different positions from 0 to 5$"),
        ((3, 0, (0, 1, 2)), r"^critical: 3 positions must be fewer than the length 3$"),
        ((1, 0, (0,)), r"^critical: 1 positions must be fewer than the length 1$"),
    ],
    ids=str,
)
def test_a_layout_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        canvases.make_layout(*arguments)


def test_the_values_next_to_those_are_laid_out():
    assert canvases.make_layout(6, 6).lengths == (6,)
    assert canvases.make_layout(6, 0, (5, 0)).lengths == (4, 1, 1)
    assert canvases.make_layout(3, 0, (0, 1)).lengths == (1, 1, 1)


# ----------------------------------------------------------------------------------------------------------- prompts


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.lists(st.lists(st.integers(0, MASK - 1), max_size=11), min_size=1, max_size=5))
def test_every_row_begins_with_its_prompt_and_is_masked_from_there(length, prompts):
    assume(all(len(prompt) < length for prompt in prompts))
    canvas = canvases.with_prompts([np.asarray(prompt, np.int32) for prompt in prompts], length, MASK)
    assert canvas.shape == (len(prompts), length) and canvas.dtype == np.int32
    for row, prompt in zip(canvas, prompts, strict=True):
        assert row.tolist() == prompt + [MASK] * (length - len(prompt))
    if any(prompts):  # variation: without prompts
        assert (canvas != canvases.empty(len(prompts), length, MASK)).any()


def test_a_prompt_that_leaves_nothing_to_fill_is_refused():
    fits, full, longer = (np.zeros(size, np.int32) for size in (3, 4, 9))
    assert (canvases.with_prompts([fits], 4, MASK) == MASK).sum() == 1
    for prompts, count in (([fits, full], 4), ([longer, fits], 9), ([full], 4)):
        with pytest.raises(ValueError, match=rf"^prompt: {count} tokens must be fewer than the length 4$"):
            canvases.with_prompts(prompts, 4, MASK)


# --------------------------------------------------------------------------------------------------- second canvas


@st.composite
def canvas_rows(draw, max_length=10):
    length = draw(st.integers(1, max_length))
    row = st.lists(st.one_of(st.just(MASK), st.integers(0, MASK - 1)), min_size=length, max_size=length)
    return np.asarray(draw(st.lists(row, min_size=1, max_size=4)), np.int32)


@settings(max_examples=200, deadline=None)
@given(canvas_rows(), st.lists(st.integers(0, MASK - 1), max_size=4))
def test_the_second_canvas_holds_masks_or_the_negative_prompt_where_the_first_is_frozen(canvas, negative):
    is_frozen = canvas != MASK
    room = 0
    while room < canvas.shape[1] and is_frozen[:, room].all():
        room += 1
    if not is_frozen.any():
        with pytest.raises(ValueError, match=r"^guidance: needs a prompt or another frozen position to be guided by$"):
            canvases.unconditional(canvas, MASK)
        return
    found = canvases.unconditional(canvas, MASK)
    np.testing.assert_array_equal(found, np.where(is_frozen, MASK, -1))
    assert found.dtype == np.int32
    if len(negative) > room:
        with pytest.raises(ValueError, match=rf"^negative.*: {len(negative)} tokens must be at most .* {room}$"):
            canvases.unconditional(canvas, MASK, np.asarray(negative, np.int32))
        return
    with_negative = canvases.unconditional(canvas, MASK, np.asarray(negative, np.int32))
    assert (with_negative[:, : len(negative)] == negative).all()
    np.testing.assert_array_equal(with_negative[:, len(negative) :], found[:, len(negative) :])
    if negative:  # variation
        assert (with_negative != found).any()


def test_the_room_of_a_negative_prompt_is_that_of_the_shortest_prompt():
    canvas = canvases.with_prompts([np.zeros(3, np.int32), np.zeros(1, np.int32)], 6, MASK)
    assert canvases.unconditional(canvas, MASK, [5]).tolist() == [[5, MASK, MASK, -1, -1, -1], [5, -1, -1, -1, -1, -1]]
    with pytest.raises(ValueError, match=r"2 tokens must be at most .* 1$"):
        canvases.unconditional(canvas, MASK, [5, 5])
    assert canvases.unconditional(canvas[:1], MASK, [5, 5]).tolist() == [[5, 5, MASK, -1, -1, -1]]  # variation


# ------------------------------------------------------------------------------------------------------------- orders


LENGTH, ROWS = 12, 5  # one shape, to compile once


@st.composite
def situations(draw):
    """(canvas, layout) of one shape."""
    is_masked = draw(st.lists(st.booleans(), min_size=LENGTH * ROWS, max_size=LENGTH * ROWS))
    canvas = np.where(np.reshape(is_masked, (ROWS, LENGTH)), MASK, 1).astype(np.int32)
    critical = draw(st.lists(st.integers(0, LENGTH - 1), unique=True, max_size=4))
    return canvas, canvases.make_layout(LENGTH, draw(st.sampled_from([0, 3, 4, 5, 12])), critical)


@settings(max_examples=60, deadline=None)
@given(situations(), st.sampled_from(["random", "spaced", "left_to_right", "bisection", "blocks:4"]), st.integers(0, 9))
def test_an_order_goes_stage_by_stage_frozen_first_and_then_as_given(case, name, seed):
    canvas, layout = case
    key = jax.random.key(seed)
    found = np.asarray(canvases.reveal_order(key, canvas, MASK, name, layout.stage))
    base = np.asarray(orders.draw(name, key, ROWS, LENGTH))
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(LENGTH), (ROWS, 1)))
    for row in range(ROWS):
        want = []
        for stage in range(len(layout.lengths)):
            for is_masked in (False, True):
                want += [p for p in base[row] if layout.stage[p] == stage and (canvas[row, p] == MASK) == is_masked]
        assert found[row].tolist() == want
        for stage, (start, size) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
            assert (layout.stage[found[row, start : start + size]] == stage).all()
    if name == "random":  # variation: of another key
        other = np.asarray(canvases.reveal_order(jax.random.key(seed + 10), canvas, MASK, name, layout.stage))
        assert (found != other).any()


def test_given_arrays_are_followed_for_all_rows_or_one_a_row():
    canvas = np.full((2, 4), MASK, np.int32)
    canvas[1, 3] = 0
    layout = canvases.make_layout(4, 2, (1,))  # stages 0, 2, 1, 1
    for order, want in (
        ([3, 2, 1, 0], [[0, 3, 2, 1], [0, 3, 2, 1]]),
        ([[2, 3, 1, 0], [2, 3, 1, 0]], [[0, 2, 3, 1], [0, 3, 2, 1]]),
    ):
        found = canvases.reveal_order(jax.random.key(0), canvas, MASK, np.asarray(order), layout.stage)
        assert found.tolist() == want
        plain = canvases.reveal_order(jax.random.key(0), canvas, MASK, np.asarray(order), np.zeros(4, np.int32))
        assert plain.tolist() != want  # variation: of one stage


def test_what_a_row_draws_does_not_depend_on_the_others():
    canvas = np.full((5, 8), MASK, np.int32)
    stage = canvases.make_layout(8, 4, (0,)).stage
    many = canvases.reveal_order(jax.random.key(0), canvas, MASK, "random", stage)
    few = canvases.reveal_order(jax.random.key(0), canvas[:2], MASK, "random", stage)
    np.testing.assert_array_equal(many[:2], few)
    assert (np.asarray(many[2:4]) != np.asarray(few)).any()  # variation: other rows draw others
