"""Guidance pushes away from the second canvas, is nothing at 0, and never allows what the prompt rules out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax import sampling
from dlm_jax.information import distributions
from dlm_jax.sampling import canvas as canvases
from dlm_jax.sampling.guidance import GuidedDenoiser
from dlm_jax.sampling.plain import PlainDenoiser

L = 5
BED = distributions.stationary_markov_chain([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], L)
CANVAS = np.full((4000, L), 3, np.int32)
CANVAS[:, 0] = 2
ask = functools.partial(sampling.sample, BED.denoise, key=jax.random.key(0), mask_id=3, canvas=CANVAS)


def guided_logits(tokens, unconditional, scale):
    plain = PlainDenoiser(BED.denoise, 3)
    params = {"own": None, "unconditional": jnp.asarray(unconditional), "scale": jnp.float32(scale)}
    denoiser = GuidedDenoiser(plain)
    return np.asarray(denoiser.logits(params, denoiser.hidden(params, jnp.asarray(tokens))[0]))


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, -1.0])
def test_guided_logits_are_those_of_both_canvases_combined(scale):
    tokens = CANVAS[:1]
    without = np.where(tokens == 2, 3, tokens)
    found = guided_logits(tokens, canvases.unconditional(tokens, 3), scale)
    yes, no = (np.asarray(BED.denoise(one)) for one in (tokens, without))
    want = no[:, 1:] + (1 + scale) * (yes[:, 1:] - no[:, 1:])
    np.testing.assert_allclose(found[:, 1:], want, atol=1e-5)
    if scale:
        assert np.abs(found[:, 1:] - yes[:, 1:]).max() > 1e-2  # variation


def test_what_the_prompt_rules_out_stays_ruled_out():
    bed = distributions.Parity(3)
    tokens = np.asarray([[1, 0, 2]])  # the last bit must be 1
    plain = GuidedDenoiser(PlainDenoiser(bed.denoise, 2))
    for negative in ([[2, 2, -1]], [[1, 1, -1]]):  # nothing known; a prompt that wants 0
        params = {"own": None, "unconditional": jnp.asarray(negative), "scale": jnp.float32(3.0)}
        last = np.asarray(plain.logits(params, plain.hidden(params, jnp.asarray(tokens))[0]))[0, 2]
        assert last[0] == -np.inf and np.isfinite(last[1])


def test_guidance_makes_the_prompt_tell_more_and_a_negative_prompt_less_of_itself():
    """The token beside a rare 2 is 2 with probability 0.4; 4 standard errors are 0.031."""
    plain, strong = ask().tokens, ask(guidance=2.0).tokens
    assert abs((plain[:, 1] == 2).mean() - 0.4) < 0.031
    assert (strong[:, 1] == 2).mean() > 0.6
    away = ask(guidance=2.0, negative=[1]).tokens
    assert (away[:, 1] == 1).mean() < (plain[:, 1] == 1).mean() - 0.1
    assert (ask(guidance=1e-6).tokens != plain).mean() < 1e-3


def test_guidance_refuses_what_it_cannot_follow():
    empty = np.full((2, L), 3, np.int32)
    with pytest.raises(ValueError, match="guidance: needs a prompt or another frozen position"):
        sampling.sample(BED.denoise, key=jax.random.key(0), mask_id=3, canvas=empty, guidance=1.0)
    with pytest.raises(ValueError, match="negative: 2 tokens must be at most the prompt's 1"):
        ask(guidance=1.0, negative=[1, 1])
    with pytest.raises(ValueError, match="negative: needs guidance, which is 0"):
        ask(negative=[1])
