"""Texts longer than a window: length is kept, what is written stays, steps and calls add up, ended rows stay so."""

import functools

import jax
import numpy as np
import pytest

from dlm_jax import rng, sampling
from dlm_jax.information import distributions
from dlm_jax.sampling import canvas as canvases
from dlm_jax.sampling import windows

TRANSITION = [[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]]  # from a state to itself or to the next one
BATCH = 4


@pytest.fixture(autouse=True)
def one_group_of_steps(monkeypatch):
    """Grouping steps does not change samples (groups_test), and one group is the least to compile."""
    monkeypatch.setattr("dlm_jax.sampling.loop._MAX_GROUPS", 1)


@functools.cache
def bed(window):
    return distributions.stationary_markov_chain(TRANSITION, window)


def sampler(window, seen=None, seed=0, **options):
    """(canvas, number) -> Samples; what it was given and gave is kept in `seen`."""
    chain = bed(window)

    def sample(canvas, number):
        out = sampling.sample(
            chain.denoise, key=rng.stream(jax.random.key(seed), "window", number), mask_id=chain.mask_id, canvas=canvas,
            **options,
        )  # fmt: skip
        if seen is not None:
            seen.append((np.array(canvas), number, out))
        return out

    return sample


def text(row):
    return "".join("abc"[token] for token in row)


def extend(length, window=6, prompts=None, eos_id=None, seen=None, **options):
    prompts = [np.zeros(0, np.int32)] * BATCH if prompts is None else prompts
    return windows.extend(sampler(window, seen, **options), prompts, length, window, bed(window).mask_id, text, eos_id)


def possible(rows):
    """Whether no row holds a step that the chain never takes."""
    steps = np.asarray(TRANSITION)[rows[:, :-1], rows[:, 1:]]
    return bool((steps > 0).all())


@pytest.mark.parametrize("window", [2, 3, 7])
@pytest.mark.parametrize("more", [1, 4, 11])
def test_the_length_is_kept_exactly_and_every_token_is_drawn(window, more):
    out = extend(window + more, window)
    assert out.tokens.shape == out.reveal_step.shape == (BATCH, window + more)
    assert (out.tokens < bed(window).vocab_size).all() and (out.tokens >= 0).all()
    assert (out.reveal_step >= 0).all()
    assert out.nfe.shape == (BATCH,)
    assert out.texts == [text(row) for row in out.tokens]
    assert extend(window + more + 1, window).tokens.shape != out.tokens.shape  # variation


def test_a_text_that_fits_one_window_is_that_window():
    out = extend(6)
    alone = sampler(6)(canvases.with_prompts([np.zeros(0, np.int32)] * BATCH, 6, bed(6).mask_id), 0)
    np.testing.assert_array_equal(out.tokens, alone.tokens)
    np.testing.assert_array_equal(out.nfe, alone.nfe)
    assert (extend(6, seed=1).tokens != alone.tokens).any()  # variation


@pytest.mark.parametrize(("window", "overlap"), [(2, 1), (3, 1), (6, 3), (7, 3)])
def test_every_window_begins_with_the_end_of_the_text_and_never_changes_it(window, overlap):
    seen = []
    out = extend(4 * window + 1, window, seen=seen)
    assert [number for _, number, _ in seen] == list(range(len(seen)))
    done = window
    for canvas, _, part in seen[1:]:
        assert canvas.shape == (BATCH, window)
        np.testing.assert_array_equal(canvas[:, :overlap], out.tokens[:, done - overlap : done])
        assert (canvas[:, overlap:] == bed(window).mask_id).all()
        np.testing.assert_array_equal(part.tokens[:, :overlap], canvas[:, :overlap])
        assert (part.reveal_step[:, :overlap] == -1).all() and (part.reveal_step[:, overlap:] >= 0).all()
        new = min(window - overlap, 4 * window + 1 - done)
        np.testing.assert_array_equal(out.tokens[:, done : done + new], part.tokens[:, overlap : overlap + new])
        done += new
    assert done == 4 * window + 1
    # Variation: of another text the windows do not fit.
    other = extend(4 * window + 1, window, seed=1)
    assert (other.tokens[:, window - overlap : window] != seen[1][0][:, :overlap]).any()


def test_windows_are_joined_by_the_law_of_the_chain():
    """One token a step is exact, so no step that the chain never takes is seen, at the seams neither."""
    out = extend(31, prompts=[np.zeros(0, np.int32)] * 64)
    assert possible(out.tokens)
    # Variations: read backwards, and windows that do not see one another.
    assert not possible(out.tokens[:, ::-1])
    apart = np.concatenate([extend(6, seed=seed, prompts=[np.zeros(0, np.int32)] * 64).tokens for seed in (1, 2)], 1)
    assert not possible(apart)


