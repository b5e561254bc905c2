"""dlm measure: how much the tokens of a corpus depend on each other, and what that costs a parallel sampler."""

import pathlib
import sys

from absl import flags

from dlm_jax.cli import options

EXAMPLE = "dlm measure --workdir demo --corpus 'reports/*.txt' --output curve.json"


def define_flags(values):
    flags.DEFINE_multi_string(
        "workdir", None, "folder of a run; twice, to compare two models; none: counts of pairs only", flag_values=values
    )
    options.define_json(values)
    flags.DEFINE_multi_string(
        "corpus", None, "text files, a glob, embedded or tfds:NAME; twice, to compare; default: the validation rows",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list("normalize", [], "compare with the corpus after nfkc, casefold, whitespace", flag_values=values)
    flags.DEFINE_string("terminology", "", "compare after replacing terms (CSV: variant,canonical)", flag_values=values)
    flags.DEFINE_integer("num_rows", 512, "at most so many rows", flag_values=values)
    flags.DEFINE_integer("num_counts", 24, "at most so many numbers of revealed tokens", flag_values=values)
    flags.DEFINE_integer("length", 128, "tokens a row, where there is no model", flag_values=values)
    flags.DEFINE_string("tokenizer", "bytes", "where there is no model: bytes or a tokenizer.json", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the orders", flag_values=values)
    flags.DEFINE_string("output", None, "JSON file; default WORKDIR/curve.json", flag_values=values)


def run(values):
    corpora = values["corpus"].value or [None]
    workdirs = values["workdir"].value or [None]
    steps = tuple(values["normalize"].value)
    terminology = values["terminology"].value
    is_cleaning = bool(steps or terminology)
    _check(values, corpora, workdirs, is_cleaning)
    if is_cleaning:
        subjects = [(workdirs[0], corpora[0], (), ""), (workdirs[-1], corpora[0], steps, terminology)]
    elif len(workdirs) == 2:
        subjects = [(workdirs[0], corpora[0], (), ""), (workdirs[1], corpora[-1], (), "")]
    else:
        subjects = [(workdirs[0], corpus, (), "") for corpus in corpora]
    if is_cleaning:
        from dlm_jax.data.normalize import make_normalizer

        make_normalizer(steps, terminology)  # a wrong table is refused before the long work
    outputs = _outputs(values, workdirs, len(subjects))
    if workdirs == [None]:
        payload = _without_model(values, subjects)
        options.emit(payload, outputs[-1])
        return
    import dlm_jax

    generators = {workdir: dlm_jax.load(workdir) for workdir in workdirs}
    curves, records = [], []
    for (workdir, *subject), output in zip(subjects, outputs, strict=False):
        curve, record = _measured(values, generators[workdir], *subject, output)
        curves.append(curve)
        records.append(record)
        if not values["json"].value:
            print(_table(curve, record, output), file=sys.stderr)
    if len(curves) == 1:
        options.emit(records[0], outputs[0])
        return
    from dlm_jax.information.comparison import compare

    payload = compare(curves[0], curves[1], (4, 8, 16, 32))
    payload["subjects"] = [record["provenance"] for record in records]
    if not values["json"].value:
        print(_comparison(payload), file=sys.stderr)
    options.emit(payload, outputs[-1])


def _check(values, corpora, workdirs, is_cleaning):
    if len(corpora) > 2 or len(workdirs) > 2:
        raise ValueError("--corpus, --workdir: at most two of each can be compared")
    if is_cleaning and len(corpora) > 1:
        raise ValueError("--normalize, --terminology: compare one --corpus before and after; give it once")
    if is_cleaning and corpora == [None]:
        raise ValueError("--normalize, --terminology: need a --corpus of text")
    if workdirs == [None] and corpora == [None]:
        raise ValueError("--workdir, --corpus: at least one must be given")
    for name, low in (("num_rows", 1), ("num_counts", 2), ("length", 2)):
        if values[name].value < low:
            raise ValueError(f"--{name}={values[name].value}: must be at least {low}")
    options.check_seed(values)
    from dlm_jax.data.normalize import STEPS

    unknown = [step for step in values["normalize"].value if step not in STEPS]
    if unknown:
        raise ValueError(f"--normalize={unknown[0]}: must be one of {', '.join(STEPS)}")


def _outputs(values, workdirs, count):
    """Where each curve goes, and last the comparison."""
    default = "curve.json" if workdirs[0] is None else pathlib.Path(workdirs[0]) / "curve.json"
    last = pathlib.Path(values["output"].value or default)
    if count == 1:
        return [last]
    return [*(last.with_name(f"{last.stem}-{index + 1}.json") for index in range(count)), last]


def _measured(values, generator, corpus, steps, terminology, output):
    """Measures, saves the curve and returns it with its JSON record."""
    from dlm_jax import files
    from dlm_jax.information import pairs

    quiet, num_counts = values["json"].value, values["num_counts"].value
    rows = generator.rows(
        corpus, num_rows=values["num_rows"].value, normalize=steps, terminology=terminology, quiet=quiet,
        say=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    if not quiet:
        passes = len(rows) * min(num_counts, generator.length)
        flops = passes * generator.length * generator.denoiser.flops(generator.length, 0.5)
        print(
            f"{len(rows)} rows x {min(num_counts, generator.length)} counts: {passes} forward passes of "
            f"{generator.length} tokens, {flops / 1e12:.3g} TFLOP",
            file=sys.stderr,
        )
    provenance = {
        "workdir": str(generator.workdir),
        "corpus": corpus or "validation rows",
        "normalize": list(steps),
        "terminology": terminology,
    }
    curve = generator.measure(
        rows, num_counts=num_counts, seed=values["seed"].value, quiet=quiet, provenance=provenance,
        keep_in=output.with_name(f"{output.stem}.rows.npz"),
    )  # fmt: skip
    record = curve.to_dict()
    try:
        record["pairs"] = pairs.estimate(rows.tokens, rows.document, generator.tokenizer.vocab_size).to_dict()
    except ValueError as error:
        record["pairs"] = {"not_estimated": str(error)}
    files.write_json(output, record)
    return curve, record


def _without_model(values, subjects):
    """Counts of tokens and pairs only: a look before any training."""
    import tempfile

    from dlm_jax.config import DataConfig
    from dlm_jax.data import packing, sources, tokenizers
    from dlm_jax.information import pairs

    found = []
    for _, corpus, steps, terminology in subjects:
        config = DataConfig(
            source=corpus, length=values["length"].value, normalize=steps, terminology=terminology,
            tokenizer=values["tokenizer"].value,
        )  # fmt: skip
        report = sources.Report()
        if config.tokenizer == "bpe":
            raise ValueError("--tokenizer=bpe: has to be trained; give bytes or the path of a tokenizer.json")
        tokenizer = tokenizers.make_tokenizer(config.tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            texts = packing.all_documents(config, folder, report)
        rows, _ = packing.wrap(texts, tokenizer, config.length, name=corpus, report=report)
        for line in report.lines():
            print(line, file=sys.stderr)
        estimate = pairs.estimate(rows.tokens, rows.document, tokenizer.vocab_size)
        found.append({
            "corpus": corpus, "normalize": list(steps), "terminology": terminology, "num_rows": len(rows),
            "num_documents": len(texts), "characters": sum(map(len, texts)), **estimate.to_dict(),
        })  # fmt: skip
        if not values["json"].value:
            unigram, one = estimate.unigram_entropy, estimate.one_revealed_entropy
            print(
                f"{corpus}: f(0) {unigram[0]:.4f} +- {unigram[1]:.4f}, f(1) {one[0]:.4f} +- {one[1]:.4f} nats per "
                f"token; neighbours share {estimate.pair_information[0]:.4f} +- {estimate.pair_stderr[0]:.4f} nats",
                file=sys.stderr,
            )
    return {"model_free": found}


def _table(curve, record, output):
    lines = []
    from dlm_jax.information.curve import QUANTITIES

    for name, found in record["summary"].items():
        per_character = "" if found["per_character"] is None else f", {found['per_character']:.4f} per character"
        lines.append(
            f"{QUANTITIES[name]:27} {found['nats']:9.3f} +- {found['stderr']:.3f} nats per sequence, "
            f"{found['per_token']:.4f} per token{per_character}"
        )
    gap = curve.raw_entropy - curve.predictive_entropy
    worst = abs(gap).argmax()
    lines.append(
        f"calibration: losses minus predicted entropies are at most {abs(gap[worst]):.4f} +- "
        f"{curve.calibration_stderr[worst]:.4f} nats per token (at {curve.counts[worst]} revealed); 0 for a calibrated "
        "model"
    )
    lines.append(
        "The model's own error is inside these losses: f(0) is usually near the truth, f(L-1) too high, so the sum of "
        "mutual informations is usually a lower estimate."
    )
    lines.append(f"written to {output}")
    return "\n".join(lines)


def _comparison(payload):
    lines = ["", "change                       before     after      change, 95 % interval"]
    for name, units in payload["quantities"].items():
        for unit, found in units.items():
            lines.append(
                f"{name[:22]:22} {unit[4:]:10} {found['before']:9.4f} {found['after']:9.4f}  {found['change']:+.4f} "
                f"[{found['low']:+.4f}, {found['high']:+.4f}]"
            )
    lines.append("expected error, nats per sequence")
    for row in payload["schedules"]:
        lines.append(
            f"  T = {row['num_steps']:3} {row['schedule']:15} {row['before']:9.4f} {row['after']:9.4f}  "
            f"{row['change']:+.4f} +- {row['stderr']:.4f}"
        )
    lines += [f"note: {warning}" for warning in payload["warnings"]]
    return "\n".join(lines)
