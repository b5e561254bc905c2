"""The truth of the cleaning study: planted variants change the curve by exactly what their latent choice tells."""

import numpy as np

from dlm_jax.information import distributions as beds
from dlm_jax.studies import cleaning


def test_the_planted_drop_is_the_mutual_information_of_the_case_alone():
    before, after = cleaning.truth(31)
    case = beds.Exchangeable([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], 31).curve()
    drop = before.mutual_information - after.mutual_information
    assert abs(drop - case.mutual_information) < 1e-9
    assert abs(drop - after.mutual_information) > 0.1  # variation: it is not the dependence of the letters
    assert before.length == 32


def test_a_token_that_is_always_the_same_adds_nothing_but_a_place():
    entropy = beds.stationary_markov_chain([[0.9, 0.1], [0.2, 0.8]], 7).curve()
    longer = cleaning._with_end(entropy.entropy)
    for name in ("total_correlation", "dual_total_correlation", "mutual_information"):
        assert abs(getattr(longer, name) - getattr(entropy, name)) < 1e-9
    assert abs(longer.entropy.sum() - entropy.entropy.sum()) < 1e-12
    assert np.all(np.diff(longer.entropy) <= 1e-12)
