"""How many positions a step reveals: published quotas and grids as golden tables, rules against plain Python."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax import sampling
from dlm_jax.information import distributions
from dlm_jax.sampling import transitions

BED = distributions.stationary_markov_chain([[0.9, 0.1], [0.2, 0.8]], 16)


def candidates(confidence=None, entropy=None, count=None):
    """Candidates of one row, padded by two that do not exist."""
    values = confidence if confidence is not None else entropy
    count = len(values) if count is None else count
    pad = [0.0, 0.0]
    return transitions.Candidates(
        count=jnp.asarray([count]),
        filled=jnp.asarray([0]),
        at_start=jnp.asarray([count]),
        confidence=jnp.asarray([[*(confidence if confidence is not None else [0.5] * count), *pad]], jnp.float32),
        entropy=jnp.asarray([[*(entropy if entropy is not None else [1.0] * count), math.inf, math.inf]], jnp.float32),
    )


def count(transition, parameter, **values):
    return int(transitions.count_of(f"{transition}:{parameter}", None, candidates(**values), jnp.float32(parameter))[0])


# ---------------------------------------------------------------------------------------------------- golden tables

# LLaDA get_num_transfer_tokens: masks // steps, and one more on the first masks % steps of them.
LLADA = {
    (16, 4): [4, 4, 4, 4],
    (16, 5): [4, 3, 3, 3, 3],
    (16, 6): [3, 3, 3, 3, 2, 2],
    (16, 16): [1] * 16,
    (13, 5): [3, 3, 3, 2, 2],
    (5, 8): [1, 1, 1, 1, 1, 0, 0, 0],
    (1, 3): [1, 0, 0],
}
# Dream: t from 1 to 1e-3 evenly, int(masks (1 - s / t)), all that are left on the last step.
DREAM = {
    (16, 1): [16],
    (16, 4): [3, 4, 4, 5],
    (16, 8): [1, 2, 2, 2, 2, 2, 2, 3],
    (13, 5): [2, 2, 2, 3, 4],
    (5, 8): [0, 0, 0, 0, 1, 1, 1, 2],
}


def revealed_per_step(transition, masks, steps):
    canvas = np.zeros((3, 16), np.int32)
    canvas[:, 16 - masks :] = BED.mask_id
    out = sampling.sample(
        BED.denoise, key=jax.random.key(0), mask_id=BED.mask_id, canvas=canvas, transition=transition, num_steps=steps,
        selection="confidence",
    )  # fmt: skip
    counts = [[int((row == step).sum()) for step in range(steps)] for row in out.reveal_step]
    assert counts[0] == counts[1] == counts[2]
    assert out.nfe[0] == sum(number > 0 for number in counts[0])
    return counts[0]


@pytest.mark.parametrize(("masks", "steps"), LLADA)
def test_quotas_of_llada(masks, steps):
    found = revealed_per_step("quota_llada", masks, steps)
    assert found == LLADA[masks, steps]
    if masks % steps and masks > steps:  # variation: our own sizes spread the remainder
        assert found != np.diff([t * masks // steps for t in range(steps + 1)]).tolist()


@pytest.mark.parametrize(("masks", "steps"), DREAM)
def test_quotas_of_dream(masks, steps):
    left, want, times = masks, [], np.linspace(1, 1e-3, steps + 1)
    for step in range(steps):
        number = left if step == steps - 1 else int(left * (1 - times[step + 1] / times[step]))
        want.append(number)
        left -= number
    assert want == DREAM[masks, steps]
    assert revealed_per_step("quota_dream", masks, steps) == want
    assert steps == 1 or want != LLADA.get((masks, steps))  # variation


def test_grids_of_md4_and_mdlm():
    alpha_t, alpha_s, share = transitions.grid("ancestral_md4", 4)
    np.testing.assert_allclose(alpha_t, [1e-4, 0.25005, 0.5, 0.74995, 0.9999], rtol=1e-12)
    np.testing.assert_allclose(alpha_s, [0.25005, 0.5, 0.74995, 0.9999, 1.0], rtol=1e-12)
    np.testing.assert_allclose(share[:4], (alpha_s[:4] - alpha_t[:4]) / (1 - alpha_t[:4]), rtol=1e-12)
    cosine = transitions.grid("ancestral_md4_cosine", 2)[0]
    np.testing.assert_allclose(cosine[1], (1 - 2e-4) * (1 - math.cos(math.pi / 4)) + 1e-4, rtol=1e-12)
    share = transitions.grid("ancestral_mdlm", 4)[2]
    t = np.linspace(1, 1e-5, 5)
    np.testing.assert_allclose(share[:4], (t[:-1] - t[1:]) / t[:-1], rtol=1e-12)
    for name in ("ancestral_md4", "ancestral_md4_cosine", "ancestral_mdlm"):
        _, _, share = transitions.grid(name, 7)
        assert share[-1] == 1 and ((share > 0) & (share <= 1)).all()  # the last step fills what is left
        left = np.prod(1 - share[:-1])
        assert left < 2e-4 and left > 0  # and the grid alone would leave something
    alpha_t, alpha_s, _ = transitions.loop_grid(100)
    assert (alpha_t == 0.9).sum() == 50 and (np.diff(alpha_t) >= 0).all()  # from t = 0.55 to 0.05
    assert alpha_t[0] == 0 and alpha_s[-1] == 1


# ---------------------------------------------------------------------------------------------- rules of how many


CHANCES = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(CHANCES, st.floats(0.0, 1.0))
def test_threshold_takes_what_is_surer_and_at_least_one(chances, limit):
    ranked = np.sort(np.float32(chances))[::-1]
    want = max(1, int((ranked > np.float32(limit)).sum()))
    assert count("threshold", limit, confidence=ranked) == want


@settings(max_examples=60, deadline=None)
@given(CHANCES, st.floats(0.0, 4.0))
def test_factor_takes_the_largest_number_that_fits(chances, limit):
    ranked = np.sort(np.float32(chances))[::-1]
    fits = [n for n in range(1, len(ranked) + 1) if np.float32(n + 1) * (1 - ranked[n - 1]) < np.float32(limit)]
    assert count("factor", limit, confidence=ranked) == max(fits, default=1)


ENTROPIES = st.lists(st.floats(0.0, 2.0), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(ENTROPIES, st.floats(0.0, 4.0))
def test_entropy_bound_takes_the_longest_prefix_within_the_bound(entropies, limit):
    def bound(prefix):
        return math.fsum(prefix) - max(prefix)

    if any(abs(bound(entropies[:n]) - limit) < 1e-5 for n in range(1, len(entropies) + 1)):
        return  # a tie of rounding
    want = 1
    while want < len(entropies) and bound(entropies[: want + 1]) <= limit:
        want += 1
    assert count("entropy_bound", limit, entropy=entropies) == want


@settings(max_examples=60, deadline=None)
@given(ENTROPIES, st.floats(0.0, 4.0))
def test_entropy_sum_takes_the_longest_prefix_within_the_sum(entropies, limit):
    sums = np.cumsum(entropies)
    if np.abs(sums - limit).min() < 1e-5:
        return
    assert count("entropy_sum", limit, entropy=entropies) == max(1, int((sums <= limit).sum()))


def test_an_entropy_bound_of_zero_is_not_fooled_by_rounding():
    """1e-9 beside 1: their sum minus the largest is 0 in float32, but the smaller one is not."""
    assert count("entropy_bound", 0.0, entropy=[1e-9, 1.0]) == 1
    assert count("entropy_bound", 0.0, entropy=[0.0, 0.0, 1.0, 1.0]) == 3
    assert count("entropy_bound", 1e-8, entropy=[1e-9, 1.0]) == 2  # variation


def test_nothing_is_revealed_where_nothing_is_masked():
    for transition in ("threshold:0.5", "factor:1", "entropy_bound:1", "entropy_sum:1"):
        found = transitions.count_of(transition, None, candidates(confidence=[], count=0), jnp.float32(1))
        assert found.tolist() == [0]


@pytest.mark.parametrize("transition", ["ancestral_mdlm", "ancestral_md4"])
def test_each_ancestral_step_reveals_its_binomial_share(transition):
    """4 standard errors on the number revealed by each step: fails by chance once in 16,000 a step."""
    n, steps = 2000, 4
    out = sampling.sample(
        BED.denoise, key=jax.random.key(1), num_samples=n, length=16, mask_id=2, transition=transition, num_steps=steps
    )
    share = transitions.grid(transition, steps)[2]
    left, total = 1.0, n * 16
    for step in range(steps):
        expected = left * share[step]
        found = (out.reveal_step == step).sum() / total
        assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / total)
        assert abs(found - 1.1 * expected) > 4 * math.sqrt(expected * (1 - expected) / total)  # variation
        left -= expected


def test_first_hitting_takes_a_token_a_step_at_times_that_are_order_statistics():
    """The network is asked at the masked shares of a continuous process: the j-th largest of L uniforms has the mean
    (L + 1 - j) / (L + 1). 4 standard errors."""
    from dlm_jax.config import SampleConfig
    from dlm_jax.sampling import loop

    length, n = 6, 4000

    class Asked:
        mask_id, needs_time = 2, True

        def hidden(self, params, tokens, *, rows=None, time=None):
            return jnp.broadcast_to(time[:, None, None], (*rows.shape, 1)), None

        def logits(self, params, hidden):
            # Token 1 with a probability that is the time: its frequency by step tells the mean time.
            return jnp.concatenate([jnp.log1p(-hidden), jnp.log(hidden)], axis=-1)

    canvas = np.full((n, length), 2, np.int32)
    for transition, is_right in (("first_hitting", True), ("exact_count", False)):
        choices = SampleConfig(transition=transition)
        out = loop.run(Asked(), None, jax.random.key(3), canvas, choices, time_at=lambda share: share)
        assert (out.nfe == length).all()
        by_step = [out.tokens[out.reveal_step == step].mean() for step in range(length)]
        expected = (length - np.arange(length)) / (length + 1)
        fits = np.abs(by_step - expected) < 4 * np.sqrt(expected * (1 - expected) / n)
        assert fits.all() == is_right
