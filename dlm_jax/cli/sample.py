"""dlm sample: texts from a trained model."""

import dataclasses
import json
import pathlib
import sys

from absl import flags

from dlm_jax.cli import options
from dlm_jax.config import SampleConfig

EXAMPLE = 'dlm sample --workdir demo --num_steps=32 --prompt="Return the" --output samples.jsonl'

# Every axis of the sampler is a flag; the table of each is in dlm_jax/sampling/.
_HELP = {
    "num_samples": "how many",
    "num_steps": "denoising steps, 0 = one token a step or what the transition decides",
    "selection": "which first: random (see --order), confidence, margin, entropy, drawn",
    "order_temperature": "noise on the scores of a selection",
    "spacing": "positions revealed together are so far apart where possible",
    "scores": "marginals, or filtered by temperature, top-k and top-p",
    "transition": "how many now: exact_count, quota_llada, quota_dream, ancestral_md4, ancestral_md4_cosine, "
    "ancestral_mdlm, first_hitting, threshold:P, factor:F, entropy_bound:NATS, entropy_sum:NATS",
    "temperature": "0 = the most probable token",
    "top_k": "the most probable tokens, 0 = all",
    "top_p": "the most probable tokens of this probability together",
    "numerics": "exact, or published (what old float32 samplers drew)",
    "remasking": "none, remdm_cap:E, remdm_rescale:E, remdm_confidence:E, remdm_loop:E, forward_backward, corrector:M",
    "block_length": "blocks of so many tokens from left to right, 0 = one block",
    "cache": "none, exact (block-causal models), prefix, dual (both approximate)",
    "guidance": "strength of the prompt",
    "stop_at_eos": "end-of-text ends a sample",
}


