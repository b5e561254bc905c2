"""The report of a run: figures as PNG and one HTML page that needs no network.

It is handed numbers and texts; it runs no model.
"""

import base64
import html
import json
import math
import pathlib

import numpy as np

from dlm_jax import files
from dlm_jax.information import error, plan, schedules
from dlm_jax.information.curve import QUANTITIES

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9822b", "#777777"
_COLOURS = (_BLUE, _ORANGE, "#2a8f5d", "#8a4fa3", "#b5443c", "#4f9fb5", "#8c8c2f")


def figure_loss(path, curves):
    """Draws training loss against time.

    Args:
      path: PNG file.
      curves: {label: (minutes float[n], bits per token float[n])}.
    """
    figure, axes = _figure()
    for (label, (minutes, bits)), colour in zip(curves.items(), (_BLUE, _ORANGE), strict=False):
        bits = np.asarray(bits)
        window = max(1, len(bits) // 20)
        smooth = np.convolve(bits, np.ones(window) / window, mode="valid")
        axes.plot(minutes, bits, color=colour, alpha=0.25, linewidth=1)
        axes.plot(np.asarray(minutes)[len(bits) - len(smooth) :], smooth, color=colour, label=label)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("training loss, bits per token")
    axes.legend(framealpha=0.9, edgecolor="none")
    _save(figure, path)


def figure_curve(path, curve):
    """Draws f(k) with its 95 % band, the measured counts, and the predicted entropies.

    Args:
      path: PNG file.
      curve: InformationCurve.
    """
    figure, axes = _figure()
    k = np.arange(curve.length)
    axes.plot(k, curve.entropy, color=_BLUE, label="f(k): loss of a token, k revealed")
    if curve.stderr is not None:
        axes.fill_between(
            k, curve.entropy - 2 * curve.stderr, curve.entropy + 2 * curve.stderr, color=_BLUE, alpha=0.15
        )
        axes.plot(curve.counts, curve.raw_entropy, "o", color=_BLUE, markersize=3)
    if curve.predictive_entropy is not None:
        axes.plot(curve.counts, curve.predictive_entropy, "--", color=_ORANGE, label="entropy that the model predicts")
    axes.set_xlabel("revealed tokens k of a sequence")
    axes.set_ylabel("nats per token")
    axes.legend(framealpha=0.9, edgecolor="none")
    _save(figure, path)


def figure_error(path, curve, num_steps):
    """Draws the expected error of every schedule in random order against T, with the bounds.

    Args:
      path: PNG file.
      curve: InformationCurve.
      num_steps: ints.
    """
    figure, axes = _figure()
    length = curve.length
    steps = [t for t in sorted(set(num_steps)) if t < length]
    errors, _ = schedules.optimal_schedules(curve, max(steps))
    lines = {name: [error.expected_kl(curve, make(length, t)) for t in steps] for name, make in schedules.FIXED.items()}
    lines["planned"] = [errors[t] for t in steps]
    for (name, values), colour in zip(lines.items(), _COLOURS, strict=False):
        axes.plot(steps, np.maximum(values, 1e-12), "o-", color=colour, markersize=3, label=name)
    information = curve.mutual_information
    uniform = [schedules.uniform_sizes(length, t) for t in steps]
    axes.plot(
        steps, [error.li_cai_upper_bound(information, s) for s in uniform], ":", color=_GREY, label="Li-Cai upper bound"
    )
    axes.plot(
        steps, [error.upper_bound(information, s) for s in uniform], "--", color=_GREY, label="sharper upper bound"
    )
    lower = [error.li_cai_lower_bound(curve, int(s.max())) for s in uniform]
    axes.plot(steps, np.maximum(lower, 1e-12), "-.", color=_GREY, label="Li-Cai lower bound (some schedule)")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    top = max(max(values) for values in lines.values())
    axes.set_ylim(bottom=max(min(min(v) for v in lines.values()), 1e-4 * max(top, 1e-9)) / 2)
    axes.set_xticks(steps, [str(t) for t in steps])
    axes.set_xlabel("denoising steps T")
    axes.set_ylabel("error of sampling, nats per sequence")
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8)
    _save(figure, path)


