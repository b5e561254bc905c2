"""What a supervisor does when a run ends: the exit codes of `dlm train` and what they ask for."""

import dataclasses

from dlm_jax.exit_codes import DIVERGED, DONE, HANG, PREEMPTED, WRONG_INPUT

# exit code -> (what it means, restart, counted against the limit)
_KNOWN = {
    DONE: ("done", False, False),
    WRONG_INPUT: ("wrong input: the same command would fail again", False, False),
    PREEMPTED: ("preempted, and saved", True, False),
    HANG: ("no step ended in time", True, True),
    DIVERGED: ("the loss diverged: somebody must look", False, False),
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What follows from an exit code."""

    meaning: str
    restarts: bool
    counts: bool


def judge(code):
    """Returns the Verdict on an exit code; a negative one is a signal's number."""
    if code in _KNOWN:
        return Verdict(*_KNOWN[code])
    return Verdict(f"killed by signal {-code}" if code < 0 else f"crashed with code {code}", True, True)


def of_ranks(codes):
    """Returns the exit code that speaks for several processes of one run.

    Whatever says most about why: wrong input and divergence end a run for good, a hang or a preemption of one rank
    makes the others crash, and whoever was in the way was ended by a signal.
    """
    for telling in (WRONG_INPUT, DIVERGED, PREEMPTED, HANG):
        if telling in codes:
            return telling
    return max((code for code in codes if code != DONE), default=DONE)
