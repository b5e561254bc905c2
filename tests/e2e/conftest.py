"""Runs of the real command line in processes of their own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def environment():
    """The environment of the processes under test."""
    values = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    values.pop("XLA_FLAGS", None)
    return values


@pytest.fixture(scope="session")
def dlm(tmp_path_factory, environment):
    """Returns a function that starts `python -m dlm_jax ARGS` and returns its Popen; stderr goes to a file."""
    home = tmp_path_factory.mktemp("home")

    def start(*arguments, cwd=None, env=()):
        log = open(home / f"log-{len(list(home.iterdir()))}.txt", "w+")  # noqa: SIM115, the process writes to it
        process = subprocess.Popen(
            [sys.executable, "-m", "dlm_jax", *map(str, arguments)],
            cwd=cwd or home, env={**environment, **dict(env)}, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        process.log = log.name
        return process

    return start


@pytest.fixture(scope="session")
def run_dlm(dlm):
    """Returns a function that runs a command line to its end: (exit code, stdout, stderr)."""

    def run(*arguments, **options):
        process = dlm(*arguments, **options)
        out, _ = process.communicate(timeout=600)
        return process.returncode, out, pathlib.Path(process.log).read_text()

    return run


@pytest.fixture(scope="session")
def inspect(run_dlm):
    """Returns a function: workdir -> the JSON of `dlm inspect`."""

    def run(workdir):
        code, out, log = run_dlm("inspect", "--workdir", workdir, "--json")
        assert code == 0, log
        return json.loads(out)

    return run
