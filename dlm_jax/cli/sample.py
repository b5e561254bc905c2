"""dlm sample: texts from a trained model."""

import json
import sys

from absl import flags

from dlm_jax.cli import options

EXAMPLE = 'dlm sample --workdir demo --num_steps=32 --prompt="Return the" --output samples.jsonl'


def define_flags(values):
    options.define_workdir(values)
    options.define_json(values)
    flags.DEFINE_integer("num_samples", None, "how many; default of the config", flag_values=values)
    flags.DEFINE_integer(
        "num_steps", None, "denoising steps; default of the config, 0 = one token a step", flag_values=values
    )
    flags.DEFINE_list("sizes", None, "tokens revealed by each step, instead of --num_steps", flag_values=values)
    flags.DEFINE_string("plan", None, "plan.json of dlm plan: sizes and order", flag_values=values)
    flags.DEFINE_string("order", None, "random, spaced, ...; default: what it was trained for", flag_values=values)
    flags.DEFINE_string("selection", None, "random or confidence; default of the config", flag_values=values)
    flags.DEFINE_float("temperature", None, "0 = the most probable token; default of the config", flag_values=values)
    flags.DEFINE_string("prompt", "", "the beginning of every sample", flag_values=values)
    flags.DEFINE_string("infill", None, "template with [MASK*n], instead of --prompt", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the samples", flag_values=values)
    flags.DEFINE_string("output", None, "JSON-lines file; default WORKDIR/samples.jsonl", flag_values=values)


def run(values):
    workdir = options.required(values, "workdir")
    sizes = options.whole_numbers(values, "sizes")
    if sizes is not None and values["num_steps"].value is not None:
        raise ValueError("--num_steps, --sizes: only one of them can be given")
    if values["infill"].value is not None and values["prompt"].value:
        raise ValueError("--infill, --prompt: only one of them can be given; a template holds its own text")
    for other in ("num_steps", "sizes", "order", "infill"):
        if values["plan"].value is not None and values[other].value is not None:
            raise ValueError(f"--plan, --{other}: only one of them can be given")
    if values["plan"].value is not None and values["selection"].value not in (None, "random"):
        raise ValueError(f"--plan, --selection={values['selection'].value}: a plan has its own order; leave it out")
    import pathlib

    import dlm_jax
    from dlm_jax import files
    from dlm_jax.progress import Progress

    generator = dlm_jax.load(workdir)
    order = values["order"].value
    if values["plan"].value is not None:
        from dlm_jax.data import tokenizers
        from dlm_jax.information import Plan

        plan = Plan.load(values["plan"].value)
        plan.check_fits(generator.length, tokenizers.sha256(generator.tokenizer), name=f"--plan={values['plan'].value}")
        sizes, order = plan.sizes, plan.order
    defaults = generator.config.sample

    def given(name):
        value = values[name].value
        return getattr(defaults, name) if value is None else value

    num_steps = given("num_steps") if sizes is None else None
    if num_steps is not None and num_steps < 0:
        raise ValueError(f"--num_steps={num_steps}: must be at least 0")
    request = {
        "num_samples": given("num_samples"),
        "num_steps": num_steps or None,
        "sizes": sizes,
        "selection": "random" if values["plan"].value is not None else given("selection"),
        "order": order,
        "temperature": given("temperature"),
        "seed": values["seed"].value,
    }
    with Progress("sampling", quiet=values["json"].value):
        if values["infill"].value is not None:
            out = generator.infill(values["infill"].value, **request)
        else:
            out = generator.sample(prompt=values["prompt"].value, **request)
    records = [
        {"text": text, "nfe": int(nfe), "tokens": tokens.tolist(), "reveal_step": steps.tolist()}
        for text, nfe, tokens, steps in zip(out.texts, out.nfe, out.tokens, out.reveal_step, strict=True)
    ]
    path = pathlib.Path(values["output"].value or pathlib.Path(workdir) / "samples.jsonl")
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    files.write_text(path, "\n".join(lines) + "\n")
    if values["json"].value:
        print("\n".join(lines))
        return
    for number, record in enumerate(records, start=1):
        print(f"--- sample {number}, {record['nfe']} denoiser calls\n{record['text']}")
    print(f"written to {path}", file=sys.stderr)
