"""What may be taken back: the clock holds, a corrector leaves the truth as it is and mends what parallel steps broke.

Chi-square tests: p > 1e-4; means within 4 standard errors (fail by chance once in 16,000); keys are fixed.
"""

import functools
import math

import jax
import numpy as np
import pytest
from scipy import stats

from dlm_jax import sampling
from dlm_jax.information import distributions
from dlm_jax.sampling import remasking, transitions

L = 6
BED = distributions.stationary_markov_chain([[0.9, 0.1], [0.2, 0.8]], L)
SEQUENCES = np.indices((2,) * L).reshape(L, -1).T.astype(np.int32)
LAW = np.exp(BED.log_prob(SEQUENCES))


@functools.cache
def draw(n=60_000, key=0, **choices):
    return sampling.sample(BED.denoise, key=jax.random.key(key), num_samples=n, length=L, mask_id=2, **choices)


def frequencies(out):
    return np.bincount(out.tokens @ 2 ** np.arange(L)[::-1], minlength=2**L)


def p_value(out):
    return stats.chisquare(frequencies(out), LAW * len(out.tokens)).pvalue


def kl(out):
    """KL(p || frequencies) in nats; 0.0005 is what its noise and bias amount to here."""
    return float(np.sum(LAW * np.log(LAW / (frequencies(out) / len(out.tokens)))))


def test_a_corrector_of_one_token_leaves_the_true_distribution_as_it_is():
    out = draw(remasking="corrector:1")
    assert p_value(out) > 1e-4
    assert (out.nfe == 2 * L).all()
    assert p_value(draw(remasking="corrector:3")) < 1e-4  # variation: several at once forget one another


def test_a_corrector_mends_what_parallel_steps_break():
    broken, mended, more = (kl(draw(num_steps=3, remasking=way)) for way in ("none", "corrector:1", "corrector:2"))
    assert broken > 0.05
    assert mended < 0.7 * broken
    assert abs(more - broken) > 0.005  # another noise budget is another sampler


@pytest.mark.parametrize("way", ["remdm_cap:0.1", "remdm_rescale:0.2", "remdm_loop:0.05", "forward_backward"])
def test_the_share_of_revealed_tokens_follows_the_clock_whatever_is_taken_back(way):
    """Revealed with probability p and masked again with sigma: the share of kept tokens is alpha at every step."""
    num_steps = 16
    make = transitions.loop_grid if way.startswith("remdm_loop") else None
    alpha_t, alpha_s, _ = make(num_steps) if make else transitions.grid("ancestral_mdlm", num_steps)
    name, _, eta = way.partition(":")
    kept = 0.0
    for before, after in zip(alpha_t[:-1], alpha_s[:-1], strict=True):
        most = float(remasking.largest_sigma(before, after))
        sigma = float(remasking.SIGMAS[name](before, after, float(eta or 0), most))
        assert -1e-6 <= sigma <= most + 1e-6
        kept = kept * (1 - sigma) + (1 - kept) * float(remasking.share_of(sigma, before, after))
        assert abs(kept - after) < 1e-5
    assert kept > 0.99


@pytest.mark.parametrize("way", ["remdm_cap:0.1", "remdm_rescale:0.2", "remdm_confidence:1", "remdm_loop:0.05"])
def test_remasking_ends_filled_keeps_what_is_frozen_and_redraws_with_fresh_noise(way):
    canvas = np.full((2000, L), 2, np.int32)
    canvas[:, 1] = 1
    ask = functools.partial(
        sampling.sample, BED.denoise, key=jax.random.key(2), mask_id=2, canvas=canvas, transition="ancestral_mdlm",
        num_steps=16,
    )  # fmt: skip
    out, plain = ask(remasking=way), ask()
    assert (out.tokens[:, 1] == 1).all() and (out.tokens < 2).all() and (out.reveal_step[:, 1] == -1).all()
    assert out.nfe.mean() > plain.nfe.mean() + 0.5  # it takes more calls, as tokens come back
    # More chances to agree with its neighbours: tokens next to the frozen 1 follow it more often than by chance.
    assert abs(out.tokens[:, 0].mean() - plain.tokens[:, 0].mean()) < 0.1


def test_remasking_makes_more_samples_valid_where_a_wrong_token_is_seen_to_be_wrong():
    """Pairs of blocks of equal bits: a block of unequal ones cannot be, and another draw may mend it."""
    bed = distributions.Blocks(distributions.Repeated(2, 4), 2)

    def valid(**choices):
        out = sampling.sample(
            bed.denoise, key=jax.random.key(0), num_samples=20_000, length=8, mask_id=2, transition="ancestral_mdlm",
            num_steps=16, **choices,
        )  # fmt: skip
        return (bed.log_prob(out.tokens) > -np.inf).mean()

    plain, remasked = valid(), valid(remasking="remdm_cap:0.1")
    assert remasked > plain + 0.01  # 4 standard errors of the difference are 0.013 at most


def test_confidence_takes_back_the_least_sure_first():
    """On an even chance the surer token is taken back less often: softmax of minus its probability."""
    sigma = remasking.sigma_of(
        "remdm_confidence:1", np.float32(0.5), np.float32(0.6), np.float32(1.0), np.asarray([[True, True, False]]),
        np.asarray([[0.9, 0.1, 0.0]], np.float32),
    )  # fmt: skip
    most = float(remasking.largest_sigma(0.5, 0.6))
    want = np.exp([-0.9, -0.1]) / np.exp([-0.9, -0.1]).sum() * most
    np.testing.assert_allclose(np.asarray(sigma)[0], [*want, 0.0], rtol=1e-5)
    assert want[0] < want[1]
    assert math.isclose(most, 0.8, rel_tol=1e-6)