def define_flags(values):
    options.define_workdir(values)
    options.define_json(values)
    kinds = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_bool}
    for field in dataclasses.fields(SampleConfig):
        text = f"{_HELP[field.name]}; default of the config"
        kinds[field.type](field.name, None, text, flag_values=values)
    flags.DEFINE_string(
        "preset", None, "a published sampler instead of the config's: llada, dream, mdlm, md4, remdm, eb, planned",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list("sizes", None, "tokens revealed by each step, instead of --num_steps", flag_values=values)
    flags.DEFINE_string("plan", None, "plan.json of dlm plan: sizes and order", flag_values=values)
    flags.DEFINE_string("order", None, "random, spaced, ...; default: what it was trained for", flag_values=values)
    flags.DEFINE_multi_string("prompt", [], "the beginning of every sample; several: one a sample", flag_values=values)
    flags.DEFINE_string("negative_prompt", None, "what --guidance pushes away from", flag_values=values)
    flags.DEFINE_string("infill", None, "template with [MASK*n], instead of --prompt", flag_values=values)
    flags.DEFINE_list("critical", [], "positions that are revealed last, one a step", flag_values=values)
    flags.DEFINE_integer("length", None, "tokens a sample; default: the model's", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the samples", flag_values=values)
    flags.DEFINE_string("output", None, "JSON-lines file; default WORKDIR/samples.jsonl", flag_values=values)
    flags.DEFINE_bool("view", False, "play the samples step by step, in colours", flag_values=values)
    flags.DEFINE_string("html", None, "also write a page that plays the samples", flag_values=values)


def run(values):
    workdir = options.required(values, "workdir")
    _check(values)
    import dlm_jax
    from dlm_jax import files
    from dlm_jax.progress import Progress

    generator = dlm_jax.load(workdir)
    request = _request(values, generator)
    path = pathlib.Path(values["output"].value or pathlib.Path(workdir) / "samples.jsonl")
    for place in filter(None, (path, values["html"].value)):
        files.check_place(place)
    with Progress("sampling", quiet=values["json"].value):
        if values["infill"].value is not None:
            out = generator.infill(values["infill"].value, **request)
        else:
            prompts = values["prompt"].value
            out = generator.sample(
                prompt=prompts if len(prompts) > 1 else "".join(prompts), length=values["length"].value,
                negative_prompt=values["negative_prompt"].value, **request,
            )  # fmt: skip
    records = [
        {"text": text, "nfe": int(nfe), "tokens": tokens.tolist(), "reveal_step": steps.tolist()}
        for text, nfe, tokens, steps in zip(out.texts, out.nfe, out.tokens, out.reveal_step, strict=True)
    ]
    lines = [_one_line(json.dumps(record, ensure_ascii=False)) for record in records]
    files.write_text(path, "\n".join(lines) + "\n")
    if values["html"].value:
        from dlm_jax.sampling import viewer

        made = [(f"sample {n}, {r['nfe']} denoiser calls", *_shown(r, generator)) for n, r in enumerate(records, 1)]
        files.write_text(values["html"].value, viewer.page(made))
    if values["json"].value:
        print("\n".join(lines))
        return
    for number, record in enumerate(records, start=1):
        print(f"--- sample {number}, {record['nfe']} denoiser calls")
        if values["view"].value:
            from dlm_jax.sampling import viewer

            viewer.play(sys.stdout.write, *_shown(record, generator), is_terminal=sys.stdout.isatty())
        else:
            from dlm_jax.sampling import viewer

            print(viewer.printable(record["text"]))
    for written in filter(None, (path, values["html"].value)):
        print(f"written to {written}", file=sys.stderr)


def _shown(record, generator):
    from dlm_jax.sampling import viewer

    return viewer.pieces(record["tokens"], generator.text), record["reveal_step"]


def _one_line(text):
    """JSON in which no character ends a line for any reader."""
    for character in "\u0085\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _check(values):
    for name in ("plan", "html", "output"):
        if values[name].value == "":
            raise ValueError(f"--{name}='': must not be empty")
    if values["json"].value and values["view"].value:
        raise ValueError("--json, --view: only one of them can be given")
    places = [values[name].value for name in ("html", "output") if values[name].value is not None]
    if len(places) == 2 and pathlib.Path(places[0]).absolute() == pathlib.Path(places[1]).absolute():
        raise ValueError(f"--html, --output={places[1]}: must be different files")
    given = {name for name in values if values[name].value not in (None, [], "")}
    for one, others, why in (
        ("num_steps", ("sizes",), ""),
        ("infill", ("prompt", "length", "negative_prompt"), "; a template holds its own text"),
        ("plan", ("num_steps", "sizes", "order", "infill", "preset"), ""),
    ):
        for other in others:
            if one in given and other in given:
                raise ValueError(f"--{one}, --{other}: only one of them can be given{why}")
    if "plan" in given and values["selection"].value not in (None, "random"):
        raise ValueError(f"--plan, --selection={values['selection'].value}: a plan has its own order; leave it out")
    for name in ("sizes", "critical"):
        options.whole_numbers(values, name)
    if values["num_steps"].value is not None and values["num_steps"].value < 0:
        raise ValueError(f"--num_steps={values['num_steps'].value}: must be at least 0")


def _request(values, generator):
    """What Generator.sample and Generator.infill are asked: flags, then the preset or the config."""
    given = {
        field.name: values[field.name].value
        for field in dataclasses.fields(SampleConfig)
        if values[field.name].value is not None
    }
    prompts = values["prompt"].value
    if values["preset"].value is None:
        made = dataclasses.asdict(generator.config.sample) | given
        if values["transition"].value is not None and "num_steps" not in given and not _takes_steps(made):
            made["num_steps"] = 0  # the config's number belongs to the config's transition
        made |= _not_of_this_length(values, generator, given)
    else:
        made = {"num_samples": generator.config.sample.num_samples} | given
    if len(prompts) > 1 and "num_samples" not in given:
        made["num_samples"] = len(prompts)
    request = {
        **made, "sizes": options.whole_numbers(values, "sizes"), "order": values["order"].value,
        "preset": values["preset"].value, "critical": options.whole_numbers(values, "critical"),
        "seed": values["seed"].value,
    }  # fmt: skip
    if values["plan"].value is not None:
        plan = generator.plan(values["plan"].value, argument="--plan")
        request |= {"sizes": plan.sizes, "order": plan.order, "selection": "random"}
    steps = None if request["sizes"] is not None else made.get("num_steps")
    return request | {"num_steps": steps or None}


def _not_of_this_length(values, generator, given):
    """Fields of the config that were meant for other lengths and blocks than those asked for, at their defaults."""
    if values["infill"].value is not None:
        dropped = {"num_steps": 0, "block_length": 0, "cache": "none"}
    elif values["block_length"].value is not None or (values["length"].value or generator.length) < generator.length:
        dropped = {"num_steps": 0}
    else:
        dropped = {}
    return {name: value for name, value in dropped.items() if name not in given}


def _takes_steps(made):
    from dlm_jax.sampling.transitions import ADAPTIVE

    name = str(made["transition"]).partition(":")[0]
    return name not in (*ADAPTIVE, "first_hitting")
