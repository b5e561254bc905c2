"""Does the order of revealing matter, and does training for the order? Two tables, beside an autoregressive baseline.

For every corpus and seed three models of one network, batch and number of steps: masks random, masks prefixes of the
spaced order, and left to right. Each diffusion model is then measured in several orders on the same held-out rows.

Where the data is known exactly, the order alone: Markov chains, which bisection samples without error in
ceil(log2(L + 1)) steps, and blocks of equal tokens at just the spacing of the spaced order, where it loses.
"""

import dataclasses
import json
import math
import pathlib

import jax
import numpy as np

from dlm_jax import config as configs
from dlm_jax import files, rng
from dlm_jax.data import packing
from dlm_jax.diffusion import schedules as noise
from dlm_jax.evaluation import dependence, evaluators, likelihood
from dlm_jax.information import InformationCurve, pairs, schedules, statistics
from dlm_jax.information import distributions as beds
from dlm_jax.information import plan as plans
from dlm_jax.information.orders import bisection_sizes, order_from_distances
from dlm_jax.sampling.plain import PlainDenoiser
from dlm_jax.training import checkpoint, loop

NUM_STEPS = (4, 8, 16, 32, 64)
MOST_STEPS = {"random": 64, "spaced": 32, "golden": 32, "left_to_right": 32}  # random needs more to come as far
ORDERS = tuple(MOST_STEPS)
TRAINED_FOR = ("random", "spaced")


def run(bases, workdir, *, seeds=(0, 1), num_rows=192, say=print):
    """Trains what is not trained yet, measures, and returns the tables.

    Args:
      bases: {label: RunConfig}, one a corpus; masking and seed are set here.
      workdir: folder; an interrupted study goes on where it stopped.
      seeds: ints.
      num_rows: int, held-out rows measured.
      say: called with lines worth knowing.
    Returns:
      {label: {"models": {name: {...}}, "table": rows of text}}.
    """
    workdir = pathlib.Path(workdir)
    found = {}
    for label, base in bases.items():
        models = {}
        for seed in seeds:
            for kind in (*TRAINED_FOR, "autoregressive"):
                folder = workdir / label / f"{kind}-{seed}"
                config = _config(base, kind, seed, workdir / label)
                models[f"{kind}-{seed}"] = _result(config, folder, kind, num_rows)
                say(f"{label} {kind} seed {seed}: {_headline(models[f'{kind}-{seed}'])}")
        found[label] = {"models": models, "table": _table(models, seeds)}
        for line in found[label]["table"]:
            say(line)
    files.write_json(workdir / "orders.json", found)
    return found


def known_beds(length):
    """Returns {name: distribution} of local dependence, and one whose dependence lies at the spacing."""
    block = length // 8
    return {
        "Markov chain M2": beds.stationary_markov_chain([[0.9, 0.1], [0.2, 0.8]], length),
        "sticky chain": beds.stationary_markov_chain([[0.99, 0.01], [0.02, 0.98]], length),
        # Positions i, i + L/8, i + 2L/8, ... are equal: the first eight of a spaced order are one block.
        "equal at the spacing": beds.Rearranged(
            beds.Blocks(beds.Repeated(4, 8), block), np.arange(length) % block * 8 + np.arange(length) // block
        ),
    }


def run_known(workdir, *, length=64, num_rows=1000, seed=0, say=print):
    """Measures orders with exact conditionals, and lets the planner choose; returns the errors by order and steps."""
    found = {}
    steps = [t for t in (2, 4, 8, 16, 32) if t <= length]
    for name, bed in known_beds(length).items():
        tokens = np.asarray(bed.sample(jax.random.key(seed), num_rows))
        rows = packing.Rows(tokens, np.full(num_rows, length), np.arange(num_rows))
        computed = order_from_distances(
            pairs.estimate(tokens, rows.document, bed.vocab_size, num_distances=length).by_distance, length
        )
        denoiser, costs = PlainDenoiser(bed.denoise, bed.mask_id), {}
        for label in ("random", "spaced", "golden", "blue_noise", "bisection", "left_to_right", "computed"):
            order = computed if label == "computed" else label
            costs[label], _ = dependence.measure(
                denoiser, None, noise.linear(), rows, order=order, counts=np.arange(length), batch_size=250,
                key=rng.stream(jax.random.key(seed), "known"), quiet=True,
            )  # fmt: skip
            if label == "random":
                curve = InformationCurve.measured(length, np.arange(length), costs[label].mean_losses, rows.document)
        survey = plans.Survey(curve, costs)
        candidates = survey.candidates(steps)
        log_p = bed.log_prob(tokens)
        entry = {
            label: {str(t): _error(one.nll(schedules.uniform_sizes(length, t)) + log_p) for t in steps}
            for label, one in costs.items()
        }
        halving = bisection_sizes(length)
        entry["bisection"]["exact"] = float(np.abs(costs["bisection"].nll(halving) + log_p).max())
        chosen = {str(t): plans.choose(candidates, num_steps=t)[0].order_name for t in steps}
        found[name] = {"kl": entry, "chosen": chosen}
        say(f"{name}, L = {length}: KL in nats, uniform sizes")
        for label, values in entry.items():
            cells = (f"  T={t} {values[str(t)][0]:8.4f} +- {values[str(t)][1]:.4f}" for t in steps)
            say(f"  {label:14}" + "".join(cells))
        if "chain" in name:
            exact = entry["bisection"]["exact"]
            say(f"  bisection by levels, {len(halving)} steps: largest error of a row {exact:.1e} nats")
        say("  the planner chooses " + ", ".join(f"{order} at T={t}" for t, order in chosen.items()))
    files.write_json(pathlib.Path(workdir) / "known.json", found)
    return found


