"""Eight virtual CPU devices for the whole suite, before jax is used; the default run says what it left out.

What one test or one of its processes has compiled the others find: a quarter of the suite's time.
"""

import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_compiled = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the workers of pytest-xdist inherit it
    _compiled = tempfile.mkdtemp(prefix="dlm-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402, reads the variables above
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

_left_out = []


def pytest_deselected(items):
    _left_out.extend(item.nodeid for item in items if item.get_closest_marker("slow"))


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist tells the process that prints
        session.config.workeroutput["left_out"] = _left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    told = getattr(node, "workeroutput", {}).get("left_out", [])
    _left_out.extend(name for name in told if name not in _left_out)


def pytest_unconfigure():
    if _compiled is not None:
        shutil.rmtree(_compiled, ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    if _left_out:
        terminalreporter.write_line(f"left out {len(_left_out)} slow tests; run them with: python -m pytest -m slow")
