"""The exact beds are exact: brute force over every context, in float64 and in jax; golden curves of THEORY 5."""

import functools
import itertools
import math
import pathlib
import runpy
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from dlm_jax import rng
from dlm_jax.diffusion.schedules import linear
from dlm_jax.evaluation import reveal
from dlm_jax.information import distributions as d
from dlm_jax.sampling.plain import PlainDenoiser

golden = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("golden.py"))))

QUICK = {"xla_backend_optimization_level": 0}  # each program runs once: most of its time is compilation
WITH_ZEROS = [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]
BEDS = {
    "independent": d.Independent([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.1, 0.1, 0.8], [0.0, 0.4, 0.6]]),
    "repeated": d.Repeated(3, 4),
    "parity": d.Parity(5),
    "one_hot": d.OneHot(4),
    "permutation": d.Permutation(4),
    "balanced_bits": d.BalancedBits(4),
    "blocks_of_repeated": d.Blocks(d.Repeated(3, 2), 2),
    "blocks_of_parity": d.Blocks(d.Parity(3), 2),
    "blocks_of_one_hot": d.Blocks(d.OneHot(2), 2),
    "markov": d.MarkovChain([0.5, 0.1, 0.4], golden.M3, 5),
    "markov_stationary": d.stationary_markov_chain(golden.M2, 4),
    "markov_with_zeros": d.MarkovChain([0.0, 0.5, 0.5], WITH_ZEROS, 4),
    "hidden_markov": golden.hidden_markov(4),
    "hidden_markov_with_zeros": d.HiddenMarkov([1.0, 0.0], [[0.3, 0.7], [1.0, 0.0]], [[0.5, 0.5, 0], [0, 0.1, 0.9]], 4),
    "noisy_bit": golden.noisy_bit(0.1, 4),
    "mix3": golden.mix3(4),
    "exchangeable_with_zeros": d.Exchangeable([0.4, 0.6], [[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]], 4),
    "mixture": d.Mixture(
        [0.3, 0.7], [d.Repeated(3, 4), d.Independent([[0.2, 0.3, 0.5], [1, 0, 0], [0.5, 0, 0.5], [0, 0.4, 0.6]])]
    ),
    "reed_solomon": d.ReedSolomon(5, 4, 2),
}
NAMES = sorted(BEDS)
ALIKE = {"blocks_of_parity", "blocks_of_one_hot", "markov_stationary", "hidden_markov_with_zeros", "noisy_bit", "mix3"}
EVERYTHING_IS_POSSIBLE = {"markov", "markov_stationary", "hidden_markov", "noisy_bit", "mix3"}


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


@functools.cache
def jax_answers(name):
    """(log_marginal, denoise) of all contexts, by jax: one program."""
    bed = BEDS[name]
    both = jax.jit(lambda tokens: (bed.log_marginal(tokens), bed.denoise(tokens)), compiler_options=QUICK)
    return both(jnp.asarray(brute_force(name)[2]))


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_sum_to_one(name):
    p = brute_force(name)[1]
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-12)
    # Variation: without the most likely row they do not.
    assert np.delete(p, p.argmax()).sum() < 1 - 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_marginals_equal_brute_force(name):
    _, _, contexts, total, _ = brute_force(name)
    np.testing.assert_allclose(np.exp(BEDS[name].log_marginal(contexts)), total, atol=1e-14, rtol=1e-11)
    np.testing.assert_allclose(np.exp(jax_answers(name)[0]), total, rtol=1e-5, atol=1e-7)
    # Variation: with the mask taken for a token that is known to be there, it is another law.
    assert (
        np.abs(np.exp(BEDS[name].log_marginal(np.where(contexts == BEDS[name].mask_id, 0, contexts))) - total).max()
        > 0.1
    )


@pytest.mark.parametrize("name", NAMES)
def test_conditionals_under_every_mask_equal_brute_force(name):
    bed = BEDS[name]
    _, _, contexts, total, want = brute_force(name)
    possible = total > 0
    have = bed.denoise(contexts[possible])
    assert have.dtype == np.float64
    np.testing.assert_allclose(np.exp(have), want[possible], atol=1e-12)
    fast = jax_answers(name)[1]
    assert fast.dtype == jnp.float32
    np.testing.assert_allclose(np.exp(fast)[possible], want[possible], atol=1e-5)
    # Variation: with the hidden tokens renamed it is another law.
    is_masked = contexts[possible] == bed.mask_id
    assert np.abs(np.exp(have) - np.roll(want[possible], 1, axis=2))[is_masked].max() > 0.1


