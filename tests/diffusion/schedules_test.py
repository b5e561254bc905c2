"""Noise schedules: alpha, its weight and its inverse fit together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.diffusion.schedules import SCHEDULES, make_schedule

NAMES = sorted(SCHEDULES)
TIMES = jnp.linspace(0.02, 0.98, 25)


@pytest.mark.parametrize("name", NAMES)
def test_alpha_starts_at_one_and_decreases_to_nearly_zero(name):
    schedule = make_schedule(name)
    alpha = schedule.alpha(jnp.linspace(0.0, 1.0, 101))
    assert alpha[0] == 1
    assert (jnp.diff(alpha) < 0).all()
    np.testing.assert_allclose(alpha[-1], 1e-3 if name == "log_linear" else 0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_weight_is_minus_alpha_prime_over_masked_share(name):
    schedule = make_schedule(name)
    want = -jax.vmap(jax.grad(schedule.alpha))(TIMES) / (1 - schedule.alpha(TIMES))
    np.testing.assert_allclose(schedule.weight(TIMES), want, rtol=1e-4)
    # Variation: another schedule's weight is not this one's; linear and log-linear share 1 / t.
    other = make_schedule("polynomial" if name != "polynomial" else "linear")
    assert np.abs(other.weight(TIMES) / want - 1).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_time_at_inverts_the_masked_share(name):
    schedule = make_schedule(name)
    np.testing.assert_allclose(schedule.time_at(1 - schedule.alpha(TIMES)), TIMES, rtol=1e-4)
    np.testing.assert_allclose([schedule.time_at(0.0), schedule.time_at(1.0)], [0, 1], atol=1e-6)


def test_power_and_epsilon_reach_their_schedules():
    np.testing.assert_allclose(make_schedule("polynomial", power=3.0).alpha(0.5), 1 - 0.125, rtol=1e-6)
    np.testing.assert_allclose(make_schedule("log_linear", epsilon=0.1).alpha(1.0), 0.1, rtol=1e-6)
    np.testing.assert_allclose(make_schedule("cosine").alpha(0.5), 1 - np.cos(np.pi / 4), rtol=1e-6)
    with pytest.raises(KeyError):
        make_schedule("quadratic")
