"""Flags that several verbs share, and how a config file becomes a RunConfig."""

import json
import pathlib
import runpy

from absl import flags
from ml_collections import config_flags

from dlm_jax import config as configs


def define_workdir(values, help_text="folder of the run"):
    """Adds --workdir."""
    flags.DEFINE_string("workdir", None, help_text, flag_values=values)


def define_json(values):
    """Adds --json."""
    flags.DEFINE_bool("json", False, "print only JSON", flag_values=values)


def define_config(values):
    """Adds --config FILE and --config.group.field=value."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "config file, or the name of a shipped one (debug, demo, ...); --config.group.field=value overrides",
        flag_values=values,
        lock_config=True,
    )


def required(values, name):
    """Returns a flag's value.

    Raises:
      ValueError: if it was not given.
    """
    value = values[name].value
    if value in (None, ""):
        raise ValueError(f"--{name}: must be given")
    return value


def check_seed(values):
    """Raises ValueError unless the seed flag is one that jax takes."""
    seed = values["seed"].value
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed={seed}: must be between 0 and {2**32 - 1}")


def whole_numbers(values, name):
    """Returns a list flag as ints, or None where it was not given.

    Raises:
      ValueError: if an entry is not a whole number.
    """
    texts = values[name].value
    if texts is None:
        return None
    try:
        return [int(text) for text in texts]
    except ValueError:
        raise ValueError(f"--{name}={','.join(texts)}: must be whole numbers separated by commas") from None


def run_config(values):
    """Returns the RunConfig of --config and its overrides.

    Raises:
      ValueError: naming the field, its value and what is allowed.
    """
    try:
        given = required(values, "config")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config: {error}") from None
    return _run_config_of(given, config_flags.get_config_filename(values["config"]))


def _run_config_of(given, place):
    if not hasattr(given, "to_dict"):
        raise ValueError(f"{place}: get_config() must return a ConfigDict, not {type(given).__name__}")
    return configs.from_dict(given.to_dict())


def explain_parse_error(error, arguments):
    """Returns the line for an exception that is no flags.Error: the config file's own, or an unknown field's.

    Args:
      error: Exception, raised while flags were parsed.
      arguments: the command line.
    """
    for flag, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = flag.partition("=")
        if name in ("-config", "--config"):
            try:
                load_config_file(value if equals else following)
            except (ValueError, OSError) as own:
                return str(own)
    text = " ".join(str(error.args[0] if error.args else error).split())
    return f"--config: {text}"


def shipped_config(name):
    """Returns the path of a config that comes with the package, or None.

    Args:
      name: for example "debug" or "configs/debug.py".
    """
    name = pathlib.Path(name).stem
    installed = pathlib.Path(__file__).parents[1] / "configs" / f"{name}.py"
    checkout = pathlib.Path(__file__).parents[2] / "configs" / f"{name}.py"
    return next((path for path in (installed, checkout) if path.is_file()), None)


def resolve_config_names(arguments):
    """Returns command-line arguments in which `--config NAME` of a shipped config is its path, up to a "--".

    Raises:
      FileNotFoundError: if there is neither a file nor a shipped config of the name.
    """
    resolved = list(arguments)
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for index, argument in enumerate(own):
        flag, equals, value = argument.partition("=")
        if flag.lstrip("-") != "config" or not flag.startswith("-"):
            continue
        place = index if equals else index + 1
        value = value if equals else (arguments[place] if place < len(arguments) else "")
        file = value.partition(":")[0]  # what follows the colon is get_config's argument
        if not value or pathlib.Path(file).exists():
            continue  # absl says what is wrong with nothing, or with a folder
        path = shipped_config(value) if pathlib.Path(value).suffix in ("", ".py") else None
        if path is None:
            raise _no_config(value)
        resolved[place] = f"{flag}={path}" if equals else str(path)
    return resolved


def _no_config(name, flag="config"):
    return FileNotFoundError(f"--{flag}={name!r}: no such file, and no shipped config of that name")


def load_config_file(name, flag="config"):
    """Returns the RunConfig of a config file or of a shipped config.

    Args:
      name: of the file, or of the shipped config.
      flag: that gave it, for messages.
    Raises:
      FileNotFoundError: if there is neither.
      ValueError: if the file cannot be run or breaks a rule.
    """
    path = pathlib.Path(name) if pathlib.Path(name).is_file() else shipped_config(name)
    if path is None:
        raise _no_config(name, flag)
    try:
        scope = runpy.run_path(str(path))
        given = scope["get_config"]() if "get_config" in scope else None
    except Exception as error:  # a config file is a program: anything can happen in it
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from None
    if "get_config" not in scope:
        raise ValueError(f"{path}: must define get_config()")
    return _run_config_of(given, path)


def load_study_config(name):
    """Returns the ConfigDict of a study that comes with the package."""
    return runpy.run_path(str(shipped_config(name)))["get_config"]()


def emit(payload, path=None):
    """Prints a payload as JSON, and writes it to a file where a path is given."""
    from dlm_jax import files

    if path:
        files.write_json(path, payload)
    print(json.dumps(payload, indent=1))
