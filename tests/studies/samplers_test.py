"""dlm study samplers on a tiny model: every row has its figures, likelihoods where there are some, and a picture."""

import json

import pytest

import dlm_jax
from dlm_jax.cli.main import main
from dlm_jax.information.schedules import uniform_sizes
from dlm_jax.studies import samplers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("samplers") / "model")
    small = ("--config.train.num_steps=6", "--config.train.batch_size=16", "--config.checkpoint.every_steps=6")
    assert main(["train", "--config", "debug", "--workdir", workdir, *small]) == 0
    return workdir


def test_the_study_tables_and_draws_what_it_asked_for(model, tmp_path, monkeypatch, capsys):
    keep = ("random", "entropy")
    monkeypatch.setattr(samplers, "BY_STEPS", {name: samplers.BY_STEPS[name] for name in keep})
    monkeypatch.setattr(samplers, "BY_BUDGET", {"entropy sum": samplers.BY_BUDGET["entropy sum"][:1]})
    monkeypatch.setattr(samplers, "STEPS", (4, 8))
    command = ["study", "samplers", "--model", model, "--workdir", str(tmp_path), "--num_samples=4", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["sampler"] for row in found["rows"]] == [
        *(n for n in keep for _ in (4, 8)),
        "entropy sum",
        "one token a step",
    ]
    by_name = {(row["sampler"], row["request"].get("num_steps")): row for row in found["rows"]}
    assert by_name["random", 4]["nfe"] == 4 and by_name["one token a step", None]["nfe"] == 32
    for row in found["rows"]:
        assert (row["bits_per_token"] is not None) == (row["sampler"] in ("random", "one token a step"))
        assert row["judge_nats_per_token"] > 0 and row["entropy_nats"] > 0
    assert found["data"]["entropy_nats"] > 0 and "nfe" not in found["data"]
    lines = (tmp_path / "samplers.md").read_text().splitlines()
    assert len(lines) == 2 + len(found["rows"]) + 1 and lines[-1].startswith("| held-out text |")
    assert (tmp_path / "samplers.png").read_bytes().startswith(b"\x89PNG")
    # The likelihood is that of the T-step sampler, as `evaluate` gives it.
    generator = dlm_jax.load(model)
    rows = generator.rows(num_rows=64)
    direct = samplers._likelihood(generator, rows, {"num_steps": 4, "order": "random"}, 0)
    assert direct == by_name["random", 4]["bits_per_token"]
    assert uniform_sizes(32, 4).tolist() == [8] * 4 and direct != by_name["random", 8]["bits_per_token"]


def test_wrong_input_is_refused(model, tmp_path, capsys):
    for flags, message in (
        ((), "--model: must be given"),
        (("--model", model, "--num_samples=1"), "--num_samples=1: must be at least 2"),
        (("--model", model, "--judge", "nowhere"), "workdir='nowhere': no such folder"),
    ):
        assert main(["study", "samplers", "--workdir", str(tmp_path), *flags]) == 2
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1
