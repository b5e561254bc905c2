"""Trained on a Markov chain of known entropy, the bound comes within 2 % of the truth and never below it."""

import dataclasses

import jax
import numpy as np
import pytest

from dlm_jax import config as configs
from dlm_jax import rng
from dlm_jax.data import sources
from dlm_jax.evaluation import dependence, evaluators, likelihood
from dlm_jax.information import InformationCurve
from dlm_jax.training import loop


def markov_config(num_steps):
    return configs.from_dict({
        "data": {"source": "markov", "tokenizer": "letters", "length": 32, "num_documents": 20000},
        "model": {"num_layers": 2, "embed_dim": 64, "num_heads": 4},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 20},
        "train": {"num_steps": num_steps, "batch_size": 64, "ema_decay": 0.98},
        "checkpoint": {"every_steps": 10000},
        "mesh": {"fsdp": 1},
        "eval": {"num_orders": 8, "num_rows": 1000, "t_steps": []},
    })  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from dlm_jax.parallel import mesh as meshes

    config = markov_config(400)
    mesh = meshes.make_mesh((1, 1, 1), jax.devices()[:1])
    run = loop.prepare(config, tmp_path_factory.mktemp("markov"), say=lambda line: None, quiet=True, mesh=mesh)
    return config, run, loop.train(run)


def row_bound(config, run, params, num_rows=1000):
    rows = evaluators.spread_rows(run.corpus.validation, num_rows)
    losses = likelihood.bound(run.denoiser, params, evaluators.schedule_of(config), config.eval.num_orders)
    nats = likelihood.row_losses(losses, rows, batch_size=100, key=rng.stream(jax.random.key(1), "truth"), quiet=True)
    return nats, -sources.markov_chain(config.data).log_prob(np.asarray(rows.tokens, np.int64))


def test_the_bound_is_within_two_percent_of_the_truth_and_not_below_it(trained):
    config, run, state = trained
    nats, true_nats = row_bound(config, run, state.ema)
    difference = nats - true_nats  # paired: the same held-out rows
    stderr = difference.std(ddof=1) / np.sqrt(len(difference))
    excess = difference.mean() / true_nats.mean()
    print(f"bound {nats.mean():.4f}, truth {true_nats.mean():.4f} nats a row, excess {excess:.2%}, stderr {stderr:.4f}")
    assert excess <= 0.02
    assert difference.mean() >= -3 * stderr


def test_an_untrained_model_fails_the_same_check(trained):
    config, run, _ = trained
    nats, true_nats = row_bound(config, run, run.denoiser.init(jax.random.key(0)), num_rows=200)
    assert nats.mean() / true_nats.mean() - 1 > 0.02


def test_the_known_entropy_is_that_of_the_chain(trained):
    config, run, _ = trained
    chain = sources.markov_chain(dataclasses.replace(config.data, length=8))
    # THEORY table 5.1, M3: H = 6.266532 nats at L = 8.
    sample = np.asarray(chain.sample(jax.random.key(0), 200_000))
    nats = -chain.log_prob(sample)
    assert abs(nats.mean() - 6.266532) < 4 * nats.std() / np.sqrt(len(nats))
    assert len(run.corpus.validation) == 2000


def measured_curve(config, run, params):
    rows = run.corpus.validation
    counts = np.arange(config.data.length)
    costs, entropies = dependence.measure(
        run.denoiser, params, evaluators.schedule_of(config), rows, order="random", counts=counts, batch_size=200,
        key=rng.stream(jax.random.key(2), "curve"), quiet=True,
    )  # fmt: skip
    losses = costs.mean_losses
    return InformationCurve.measured(config.data.length, counts, losses, rows.document, predictive_entropies=entropies)


def test_the_curve_of_a_trained_model_is_within_five_percent_and_its_gap_is_small(trained):
    config, run, state = trained
    exact = sources.markov_chain(config.data).curve()
    curve = measured_curve(config, run, state.ema)
    for name, found in curve.summary().items():
        truth, _ = exact.quantity(name)
        print(f"{name}: measured {found['nats']:.4f} +- {found['stderr']:.4f}, truth {truth:.4f} nats a row")
        assert abs(found["nats"] / truth - 1) <= 0.05, name
    gap = curve.raw_entropy - exact.entropy  # of the model, and of these rows
    calibration = curve.raw_entropy - curve.predictive_entropy
    print(f"gap to the truth {gap.min():+.4f} .. {gap.max():+.4f}, to its own entropies {calibration.max():+.4f} nats")
    assert np.all(gap >= -4 * curve.stderr) and gap.mean() < 0.02
    # Variation: an untrained model knows nothing of the dependence.
    untrained = measured_curve(config, run, run.denoiser.init(jax.random.key(0)))
    assert abs(untrained.mutual_information / exact.mutual_information - 1) > 0.5
