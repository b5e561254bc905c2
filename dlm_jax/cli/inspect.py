"""dlm inspect: what a workdir holds."""

import pathlib
import sys

from absl import flags

from dlm_jax.cli import options

EXAMPLE = "dlm inspect --workdir demo"


def define_flags(values):
    options.define_workdir(values)
    options.define_json(values)
    flags.DEFINE_integer("step", None, "which checkpoint; default the newest", flag_values=values)
    flags.DEFINE_bool("goodput", False, "where the time of the run went, over all restarts", flag_values=values)


def run(values):
    workdir = options.required(values, "workdir")
    if values["goodput"].value:
        return _goodput(workdir, values["json"].value)
    import jax

    import dlm_jax
    from dlm_jax import config as configs
    from dlm_jax.training import checkpoint

    generator = dlm_jax.load(workdir, step=values["step"].value)
    _, params, _ = checkpoint.load_item(workdir, "params", generator.step)
    named = sorted((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params))
    length = generator.length
    payload = {
        "step": generator.step,
        "num_params": generator.denoiser.num_params,
        "params_sha256": checkpoint.params_sha256(params),
        "flops_per_token": generator.denoiser.flops(length),
        "steps": checkpoint.steps(workdir),
        "vocab_size": generator.tokenizer.vocab_size,
        "parameters": {name: list(leaf.shape) for name, leaf in named},
        "config": configs.to_dict(generator.config),
    }
    if not values["json"].value:
        width = max(len(name) for name, _ in named)
        for name, leaf in named:
            print(f"{name:{width}}  {leaf.dtype}{list(leaf.shape)}", file=sys.stderr)
        print(f"{payload['num_params']:,} parameters at step {generator.step}", file=sys.stderr)
    options.emit(payload)


def _goodput(workdir, is_json):
    from dlm_jax.training import goodput

    summary = goodput.summarize(pathlib.Path(workdir) / "metrics.jsonl")
    if not is_json:
        for line in goodput.table(summary):
            print(line, file=sys.stderr)
    options.emit(summary)
