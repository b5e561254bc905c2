"""Figures about samples: counted by hand, judged exactly, and moving the right way when samples get worse."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlm_jax import config
from dlm_jax.data import tokenizers
from dlm_jax.evaluation import generation, reveal
from dlm_jax.models.denoiser import Denoiser


def test_entropy_distinct_ngrams_and_repetition_by_hand():
    found = generation.statistics_of([[1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5, 6, 7]])
    assert math.isclose(found["entropy_nats"], math.log(8) / 2)  # 0 and ln 8
    assert math.isclose(found["entropy_stderr"], math.log(8) / 2)  # half the difference of two
    assert math.isclose(found["distinct_1"], 8 / 16)
    assert math.isclose(found["distinct_2"], (1 + 7) / 14)
    assert math.isclose(found["distinct_3"], (1 + 6) / 12)
    assert math.isclose(found["repetition"], (4 / 5 + 0) / 2)  # of five 4-grams four were there before
    assert math.isnan(generation.statistics_of([[1, 2]])["entropy_stderr"])


def test_samples_that_say_less_have_less_entropy_and_more_repetition():
    noise = np.random.default_rng(0)
    rich, poor = noise.integers(0, 100, (20, 64)), noise.integers(0, 4, (20, 64))
    rich, poor = generation.statistics_of(rich), generation.statistics_of(poor)
    assert rich["entropy_nats"] > poor["entropy_nats"] + 1
    assert rich["distinct_2"] > 3 * poor["distinct_2"] and rich["repetition"] < 0.01 < poor["repetition"]


def make_judge(attention, length=12):
    """A tiny byte model of random weights, with what a Generator has."""
    model = config.ModelConfig(num_layers=1, embed_dim=8, num_heads=2, mlp_dim=8, attention=attention, dtype="float32")
    objective = "autoregressive" if attention == "causal" else "nelbo"
    run = config.RunConfig(
        model=model,
        diffusion=config.DiffusionConfig(objective=objective),
        data=config.DataConfig(length=length),
        eval=config.EvalConfig(t_steps=()),
    )
    tokenizer = tokenizers.ByteTokenizer()
    denoiser = Denoiser(model, tokenizer.vocab_size)
    params = jax.tree.map(lambda leaf: 3.0 * leaf, denoiser.init(jax.random.key(0)))
    return types.SimpleNamespace(
        config=run, tokenizer=tokenizer, denoiser=denoiser, params=params, length=length, workdir="judge",
        score=lambda texts, num_orders: np.asarray([10.0 * len(text) for text in texts]),
    )  # fmt: skip


def test_an_autoregressive_judge_reads_tokens_exactly_and_texts_where_the_tokenizer_is_another():
    judge = make_judge("causal")
    tokens = np.random.default_rng(0).integers(97, 123, (5, 12))
    found = generation.judged(judge, ["unused"] * 5, tokens, judge.tokenizer)
    losses = reveal.autoregressive_losses(judge.denoiser, judge.params, jnp.asarray(tokens, jnp.int32))
    assert math.isclose(found["nats_per_token"], float(losses.mean()), rel_tol=1e-5)
    assert found["num_tokens"] == 60 and math.isclose(found["perplexity"], math.exp(found["nats_per_token"]))
    per_row = np.asarray(losses).mean(axis=1)
    assert math.isclose(found["stderr"], per_row.std(ddof=1) / math.sqrt(5), rel_tol=1e-4)
    # Another tokenizer, or samples longer than the judge sees: the texts are scored, ends counted.
    for other in ({"tokenizer": None}, {"tokens": np.tile(tokens, (1, 2))}):
        asked = {"tokens": tokens, "tokenizer": judge.tokenizer} | other
        by_text = generation.judged(judge, ["abcd"] * 5, **asked)
        assert by_text["num_tokens"] == 25 and math.isclose(by_text["nats_per_token"], 40 * 5 / 25)


def test_a_diffusion_judge_gives_a_bound():
    judge = make_judge("bidirectional")
    tokens = np.random.default_rng(0).integers(97, 123, (5, 12))
    few, many = (
        generation.judged(judge, [""] * 5, tokens, judge.tokenizer, num_orders=n)["nats_per_token"] for n in (4, 64)
    )
    assert 2 < many < 40 and abs(few - many) < 3


def test_a_judge_prefers_what_it_would_say():
    """Texts of its most probable tokens are worth fewer nats than shuffled bytes."""
    judge = make_judge("causal")
    noise = np.random.default_rng(1).integers(0, 256, (8, 12)).astype(np.int32)
    likely = noise.copy()
    for place in range(12):
        shifted = np.concatenate([np.full((8, 1), judge.denoiser.mask_id), likely[:, :-1]], axis=1)
        hidden, _ = judge.denoiser.hidden(judge.params, jnp.asarray(shifted, jnp.int32))
        likely[:, place] = np.asarray(judge.denoiser.logits(judge.params, hidden))[:, place, :256].argmax(axis=-1)
    good, bad = (generation.judged(judge, [""] * 8, one, judge.tokenizer)["nats_per_token"] for one in (likely, noise))
    assert good < bad - 1


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(generation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"judge='hf:gpt2': needs the package torch; install dlm_jax\[hf\]"):
        generation.HuggingFaceJudge("gpt2")
    assert generation.mauve(make_judge("causal"), np.zeros((2, 12)), np.zeros((2, 12))) is None
