"""What revealing costs, against the definition: float64 conditionals of test beds, one context at a time.

Statistical checks have fixed keys; the probability that a right program fails by chance stands beside each.
"""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dlm_jax.diffusion.schedules import make_schedule
from dlm_jax.evaluation import reveal
from dlm_jax.information import distributions, orders
from dlm_jax.kernels.cross_entropy import cross_entropy, cross_entropy_and_entropy
from dlm_jax.sampling.plain import PlainDenoiser

LENGTH, BATCH = 7, 12
BED = distributions.stationary_markov_chain([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], LENGTH)
MASK = BED.mask_id
TIME_AT = make_schedule("linear").time_at
TOKENS = np.random.default_rng(0).integers(0, BED.vocab_size, (BATCH, LENGTH)).astype(np.int32)
ORDERS = ["random", "spaced", "bisection", "left_to_right"]
# Parameters of the denoiser: 0 answers with the exact conditionals; at 1 they are tempered by the time it is told, so
# that they belong to no distribution and orders differ in what they cost.
EXACT, BLURRED = 0.0, 1.0


def hidden(blur, tokens, *, rows=None, time=None):
    answer = jnp.maximum(BED.denoise(tokens), -8.0) * (1 + blur * (time[:, None, None] - 0.5))
    return (answer if rows is None else jnp.take_along_axis(answer, rows[..., None], axis=1)), None


PLAIN = PlainDenoiser(BED.denoise, MASK)
DENOISER = types.SimpleNamespace(
    mask_id=MASK, needs_time=True, hidden=hidden, logits=PLAIN.logits, token_losses=PLAIN.token_losses,
    token_losses_and_entropies=PLAIN.token_losses_and_entropies,
)  # fmt: skip


@functools.cache
def order_of(name):
    return np.asarray(orders.draw(name, jax.random.key(1), BATCH, LENGTH))


@functools.cache
def prefix_program(counts=tuple(range(LENGTH))):
    return jax.jit(lambda blur, order: reveal.prefix_costs(DENOISER, blur, TOKENS, order, counts, TIME_AT))


@functools.cache
def steps_program():
    return jax.jit(
        lambda blur, order, bounds: reveal.t_step_losses(DENOISER, blur, TOKENS, order, bounds, LENGTH, TIME_AT)
    )


def step_losses(blur, order, sizes):
    """float[L, B]; any sizes in one program: boundaries are padded with empty steps at the end."""
    boundaries = np.full(LENGTH + 1, LENGTH, np.int32)
    boundaries[: len(sizes) + 1] = np.concatenate([[0], np.cumsum(sizes)])
    return np.asarray(steps_program()(blur, order, boundaries))


def direct(blur, is_hidden, x=None, time=None):
    """float64[B, L] losses and entropies of every position, the hidden ones masked, at the time of their share."""
    x = TOKENS if x is None else x
    time = is_hidden.mean(axis=1) if time is None else time
    answer = np.maximum(BED.denoise(np.where(is_hidden, MASK, x)), -8.0) * (1 + blur * (time[:, None, None] - 0.5))
    log_p = special.log_softmax(answer, axis=-1)
    return -np.take_along_axis(log_p, x[..., None], axis=2)[..., 0], special.entr(np.exp(log_p)).sum(-1)


def sum_of_steps(costs, sizes, counts=None):
    """float[B]: the costs of the steps of these sizes."""
    edges = np.append(np.arange(LENGTH) if counts is None else counts, LENGTH)
    place = np.searchsorted(edges, np.concatenate([[0], np.cumsum(sizes)]))
    return sum(np.asarray(costs)[:, a, a:b].sum(axis=1) for a, b in itertools.pairwise(place))


# --------------------------------------------------------------------------------------------------- t_step_losses


