"""Runs `dlm` on this machine under supervision: one or several processes, restarted as their exit code asks."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

from . import policy

# A run that has worked for so long is a new run: its earlier crashes are forgiven.
_FORGIVEN_AFTER = 3600.0
# Seconds that the other processes have to end by themselves: to save, or after a crash, with which they cannot go on.
_GRACE, _GRACE_AFTER_CRASH = 60.0, 5.0
_POLL = 0.05


def plan(command, num_processes, port, environment=()):
    """Returns [(argv, environment changes), ...], one a process; pure.

    Args:
      command: list of str, what follows `dlm`.
      num_processes: int.
      port: int, of the coordinator.
      environment: {name: value} of all processes.
    """
    argv = [sys.executable, "-m", "dlm_jax", *command]
    if num_processes == 1:
        return [(argv, dict(environment))]
    shared = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(num_processes)}
    return [(argv, {**dict(environment), **shared, "JAX_PROCESS_ID": str(rank)}) for rank in range(num_processes)]


def supervise(command, *, num_processes=1, max_restarts=10, logs=None, environment=(), say=print, wait=time.sleep):
    """Runs a command until it is done, is wrong, diverges, or crashes too often.

    SIGTERM and SIGINT are handed on; the run then saves, and is not started again. What one attempt has compiled the
    next finds again, unless JAX_COMPILATION_CACHE_DIR already names a place for it.

    Args:
      command: list of str, what follows `dlm`.
      num_processes: int; more than one share a fate: when one ends, the others are ended.
      max_restarts: int, crashes and hangs that are forgiven; preemptions are free.
      logs: folder for the stderr of each process, or None for this one's stderr.
      environment: {name: value} or pairs of them, for all processes.
      say: called with lines worth knowing.
      wait: seconds -> None, between a crash and the next start.
    Returns:
      int, the exit code of the last attempt.
    """
    crashes, stopping, running = 0, [], []

    def stop(signum, frame):
        stopping.append(signum)
        for process in running:
            process.send_signal(signal.SIGTERM)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
    compiled = tempfile.TemporaryDirectory(prefix="dlm-compiled-")
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", compiled.name)
    environment = {"JAX_COMPILATION_CACHE_DIR": cache, **dict(environment)}
    try:
        while True:
            started = time.monotonic()
            running[:] = _start(plan(command, num_processes, free_port(), environment), logs)
            if stopping:  # between two attempts nobody heard it
                stop(stopping[0], None)
            code = policy.of_ranks(_wait(running))
            verdict = policy.judge(code)
            if stopping or not verdict.restarts:
                if code:
                    say(f"ended with exit code {code}: {verdict.meaning}")
                return code
            if time.monotonic() - started > _FORGIVEN_AFTER:
                crashes = 0
            crashes += verdict.counts
            if crashes > max_restarts:
                say(f"ended with exit code {code}: {verdict.meaning}; {max_restarts} restarts were allowed")
                return code
            say(f"{verdict.meaning}; starting again" + (f" ({crashes} of {max_restarts})" if verdict.counts else ""))
            if verdict.counts:
                wait(min(60.0, 0.5 * 2 ** min(crashes - 1, 7)))
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
        compiled.cleanup()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _start(planned, logs):
    processes = []
    for rank, (argv, changes) in enumerate(planned):
        log = None
        if logs is not None:
            pathlib.Path(logs).mkdir(parents=True, exist_ok=True)
            log = open(pathlib.Path(logs) / f"rank-{rank}.log", "a")  # noqa: SIM115, the process writes to it
        processes.append(subprocess.Popen(argv, env={**os.environ, **changes}, stderr=log))
        if log is not None:
            log.close()
    return processes


def _wait(processes):
    """Exit codes of all processes; once one has ended badly, or all but a few long ago, the others are ended."""
    deadline = None
    while None in (codes := [process.poll() for process in processes]):
        ended = [code for code in codes if code is not None]
        if ended and deadline is None:
            crashed = any(code not in (policy.DONE, policy.PREEMPTED) for code in ended)
            deadline = time.monotonic() + (_GRACE_AFTER_CRASH if crashed else _GRACE)
            if crashed:
                _signal(processes, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _signal(processes, signal.SIGKILL)
        time.sleep(_POLL)
    return codes


def _signal(processes, signum):
    for process in processes:
        if process.poll() is None:
            process.send_signal(signum)


def free_port():
    """Returns the number of a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
