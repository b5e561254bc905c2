"""`dlm VERB [flags]`: finds the verb, parses its flags, and turns mistakes into one line and exit code 2."""

import contextlib
import ctypes
import importlib
import logging as python_logging
import os
import sys

from absl import flags, logging

from dlm_jax.exit_codes import CRASHED, DONE, PREEMPTED, WRONG_INPUT

# verb -> what it does; the code is dlm_jax/cli/<verb>.py
VERBS = {
    "demo": "train, evaluate and sample on the embedded corpus, in minutes, and write a report",
    "train": "train, or resume, from a config",
    "evaluate": "likelihood bound, bits per byte, T-step likelihood, baseline comparison",
    "measure": "the information curve of a corpus: how much its tokens depend on each other",
    "plan": "how many steps, of which sizes, in which order: the recommendation and its report",
    "sample": "samples from a trained model",
    "bench": "speed of training, sampling and evaluation beside what this machine can do",
    "compile": "compile a config for accelerators that are not here: memory, operations, collectives",
    "launch": "run a command under supervision: several processes, restarts by exit code",
    "inspect": "parameters, shapes and configuration of a workdir",
    "study": "runs a published experiment again: convergence, prediction, orders, cleaning, samplers, scaling",
}


class UsageError(Exception):
    """A mistake on the command line."""


def command_line():
    """Runs this process's command line and ends the process."""
    code = main()
    if code not in (DONE, PREEMPTED) and _is_joined():
        # The usual farewell waits for the other processes, which wait for us.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv=None):
    """Runs one command line.

    Args:
      argv: list of str without the program's name; None for sys.argv[1:].
    Returns:
      int, the exit code: 0 done, 2 wrong input, 85 preempted and saved, 86 hang, 87 diverged.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return DONE
    if argv[0] == "--version":
        from dlm_jax import __version__

        print(__version__)
        return DONE
    verb, *rest = argv
    if verb not in VERBS:
        import difflib

        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return _refuse(f"verb {verb!r}: must be one of {', '.join(VERBS)}{hint}")
    _keep_freed_memory()
    module = importlib.import_module(f"dlm_jax.cli.{verb}")
    values = flags.FlagValues()
    module.define_flags(values)
    own = rest[: rest.index("--")] if "--" in rest else rest
    if "--help" in own or "-h" in own:
        print(_help(verb, module, values))
        return DONE
    if os.environ.get("DLM_TRACEBACK"):
        return _run(module, values, verb, rest)
    try:
        with _quiet_threads():
            return _run(module, values, verb, rest)
    except ConnectionError as error:  # the same command may succeed
        return _refuse(_one_line(error), CRASHED)
    except (UsageError, flags.Error, ValueError, OSError) as error:
        return _refuse(_one_line(error))
    except KeyboardInterrupt:
        return _refuse("interrupted", 130)


@contextlib.contextmanager
def _quiet_threads():
    """Background threads of orbax and tensorstore print tracebacks of an error that reaches us anyhow.

    After an error it stays so: they go on printing until the process has ended.
    """
    logging.set_verbosity(logging.FATAL)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    before, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    yield
    sys.unraisablehook = before


def _keep_freed_memory():
    """Tells the C library to keep what is freed: on a CPU, arrays are else mapped and cleared anew in every step."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    arena_max, mmap_max, trim_threshold = -8, -4, -1
    for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1)):
        set_option(option, value)


def parse(values, verb, rest):
    """Parses the flags of a verb into `values` and returns what is left over.

    Raises:
      UsageError, flags.Error, ValueError, OSError: in one line.
    """
    from dlm_jax.cli import options

    arguments = [f"dlm {verb}", *options.resolve_config_names(rest)]
    # config_flags reads the overrides (--config.a.b=v) from sys.argv.
    before, sys.argv = sys.argv, arguments
    try:
        return values(arguments)[1:]
    except (flags.Error, OSError):
        raise
    except Exception as error:  # config files and overrides run inside the parser and raise what they like
        if os.environ.get("DLM_TRACEBACK"):
            raise
        raise UsageError(options.explain_parse_error(error, arguments)) from None
    finally:
        sys.argv = before


def _run(module, values, verb, rest):
    extra = parse(values, verb, rest)
    from dlm_jax import storage

    workdir = values["workdir"].value if "workdir" in values else None
    if not storage.is_remote(workdir):
        return _call(module, values, verb, extra)
    # The verb works on the local twin of a workdir in a bucket; what it wrote is brought back.
    values["workdir"].value = str(storage.twin(workdir, must_exist=verb not in ("train", "demo", "study")))
    print(f"{workdir}: small files are kept in {values['workdir'].value}", file=sys.stderr)
    code = _call(module, values, verb, extra)
    if not _is_joined() or sys.modules["jax"].process_index() == 0:
        try:
            storage.push(values["workdir"].value)
        except Exception as error:  # what the code says of the run is worth more
            print(f"dlm: {workdir}: not all could be brought back: {_one_line(error)}", file=sys.stderr)
    return code


def _is_joined():
    """Whether this is one of several processes of a run."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _call(module, values, verb, extra):
    if getattr(module, "TAKES_COMMAND", False) or (extra and getattr(module, "TAKES_NAME", False)):
        return module.run(values, *extra) or DONE
    if extra:
        raise UsageError(f"argument {extra[0]!r}: dlm {verb} takes flags only, for example --workdir=W")
    return module.run(values) or DONE


def _refuse(message, code=WRONG_INPUT):
    print(f"dlm: {message}", file=sys.stderr)
    return code


def _one_line(error):
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    text = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return text.removeprefix("flag --").strip() or type(error).__name__


def _overview():
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {summary}" for verb, summary in VERBS.items()]
    return "\n".join(
        [
            "usage: dlm VERB [flags]        (dlm VERB --help for the flags and an example)",
            "",
            *lines,
            "",
            "Exit codes: 0 done, 2 wrong input, 85 preempted and saved, 86 hang, 87 diverged.",
            "Start with: dlm demo --workdir demo",
        ]
    )


def _help(verb, module, values):
    lines = [f"dlm {verb}: {VERBS[verb]}", "", f"example: {module.EXAMPLE}", ""]
    for flag in values.get_flags_for_module("") or [values[name] for name in sorted(values)]:
        if flag.name in ("help", "helpfull", "helpshort", "helpxml", "flagfile", "undefok"):
            continue
        default = "" if flag.default in (None, "", []) else f" (default {flag.default})"
        lines.append(f"  --{flag.name}: {flag.help}{default}")
    return "\n".join(lines)
