"""dlm bench: how fast training, sampling, likelihoods and data are, beside what this machine can do."""

import json
import pathlib
import sys
import time

from absl import flags

from dlm_jax.cli import options

EXAMPLE = "dlm bench --repeats 7 --only train/A,sample/A --history bench.jsonl"


def define_flags(values):
    options.define_json(values)
    flags.DEFINE_string("also", None, "Python file with works_beside(), a list of bench.timing.Work to time in turn",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_string("config", None, "config file, or the name of a shipped one, instead of A and B",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_string("vs", None, "another config, timed in turn with --config", flag_values=values)
    flags.DEFINE_integer("vocab_size", 32768, "of --config, as its tokenizer would give", flag_values=values)
    flags.DEFINE_integer("num_steps", 32, "of the sampler of --config", flag_values=values)
    flags.DEFINE_list("only", None, "names that begin so: train, sample/A, blocks, ...; default: all but blocks",
                      flag_values=values)  # fmt: skip
    flags.DEFINE_integer("repeats", 5, "timed runs of each, interleaved", flag_values=values)
    flags.DEFINE_string("history", None, "JSON-lines file: appended to; its last entry is compared with",
                        flag_values=values)  # fmt: skip


# Digests, signs of life and spans, as a share of the training between two saves.
_GUARDS_MAY_TAKE = 0.01


def _beside(path):
    """The Works of a Python file that defines works_beside()."""
    import runpy

    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"--also={path!r}: no such file")
    try:
        scope = runpy.run_path(path)
        if "works_beside" in scope:
            return scope["works_beside"]()
    except Exception as error:  # the file is a program: anything can happen in it
        raise ValueError(f"--also={path}: {type(error).__name__}: {error}") from None
    raise ValueError(f"--also={path}: must define works_beside()")


def run(values):
    for name, low in (("repeats", 1), ("num_steps", 1), ("vocab_size", 2)):
        if values[name].value < low:
            raise ValueError(f"--{name}={values[name].value}: must be at least {low}")
    from dlm_jax.bench import timing, works

    given = {flag: values[flag].value for flag in ("config", "vs") if values[flag].value is not None}
    if values["vs"].value is not None and values["config"].value is None:
        raise ValueError(f"--vs={values['vs'].value}: needs --config, the first of the two")
    if len({pathlib.Path(path).stem for path in given.values()}) < len(given):
        raise ValueError(f"--vs={values['vs'].value}: must have another name than --config={values['config'].value}")
    shapes = [
        works.Shape(
            pathlib.Path(path).stem,
            options.load_config_file(path, flag),
            values["vocab_size"].value,
            values["num_steps"].value,
        )
        for flag, path in given.items()
    ] or works.reference_shapes()
    history = values["history"].value
    before = _read(history)
    makers = works.MAKERS
    only = values["only"].value or list(makers)
    names = {f"{kind}/{shape.name}": (make, shape) for kind, make in makers.items() for shape in shapes}
    wanted = [name for name in names if any(name.startswith(start) for start in only)]
    blocks = any("blocks".startswith(start) or start.startswith("blocks") for start in only)
    if not wanted and not blocks:
        raise ValueError(f"--only={','.join(only)}: must begin one of {', '.join(names)}, blocks")
    dtype = shapes[0].denoiser.dtype
    beside = [] if values["also"].value is None else _beside(values["also"].value)
    chosen = [*timing.ceilings(dtype), *(names[name][0](names[name][1]) for name in wanted)]
    if blocks:
        chosen += works.cached_sampling(shapes[0])
    chosen += [work for work in beside if any(work.name.startswith(start) for start in only)]
    timings = timing.measure(chosen, repeats=values["repeats"].value, quiet=values["json"].value)
    ceiling, rows = timing.table(chosen, timings)
    too_much = _judge_guards(rows)
    payload = {"ceiling": ceiling, "rows": rows}
    if history:
        with open(history, "a") as file:
            file.write("\n" * _is_torn(history) + json.dumps({"time": time.time(), **payload}) + "\n")
    if values["json"].value:
        print(json.dumps(payload, indent=1))
    else:
        print("\n".join(_lines(payload, before, ceiling["device"])))
    for row in too_much:
        print(f"{row['name']}: more than {_GUARDS_MAY_TAKE:.0%} of the training that it guards", file=sys.stderr)
    return 1 if too_much else 0


def _judge_guards(rows):
    """Adds to the rows of guards their share of the training between two saves; returns those above the limit."""
    seconds = {row["name"]: row["seconds"] for row in rows}
    found = [row for row in rows if row["name"].startswith("guards/")]
    for row in found:
        train = seconds.get(row["name"].replace("guards/", "train/"))
        row["share_of_training"] = row["seconds"] / (row["steps"] * train) if train else None
    return [row for row in found if (row["share_of_training"] or 0) > _GUARDS_MAY_TAKE]


def _is_torn(history):
    """Whether the file does not end with a whole line, as after a crash."""
    text = pathlib.Path(history).read_text()
    return bool(text) and not text.endswith("\n")


def _read(history):
    """The last entry of a history, or None."""
    if history is None or not pathlib.Path(history).exists():
        return None
    last = None
    for number, line in enumerate(pathlib.Path(history).read_text().splitlines(), start=1):
        try:
            last = json.loads(line)
            if not isinstance(last["rows"], list):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            print(f"{history}: line {number} is no entry of dlm bench; passed over", file=sys.stderr)
    return last


def _lines(payload, before, device):
    ceiling = payload["ceiling"]
    earlier = {}
    if before is not None and before["ceiling"].get("device") == device:
        earlier = {row["name"]: row["seconds"] for row in before["rows"]}
    yield (
        f"ceiling: {ceiling['flops_per_second'] / 1e9:,.0f} GFLOP/s in matrix products, "
        f"{ceiling['bytes_per_second'] / 1e9:.1f} GB/s copied, {ceiling['num_devices']} x {device}"
    )
    yield (
        f"{'':26} {'seconds':>10} {'+-':>8} {'tokens/s':>12} {'of ceiling':>10} {'memory':>10} "
        f"{'compile':>8} {'asking':>9}  before"
    )
    for row in payload["rows"]:
        share = "" if row["share_of_ceiling"] is None else f"{row['share_of_ceiling']:.2f}"
        memory = "" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB"
        rate = "" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}"
        asking = "" if row["dispatch_seconds"] is None else f"{1e3 * row['dispatch_seconds']:.2f} ms"
        past = f"{earlier[row['name']] / row['seconds']:.2f}x as fast" if row["name"] in earlier else ""
        yield (
            f"{row['name']:26} {row['seconds']:10.4f} {row['spread']:8.4f} {rate:>12} {share:>10} {memory:>10} "
            f"{row.get('compile_seconds', row['first_seconds']):8.1f} {asking:>9}  {past}"
        )
        if row.get("share_of_training"):
            yield f"{'':26} {row['share_of_training']:.3%} of the {row['steps']} training steps between two saves"
