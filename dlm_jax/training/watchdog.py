"""A run that stands still says where and ends, so that its supervisor can start it again."""

import contextlib
import faulthandler
import os
import pathlib
import sys
import threading
import time

from dlm_jax import exit_codes


class Watchdog:
    """Ends the process with exit code 86, all stacks written, when no step ends for too long.

    Args:
      seconds: float, from one `beat` to the next; 0 = never. Counts from the first beat: compiling may take its time.
      path: file for the stacks; they go to stderr, too.
    """

    def __init__(self, seconds, path):
        self._seconds, self._path = seconds, pathlib.Path(path)
        self._last = None  # of the last beat; None = not watching
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog") if seconds else None

    def __enter__(self):
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()

    def beat(self):
        """A step has ended."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def paused(self):
        """Nothing is watched inside: evaluating and saving have no clock."""
        self._last = None
        yield
        self._last = time.monotonic()

    def _watch(self):
        while not self._over.wait(min(1.0, self._seconds / 4)):
            last = self._last
            if last is not None and time.monotonic() - last > self._seconds:
                self._end(time.monotonic() - last)

    def _end(self, silence):
        print(
            f"dlm: no step ended for {silence:.0f} s (train.hang_seconds={self._seconds:g}); stacks in {self._path}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        with contextlib.suppress(OSError), open(self._path, "w") as file:
            faulthandler.dump_traceback(file)
        faulthandler.dump_traceback(sys.stderr)
        os._exit(exit_codes.HANG)  # what hangs would not let an exception through