def figure_orders(path, candidates, baseline):
    """Draws the quality of the T-step sampler against T, for every order with its planned sizes.

    Drawn from one token at a time in random order, row by row: such differences are much surer than levels.

    Args:
      path: PNG file.
      candidates: list of plan.Candidate with bits per byte.
      baseline: float, bits per byte of the autoregressive model, or None.
    """
    figure, axes = _figure()
    shown = [("random", "uniform")]
    shown += [(name, "planned") for name in dict.fromkeys(c.order_name for c in candidates)]
    ticks, level = set(), None
    for (order, schedule), colour in zip(shown, (_GREY, *_COLOURS), strict=False):
        mine = [c for c in candidates if (c.order_name, c.schedule) == (order, schedule) and c.num_steps > 1]
        if not mine:
            continue
        mine.sort(key=lambda c: c.num_steps)
        to_bits = mine[0].bits_per_byte / mine[0].nll_nats
        level = mine[0].bits_per_byte - to_bits * mine[0].excess_nats
        ticks |= {c.num_steps for c in mine}
        axes.errorbar(
            [c.num_steps for c in mine], [to_bits * c.excess_nats for c in mine],
            yerr=[2 * to_bits * c.excess_stderr for c in mine], color=colour, marker="o", markersize=3, capsize=2,
            linewidth=1, label=f"{order}, {schedule} sizes",
        )  # fmt: skip
    if baseline is not None and level is not None:
        axes.axhline(baseline - level, color="black", linewidth=1, linestyle="--", label="autoregressive baseline")
    axes.set_xscale("log", base=2)
    powers = [t for t in sorted(ticks) if t & (t - 1) == 0]
    axes.set_xticks(powers, [str(t) for t in powers])
    axes.set_xlabel("denoising steps T")
    axes.set_ylabel("bits per byte above one token at a time,\nrandom order")
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8)
    _save(figure, path)


def figure_frontier(path, candidates, chosen, latency, baseline, length):
    """Draws latency against quality, the frontier and the recommendation, and the autoregressive baseline.

    Args:
      path: PNG file.
      candidates: list of plan.Candidate with seconds and bits per byte.
      chosen: plan.Candidate, the recommendation.
      latency: plan.Latency.
      baseline: Survey.baseline.
      length: int, L.
    """
    figure, axes = _figure()
    per_sample = 1.0 / latency.batch_size
    axes.plot(
        [c.seconds * per_sample for c in candidates], [c.bits_per_byte for c in candidates], ".", color=_GREY,
        alpha=0.5, label="all that was looked at",
    )  # fmt: skip
    front = plan.frontier(candidates)
    axes.plot(
        [c.seconds * per_sample for c in front], [c.bits_per_byte for c in front], "o-", color=_BLUE, markersize=4,
        label="not beaten in both",
    )  # fmt: skip
    axes.plot(
        [chosen.seconds * per_sample], [chosen.bits_per_byte], "*", color=_ORANGE, markersize=16, label="recommended"
    )
    if baseline:
        for name, style in (("uncached", "s"), ("cached_floor", "D")):
            axes.plot(
                [latency.autoregressive[name] * length * per_sample], [baseline["bits_per_byte"]], style, color="black",
                label=f"autoregressive, {name.replace('_', ' ')}",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel(f"seconds a sample on {latency.device}, batch {latency.batch_size}")
    axes.set_ylabel("held-out bits per byte")
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8)
    _save(figure, path)


def figure_sizes(path, chosen):
    """Draws how many tokens each step of a plan reveals.

    Args:
      path: PNG file.
      chosen: plan.Candidate or Plan.
    """
    figure, axes = _figure()
    axes.bar(np.arange(1, len(chosen.sizes) + 1), chosen.sizes, color=_BLUE)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("step")
    axes.set_ylabel("tokens revealed")
    _save(figure, path)


