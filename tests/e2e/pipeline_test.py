"""From a config to samples and numbers, through the verbs and through Python."""

import json
import math

import jax
import numpy as np
import pytest

import dlm_jax


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, run_dlm):
    folder = tmp_path_factory.mktemp("pipeline") / "w"
    code, _, log = run_dlm("train", "--config", "debug", "--workdir", folder, "--config.eval.every_steps=30")
    assert code == 0, log
    return folder


def test_training_lowers_the_loss_and_logs_one_object_a_line(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] > losses[-1] and math.log(257) * 1.2 > losses[0] > 3
    assert [line["step"] for line in lines if "validation_bits_per_byte" in line] == [30, 60]


def test_evaluate_writes_what_the_contract_says(workdir, run_dlm):
    code, out, log = run_dlm("evaluate", "--workdir", workdir, "--json")
    assert code == 0, log
    result = json.loads(out)
    assert {"nll_nats_per_token", "stderr", "bits_per_byte", "ar_bits_per_byte", "t_step"} <= result.keys()
    assert set(result["t_step"]) == {"4", "8"}
    assert result == json.loads((workdir / "evaluate.json").read_text())
    assert 0 < result["stderr"] < result["nll_nats_per_token"] < math.log(257)


def test_sample_writes_json_lines_and_prints_texts(workdir, run_dlm, tmp_path):
    path = tmp_path / "out.jsonl"
    code, out, log = run_dlm(
        "sample", "--workdir", workdir, "--num_steps=8", "--num_samples=3", "--prompt=The ", "--output", path
    )
    assert code == 0, log
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) == 3 and all(record["text"].startswith("The ") for record in records)
    assert all(record["nfe"] == 7 for record in records)  # 4 of 32 tokens frozen: the first of 8 steps is skipped
    assert records[0]["text"] in out


def test_python_and_command_line_agree(workdir, run_dlm):
    code, out, log = run_dlm("sample", "--workdir", workdir, "--num_steps=8", "--num_samples=2", "--seed=3", "--json")
    assert code == 0, log
    records = [json.loads(line) for line in out.splitlines()]
    samples = dlm_jax.load(workdir).sample(num_samples=2, num_steps=8, seed=3)
    assert [record["text"] for record in records] == samples.texts
    assert (samples.nfe == 8).all() and samples.tokens.shape == (2, 32)


def test_denoise_gives_normalised_log_probabilities(workdir):
    generator = dlm_jax.load(workdir)
    tokens = np.full((2, 32), generator.denoiser.mask_id)
    log_p = generator.denoise(tokens)
    assert log_p.shape == (2, 32, 257) and log_p.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, rtol=1e-5)


def test_score_bounds_agree_with_the_exact_sum_over_steps(workdir):
    generator = dlm_jax.load(workdir)
    texts = ["The value of the expression is returned.", "import"]
    exact = generator.score(texts, sizes=[1] * 32, num_orders=8, seed=1)
    bound = generator.score(texts, num_orders=400, seed=2)
    assert exact.dtype == np.float64 and exact.shape == (2,)
    np.testing.assert_allclose(bound, exact, rtol=0.08)  # both are averages over random orders of one quantity
    coarse = generator.score(texts, sizes=[16, 16], num_orders=8, seed=1)
    assert (coarse != exact).all()


def test_infill_keeps_what_is_given(workdir):
    generator = dlm_jax.load(workdir)
    out = generator.infill("Dear [MASK*6], thanks", seed=1)
    assert out.texts[0].startswith("Dear ") and out.texts[0].endswith(", thanks")
    assert out.nfe.tolist() == [6] and (out.reveal_step >= 0).sum() == 6


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda g: g.sample(sizes=[31]), r"sizes=\[31\]: sum 31 must be the length 32"),
        (lambda g: g.sample(num_steps=33), "num_steps=33: must be between 1 and the length 32"),
        (lambda g: g.sample(prompt="x" * 32), "prompt: 32 tokens must be fewer than the length 32"),
        (lambda g: g.sample(num_samples=0), "num_samples=0"),
        (lambda g: g.sample(seed=-1), "seed=-1"),
        (lambda g: g.infill("nothing to fill"), r"template: must hold \[MASK\]"),
        (lambda g: g.infill("[MASK*40]"), r"template: \[MASK\*40\] must be at most the length 32"),
        (lambda g: g.score("text"), "texts: must be a list"),
        (lambda g: g.denoise([[300]]), r"tokens: must be in \[0, 257\]"),
    ],
)
def test_a_wrong_argument_is_named(workdir, call, message):
    with pytest.raises(ValueError, match=message):
        call(dlm_jax.load(workdir))


def test_a_checkpoint_restores_onto_another_mesh(workdir):
    from dlm_jax import config as configs
    from dlm_jax.parallel import mesh as meshes
    from dlm_jax.training import checkpoint, loop
    from dlm_jax.training import state as states

    config = configs.load(workdir / "config.json")
    run = loop.prepare(config, workdir, say=lambda line: None, quiet=True, mesh=meshes.make_mesh((2, 2, 2)))
    saves = checkpoint.Checkpoints(workdir, 2)
    state, _ = saves.restore(states.with_shardings(run.abstract, run.shardings))
    saves.close()
    single = dlm_jax.load(workdir).params
    query = state.ema["blocks"]["attention"]["query"]
    assert len(query.sharding.device_set) == 8 and not query.is_fully_replicated
    np.testing.assert_array_equal(jax.device_get(query), np.asarray(single["blocks"]["attention"]["query"]))


def test_an_empty_or_damaged_step_is_not_the_latest(workdir, tmp_path, run_dlm, inspect):
    import shutil

    copy = tmp_path / "w"
    shutil.copytree(workdir, copy)
    (copy / "checkpoints" / "99").mkdir()
    newest = inspect(copy)["step"]
    assert newest == 60
    shutil.rmtree(copy / "checkpoints" / "60" / "params")
    assert inspect(copy)["step"] == 40
    code, _, log = run_dlm("train", "--config", "debug", "--workdir", copy, "--config.eval.every_steps=30")
    assert code == 0 and "moved to" in log
    assert inspect(copy)["params_sha256"] == inspect(workdir)["params_sha256"]
