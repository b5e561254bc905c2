"""Killed and restarted runs end with the parameters of the run that was left alone, bit for bit."""

import json
import pathlib
import random
import signal
import time

import pytest

CONFIG = ("--config", "debug", "--config.train.num_steps=40", "--config.checkpoint.every_steps=5")


def train(workdir, *more):
    return ("train", *CONFIG, "--workdir", workdir, *more)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, run_dlm, inspect):
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    code, _, log = run_dlm(*train(workdir))
    assert code == 0, log
    return workdir, inspect(workdir)


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def last_step(workdir):
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def restarted_until_done(dlm, run_dlm, workdir, kill_when):
    """Kills the run once for each condition, then lets it end."""
    for condition in kill_when:
        process = dlm(*train(workdir))
        wait_for(condition, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    code, _, log = run_dlm(*train(workdir))
    assert code == 0, log


@pytest.mark.slow  # supervisor_test kills at random moments by default
def test_a_kill_at_a_random_step_changes_nothing(tmp_path, dlm, run_dlm, inspect, uninterrupted):
    step = random.Random(4).choice([10, 20, 30])
    restarted_until_done(dlm, run_dlm, tmp_path / "w", [lambda: last_step(tmp_path / "w") >= step])
    assert inspect(tmp_path / "w")["params_sha256"] == uninterrupted[1]["params_sha256"]


@pytest.mark.slow  # as above
def test_a_kill_during_a_save_changes_nothing(tmp_path, dlm, run_dlm, inspect, uninterrupted):
    folder = tmp_path / "w" / "checkpoints"

    def is_saving():
        return any("tmp" in path.name for path in folder.glob("*"))

    restarted_until_done(dlm, run_dlm, tmp_path / "w", [is_saving])
    assert inspect(tmp_path / "w")["params_sha256"] == uninterrupted[1]["params_sha256"]


def test_sigterm_saves_exits_85_and_the_same_command_resumes(tmp_path, dlm, run_dlm, inspect, uninterrupted):
    process = dlm(*train(tmp_path / "w"))
    wait_for(lambda: last_step(tmp_path / "w") >= 10, process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 85, pathlib.Path(process.log).read_text()
    assert 10 < inspect(tmp_path / "w")["step"] < 40
    code, _, log = run_dlm(*train(tmp_path / "w"))
    assert code == 0, log
    assert inspect(tmp_path / "w")["params_sha256"] == uninterrupted[1]["params_sha256"]


def test_another_seed_ends_elsewhere_and_an_extended_run_goes_on(tmp_path, run_dlm, inspect, uninterrupted):
    code, _, log = run_dlm(*train(tmp_path / "other", "--config.seed=1"))
    assert code == 0, log
    assert inspect(tmp_path / "other")["params_sha256"] != uninterrupted[1]["params_sha256"]


@pytest.mark.slow
def test_ten_kills_at_random_times_change_nothing(tmp_path, dlm, run_dlm, inspect, uninterrupted):
    chance = random.Random(0)
    for _ in range(10):
        process = dlm(*train(tmp_path / "w"))
        time.sleep(chance.uniform(2, 15))
        process.send_signal(signal.SIGKILL)
        process.wait()
    code, _, log = run_dlm(*train(tmp_path / "w"))
    assert code == 0, log
    assert inspect(tmp_path / "w")["params_sha256"] == uninterrupted[1]["params_sha256"]
