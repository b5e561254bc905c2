"""The exact beds are exact: brute force over every context, in float64 and in jax."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dlm_jax import rng
from dlm_jax.diffusion.schedules import linear
from dlm_jax.evaluation import reveal
from dlm_jax.information import distributions as d
from dlm_jax.sampling.plain import PlainDenoiser

M2 = [[0.9, 0.1], [0.2, 0.8]]
M3 = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]
WITH_ZEROS = [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]
BEDS = {
    "independent": d.Independent([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.1, 0.1, 0.8], [0.0, 0.4, 0.6]]),
    "repeated": d.Repeated(3, 4),
    "parity": d.Parity(5),
    "markov": d.MarkovChain([0.5, 0.1, 0.4], M3, 5),
    "markov_with_zeros": d.MarkovChain([0.0, 0.5, 0.5], WITH_ZEROS, 4),
    "mixture": d.Mixture(
        [0.3, 0.7], [d.Repeated(3, 4), d.Independent([[0.2, 0.3, 0.5], [1, 0, 0], [0.5, 0, 0.5], [0, 0.4, 0.6]])]
    ),
    "reed_solomon": d.ReedSolomon(5, 4, 2),
}
NAMES = sorted(BEDS)


@functools.cache
def brute_force(name):
    """(all complete rows, their probabilities, all contexts, P(context), conditionals or NaN)."""
    bed = BEDS[name]
    size, length = bed.vocab_size, bed.length
    rows = np.array(list(itertools.product(range(size), repeat=length)))
    p = np.exp(bed.log_prob(rows))
    contexts = np.array(list(itertools.product(range(size + 1), repeat=length)))
    agrees = ((contexts[:, None] == rows[None]) | (contexts[:, None] == size)).all(-1)  # [contexts, rows]
    total = agrees @ p
    is_token = rows[:, :, None] == np.arange(size)  # [rows, L, V]
    joint = ((agrees * p) @ is_token.reshape(len(rows), -1)).reshape(len(contexts), length, size)
    with np.errstate(invalid="ignore", divide="ignore"):
        return rows, p, contexts, total, joint / total[:, None, None]


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_sum_to_one(name):
    p = brute_force(name)[1]
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-12)
    # Variation: without the most likely row they do not.
    assert np.delete(p, p.argmax()).sum() < 1 - 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_marginals_equal_brute_force(name):
    _, _, contexts, total, _ = brute_force(name)
    np.testing.assert_allclose(np.exp(BEDS[name].log_marginal(contexts)), total, atol=1e-14, rtol=1e-12)
    fast = jax.jit(BEDS[name].log_marginal)(jnp.asarray(contexts))
    np.testing.assert_allclose(np.exp(fast), total, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_conditionals_equal_brute_force(name):
    bed = BEDS[name]
    _, _, contexts, total, want = brute_force(name)
    possible = total > 0
    np.testing.assert_allclose(np.exp(bed.denoise(contexts[possible])), want[possible], atol=1e-12)
    fast = jax.jit(bed.denoise)(jnp.asarray(contexts))
    assert fast.dtype == jnp.float32
    np.testing.assert_allclose(np.exp(fast)[possible], want[possible], atol=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "markov"])
def test_impossible_contexts_are_uniform_and_never_nan(name):
    bed = BEDS[name]
    _, _, contexts, total, _ = brute_force(name)
    impossible = contexts[total == 0]
    assert len(impossible) > 0
    is_masked = impossible == bed.mask_id
    for answer in (bed.denoise(impossible), np.asarray(jax.jit(bed.denoise)(jnp.asarray(impossible)))):
        assert not np.isnan(answer).any()
        np.testing.assert_allclose(answer[is_masked], -np.log(bed.vocab_size), rtol=1e-6)
        np.testing.assert_allclose(np.exp(answer).sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_law(name):
    bed = BEDS[name]
    rows, p, *_ = brute_force(name)
    n = 4000
    drawn = np.asarray(jax.jit(bed.sample, static_argnums=1)(jax.random.key(11), n))
    place = bed.vocab_size ** np.arange(bed.length)[::-1]
    counts = np.bincount(drawn @ place, minlength=len(rows))
    assert counts[p == 0].sum() == 0
    likely = p * n >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(p[likely], p[~likely].sum()) * n
    keep = expected > 1e-9
    assert stats.chisquare(observed[keep], expected[keep]).pvalue > 1e-6  # fails by chance once in a million


@pytest.mark.parametrize(
    ("bed", "want"),
    [
        (d.stationary_markov_chain(M2, 8), 3.321174),
        (d.stationary_markov_chain(M3, 8), 6.266532),
        (d.Parity(8), 4.852030),
        (d.Repeated(4, 8), 1.386294),
    ],
)
def test_entropies_equal_the_golden_ones(bed, want):
    rows = np.indices((bed.vocab_size,) * 8).reshape(8, -1).T
    log_p = bed.log_prob(rows)
    log_p = log_p[log_p > -np.inf]
    np.testing.assert_allclose(-(np.exp(log_p) * log_p).sum(), want, atol=5e-7)
    assert abs(8 * np.log(bed.vocab_size) - want) > 0.5  # variation: the uniform law has another entropy


def test_entropy_of_reed_solomon_equals_the_golden_one():
    # 11^4 codewords, all equally likely, and any other row impossible: enumerated through the first four tokens.
    bed = d.ReedSolomon(11, 8, 4)
    head = np.indices((11,) * 4).reshape(4, -1).T
    contexts = np.concatenate([head, np.full((len(head), 4), bed.mask_id)], axis=1)
    codewords = bed.denoise(contexts).argmax(-1)
    log_p = bed.log_prob(codewords)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(-(np.exp(log_p) * log_p).sum(), 9.591581, atol=5e-7)
    broken = codewords[:5].copy()
    broken[:, 0] = (broken[:, 0] + 1) % 11
    assert (bed.log_prob(broken) == -np.inf).all()  # variation


CHAINED = {
    "m2": d.stationary_markov_chain(M2, 32),
    "mixture": BEDS["mixture"],
    "parity": BEDS["parity"],
    "reed_solomon": BEDS["reed_solomon"],
}


@pytest.mark.parametrize("name", sorted(CHAINED))
def test_conditionals_along_any_order_sum_to_the_log_probability(name):
    bed = CHAINED[name]
    denoiser = PlainDenoiser(bed.denoise, bed.mask_id)
    length = bed.length

    @jax.jit
    def chain(tokens, order, boundaries):
        return reveal.t_step_losses(denoiser, {}, tokens, order, boundaries, length, linear().time_at).sum(0)

    tokens = bed.sample(jax.random.key(0), 16)
    want = -bed.log_prob(np.asarray(tokens))
    one_by_one = jnp.arange(length + 1)
    for seed in range(3):
        order = rng.random_orders(jax.random.key(seed), 16, length)
        np.testing.assert_allclose(chain(tokens, order, one_by_one), want, rtol=1e-5)
    # Variation: all at once (padded with empty steps) forgets the dependence.
    at_once = jnp.where(one_by_one == 0, 0, length)
    assert np.abs(chain(tokens, order, at_once) - want).max() > 0.1


@pytest.mark.parametrize("name", ["m2", "mixture"])
def test_monte_carlo_bound_agrees_with_the_log_probability(name):
    bed = CHAINED[name]
    denoiser = PlainDenoiser(bed.denoise, bed.mask_id)
    tokens = jnp.tile(bed.sample(jax.random.key(1), 1), (400, 1))
    have = np.asarray(
        jax.jit(lambda key: reveal.bound_losses(denoiser, {}, tokens, key, 2, linear()))(jax.random.key(2)), np.float64
    )
    want = -bed.log_prob(np.asarray(tokens[:1]))[0]
    stderr = have.std(ddof=1) / 20
    assert abs(have.mean() - want) < 3 * stderr + 1e-5  # fails by chance with probability 0.003; the key is fixed
    assert abs(have.mean() - 1.3 * want) > 3 * stderr  # variation
