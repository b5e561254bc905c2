"""What the exit code of a run means: the contract between `dlm` and whoever supervises it."""

DONE = 0
CRASHED = 1  # or a place that could not be reached: the same command may succeed
WRONG_INPUT = 2  # the same command would fail again
PREEMPTED = 85  # and saved
HANG = 86  # no step ended in time
DIVERGED = 87
