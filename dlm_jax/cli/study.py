"""dlm study NAME: runs a published experiment again, with its table and figure."""

import pathlib
import sys

from absl import flags

from dlm_jax.cli import options

TAKES_NAME = True
EXAMPLE = "dlm study convergence --workdir studies/convergence"


def define_flags(values):
    options.define_workdir(values, "folder of the study")
    options.define_json(values)
    flags.DEFINE_integer(
        "num_samples", None, "convergence: samples of each order; samplers: of each sampler", flag_values=values
    )
    flags.DEFINE_integer("num_orders", None, "convergence: fixed orders", flag_values=values)
    flags.DEFINE_integer("num_rows", None, "convergence, prediction: rows that are measured", flag_values=values)
    flags.DEFINE_string("model", None, "prediction, samplers: workdir of a trained model", flag_values=values)
    flags.DEFINE_string(
        "judge", None, "samplers: workdir of the model that judges samples, or hf:NAME; default MODEL/baseline",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list("configs", ["orders", "demo"], "orders: config files, one a corpus", flag_values=values)
    flags.DEFINE_list("seeds", ["0", "1"], "orders: seeds of the models", flag_values=values)
    flags.DEFINE_integer("num_steps", None, "orders: training steps, instead of the config's", flag_values=values)
    flags.DEFINE_string("source", None, "orders: data.source, instead of the config's", flag_values=values)


def run_orders(values, workdir, say):
    from dlm_jax import config as configs
    from dlm_jax.studies import orders

    bases = {}
    for name in values["configs"].value:
        base = options.load_config_file(name)
        if values["num_steps"].value is not None:
            base = configs.with_overrides(base, {"train.num_steps": values["num_steps"].value})
        if values["source"].value is not None:
            base = configs.with_overrides(base, {"data.source": values["source"].value})
        bases[pathlib.Path(name).stem] = base
    known = orders.run_known(workdir, say=say)
    trained = orders.run(bases, workdir, seeds=options.whole_numbers(values, "seeds"), say=say)
    return {"known": known, "trained": trained}


def run_convergence(values, workdir, say):
    from dlm_jax.studies import convergence

    config = options.load_study_config("convergence")
    for name in ("num_samples", "num_orders", "num_rows"):
        if values[name].value is not None:
            if values[name].value < 1:
                raise ValueError(f"--{name}={values[name].value}: must be at least 1")
            config[name] = values[name].value
    return convergence.run(config, workdir, say=say)


def run_cleaning(values, workdir, say):
    from dlm_jax.studies import cleaning

    return cleaning.run(workdir, say=say)


def run_prediction(values, workdir, say):
    import dlm_jax
    from dlm_jax.studies import prediction

    if values["model"].value is None:
        raise ValueError("--model: must be given, the workdir of a trained diffusion model")
    num_rows = values["num_rows"].value or 200
    return prediction.run(dlm_jax.load(values["model"].value), workdir, num_rows=num_rows, say=say)


def run_samplers(values, workdir, say):
    import dlm_jax
    from dlm_jax.evaluation import generation
    from dlm_jax.studies import samplers

    if values["model"].value is None:
        raise ValueError("--model: must be given, the workdir of a trained diffusion model")
    generator = dlm_jax.load(values["model"].value)
    name = values["judge"].value
    if name is not None and name.startswith("hf:"):
        judge = generation.HuggingFaceJudge(name.removeprefix("hf:"))
    else:
        baseline = generator.workdir / "baseline"
        judge = dlm_jax.load(name or (baseline if baseline.is_dir() else generator.workdir))
    num_samples = 32 if values["num_samples"].value is None else values["num_samples"].value
    if num_samples < 2:
        raise ValueError(f"--num_samples={num_samples}: must be at least 2")
    return samplers.run(generator, judge, workdir, num_samples=num_samples, say=say)


def run_scaling(values, workdir, say):
    from dlm_jax.bench import scaling

    return scaling.run(workdir, say=say)


# name -> what it shows
STUDIES = {
    "convergence": (run_convergence, "the KL error of sampling against T, on exactly known data: formula and bounds"),
    "prediction": (run_prediction, "predicted against measured nats of the sampler, for steps, schedules and orders"),
    "cleaning": (run_cleaning, "planted notation variants: the measured drop of dependence against the truth"),
    "samplers": (run_samplers, "every way of unmasking: quality, entropy and likelihood against denoiser calls"),
    "scaling": (
        run_scaling,
        "seconds of a training step and of a sampler against length, batch, vocabulary, layers, steps",
    ),
    "orders": (run_orders, "orders of revealing, and training for them, beside an autoregressive baseline"),
}


def run(values, name=None):
    if name is None:
        known = ", ".join(STUDIES)
        raise ValueError(f"NAME: must be given: dlm study NAME, with NAME one of {known}")
    if name not in STUDIES:
        raise ValueError(f"NAME={name!r}: must be one of {', '.join(STUDIES)}")
    workdir = pathlib.Path(options.required(values, "workdir"))
    found = STUDIES[name][0](values, workdir, lambda line: print(line, file=sys.stderr, flush=True))
    if values["json"].value:
        options.emit(found)
