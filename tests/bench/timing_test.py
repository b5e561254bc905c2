"""dlm bench counts right: medians, interleaving and shares from a made-up clock; required operations by hand."""

import json

import numpy as np
import pytest

from dlm_jax.bench import scaling, timing, works
from dlm_jax.cli import main


class Clock:
    """Time that passes only when work is done."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def work(self, name, seconds, **about):
        remaining = iter(seconds)

        def run():
            self.log.append(name)
            self.now += next(remaining)

        return timing.Work(name, run, **about)

    def __call__(self):
        return self.now


def test_guards_are_judged_by_the_training_that_they_guard():
    from dlm_jax.cli import bench

    rows = [{"name": "train/A", "seconds": 0.5}, {"name": "guards/A", "seconds": 4.9, "steps": 1000}]
    assert bench._judge_guards(rows) == [] and rows[1]["share_of_training"] == 4.9 / 500
    rows[1]["seconds"] = 5.1
    assert bench._judge_guards(rows) == [rows[1]]
    assert bench._judge_guards(rows[1:]) == []  # nothing to compare with


def test_runs_are_interleaved_the_first_is_kept_apart_and_medians_are_taken():
    clock = Clock()
    made = [clock.work("a", [50, 1, 2, 3, 4, 90]), clock.work("b", [7, 1, 1, 1, 1, 1])]
    found = timing.measure(made, repeats=5, quiet=True, clock=clock)
    assert clock.log == ["a", "b"] * 6
    assert found["a"] == {
        "seconds": 3,
        "spread": 1,
        "first_seconds": 50,
        "dispatch_seconds": None,
    }  # the middle half of 1 2 3 4 90 is 2 to 4
    assert found["b"] == {"seconds": 1, "spread": 0, "first_seconds": 7, "dispatch_seconds": None}


def test_shares_are_of_the_best_matrix_product():
    made = [
        timing.Work("ceiling/matmul 1", None, flops=100.0), timing.Work("ceiling/matmul 2", None, flops=400.0),
        timing.Work("ceiling/copy", None, notes={"bytes": 10}),
        timing.Work("train/A", None, tokens=8, flops=50.0, peak_memory_bytes=5), timing.Work("data/A", None, tokens=4),
    ]  # fmt: skip
    timings = {
        work.name: {"seconds": 2.0, "spread": 0.0, "first_seconds": 9.0, "dispatch_seconds": None} for work in made
    }
    ceiling, rows = timing.table(made, timings)
    assert ceiling["flops_per_second"] == 200 and ceiling["bytes_per_second"] == 5
    assert [row["name"] for row in rows] == ["train/A", "data/A"]
    assert rows[0]["share_of_ceiling"] == 25 / 200 and rows[0]["tokens_per_second"] == 4
    assert rows[1]["share_of_ceiling"] is None and rows[0]["peak_memory_bytes"] == 5


def test_required_operations_of_the_reference_shapes_by_hand():
    """A: B = 16, L = 256, 4 layers of width 256, MLP 704, V = 97; B: B = 4, V = 32768; sampling in 32 steps."""
    small, large = works.reference_shapes()
    d, f, length = 256, 704, 256
    assert small.config.model.hidden_dim == f
    body = 4 * (4 * d * d + 2 * length * d + 3 * d * f)  # multiply-adds a token
    for shape, batch in ((small, 16), (large, 4)):
        head = shape.vocab_size * d
        tokens = batch * length
        assert works.train_flops(shape) == 3 * 2 * (body * tokens + head * batch * (length + 1) / 2)
        assert works.sample_flops(shape) == 2 * (32 * body * tokens + head * tokens)


def test_bench_prints_what_scripts_rely_on_and_compares_with_the_last_entry(tmp_path, capsys):
    history = str(tmp_path / "history.jsonl")
    command = ["bench", "--only=data", "--repeats=1", f"--history={history}"]
    assert main.main([*command, "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert set(payload["ceiling"]) >= {"flops_per_second", "bytes_per_second", "device"}
    assert [row["name"] for row in payload["rows"]] == ["data/A", "data/B"]
    wanted = {"name", "seconds", "spread", "tokens_per_second", "share_of_ceiling", "peak_memory_bytes"}
    assert set(payload["rows"][0]) >= wanted and payload["rows"][0]["seconds"] > 0
    with open(history, "a") as file:
        file.write("{torn")
    assert main.main(command) == 0
    shown = capsys.readouterr()
    assert "x as fast" in shown.out and "line 2 is no entry of dlm bench" in shown.err
    kept = (tmp_path / "history.jsonl").read_text().splitlines()
    assert len(kept) == 3 and json.loads(kept[0])["rows"] and json.loads(kept[2])["rows"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--repeats=0", "--repeats=0: must be at least 1"),
        ("--num_steps=0", "--num_steps=0: must be at least 1"),
        ("--vocab_size=1", "--vocab_size=1: must be at least 2"),
        ("--only=trian", "--only=trian: must begin one of train/A"),
        ("--also=nowhere.py", "--also='nowhere.py': no such file"),
        (f"--also={__file__}", "must define works_beside()"),
        ("--config=nowhere", "--config='nowhere': no such file"),
    ],
)
def test_wrong_input_is_refused_in_one_line(flag, message, capsys):
    assert main.main(["bench", flag]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_the_ceiling_multiplies_random_matrices():
    made = timing.ceilings(np.float32)
    assert [work.name for work in made] == [*(f"ceiling/matmul {n}" for n in (1024, 2048, 4096)), "ceiling/copy"]
    assert made[0].flops == 2 * 1024**3


def test_exponents_are_slopes_of_logarithms():
    values = np.array([2.0, 4.0, 8.0, 16.0])
    assert abs(scaling.exponent(values, 3 * values**1.5) - 1.5) < 1e-12
    assert abs(scaling.exponent(values, 3 * values**1.5 + 1) - 1.5) > 0.01  # variation: something fixed beside


@pytest.mark.parametrize(("axis", "power"), [("batch_size", 1), ("num_layers", 1), ("length", 2)])
def test_the_axes_of_the_scaling_study_change_what_they_say(axis, power):
    small, large = (works.train_flops(scaling._with(scaling._base(), axis, value)) for value in (64, 128))
    assert 1.5 < large / small <= 2**power


def test_vs_needs_a_first_config_of_another_name(capsys):
    for arguments in (["--vs=demo"], ["--config=demo", "--vs=demo"]):
        assert main.main(["bench", *arguments]) == 2
        assert "--vs=demo" in capsys.readouterr().err
