"""Progress of long work: one refreshed line in a terminal, sparse plain lines in a log, each with an ETA."""

import sys
import threading
import time

_SPINNER = "|/-\\"


def format_seconds(seconds):
    """Returns a duration as text, for example "7s", "3m20s" or "2h05m"."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds // 60 % 60:02d}m"


class Progress:
    """Reports one piece of work; a background thread keeps the report alive while the work itself is silent.

    Use as a context manager. `total=None` means the end is unknown (compiling, say): elapsed time is shown instead.

    Args:
      label: what is being done.
      total: how many units the work has, or None.
      interval: seconds between lines when the output is not a terminal.
      file: where to write; default sys.stderr.
      quiet: write nothing.
    """

    def __init__(self, label, total=None, *, interval=10.0, file=None, quiet=False):
        self.label, self.total, self.interval = label, total, interval
        self.file = file if file is not None else sys.stderr
        self.quiet = quiet
        self.done, self.note = 0, ""
        self._start = time.monotonic()
        self._base = 0
        self._last_line = 0.0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._terminal = bool(getattr(self.file, "isatty", lambda: False)())

    def __enter__(self):
        if not self.quiet:
            self._write()
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind, value, traceback):
        if self.quiet:
            return
        self._stop.set()
        self._thread.join()
        if kind is None:
            self._write(final=True)
        elif self._terminal:
            self.file.write("\n")

    def start_at(self, done):
        """Sets the units that were done before this process started, so that they do not enter the ETA."""
        self.done = self._base = done

    def update(self, done, note=None):
        """Records that `done` units are finished; printing is left to the reporting thread."""
        self.done = done
        if note is not None:
            self.note = note

    def _beat(self):
        while not self._stop.wait(0.25 if self._terminal else 0.5):
            if self._terminal or time.monotonic() - self._last_line >= self.interval:
                self._write()

    def _text(self, final):
        elapsed = time.monotonic() - self._start
        if self.total is None:
            state = f"{format_seconds(elapsed)}"
        else:
            share = self.done / max(1, self.total)
            state = f"{self.done}/{self.total} {share:4.0%} {format_seconds(elapsed)}"
            if not final and self.done > self._base:
                left = elapsed * (self.total - self.done) / (self.done - self._base)
                state += f", {format_seconds(left)} left"
        end = " done" if final else ""
        return f"{self.label}: {state}{end}" + (f"  {self.note}" if self.note else "")

    def _write(self, final=False):
        with self._lock:
            self._last_line = time.monotonic()
            text = self._text(final)
            if self._terminal:
                spin = " " if final else _SPINNER[int(time.monotonic() * 4) % 4]
                self.file.write(f"\r\x1b[2K{spin} {text}" + ("\n" if final else ""))
            else:
                self.file.write(text + "\n")
            self.file.flush()
