"""With exact conditionals the sampler draws exactly what theory says.

Chi-square thresholds: p > 1e-4 for each test, so a correct sampler fails one of them with probability 1e-4; keys are
fixed, so each either always passes or always fails.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dlm_jax import sampling
from dlm_jax.information import distributions

LEVEL = 1e-4


def markov(length=4):
    return distributions.stationary_markov_chain([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], length)


def mixture():
    first = distributions.Independent(np.tile([0.95, 0.05], (5, 1)))
    second = distributions.Independent(np.tile([0.3, 0.7], (5, 1)))
    return distributions.Mixture([0.6, 0.4], [first, second])


BEDS = {
    "markov": markov(),
    "mixture": mixture(),
    "parity": distributions.Parity(5),
    "repeated": distributions.Repeated(4, 3),
    "reed_solomon": distributions.ReedSolomon(5, 4, 2),
}


def all_sequences(bed):
    return np.array(list(itertools.product(range(bed.vocab_size), repeat=bed.length)), np.int32)


def code(tokens, vocab_size):
    return tokens @ vocab_size ** np.arange(tokens.shape[1])


def p_value(samples, sequences, probabilities, vocab_size):
    """Chi-square of samples against a law; outcomes expected less than 5 times are pooled."""
    observed = np.bincount(code(samples, vocab_size), minlength=vocab_size ** samples.shape[1])[
        code(sequences, vocab_size)
    ]
    expected = probabilities * len(samples)
    if observed[expected == 0].any():
        return 0.0
    rare = (expected < 5) & (expected > 0)
    common = expected >= 5
    observed = np.append(observed[common], observed[rare].sum())
    expected = np.append(expected[common], expected[rare].sum())
    keep = expected > 0
    return stats.chisquare(observed[keep], expected[keep] * observed.sum() / expected.sum()).pvalue


def draw(bed, key=0, n=100_000, **options):
    return sampling.sample(
        bed.denoise, key=jax.random.key(key), num_samples=n, length=bed.length, mask_id=bed.mask_id, **options
    )


@pytest.mark.parametrize("selection", ["random", "confidence", "margin", "entropy"])
@pytest.mark.parametrize("name", BEDS)
def test_one_token_a_step_draws_the_distribution_itself(name, selection):
    bed = BEDS[name]
    sequences = all_sequences(bed)
    samples = draw(bed, selection=selection).tokens
    assert p_value(samples, sequences, np.exp(bed.log_prob(sequences)), bed.vocab_size) > LEVEL


@pytest.mark.parametrize("name", BEDS)
def test_a_wrong_distribution_fails_the_same_test(name):
    bed = BEDS[name]
    sequences = all_sequences(bed)
    samples = draw(bed, temperature=0.8 if name in ("markov", "mixture") else 1.0).tokens
    p = np.exp(bed.log_prob(sequences))
    if name not in ("markov", "mixture"):  # uniform laws do not feel the temperature: tilt the law instead
        p = p * np.where(sequences[:, 0] == 0, 1.1, 1.0)
        p /= p.sum()
    assert p_value(samples, sequences, p, bed.vocab_size) < LEVEL


def product_law(bed, sequences, order, sizes):
    """The law of the T-step sampler given its order: a product of conditionals inside each step."""
    log_p, known = np.zeros(len(sequences)), np.full_like(sequences, bed.mask_id)
    start = 0
    for size in sizes:
        answer = bed.denoise(known)
        for position in order[start : start + size]:
            log_p += answer[np.arange(len(sequences)), position, sequences[:, position]]
        now = order[start : start + size]
        known[:, now] = sequences[:, now]
        start += size
    return np.exp(log_p)


@pytest.mark.parametrize("name", BEDS)
def test_fewer_steps_draw_the_product_of_conditionals_of_their_order(name):
    bed = BEDS[name]
    sequences = all_sequences(bed)
    order = np.random.default_rng(5).permutation(bed.length).astype(np.int32)
    sizes = [3, 1] if name == "reed_solomon" else [2, bed.length - 2]  # a step that straddles the dimension
    samples = draw(bed, sizes=sizes, order=order).tokens
    law = product_law(bed, sequences, order, sizes)
    assert abs(law.sum() - 1) < 1e-9
    assert p_value(samples, sequences, law, bed.vocab_size) > LEVEL
    # The variation that must fail: two steps do not draw the distribution itself.
    if name != "mixture":
        assert p_value(samples, sequences, np.exp(bed.log_prob(sequences)), bed.vocab_size) < LEVEL


# KL of these families does not depend on the order, and every valid sequence is equally likely, so that the share of
# valid samples is exp(-KL) exactly. THEORY: KL = (s_1 - 1) ln V; ln 2 unless the last step is single; (b - d) ln q.
VALID = [
    (distributions.Repeated(4, 5), [2, 3], (2 - 1) * math.log(4), 0.25),
    (distributions.Parity(6), [3, 3], math.log(2), 0.5),
    (distributions.Parity(6), [5, 1], 0.0, 1.0),
    (distributions.ReedSolomon(5, 4, 2), [3, 1], (3 - 2) * math.log(5), 0.2),
    (distributions.ReedSolomon(5, 5, 3), [2, 3], (5 - 3) * math.log(5), 0.04),
]


@pytest.mark.parametrize("bed, sizes, kl, share", VALID, ids=lambda value: type(value).__name__)
def test_the_share_of_valid_samples_is_exp_of_minus_the_kl(bed, sizes, kl, share):
    n = 100_000
    samples = draw(bed, n=n, sizes=sizes).tokens
    valid = (bed.log_prob(samples) > -np.inf).mean()
    assert math.isclose(math.exp(-kl), share, rel_tol=1e-9)
    error = math.sqrt(share * (1 - share) / n)
    assert abs(valid - share) <= 4 * error  # fails by chance once in 16,000
    if 0 < share < 1:
        assert abs(valid - share * 1.1) > 4 * error  # a tenth off would be seen


# ------------------------------------------------------------------------------------------- frozen positions, nfe


def test_frozen_positions_never_change_and_skip_the_steps_they_cover():
    bed = markov(6)
    canvas = np.full((64, 6), bed.mask_id, np.int32)
    canvas[:, :3] = [0, 1, 2]
    out = sampling.sample(bed.denoise, key=jax.random.key(1), mask_id=bed.mask_id, canvas=canvas, sizes=[2, 2, 1, 1])
    assert (out.tokens[:, :3] == [0, 1, 2]).all() and (out.tokens < bed.vocab_size).all()
    assert (out.nfe == 3).all()  # the step over slots 0-1 is skipped, the one over 2-3 has one token left to reveal
    assert (out.reveal_step[:, :3] == -1).all() and (out.reveal_step[:, 3:] >= 0).all()


def test_rows_with_different_numbers_of_frozen_positions_share_a_batch():
    bed = markov(6)
    canvas = np.full((3, 6), bed.mask_id, np.int32)
    canvas[1, :4], canvas[2] = 0, 1
    for selection in ("random", "confidence"):
        out = sampling.sample(
            bed.denoise, key=jax.random.key(1), mask_id=bed.mask_id, canvas=canvas, num_steps=3, selection=selection
        )
        assert out.nfe.tolist() == [3, 1, 0]
        assert (out.tokens < bed.vocab_size).all() and (out.tokens[2] == 1).all()


def test_conditioning_on_a_prompt_draws_the_conditional_law():
    bed = markov(4)
    canvas = np.full((100_000, 4), bed.mask_id, np.int32)
    canvas[:, 1] = 2
    out = sampling.sample(bed.denoise, key=jax.random.key(2), mask_id=bed.mask_id, canvas=canvas)
    sequences = all_sequences(bed)
    law = np.exp(bed.log_prob(sequences)) * (sequences[:, 1] == 2)
    assert p_value(out.tokens, sequences, law / law.sum(), bed.vocab_size) > LEVEL


def test_results_do_not_depend_on_the_batch_size_and_repeat_with_the_key():
    bed = markov(8)
    large = draw(bed, key=3, n=32, num_steps=4).tokens
    small = draw(bed, key=3, n=8, num_steps=4).tokens
    assert (large[:8] == small).all()
    assert (large != draw(bed, key=4, n=32, num_steps=4).tokens).any()


# ----------------------------------------------------------------------------------------- detectors of bad noise


def rare_count(gumbel, n=40_000, vocab=50_257, share=1e-3):
    """How often a tail of total probability 1e-3, spread over the vocabulary, is drawn; 40 +- 6.3 when exact."""
    logits = jnp.log(jnp.full(vocab, share / (vocab - 1)).at[0].set(1 - share))

    @jax.jit
    def count(key):
        keys = jax.random.split(key, n // 100)
        draws = jax.lax.map(lambda k: jnp.argmax(logits + gumbel(k, (100, vocab)), axis=-1), keys)
        return (draws != 0).sum()

    return int(count(jax.random.key(11)))


def low_range(key, shape):
    return jax.random.gumbel(key, shape, jnp.float32, mode="low")


@pytest.mark.slow
def test_rare_outcomes_are_drawn_as_often_as_they_should_be():
    from dlm_jax.sampling import token_choice

    assert abs(rare_count(token_choice.gumbel) - 40) <= 25  # 4 standard errors
    assert abs(rare_count(low_range) - 40) > 25  # low-range float32 noise all but loses them


def max_gumbel(gumbel, draws):
    keys = jax.random.split(jax.random.key(0), draws // 1_000_000)
    return float(jax.lax.map(lambda key: gumbel(key, (1_000_000,)).max(), keys).max())


@pytest.mark.slow
def test_the_largest_of_1e8_gumbels_exceeds_16():
    from dlm_jax.sampling import token_choice

    # P(max < 16) = exp(-1e8 e^-16) = 1e-5.
    assert max_gumbel(token_choice.gumbel, 100_000_000) > 16
    assert max_gumbel(low_range, 100_000_000) < 16


def test_noise_reaches_beyond_the_low_range_cap():
    """The short form of the two detectors above: the noise of 2e7 draws, at a key where the truth passes the cap."""
    from dlm_jax.sampling import token_choice

    assert max_gumbel(low_range, 20_000_000) <= 15.9425  # its hard cap: 23 bits
    # The law of the maximum of n Gumbels is Gumbel + log n: P(max < 15.0) = exp(-2e7 e^-15) = 2e-3 for exact noise.
    assert max_gumbel(token_choice.gumbel, 20_000_000) > 15.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_of_logits_gets_exact_noise(dtype):
    from dlm_jax.kernels.unmask import of_logits

    vocab, n = 1000, 100_000
    logits = jnp.zeros((n, vocab), dtype)
    keys = jax.random.split(jax.random.key(7), n)
    draws = np.asarray(jax.jit(of_logits)(keys=keys, logits=logits, temperature=1.0).tokens)
    assert stats.chisquare(np.bincount(draws, minlength=vocab)).pvalue > LEVEL


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_noise_drawn_in_16_bits_fails_the_uniform_test(dtype):
    draws = np.asarray(
        jax.jit(lambda key: jnp.argmax(jax.random.gumbel(key, (100_000, 1000), dtype), axis=-1))(jax.random.key(7))
    )
    assert stats.chisquare(np.bincount(draws, minlength=1000)).pvalue < LEVEL


# ------------------------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sizes": [2, 3]}, r"sizes=\[2, 3\]: sum 5 must be the length 4"),
        ({"sizes": [4, 0]}, r"at least 1 token, not 0"),
        ({"sizes": "4"}, r"sizes='4': must be a list"),
        ({"num_steps": 5}, r"num_steps=5: must be between 1 and the length 4"),
        ({"num_steps": 0}, r"num_steps=0: must be between 1"),
        ({"num_steps": 3, "sizes": [2, 2]}, r"num_steps=3: must be 2"),
        ({"selection": "best"}, r"selection='best': must be one of random, confidence"),
        ({"temperature": -1.0}, r"temperature=-1.0: must be at least 0"),
        ({"temperature": float("nan")}, r"temperature=nan"),
        ({"order": [0, 1, 2, 2]}, r"order: must hold every position"),
        ({"order": [0, 1]}, r"order: shape \[2\] must be \[4\]"),
        ({"order": [0, 1, 2, 3], "selection": "confidence"}, r"order: selection='confidence' chooses its own"),
    ],
)
def test_a_wrong_argument_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        draw(markov(), n=2, **options)
