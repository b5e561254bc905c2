"""Every second of a run belongs to one activity, and what was done again is counted as lost."""

import json
import time

import pytest

from dlm_jax.training import goodput


def test_a_clock_leaves_out_no_second():
    started = time.monotonic()
    clock = goodput.Clock("restore")
    for activity in ("compile", "step", "data", "step"):
        time.sleep(0.01)
        clock.to(activity)
    first = clock.take()
    assert set(first) == {"seconds/restore", "seconds/compile", "seconds/step", "seconds/data"}
    time.sleep(0.01)
    second = clock.take()
    assert set(second) == {"seconds/step"}
    total = sum(first.values()) + sum(second.values())
    assert abs(total - (time.monotonic() - started)) < 0.005


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# Killed after step 30 with a checkpoint at 20; started again 5 seconds after its last word, one of them for restoring.
RUN = [
    {"step": 0, "time": 103, "attempt_from": 0, "seconds/prepare": 2, "seconds/restore": 1},
    {"step": 10, "time": 108, "loss": 3.0, "seconds/compile": 4, "seconds/step": 1},
    {"step": 20, "time": 110, "loss": 2.0, "seconds/step": 1, "seconds/save": 1},
    {"step": 30, "time": 111, "loss": 1.0, "seconds/step": 1},
    {"step": 20, "time": 117, "attempt_from": 20, "seconds/restore": 1},
    {"step": 30, "time": 119, "loss": 1.0, "seconds/step": 2},
    {"step": 30, "time": 120, "seconds/save": 1},
]


def test_lost_work_and_down_time_are_told_from_kept_steps(tmp_path):
    found = goodput.summarize(written(tmp_path / "metrics.jsonl", RUN))
    assert found["seconds"] == {
        "prepare": 2, "restore": 2, "compile": 4, "step": 4, "data": 0, "evaluate": 0, "save": 2, "lost": 1, "down": 5,
    }  # fmt: skip
    assert (found["attempts"], found["step"], found["steps_done_again"]) == (2, 30, 10)
    assert found["total_seconds"] == 20 == RUN[-1]["time"] - 100
    assert found["goodput"] == 4 / 20
    # Variation: without the restart nothing is lost.
    assert goodput.summarize(written(tmp_path / "m", RUN[:4]))["seconds"]["lost"] == 0
    assert any(line.startswith("goodput 20.0% of 20.0 s") for line in goodput.table(found))


def test_lines_from_before_and_damaged_ones(tmp_path):
    assert goodput.summarize(written(tmp_path / "old", [{"step": 1, "loss": 2.0}]))["goodput"] == 0
    path = written(tmp_path / "bad", RUN)
    path.write_text(path.read_text() + "[1]\n")
    with pytest.raises(ValueError, match=r"bad:8: is not a line of metrics"):
        goodput.summarize(path)
