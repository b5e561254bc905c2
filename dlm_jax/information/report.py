"""The report of a run: figures as PNG and one HTML page that needs no network.

It is handed numbers and texts; it runs no model.
"""

import base64
import html
import json
import pathlib

import numpy as np

from dlm_jax import files

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9822b", "#777777"


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


def figure_steps(path, num_steps, bits, stderr, lines):
    """Draws bits per byte of the T-step sampler against T.

    Args:
      path: PNG file.
      num_steps: int[n].
      bits, stderr: float[n], bits per byte.
      lines: {label: bits per byte}, drawn as horizontal lines.
    """
    figure, axes = _figure()
    axes.errorbar(
        num_steps, bits, yerr=2 * np.asarray(stderr), color=_BLUE, marker="o", capsize=3, label="T-step sampler"
    )
    for (label, value), style in zip(lines.items(), ("--", ":", "-."), strict=False):
        axes.axhline(value, color=_GREY, linestyle=style, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(num_steps, [str(t) for t in num_steps])
    axes.set_xlabel("denoising steps T")
    axes.set_ylabel("held-out bits per byte, given the order")
    axes.legend(framealpha=0.9, edgecolor="none")
    _save(figure, path)


def write(folder, *, title, facts, figures, samples, commands, details):
    """Writes index.html: what was found in words, the figures, the samples, and how to go on.

    Args:
      folder: where to; figures lie there already.
      title: str.
      facts: list of (label, value) strings, the first screen.
      figures: list of (file name, caption).
      samples: list of (heading, text).
      commands: list of (what it does, command).
      details: nested dict of plain values, shown as JSON.
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
    steps = "".join(f"<li>{_e(what)}<pre>{_e(command)}</pre></li>" for what, command in commands)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_e(title)}</title><style>{_STYLE}</style></head><body>
<h1>{_e(title)}</h1><table>{rows}</table>
<h2>Figures</h2>{images}
<h2>Samples</h2>{texts}
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
    "th{font-weight:600;width:45%}figure{margin:1rem 0}img{max-width:100%}figcaption{color:#555;font-size:.9rem}"
    "pre{background:#f5f5f5;padding:.7rem;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}"
)


def _e(text):
    return html.escape(str(text), quote=True)


def _base64(path):
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _figure():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=120)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _save(figure, path):
    from matplotlib import pyplot

    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")
    pyplot.close(figure)