@pytest.mark.parametrize("sizes", [[7], [3, 4], [2, 1, 3, 1], [1] * 7])
def test_a_step_costs_what_its_tokens_cost_given_those_before_it(sizes):
    order = order_of("random")
    have = step_losses(BLURRED, order, sizes)
    turn = np.argsort(order, axis=1)
    start = 0
    for step, size in enumerate(sizes):
        losses, _ = direct(BLURRED, turn >= start)
        is_now = (turn >= start) & (turn < start + size)
        np.testing.assert_allclose(have[step], (losses * is_now).sum(1), rtol=1e-4, atol=1e-5)
        # Variations: other tokens cost something else, and so does another time.
        assert not np.allclose(have[step], (losses * np.roll(is_now, 1, axis=1)).sum(1), rtol=1e-4) or size == LENGTH
        wrong, _ = direct(BLURRED, turn >= start, time=np.full(BATCH, start / LENGTH))
        assert not np.allclose(have[step], (wrong * is_now).sum(1), rtol=1e-3)
        start += size
    np.testing.assert_array_equal(have[len(sizes) :], 0.0)


# ----------------------------------------------------------------------------------------------------- prefix_costs


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("blur", [EXACT, BLURRED])
def test_costs_of_prefixes_add_up_to_the_t_step_losses_row_by_row(blur, order):
    order = order_of(order)
    costs, _ = prefix_program()(blur, order)
    found = {}
    for sizes in ([7], [1] * 7, [3, 4], [4, 3], [2, 1, 3, 1], [1, 2, 4]):
        want = step_losses(blur, order, sizes).sum(axis=0)
        np.testing.assert_allclose(sum_of_steps(costs, sizes), want, atol=1e-4, rtol=0)
        found[tuple(sizes)] = want
    # Variation: other sizes, and another row, cost something else.
    assert np.abs(sum_of_steps(costs, [3, 4]) - found[7,]).max() > 1e-2
    assert np.abs(np.roll(sum_of_steps(costs, [3, 4]), 1) - found[3, 4]).max() > 1e-2


def test_costs_on_a_coarse_grid_are_sums_of_those_on_the_fine_one():
    order, counts = order_of("random"), (0, 2, 5, 6)
    coarse, _ = prefix_program(counts)(BLURRED, order)
    fine, _ = prefix_program()(BLURRED, order)
    assert coarse.shape == (BATCH, 4, 4)
    want = np.add.reduceat(np.asarray(fine)[:, list(counts)], counts, axis=2)
    np.testing.assert_allclose(coarse, want, atol=1e-4, rtol=0)
    np.testing.assert_allclose(
        sum_of_steps(coarse, [2, 3, 1, 1], counts),
        step_losses(BLURRED, order, [2, 3, 1, 1]).sum(axis=0),
        atol=1e-4, rtol=0,
    )  # fmt: skip
    # Variation: other edges of the cells.
    assert np.abs(coarse - np.add.reduceat(np.asarray(fine)[:, list(counts)], (0, 2, 4, 6), axis=2)).max() > 1e-2


@pytest.mark.parametrize("order", ["random", "bisection"])
@pytest.mark.parametrize("blur", [EXACT, BLURRED])
def test_every_cost_and_entropy_is_the_one_computed_directly(blur, order):
    order = order_of(order)
    turn = np.argsort(order, axis=1)
    costs, entropies = (np.asarray(part) for part in prefix_program()(blur, order))
    for k in range(LENGTH):
        losses, entropy = direct(blur, turn >= k)
        by_turn = np.take_along_axis(losses, order, axis=1)
        np.testing.assert_allclose(costs[:, k, k:], by_turn[:, k:], atol=1e-4, rtol=0)
        np.testing.assert_array_equal(costs[:, k, :k], 0.0)
        mean = (entropy * (turn >= k)).sum(1) / (LENGTH - k)
        np.testing.assert_allclose(entropies[:, k], mean, atol=1e-4, rtol=0)
        # Variation: a token more revealed, another mean.
        if k:
            assert np.abs(entropies[:, k - 1] - mean).max() > 1e-3


# --------------------------------------------------------------------------------------------------- rotated_losses

# How many are hidden, and from which slot; the last two wrap around the end.
QUESTIONS = ((1, 0), (1, 6), (2, 3), (4, 1), (3, 5), (7, 2))


@functools.cache
def rotated_program():
    return jax.jit(lambda rows, order: reveal.rotated_losses(DENOISER, BLURRED, rows, order, QUESTIONS, TIME_AT))