def _error(nats):
    return [float(nats.mean()), float(nats.std(ddof=1) / math.sqrt(len(nats)))]


def _config(base, kind, seed, folder):
    data = dataclasses.replace(base.data, cache_dir=str(folder / "data"))
    model, diffusion = base.model, base.diffusion
    if kind == "autoregressive":
        model = dataclasses.replace(model, attention="causal", time_conditioning=False)
        diffusion = dataclasses.replace(diffusion, objective="autoregressive")
    elif kind != "random":
        diffusion = dataclasses.replace(diffusion, masking="order_prefix", order=kind, random_order_share=0.0)
    return dataclasses.replace(base, seed=seed, data=data, model=model, diffusion=diffusion)


def _result(config, folder, kind, num_rows):
    """What was found for this configuration and number of rows: from the folder, or trained and measured now."""
    path, asked = folder / "result.json", {"config": configs.to_dict(config), "rows": num_rows}
    asked = json.loads(json.dumps(asked))  # as it will be read
    if path.exists():
        found = files.read_json(path)
        if found["asked"] != asked:
            raise ValueError(f"{path}: holds the result of another configuration; give another --workdir")
        return found
    found = {**_train_and_measure(config, folder, kind, num_rows), "asked": asked}
    files.write_json(path, found)
    return found


def _train_and_measure(config, folder, kind, num_rows):
    run = loop.prepare(config, folder, say=lambda line: None, quiet=True)
    params = loop.train(run, label=f"training {folder.parent.name} {folder.name}").ema
    weights = checkpoint.params_sha256(params)
    rows = evaluators.spread_rows(run.corpus.validation, num_rows)
    key = rng.stream(jax.random.key(config.seed), "study")
    about = {
        "num_params": run.denoiser.num_params, "train_steps": config.train.num_steps, "num_rows": len(rows),
        "num_documents": len(np.unique(rows.document)), "length": config.data.length,
    }  # fmt: skip
    if kind == "autoregressive":
        summary = evaluators.likelihood_summary(config, run.denoiser, params, rows, key, mesh=run.mesh)
        return {**about, "bits_per_byte": summary["bits_per_byte"], "stderr": summary["bits_per_byte_stderr"]}
    length = config.data.length
    split = np.isin(rows.document, np.unique(rows.document)[::2])  # sizes are planned on one half of the documents
    by_order, vectors = {}, {}
    for order in ORDERS:
        steps = [t for t in NUM_STEPS if t <= min(length, MOST_STEPS[order])]
        counts = np.unique(np.concatenate([[t * length // s for t in range(s)] for s in steps]))
        kept = likelihood.Kept(folder / f"measured-{order}.npz", rows, weights, counts.tolist(), config.seed)
        costs, _ = dependence.measure(
            run.denoiser, params, evaluators.schedule_of(config), rows, order=order, counts=counts,
            batch_size=config.eval.batch_size, key=rng.stream(key, order), mesh=run.mesh, keep_in=kept,
            interval=config.log.progress_seconds,
        )  # fmt: skip
        planned = costs.select(split).planned_sizes(max(steps))
        uniform = {t: schedules.uniform_sizes(length, t) for t in steps}
        by_order[order] = {
            "uniform": {str(t): _bits(costs.summary(uniform[t])) for t in steps},
            "planned": {str(t): _bits(costs.select(~split).summary(planned[t])) for t in steps},
            "uniform_same_rows": {str(t): _bits(costs.select(~split).summary(uniform[t])) for t in steps},
        }
        vectors[order] = {t: costs.nll(uniform[t]) for t in steps}
    for order in ORDERS[1:]:  # the same rows under two orders: the difference is much surer than either
        by_order[order]["minus_random"] = {
            str(t): statistics.ratio(
                (vectors[order][t] - vectors["random"][t]) / math.log(2), rows.num_bytes, rows.document
            )
            for t in vectors[order]
        }
    return {**about, "orders": by_order}


def _bits(summary):
    return [summary["bits_per_byte"], summary["bits_per_byte_stderr"]]


def _headline(model):
    if "orders" not in model:
        return f"{model['bits_per_byte']:.3f} +- {model['stderr']:.3f} bits per byte, left to right"
    return ", ".join(f"{order} T=8 {values['uniform']['8'][0]:.3f}" for order, values in model["orders"].items())


def _table(models, seeds):
    """Markdown: bits per byte of uniform sizes, mean of the seeds, +- the larger of the two kinds of error."""
    columns = [(kind, order) for kind in TRAINED_FOR for order in ORDERS]
    heads = [f"masks {kind}, sampled {order}" for kind, order in columns]
    lines = ["| T | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    first = models[f"random-{seeds[0]}"]
    for t in first["orders"]["random"]["uniform"]:
        cells = []
        for kind, order in columns:
            if t not in first["orders"][order]["uniform"]:
                cells.append("")
                continue
            values = np.asarray([models[f"{kind}-{seed}"]["orders"][order]["uniform"][t] for seed in seeds])
            between = values[:, 0].std(ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
            cells.append(f"{values[:, 0].mean():.3f} +- {max(between, values[:, 1].mean()):.3f}")
        lines.append(f"| {t} | " + " | ".join(cells) + " |")
    baseline = np.asarray([[models[f"autoregressive-{s}"][n] for n in ("bits_per_byte", "stderr")] for s in seeds])
    lines.append(
        f"autoregressive, same network and training steps: {baseline[:, 0].mean():.3f} +- {baseline[:, 1].mean():.3f}"
    )
    return lines
