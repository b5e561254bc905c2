"""Does the prediction hold? Losses at all counts predict every schedule; sampling's own likelihood measures it.

For T x schedules x orders: the costs of steps, measured once, predict the nats of the T-step sampler on some documents;
its likelihood is then measured step by step on the others. Every combination splits the documents anew, so that the
comparisons are independent, and the two sides never share a document.
"""

import math
import pathlib

import jax
import numpy as np

from dlm_jax import files, rng
from dlm_jax.evaluation import evaluators, likelihood
from dlm_jax.information import InformationCurve, orders, plan, schedules, statistics
from dlm_jax.progress import Progress

NUM_STEPS = (2, 3, 4, 8, 16, 32)
ORDERS = ("random", "spaced", "left_to_right")


def run(generator, workdir, *, num_rows=200, seed=0, say=print):
    """Returns {"combinations": [...], "root_mean_square_z", "largest_z", "planned_minus_fixed": [...]}.

    Args:
      generator: Generator, of a diffusion model.
      workdir: folder for the measurements and prediction.json.
      num_rows: int, validation rows.
      seed: int, of the orders and the splits.
      say: called with lines worth knowing.
    """
    workdir = pathlib.Path(workdir)
    rows = generator.rows(num_rows=num_rows)
    length = generator.length
    steps = [t for t in NUM_STEPS if t < length]
    predicted = {}
    for order in ORDERS:
        predicted[order], _ = generator.measure_order(
            order, rows, counts=np.arange(length), seed=seed, keep_in=workdir / f"predicted-{order}.npz", quiet=False
        )
    measured = _measure(generator, rows, steps, seed + 1, workdir)
    combinations = []
    documents = np.unique(rows.document)
    for index, (order, name, num_steps) in enumerate(measured):
        sizes = schedules.FIXED[name](length, num_steps)
        chosen = np.random.default_rng([seed, index]).permutation(documents)[: len(documents) // 2]
        here = np.isin(rows.document, chosen)
        (left, left_error), (right, right_error) = (
            statistics.ratio(nats[mask], np.ones(mask.sum()), rows.document[mask])
            for nats, mask in ((predicted[order].nll(sizes), here), (measured[order, name, num_steps], ~here))
        )
        stderr = math.hypot(left_error, right_error)
        combinations.append({
            "order": order, "schedule": name, "num_steps": num_steps, "predicted": left, "measured": right,
            "stderr": stderr, "z": (left - right) / stderr,
        })  # fmt: skip
    z = np.asarray([one["z"] for one in combinations])
    same = [
        statistics.ratio(
            predicted[order].nll(schedules.FIXED[name](length, t)) - nats, np.ones(len(nats)), rows.document
        )
        for (order, name, t), nats in measured.items()
        if order != "left_to_right"  # one order for all: nothing but rounding differs
    ]
    found = {
        "combinations": combinations,
        "root_mean_square_z": float(np.sqrt(np.mean(z**2))),
        "largest_z": float(np.abs(z).max()),
        "same_rows_largest_z": max(abs(value) / error for value, error in same),
        "num_rows": len(rows),
        "num_documents": len(documents),
    }
    for one in combinations:
        say(
            f"{one['order']:14} {one['schedule']:15} T = {one['num_steps']:3}  predicted {one['predicted']:9.3f}  "
            f"measured {one['measured']:9.3f}  difference {one['predicted'] - one['measured']:+8.3f} +- "
            f"{one['stderr']:.3f}  z {one['z']:+.2f}"
        )
    say(
        f"{len(combinations)} combinations on disjoint documents: largest |z| {found['largest_z']:.2f}, root mean "
        f"square {found['root_mean_square_z']:.2f}; on the same rows with other orders drawn, largest |z| "
        f"{found['same_rows_largest_z']:.2f}"
    )
    random = predicted["random"]
    curve = InformationCurve.measured(length, random.counts, random.mean_losses, random.document)
    found["planned_minus_fixed"] = plan.Survey(curve, {"random": random}).planned_minus_fixed(steps)
    for one in found["planned_minus_fixed"]:
        say(
            f"planned minus {one['schedule']:15} T = {one['num_steps']:3}  {one['difference_nats']:+8.3f} +- "
            f"{one['stderr_nats']:.3f} nats per sequence, on documents that were not planned on"
        )
    files.write_json(workdir / "prediction.json", found)
    return found


def _measure(generator, rows, steps, seed, workdir):
    """{(order, schedule, T): float64[N]}, nats of each row under the T-step sampler, step by step."""
    length, found = generator.length, {}
    schedule = evaluators.schedule_of(generator.config)
    total = len(ORDERS) * len(schedules.FIXED) * len(steps)
    with Progress("measuring step by step", total) as progress:
        for num_steps in steps:
            made = {name: make(length, num_steps) for name, make in schedules.FIXED.items()}
            widest = int(max(sizes.max() for sizes in made.values()))  # one program for all four
            for order in ORDERS:
                key = rng.stream(rng.stream(jax.random.key(seed), f"measured {order}"), "order", num_steps)
                drawn = np.asarray(orders.draw(order, key, len(rows), length))
                for name, sizes in made.items():
                    losses = likelihood.t_step(generator.denoiser, generator.params, schedule, sizes, None, widest)
                    path = workdir / f"measured-{order}-{name}-{num_steps}.npz"
                    found[order, name, num_steps] = likelihood.row_losses(
                        losses, rows, batch_size=generator.config.eval.batch_size, key=key, quiet=True, inputs=(drawn,),
                        keep_in=likelihood.Kept(path, rows, generator.sha256, seed),
                    )  # fmt: skip
                    progress.update(progress.done + 1)
    return found
