"""The supervisor restarts what asks for it, with real processes and real signals."""

import subprocess
import sys
import time

import pytest
from dlm_jax.launch import local, policy


@pytest.mark.parametrize(
    ("code", "restarts", "counts"),
    [(0, False, False), (2, False, False), (85, True, False), (86, True, True), (87, False, False), (1, True, True),
     (-9, True, True)],
)  # fmt: skip
def test_exit_codes_ask_for_what_is_promised(code, restarts, counts):
    verdict = policy.judge(code)
    assert (verdict.restarts, verdict.counts) == (restarts, counts) and verdict.meaning


def test_one_code_speaks_for_all_ranks():
    assert policy.of_ranks([0, 0]) == 0
    assert policy.of_ranks([-6, 85]) == 85 and policy.of_ranks([86, -15]) == 86
    assert policy.of_ranks([1, 2]) == 2 and policy.of_ranks([0, -9]) == -9


def test_the_plan_names_every_process_and_changes_nothing_for_one():
    (argv, changes), second = local.plan(["train", "--config", "debug"], 2, 4321, {"A": "b"})
    assert argv[1:] == ["-m", "dlm_jax", "train", "--config", "debug"] and argv == second[0]
    assert changes == {
        "A": "b", "JAX_COORDINATOR_ADDRESS": "localhost:4321", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0",
    }  # fmt: skip
    assert second[1]["JAX_PROCESS_ID"] == "1"
    assert local.plan(["train"], 1, 4321) == [([sys.executable, "-m", "dlm_jax", "train"], {})]


def supervised(monkeypatch, tmp_path, codes, **options):
    """Supervises a process that ends with one code after another; returns (its last code, what was said, starts)."""
    counter = tmp_path / "count"
    program = (
        "import os, pathlib, signal, sys; p = pathlib.Path(sys.argv[1]); n = int(p.read_text()) if p.exists() else 0; "
        f"p.write_text(str(n + 1)); code = {codes!r}[min(n, {len(codes) - 1})]; "
        "os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)"
    )
    monkeypatch.setattr(local, "plan", lambda *_: [([sys.executable, "-c", program, str(counter)], {})])
    said, waits = [], []
    code = local.supervise([], say=said.append, wait=waits.append, **options)
    return code, said, int(counter.read_text()), waits


@pytest.mark.parametrize(
    ("codes", "limit", "want", "starts"),
    [
        ([0], 3, 0, 1),
        ([2], 3, 2, 1),
        ([87], 3, 87, 1),
        ([85, 85, 85, 85, 85, 0], 0, 0, 6),  # preemptions are free
        ([86, 1, -9, 0], 3, 0, 4),
        ([1], 2, 1, 3),  # it never works: two restarts, then no more
    ],
)
def test_restarts_follow_the_policy(codes, limit, want, starts, monkeypatch, tmp_path):
    code, said, started, waits = supervised(monkeypatch, tmp_path, codes, max_restarts=limit)
    assert (code, started) == (want, starts)
    assert all("\n" not in line for line in said)
    assert waits == sorted(waits)  # growing pauses


@pytest.mark.parametrize("order", [1, -1])
def test_when_one_process_dies_the_others_are_ended(order, monkeypatch):
    monkeypatch.setattr(local, "_GRACE_AFTER_CRASH", 0.5)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    planned = [([sys.executable, "-c", "import time; time.sleep(0.5); raise SystemExit(7)"], {}),
               ([sys.executable, "-c", stubborn], {})]  # fmt: skip
    monkeypatch.setattr(local, "plan", lambda *_: planned[::order])
    started = time.monotonic()
    assert local.supervise([], num_processes=2, max_restarts=0, say=lambda line: None) == 7
    assert time.monotonic() - started < 60


def test_a_hang_ends_with_86_and_all_stacks(tmp_path):
    program = (
        "import sys, time; from dlm_jax.training.watchdog import Watchdog\n"
        f"with Watchdog(0.5, {str(tmp_path / 'hang.txt')!r}) as watch:\n"
        "    time.sleep(1.5)  # before the first beat nothing is watched\n"
        "    watch.beat()\n"
        "    with watch.paused():\n        time.sleep(1.5)\n"
        "    print('alive', flush=True)\n"
        "    def stuck_here():\n        time.sleep(60)\n"
        "    stuck_here()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == policy.HANG and done.stdout == "alive\n"
    assert "no step ended" in done.stderr
    assert "stuck_here" in (tmp_path / "hang.txt").read_text() and "stuck_here" in done.stderr
