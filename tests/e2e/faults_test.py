"""What goes wrong with processes, disks and data ends as promised, and the same command goes on without a trace."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from dlm_jax.launch import local

from dlm_jax.training import checkpoint

STEPS = 60
CONFIG = (
    "train", "--config", "debug", f"--config.train.num_steps={STEPS}", "--config.checkpoint.every_steps=10",
    "--config.eval.every_steps=0", "--config.log.every_steps=1", "--config.optimizer.warmup_steps=1",
)  # fmt: skip


class Ranks:
    """Processes of one run, joined as hosts would be."""

    def __init__(self, environment, num_processes, *arguments, last=()):
        self.processes, self.logs, self.readers = [], [], []
        planned = local.plan([*CONFIG, *arguments], num_processes, local.free_port())
        for rank, (argv, joined) in enumerate(planned):
            own = last if rank == num_processes - 1 else ()
            process = subprocess.Popen([*argv, *own], env={**environment, **joined}, stderr=subprocess.PIPE, text=True)
            self.processes.append(process)
            self.logs.append([])
            self.readers.append(
                threading.Thread(target=lambda p=process, log=self.logs[-1]: log.extend(p.stderr), daemon=True)
            )
            self.readers[-1].start()

    def end(self, seconds=120):
        """Exit codes of all; whoever still runs after so long is killed."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            if process.poll() is None:
                process.kill()
        codes = [process.wait() for process in self.processes]
        for reader in self.readers:
            reader.join()
        return codes

    def text(self):
        return "\n".join("".join(log) for log in self.logs)


def last_step(workdir):
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def wait_for_step(workdir, step, ranks, seconds=120):
    end = time.monotonic() + seconds
    while last_step(workdir) < step:
        assert time.monotonic() < end and all(process.poll() is None for process in ranks.processes), ranks.text()
        time.sleep(0.01)


def params(workdir):
    step, tree, _ = checkpoint.load_item(workdir, "params")
    assert step == STEPS
    return tree


def sha(workdir):
    return checkpoint.params_sha256(params(workdir))


def largest_difference(one, other):
    differences = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), params(one), params(other))
    return max(jax.tree.leaves(differences))


def run(environment, workdir, num_processes, *more):
    ranks = Ranks(environment, num_processes, f"--workdir={workdir}", *more)
    return ranks.end(), ranks


def finish(environment, workdir, num_processes, *more):
    codes, ranks = run(environment, workdir, num_processes, *more)
    assert codes == [0] * num_processes, ranks.text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, environment):
    """Workdir of a run of one process that was left alone."""
    workdir = tmp_path_factory.mktemp("alone") / "w"
    finish(environment, workdir, 1)
    return workdir


@pytest.fixture(scope="module")
def pair(tmp_path_factory, environment):
    """Workdir of a run of two processes that was left alone."""
    workdir = tmp_path_factory.mktemp("pair") / "w"
    finish(environment, workdir, 2)
    return workdir


def test_sigterm_to_one_of_two_saves_the_same_step_on_both(tmp_path, environment, pair):
    ranks = Ranks(environment, 2, f"--workdir={tmp_path}")
    wait_for_step(tmp_path, 15, ranks)
    ranks.processes[1].send_signal(signal.SIGTERM)
    assert ranks.end() == [85, 85], ranks.text()
    stops = [line for line in ranks.text().splitlines() if "and saved" in line]
    assert len(stops) == 2 and stops[0] == stops[1], ranks.text()
    assert 15 < checkpoint.steps(tmp_path)[-1] < STEPS
    finish(environment, tmp_path, 2)
    assert sha(tmp_path) == sha(pair)


def test_a_process_that_runs_something_else_is_named_and_nobody_waits_for_it(tmp_path, environment):
    started = time.monotonic()
    ranks = Ranks(environment, 2, f"--workdir={tmp_path / 'w'}", last=["--config.seed=1"])
    codes = ranks.end()
    assert 2 in codes and 0 not in codes, ranks.text()
    assert "process 1: has another configuration than process 0" in ranks.text()
    assert time.monotonic() - started < 60
    assert not checkpoint.steps(tmp_path / "w")


def supervised(environment, workdir, strike, *more):
    """Supervises two processes and strikes one when step 25 is done; returns what the supervisor wrote."""
    command = [sys.executable, "-m", "dlm_jax", "launch", "--target=local", "--num_processes=2", "--"]
    supervisor = subprocess.Popen(
        [*command, *CONFIG, f"--workdir={workdir}", *more], env=environment, stderr=subprocess.PIPE, text=True
    )
    log = []
    reader = threading.Thread(target=lambda: log.extend(supervisor.stderr), daemon=True)
    reader.start()
    try:
        end = time.monotonic() + 120
        while last_step(workdir) < 25:
            assert time.monotonic() < end and supervisor.poll() is None, "".join(log)
            time.sleep(0.01)
        children = pathlib.Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
        strike([int(child) for child in children])
        assert supervisor.wait(180) == 0, "".join(log)
    finally:
        supervisor.terminate()
        supervisor.wait()
    reader.join()
    return "".join(log)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_frozen_process_is_found_and_the_run_started_again(rank, tmp_path, environment, pair):
    def freeze(children):
        os.kill(children[rank], signal.SIGSTOP)

    log = supervised(environment, tmp_path, freeze, "--config.train.hang_seconds=10")
    assert "no step ended for" in log and "starting again" in log, log
    assert sha(tmp_path) == sha(pair)