@pytest.mark.parametrize("options", [{}, {"num_steps": 2}, {"sizes": [1, 2, 3]}, {"selection": "confidence"}], ids=str)
def test_steps_are_counted_on_and_calls_add_up(options):
    seen = []
    out = extend(14, seen=seen, **options)  # 6 + 3 + 3 + 2
    assert len(seen) == 4
    np.testing.assert_array_equal(out.nfe, sum(part.nfe for _, _, part in seen))
    ends, previous = [6, 9, 12, 14], -1
    for start, end in zip([0, *ends], ends, strict=False):
        steps = out.reveal_step[:, start:end]
        assert steps.min() > previous
        previous = steps.max()
    np.testing.assert_array_equal(out.reveal_step[:, :6], seen[0][2].reveal_step)
    if "selection" not in options:  # with frozen tokens counted, the second half of the steps is left
        left = {"{}": 3, "{'num_steps': 2}": 1, "{'sizes': [1, 2, 3]}": 1}[str(options)]
        assert [part.nfe.tolist() for _, _, part in seen[1:]] == [[left] * BATCH] * 3
    assert (out.nfe > seen[0][2].nfe).all()  # variation: more than one window's


def test_rows_have_prompts_of_their_own_and_keep_them():
    prompts = [np.asarray(tokens, np.int32) for tokens in ([], [1], [0, 0, 0, 0, 1], [2, 0])]
    out = extend(11, prompts=prompts)
    for row, prompt in enumerate(prompts):
        np.testing.assert_array_equal(out.tokens[row, : len(prompt)], prompt)
        assert (out.reveal_step[row, : len(prompt)] == -1).all()
        assert (out.reveal_step[row, len(prompt) :] >= 0).all()
    assert possible(out.tokens)
    assert (extend(11).tokens[2, :5] != prompts[2]).any()  # variation
    with pytest.raises(ValueError, match=r"^prompt: 6 tokens must be fewer than the length 6$"):
        extend(11, prompts=[np.zeros(6, np.int32)])


def test_a_row_depends_on_its_own_prompt_and_place_only():
    prompts = [np.asarray(tokens, np.int32) for tokens in ([], [1], [2], [0])]
    both, fewer = extend(14, prompts=prompts), extend(14, prompts=prompts[:2])
    np.testing.assert_array_equal(both.tokens[:2], fewer.tokens)
    other = extend(14, prompts=[prompts[0], prompts[3]])
    np.testing.assert_array_equal(other.tokens[0], both.tokens[0])
    assert (other.tokens[1] != both.tokens[1]).any()  # variation


# ---------------------------------------------------------------------------------------------------- the end of a row

EOS = 2
ENDING = [
    np.asarray(tokens, np.int32) for tokens in ([0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [2, 2, 2, 2, 2], [0, 0, 2, 0, 0])
]


@functools.cache
def with_end(eos_id, seed=0):
    seen = []
    return extend(15, prompts=ENDING * 8, eos_id=eos_id, seen=seen, seed=seed), seen


def test_a_row_that_ends_with_end_of_text_stays_ended_at_no_cost():
    out, seen = with_end(EOS)
    first = seen[0][2]
    is_ended = first.tokens[:, -1] == EOS
    assert 0 < is_ended.sum() < len(is_ended)
    assert (out.tokens[is_ended, 6:] == EOS).all()
    assert (out.reveal_step[is_ended, 6:] == -1).all()
    np.testing.assert_array_equal(out.nfe[is_ended], first.nfe[is_ended])
    assert (out.nfe[~is_ended] > first.nfe[~is_ended]).all()
    np.testing.assert_array_equal(out.tokens[:, :6], first.tokens)
    # Variations: without the token rows go on; a row that holds it further in front goes on too.
    free, _ = with_end(None)
    assert (free.nfe > first.nfe).all() and (free.reveal_step[:, 6:] >= 0).all()
    is_inside = (first.tokens == EOS).any(axis=1) & ~is_ended
    assert is_inside.any() and (out.reveal_step[is_inside, 6:9] >= 0).all()


def test_rows_that_have_not_ended_are_as_without_an_end():
    out, _ = with_end(EOS)
    free, _ = with_end(None)
    is_open = [not (row[5::3][:-1] == EOS).any() for row in out.tokens]  # the last tokens of windows
    assert 0 < sum(is_open) < len(is_open)
    np.testing.assert_array_equal(out.tokens[is_open], free.tokens[is_open])
    assert (out.tokens != free.tokens).any()  # variation: those that have ended are not


def test_when_all_rows_have_ended_no_call_is_made():
    """With one masked token before the end of the first window, and seeds that draw the end there."""
    prompts, calls = [np.full(5, EOS, np.int32)], {}
    for eos_id in (EOS, None):
        seen = []
        out = extend(9, prompts=prompts, eos_id=eos_id, seen=seen)
        assert seen[0][2].tokens[0, -1] == EOS and len(seen) == 2
        calls[eos_id] = out.nfe.tolist()
    assert calls[EOS] == [1]
    assert calls[None] == [1 + 3]  # variation
