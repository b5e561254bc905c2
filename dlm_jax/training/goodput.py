"""Where the time of a run goes: every second belongs to one activity, over restarts and all.

A line of `metrics.jsonl` carries "time" (Unix seconds) and "seconds/ACTIVITY" since the line before. An attempt starts
with a line that has "attempt_from", the step it goes on from: what had been done past it was lost.
"""

import json
import pathlib
import time

ACTIVITIES = ("prepare", "restore", "compile", "step", "data", "evaluate", "save")
_PREFIX = "seconds/"


class Clock:
    """Attributes every moment to the activity that was named last."""

    def __init__(self, activity):
        self._activity, self._since, self._seconds = activity, time.monotonic(), {}

    def to(self, activity):
        """From now on it is this activity's time."""
        now = time.monotonic()
        self._seconds[self._activity] = self._seconds.get(self._activity, 0.0) + now - self._since
        self._activity, self._since = activity, now

    def take(self):
        """Returns {"seconds/ACTIVITY": seconds} since the last time this was asked."""
        self.to(self._activity)
        taken, self._seconds = self._seconds, {}
        return {f"{_PREFIX}{name}": seconds for name, seconds in taken.items() if seconds}


def summarize(path):
    """Returns where the time of a run went.

    Args:
      path: its metrics.jsonl.
    Returns:
      {"attempts", "step", "steps_done_again", "total_seconds", "goodput": share of it in steps that were kept,
      "seconds": {activity: seconds}}; besides ACTIVITIES there are "lost" (steps past the checkpoint that an attempt
      went on from) and "down" (from an attempt's last line to the next attempt).
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a line is not a JSON object; the message names it.
    """
    seconds = dict.fromkeys((*ACTIVITIES, "lost", "down"), 0.0)
    kept, attempts, again, first, last, highest = [], 0, 0, None, None, 0
    for line in _lines(pathlib.Path(path)):
        spent = {name.removeprefix(_PREFIX): value for name, value in line.items() if name.startswith(_PREFIX)}
        now = line.get("time")
        if not spent or now is None:
            continue
        began = now - sum(spent.values())
        if "attempt_from" in line:
            attempts += 1
            while kept and kept[-1][0] > line["attempt_from"]:
                seconds["lost"] += kept.pop()[1]
            again += max(0, highest - line["attempt_from"])
            highest = line["attempt_from"]
            if last is not None:
                seconds["down"] += max(0.0, began - last)  # clocks may be set back
        first, last = began if first is None else first, now
        highest = max(highest, line["step"])
        kept.append((line["step"], spent.pop("step", 0.0)))
        for name, value in spent.items():
            seconds[name] = seconds.get(name, 0.0) + value
    seconds["step"] = sum(spent for _, spent in kept)
    total = sum(seconds.values())
    return {
        "attempts": attempts,
        "step": highest,
        "steps_done_again": again,
        "total_seconds": total,
        "goodput": seconds["step"] / total if total else 0.0,
        "seconds": seconds,
    }


def table(summary):
    """Yields the lines of a summary for people: a bar an activity, the longest first."""
    total = summary["total_seconds"] or 1.0
    ranked = sorted(summary["seconds"].items(), key=lambda entry: -entry[1])
    for name, spent in ranked:
        if spent:
            yield f"{name:9} {spent:10.1f} s {spent / total:6.1%} {'#' * round(40 * spent / total)}"
    yield (
        f"goodput {summary['goodput']:.1%} of {summary['total_seconds']:.1f} s; step {summary['step']}, "
        f"attempts: {summary['attempts']}, steps done again: {summary['steps_done_again']}"
    )


def _lines(path):
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
            if not isinstance(line.get("step"), int):
                raise ValueError
            known = [value for name, value in line.items() if name.startswith(_PREFIX) or name == "time"]
            if not all(isinstance(value, (int, float)) for value in known):
                raise ValueError
        except (ValueError, AttributeError):
            raise ValueError(f"{path}:{number}: is not a line of metrics") from None
        yield line