@pytest.mark.slow  # supervisor_test kills a process by default
def test_a_killed_coordinator_takes_nothing_with_it(tmp_path, environment, pair):
    log = supervised(environment, tmp_path, lambda children: os.kill(children[0], signal.SIGKILL))
    assert "starting again" in log
    assert sha(tmp_path) == sha(pair)
    # No more than the steps since the last save were done again.
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["attempt_from"] for line in found if "attempt_from" in line][1] >= 20 - 10


def test_one_two_and_four_processes_and_any_mesh_continue_each_other(tmp_path, environment, alone):
    plan = [(1, 15, ()), (2, 30, ("--config.mesh.tensor=2",)), (4, 45, ("--config.mesh.replica=2",))]
    for num_processes, until, mesh in plan:
        ranks = Ranks(environment, num_processes, f"--workdir={tmp_path}", *mesh)
        wait_for_step(tmp_path, until, ranks)
        ranks.processes[0].send_signal(signal.SIGTERM)
        assert ranks.end() == [85] * num_processes, ranks.text()
    finish(environment, tmp_path, 2)
    # The same batches and the same noise; sums are added up in another order.
    assert largest_difference(tmp_path, alone) < 1e-3
    assert sha(tmp_path) != sha(alone)


def test_another_seed_is_farther_away_than_another_mesh(tmp_path, environment, alone):
    finish(environment, tmp_path, 1, "--config.seed=1")
    assert largest_difference(tmp_path, alone) > 1e-2


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"reported: a file system cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def is_one_line_of_exit_code_2(codes, ranks, *words):
    lines = [line for line in ranks.text().splitlines() if line.startswith("dlm: ")]
    is_told = len(lines) == 1 and any(word in lines[0] for word in words)
    return codes == [2] and is_told and "Traceback" not in ranks.text()


def test_a_disk_that_fills_costs_no_save_that_was_there(tmp_path, environment, alone):
    with small_disk(tmp_path / "disk", "64m") as disk:
        ranks = Ranks(environment, 1, f"--workdir={disk / 'w'}")
        wait_for_step(disk / "w", 11, ranks)
        while not (sealed := checkpoint.steps(disk / "w")):
            assert ranks.processes[0].poll() is None, ranks.text()
            time.sleep(0.01)
        with contextlib.suppress(OSError), open(disk / "ballast", "wb", 0) as ballast:
            while True:
                ballast.write(bytes(1 << 12))
        assert is_one_line_of_exit_code_2(ranks.end(), ranks, "No space left", "are free", "written"), ranks.text()
        (disk / "ballast").unlink()
        assert checkpoint.steps(disk / "w")[-1] >= sealed[-1]
        finish(environment, disk / "w", 1)
        assert sha(disk / "w") == sha(alone)


def test_a_disk_that_goes_read_only_is_told_in_one_line_and_nothing_is_lost(tmp_path, environment, alone):
    with small_disk(tmp_path / "disk", "64m") as disk:
        ranks = Ranks(environment, 1, f"--workdir={disk / 'w'}")
        wait_for_step(disk / "w", 15, ranks)
        ranks.processes[0].send_signal(signal.SIGTERM)
        assert ranks.end() == [85], ranks.text()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        codes, ranks = run(environment, disk / "w", 1)
        assert is_one_line_of_exit_code_2(codes, ranks, "Read-only"), ranks.text()
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        finish(environment, disk / "w", 1)
        assert sha(disk / "w") == sha(alone)


def test_a_swapped_corpus_is_refused_and_the_prepared_one_kept(tmp_path, environment):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Document {number} of many, all alike." for number in range(400)))
    source, workdir = f"--config.data.source={text}", tmp_path / "w"
    shutil.copy(text, tmp_path / "before")
    finish(environment, workdir, 1, source)
    prepared = (workdir / "data" / "manifest.json").read_bytes()
    text.write_text(text.read_text().replace("many", "money"))
    more = f"--config.train.num_steps={STEPS + 10}"
    codes, ranks = run(environment, workdir, 1, source, more)
    assert is_one_line_of_exit_code_2(codes, ranks, "is not what"), ranks.text()
    assert (workdir / "data" / "manifest.json").read_bytes() == prepared
    codes, ranks = run(environment, workdir, 1, source, more, "--config.optimizer.learning_rate=0.5")
    assert is_one_line_of_exit_code_2(codes, ranks, "optimizer.learning_rate=0.5, was 0.003"), ranks.text()
    # The variation: allowed, it goes on; and so it does with the corpus of before.
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    assert run(environment, other, 1, source, more, "--allow_changes")[0] == [0]
    shutil.copy(tmp_path / "before", text)
    assert run(environment, workdir, 1, source, more)[0] == [0]
