"""A real SLURM on this machine runs a training of two tasks from the script that `dlm launch` plans.

Needs Debian's slurm-wlm and munge, and root; `.ci/run` installs them where it may.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest
from dlm_jax.launch import local

from dlm_jax.training import checkpoint

pytestmark = pytest.mark.slow
STEPS = 120
TRAIN = (
    "train", "--config=debug", f"--config.train.num_steps={STEPS}", "--config.checkpoint.every_steps=10",
    "--config.eval.every_steps=0", "--config.log.every_steps=1",
)  # fmt: skip
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={home}/munge/socket
SelectType=select/cons_tres
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/ctld.pid
SlurmdPidFile={home}/d.pid
SlurmctldPort={ctld}
SlurmdPort={d}
SlurmctldLogFile={home}/ctld.log
SlurmdLogFile={home}/d.log
KillWait=30
MinJobAge=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, environment):
    """The environment in which sbatch finds a SLURM of one node."""
    if os.getuid() != 0 or not all(shutil.which(name) for name in ("munged", "slurmctld", "slurmd", "sbatch")):
        pytest.skip("reported: needs root and Debian's slurm-wlm and munge")
    home = tmp_path_factory.mktemp("slurm")
    for name in ("munge", "state", "spool"):
        (home / name).mkdir()
    for path in (home, *home.parents):
        if path.stat().st_mode & 0o022 and not path.stat().st_mode & 0o1000:
            path.chmod(path.stat().st_mode & ~0o022)
    key = home / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    text = CONF.format(host=socket.gethostname().split(".")[0], home=home, ctld=local.free_port(), d=local.free_port())
    (home / "slurm.conf").write_text(text)
    variables = {**environment, "SLURM_CONF": str(home / "slurm.conf")}
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={home}/munge/socket", f"--key-file={key}",
         f"--pid-file={home}/munge/pid", f"--log-file={home}/munge/log", f"--seed-file={home}/munge/seed"],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]  # fmt: skip
    started = []
    try:
        for argv in daemons:
            log = open(home / f"{argv[0]}.out", "w")  # noqa: SIM115, the process writes to it
            started.append(subprocess.Popen(argv, env=variables, stdout=log, stderr=log))
            time.sleep(1.5)
        end = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo", "-h"], env=variables, capture_output=True, text=True).stdout:
            logs = "\n".join(path.read_text() for path in home.glob("*.out"))
            assert time.monotonic() < end and all(process.poll() is None for process in started), logs
            time.sleep(0.5)
        yield variables
    finally:
        for process in reversed(started):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def submit(slurm, folder, name, *command):
    """Plans and submits; returns the job's number."""
    launch = [sys.executable, "-m", "dlm_jax", "launch", "--target=slurm", f"--name={name}", "--num_processes=2"]
    argv = [*launch, "--max_restarts=0", "--", *command]
    done = subprocess.run(argv, cwd=folder, env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def wait(slurm, job, folder, seconds=240):
    """The final state of a job, and what it wrote."""
    end = time.monotonic() + seconds
    while True:
        show = subprocess.run(["scontrol", "show", "job", job], env=slurm, capture_output=True, text=True).stdout
        state = next((word.partition("=")[2] for word in show.split() if word.startswith("JobState=")), "GONE")
        text = "".join(path.read_text() for path in pathlib.Path(folder).glob(f"*-{job}.log"))
        if state not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
            return state, text
        assert time.monotonic() < end, show + text
        time.sleep(0.2)


def sha(workdir):
    step, params, _ = checkpoint.load_item(workdir, "params")
    assert step == STEPS
    return checkpoint.params_sha256(params)


@pytest.fixture(scope="module")
def alone(slurm, tmp_path_factory):
    """The parameters of a job of two tasks that was left alone."""
    folder = tmp_path_factory.mktemp("alone")
    state, text = wait(slurm, submit(slurm, folder, "alone", *TRAIN, f"--workdir={folder / 'w'}"), folder)
    assert state == "COMPLETED", text
    assert "'fsdp': 2" in text  # two tasks found each other
    return sha(folder / "w")


def test_a_job_that_is_asked_to_stop_saves_is_queued_again_and_ends_the_same(slurm, alone, tmp_path):
    job = submit(slurm, tmp_path, "stopped", *TRAIN, f"--workdir={tmp_path / 'w'}")
    while not checkpoint.steps(tmp_path / "w"):
        time.sleep(0.05)
    # To the tasks, as --signal=TERM@120 does before the time limit.
    subprocess.run(["scancel", "--signal=TERM", job], env=slurm, check=True)
    end = time.monotonic() + 60
    log = tmp_path / f"stopped-{job}.log"
    while "and saved" not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=slurm, capture_output=True)
    state, text = wait(slurm, job, tmp_path)
    assert state == "COMPLETED", text
    assert sha(tmp_path / "w") == alone


def test_wrong_input_is_not_queued_again(slurm, tmp_path):
    text = tmp_path / "none.txt"
    command = (*TRAIN, f"--workdir={tmp_path / 'w'}", f"--config.data.source={text}")
    state, text = wait(slurm, submit(slurm, tmp_path, "wrong", *command), tmp_path)
    assert state == "FAILED" and "no such file" in text, text
    assert (tmp_path / next(tmp_path.glob("*.codes")).name / "0").read_text().strip() == "2"
