"""How the time of a training step and of a sampler grows: one axis at a time, around one small shape."""

import dataclasses
import pathlib

import numpy as np

from dlm_jax import config as configs
from dlm_jax import files
from dlm_jax.bench import timing, works
from dlm_jax.information import report

# axis -> values; the others stay as in `_base`.
_TRAIN = {
    "length": (64, 128, 256, 512),
    "batch_size": (4, 8, 16, 32),
    "vocab_size": (2048, 8192, 32768, 131072),
    "num_layers": (1, 2, 4, 8),
}
_SAMPLE = {"num_steps": (4, 8, 16, 32, 64)}
_FIELDS = {"length": "data.length", "batch_size": "train.batch_size", "num_layers": "model.num_layers"}


def _base():
    small, _ = works.reference_shapes()
    return dataclasses.replace(small, config=configs.with_overrides(small.config, {"train.batch_size": 8}))


def _with(shape, axis, value):
    if axis in _FIELDS:
        return dataclasses.replace(shape, config=configs.with_overrides(shape.config, {_FIELDS[axis]: value}))
    return dataclasses.replace(shape, **{axis: value})


def run(workdir, *, repeats=5, say=print):
    """Times every point in turn, fits exponents, and writes scaling.json and scaling.png.

    Args:
      workdir: folder.
      repeats: int, timed runs of each point.
      say: called with lines worth knowing.
    Returns:
      {"train": {axis: {"values", "seconds", "spread", "exponent", "required_exponent"}}, "sample": the same with
      "seconds_per_step", "fixed_seconds", "fixed_share" (of the largest number of steps)}: exponents are slopes of
      log(seconds), or of log(required operations), against log(value).
    """
    workdir = pathlib.Path(workdir)
    points = {}
    for kind, axes, make in (("train", _TRAIN, works.train), ("sample", _SAMPLE, works.sample)):
        for axis, values in axes.items():
            for value in values:
                work = make(_with(_base(), axis, value))
                points[kind, axis, value] = dataclasses.replace(work, name=f"{kind} {axis}={value}")
    timings = timing.measure(list(points.values()), repeats=repeats)
    found = {"train": {}, "sample": {}}
    for kind, axes in (("train", _TRAIN), ("sample", _SAMPLE)):
        for axis, values in axes.items():
            chosen = [points[kind, axis, value] for value in values]
            seconds = [timings[work.name]["seconds"] for work in chosen]
            found[kind][axis] = {
                "values": list(values), "seconds": seconds, "spread": [timings[work.name]["spread"] for work in chosen],
                "exponent": exponent(values, seconds),
                "required_exponent": exponent(values, [work.flops for work in chosen]),
            }  # fmt: skip
    steps = found["sample"]["num_steps"]
    per_step, fixed = np.polyfit(steps["values"], steps["seconds"], 1, w=1 / np.asarray(steps["seconds"]))
    steps |= {
        "seconds_per_step": float(per_step), "fixed_seconds": float(fixed),
        "fixed_share": float(fixed / steps["seconds"][-1]),
    }  # fmt: skip
    files.write_json(workdir / "scaling.json", found)
    report.figure_scaling(workdir / "scaling.png", found["train"] | found["sample"])
    for line in _table(found):
        say(line)
    say(f"figure {workdir / 'scaling.png'}")
    return found


def exponent(values, amounts):
    """Returns float, the least-squares slope of log(amounts) against log(values)."""
    return float(np.polyfit(np.log(values), np.log(amounts), 1)[0])


def _table(found):
    yield f"{'':18} {'seconds':44} {'exponent':>9} {'required':>9}"
    for kind, axes in found.items():
        for axis, entry in axes.items():
            pairs = zip(entry["values"], entry["seconds"], strict=True)
            listed = "  ".join(f"{value}: {seconds:.3f}" for value, seconds in pairs)
            yield f"{kind + ' ' + axis:18} {listed:44} {entry['exponent']:9.2f} {entry['required_exponent']:9.2f}"
    steps = found["sample"]["num_steps"]
    yield (
        f"a sampler takes {steps['seconds_per_step']:.4f} s a step and {steps['fixed_seconds']:+.4f} s whatever their "
        f"number ({steps['fixed_share']:+.1%} of {steps['values'][-1]} steps)"
    )
