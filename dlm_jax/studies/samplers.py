"""Every way of unmasking on one trained model: quality against denoiser calls, one table and one figure.

For every sampler and number of steps: mean denoiser calls a sample, bits per token of held-out text where the sampler
has a likelihood (known orders and sizes), what a judge thinks of the samples, and their entropy; beside them the same
figures of held-out text itself.
"""

import math
import pathlib

import jax
import numpy as np

from dlm_jax import files, rng
from dlm_jax.evaluation import evaluators, generation, likelihood
from dlm_jax.information import report, schedules
from dlm_jax.progress import Progress

STEPS = (4, 8, 16, 32)
# family -> how it is asked for T steps; those with budgets of their own below.
BY_STEPS = {
    "random": lambda steps: {"num_steps": steps, "order": "random"},
    "spaced": lambda steps: {"num_steps": steps, "order": "spaced"},
    "bisection": lambda steps: {"num_steps": steps, "order": "bisection"},
    "left to right": lambda steps: {"num_steps": steps, "order": "left_to_right"},
    "confidence": lambda steps: {"num_steps": steps, "selection": "confidence"},
    "confidence, spaced": lambda steps: {"num_steps": steps, "selection": "confidence", "spacing": 4},
    "margin": lambda steps: {"num_steps": steps, "selection": "margin"},
    "entropy": lambda steps: {"num_steps": steps, "selection": "entropy"},
    "drawn (LLaDA)": lambda steps: {"num_steps": steps, "preset": "llada"},
    "drawn (Dream)": lambda steps: {"num_steps": steps, "preset": "dream"},
    "ancestral (MDLM)": lambda steps: {"num_steps": steps, "preset": "mdlm"},
    "ancestral (MD4)": lambda steps: {"num_steps": steps, "preset": "md4"},
    "ReMDM": lambda steps: {"num_steps": steps, "preset": "remdm"},
    "random, corrected": lambda steps: {"num_steps": steps // 2, "order": "random", "remasking": "corrector:4"},
}
BY_BUDGET = {
    "entropy bound": [
        {"selection": "entropy", "transition": f"entropy_bound:{budget:g}"} for budget in (0.1, 1.0, 4.0, 16.0)
    ],
    "entropy sum": [{"order": "random", "transition": f"entropy_sum:{budget:g}"} for budget in (8.0, 16.0, 32.0, 64.0)],
    "threshold": [{"selection": "confidence", "transition": f"threshold:{limit:g}"} for limit in (0.9, 0.5, 0.25, 0.1)],
    "factor": [{"selection": "confidence", "transition": f"factor:{limit:g}"} for limit in (1.0, 2.0, 4.0, 8.0)],
}


def run(generator, judge, workdir, *, num_samples=32, num_rows=64, seed=0, say=print):
    """Returns {"rows": [...], "data": {...}, "judge": str}; writes samplers.json, samplers.md and samplers.png.

    Args:
      generator: api.Generator, of a diffusion model.
      judge: api.Generator (an autoregressive baseline, say) or generation.HuggingFaceJudge.
      workdir: folder.
      num_samples: int, samples of each sampler.
      num_rows: int, held-out rows for likelihoods.
      seed: int.
      say: called with lines worth knowing.
    """
    workdir = pathlib.Path(workdir)
    length = generator.length
    rows = generator.rows(num_rows=max(num_rows, num_samples))
    references = np.asarray(rows.tokens[:num_samples])
    data = _quality(generator, judge, references, [generator.text(row) for row in references])
    found = []
    asked = list(_asked(generator, length))
    with Progress("sampling every way", len(asked)) as progress:
        for family, request in asked:
            out = generator.sample(num_samples=num_samples, seed=seed, **request)
            entry = {"sampler": family, "request": _plain(request), "nfe": float(out.nfe.mean())}
            entry |= _quality(generator, judge, out.tokens, out.texts)
            entry["mauve"] = _mauve(generator, judge, out.tokens, references)
            entry["bits_per_token"] = _likelihood(generator, evaluators.spread_rows(rows, num_rows), request, seed)
            found.append(entry)
            progress.update(progress.done + 1)
    lines = table(found, data)
    for line in lines:
        say(line)
    result = {"rows": found, "data": data, "judge": _name(judge), "num_samples": num_samples}
    files.write_json(workdir / "samplers.json", result)
    files.write_text(workdir / "samplers.md", "\n".join(lines) + "\n")
    report.figure_samplers(workdir / "samplers.png", found, data)
    return result


def _asked(generator, length):
    for family, ask in BY_STEPS.items():
        yield from ((family, ask(steps)) for steps in STEPS if steps <= length)
    for family, requests in BY_BUDGET.items():
        yield from ((family, request) for request in requests)
    yield "one token a step", {"order": "random"}
    if generator.workdir is not None and (generator.workdir / "plan.json").exists():
        yield "planned", {"preset": "planned"}


def _quality(generator, judge, tokens, texts):
    opinion = generation.judged(judge, texts, tokens, generator.tokenizer)
    return {**generation.statistics_of(tokens), **{f"judge_{name}": value for name, value in opinion.items()}}


def _mauve(generator, judge, tokens, references):
    if not generation.can_read(judge, tokens, generator.tokenizer):
        return None
    return generation.mauve(judge, tokens, references)


def _likelihood(generator, rows, request, seed):
    """[bits per token, standard error] of the T-step sampler, or None where the sampler has no likelihood."""
    if request.get("preset") == "planned":
        plan = generator.plan()
        sizes, order = plan.sizes, plan.order
    elif set(request) <= {"num_steps", "order"}:
        sizes = schedules.uniform_sizes(generator.length, request.get("num_steps", generator.length))
        order = request["order"]
    else:
        return None
    order = order if isinstance(order, str) else tuple(order)
    losses = likelihood.t_step(
        generator.denoiser, generator.params, evaluators.schedule_of(generator.config), sizes, order
    )
    nats = likelihood.row_losses(
        losses, rows, batch_size=generator.config.eval.batch_size, quiet=True,
        key=rng.stream(jax.random.key(seed), "likelihood"),
    )  # fmt: skip
    summary = likelihood.summarize(nats, rows.num_bytes, rows.document, generator.length)
    return [summary["bits_per_token"], summary["stderr"] / math.log(2)]


def _plain(request):
    return {name: value if isinstance(value, (int, float, str)) else list(value) for name, value in request.items()}


def _name(judge):
    return getattr(judge, "name", None) or str(judge.workdir)


def table(found, data):
    """Returns lines of markdown, samplers by name and calls."""
    lines = [
        "| sampler | calls | bits per token | judge, nats a token | entropy, nats | distinct-2 | repetition | MAUVE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in [*found, {"sampler": "held-out text", **data}]:
        calls = f"{entry['nfe']:.1f}" if "nfe" in entry else ""
        bits = entry.get("bits_per_token")
        bits = "" if bits is None else f"{bits[0]:.3f} +- {bits[1]:.3f}"
        mauve = "" if entry.get("mauve") is None else f"{entry['mauve']:.3f}"
        lines.append(
            f"| {entry['sampler']} | {calls} | {bits} | {entry['judge_nats_per_token']:.3f} +- "
            f"{entry['judge_stderr']:.3f} | {entry['entropy_nats']:.3f} | {entry['distinct_2']:.3f} | "
            f"{entry['repetition']:.3f} | {mauve} |"
        )
    return lines
