"""The doctor finds what would stop a run, and nothing where nothing is wrong."""

import json
import subprocess

import pytest
from dlm_jax.launch import doctor

from dlm_jax.cli.main import main


def problems(target="local", **options):
    return {found.what: found.problem for found in doctor.examine(target, **options) if found.problem}


def test_a_sound_machine_has_no_problem(tmp_path):
    assert problems(workdir=str(tmp_path / "new"), environment={}) == {}


@pytest.mark.parametrize(
    ("environment", "what", "message"),
    [
        ({"MEGASCALE_COORDINATOR_ADDRESS": "x"}, "MEGASCALE_*", "left over"),
        ({"XLA_FLAGS": "--xla_tpu_enable_something=true"}, "XLA_FLAGS", "LIBTPU_INIT_ARGS"),
        ({"JAX_COORDINATOR_ADDRESS": "x", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS", "set all of"),
    ],
)
def test_stale_variables_are_found(environment, what, message):
    assert message in problems(environment=environment)[what]


def test_missing_tools_absent_chips_and_closed_folders_are_found(monkeypatch):
    assert "install it" in problems("queued", environment={"PATH": "/nowhere"})["gcloud"]
    assert "not found here" in problems(accelerator="v5e:2x2", environment={})["devices"]
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "cannot be written" in problems(workdir="w", environment={})["workdir"]


@pytest.mark.parametrize(
    ("location", "zone", "is_far"),
    [
        ("US-WEST4", "us-west4-a", False),
        ("US", "us-west4-a", False),
        ("EUROPE-WEST4", "us-west4-a", True),
        ("EU", "us-west4-a", True),
    ],
)
def test_a_bucket_far_from_the_machines_is_found(location, zone, is_far):
    found = problems("slurm", workdir="gs://b/w", zone=zone, environment={}, execute=lambda argv: f"{location}\n")
    assert ("bucket" in found) is is_far


def test_a_bucket_that_cannot_be_asked_is_a_problem():
    def execute(argv):
        raise subprocess.CalledProcessError(1, argv, stderr="ERROR: 404\n")

    assert (
        problems("slurm", workdir="gs://b/w", environment={}, execute=execute)["bucket"]
        == "cannot be asked: ERROR: 404"
    )


def test_the_verb_ends_with_code_2_where_something_is_wrong(capsys, monkeypatch):
    assert main(["launch", "--target=local", "--doctor", "--json"]) == 0
    assert {"what", "found", "problem"} == set(json.loads(capsys.readouterr().out)[0])
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "0")
    assert main(["launch", "--target=local", "--doctor"]) == 2
    assert "PROBLEM MEGASCALE_*" in capsys.readouterr().out
