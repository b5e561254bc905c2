"""dlm demo: the main job on the embedded corpus, inside a time that the user chooses."""

import dataclasses
import json
import math
import pathlib
import shutil
import sys
import time

from absl import flags

from dlm_jax.cli import options

EXAMPLE = "dlm demo --workdir demo --minutes 6"

_EVALUATION_SHARE = 0.08  # of the whole time, at most
_SURVEY_SHARE = 0.15
_ORDERS = ("random", "spaced", "blue_noise", "left_to_right", "computed")
# Forward passes a row that the survey costs: about 30 counts an order, half the head, and entropies beside losses.
_SURVEY_PASSES = 50 * len(_ORDERS)
# What evaluations, samplers and figures cost beside their rows: mostly compiling, as measuring a step does.
_FIXED_SECONDS = 45
_FIXED_PER_MEASUREMENT = 4


def define_flags(values):
    options.define_workdir(values, "folder for everything that the demo makes")
    options.define_json(values)
    flags.DEFINE_float("minutes", 6.0, "how long the demo may take in all, on any machine", flag_values=values)
    flags.DEFINE_string("config", "demo", "config file, or the name of a shipped one", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the run", flag_values=values)


def run(values):
    started = time.monotonic()
    workdir = pathlib.Path(options.required(values, "workdir"))
    minutes = values["minutes"].value
    if not 3 <= minutes < 1e6:  # compiling, evaluating and measuring take most of the first two
        raise ValueError(f"--minutes={minutes}: must be at least 3")
    config = dataclasses.replace(options.load_config_file(values["config"].value), seed=values["seed"].value)
    _say(f"dlm demo: {minutes:g} minutes, everything goes to {workdir}")
    from dlm_jax import config as configs
    from dlm_jax import files
    from dlm_jax.data import packing
    from dlm_jax.evaluation import evaluators, ngram
    from dlm_jax.progress import Progress
    from dlm_jax.training import loop

    deadline = started + 60 * minutes
    folders = {"diffusion": workdir, "autoregressive": workdir / "baseline"}
    runs = {"diffusion": loop.prepare(_resumed(config, workdir), workdir, say=_say)}
    shutil.copytree(loop.cache_dir(config, workdir), workdir / "baseline" / "data", dirs_exist_ok=True)
    runs["autoregressive"] = loop.prepare(
        _resumed(_autoregressive(config), workdir / "baseline"), workdir / "baseline", say=lambda line: None, quiet=True
    )
    with Progress("byte trigram", interval=config.log.progress_seconds):
        train_texts, validation_texts = packing.documents(config.data, loop.cache_dir(config, workdir))
        trigram = ngram.WittenBell(train_texts, order=3).bits_per_byte(validation_texts)
    _say(f"byte trigram (Witten-Bell) on the validation documents: {trigram:.3f} bits per byte")

    # The plan: measure one step of each model, keep time for evaluation, share the rest equally.
    seconds, measuring = {}, 0.0
    for name, prepared in runs.items():
        begun = time.monotonic()
        is_new = not _is_started(folders[name])
        seconds[name] = loop.measure_step_seconds(prepared, label=f"measuring the {name} step") if is_new else 0.0
        measuring = max(measuring, time.monotonic() - begun)
    fixed = max(_FIXED_SECONDS, _FIXED_PER_MEASUREMENT * measuring)
    plan = _Plan(config, runs["diffusion"], seconds["diffusion"], fixed, deadline - started, deadline)
    states = {}
    allowed = plan.training_seconds() / len(runs)  # the same for both
    for name, prepared in runs.items():
        folder = folders[name]
        if not _is_started(folder):
            num_steps = max(20, int(allowed * 0.95 / seconds[name]))
            resized = dataclasses.replace(
                prepared.config,
                train=dataclasses.replace(prepared.config.train, num_steps=num_steps),
                checkpoint=dataclasses.replace(prepared.config.checkpoint, every_steps=max(1, num_steps // 4)),
            )
            _say(
                f"{name}: {prepared.denoiser.num_params:,} parameters, {1000 * seconds[name]:.0f} ms a step, "
                f"{num_steps} steps in {allowed:.0f} s"
            )
            prepared = loop.prepare(resized, folder, say=lambda line: None, quiet=True)
        begun = time.monotonic()
        states[name] = (
            prepared,
            loop.train(prepared, stop_after_seconds=1.1 * allowed, label=f"training the {name} model"),
            time.monotonic() - begun,
        )
    payload = _evaluate(config, states, plan, trigram, evaluators)
    configs.save(states["diffusion"][0].config, workdir / "config.json")
    decision = _decide(workdir, config, plan, payload)
    samples = _sample(workdir, config, decision)
    payload["seconds"] = time.monotonic() - started
    page = _report(workdir, payload, samples, states, decision)
    files.write_json(workdir / "evaluate.json", payload)
    _conclude(workdir, payload, samples, page, values["json"].value, started, minutes)


@dataclasses.dataclass
class _Plan:
    """Shares the time that is left; evaluation rows are chosen so that evaluating fits its share."""

    config: object
    run: object
    step_seconds: float
    fixed_seconds: float
    total_seconds: float
    deadline: float

    def __post_init__(self):
        config, rows = self.config, len(self.run.corpus.validation)
        # One training step is about three forward passes of batch_size rows.
        per_row = self.step_seconds / (3 * config.train.batch_size)
        budget = _EVALUATION_SHARE * self.total_seconds
        passes = 2 * config.eval.num_orders + 1  # both models
        self.num_rows = rows if per_row == 0 else max(8, min(rows, int(0.5 * budget / (passes * per_row))))
        survey = _SURVEY_SHARE * self.total_seconds
        self.survey_rows = min(rows, 256)
        if per_row > 0:
            self.survey_rows = max(16, min(self.survey_rows, int(survey / (_SURVEY_PASSES * per_row))))
        self.reserve = self.fixed_seconds + per_row * (passes * self.num_rows + _SURVEY_PASSES * self.survey_rows)

    def training_seconds(self):
        """What is left for training, compiling included."""
        return max(10.0, self.deadline - time.monotonic() - self.reserve)


def _sample_steps(config):
    """8, 32, and one token a step; fewer where the rows are shorter."""
    return sorted({min(steps, config.data.length) for steps in (8, 32, config.data.length)})


def _autoregressive(config):
    """The same network, data, optimizer and batch; causal attention."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, attention="causal"),
        diffusion=dataclasses.replace(config.diffusion, objective="autoregressive"),
    )


def _is_started(workdir):
    from dlm_jax.training import checkpoint

    return bool(checkpoint.steps(workdir))


def _resumed(config, workdir):
    """The configuration of a demo that was interrupted here, or the one given."""
    from dlm_jax import config as configs

    return configs.load(workdir / "config.json") if _is_started(workdir) else config


def _evaluate(config, states, plan, trigram, evaluators):
    import jax

    key = jax.random.key(config.seed)
    payload = {"trigram_bits_per_byte": trigram, "t_step_bits_per_byte": {}, "t_step": {}}
    for name, (prepared, state, seconds) in states.items():
        rows = evaluators.spread_rows(prepared.corpus.validation, plan.num_rows)
        summary = evaluators.likelihood_summary(
            prepared.config, prepared.denoiser, state.ema, rows, key, mesh=prepared.mesh
        )
        payload[name] = {**summary, "num_steps": int(state.step), "training_seconds": seconds}
    return payload


def _decide(workdir, config, plan, payload):
    """Measures the curve and the cost of steps, plans, and writes curve.json and plan.json."""
    import dlm_jax
    from dlm_jax.cli import plan as planning

    generator = dlm_jax.load(workdir)
    baseline = dlm_jax.load(workdir / "baseline")
    rows = generator.rows(num_rows=plan.survey_rows)
    survey = generator.survey(
        rows, orders=_ORDERS, baseline=baseline, seed=config.seed, keep_in=workdir / "measured", quiet=False
    )
    survey.curve.save(workdir / "curve.json")
    made, chosen, candidates = planning.decide(survey, {"num_steps": None}, generator)
    made.save(workdir / "plan.json")
    for candidate in candidates:
        if (candidate.order_name, candidate.schedule) == ("random", "uniform"):
            steps = str(candidate.num_steps)
            payload["t_step"][steps] = candidate.nll_nats / generator.length
            payload["t_step_bits_per_byte"][steps] = [candidate.bits_per_byte, candidate.bits_per_byte_stderr]
    payload["survey_rows"] = len(rows)
    return generator, survey, made, chosen, candidates


def _sample(workdir, config, decision):
    """Three step counts of the usual kind, and the plan."""
    from dlm_jax import files
    from dlm_jax.progress import Progress

    generator, _, made, _, _ = decision
    ways = [({"num_steps": steps}, f"{steps} uniform steps in random order") for steps in _sample_steps(config)]
    ways.append(({"sizes": made.sizes, "order": made.order}, f"the plan: {made.num_steps} steps"))
    samples, lines = [], []
    for index, (way, label) in enumerate(ways):
        with Progress(f"sampling, {label}", interval=config.log.progress_seconds):
            seed = (config.seed + index) % 2**32
            out = generator.sample(num_samples=1, seed=seed, **({"order": "random"} | way))
        samples.append((f"{label} ({int(out.nfe[0])} denoiser calls)", out.texts[0]))
        lines.append(json.dumps({"text": out.texts[0], "nfe": int(out.nfe[0]), "num_steps": int(out.nfe[0])}))
    files.write_text(workdir / "samples.jsonl", "\n".join(lines) + "\n")
    return samples


def _report(workdir, payload, samples, states, decision):
    from dlm_jax.cli import plan as planning
    from dlm_jax.information import report

    generator, survey, made, chosen, candidates = decision
    curves = {}
    for name, (prepared, state, seconds) in states.items():
        lines = [json.loads(line) for line in (prepared.workdir / "metrics.jsonl").read_text().splitlines()]
        lines = [line for line in lines if line.get("loss") is not None]
        minutes = [line["step"] / int(state.step) * seconds / 60 for line in lines]
        curves[name] = (minutes, [line["loss"] / math.log(2) for line in lines])
    report.figure_loss(workdir / "report" / "loss.png", curves)
    return planning.write_report(
        workdir / "report", generator, survey, made, chosen, candidates, samples=samples, facts=_facts(payload),
        figures=[("loss.png", "Training loss. The diffusion loss is a noisy estimate of a bound; the other is exact.")],
        commands=_next(workdir), title="A diffusion language model, trained and measured just now",
        details={"evaluate": payload},
    )  # fmt: skip


def _facts(payload):
    diffusion, baseline = payload["diffusion"], payload["autoregressive"]
    return [
        (
            "Diffusion model, bound",
            f"{diffusion['bits_per_byte']:.3f} +- {diffusion['bits_per_byte_stderr']:.3f} bits per byte",
        ),
        (
            "Autoregressive baseline, same network and training time",
            f"{baseline['bits_per_byte']:.3f} +- {baseline['bits_per_byte_stderr']:.3f} bits per byte",
        ),
        ("Byte trigram (Witten-Bell)", f"{payload['trigram_bits_per_byte']:.3f} bits per byte"),
        (
            "Training",
            f"{diffusion['num_steps']} steps in {diffusion['training_seconds']:.0f} s; "
            f"baseline {baseline['num_steps']} steps in {baseline['training_seconds']:.0f} s",
        ),
        (
            "Held out",
            f"{diffusion['num_rows']} rows of {diffusion['num_documents']} documents; "
            f"steps and orders on {payload['survey_rows']} rows",
        ),
    ]


def _next(workdir):
    return [
        ("Sample with the plan", f'dlm sample --workdir {workdir} --plan {workdir}/plan.json --prompt "Return the"'),
        ("Ask for another plan", f"dlm plan --workdir {workdir} --max_latency 0.5"),
        ("Measure your own text", f"dlm measure --workdir {workdir} --corpus 'my/*.txt' --output my-curve.json"),
        ("Train on your own text", "dlm train --config demo --workdir runs/mine --config.data.source='my/*.txt'"),
    ]


def _conclude(workdir, payload, samples, page, only_json, started, minutes):
    if only_json:
        print(json.dumps(payload, indent=1))
        return
    for heading, text in samples:
        print(f"--- {heading}\n{text}\n")
    for label, value in _facts(payload):
        print(f"{label}: {value}")
    diffusion, trigram = payload["diffusion"], payload["trigram_bits_per_byte"]
    above = diffusion["bits_per_byte"] + 2 * diffusion["bits_per_byte_stderr"] - trigram
    if above < 0:
        print(f"The bound plus 2 standard errors lies {-above:.3f} bits per byte below the trigram.")
    else:
        print(
            f"The bound plus 2 standard errors is {above:.3f} bits per byte above the trigram: "
            f"{diffusion['num_steps']} steps were all that this machine could do in the time; try --minutes "
            f"{math.ceil(3 * minutes)} in another --workdir."
        )
    print(f"\nreport   {page}\nplan     {workdir / 'plan.json'}\ncurve    {workdir / 'curve.json'}")
    print(f"samples  {workdir / 'samples.jsonl'}\nnumbers  {workdir / 'evaluate.json'}")
    print("\nNext:")
    for what, command in _next(workdir):
        print(f"  {command}   # {what.lower()}")
    _say(f"finished in {time.monotonic() - started:.0f} s")


def _say(line):
    print(line, file=sys.stderr, flush=True)
