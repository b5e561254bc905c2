"""Two corpora, or one before and after cleaning: whose tokens depend more on each other, and what steps then cost."""

import numpy as np
from scipy import stats

from dlm_jax.information import error, schedules
from dlm_jax.information.curve import QUANTITIES


def compare(before, after, num_steps):
    """Returns what changed from one curve to another, measured on different rows.

    Args:
      before, after: InformationCurve.
      num_steps: ints, at which fixed and planned schedules are compared.
    Returns:
      {"quantities": {name: {"per_sequence" | "per_token" | "per_character": {"before", "after", "change", "stderr",
      "low", "high" (95 %)}}}, "schedules": [{"num_steps", "schedule", "before", "after", ...}], "warnings": [str]}.
    """
    quantities = {name: _changes(name, before, after) for name in QUANTITIES}
    rows, warnings = [], []
    for steps in num_steps:
        if steps > min(before.length, after.length):
            continue
        named = {
            name: (make(before.length, steps), make(after.length, steps)) for name, make in schedules.FIXED.items()
        }
        if before.length == after.length:
            planned = _planned(before, steps)
            named["planned before"] = (planned, planned)
        for name, (old, new) in named.items():
            rows.append(_row(name, steps, before, after, old, new))
        rows.append(_row("planned anew", steps, before, after, _planned(before, steps), _planned(after, steps)))
    # All rows together raise a false alarm in 2.5 % of cases at most.
    threshold = stats.norm.isf(0.025 / max(1, len(rows)))
    for row in rows:
        if row["schedule"] != "planned anew" and row["change"] > threshold * row["stderr"]:
            warnings.append(
                f"the error of the fixed schedule {row['schedule']!r} at T = {row['num_steps']} rises by "
                f"{row['change']:.3g} +- {row['stderr']:.2g} nats per sequence"
            )
    warnings.append(
        "cleaning never raises mutual information or the error of one step, but the error of a fixed schedule of "
        "several steps may rise: plan anew after cleaning (row 'planned anew')"
    )
    return {"quantities": quantities, "schedules": rows, "warnings": warnings}


def _planned(curve, steps):
    return schedules.optimal_sizes(curve, min(steps, len(curve.counts)), counts=curve.counts)


def _changes(name, before, after):
    (old, old_error), (new, new_error) = before.quantity(name), after.quantity(name)
    found = {}
    for unit, old_size, new_size in (
        ("per_sequence", 1.0, 1.0),
        ("per_token", before.length, after.length),
        ("per_character", before.characters, after.characters),
    ):
        if not old_size or not new_size:
            continue
        change = new / new_size - old / old_size
        stderr = float(np.hypot(old_error / old_size, new_error / new_size))
        found[unit] = {
            "before": old / old_size, "after": new / new_size, "change": change, "stderr": stderr,
            "low": change - 1.96 * stderr, "high": change + 1.96 * stderr,
        }  # fmt: skip
    return found


def _row(name, steps, before, after, old_sizes, new_sizes):
    old, old_error = error.expected_kl_with_error(before, old_sizes)
    new, new_error = error.expected_kl_with_error(after, new_sizes)
    return {
        "schedule": name, "num_steps": int(steps), "before": old, "after": new, "change": new - old,
        "stderr": float(np.hypot(old_error, new_error)),
    }  # fmt: skip