@pytest.mark.parametrize("name", [n for n in NAMES if n not in EVERYTHING_IS_POSSIBLE and "blocks" not in n])
def test_impossible_contexts_are_uniform_and_never_nan(name):
    bed = BEDS[name]
    _, _, contexts, total, _ = brute_force(name)
    impossible = contexts[total == 0]
    assert len(impossible) > 0
    is_masked = impossible == bed.mask_id
    for answer in (bed.denoise(impossible), np.asarray(jax_answers(name)[1])[total == 0]):
        assert not np.isnan(answer).any()
        np.testing.assert_allclose(answer[is_masked], -np.log(bed.vocab_size), rtol=1e-6)
        np.testing.assert_allclose(np.exp(answer).sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if "blocks" in n])
def test_an_impossible_block_leaves_the_other_blocks_as_they_are(name):
    bed = BEDS[name]
    _, _, contexts, total, _ = brute_force(name)
    size = bed.block.length
    for answer in (bed.denoise(contexts), np.asarray(jax_answers(name)[1])):
        for first in range(0, bed.length, size):
            part = contexts[:, first : first + size]
            np.testing.assert_allclose(
                np.exp(answer[:, first : first + size]), np.exp(bed.block.denoise(part)), atol=1e-6
            )
    assert (total == 0).any()  # variation: some contexts are impossible, the first block's among them
    assert (bed.block.log_marginal(contexts[total == 0][:, :size]) == -np.inf).any()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ALIKE])  # the others are drawn by the same code
def test_samples_follow_the_law(name):
    bed = BEDS[name]
    rows, p, *_ = brute_force(name)
    n = 4000
    sample = jax.jit(bed.sample, static_argnums=1, compiler_options=QUICK)
    drawn = np.asarray(sample(jax.random.key(11), n))
    assert drawn.dtype == np.int32
    place = bed.vocab_size ** np.arange(bed.length)[::-1]
    counts = np.bincount(drawn @ place, minlength=len(rows))
    assert counts[p == 0].sum() == 0

    def chance(p):
        likely = p * n >= 5
        observed = np.append(counts[likely], counts[~likely].sum())
        expected = np.append(p[likely], p[~likely].sum()) * n
        keep = expected > 1e-9
        return stats.chisquare(observed[keep], expected[keep]).pvalue

    assert chance(p) > 1e-6  # fails by chance once in a million
    # Variation: a law that tilts one half of the rows against the other.
    tilted = p * np.where(np.cumsum(p) <= 0.5 + 1e-9, 1.5, 1.0)
    assert chance(tilted / tilted.sum()) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_closed_curve_the_enumerated_one_and_the_table_of_all_contexts_agree(name):
    bed = BEDS[name]
    _, _, contexts, total, _ = brute_force(name)
    revealed = (contexts < bed.vocab_size).sum(axis=1)
    surprise = np.bincount(revealed, special.entr(total))
    want = np.diff(surprise / [math.comb(bed.length, k) for k in range(bed.length + 1)])
    with np.errstate(invalid="ignore"):  # laws with zeros
        closed = bed.curve().entropy
    np.testing.assert_allclose(closed, want, atol=1e-12)
    np.testing.assert_allclose(d._Distribution._entropies(bed), want, atol=1e-12)
    assert np.all(np.diff(want) < 1e-12)  # Han's inequality
    # Variation: one row's probability moved to another makes another curve.
    moved = total[::-1]
    other = np.diff(
        np.bincount(revealed, special.entr(moved)) / [math.comb(bed.length, k) for k in range(bed.length + 1)]
    )
    assert np.abs(other - want).max() > 1e-3


def row_of(curve):
    """f(0) .. f(7) or f at the counts of table 5.3; H, TC, DTC, MI, and H_card where the table has it."""
    f, length = curve.entropy, curve.length
    sums = [f.sum(), curve.total_correlation, curve.dual_total_correlation, curve.mutual_information]
    if length == 8:
        return [*f, *sums]
    j = np.arange(1, length)
    return [*f[[0, 1, 64, 128, 192, 255]], *sums, (j * (length - j) / length) @ (f[:-1] - f[1:])]


def matching(have, rows):
    return [name for name, want in rows.items() if np.allclose(have, want, rtol=0, atol=0.5e-6 + 1e-9)]


@pytest.mark.parametrize("name", golden.BEDS_8)
def test_curves_of_eight_tokens_equal_table_5_1_and_no_other_row_of_it(name):
    assert matching(row_of(golden.BEDS_8[name].curve()), golden.CURVES_8) == [name]


@pytest.mark.parametrize("name", golden.BEDS_256)
def test_curves_of_256_tokens_equal_table_5_3_and_no_other_row_of_it(name):
    assert matching(row_of(golden.BEDS_256[name].curve()), golden.CURVES_256) == [name]


