"""A fake gcloud on PATH takes the queued-resource state machine through preemption, failures, quota and success."""

import json
import os
import pathlib
import stat
import subprocess
import sys

import pytest
from dlm_jax.launch import plan, queued

# Replays answers: {"create": [...], "describe": [...], "scp": [...], "ssh": [...], "delete": [...]}, the last for ever;
# an answer is [exit code, stdout, stderr]. What was asked is appended to asked.jsonl.
FAKE = """#!{python}
import json, pathlib, sys
home = pathlib.Path({home!r})
script = json.loads((home / "script.json").read_text())
verb = next(word for word in sys.argv[1:] if word in ("create", "describe", "scp", "ssh", "delete"))
if verb == "ssh":
    verb = "install" if any("setup_host" in word for word in sys.argv) else "run"
with open(home / "asked.jsonl", "a") as file:
    file.write(json.dumps([verb, sys.argv[1:]]) + "\\n")
answers = script[verb]
code, out, err = answers[0]
if len(answers) > 1:
    script[verb] = answers[1:]
    (home / "script.json").write_text(json.dumps(script))
print(out)
print(err, file=sys.stderr)
sys.exit(code)
"""
OK = [0, "", ""]
NONE = [1, "", "ERROR: (gcloud) NOT_FOUND: Resource not found"]
QUOTA = [1, "", "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptible' has been exceeded"]


def state(name):
    return [0, name, ""]


def ended(*codes):
    return [max(codes), "\n".join(f"worker {rank}: dlm-exit-code: {code}" for rank, code in enumerate(codes)), ""]


