"""One command becomes many: every combination of the values in a sweep file."""

import itertools
import re

from . import plan


def commands(command, sweep, source):
    """Returns [(suffix, command), ...], one a combination; each run has its own workdir, named by what is different.

    Args:
      command: list of str, what follows `dlm`, with --workdir.
      sweep: {"group.field": [values]}, as read from a JSON file.
      source: of the sweep, for messages.
    Raises:
      ValueError: naming what is wrong with the sweep or the command.
    """
    if not isinstance(sweep, dict) or not sweep:
        raise ValueError(f"{source}: must be an object of fields and lists of values")
    for name, values in sweep.items():
        if not re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)*", name):
            raise ValueError(f"{source}: {name!r} must be a field, for example optimizer.learning_rate")
        if not isinstance(values, list) or not values:
            raise ValueError(f"{source}: {name} must be a list of values")
        for value in values:
            if isinstance(value, (dict, list)) or value is None:
                raise ValueError(f"{source}: {name} holds {value!r}; must be numbers, texts, true or false")
    workdir = plan.workdir_of(command)
    if not workdir:
        raise ValueError("--sweep: the command must have a --workdir; each run gets a folder in it")
    found = []
    for combination in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, combination, strict=True))
        suffix = ",".join(f"{name.rpartition('.')[2]}={_plain(value)}" for name, value in chosen.items())
        own = plan.with_workdir(command, f"{workdir.rstrip('/')}/{suffix}")
        found.append((suffix, [*own, *(f"--config.{name}={value}" for name, value in chosen.items())]))
    if len({suffix for suffix, _ in found}) < len(found):
        raise ValueError(
            f"{source}: two runs would share a workdir; values must differ in letters, digits, dots, dashes"
        )
    return found


def _plain(value):
    return re.sub(r"[^A-Za-z0-9.-]+", "_", str(value)).lstrip(".") or "_"
