"""dlm evaluate: what a model is worth on the validation rows."""

import pathlib
import sys

from absl import flags

from dlm_jax.cli import options

EXAMPLE = "dlm evaluate --workdir demo --t_steps=8,32"


def define_flags(values):
    options.define_workdir(values)
    options.define_json(values)
    flags.DEFINE_string(
        "baseline", None, "workdir of an autoregressive baseline; default WORKDIR/baseline if there", flag_values=values
    )
    flags.DEFINE_list(
        "t_steps", None, "step counts of the T-step likelihood; default of the config", flag_values=values
    )
    flags.DEFINE_string("output", None, "JSON file; default WORKDIR/evaluate.json", flag_values=values)


def run(values):
    workdir = pathlib.Path(options.required(values, "workdir"))
    t_steps = options.whole_numbers(values, "t_steps")
    import jax

    import dlm_jax
    from dlm_jax.data import packing
    from dlm_jax.evaluation import evaluators
    from dlm_jax.training import loop

    generator = dlm_jax.load(workdir)
    config = generator.config
    for steps in t_steps or ():
        if not 1 <= steps <= config.data.length:
            raise ValueError(f"--t_steps={steps}: must be between 1 and data.length={config.data.length}")
    baseline = values["baseline"].value or (workdir / "baseline" if (workdir / "baseline").is_dir() else None)
    if baseline is not None and not evaluators.is_autoregressive(config):
        baseline = load_baseline(baseline, generator)  # a wrong one is refused before the long work
    say = (lambda line: None) if values["json"].value else (lambda line: print(line, file=sys.stderr))
    corpus = packing.prepare(config.data, loop.cache_dir(config, workdir), say=say)
    rows = evaluators.spread_rows(corpus.validation, config.eval.num_rows)
    key = jax.random.key(config.seed)
    summary = evaluators.likelihood_summary(config, generator.denoiser, generator.params, rows, key)
    payload = {"step": generator.step, **summary, "ar_bits_per_byte": None, "t_step": {}}
    if evaluators.is_autoregressive(config):
        payload["ar_bits_per_byte"] = summary["bits_per_byte"]
    else:
        short = evaluators.t_step_rows(config, corpus.validation)
        for steps in t_steps or config.eval.t_steps:
            found = evaluators.t_step_summary(config, generator.denoiser, generator.params, short, key, steps)
            payload["t_step"][str(steps)] = found["nll_nats_per_token"]
            payload.setdefault("t_step_stderr", {})[str(steps)] = found["stderr"]
            payload.setdefault("t_step_bits_per_byte", {})[str(steps)] = found["bits_per_byte"]
        if baseline is not None:
            found = evaluators.likelihood_summary(baseline.config, baseline.denoiser, baseline.params, rows, key)
            payload["ar_bits_per_byte"] = found["bits_per_byte"]
    if not values["json"].value:
        print(_table(payload), file=sys.stderr)
    options.emit(payload, values["output"].value or workdir / "evaluate.json")


def load_baseline(workdir, generator):
    """Returns the Generator of an autoregressive baseline that fits a model."""
    import dlm_jax
    from dlm_jax.data import tokenizers
    from dlm_jax.evaluation import evaluators

    baseline = dlm_jax.load(workdir)
    if not evaluators.is_autoregressive(baseline.config):
        raise ValueError(f"--baseline={workdir}: holds no autoregressive model")
    if tokenizers.sha256(baseline.tokenizer) != tokenizers.sha256(generator.tokenizer):
        raise ValueError(f"--baseline={workdir}: its tokenizer differs from the model's")
    if baseline.length != generator.length:
        raise ValueError(f"--baseline={workdir}: its length {baseline.length} must be {generator.length}")
    return baseline


def _table(payload):
    lines = [
        f"nats per token  {payload['nll_nats_per_token']:.4f} +- {payload['stderr']:.4f}",
        f"bits per byte   {payload['bits_per_byte']:.4f} +- {payload['bits_per_byte_stderr']:.4f}",
    ]
    if payload["ar_bits_per_byte"] is not None:
        lines.append(f"autoregressive  {payload['ar_bits_per_byte']:.4f} bits per byte")
    for steps, nats in payload["t_step"].items():
        lines.append(
            f"T = {steps:>5}       {nats:.4f} +- {payload['t_step_stderr'][steps]:.4f} nats per token, "
            f"{payload['t_step_bits_per_byte'][steps]:.4f} bits per byte"
        )
    return "\n".join(lines)
