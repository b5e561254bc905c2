"""The convergence study checks what it says: laws of steps, chi-square, the mean over orders, slopes."""

import jax
import numpy as np
import pytest
from scipy import special

from dlm_jax.cli import options
from dlm_jax.information import distributions as beds
from dlm_jax.information import error, schedules
from dlm_jax.studies import convergence

CHAIN = beds.stationary_markov_chain([[0.9, 0.1], [0.2, 0.8]], 6)
ORDER = np.asarray([3, 0, 5, 1, 4, 2])


def test_the_law_of_one_token_a_step_is_that_of_the_data_and_others_are_not():
    outcomes = np.indices((2,) * 6).reshape(6, -1).T
    p = np.exp(CHAIN.log_prob(outcomes))
    np.testing.assert_allclose(convergence.step_law(CHAIN, ORDER, [1] * 6), p, atol=1e-12)
    law = convergence.step_law(CHAIN, ORDER, [3, 3])
    assert abs(law.sum() - 1) < 1e-12 and special.rel_entr(p, law).sum() > 0.1


@pytest.mark.parametrize("sizes", [(3, 3), (2, 2, 2), (1, 2, 3), (6,)], ids=str)
def test_the_mean_over_all_orders_is_the_formula(sizes):
    for bed in (CHAIN, beds.BalancedBits(6), beds.OneHot(6)):
        assert abs(convergence.mean_error_over_orders(bed, sizes) - error.expected_kl(bed.curve(), sizes)) < 1e-9
    # Variation: other sizes have another error.
    assert abs(convergence.mean_error_over_orders(CHAIN, sizes) - error.expected_kl(CHAIN.curve(), (5, 1))) > 1e-3


def test_the_sampler_passes_chi_square_against_its_own_law_and_fails_against_another(monkeypatch):
    monkeypatch.setattr(convergence, "_CHUNK", 20_000)
    sizes = schedules.uniform_sizes(6, 2)
    counts = convergence.sample_counts(CHAIN, CHAIN.denoise, jax.random.key(0), ORDER, sizes, 40_000)
    assert counts.sum() == 40_000
    assert convergence.chi_square(counts, convergence.step_law(CHAIN, ORDER, sizes)) > 1e-4
    assert convergence.chi_square(counts, convergence.step_law(CHAIN, ORDER[::-1], sizes)) < 1e-9
    outcomes = np.indices((2,) * 6).reshape(6, -1).T
    assert convergence.chi_square(counts, np.exp(beds.Parity(6).log_prob(outcomes))) == 0.0  # impossible outcomes


def test_the_slope_of_the_markov_chain_is_one_and_parity_has_none():
    config = options.load_study_config("convergence")
    steps = np.asarray(config.num_steps)
    large = convergence.large_beds(config.length)

    def slope(name):
        curve = large[name].curve()
        sizes = [schedules.uniform_sizes(config.length, int(t)) for t in steps]
        return convergence._slope(steps, config.length, np.asarray([error.expected_kl(curve, s) for s in sizes]))

    assert 0.97 <= slope("Markov chain M2") <= 1.03
    assert slope("parity") is None
    assert slope("permutation") < 0.9  # variation: 1/T does not describe it
