"""Steps whose loss or gradient is not finite, or spikes, change nothing, and the policy on them is followed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax import config as configs
from dlm_jax.cli.main import main
from dlm_jax.diffusion import objectives
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.parallel import mesh as meshes
from dlm_jax.training import guard as guards
from dlm_jax.training import loop, optimizers, step
from dlm_jax.training import state as states

V, KEY = 7, jax.random.key(4)
DENOISER = Denoiser(configs.ModelConfig(num_layers=1, embed_dim=8, num_heads=2, mlp_dim=8, dtype="float32"), V)
TOKENS = {"tokens": jnp.arange(40).reshape(8, 5) % V}
OPTIMIZER = optimizers.make_optimizer(configs.OptimizerConfig(warmup_steps=0), 10, DENOISER.logical_axes)


def stepped(params, **fields):
    """(state before, state after, metrics) of one step from these parameters."""
    train = configs.TrainConfig(batch_size=8, **fields)
    objective = objectives.make_objective(configs.DiffusionConfig(), V)
    before = states.init_state(DENOISER, OPTIMIZER, KEY)
    before = dataclasses.replace(before, params=params(before.params))
    after, metrics = jax.jit(step.make_train_step(DENOISER, objective, OPTIMIZER, train, KEY))(before, TOKENS)
    return before, after, metrics


def is_same(old, new):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), old, new)))


def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing_but_the_count():
    def poisoned(params):
        leaves, tree = jax.tree.flatten(params)
        return jax.tree.unflatten(tree, [*leaves[:-1], leaves[-1].at[..., 0].set(jnp.nan)])

    before, after, metrics = stepped(poisoned)
    for name in ("params", "ema", "opt_state"):
        assert is_same(getattr(before, name), getattr(after, name)), name
    assert int(after.step) == 1 and int(after.guard.skipped) == int(after.guard.in_a_row) == 1
    assert int(after.guard.first_bad) == 0 and metrics["skipped_steps"][0] == 1
    # The variation: a good step changes all three.
    before, after, _ = stepped(lambda params: params)
    assert int(after.guard.skipped) == 0 and int(after.guard.first_bad) == -1
    assert not any(is_same(getattr(before, name), getattr(after, name)) for name in ("params", "ema", "opt_state"))


def judged(values, sigmas):
    guard, found = guards.fresh(), []
    judge = jax.jit(guards.judge, static_argnums=4)
    for index, value in enumerate(values):
        is_bad, guard = judge(guard, index, value, 1.0, sigmas)
        found.append(bool(is_bad))
    return found, guard


def test_spikes_are_told_from_noise():
    values = 3 + 0.1 * np.random.default_rng(0).standard_normal(400)
    values[[20, 200, 300]] = 3 + 2.0  # the first comes before the usual is known
    found, guard = judged(values, 8.0)
    assert np.flatnonzero(found).tolist() == [200, 300]
    assert int(guard.skipped) == 2 and int(guard.in_a_row) == 0 and int(guard.first_bad) == 200
    assert abs(float(guard.mean[0]) - 3) < 0.1 and abs(float(guard.variance[0]) ** 0.5 - 0.1) < 0.05
    assert not any(judged(values, 0.0)[0])  # off
    assert judged([1.0, np.inf, np.nan], 0.0)[0] == [False, True, True]


def test_the_guard_survives_json_exactly():
    _, guard = judged([1.1, 2.3, np.nan, 0.7], 0.0)
    again = guards.from_meta(json.loads(json.dumps(guards.to_meta(guard))))
    assert int(again.first_bad) == -1  # of an earlier process
    assert is_same(dataclasses.replace(guard, first_bad=0), dataclasses.replace(again, first_bad=0))
    assert is_same(guards.from_meta(None), guards.fresh())


BAD = 7  # index of the batch that breaks the loss


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Returns a function: fields of TrainConfig -> Run of ten steps, in which one batch makes the loss not finite."""

    def prepare(**fields):
        config = configs.from_dict({
            "data": {"source": "markov", "tokenizer": "letters", "length": 8, "num_documents": 200},
            "model": {"num_layers": 1, "embed_dim": 16, "num_heads": 2},
            "optimizer": {"warmup_steps": 0},
            "train": {"num_steps": 10, "batch_size": 4, **fields},
            "eval": {"t_steps": []}, "sample": {"num_steps": 8},
            "checkpoint": {"every_steps": 5}, "log": {"every_steps": 2},
        })  # fmt: skip
        make = objectives.make_objective
        mesh = meshes.make_mesh((1, 1, 1), jax.devices()[:1])
        plain = loop.prepare(config, tmp_path / "w", say=lambda line: None, quiet=True, mesh=mesh)
        poison = plain.batches(BAD)["tokens"]

        def breaking(*arguments):
            objective = make(*arguments)

            def ask(key, tokens, segment_ids):
                question = objective(key, tokens, segment_ids)
                factor = jnp.where(jnp.all(tokens == poison), jnp.inf, 1.0)
                return question._replace(weights=factor * question.weights)

            return ask

        monkeypatch.setattr(objectives, "make_objective", breaking)
        return loop.prepare(config, tmp_path / "w", say=lambda line: None, quiet=True, mesh=mesh)

    return prepare


def trained_on(run, indices):
    """Parameters after the steps with these batches."""
    state, step_fn = loop.initial_state(run), loop.compiled_step(run)
    for index in indices:
        state, _ = step_fn(state, loop.device_batch(run, index))
    return state


def lines(run):
    return [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]


def test_skip_goes_on_after_the_bad_batch(prepared, capsys):
    run = prepared(bad_steps="skip")
    state = loop.train(run)
    assert int(state.guard.skipped) == 1 and is_same(state.params, trained_on(run, range(10)).params)
    assert "they were skipped" in capsys.readouterr().err
    assert [line["skipped_steps"] for line in lines(run) if "loss" in line] == [0, 0, 0, 0, 1, 1]


def test_roll_back_goes_to_the_checkpoint_and_past_the_bad_batch(prepared, capsys):
    run = prepared(bad_steps="roll_back")
    state = loop.train(run)
    assert "rolling back" in capsys.readouterr().err and int(state.step) == 10
    want = trained_on(run, [0, 1, 2, 3, 4, 8, 9, 10, 11, 12])
    assert is_same(state.params, want.params) and is_same(state.opt_state, want.opt_state)
    assert not is_same(state.params, trained_on(run, range(10)).params)
    assert [line["attempt_from"] for line in lines(run) if "attempt_from" in line] == [0, 5]


def test_stop_ends_the_run_before_anything_is_saved_that_saw_the_batch(prepared):
    run = prepared(bad_steps="stop")
    with pytest.raises(loop.Diverged, match=r"train\.bad_steps='stop'"):
        loop.train(run)
    assert not (run.workdir / "checkpoints" / "10").exists() and (run.workdir / "checkpoints" / "5").exists()


def test_a_run_that_diverges_for_good_ends_with_code_87(tmp_path, capsys):
    code = main([
        "train", "--config=debug", f"--workdir={tmp_path / 'w'}", "--config.optimizer.learning_rate=1e38",
        "--config.optimizer.warmup_steps=0", "--config.train.num_steps=100", "--config.train.max_bad_steps=5",
        "--config.eval.every_steps=0", "--config.log.every_steps=5", "--config.optimizer.clip_norm=0",
    ])  # fmt: skip
    assert code == 87, capsys.readouterr().err
    assert "in a row; none of them was taken" in capsys.readouterr().err
