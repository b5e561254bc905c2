"""dlm launch: runs a dlm command under supervision, restarted as its exit code asks."""

import json
import shlex
import sys

from absl import flags

TAKES_COMMAND = True
EXAMPLE = "dlm launch --target local --num_processes 2 -- train --config debug --workdir runs/debug"


def define_flags(values):
    flags.DEFINE_string("target", None, "where: local", flag_values=values)
    flags.DEFINE_integer("num_processes", 1, "processes on this machine, joined as hosts would be", flag_values=values)
    flags.DEFINE_integer(
        "max_restarts", 10, "crashes and hangs that are forgiven; preemptions are free", flag_values=values
    )
    flags.DEFINE_string("logs", None, "folder for a log a process; default: this terminal", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "print the exact commands and run nothing", flag_values=values)
    flags.DEFINE_bool("json", False, "with --dry_run: as JSON", flag_values=values)


def run(values, *command):
    from dlm_jax.cli.main import VERBS
    from dlm_jax.launch import local

    target = values["target"].value
    if target != "local":
        raise ValueError(f"--target={target!r}: must be local")
    if not command:
        raise ValueError("command: must follow --, for example: dlm launch --target local -- train --config debug ...")
    if command[0] not in VERBS or command[0] == "launch":
        allowed = ", ".join(verb for verb in VERBS if verb != "launch")
        raise ValueError(f"command {command[0]!r}: must be one of {allowed}")
    for name, low in (("num_processes", 1), ("max_restarts", 0)):
        if values[name].value < low:
            raise ValueError(f"--{name}={values[name].value}: must be at least {low}")
    num_processes = values["num_processes"].value
    if values["dry_run"].value:
        planned = local.plan(command, num_processes, 12345)
        if values["json"].value:
            print(json.dumps([{"argv": argv, "environment": changes} for argv, changes in planned], indent=1))
        else:
            for argv, changes in planned:
                print(shlex.join([*(f"{name}={value}" for name, value in changes.items()), *argv]))
        return 0
    return local.supervise(
        list(command), num_processes=num_processes, max_restarts=values["max_restarts"].value,
        logs=values["logs"].value, say=lambda line: print(f"dlm launch: {line}", file=sys.stderr, flush=True),
    )  # fmt: skip
