"""What is timed, how often, and what becomes of it; never how long it takes on this machine."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax.evaluation import latency
from dlm_jax.information.plan import Latency
from dlm_jax.sampling.plain import PlainDenoiser

LENGTH, BATCH, VOCAB = 5, 3, 4


def denoise(tokens):
    """Answers at any length, as a network does."""
    return jax.nn.log_softmax(jnp.sin(tokens[..., None] + jnp.arange(VOCAB)), axis=-1)


DENOISER = PlainDenoiser(denoise, VOCAB)


@functools.cache
def timed():
    """Of the real sampler, two tokens long: a program for each size of step."""
    return latency.measure(DENOISER, None, 2, BATCH, repeats=2, quiet=True)


def test_a_measurement_has_sizes_from_one_token_to_all_and_seconds_that_never_fall():
    found = timed()
    assert found.step_sizes.tolist() == [1, 2]
    assert found.seconds.shape == found.spread.shape == found.step_sizes.shape
    assert np.isfinite(found.seconds).all()
    assert (found.seconds > 0).all()
    assert (found.spread >= 0).all()
    assert (np.diff(found.seconds) >= 0).all()
    assert (found.batch_size, found.device) == (BATCH, jax.devices()[0].device_kind)
    assert set(found.autoregressive) == {"uncached", "cached_floor"}
    assert min(found.autoregressive.values()) > 0
    # Plain values for plan.json.
    plain = found.to_dict()
    assert plain["seconds"] == found.seconds.tolist()
    assert isinstance(plain["step_sizes"], list)
    assert not isinstance(found.seconds, list)  # variation


def test_seconds_of_a_schedule_are_the_sum_of_its_steps():
    found = timed()
    np.testing.assert_allclose(found.of([1, 1, 2]) + found.of([2, 1]), found.of([1, 1, 2, 2, 1]), rtol=1e-12)
    np.testing.assert_allclose(found.of([1, 2]), found.seconds.sum(), rtol=1e-12)
    np.testing.assert_allclose(found.of([1] * 5), 5 * found.seconds[0], rtol=1e-12)
    assert isinstance(found.of([2]), float)
    assert found.of([1] * 5) > found.of([1] * 4)  # variation: a step more takes longer
    # Between the measured sizes it is interpolated, and beyond them it stays.
    fixed = Latency("chip", 1, np.asarray([1, 4]), np.asarray([1.0, 7.0]), np.zeros(2))
    assert fixed.of([1, 2, 4, 9]) == 1.0 + 3.0 + 7.0 + 7.0
    assert fixed.of([1, 2, 4, 9]) != fixed.of([16])  # variation


@pytest.fixture
def clock(monkeypatch):
    """A clock that the sampler moves: `calls` is what it was asked, `cost` what a step of a size takes."""
    state = types.SimpleNamespace(now=0.0, calls=[], cost=lambda size: float(size), to_compile=4)

    def run(denoiser, params, key, canvas, choices, *, sizes, time_at):
        steps = [s for s, stop in zip(sizes, np.cumsum(sizes), strict=True) if stop > (canvas != VOCAB)[0].sum()]
        state.calls.append((canvas.copy(), list(sizes), steps))
        state.now += 1000.0 if len(state.calls) <= state.to_compile else sum(state.cost(size) for size in steps)

    monkeypatch.setattr(latency, "time", types.SimpleNamespace(perf_counter=lambda: state.now))
    monkeypatch.setattr(latency, "loop", types.SimpleNamespace(run=run))
    return state


def measure(repeats=3):
    return latency.measure(DENOISER, None, LENGTH, BATCH, repeats=repeats, quiet=True)


def test_every_call_runs_equal_steps_and_is_divided_by_their_number(clock):
    found = measure()
    np.testing.assert_allclose(found.seconds, [1.0, 2.0, 3.0, 5.0])
    np.testing.assert_allclose(found.spread, 0.0)
    assert found.autoregressive["uncached"] == 1.0
    assert len(clock.calls) == 4 * (3 + 1)
    for canvas, sizes, steps in clock.calls:
        assert canvas.shape == (BATCH, LENGTH)
        assert sum(sizes) == LENGTH
        assert len(set(steps)) == 1
        assert (canvas == VOCAB).sum(axis=1).tolist() == [sum(steps)] * BATCH
    assert [steps for _, _, steps in clock.calls[:4]] == [[1] * 5, [2] * 2, [3], [5]]
    # Variation: a step that costs twice as much is measured to.
    clock.cost = lambda size: 2.0 * size
    np.testing.assert_allclose(measure().seconds, [2.0, 4.0, 6.0, 10.0])


def test_the_first_round_which_compiles_is_not_counted(clock):
    assert measure(1).seconds.max() == 5.0  # though every first call took 1000
    clock.calls.clear()
    clock.cost = lambda size: 1000.0
    assert measure(1).seconds.max() == 1000.0  # variation: a slow second round is


def test_a_wider_step_that_looks_faster_is_noise(clock):
    clock.cost = lambda size: {1: 2.0, 2: 1.0, 3: 4.0, 5: 3.0}[size]
    found = measure()
    assert found.seconds.tolist() == [2.0, 2.0, 4.0, 4.0]
    assert found.autoregressive["uncached"] == 2.0
    clock.cost = lambda size: {1: 2.0, 2: 2.5, 3: 4.0, 5: 4.5}[size]
    assert measure().seconds.tolist() == [2.0, 2.5, 4.0, 4.5]  # variation: what rises is left alone


def test_the_median_and_half_the_middle_range_of_the_repeats_are_kept(clock):
    times = iter([0.0, 1.0, 2.0, 3.0, 100.0])  # one outlier

    def cost(size):
        return next(times) / 1.0 if size == LENGTH else 0.0

    clock.cost = cost
    found = measure(5)
    assert found.seconds.tolist() == [0.0, 0.0, 0.0, 2.0]
    assert found.spread.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert found.seconds[3] != np.mean([0.0, 1.0, 2.0, 3.0, 100.0])  # variation


def test_a_single_token_can_be_timed_too(clock):
    clock.cost, clock.to_compile = lambda size: 7.0, 1
    found = latency.measure(DENOISER, None, 1, BATCH, repeats=5, quiet=True)
    assert (found.step_sizes.tolist(), found.seconds.tolist()) == ([1], [7.0])
    assert measure().step_sizes.tolist() != [1]  # variation
