"""dlm train: the same command starts a run and resumes it."""

import sys

from dlm_jax import exit_codes
from dlm_jax.cli import options

EXAMPLE = "dlm train --config debug --workdir runs/debug --config.train.num_steps=100"


def define_flags(values):
    options.define_config(values)
    options.define_workdir(values, "folder of the run: checkpoints, metrics, prepared corpus")


def run(values):
    config = options.run_config(values)
    workdir = options.required(values, "workdir")
    from dlm_jax.evaluation import evaluators
    from dlm_jax.parallel import multihost
    from dlm_jax.training import loop

    multihost.initialize()
    prepared = loop.prepare(config, workdir, say=lambda line: print(line, file=sys.stderr))
    print(f"{prepared.denoiser.num_params:,} parameters on mesh {dict(prepared.mesh.shape)}", file=sys.stderr)
    watchers = evaluators.during_training(prepared) if config.eval.every_steps else ()
    try:
        state = loop.train(prepared, evaluators=watchers)
    except loop.Preempted as stop:
        print(f"dlm: {stop}; the same command resumes", file=sys.stderr)
        return exit_codes.PREEMPTED
    except loop.Diverged as stop:
        print(f"dlm: {stop}", file=sys.stderr)
        return exit_codes.DIVERGED
    print(f"step {int(state.step)} saved in {workdir}", file=sys.stderr)
    return exit_codes.DONE
