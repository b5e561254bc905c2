"""A supervised training whose processes are killed at random ends with the parameters of one that was left alone."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

STEPS, MANY_STEPS = 200, 2000


def config(num_steps):
    return (
        "train", "--config", "debug", f"--config.train.num_steps={num_steps}", "--config.checkpoint.every_steps=10",
        "--config.eval.every_steps=0",
    )  # fmt: skip


def sha(inspect, workdir, num_steps):
    found = inspect(workdir)
    assert found["step"] == num_steps
    return found["params_sha256"]


def launch_and_kill(environment, workdir, kills, seed, num_steps=STEPS, num_processes=1):
    """Supervises a training while its processes are killed at random moments; returns (exit code, kills, stderr)."""
    command = [
        sys.executable, "-m", "dlm_jax", "launch", "--target", "local", f"--num_processes={num_processes}",
        f"--max_restarts={kills + 5}", "--", *config(num_steps), f"--workdir={workdir}",
    ]  # fmt: skip
    chance, done = random.Random(seed), 0
    supervisor = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    log = []
    reader = threading.Thread(target=lambda: log.extend(supervisor.stderr), daemon=True)
    reader.start()
    while supervisor.poll() is None and done < kills:
        time.sleep(chance.uniform(0.5, 8.0))
        ranks = children_of(supervisor.pid)
        if ranks:
            os.kill(chance.choice(ranks), signal.SIGKILL)
            done += 1
    code = supervisor.wait(timeout=900)
    reader.join()
    return code, done, "".join(log)


def children_of(pid):
    found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def test_a_supervised_run_killed_once_ends_as_if_nothing_had_happened(tmp_path, environment, run_dlm, inspect):
    code, _, log = run_dlm(*config(STEPS), "--workdir", tmp_path / "left alone")
    assert code == 0, log
    code, kills, log = launch_and_kill(environment, tmp_path / "killed", 1, seed=0)
    assert code == 0 and kills > 0, log
    assert "killed by signal 9; starting again" in log
    assert sha(inspect, tmp_path / "killed", STEPS) == sha(inspect, tmp_path / "left alone", STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_twenty_kills_at_random_moments_end_bit_for_bit_as_if_nothing_had_happened(
    num_processes, tmp_path, environment, inspect
):
    steps = MANY_STEPS if num_processes == 1 else STEPS  # two processes start more slowly
    code, _, log = launch_and_kill(environment, tmp_path / "left alone", 0, 0, steps, num_processes)
    assert code == 0, log
    code, kills, log = launch_and_kill(environment, tmp_path / "killed", 20, 1, steps, num_processes)
    assert code == 0 and kills == 20, log
    assert sha(inspect, tmp_path / "killed", steps) == sha(inspect, tmp_path / "left alone", steps)
