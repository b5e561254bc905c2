"""dlm train: the same command starts a run and resumes it."""

import sys

from absl import flags

from dlm_jax import exit_codes
from dlm_jax.cli import options

EXAMPLE = "dlm train --config debug --workdir runs/debug --config.train.num_steps=100"


def define_flags(values):
    options.define_config(values)
    options.define_workdir(values, "folder of the run: checkpoints, metrics, prepared corpus")
    flags.DEFINE_bool("allow_changes", False, "resume though configuration or corpus have changed", flag_values=values)


def run(values):
    config = options.run_config(values)
    workdir = options.required(values, "workdir")
    from dlm_jax.parallel import multihost
    from dlm_jax.training import loop

    try:
        multihost.initialize()
        return _train(config, workdir, values["allow_changes"].value)
    except loop.Preempted as stop:
        print(f"dlm: {stop}; the same command resumes", file=sys.stderr)
        return exit_codes.PREEMPTED
    except loop.Diverged as stop:
        print(f"dlm: {stop}", file=sys.stderr)
        return exit_codes.DIVERGED
    except multihost.ProcessesMissing as stop:
        print(f"dlm: {stop}", file=sys.stderr)
        return exit_codes.HANG


def _train(config, workdir, allow_changes):
    from dlm_jax.evaluation import evaluators
    from dlm_jax.parallel import multihost
    from dlm_jax.training import loop

    def say(line):
        if multihost.is_main():
            print(line, file=sys.stderr)

    prepared = loop.prepare(config, workdir, say=say, allow_changes=allow_changes)
    say(f"{prepared.denoiser.num_params:,} parameters on mesh {dict(prepared.mesh.shape)}")
    watchers = evaluators.during_training(prepared) if config.eval.every_steps else ()
    state = loop.train(prepared, evaluators=watchers)
    say(f"step {int(state.step)} saved in {workdir}")
    return exit_codes.DONE