@pytest.mark.parametrize("order", ["random", "bisection"])
def test_rotated_losses_are_the_ones_computed_directly(order):
    order = order_of(order)
    have = [np.asarray(part) for part in rotated_program()(TOKENS, order)]
    for question, (count, first) in enumerate(QUESTIONS):
        hidden = order[:, (first + np.arange(count)) % LENGTH]
        is_hidden = (np.arange(LENGTH) == hidden[..., None]).any(1)
        assert (is_hidden.sum(1) == count).all()
        for part, table in zip(have, direct(BLURRED, is_hidden), strict=True):
            np.testing.assert_allclose(part[:, question], (table * is_hidden).sum(1) / count, atol=1e-4, rtol=0)
            # Variation: all tokens, not the hidden ones.
            assert np.abs(part[:, question] - table.mean(1)).max() > 1e-3 or count == LENGTH


def test_rotated_losses_of_the_last_slots_are_those_of_the_prefixes():
    order = order_of("random")
    costs, entropies = prefix_program()(BLURRED, order)
    losses, rotated_entropies = rotated_program()(TOKENS, order)
    np.testing.assert_allclose(losses[:, 1], costs[:, 6, 6], atol=1e-5)
    np.testing.assert_allclose(rotated_entropies[:, 1], entropies[:, 6], atol=1e-5)
    assert np.abs(losses[:, 0] - costs[:, 6, 6]).max() > 1e-2  # variation: another token is hidden


@functools.cache
def mean_over_subsets(count):
    """float64: the mean loss of `count` hidden tokens over all ways to hide them, of the first row."""
    hidden = np.asarray(list(itertools.combinations(range(LENGTH), count)))
    is_hidden = (np.arange(LENGTH) == hidden[..., None]).any(1)
    losses, _ = direct(BLURRED, is_hidden, np.repeat(TOKENS[:1], len(hidden), axis=0))
    return losses[is_hidden].mean()


def test_rotated_losses_are_unbiased_in_random_order_and_in_random_order_only():
    calls = 250
    rows = np.repeat(TOKENS[:1], BATCH, axis=0)
    means = [mean_over_subsets(count) for count, _ in QUESTIONS]

    def deviations(all_orders):
        losses = [rotated_program()(rows, order.astype(np.int32))[0] for order in all_orders]
        losses = np.concatenate(losses).astype(np.float64)
        return (losses.mean(axis=0) - means) / (losses.std(axis=0) / np.sqrt(len(losses)) + 1e-5)

    random = np.random.default_rng(4).permuted(np.tile(np.arange(LENGTH), (calls, BATCH, 1)), axis=-1)
    # 4.5 standard errors: one of the six questions fails by chance with probability 4e-5.
    assert (np.abs(deviations(random)) < 4.5).all()
    # Variation: in one order for all, the same tokens are always hidden.
    assert (np.abs(deviations(np.tile(np.arange(LENGTH), (1, BATCH, 1)))) > 4.5).any()


# ----------------------------------------------------------------------------------------------------- order_losses


@functools.cache
def order_program(num_counts):
    return jax.jit(
        lambda blur, order, key: reveal.order_losses(DENOISER, blur, TOKENS, order, key, num_counts, TIME_AT)
    )


def all_terms(blur, order, seed=0):
    return np.asarray(order_program(LENGTH + 4)(blur, order_of(order), jax.random.key(seed)), np.float64)


@pytest.mark.parametrize("order", ORDERS)
def test_all_terms_of_exact_conditionals_are_the_log_likelihood_in_any_order(order):
    nats = -BED.log_prob(TOKENS)
    have = all_terms(EXACT, order)
    np.testing.assert_allclose(have, nats, atol=1e-4, rtol=0)
    # Variations: another row's; conditionals that are not exact.
    assert np.abs(np.roll(have, 1) - nats).max() > 1e-2
    assert np.abs(all_terms(BLURRED, order) - nats).max() > 1e-2


def test_all_terms_are_the_sum_of_single_steps_whatever_the_denoiser_and_the_key():
    for order in ORDERS:
        want = step_losses(BLURRED, order_of(order), [1] * LENGTH).sum(axis=0)
        for key in (0, 1):
            np.testing.assert_allclose(all_terms(BLURRED, order, key), want, atol=1e-4, rtol=0)
    # Variation: in another order the same tokens cost something else.
    assert np.abs(all_terms(BLURRED, "random") - want).max() > 1e-2