@pytest.mark.parametrize("name", golden.BEDS_8)
def test_correlations_are_the_areas_above_and_below_the_curve_and_the_sums_over_its_jumps(name):
    curve = golden.BEDS_8[name].curve()
    j, jumps = np.arange(1, 8), -np.diff(curve.entropy)
    np.testing.assert_allclose(curve.total_correlation, (8 - j) @ jumps, atol=1e-9)
    np.testing.assert_allclose(curve.dual_total_correlation, j @ jumps, atol=1e-9)
    np.testing.assert_allclose(curve.mutual_information, 8 * jumps.sum(), atol=1e-9)
    if name not in ("IND4", "RS4", "EQB2"):  # variation: the two are not each other, but on symmetric curves
        assert abs(curve.total_correlation - j @ jumps) > 0.1


@pytest.mark.parametrize(
    ("bed", "want"),
    [
        (d.stationary_markov_chain(golden.M2, 8), 3.321174),
        (d.stationary_markov_chain(golden.M3, 8), 6.266532),
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
    "m2": d.stationary_markov_chain(golden.M2, 12),
    "mixture": BEDS["mixture"],
    "parity": BEDS["parity"],
    "reed_solomon": BEDS["reed_solomon"],
}


@pytest.mark.parametrize("name", sorted(CHAINED))
def test_conditionals_along_any_order_sum_to_the_log_probability(name):
    bed = CHAINED[name]
    denoiser = PlainDenoiser(bed.denoise, bed.mask_id)
    length = bed.length

    def chain(tokens, key, boundaries):
        order = rng.random_orders(key, 16, length)
        return reveal.t_step_losses(denoiser, {}, tokens, order, boundaries, length, linear().time_at).sum(0)

    chain = jax.jit(chain, compiler_options=QUICK)
    tokens = jax.jit(bed.sample, static_argnums=1, compiler_options=QUICK)(jax.random.key(0), 16)
    want = -bed.log_prob(np.asarray(tokens))
    one_by_one = np.arange(length + 1, dtype=np.int32)
    for seed in range(3):
        np.testing.assert_allclose(chain(tokens, jax.random.key(seed), one_by_one), want, rtol=1e-5)
    # Variation: all at once (padded with empty steps) forgets the dependence.
    at_once = np.where(one_by_one == 0, 0, length).astype(np.int32)
    assert np.abs(chain(tokens, jax.random.key(0), at_once) - want).max() > 0.1


@pytest.mark.parametrize("name", ["m2", "mixture"])
def test_monte_carlo_bound_agrees_with_the_log_probability(name):
    bed = CHAINED[name]
    denoiser = PlainDenoiser(bed.denoise, bed.mask_id)
    sample = jax.jit(bed.sample, static_argnums=1, compiler_options=QUICK)
    tokens = jnp.tile(sample(jax.random.key(1), 1), (400, 1))
    bound = jax.jit(lambda key: reveal.bound_losses(denoiser, {}, tokens, key, 2, linear()), compiler_options=QUICK)
    have = np.asarray(bound(jax.random.key(2)), np.float64)
    want = -bed.log_prob(np.asarray(tokens[:1]))[0]
    stderr = have.std(ddof=1) / 20
    assert abs(have.mean() - want) < 3 * stderr + 1e-5  # fails by chance with probability 0.003; the key is fixed
    assert abs(have.mean() - 1.3 * want) > 3 * stderr  # variation


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: d.Independent([[0.5, 0.6]]), r"probs: shape \[1, 2\] must be \[L, V\] with rows that sum to 1"),
        (lambda: d.Independent([0.5, 0.5]), "probs: shape"),
        (lambda: d.BalancedBits(5), "length=5: must be even"),
        (lambda: d.MarkovChain([1.0, 0.0], [[0.5, 0.5]], 4), "transition: shape"),
        (lambda: d.MarkovChain([0.7, 0.7], golden.M2, 4), "initial="),
        (lambda: d.Mixture([0.5, 0.6], [d.Parity(4), d.Repeated(2, 4)]), "weights="),
        (lambda: d.Mixture([0.5, 0.5], [d.Parity(4), d.Repeated(3, 4)]), "components: must share one length"),
        (lambda: d.HiddenMarkov([1.0, 0.0], golden.M2, [[0.5, 0.5]], 4), "emission: shape"),
        (lambda: d.ReedSolomon(9, 4, 2), "field_size=9: must be a prime"),
        (lambda: d.ReedSolomon(3, 4, 2), "field_size=3: must be a prime of at least length=4"),
        (lambda: d.ReedSolomon(5, 4, 5), "dimension=5: must be between 1 and length=4"),
        (lambda: golden.hidden_markov(40).curve(), "HiddenMarkov: its curve is found by enumeration, which 3.40"),
        (lambda: d.Exchangeable([1.0], [[0.1] * 10], 64).curve(), "types of rows are too many"),
    ],
)
def test_beds_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
