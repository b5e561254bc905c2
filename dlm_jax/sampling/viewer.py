"""Shows how a sample came about: every token coloured by the step that revealed it, in a terminal or a page.

Built from the tokens and `reveal_step` of Samples alone; a token that was drawn more than once shows its last step.
"""

import html
import json
import re
import time

_HIDDEN = "\u2591"  # of a position that is still masked
_TERMINAL_COLOURS = (27, 33, 39, 45, 50, 48, 46, 118, 154, 190, 220, 214, 208, 202, 196)  # of 256: blue to red


def pieces(tokens, decode):
    """Returns list of str, the text of each token; together they are the text of all.

    Args:
      tokens: int[L].
      decode: int[n] -> str. A token whose bytes end inside a character is empty; the last one of it holds all.
    """
    found, text = [], ""
    for end in range(1, len(tokens) + 1):
        longer = decode(tokens[:end])
        if (longer.endswith("\ufffd") and end < len(tokens)) or not longer.startswith(text):
            found.append("")
            continue
        found.append(longer[len(text) :])
        text = longer
    whole = decode(tokens) if len(tokens) else ""
    if text != whole:  # the last token changed what was there before: it takes all that is not as it was
        kept = 0
        while text[kept : kept + 1] == whole[kept : kept + 1] != "":
            kept += 1
        for index, piece in enumerate(found):
            found[index], kept = piece[: max(0, kept)], kept - len(piece)
        found[-1] += whole[sum(map(len, found)) :]
    return found


def printable(text):
    """Returns a text in which control characters but newline and tab are shown as symbols: none reaches a terminal."""
    return "".join(_SYMBOLS.get(character, character) for character in text)


_SYMBOLS = {chr(code): chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_SYMBOLS |= {chr(0x7F): chr(0x2421), **{chr(code): chr(0xFFFD) for code in range(0x80, 0xA0)}}


def frame(texts, reveal_step, step):
    """Returns str with terminal colours: the sample after a step; frozen tokens are plain.

    Args:
      texts: list of str, as `pieces` returns them.
      reveal_step: int[L].
      step: int.
    """
    last = max(1, int(max(reveal_step)))
    shown = []
    for text, when in zip(map(printable, texts), reveal_step, strict=True):
        if when > step:
            shown.append(f"\x1b[90m{_HIDDEN}\x1b[0m")
        elif when < 0:
            shown.append(text)
        else:
            colour = _TERMINAL_COLOURS[int(when) * (len(_TERMINAL_COLOURS) - 1) // last]
            shown.append(f"\x1b[38;5;{colour}m{text}\x1b[0m")
    return "".join(shown)


def play(write, texts, reveal_step, *, seconds=3.0, is_terminal=True, sleep=time.sleep):
    """Writes the sample step by step; where the output is no terminal, only the text.

    Args:
      write: str -> None.
      texts, reveal_step: as in `frame`.
      seconds: of the whole play.
    """
    steps = int(max(reveal_step)) + 1
    if not is_terminal:
        write(f"step {steps} of {steps}\n\n{printable(''.join(texts))}\n")
        return
    for step in range(-1, steps - 1):
        write(f"\x1b[2J\x1b[Hstep {step + 1} of {steps}\n\n{frame(texts, reveal_step, step)}\n")
        sleep(seconds / max(steps, 1))
    write("\x1b[2J\x1b[H")
    write(f"step {steps} of {steps}\n\n{frame(texts, reveal_step, steps)}\n")


def page(samples, title="Samples, step by step"):
    """Returns str, one self-contained HTML page with a slider over the steps and a play button.

    Args:
      samples: list of (label, texts, reveal_step), as in `frame`.
      title: str.
    """
    data = [
        {"label": label, "texts": list(texts), "steps": [int(when) for when in reveal_step]}
        for label, texts, reveal_step in samples
    ]
    # A script element ends, or turns into a comment, at a "<" only.
    parts = {"{data}": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"), "{title}": html.escape(title)}
    return re.sub(r"\{(?:data|title)\}", lambda found: parts[found[0]], _PAGE)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body{font:16px/1.6 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}
.controls{position:sticky;top:0;background:#fff;padding:.5rem 0;display:flex;gap:.8rem;align-items:center}
input{flex:1}pre{background:#f6f6f6;padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.95rem}
.hidden{color:#bbb}h2{font-size:1rem}button{font:inherit;padding:.2rem .8rem}
</style></head><body><h1>{title}</h1>
<div class="controls"><button id="play">Play</button><input id="step" type="range" min="0" value="0"
aria-label="step"><span id="now"></span></div><div id="out"></div>
<p>Colour: the step that revealed a token, blue first, red last. Black: given.</p>
<script>
const samples = {data};
const last = Math.max(1, ...samples.map(s => Math.max(...s.steps) + 1));
const slider = document.getElementById("step"), out = document.getElementById("out");
slider.max = last; slider.value = last;
function draw() {
  const now = +slider.value;
  document.getElementById("now").textContent = "step " + now + " of " + last;
  out.replaceChildren(...samples.flatMap(s => {
    const head = document.createElement("h2"); head.textContent = s.label;
    const body = document.createElement("pre");
    s.texts.forEach((text, i) => {
      const span = document.createElement("span"), when = s.steps[i];
      if (when >= now) { span.className = "hidden"; span.textContent = "\\u2591"; }
      else { span.textContent = text; }
      if (when >= 0 && when < now) span.style.color = "hsl(" + (230 - 230 * when / last) + ",75%,40%)";
      body.append(span);
    });
    return [head, body];
  }));
}
let timer = null;
document.getElementById("play").onclick = () => {
  clearInterval(timer); slider.value = 0; draw();
  timer = setInterval(() => {
    slider.value = +slider.value + 1; draw();
    if (+slider.value >= last) clearInterval(timer);
  }, Math.max(30, 4000 / last));
};
slider.oninput = () => { clearInterval(timer); draw(); };
draw();
</script></body></html>
"""
