"""Does cleaning show? A corpus with planted notation variants, whose dependence is known exactly, before and after.

Documents are a Markov chain over a few letters; a hidden choice of each document writes most of its letters in upper
or lower case. Case folding removes exactly that choice: the truth of the drop is the curve of the noisy bit alone.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np

import dlm_jax
from dlm_jax import config as configs
from dlm_jax import files, rng
from dlm_jax.information import InformationCurve, distributions, error, pairs, schedules
from dlm_jax.information.comparison import compare
from dlm_jax.training import loop

_LETTERS = "abc"
_CHAIN = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]
_NOISE = 0.1  # share of letters in the document's other case


def run(workdir, *, num_documents=20000, letters=31, num_steps=1200, num_rows=1000, seed=0, say=print):
    """Writes the corpus, trains one model a version, measures both, and compares with the truth.

    Args:
      workdir: folder; finished trainings are not repeated.
      num_documents: int.
      letters: int, of a document; with end-of-text it is one row.
      num_steps: int, of training.
      num_rows: int, validation rows measured.
      seed: int.
      say: called with lines worth knowing.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "variants.jsonl"
    if not path.exists():
        _write(path, num_documents, letters, seed)
    curves, counted = [], []
    for name, normalize in (("before", ()), ("after", ("casefold",))):
        config = _config(str(path), letters + 1, normalize, num_steps, seed)
        run = loop.prepare(config, workdir / name, say=lambda line: None, quiet=True)
        loop.train(run, label=f"training on the corpus {name} cleaning")
        generator = dlm_jax.load(workdir / name)
        rows = generator.rows(num_rows=num_rows)
        curves.append(
            generator.measure(
                rows, num_counts=letters + 1, seed=seed, quiet=False, keep_in=workdir / f"{name}.rows.npz",
                provenance={"corpus": f"variants, {name} cleaning"},
            )
        )  # fmt: skip
        curves[-1].save(workdir / f"curve-{name}.json")
        train = run.corpus.train
        letters_only = np.asarray(train.tokens)[:, :-1]  # counts of pairs need rows whose places are alike
        counted.append(pairs.estimate(letters_only, train.document, generator.tokenizer.vocab_size))
    before, after = truth(letters)
    payload = compare(*curves, (2, 4, 8, 16))
    payload["truth"] = {
        "mutual_information": [before.mutual_information, after.mutual_information],
        "one_revealed": [float(entropy[0] - entropy[1]) for entropy in _letters(letters)],
    }
    payload["checks"] = _check(payload, curves, (before, after), counted, say)
    payload["planned"] = _planned(curves, (before, after), say)
    for warning in payload["warnings"]:
        say(f"note: {warning}")
    files.write_json(workdir / "cleaning.json", payload)
    return payload


def truth(letters):
    """Returns the exact curves (before, after) of rows of so many letters and an end-of-text."""
    before, after = _letters(letters)
    return _with_end(before), _with_end(after)


def _letters(letters):
    """f(k) of the letters alone, before and after: letter and case are independent, so their curves add."""
    chain = distributions.stationary_markov_chain(_CHAIN, letters)
    case = distributions.Exchangeable([0.5, 0.5], [[1 - _NOISE, _NOISE], [_NOISE, 1 - _NOISE]], letters)
    folded = chain.curve().entropy
    return folded + case.curve().entropy, folded


def _with_end(entropy):
    """The curve of a row that holds one more token, which is always the same and so tells nothing."""
    count = len(entropy) + 1
    totals = np.concatenate([[0.0], np.cumsum(entropy)])  # F(k) of the letters
    k = np.arange(count + 1)
    has_end = k / count
    mean = (1 - has_end) * totals[np.minimum(k, count - 1)] + has_end * totals[np.maximum(k - 1, 0)]
    return InformationCurve.exact(np.diff(mean))


def _write(path, num_documents, letters, seed):
    key = rng.stream(jax.random.key(seed), "cleaning")
    chain = distributions.stationary_markov_chain(_CHAIN, letters)
    drawn = np.asarray(chain.sample(rng.stream(key, "letters"), num_documents))
    rare = np.asarray(jax.random.bernoulli(rng.stream(key, "noise"), _NOISE, drawn.shape))
    style = np.asarray(jax.random.bernoulli(rng.stream(key, "style"), 0.5, (num_documents, 1)))
    upper = style ^ rare
    table = np.asarray([list(_LETTERS), list(_LETTERS.upper())])
    texts = ["".join(row) for row in table[upper.astype(int), drawn]]
    files.write_text(path, "\n".join(json.dumps({"text": text}) for text in texts) + "\n")


def _config(source, length, normalize, num_steps, seed):
    base = configs.RunConfig()
    return configs.from_dict(
        dataclasses.asdict(base)
        | {
            "seed": seed,
            "data": {"source": source, "tokenizer": "bytes", "length": length, "normalize": list(normalize)},
            "model": {"num_layers": 2, "embed_dim": 64, "num_heads": 2},
            "optimizer": {"name": "muon", "learning_rate": 1e-2, "warmup_steps": 20},
            "train": {"num_steps": num_steps, "batch_size": 64, "ema_decay": 0.99},
            "checkpoint": {"every_steps": num_steps},
        }
    )


def _check(payload, curves, exact, counted, say):
    found = {}
    change = payload["quantities"]["mutual_information"]["per_sequence"]
    wanted = exact[1].mutual_information - exact[0].mutual_information
    found["mutual_information"] = {**change, "truth": wanted, "covers": change["low"] <= wanted <= change["high"]}
    say(
        f"sum of mutual informations: {change['before']:.3f} -> {change['after']:.3f}, change {change['change']:+.3f} "
        f"[{change['low']:+.3f}, {change['high']:+.3f}] nats per sequence; truth {wanted:+.3f}: "
        f"{'covered' if found['mutual_information']['covers'] else 'NOT covered'}"
    )
    per_character = payload["quantities"]["mutual_information"]["per_character"]
    say(f"  per character {per_character['change']:+.4f} [{per_character['low']:+.4f}, {per_character['high']:+.4f}]")
    for name, curve, known in zip(("before", "after"), curves, exact, strict=True):
        gap = float(np.mean(curve.entropy - known.entropy))
        say(
            f"  model gap {name}: {gap:+.4f} nats per token on average, "
            f"{curve.entropy[-1] - known.entropy[-1]:+.4f} at the end"
        )
        found[f"gap_{name}"] = gap
    drop = [e.unigram_entropy[0] - e.one_revealed_entropy[0] for e in counted]
    known = payload["truth"]["one_revealed"]
    say(
        f"model-free, f(0) - f(1): {drop[0]:.5f} -> {drop[1]:.5f} nats per token, truth {known[0]:.5f} -> "
        f"{known[1]:.5f}"
    )
    found["model_free"] = {"one_revealed": drop, "truth": known}
    return found


def _planned(curves, exact, say):
    found = []
    for steps in (2, 4, 8, 16):
        old = schedules.optimal_sizes(curves[0], steps)
        new = schedules.optimal_sizes(curves[1], steps)
        found.append({
            "num_steps": steps, "error_before": error.expected_kl(exact[0], old),
            "old_plan_after": error.expected_kl(exact[1], old), "new_plan_after": error.expected_kl(exact[1], new),
        })  # fmt: skip
        say(
            f"T = {steps:2}: true error {found[-1]['error_before']:.3f} before; after cleaning "
            f"{found[-1]['old_plan_after']:.3f} with the old plan, {found[-1]['new_plan_after']:.3f} planned anew"
        )
    return found
