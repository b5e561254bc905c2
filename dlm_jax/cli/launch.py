"""dlm launch: plans a run on a target, and runs it there, restarted as its exit code asks."""

import dataclasses
import json
import shlex
import sys

from absl import flags

TAKES_COMMAND = True
EXAMPLE = (
    "dlm launch --target local --num_processes 2 -- train --config debug --workdir runs/debug\n"
    "         dlm launch --target queued --accelerator v5litepod-16 --zone us-west4-a --spot --dry_run -- "
    "train --config owt_mdlm_small --workdir gs://bucket/owt"
)

_TEXTS = {
    "target": "where: local, tpu_vm, queued (resource), gke, xpk, sky (SkyPilot), slurm, docker",
    "name": "of the job, and of what it needs in a cloud (default dlm)",
    "accelerator": "for example v5litepod-16, v5p:4x4x4 or H100x8",
    "zone": "of Google Cloud",
    "project": "of Google Cloud; default: gcloud's own",
    "image": "of containers: gke, xpk, docker, sky",
    "cluster": "of xpk",
    "partition": "of slurm",
    "time_limit": "of slurm, for example 2-00:00:00",
    "source": "folder of the code that is copied to machines (default .)",
}
_NUMBERS = {
    "num_nodes": (1, "machines (slurm) or slices (gke, xpk)"),
    "num_processes": (1, "processes a machine: local, slurm"),
    "max_restarts": (10, "crashes and hangs that are forgiven; preemptions are free"),
}


def define_flags(values):
    for name, text in _TEXTS.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    for name, (default, text) in _NUMBERS.items():
        flags.DEFINE_integer(name, default, text, flag_values=values)
    flags.DEFINE_bool("spot", False, "capacity that can be taken away", flag_values=values)
    flags.DEFINE_multi_string("env", [], "NAME=VALUE for the run; repeatable; no secrets", flag_values=values)
    flags.DEFINE_string("sweep", None, 'JSON file, {"optimizer.learning_rate": [1e-3, 3e-4], ...}', flag_values=values)
    flags.DEFINE_string("logs", None, "local: folder for a log a process; default: this terminal", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "print the exact files and commands and run nothing", flag_values=values)
    flags.DEFINE_bool("doctor", False, "look for what would stop the run, and run nothing", flag_values=values)
    flags.DEFINE_bool("json", False, "with --dry_run or --doctor: as JSON", flag_values=values)


def run(values, *command):
    from dlm_jax.launch import plan

    given = {name: values[name].value for name in _TEXTS if values[name].value is not None}
    given |= {name: values[name].value for name in _NUMBERS}
    if "target" not in given:
        raise ValueError("--target: must be given, for example --target=local")
    environment = tuple(tuple(text.partition("=")[::2]) for text in values["env"].value)
    spec = plan.Spec(command=tuple(command), spot=values["spot"].value, environment=environment, **given)
    if values["doctor"].value:
        return _doctor(spec, values["json"].value)
    _check_command(command)
    specs = _swept(spec, values["sweep"].value)
    for each in specs:
        _check_config(each.command)
    plans = [plan.make(each) for each in specs]
    if values["dry_run"].value:
        return _show(specs, plans, values["json"].value)
    codes = [_go(each, planned, values["logs"].value) for each, planned in zip(specs, plans, strict=True)]
    return next((code for code in codes if code), 0)


def _check_command(command):
    from dlm_jax.cli.main import VERBS

    if not command:
        raise ValueError("command: must follow --, for example: dlm launch --target local -- train --config debug ...")
    if command[0] not in VERBS or command[0] == "launch":
        allowed = ", ".join(verb for verb in VERBS if verb != "launch")
        raise ValueError(f"command {command[0]!r}: must be one of {allowed}")


def _check_config(command):
    """Raises what `dlm train` would raise on its machines, before any is asked for."""
    if command[0] != "train":
        return
    from dlm_jax.cli import main, options, train

    values = flags.FlagValues()
    train.define_flags(values)
    main.parse(values, "train", command[1:])
    options.run_config(values)
    options.required(values, "workdir")


def _swept(spec, path):
    from dlm_jax import files
    from dlm_jax.launch import sweep

    if path is None:
        return [spec]
    found = sweep.commands(list(spec.command), files.read_json(path), path)
    return [
        dataclasses.replace(spec, command=tuple(command), name=f"{spec.name}-{number}")
        for number, (_, command) in enumerate(found)
    ]


def _show(specs, plans, is_json):
    if is_json:
        shown = [
            {
                "name": spec.name,
                "files": planned.files,
                "steps": [{"name": s.name, "argv": s.argv, "environment": s.environment} for s in planned.steps],
            }
            for spec, planned in zip(specs, plans, strict=True)
        ]
        print(json.dumps(shown, indent=1))
        return 0
    for spec, planned in zip(specs, plans, strict=True):
        print(f"# {spec.name}")
        for path, text in planned.files.items():
            print(f"# ---- {path}\n{text}# ----")
        for step in planned.steps:
            print(f"{step.line}  # {step.name}")
    return 0


def _go(spec, planned, logs):
    from dlm_jax import files
    from dlm_jax.launch import local, policy, queued

    def say(line):
        print(f"dlm launch: {line}", file=sys.stderr, flush=True)

    if spec.target == "local":
        code = local.supervise(
            list(spec.command), num_processes=spec.num_processes, max_restarts=spec.max_restarts, logs=logs, say=say,
            environment=spec.environment,
        )  # fmt: skip
        return code if code >= 0 else 128 - code  # as a shell tells a signal
    for path, text in planned.files.items():
        files.write_text(path, text)
        say(f"wrote {path}")
    if spec.target == "queued":
        return queued.drive(planned, max_restarts=spec.max_restarts, say=say)
    for step in planned.steps:
        if step.name == "delete":
            continue
        say(f"{step.name}: {shlex.join(step.argv)[:200]}")
        try:
            result = queued.run_aloud(step.argv)
        except FileNotFoundError:
            raise FileNotFoundError(f"{step.argv[0]}: not on PATH; --target={spec.target} calls it") from None
        code = policy.of_ranks(queued.codes_of(result)) or result[0]
        if code:
            say(f"{step.name} ended with exit code {code}: {policy.judge(code).meaning}")
            break
    left = next((step for step in planned.steps if step.name == "delete"), None)
    if left is not None:
        say(f"the machine is still there; delete it with: {left.line}")
    return code


def _doctor(spec, is_json):
    from dlm_jax.launch import doctor, plan

    workdir = plan.workdir_of(spec.command)
    findings = list(doctor.examine(spec.target, accelerator=spec.accelerator, workdir=workdir, zone=spec.zone))
    if is_json:
        print(json.dumps([{"what": f.what, "found": f.found, "problem": f.problem} for f in findings], indent=1))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            mark = "ok     " if finding.problem is None else "PROBLEM"
            print(
                f"{mark} {finding.what:{width}}  {finding.found}" + (f": {finding.problem}" if finding.problem else "")
            )
    return 2 if any(finding.problem for finding in findings) else 0
