"""Both ways of drawing masks: how many, where, and with what weight the NELBO comes out right.

Statistical checks have fixed keys; chi-square tests fail by chance with the probability named beside them.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dlm_jax.diffusion import masking
from dlm_jax.diffusion.schedules import make_schedule
from dlm_jax.information import distributions

MASK = 9
LINEAR = make_schedule("linear")


def subsets(length):
    """bool[2^L, L]: every set of masked positions."""
    return np.array(list(itertools.product([False, True], repeat=length)))


def code_of(is_masked):
    return (is_masked * 2 ** np.arange(is_masked.shape[-1])[::-1]).sum(-1)


def exact_nelbo(loss_table):
    """E_n (L / n) E_{|M| = n} sum_{i in M} loss(M, i), n uniform in 1..L, by enumeration of float[2^L, L]."""
    length = loss_table.shape[1]
    total = 0.0
    for is_masked, losses in zip(subsets(length), loss_table, strict=True):
        n = is_masked.sum()
        if n:
            total += losses[is_masked].sum() * length / n / math.comb(length, n) / length
    return total


def arbitrary_losses(length, seed=0):
    """float[2^L, L]: a loss for every context and position, nothing in common."""
    return np.random.default_rng(seed).gamma(0.7, 1.0, (2**length, length))


def estimates(draw, loss_table, num_keys):
    """The sum of weights times losses over a whole batch, one a key."""
    length = loss_table.shape[1]
    table = jnp.asarray(loss_table, jnp.float32)

    def one(key):
        noised = draw(key)
        is_masked = noised.xt == MASK
        code = (is_masked * 2 ** jnp.arange(length)[::-1]).sum(-1)
        groups = noised.scored.shape[0]
        losses = jnp.take_along_axis(table[code].reshape(groups, -1), noised.scored, axis=1)
        return (noised.weights * losses).sum()

    keys = jax.random.split(jax.random.key(5), num_keys)
    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


def draw_many(length, batch, num_keys, seed=3):
    x0 = jnp.arange(batch * length).reshape(batch, length) % MASK
    keys = jax.random.split(jax.random.key(seed), num_keys)
    draw = jax.jit(jax.vmap(lambda key: masking.exact_count(key, x0, MASK, LINEAR)))
    return x0, jax.tree.map(np.asarray, draw(keys))


@pytest.mark.parametrize(("length", "batch"), [(2, 2), (7, 6)])
def test_a_pair_masks_n_and_its_complement_and_the_batch_always_the_same_number(length, batch):
    x0, noised = draw_many(length, batch, 50)
    counts = (noised.xt == MASK).sum(-1)  # [keys, B]
    np.testing.assert_array_equal(counts[:, 0::2] + counts[:, 1::2], length + 1)
    np.testing.assert_array_equal(counts.sum(1), batch * (length + 1) // 2)
    assert counts.min() >= 1
    assert counts.max() <= length
    # Visible tokens are the clean ones.
    np.testing.assert_array_equal(np.where(noised.xt == MASK, x0, noised.xt), np.broadcast_to(x0, noised.xt.shape))
    # Variation: independent masking has no fixed number.
    independent = [int((masking.independent(jax.random.key(k), x0, MASK, LINEAR).xt == MASK).sum()) for k in range(8)]
    assert len(set(independent)) > 1


def test_counts_of_a_batch_are_stratified():
    _, noised = draw_many(8, 16, 40)
    for counts in (noised.xt == MASK).sum(-1)[:, 0::2]:
        assert sorted(counts) == list(range(1, 9))  # as many pairs as lengths: each count exactly once


def test_the_law_of_n_is_uniform():
    length, batch = 5, 6
    _, noised = draw_many(length, batch, 4000)
    for row in range(batch):
        counts = np.bincount((noised.xt[:, row] == MASK).sum(-1), minlength=length + 1)[1:]
        assert stats.chisquare(counts).pvalue > 1e-6  # fails by chance once in a million for each row
    # Variation: counts of independent masking per row include zero, with probability 1 / (L + 1).
    x0 = jnp.zeros((batch, length), jnp.int32)
    keys = jax.random.split(jax.random.key(0), 400)
    free = np.asarray(jax.jit(jax.vmap(lambda key: masking.independent(key, x0, MASK, LINEAR).xt))(keys))
    assert ((free == MASK).sum(-1) == 0).any()


def test_position_sets_are_uniform_given_their_size():
    length = 5
    _, noised = draw_many(length, 2, 8000)
    is_masked = noised.xt == MASK
    for row in range(2):
        for n in range(1, length):
            codes = code_of(is_masked[:, row][is_masked[:, row].sum(-1) == n])
            possible = code_of(subsets(length)[subsets(length).sum(-1) == n])
            counts = [(codes == code).sum() for code in possible]
            assert sum(counts) == len(codes)
            assert stats.chisquare(counts).pvalue > 1e-6  # 8 tests, each fails by chance once in a million


def test_the_two_rows_of_a_pair_are_masked_independently():
    _, noised = draw_many(3, 2, 6000)
    is_masked = noised.xt == MASK
    both = is_masked[is_masked[:, 0].sum(-1) == 2]  # 2 and 2 of 3
    table = stats.contingency.crosstab(code_of(both[:, 0]), code_of(both[:, 1])).count
    assert table.shape == (3, 3)
    assert stats.chi2_contingency(table).pvalue > 1e-6  # fails by chance once in a million


def test_scored_positions_are_exactly_the_masked_ones_with_weight_length_over_n():
    length, batch = 6, 8
    _, noised = draw_many(length, batch, 30)
    for xt, scored, weights, flags in zip(noised.xt, noised.scored, noised.weights, noised.is_masked, strict=True):
        is_masked = (xt == MASK).reshape(batch // 2, 2 * length)
        for pair in range(batch // 2):
            assert sorted(scored[pair]) == list(np.flatnonzero(is_masked[pair]))
            n = is_masked[pair].reshape(2, length).sum(-1)
            np.testing.assert_allclose(weights[pair], length / n[scored[pair] // length], rtol=1e-6)
        assert flags.all()


def test_time_is_the_masked_share():
    _, noised = draw_many(6, 4, 10)
    np.testing.assert_allclose(noised.time, (noised.xt == MASK).mean(-1), rtol=1e-6)


def test_exact_count_is_unbiased_for_any_context_dependent_loss():
    table = arbitrary_losses(5)
    x0 = jnp.zeros((4, 5), jnp.int32)
    have = estimates(lambda key: masking.exact_count(key, x0, MASK, LINEAR), table, 20000)
    want = 4 * exact_nelbo(table)
    stderr = have.std() / len(have) ** 0.5
    assert abs(have.mean() - want) < 4.5 * stderr  # fails by chance with probability 7e-6
    # Variation: a tenth less is told apart.
    assert abs(have.mean() - 0.9 * want) > 4.5 * stderr


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "log_linear"])
def test_independent_masks_at_the_rate_of_the_schedule_and_its_times_hit_every_stratum(name):
    schedule, batch, epsilon = make_schedule(name), 8, 0.01
    x0 = jnp.zeros((batch, 2000), jnp.int32)
    noised = masking.independent(jax.random.key(1), x0, MASK, schedule, epsilon)
    unit = (np.asarray(noised.time) - epsilon) / (1 - epsilon)
    assert sorted(np.floor(unit * batch).astype(int)) == list(range(batch))
    assert noised.time.min() >= epsilon
    want = 1 - np.asarray(schedule.alpha(noised.time))
    share = np.asarray(noised.xt == MASK).mean(1)
    # 4.9 standard errors a row: fails by chance with probability 8e-6 over the rows.
    assert (np.abs(share - want) <= 4.9 * np.sqrt(want * (1 - want) / 2000) + 1e-9).all()
    np.testing.assert_array_equal(noised.weights > 0, noised.is_masked)
    np.testing.assert_array_equal(noised.is_masked, noised.xt == MASK)


def test_time_epsilon_bounds_the_time_from_below():
    x0 = jnp.zeros((64, 4), jnp.int32)
    times = {e: float(masking.independent(jax.random.key(0), x0, MASK, LINEAR, e).time.min()) for e in (0.3, 0.01)}
    assert times[0.3] >= 0.3
    assert times[0.01] < 0.3  # variation


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_independent_is_unbiased_and_its_constant_makes_it_an_upper_bound(name):
    length, epsilon, vocab_size = 4, 0.02, 7
    # Losses below log V, as of a denoiser no worse than uniform: then the constant covers what lies below epsilon.
    table = np.random.default_rng(1).uniform(0, math.log(vocab_size), (2**length, length))
    schedule = make_schedule(name)
    x0 = jnp.zeros((8, length), jnp.int32)
    have = estimates(lambda key: masking.independent(key, x0, MASK, schedule, epsilon), table, 20000) / 8
    # Exact: the integral over t in [epsilon, 1] of weight(t) E sum of losses, on the masked share s = 1 - alpha(t):
    # weight dt = ds / s, so it is the integral over s of sum_M s^(|M| - 1) (1 - s)^(L - |M|) sum of losses.
    low, s_nodes = float(1 - schedule.alpha(epsilon)), np.polynomial.legendre.leggauss(20)
    s = low + (1 - low) * (s_nodes[0] + 1) / 2
    want = 0.0
    for is_masked, losses in zip(subsets(length), table, strict=True):
        n = is_masked.sum()
        if n:
            density = s ** (n - 1) * (1 - s) ** (length - n)
            want += (s_nodes[1] / 2 * (1 - low) * density).sum() * losses[is_masked].sum()
    stderr = have.std() / len(have) ** 0.5
    assert abs(have.mean() - want) < 4.5 * stderr  # fails by chance with probability 7e-6
    assert stderr < 0.01 * want
    exact = exact_nelbo(table)
    bound = want + length * masking.constant_below(schedule, epsilon, vocab_size)
    assert bound >= exact - 1e-9
    assert want < exact  # variation: without the constant it is no bound


BEDS = {
    "independent": distributions.Independent([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.3, 0.7]]),
    "repeated": distributions.Repeated(3, 4),
    "parity": distributions.Parity(4),
    "markov": distributions.stationary_markov_chain([[0.9, 0.1], [0.2, 0.8]], 4),
}


@pytest.mark.parametrize("name", ["parity", "markov"])
def test_with_exact_conditionals_both_bounds_are_the_same_and_equal_the_log_likelihood(name):
    bed = BEDS[name]
    length, x0 = bed.length, np.asarray(bed.sample(jax.random.key(2), 1))[0]
    contexts = np.where(subsets(length), bed.mask_id, x0)
    table = -np.take_along_axis(bed.denoise(contexts), np.broadcast_to(x0[:, None], (*contexts.shape, 1)), 2)[..., 0]
    nll = -bed.log_prob(x0[None])[0]
    np.testing.assert_allclose(exact_nelbo(table), nll, rtol=1e-12)
    tokens = jnp.broadcast_to(jnp.asarray(x0), (8, length))
    epsilon = 1e-3
    exact_count = estimates(
        lambda key: _marked(masking.exact_count(key, tokens, bed.mask_id, LINEAR), bed), table, 4000
    )
    independent = estimates(
        lambda key: _marked(masking.independent(key, tokens, bed.mask_id, LINEAR, epsilon), bed), table, 4000
    )
    constant = length * masking.constant_below(LINEAR, epsilon, bed.vocab_size)
    for have, slack in ((exact_count / 8, 0.0), (independent / 8, constant)):
        stderr = have.std() / len(have) ** 0.5
        # 4.5 standard errors: fails by chance with probability 7e-6.
        assert nll - 4.5 * stderr - slack - 1e-5 <= have.mean() <= nll + 4.5 * stderr + 1e-5


def _marked(noised, bed):
    return noised._replace(xt=jnp.where(noised.xt == bed.mask_id, MASK, noised.xt))


@pytest.mark.parametrize("name", sorted(BEDS))
def test_the_bound_of_a_wrong_denoiser_lies_above_the_entropy(name):
    bed = BEDS[name]
    x = np.array(list(itertools.product(range(bed.vocab_size), repeat=bed.length)))
    p = np.exp(bed.log_prob(x))
    entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
    total = 0.0
    for row, weight in zip(x[p > 0], p[p > 0], strict=True):
        contexts = np.where(subsets(bed.length), bed.mask_id, row)
        # A tempered mixture with uniform: proper, but not the conditionals.
        probs = 0.7 * np.exp(bed.denoise(contexts)) + 0.3 / bed.vocab_size
        losses = -np.log(np.take_along_axis(probs, np.broadcast_to(row[:, None], (*contexts.shape, 1)), 2)[..., 0])
        total += weight * exact_nelbo(losses)
    assert total > entropy if name != "independent" else total >= entropy
