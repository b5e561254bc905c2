"""Filters without a sort are those with one; filtered draws follow the filtered law; published draws lose the tail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dlm_jax.kernels.unmask import of_logits
from dlm_jax.sampling import token_choice

LOGITS = st.lists(st.floats(-8, 8), min_size=2, max_size=12, unique=True)


def sorted_filter(logits, temperature, top_k, top_p):
    """Which tokens stay, by sorting: temperature, then top-k, then the shortest prefix of at least top_p."""
    p = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-p)
    kept = np.zeros(len(p), bool)
    kept[order[: top_k or len(p)]] = True
    p = np.where(kept, p, 0.0)
    total = np.cumsum(p[order])
    need = int(np.argmax(total >= top_p * total[-1])) + 1
    stays = np.zeros(len(p), bool)
    stays[order[:need]] = True
    margin = np.abs(total[:-1] - top_p * total[-1]).min() if len(total) > 1 else 1.0
    return stays & kept, margin / total[-1]


@settings(max_examples=150, deadline=None)
@given(LOGITS, st.floats(0.2, 3.0), st.integers(0, 12), st.floats(0.05, 1.0))
def test_filters_keep_what_sorting_keeps(logits, temperature, top_k, top_p):
    logits = np.float32(logits)
    if np.diff(np.sort(logits)).min() < 1e-4:
        return  # ties stay together
    want, margin = sorted_filter(logits.astype(float), temperature, min(top_k, len(logits)), top_p)
    if margin < 1e-5:
        return
    found = token_choice.keep_likely(
        jnp.asarray(logits), jnp.float32(temperature),
        top_k=jnp.float32(min(top_k, len(logits))) if top_k else None, top_p=jnp.float32(top_p),
    )  # fmt: skip
    np.testing.assert_array_equal(np.isfinite(found), want)
    np.testing.assert_array_equal(np.asarray(found)[want], logits[want])


def test_filters_are_off_at_their_ends_and_keep_one_token_at_temperature_zero():
    logits = jnp.asarray([[0.0, 1.0, 2.0, -3.0]])
    keep = token_choice.keep_likely
    assert np.isfinite(keep(logits, jnp.float32(1), top_p=jnp.float32(1))).all()
    assert np.isfinite(keep(logits, jnp.float32(0), top_p=jnp.float32(0.9))).tolist() == [[False, False, True, False]]
    assert np.isfinite(keep(logits, jnp.float32(1), top_k=jnp.float32(1))).tolist() == [[False, False, True, False]]
    assert np.isfinite(keep(logits, jnp.float32(1), top_p=jnp.float32(1e-9))).sum() == 1
    # Equal tokens stay together, so a uniform law keeps all of them whatever top-k says.
    assert np.isfinite(keep(jnp.zeros((1, 5)), jnp.float32(1), top_k=jnp.float32(2))).all()


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.8}])
def test_a_filtered_draw_follows_the_filtered_law(filters):
    """Chi-square, p > 1e-4."""
    logits, temperature, n = np.array([2.0, 1.5, 1.0, 0.0, -1.0]), 0.8, 20_000
    stays, _ = sorted_filter(logits, temperature, filters.get("top_k", 0), filters.get("top_p", 1.0))
    p = np.where(stays, np.exp(logits / temperature), 0.0)
    p /= p.sum()
    kept = token_choice.keep_likely(
        jnp.asarray(logits, jnp.float32), jnp.float32(temperature),
        **{name: jnp.float32(value) for name, value in filters.items()},
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(0), n)
    draws = of_logits(jnp.broadcast_to(kept, (n, 5)), keys, temperature).tokens
    counts = np.bincount(draws, minlength=5)
    assert counts[~stays].sum() == 0
    assert stats.chisquare(counts[stays], n * p[stays]).pvalue > 1e-4
    unfiltered = np.exp(logits / temperature) / np.exp(logits / temperature).sum()  # variation
    assert stats.chisquare(counts, n * unfiltered).pvalue < 1e-4


@pytest.mark.parametrize("convention", ["md4", "mdlm"])
def test_published_draws_reveal_the_right_share_but_lose_rare_tokens(convention):
    """A tail of probability 0.1 over 49,000 tokens, revealed once in 1,024: float32 all but never draws it."""
    vocab, n, share = 49_001, 400, 1 / 1024
    logits = jnp.log(jnp.full(vocab, 0.1 / (vocab - 1)).at[0].set(0.9))
    keys = jax.random.split(jax.random.key(1), n)

    def draw(share):
        def one(key):
            return token_choice.published_mixture(key[None], logits[None], jnp.float32(1), share, convention)[0]

        return np.asarray(jax.lax.map(one, keys))

    # Where all are revealed the tail is nearly right: 40 of 400 expected, at most 4 standard errors (6) off.
    direct = draw(jnp.float32(1.0))
    assert abs((direct > 0).sum() - 40) < 24
    # The mask outcome takes its share: half of 400, 4 standard errors (10) off at most.
    assert abs((draw(jnp.float32(0.5)) == vocab).sum() - 200) < 40
    # Mixed with a mask outcome of 1023/1024, the tail vanishes: its best draw cannot beat the mask's.
    top = 15.95 if convention == "md4" else 16.64
    tail = float(np.log(share * 0.1 / (vocab - 1)) + top)
    assert (
        tail < np.log(1 - share) - 1.5
    )  # only a mask noise below -1.5 could lose to it: probability exp(-e^1.5) = 1 %


@pytest.mark.parametrize("convention", ["md4", "mdlm"])
def test_published_draws_at_temperature_zero_are_the_most_probable_token(convention):
    logits = jnp.asarray([[0.0, 3.0, 1.0], [2.0, -1.0, 0.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    found = token_choice.published_mixture(keys, logits, jnp.float32(0), jnp.float32(1), convention)
    assert found.tolist() == [1, 0]
