"""Plans are pure, say exactly what will be done, and are what their tools take."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from dlm_jax.launch import plan, sweep

from dlm_jax.cli.main import main

GOLDEN = pathlib.Path(__file__).parent / "golden_plans.json"
ROOT = pathlib.Path(__file__).parents[2]
COMMAND = ("train", "--config=owt_mdlm_small", "--workdir=gs://bucket/owt", "--config.optimizer.learning_rate=0.001")
SPECS = {
    "local": {"num_processes": 2, "environment": (("A", "b c"),)},
    "tpu_vm": {"accelerator": "v4-32", "zone": "us-central2-b"},
    "queued": {"accelerator": "v5litepod-16", "zone": "us-west4-a", "project": "p", "spot": True},
    "gke": {"accelerator": "v6e:16x16", "image": "registry/dlm:1", "num_nodes": 2, "spot": True},
    "gke on GPUs": {"accelerator": "H100x4x8", "image": "registry/dlm:1", "environment": (("A", "b c"),)},
    "xpk": {"accelerator": "v5p:4x4x4", "cluster": "c", "image": "registry/dlm:1"},
    "sky": {"accelerator": "v5p-64", "spot": True, "environment": (("A", "b c"),)},
    "sky on GPUs": {"accelerator": "H100x2x8"},
    "slurm": {
        "num_nodes": 4, "num_processes": 8, "accelerator": "H100x8", "partition": "all", "time_limit": "2-00:00:00",
    },
    "docker": {"image": "dlm", "accelerator": "H100x8"},
}  # fmt: skip


def planned(name):
    target = name.partition(" ")[0]
    return plan.make(plan.Spec(target=target, command=COMMAND, name="owt", **SPECS[name]))


def plain(name):
    """A plan as JSON, whatever Python and temporary folder it was made with."""
    made = planned(name)
    steps = [{"name": step.name, "line": step.line} for step in made.steps]
    text = json.dumps({"files": {path: text.splitlines() for path, text in made.files.items()}, "steps": steps})
    return json.loads(text.replace(sys.executable, "PYTHON").replace(f"{plan.tempfile.gettempdir()}/", "TMP/"))


@pytest.mark.parametrize("name", SPECS)
def test_plans_are_what_they_were(name):
    """After a change that is meant: python tests/launch/plan_test.py writes them anew, to be read in the diff."""
    assert plain(name) == json.loads(GOLDEN.read_text())[name]


def test_every_target_has_a_golden_plan():
    assert {name.partition(" ")[0] for name in SPECS} == set(plan.TARGETS) == set(plan.NEEDS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "moon"}, r"--target='moon': must be one of local, tpu_vm, .*docker$"),
        ({"target": "local", "name": "Owt_1"}, r"--name='Owt_1': must be 1 to 40 lower-case"),
        ({"target": "local", "name": "../up"}, r"--name='../up': must be"),
        ({"target": "local", "num_processes": 0}, r"--num_processes=0: must be at least 1"),
        ({"target": "queued", "accelerator": "v5e:4x4"}, r"--zone: --target=queued needs it"),
        ({"target": "queued", "accelerator": "H100x8", "zone": "z"}, r"--accelerator=H100x8: .* has TPUs only"),
        ({"target": "sky", "accelerator": "v9"}, r"topology 'v9': must be written like"),
        ({"target": "slurm", "time_limit": "2 days"}, r"--time_limit='2 days': must be written like"),
        ({"target": "xpk", "accelerator": "H100x8", "cluster": "c", "image": "i"}, r"has TPUs only"),
        ({"target": "slurm", "accelerator": "v5e:4x4"}, r"--target=slurm has GPUs only"),
        ({"target": "slurm", "accelerator": "H100x8"}, r"--num_processes=1: must be 8, one for each GPU"),
        ({"target": "docker", "image": "i", "num_nodes": 2}, r"--num_nodes=2: --target=docker has no use for it"),
        ({"target": "local", "environment": (("A B", "c"),)}, r"--env='A B': must be written NAME=VALUE"),
        (
            {"target": "local", "environment": (("WANDB_API_KEY", "hidden!"),)},
            r"--env=WANDB_API_KEY: looks like a secret",
        ),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan.Spec(command=COMMAND, **fields)
    assert "hidden!" not in str(caught.value)  # the secret itself


def test_names_that_only_contain_a_secrets_name_are_no_secrets():
    plan.Spec(target="local", command=COMMAND, environment=(("TOKENIZERS_PARALLELISM", "false"), ("MONKEY", "1")))


def test_a_container_writes_where_the_command_says():
    command = ("train", "--config=debug", "--workdir", "runs/x")
    run = plan.make(plan.Spec(target="docker", command=command, image="i")).step("run").argv
    place = str(pathlib.Path("runs/x").absolute())
    assert f"--volume={place}:{place}" in run and run[run.index("--workdir") + 1] == place
    assert not [word for word in planned("docker").step("run").argv if word.startswith("--volume")]  # gs://


def shell_scripts(folder):
    found = {path.name: path.read_text() for path in (ROOT / "launch" / "setup_host.sh", ROOT / ".ci" / "run")}
    found |= {
        f"{name}.{path}": text for name in SPECS for path, text in planned(name).files.items() if "sbatch" in path
    }
    for name in ("sky", "sky on GPUs"):
        task = json.loads(next(iter(planned(name).files.values())))
        found |= {f"{name}.{part}.sh": "#!/usr/bin/env bash\n" + task[part] for part in ("setup", "run")}
    paths = []
    for name, text in found.items():
        paths.append(folder / name.replace(" ", "-"))
        paths[-1].write_text(text)
    return paths


def test_shell_scripts_are_clean(tmp_path):
    if shutil.which("shellcheck") is None:
        pytest.skip("reported: shellcheck is not installed")
    paths = shell_scripts(tmp_path)
    assert len(paths) == 7
    done = subprocess.run(["shellcheck", *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (tmp_path / "bad.sh").write_text("#!/usr/bin/env bash\nrm -r $1/*\n")  # the variation
    assert subprocess.run(["shellcheck", tmp_path / "bad.sh"], capture_output=True).returncode == 1


def check(value, schema, where=""):
    """Raises unless a value has just the fields of a schema: {name: schema} ("?" = optional), [schema], or a type."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        known = {name.rstrip("?"): part for name, part in schema.items()}
        unknown, needed = value.keys() - known.keys(), {name for name in schema if not name.endswith("?")}
        assert not unknown and needed <= value.keys(), (where, unknown, needed - value.keys())
        for name, part in value.items():
            check(part, known[name], f"{where}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, where
        for part in value:
            check(part, schema[0], f"{where}[]")
    else:
        assert isinstance(value, schema), (where, value)


# What jobset.x-k8s.io/v1alpha2 and batch/v1 know of what is used here.
JOB = {
    "parallelism": int, "completions": int, "completionMode": str, "backoffLimit": int,
    "podFailurePolicy": {"rules": [{
        "action": str, "onExitCodes?": {"containerName": str, "operator": str, "values": [int]},
        "onPodConditions?": [{"type": str, "status": str}],
    }]},
    "template": {"spec": {
        "restartPolicy": str, "terminationGracePeriodSeconds": int, "nodeSelector": dict, "tolerations?": [dict],
        "containers": [{"name": str, "image": str, "args": [str], "env": list, "resources": {"limits": dict}}],
    }},
}  # fmt: skip
JOBSET = {
    "apiVersion": str, "kind": str, "metadata": {"name": str, "annotations": dict},
    "spec": {
        "failurePolicy": {"maxRestarts": int, "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}]},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["gke", "gke on GPUs"])
def test_job_sets_have_the_fields_of_job_sets_and_hosts_times_chips_devices(name):
    manifest = json.loads(planned(name).files["owt.jobset.json"])
    check(manifest, JOBSET)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    limits = job["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert job["completions"] * next(iter(limits.values())) == {"gke": 256, "gke on GPUs": 32}[name]
    with pytest.raises(AssertionError):
        check({**manifest, "specs": {}}, JOBSET)


@pytest.mark.parametrize("name", ["gke", "gke on GPUs"])
def test_kubernetes_itself_takes_the_jobs(name):
    validate = pytest.importorskip("kubernetes_validate", reason="reported: pip install 'dlm_jax[clouds]'")
    spec = json.loads(planned(name).files["owt.jobset.json"])["spec"]["replicatedJobs"][0]["template"]["spec"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "owt"}, "spec": spec}
    validate.validate(job, "1.31", strict=True)
    with pytest.raises(Exception, match="backoffLimits"):
        validate.validate({**job, "spec": {**spec, "backoffLimits": 1}}, "1.31", strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sky", "sky on GPUs"])
def test_skypilot_itself_takes_the_task(name, tmp_path):
    sky = pytest.importorskip("sky", reason="reported: pip install 'dlm_jax[clouds]'")
    task = json.loads(planned(name).files["owt.sky.json"])
    path = tmp_path / "task.json"
    path.write_text(json.dumps({**task, "workdir": str(tmp_path)}))
    loaded = sky.Task.from_yaml(str(path))
    assert loaded.name == "owt" and loaded.num_nodes == {"sky": 1, "sky on GPUs": 2}[name]
    path.write_text(json.dumps({**task, "resources": {**task["resources"], "acceleratorz": 1}}))
    with pytest.raises(Exception, match="acceleratorz"):
        sky.Task.from_yaml(str(path))


def run(capsys, *arguments):
    code = main(["launch", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_dry_run_prints_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("--target=slurm", "--dry_run", "--json", "--", "train", "--config=debug", "--workdir=w")
    code, out, _ = run(capsys, *arguments)
    (found,) = json.loads(out)
    assert code == 0 and found["steps"] == [{"name": "submit", "argv": ["sbatch", "dlm.sbatch"], "environment": {}}]
    assert "--config=debug" in found["files"]["dlm.sbatch"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target=local", "--"), "command: must follow --"),
        (("--target=local", "--", "fly"), "command 'fly': must be one of"),
        (("--", "train"), "--target: must be given"),
        (("--target=slurm", "--", "train", "--config=debgu", "--workdir=w"), "no shipped config of that name"),
        (("--target=slurm", "--", "train", "--config=debug"), "--workdir: must be given"),
        (("--target=slurm", "--", "train", "--config=debug", "--workdir=w", "--config.seed=x"), "seed"),
        (("--target=local", "--sweep=none.json", "--", "train", "--config=debug", "--workdir=w"), "none.json"),
    ],
)  # fmt: skip
def test_what_would_fail_there_is_refused_here(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_every_combination_each_in_its_own_folder(capsys, tmp_path):
    path = tmp_path / "sweep.json"
    path.write_text('{"optimizer.learning_rate": [0.001, 0.01], "seed": [0, 1]}')
    code, out, err = run(
        capsys, "--target=slurm", "--name=try", f"--sweep={path}", "--dry_run", "--json",
        "--", "train", "--config=debug", "--workdir", "runs/x",
    )  # fmt: skip
    assert code == 0, err
    plans = json.loads(out)
    assert [each["name"] for each in plans] == ["try-0", "try-1", "try-2", "try-3"]
    script = plans[2]["files"]["try-2.sbatch"]
    assert "--workdir runs/x/learning_rate=0.01,seed=0" in script
    assert "--config.optimizer.learning_rate=0.01 --config.seed=0" in script
    path.write_text('{"optimizer.learning_rates": [0.001]}')
    code, out, err = run(
        capsys, "--target=slurm", f"--sweep={path}", "--", "train", "--config=debug", "--workdir=runs/x"
    )
    assert code == 2 and "learning_rates" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must be an object of fields"),
        ({"seed": 1}, "seed must be a list"),
        ({"seed": [[1]]}, r"seed holds \[1\]"),
        ({"../x": [1]}, "must be a field"),
        ({"data.source": ["a/b", "a_b"]}, "two runs would share a workdir"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        sweep.commands(["train", "--workdir=w"], content, "sweep.json")


def test_a_value_of_a_sweep_cannot_leave_the_workdir():
    found = sweep.commands(["train", "--workdir=w"], {"data.source": ["../../etc", "/x"]}, "sweep.json")
    assert [command[1] for _, command in found] == ["--workdir=w/source=_.._etc", "--workdir=w/source=_x"]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: plain(name) for name in SPECS}, indent=1) + "\n")
