"""Eight virtual CPU devices for the whole suite, before jax is used; the default run says what it left out."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

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


def pytest_terminal_summary(terminalreporter):
    if _left_out:
        terminalreporter.write_line(f"left out {len(_left_out)} slow tests; run them with: python -m pytest -m slow")