ACTIVE, WAITING, LOST = state("ACTIVE"), state("WAITING_FOR_RESOURCES"), [255, "", "Connection closed by remote host"]


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Returns a function: script -> (exit code, verbs that were asked, what was said, pauses)."""
    fake = tmp_path / "bin" / "gcloud"
    fake.parent.mkdir()
    fake.write_text(FAKE.format(python=sys.executable, home=str(tmp_path)))
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    source = tmp_path / "source"
    source.mkdir()
    for command in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m x"):
        subprocess.run(["git", "-C", source, *command.split()], check=True)
    spec = plan.Spec(
        target="queued", command=("train", "--config=debug", "--workdir=gs://b/w"), accelerator="v5litepod-16",
        zone="us-west4-a", spot=True, source=str(source), name="owt",
    )  # fmt: skip
    monkeypatch.setattr(plan.tempfile, "gettempdir", lambda: str(tmp_path))

    def run(script, max_restarts=3):
        everything = {"create": [OK], "scp": [OK], "install": [OK], "run": [ended(0)], "delete": [OK], **script}
        (tmp_path / "script.json").write_text(json.dumps(everything))
        said, pauses = [], []
        code = queued.drive(plan.make(spec), max_restarts=max_restarts, say=said.append, wait=pauses.append)
        asked = [json.loads(line)[0] for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
        return code, [verb for verb in asked if verb != "describe"], said, pauses

    return run


def test_it_waits_runs_and_deletes_the_machine(drive, tmp_path):
    code, asked, said, pauses = drive({"describe": [NONE, state("ACCEPTED"), state("PROVISIONING"), WAITING, ACTIVE]})
    assert (code, asked) == (0, ["create", "scp", "install", "run", "delete"]), said
    assert len(pauses) == 3 and (tmp_path / "owt.tar.gz").exists()
    calls = [json.loads(line)[1] for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    assert all("--zone=us-west4-a" in call for call in calls)
    assert "--force" in calls[-1] and "--quiet" in calls[-1] and "--spot" in calls[1]


def test_a_preempted_machine_is_deleted_and_made_again_without_being_counted(drive):
    describe = [NONE, ACTIVE, *([state("SUSPENDED"), state("SUSPENDED"), NONE, ACTIVE] * 5)]
    code, asked, said, _ = drive({"describe": describe, "run": [*([LOST] * 5), ended(0)]}, max_restarts=0)
    assert code == 0, said
    assert asked == [*(["create", "scp", "install", "run", "delete"] * 6)]


def test_a_request_that_failed_is_deleted_because_it_holds_quota_and_is_counted(drive):
    code, asked, _, pauses = drive({"describe": [NONE, state("FAILED")]}, max_restarts=2)
    assert code == 1 and asked == ["create", "delete", "delete", "delete"]
    pauses = [pause for pause in pauses if pause != queued._POLL]
    assert len(pauses) == 2 and pauses[0] < pauses[1]


def test_quota_is_waited_for_with_growing_pauses_and_a_jitter(drive):
    code, asked, said, pauses = drive(
        {"describe": [NONE, NONE, NONE, NONE, ACTIVE], "create": [QUOTA, QUOTA, QUOTA, OK]}
    )
    assert code == 0 and asked[:4] == ["create"] * 4, said
    assert 5 <= pauses[0] <= 10 and 10 <= pauses[1] <= 20 and 20 <= pauses[2] <= 40
    code, _, said, _ = drive({"describe": [NONE], "create": [QUOTA]}, max_restarts=2)
    assert code == 1 and "Quota limit" in said[-1] and "2 restarts were allowed" in said[-1]


def test_a_copy_that_fails_twice_is_tried_again(drive):
    scp = [[1, "", "ssh: connect: Connection refused"]] * 2
    code, asked, said, _ = drive({"describe": [NONE, ACTIVE], "scp": [*scp, OK]})
    assert code == 0 and asked == ["create", "scp", "scp", "scp", "install", "run", "delete"], said
    # For ever: the machine is given up, and another asked for.
    code, asked, said, _ = drive({"describe": [NONE, ACTIVE, NONE, ACTIVE], "scp": [scp[0]]}, max_restarts=1)
    assert code == 1 and asked[-5:] == ["create", "scp", "scp", "scp", "delete"], said


@pytest.mark.parametrize(
    ("codes", "want", "runs"),
    [
        ([[2, 1]], 2, 1),  # wrong input: never again
        ([[87, 87]], 87, 1),
        ([[85, 85]] * 9 + [[0, 0]], 0, 10),  # free
        ([[86, 1], [1, 1], [0, 0]], 0, 3),
        ([[1, 134]], 134, 4),  # three restarts
    ],
)
def test_exit_codes_of_the_run_are_told_from_a_lost_machine(drive, codes, want, runs):
    describe = [NONE, ACTIVE]
    code, asked, said, _ = drive({"describe": describe, "run": [ended(*each) for each in codes]})
    assert (code, asked.count("run")) == (want, runs), said
    assert asked[-1] == "delete"


def test_a_lost_connection_to_a_machine_that_is_there_is_counted(drive):
    code, asked, said, _ = drive({"describe": [NONE, ACTIVE], "run": [LOST]}, max_restarts=1)
    assert code == 1 and asked.count("run") == 2 and asked[-1] == "delete", said


def test_a_cloud_that_cannot_be_asked_is_asked_again_a_few_times_only(drive):
    code, asked, said, pauses = drive({"describe": [[1, "", "ERROR: (gcloud) 503 unavailable"]]}, max_restarts=2)
    assert (code, asked, len(pauses)) == (1, [], 2) and "503" in said[-1]
    code, asked, said, pauses = drive({"describe": [[1, "", "ERROR: please run gcloud auth login"]]})
    assert (code, pauses) == (2, []), said


def test_what_no_waiting_would_mend_ends_at_once(drive):
    denied = [1, "", "ERROR: (gcloud) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied"]
    code, asked, said, pauses = drive({"describe": [NONE], "create": [denied]})
    assert (code, asked, pauses) == (2, ["create"], []) and "PERMISSION_DENIED" in said[-1]


def test_the_verb_drives_a_fake_cloud_and_the_kubernetes_client(drive, tmp_path, monkeypatch, capfd):
    from dlm_jax.cli.main import main

    drive({"describe": [NONE, ACTIVE]})  # puts gcloud on PATH
    (tmp_path / "script.json").write_text(json.dumps({
        "describe": [NONE, ACTIVE], "create": [OK], "scp": [OK], "install": [OK], "run": [ended(0)], "delete": [OK],
    }))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    command = ("--", "train", "--config=debug", "--workdir=gs://b/w")
    arguments = ("launch", "--target=queued", "--accelerator=v5litepod-16", "--zone=us-west4-a", "--name=owt")
    assert main([*arguments, f"--source={tmp_path / 'source'}", *command]) == 0, capfd.readouterr().err
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/kubectl.txt"\n')
    kubectl.chmod(0o755)
    assert main(["launch", "--target=gke", "--accelerator=v5e:4x4", "--image=i", "--name=owt", *command]) == 0
    assert (tmp_path / "bin" / "kubectl.txt").read_text() == "apply --filename=owt.jobset.json\n"
    assert json.loads(pathlib.Path("owt.jobset.json").read_text())["kind"] == "JobSet"
    kubectl.unlink()
    capfd.readouterr()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", "--target=gke", "--accelerator=v5e:4x4", "--image=i", "--name=owt", *command]) == 2
    assert "kubectl: not on PATH" in capfd.readouterr().err
