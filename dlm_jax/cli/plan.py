"""dlm plan: how many steps, of which sizes, in which order; the recommendation, and the report behind it."""

import pathlib
import re
import sys

from absl import flags

from dlm_jax.cli import options

EXAMPLE = "dlm plan --workdir demo --max_latency 0.5 --output plan.json"

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # numbers of steps that are looked at


def define_flags(values):
    options.define_workdir(values)
    options.define_json(values)
    flags.DEFINE_string(
        "curve", None, "curve.json; default WORKDIR/curve.json if it fits; without --workdir it is all that is used",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("num_steps", None, "the best with so many steps", flag_values=values)
    flags.DEFINE_float("max_kl", None, "the fewest steps within this error, nats per sequence", flag_values=values)
    flags.DEFINE_float("max_latency", None, "the best within so many seconds a batch", flag_values=values)
    flags.DEFINE_integer("num_samples", None, "also: the cheapest way to so many samples", flag_values=values)
    flags.DEFINE_float("price", None, "of a chip-hour, in your currency, with --num_samples", flag_values=values)
    flags.DEFINE_list("batch_size", ["4"], "batches that are timed; the first is planned for", flag_values=values)
    flags.DEFINE_list("orders", None, "orders to look at; default: several, see the report", flag_values=values)
    flags.DEFINE_list(
        "critical", [], "positions a-b that are revealed last, one at a time, given all else", flag_values=values
    )
    flags.DEFINE_integer("num_rows", 256, "rows to measure on", flag_values=values)
    flags.DEFINE_string("baseline", None, "workdir of an autoregressive baseline", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the orders", flag_values=values)
    flags.DEFINE_string("output", None, "JSON file; default WORKDIR/plan.json", flag_values=values)
    flags.DEFINE_bool("report", True, "write WORKDIR/report/index.html", flag_values=values)


def run(values):
    question = {name: values[name].value for name in ("num_steps", "max_kl", "max_latency")}
    _check(values, question)
    if values["workdir"].value:
        payload, output = _with_model(values, question)
    else:
        payload, output = _with_curve(values, question)
    options.emit(payload, output)


def _check(values, question):
    given = [name for name, value in question.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"--{given[0]}, --{given[1]}: only one of them can be given")
    for name in ("num_steps", "num_samples", "num_rows"):
        if values[name].value is not None and values[name].value < 1:
            raise ValueError(f"--{name}={values[name].value}: must be at least 1")
    for name in ("max_kl", "max_latency", "price"):
        if values[name].value is not None and not values[name].value >= 0:
            raise ValueError(f"--{name}={values[name].value}: must be at least 0")
    sizes = options.whole_numbers(values, "batch_size")
    if not sizes or min(sizes) < 1:
        raise ValueError(f"--batch_size={','.join(values['batch_size'].value)}: must be whole numbers of at least 1")
    options.check_seed(values)
    if values["price"].value is not None and values["num_samples"].value is None:
        raise ValueError("--price: needs --num_samples")
    if values["workdir"].value is None and values["curve"].value is None:
        raise ValueError("--workdir, --curve: at least one must be given")


def _steps(length, question):
    asked = [question["num_steps"]] if question["num_steps"] else []
    for steps in asked:
        if steps > length:
            raise ValueError(f"--num_steps={steps}: must be at most the length {length}")
    return sorted({*(t for t in STEPS if t <= length), *asked})


def _with_curve(values, question):
    """Random order only, nothing timed."""
    from dlm_jax.information import InformationCurve
    from dlm_jax.information import plan as plans

    for name in ("num_samples", "critical", "orders", "baseline"):
        if values[name].value:
            raise ValueError(f"--{name}: needs a --workdir, to time and to measure")
    curve = InformationCurve.load(values["curve"].value)
    steps = sorted({*_steps(curve.length, question), *range(1, min(curve.length, 257))})
    candidates = plans.candidates_of_curve(curve, steps)
    chosen, asked = plans.choose(candidates, **question)
    made = plans.Plan.of(
        chosen, curve.length, question=asked, tokenizer_sha256=curve.tokenizer_sha256, model_sha256=curve.model_sha256
    )
    if not values["json"].value:
        print(_recommendation(made, None), file=sys.stderr)
    return made.to_dict(), pathlib.Path(values["output"].value or "plan.json")


def _with_model(values, question):
    import dlm_jax

    workdir = pathlib.Path(values["workdir"].value)
    generator = dlm_jax.load(workdir)
    _steps(generator.length, question)
    curve = load_curve(generator, values["curve"].value)
    baseline = load_baseline(generator, values["baseline"].value)
    orders, num_critical = _orders(values, generator.length)
    rows = generator.rows(num_rows=values["num_rows"].value)
    quiet = values["json"].value
    batch_sizes = options.whole_numbers(values, "batch_size")
    survey = generator.survey(
        rows, orders=orders, curve=curve, batch_size=batch_sizes[0], baseline=baseline, seed=values["seed"].value,
        keep_in=workdir / "measured", quiet=quiet, num_single_last=num_critical,
    )  # fmt: skip
    made, chosen, candidates = decide(survey, question, generator, critical=num_critical > 0)
    output = pathlib.Path(values["output"].value or workdir / "plan.json")
    if values["num_samples"].value:
        others = [survey.latency] + [generator.measure_latency(size, quiet=quiet) for size in batch_sizes[1:]]
        made.details["cheapest"] = _cheapest(values, candidates, others, question["max_kl"])
    if not quiet:
        print(_recommendation(made, survey), file=sys.stderr)
    if values["report"].value:
        page = write_report(
            workdir / "report", generator, survey, made, chosen, candidates, quiet=quiet,
            samples=_samples(generator, made, values["seed"].value, quiet),
        )  # fmt: skip
        made.details["report"] = str(page)
        if not quiet:
            print(f"report   {page}", file=sys.stderr)
    return made.to_dict(), output


def _orders(values, length):
    """The orders to measure and the number of critical positions, with which a single fixed order ends."""
    import jax
    import numpy as np

    from dlm_jax import api
    from dlm_jax.information import orders

    names = values["orders"].value or list(api.DEFAULT_ORDERS)
    for name in names:
        if name != "computed":
            orders.check(name, "--orders")
    last = []
    for span in values["critical"].value:
        found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", span)
        first = int(found[1]) if found else 0
        stop = int(found[2]) if found and found[2] else first
        if not found or not first <= stop < length:
            raise ValueError(f"--critical={span}: must be positions a-b, a at most b, from 0 to {length - 1}")
        last += [place for place in range(first, stop + 1) if place not in last]
    if len(last) >= length:
        raise ValueError(f"--critical: {len(last)} positions must be fewer than the length {length}")
    if not last:
        return names, 0
    base = next((name for name in names if name not in ("random", "computed")), "spaced")
    order = np.asarray(orders.draw(base, jax.random.key(values["seed"].value), 1, length)[0])
    return [np.concatenate([order[~np.isin(order, last)], last]).astype(np.int32)], len(last)


def load_curve(generator, path):
    """The curve given, or the one in the workdir where it was measured with this model, or None."""
    from dlm_jax.data import tokenizers
    from dlm_jax.information import InformationCurve

    fits = (generator.length, tokenizers.sha256(generator.tokenizer), generator.sha256)
    if path is not None:
        curve = InformationCurve.load(path)
        curve.check_fits(*fits, name=f"--curve={path}")
        return curve
    default = generator.workdir / "curve.json"
    if not default.exists():
        return None
    curve = InformationCurve.load(default)
    try:
        curve.check_fits(*fits)
    except ValueError as stale:  # of an earlier checkpoint: measured anew
        print(f"{default}: not used: {stale}", file=sys.stderr)
        return None
    return curve


def load_baseline(generator, path):
    """The autoregressive model beside this one, or None."""
    from dlm_jax.cli.evaluate import load_baseline as load

    default = generator.workdir / "baseline"
    path = path or (default if default.is_dir() else None)
    return None if path is None else load(path, generator)


def decide(survey, question, generator, critical=False):
    """Returns (Plan, chosen Candidate, all Candidates)."""
    import dataclasses

    from dlm_jax.data import tokenizers
    from dlm_jax.information import plan as plans

    candidates = survey.candidates(_steps(survey.length, question))
    # With critical positions only the order that ends with them, and reveals them one by one, will do.
    eligible = candidates
    if critical:
        eligible = [c for c in candidates if not isinstance(c.order, str) and c.schedule == "planned"]
    chosen, asked = plans.choose(eligible, **question)
    details = {
        "frontier": [dataclasses.asdict(c) for c in plans.frontier(candidates)],
        "latency": survey.latency.to_dict() if survey.latency else None,
        "autoregressive": survey.baseline,
        "planned_minus_fixed": survey.planned_minus_fixed(_steps(survey.length, question)),
        "in_words": plans.in_words(chosen.sizes),
        "num_rows": len(survey.costs["random"].document),
        "bits_per_byte": [chosen.bits_per_byte, chosen.bits_per_byte_stderr],
    }
    made = plans.Plan.of(
        chosen, survey.length, question=asked, tokenizer_sha256=tokenizers.sha256(generator.tokenizer),
        model_sha256=generator.sha256, details=details,
    )  # fmt: skip
    return made, chosen, candidates


def _samples(generator, made, seed, quiet):
    """Texts at three step counts: few, the plan's, and one token a step."""
    from dlm_jax.progress import Progress

    length = generator.length
    ways = [
        (f"{min(4, length)} uniform steps, random order", {"num_steps": min(4, length), "order": "random"}),
        (f"the plan: {made.num_steps} steps", {"sizes": made.sizes, "order": made.order}),
        (f"one token a step, {length} steps, random order", {"num_steps": length, "order": "random"}),
    ]
    found = []
    with Progress("sampling", len(ways), quiet=quiet, interval=generator.config.log.progress_seconds) as progress:
        for label, way in ways:
            found.append((label, generator.sample(num_samples=1, seed=seed, **way).texts[0]))
            progress.update(len(found))
    return found


def _cheapest(values, candidates, latencies, max_kl):
    """The way to n samples that costs least, among those of at least the asked (or nearly the best) quality."""
    from dlm_jax.information import plan as plans

    if max_kl is None:
        best = min(c.nll_nats for c in candidates)
        fitting = [c for c in candidates if c.nll_nats <= (1 + plans.WITHIN) * best]
    else:
        fitting = [c for c in candidates if c.excess_nats + plans.MARGIN * c.excess_stderr <= max_kl]
    found = []
    for latency in latencies:
        for candidate in fitting:
            cost = plans.cost_of(
                values["num_samples"].value, latency.of(candidate.sizes), latency.batch_size, values["price"].value
            )
            found.append({
                "order": candidate.order_name, "schedule": candidate.schedule, "num_steps": candidate.num_steps,
                "sizes": list(candidate.sizes), "batch_size": latency.batch_size, **cost,
            })  # fmt: skip
    return min(found, key=lambda one: one["seconds"])


def _recommendation(made, survey):
    from dlm_jax.information import plan as plans

    order = made.order if isinstance(made.order, str) else "computed"
    lines = [
        f"asked    {made.question}",
        f"answer   {made.num_steps} steps, {order} order, {made.schedule} sizes: {plans.in_words(made.sizes)}",
        f"quality  {made.nll_nats:.3f} +- {made.stderr_nats:.3f} nats per sequence, {made.expected_kl_nats:+.3f} "
        "against one token at a time in random order",
    ]
    if made.seconds is not None:
        lines.append(f"latency  {made.seconds:.4g} s a batch of {survey.latency.batch_size} on {survey.latency.device}")
    if cheapest := made.details.get("cheapest"):
        money = "" if cheapest["money"] is None else f", {cheapest['money']:.4g} in money"
        lines.append(
            f"cheapest {cheapest['num_steps']} steps, {cheapest['order']} order, batches of {cheapest['batch_size']}: "
            f"{cheapest['chip_hours']:.4g} chip-hours{money}"
        )
    return "\n".join(lines)


def write_report(folder, generator, survey, made, chosen, candidates, *, samples=(), facts=(), figures=(), commands=(),
                 title="How to sample this model", details=None, quiet=False):  # fmt: skip
    """Draws the figures and writes the page; returns its path."""
    from dlm_jax.information import report
    from dlm_jax.progress import Progress

    folder = pathlib.Path(folder)
    with Progress("drawing the report", quiet=quiet, interval=generator.config.log.progress_seconds):
        folder.mkdir(parents=True, exist_ok=True)
        steps = sorted({c.num_steps for c in candidates})
        baseline = survey.baseline
        report.figure_curve(folder / "curve.png", survey.curve)
        report.figure_error(folder / "error.png", survey.curve, steps)
        report.figure_orders(folder / "orders.png", candidates, baseline.get("bits_per_byte"))
        report.figure_sizes(folder / "sizes.png", made)
        drawn = [
            ("orders.png", "Quality of the T-step sampler by order, with sizes planned on other documents. Bars: 2 "
             "standard errors of the difference."),
            ("curve.png", "The information curve: what a token leaves open when k others are revealed, with its "
             "95 % band."),
            ("error.png", "Error of sampling in random order against one token at a time, by schedule, with the bounds "
             "of the theory."),
            ("sizes.png", "The recommended sizes."),
        ]  # fmt: skip
        if survey.latency:
            report.figure_frontier(folder / "frontier.png", candidates, chosen, survey.latency, baseline, survey.length)
            drawn.insert(0, ("frontier.png", "Latency against quality; the star is the recommendation."))
        best = min((c for c in candidates if c.schedule == "planned"), key=lambda c: (c.nll_nats, c.num_steps))
        page = report.write(
            folder,
            title=title,
            lead=_lead(survey, made, chosen, candidates),
            facts=[*_facts(generator, survey, made, chosen), *facts],
            words=report.in_words(survey.curve),
            tables=[
                ("What the tokens share", report.dependence_table(survey.curve), "Nats; +- one standard error, "
                 "documents being the unit of sampling. A measured curve holds the model's error too."),
                ("Bits per byte by steps and order", report.steps_table(candidates), "Judged on documents that the "
                 "sizes were not planned on; +- one standard error, of the level. Differences between columns are "
                 "surer."),
                ("Steps saved at equal quality", report.saved_table(candidates, best.order_name), "Fewest steps, of "
                 "those looked at, that are at least as good as the first column; empty: none."),
                ("Planned sizes against fixed ones", _differences(made), "Random order, nats per sequence, paired on "
                 "documents that were not planned on; negative: planned is better."),
            ],
            figures=[*drawn, *figures],
            samples=samples,
            commands=commands or _commands(generator.workdir),
            details={"plan": made.to_dict(), "curve": survey.curve.to_dict(), **(details or {})},
        )  # fmt: skip
    return page


def _differences(made):
    rows = [
        (str(row["num_steps"]), row["schedule"], f"{row['difference_nats']:+.3f} +- {row['stderr_nats']:.3f}")
        for row in made.details["planned_minus_fixed"]
        if row["num_steps"] in (4, 8, 16)
    ]
    return ("T", "fixed schedule", "planned minus fixed"), rows


def _lead(survey, made, chosen, candidates):
    random = {(c.order_name, c.schedule, c.num_steps): c for c in candidates}
    usual = random.get(("random", "uniform", made.num_steps))
    text = (
        f"Recommended: {made.num_steps} steps in {chosen.order_name} order, {made.schedule} sizes. "
        f"It costs {chosen.bits_per_byte:.3f} bits per byte of held-out text"
    )
    if usual is not None and usual is not chosen:
        text += f"; as many uniform steps in random order cost {usual.bits_per_byte:.3f}"
    if survey.baseline:
        apart = chosen.bits_per_byte - survey.baseline["bits_per_byte"]
        verdict = f"better by {apart:.3f}" if apart > 0 else f"worse by {-apart:.3f}"
        text += (
            f". The autoregressive model of the same network costs {survey.baseline['bits_per_byte']:.3f}: {verdict}"
        )
    return text + "."


def _facts(generator, survey, made, chosen):
    facts = [
        ("Asked", made.question),
        ("Steps", f"{made.num_steps}: {made.details['in_words']}"),
        (
            "Quality",
            f"{chosen.bits_per_byte:.3f} +- {chosen.bits_per_byte_stderr:.3f} bits per byte; "
            f"{made.expected_kl_nats:+.2f} +- {chosen.excess_stderr:.2f} nats per sequence against "
            "one token at a time in random order",
        ),
    ]
    if survey.latency:
        per_sample = made.seconds / survey.latency.batch_size
        rate = survey.length / per_sample
        facts.append((
            "Latency",
            f"{made.seconds:.3g} s a batch of {survey.latency.batch_size} on {survey.latency.device}: {per_sample:.3g} "
            f"s a sample, {rate:,.0f} tokens per second",
        ))  # fmt: skip
        if survey.baseline:
            slow, fast = (survey.latency.autoregressive[n] * survey.length / survey.latency.batch_size
                          for n in ("uncached", "cached_floor"))  # fmt: skip
            facts.append((
                "Autoregressive, same network",
                f"{survey.baseline['bits_per_byte']:.3f} +- {survey.baseline['bits_per_byte_stderr']:.3f} bits per "
                f"byte; {slow:.3g} s a sample without a cache, no less than {fast:.3g} s with one",
            ))  # fmt: skip
    facts.append(("Measured on", f"{survey.curve.num_rows} rows of {survey.curve.num_documents} held-out documents"))
    data = generator.config.data
    cleaned = f", cleaned by {', '.join(data.normalize)}" if data.normalize else ""
    facts.append((
        "Model and data",
        f"{generator.denoiser.num_params:,} parameters after {generator.step} steps, weights sha256 "
        f"{generator.sha256[:12]}; {data.source}, {data.tokenizer} tokens{cleaned}, {survey.length} a sequence",
    ))  # fmt: skip
    return facts


def _commands(workdir):
    return [
        ("Sample with this plan", f"dlm sample --workdir {workdir} --plan {workdir}/plan.json"),
        ("Make this page again", f"dlm plan --workdir {workdir}"),
        ("Measure your own text", f"dlm measure --workdir {workdir} --corpus 'my/*.txt' --output my-curve.json"),
        ("Plan for a latency", f"dlm plan --workdir {workdir} --max_latency 0.5"),
    ]
