"""Drives a queued resource: waits for it, runs there, and makes it anew when it is taken away."""

import random
import re
import subprocess
import sys
import threading
import time

from . import policy

_GONE = ("FAILED", "SUSPENDED", "SUSPENDING", "PREEMPTED", "DELETING")
_TRIES = 3  # to copy and install, before the machine is given up
_POLL = 20.0  # seconds
# No waiting would mend these.
_NEVER = r"PERMISSION_DENIED|INVALID_ARGUMENT|UNAUTHENTICATED|invalid_grant|gcloud auth login"
_FORGIVEN_AFTER = 3600.0  # seconds of running after which earlier failures no longer count


def drive(plan, *, max_restarts=10, say=print, wait=time.sleep, execute=None, clock=time.monotonic, seed=0):
    """Runs a Plan of target "queued" until the run is done, is wrong, diverges, or fails too often.

    States as Google Cloud names them: one that waits is waited for, one that is ACTIVE gets the code and the run, one
    that is gone is deleted (it would hold quota) and made again. Being preempted is free; what fails is counted.

    Args:
      plan: plan.Plan with the steps describe, create, pack, copy, install, run, delete.
      max_restarts: int, failures that are forgiven: of the run, of the machine, of asking for it.
      say: called with lines worth knowing.
      wait: seconds -> None.
      execute: argv -> (exit code, stdout, stderr); default `run_aloud`.
      clock: () -> seconds.
      seed: int, of the jitter of pauses.
    Returns:
      int, the exit code of the run; 1 if it could not be run.
    """
    execute, chance, failures, started = execute or run_aloud, random.Random(seed), 0, None

    def step(name):
        return execute(plan.step(name).argv)

    def failed(why):
        """Counts a failure; returns whether to go on, after a growing pause."""
        nonlocal failures
        failures += 1
        if failures > max_restarts:
            say(f"{why}; {max_restarts} restarts were allowed")
            return False
        pause = min(600.0, 10.0 * 2 ** (failures - 1)) * chance.uniform(0.5, 1.0)
        say(f"{why}; again in {pause:.0f} s ({failures} of {max_restarts})")
        wait(pause)
        return True

    code, out, err = step("pack")
    if code:
        say(f"pack: {_last(err or out)}")
        return policy.WRONG_INPUT
    while True:
        answer = step("describe")
        state = _state(answer)
        if state == "UNKNOWN":
            why = f"describe: {_last(answer[2] or answer[1])}"
            if re.search(_NEVER, answer[2]):
                say(why)
                return policy.WRONG_INPUT
            if not failed(why):
                return 1
        elif state is None:
            code, out, err = step("create")
            if code and re.search(_NEVER, err):
                say(f"create: {_last(err)}")
                return policy.WRONG_INPUT
            if code and not failed(f"create: {_last(err or out)}"):
                return 1
            if not code:
                say("asked for the machine")
        elif state in _GONE:
            was_running, started = started is not None, None
            say(f"the machine is {state}; deleting it" if was_running else f"the request is {state}; deleting it")
            step("delete")
            wait(_POLL)
            if not was_running and state == "FAILED" and not failed("the request failed"):
                return 1
        elif state == "ACTIVE":
            if not _install(step, say, wait, chance):
                step("delete")
                if not failed("the code could not be brought to the machine"):
                    return 1
                continue
            started = clock()
            say("running")
            ended = codes_of(step("run"))
            if clock() - started > _FORGIVEN_AFTER:
                failures = 0
            if not ended:  # the connection or the machine is gone: its state will tell
                if _state(step("describe")) == "ACTIVE" and not failed("the connection to the run was lost"):
                    step("delete")
                    return 1
                continue
            code = policy.of_ranks(ended)
            verdict = policy.judge(code)
            if not verdict.restarts:
                say(f"ended with exit code {code}: {verdict.meaning}; deleting the machine")
                step("delete")
                return code
            if verdict.counts and not failed(verdict.meaning):
                step("delete")
                return code
        else:
            wait(_POLL)


def _state(result):
    code, out, err = result
    if code:
        return None if re.search(r"NOT_FOUND|not found", err) else "UNKNOWN"
    return out.strip() or "UNKNOWN"


def _install(step, say, wait, chance):
    for attempt in range(_TRIES):
        for name in ("copy", "install"):
            code, out, err = step(name)
            if code:
                say(f"{name}: {_last(err or out)} ({attempt + 1} of {_TRIES})")
                wait(10.0 * chance.uniform(0.5, 1.0))
                break
        else:
            return True
    return False


def codes_of(result):
    """Returns the exit codes that the workers of a run reported, a list of int."""
    return [int(found) for found in re.findall(r"^.*dlm-exit-code: (\d+)$", result[1], re.MULTILINE)]


def _last(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "failed without a word"


def run_aloud(argv):
    """Runs a command and shows what it writes as it comes; returns (exit code, stdout, stderr)."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = {"out": [], "err": []}

    def follow(stream, name):
        for line in stream:
            seen[name].append(line)
            own = sys.stdout if name == "out" else sys.stderr
            own.write(line)
            own.flush()

    readers = [
        threading.Thread(target=follow, args=(process.stdout, "out")),
        threading.Thread(target=follow, args=(process.stderr, "err")),
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return process.wait(), "".join(seen["out"]), "".join(seen["err"])