def figure_convergence(path, found, length):
    """Draws error against T on log-log axes, one panel a distribution, with measurements and bounds.

    Args:
      path: PNG file.
      found: {name: {"num_steps", "formula", "optimal", "upper_bound", "lower_bound", optionally "measured", "stderr"}}.
      length: int, L.
    """
    panels = math.ceil(len(found) / 4), min(4, len(found))
    figure, grid = _figure(panels, size=(3.4 * panels[1], 3.1 * panels[0]))
    for axes, (name, entry) in zip(np.ravel(grid), found.items(), strict=False):
        steps = entry["num_steps"]

        def line(key, style, colour, label, axes=axes, entry=entry, steps=steps):
            values = np.asarray(entry[key])
            axes.plot(steps, np.where(values > 1e-9, values, np.nan), style, color=colour, label=label, linewidth=1)

        line("upper_bound", ":", _GREY, "Li-Cai upper bound")
        line("lower_bound", "-.", _GREY, "Li-Cai lower bound")
        line("formula", "-", _BLUE, "formula, uniform sizes")
        line("optimal", "--", _ORANGE, "formula, planned sizes")
        if "measured" in entry:
            values = np.asarray(entry["measured"])
            axes.errorbar(
                steps, np.where(values > 1e-9, values, np.nan), yerr=2 * np.asarray(entry["stderr"]), fmt="o",
                color=_BLUE, markersize=3, label="measured",
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(f"{name} (MI {entry['mutual_information']:.0f})", fontsize=9)
        axes.tick_params(labelsize=7)
    for axes in np.ravel(grid)[len(found) :]:
        axes.set_visible(False)
    np.ravel(grid)[0].set_ylabel("KL error, nats per sequence", fontsize=8)
    np.ravel(grid)[0].set_xlabel(f"denoising steps T, L = {length}", fontsize=8)
    np.ravel(grid)[0].legend(fontsize=6, framealpha=0.9, edgecolor="none")
    figure.tight_layout()
    _save(figure, path)


def figure_samplers(path, found, data):
    """Draws what a judge thinks of samples, and their entropy, against denoiser calls, one line a sampler.

    Args:
      path: PNG file.
      found: list of {"sampler", "nfe", "judge_nats_per_token", "judge_stderr", "entropy_nats"}.
      data: the same of held-out text, without "nfe".
    """
    figure, axes = _figure((1, 2), size=(12, 5.5))
    names = list(dict.fromkeys(entry["sampler"] for entry in found))
    for index, name in enumerate(names):
        entries = sorted((entry for entry in found if entry["sampler"] == name), key=lambda entry: entry["nfe"])
        style = {
            "color": _COLOURS[index % len(_COLOURS)], "marker": "o^sDv"[index // len(_COLOURS) % 5], "markersize": 4,
            "linewidth": 1,
        }  # fmt: skip
        calls = [entry["nfe"] for entry in entries]
        axes[0].plot(calls, [entry["judge_nats_per_token"] for entry in entries], label=name, **style)
        axes[1].plot(calls, [entry["entropy_nats"] for entry in entries], **style)
    for axis, key, label in (
        (axes[0], "judge_nats_per_token", "nats per token under the judge"),
        (axes[1], "entropy_nats", "entropy of a sample's tokens, nats"),
    ):
        axis.axhline(data[key], color=_GREY, linestyle="--", label="held-out text")
        axis.set_xscale("log", base=2)
        axis.set_xlabel("denoiser calls a sample")
        axis.set_ylabel(label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=5, fontsize=8, frameon=False)
    _save(figure, path)


def figure_scaling(path, found):
    """Draws seconds against each axis, measured and as the required operations would grow.

    Args:
      path: PNG file.
      found: {axis: {"values", "seconds", "spread", "exponent", "required_exponent"}}.
    """
    figure, panels = _figure((1, len(found)), size=(3.2 * len(found), 3.4))
    for panel, (axis, entry) in zip(panels, found.items(), strict=True):
        values, seconds = np.asarray(entry["values"], float), np.asarray(entry["seconds"])
        middle = len(values) // 2
        required = seconds[middle] * (values / values[middle]) ** entry["required_exponent"]
        panel.plot(values, required, color=_GREY, linestyle="--", label=f"required: {entry['required_exponent']:.2f}")
        panel.errorbar(
            values, seconds, entry["spread"], marker="o", color=_COLOURS[0], label=f"measured: {entry['exponent']:.2f}"
        )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.set_xlabel(axis.replace("_", " "))
        panel.legend(title="exponent", fontsize=8, frameon=False)
    panels[0].set_ylabel("seconds")
    figure.tight_layout()
    _save(figure, path)


def in_words(curve):
    """Returns a paragraph that says what the curve means to somebody who has not heard of it."""
    summary = curve.summary()
    information = summary["mutual_information"]
    first, last = curve.entropy[0], curve.entropy[-1]
    known = 1 - last / first if first > 0 else 0.0
    return (
        f"With nothing else known, a token of this text leaves {first / math.log(2):.2f} bits open. Once all other "
        f"tokens of its {curve.length}-token sequence are revealed it leaves {last / math.log(2):.2f} bits: the others "
        f"settle {known:.0%} of it. Over a whole sequence that is {information['nats']:.1f} nats of mutual information "
        f"(95 % interval {information['low']:.1f} to {information['high']:.1f}), {information['per_token']:.3f} per "
        "token. The more tokens know of one another, the more a step that reveals many at once gets wrong. The model's "
        "own error is inside these numbers and cannot be told apart from them; the sum is usually a lower estimate."
    )


def dependence_table(curve):
    """Returns (header, rows) of what the corpus' tokens share, for `write`."""
    rows = []
    for name, found in curve.summary().items():
        per_character = "" if found["per_character"] is None else f"{found['per_character']:.4f}"
        calibrated = "" if found["calibrated"] is None else f"{found['calibrated']:.2f}"
        rows.append((
            QUANTITIES[name].capitalize(), f"{found['nats']:.2f} +- {found['stderr']:.2f}",
            f"{found['per_token']:.4f}", per_character,
            calibrated,
        ))  # fmt: skip
    return ("nats", "per sequence", "per token", "per character", "if the model is calibrated"), rows


def steps_table(candidates):
    """Returns (header, rows): bits per byte by T for the orders and sizes that were looked at, for `write`."""
    shown = [("random", "uniform"), ("random", "planned")]
    shown += [(n, "planned") for n in dict.fromkeys(c.order_name for c in candidates) if n != "random"]
    table = {(c.order_name, c.schedule, c.num_steps): c for c in candidates}
    rows = []
    for steps in sorted({c.num_steps for c in candidates}):
        cells = [table.get((*which, steps)) for which in shown]
        rows.append(
            (
                str(steps),
                *("" if c is None else f"{c.bits_per_byte:.3f} +- {c.bits_per_byte_stderr:.3f}" for c in cells),
            )
        )
    return ("T", *(f"{order}, {schedule}" for order, schedule in shown)), rows


def saved_table(candidates, best_order):
    """Returns (header, rows): steps that do as well as T uniform steps in random order, by sizes, by order, by both."""
    by = {
        "sizes": plan.steps_saved(candidates, "random", "planned"),
        "order": plan.steps_saved(candidates, best_order, "uniform"),
        "both": plan.steps_saved(candidates, best_order, "planned"),
    }
    rows = [
        (str(steps), *("" if by[name].get(steps) is None else str(by[name][steps]) for name in by))
        for steps in by["sizes"]
    ]
    return ("T, random order, uniform sizes", "planned sizes", f"{best_order} order", "both"), rows


def write(folder, *, title, facts, figures, samples, commands, details, lead="", words="", tables=()):
    """Writes index.html: what was found in words, the figures, the samples, and how to go on.

    Args:
      folder: where to; figures lie there already.
      title: str.
      facts: list of (label, value) strings, the first screen.
      figures: list of (file name, caption).
      samples: list of (heading, text).
      commands: list of (what it does, command).
      details: nested dict of plain values, shown as JSON.
      lead: str, the recommendation in a sentence or two.
      words: str, what the numbers mean.
      tables: list of (heading, (header cells, rows of cells), note).
    Returns:
      pathlib.Path of the page.
    """
    folder = pathlib.Path(folder)
    rows = "".join(f"<tr><th>{_e(label)}</th><td>{_e(value)}</td></tr>" for label, value in facts)
    images = "".join(
        f'<figure><img alt="{_e(caption)}" src="data:image/png;base64,{_base64(folder / name)}">'
        f"<figcaption>{_e(caption)}</figcaption></figure>"
        for name, caption in figures
    )
    texts = "".join(f"<h3>{_e(heading)}</h3><pre>{_e(text)}</pre>" for heading, text in samples)
    sheets = "".join(
        f"<h3>{_e(heading)}</h3><div class=wide><table><tr>{''.join(f'<th>{_e(cell)}</th>' for cell in header)}</tr>"
        + "".join(f"<tr>{''.join(f'<td>{_e(cell)}</td>' for cell in row)}</tr>" for row in body)
        + f"</table></div><p class=note>{_e(note)}</p>"
        for heading, (header, body), note in tables
    )
    lead = f"<p class=lead>{_e(lead)}</p>" if lead else ""
    words = f"<p>{_e(words)}</p>" if words else ""
    steps = "".join(f"<li>{_e(what)}<pre>{_e(command)}</pre></li>" for what, command in commands)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_e(title)}</title><style>{_STYLE}</style></head><body>
<h1>{_e(title)}</h1>{lead}<table class=facts>{rows}</table>{words}
<h2>Figures</h2>{images}
{"<h2>Tables</h2>" + sheets if sheets else ""}
{"<h2>Samples</h2>" + texts if texts else ""}
<h2>Next</h2><ol>{steps}</ol>
<h2>All numbers</h2><details><summary>JSON</summary><pre>{_e(json.dumps(details, indent=1))}</pre></details>
</body></html>
"""
    path = folder / "index.html"
    files.write_text(path, page)
    return path


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "h1{font-size:1.6rem}table{border-collapse:collapse;width:100%}"
    "th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}"
    ".facts th{width:40%}th{font-weight:600}"
    ".lead{font-size:1.15rem;background:#eef4fb;padding:.8rem 1rem;border-radius:.4rem}"
    ".wide{overflow-x:auto}.wide td,.wide th{white-space:nowrap;font-size:.9rem}"
    ".note,figcaption{color:#555;font-size:.9rem}figure{margin:1rem 0}img{max-width:100%}"
    "pre{background:#f5f5f5;padding:.7rem;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}"
)


def _e(text):
    return html.escape(str(text), quote=True)


def _base64(path):
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _figure(panels=(1, 1), size=(7, 4.2)):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(*panels, figsize=size, dpi=120)
    for one in np.ravel(axes):
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, axes


def _save(figure, path):
    from matplotlib import pyplot

    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")
    pyplot.close(figure)