def test_fewer_terms_are_unbiased_for_all_of_them_row_by_row():
    num_counts, many = 3, 3000  # 7 is no multiple of 3: prefixes are cut unevenly
    order, exact = order_of("spaced"), all_terms(BLURRED, "spaced")
    # Only one offset a call is random, and it decides which terms are summed: one answer for each set of terms,
    # weighted by how often its keys come.
    keys = jax.random.split(jax.random.key(9), many)
    offsets = np.asarray(jax.vmap(jax.random.uniform)(keys))[:, None]
    starts = np.floor((np.arange(num_counts) + offsets) * (LENGTH / num_counts)).astype(int)
    _, first, times = np.unique(starts, axis=0, return_index=True, return_counts=True)
    answers = [order_program(num_counts)(BLURRED, order, keys[i]) for i in first]
    mean = times @ np.asarray(answers, np.float64) / many
    stderr = np.sqrt(times @ (answers - mean) ** 2) / many
    # 5 standard errors: one of 12 rows fails by chance with probability 7e-6.
    assert (np.abs(mean - exact) < 5 * stderr).all()
    # Variations: a tenth less is told apart; and so are terms that are not stretched to the whole.
    assert (np.abs(mean - 0.9 * exact) > 5 * stderr).any()
    assert (np.abs(mean * num_counts / LENGTH - exact) > 5 * stderr).all()


# ----------------------------------------------------------------------------------------- cross-entropy and entropy


def reference(hidden, kernel, targets):
    log_p = special.log_softmax(np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64).T, axis=-1)
    return -np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0], special.entr(np.exp(log_p)).sum(-1)


def inputs(vocab_size, scale=1.0):
    random = np.random.default_rng(vocab_size)
    hidden = (scale * random.normal(size=(2, 3, 5))).astype(np.float32)
    return hidden, random.normal(size=(vocab_size, 5)).astype(np.float32), random.integers(0, vocab_size, (2, 3))


# Whole, tiles that divide V, tiles that do not, a tile of one, a last tile with one new entry, more than V.
@pytest.mark.parametrize(
    ("vocab_size", "tile"), [(11, None), (11, 11), (12, 4), (11, 4), (11, 5), (11, 10), (11, 1), (11, 64)]
)
def test_cross_entropy_and_entropy_are_those_of_the_softmax_for_any_tile(vocab_size, tile):
    given = inputs(vocab_size)
    have = cross_entropy_and_entropy(*given, tile=tile)
    for a, b in zip(have, reference(*given), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6)
        assert np.abs(np.roll(a, 1, axis=1) - b).max() > 0.05  # variation: another row's
    np.testing.assert_allclose(have[0], cross_entropy(*given), rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("tile", [11, 4, 1])
def test_extreme_logits_neither_overflow_nor_lose_the_entropy(tile):
    hidden, kernel, targets = inputs(11, scale=1e3)
    have, want = cross_entropy_and_entropy(hidden, kernel, targets, tile=tile), reference(hidden, kernel, targets)
    for a, b in zip(have, want, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-3)  # logits of 1e4 are known to 1e-3
    # Variation: the same check rejects the entropy of milder logits.
    mild = cross_entropy_and_entropy(hidden / 1e3, kernel, targets, tile=tile)
    assert np.abs(mild[1] - want[1]).max() > 0.05


@pytest.mark.parametrize("tile", [13, 4])
def test_uniform_logits_have_the_entropy_log_vocab_and_one_certain_token_has_none(tile):
    hidden, kernel, targets = inputs(13)
    for part in cross_entropy_and_entropy(0 * hidden, kernel, targets, tile=tile):
        np.testing.assert_allclose(part, np.log(13), rtol=1e-6)
    certain = np.zeros((13, 5), np.float32)
    certain[12] = 300.0
    losses, entropy = cross_entropy_and_entropy(np.ones_like(hidden), certain, np.full_like(targets, 12), tile=tile)
    np.testing.assert_allclose(losses, 0.0, atol=1e-3)
    np.testing.assert_allclose(entropy, 0.0, atol=1e-3)
    losses, _ = cross_entropy_and_entropy(np.ones_like(hidden), certain, np.full_like(targets, 3), tile=tile)
    np.testing.assert_allclose(losses, 1500.0, rtol=1e-5)  # variation: any other target costs the whole gap
