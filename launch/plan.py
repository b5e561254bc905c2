"""What a launch will do, before anything is done: files to write and commands to run, the same for the same input.

| target | what is planned                                                                                       |
|--------|-------------------------------------------------------------------------------------------------------|
| local  | processes of this machine                                                                             |
| tpu_vm | create a TPU VM, copy the code, install it, run on all workers, delete                                 |
| queued | the same through a queued resource, which waits for capacity; driven by `queued.py`                   |
| gke    | a JobSet for `kubectl apply`                                                                          |
| xpk    | `xpk workload create`                                                                                 |
| sky    | a SkyPilot managed job                                                                                |
| slurm  | a batch script for `sbatch`                                                                           |
| docker | an image, built and run                                                                               |

On every host `dlm launch --target local` supervises the run; under SLURM the batch script does, by the same policy.
"""

import dataclasses
import json
import pathlib
import re
import shlex
import sys
import tempfile

from . import local, policy, topologies

# What the clouds call a machine: generation -> (prefix of accelerator types, multiplier of chips, image of TPU VMs,
# GKE accelerator label, chips a host).
_TPUS = {
    "v4": ("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", 4),
    "v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 4),
    "v5p": ("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", 4),
    "v6e": ("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", 4),
}
_SECRET = re.compile(r"(^|_)(api)?(key|token|secret|password|passwd|credentials?)(_|$)", re.IGNORECASE)
_DLM = "$HOME/dlm/bin/dlm"  # where setup_host.sh puts it


@dataclasses.dataclass(frozen=True)
class Spec:
    """What to launch, and where.

    Args:
      target: key of TARGETS.
      command: what follows `dlm`.
      name: of the job, and of what it needs in a cloud.
      accelerator: as `topologies.parse` takes it; "" where the target does not ask.
      zone, project: of Google Cloud; "" = as gcloud is set up.
      spot: use capacity that can be taken away.
      num_nodes: machines (slurm), or slices (gke, xpk).
      num_processes: a machine (local, slurm).
      image: of containers (gke, xpk, docker, sky).
      cluster: of xpk.
      partition: of slurm; "" = its default.
      time_limit: of slurm, as it writes it, for example 2-00:00:00.
      environment: ((name, value), ...) of the run.
      max_restarts: crashes and hangs that are forgiven.
      source: folder of the code that is copied to machines.
    """

    target: str
    command: tuple
    name: str = "dlm"
    accelerator: str = ""
    zone: str = ""
    project: str = ""
    spot: bool = False
    num_nodes: int = 1
    num_processes: int = 1
    image: str = ""
    cluster: str = ""
    partition: str = ""
    time_limit: str = ""
    environment: tuple = ()
    max_restarts: int = 10
    source: str = "."

    def __post_init__(self):
        if self.target not in TARGETS:
            raise ValueError(f"--target={self.target!r}: must be one of {', '.join(TARGETS)}")
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
            raise ValueError(
                f"--name={self.name!r}: must be 1 to 40 lower-case letters, digits and dashes, beginning with a letter"
            )
        for name, low in (("num_nodes", 1), ("num_processes", 1), ("max_restarts", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"--{name}={getattr(self, name)}: must be at least {low}")
        for name in NEEDS[self.target]:
            if not getattr(self, name):
                raise ValueError(f"--{name}: --target={self.target} needs it")
        if self.accelerator:
            topology = topologies.parse(self.accelerator)
            if self.target in ("tpu_vm", "queued", "xpk") and topology.platform != "tpu":
                raise ValueError(f"--accelerator={self.accelerator}: --target={self.target} has TPUs only")
            if self.target == "slurm" and topology.platform != "gpu":
                raise ValueError(f"--accelerator={self.accelerator}: --target=slurm has GPUs only")
            if self.target == "slurm" and self.num_processes != topology.dims[-1]:
                raise ValueError(
                    f"--num_processes={self.num_processes}: must be {topology.dims[-1]}, one for each GPU of a node"
                )
        for name, targets in _COUNTED.items():
            if getattr(self, name) > 1 and self.target not in targets:
                raise ValueError(f"--{name}={getattr(self, name)}: --target={self.target} has no use for it")
        if self.time_limit and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.time_limit):
            raise ValueError(f"--time_limit={self.time_limit!r}: must be written like 2-00:00:00")
        for name, _ in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"--env={name!r}: must be written NAME=VALUE")
            if _SECRET.search(name):
                raise ValueError(f"--env={name}: looks like a secret, which a plan would show; set it on the machines")


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of a plan.

    Args:
      name: what it is for, one word.
      argv: list of str.
      environment: {name: value} besides the caller's.
    """

    name: str
    argv: list
    environment: dict = dataclasses.field(default_factory=dict)

    @property
    def line(self):
        """The command as a shell takes it."""
        return shlex.join([*(f"{name}={value}" for name, value in self.environment.items()), *self.argv])


@dataclasses.dataclass(frozen=True)
class Plan:
    """Files to write, {relative path: text}, then commands in order."""

    files: dict
    steps: list

    def step(self, name):
        """Returns the Step of a name."""
        return next(step for step in self.steps if step.name == name)


def make(spec):
    """Returns the Plan of a Spec; reads and writes nothing.

    Raises:
      ValueError: as Spec.
    """
    return TARGETS[spec.target](spec)


def supervised(spec):
    """Returns the command line of the run under its supervisor, as a list of str."""
    return ["dlm", "launch", "--target=local", f"--max_restarts={spec.max_restarts}", "--", *spec.command]


# ------------------------------------------------------------------------------------------------ this machine


def _local(spec):
    processes = local.plan(list(spec.command), spec.num_processes, 12345, spec.environment)
    return Plan({}, [Step(f"rank-{rank}", argv, changes) for rank, (argv, changes) in enumerate(processes)])


def _docker(spec):
    platform = topologies.parse(spec.accelerator).platform if spec.accelerator else "cpu"
    extra, devices = {
        "gpu": ("cuda12,gcs", ["--gpus=all"]),
        "tpu": ("tpu,gcs", ["--privileged", "--net=host"]),
        "cpu": ("gcs", []),
    }[platform]
    workdir, mount = workdir_of(spec.command), []
    if workdir and "://" not in workdir:  # the same place inside as outside
        place = str(pathlib.Path(workdir).absolute())
        mount = [f"--volume={place}:{place}"]
        spec = dataclasses.replace(spec, command=with_workdir(spec.command, place))
    variables = [f"--env={name}={value}" for name, value in spec.environment]
    arguments = [f"--build-arg=EXTRA={extra}", f"--file={spec.source}/launch/Dockerfile"]
    return Plan({}, [
        Step("build", ["docker", "build", f"--tag={spec.image}", *arguments, spec.source]),
        Step("run", [
            "docker", "run", "--rm", "--init", f"--name={spec.name}", "--stop-timeout=120", *devices, *mount,
            *variables, spec.image, *supervised(spec)[1:],
        ]),
    ])  # fmt: skip


# ------------------------------------------------------------------------------------------------ Google Cloud


def cloud(spec):
    """Returns the gcloud flags that say where."""
    return [f"--zone={spec.zone}", *([f"--project={spec.project}"] if spec.project else [])]


def accelerator_type(name):
    """Returns (what Cloud calls a slice, the image of its machines), for example ("v5litepod-16", ...)."""
    topology = topologies.parse(name)
    prefix, multiplier, image, _, _ = _TPUS[topology.generation]
    return f"{prefix}-{topology.num_devices * multiplier}", image


def _on_host(spec, node):
    """Steps that take the code to every worker of a node and run there."""
    archive = pathlib.Path(tempfile.gettempdir()) / f"{spec.name}.tar.gz"
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", node, *cloud(spec), "--worker=all"]
    variables = "".join(f"{name}={shlex.quote(value)} " for name, value in spec.environment)
    run = f"{variables}flock dlm.lock {_DLM} {shlex.join(supervised(spec)[1:])}"
    # The session's own exit code would not tell a run that failed from a connection that did.
    report = f"{run}; echo dlm-exit-code: $?"
    return [
        Step("pack", [
            "git", "-C", spec.source, "archive", "--format=tar.gz", "--prefix=dlm_jax/", f"--output={archive}", "HEAD",
        ]),
        Step("copy", [
            "gcloud", "compute", "tpus", "tpu-vm", "scp", str(archive), f"{spec.source}/launch/setup_host.sh",
            f"{node}:", *cloud(spec), "--worker=all",
        ]),
        # What still runs after a lost connection is neither replaced nor run twice: the next run waits for it.
        Step("install", [
            *ssh, f"--command=flock -n -E 9 dlm.lock bash setup_host.sh {archive.name} tpu,gcs || [ $? -eq 9 ]",
        ]),
        Step("run", [*ssh, f"--command={report}"]),
    ]  # fmt: skip


def _tpu_vm(spec):
    kind, image = accelerator_type(spec.accelerator)
    base = ["gcloud", "compute", "tpus", "tpu-vm"]
    spot = ["--spot"] if spec.spot else []
    return Plan({}, [
        Step("create", [
            *base, "create", spec.name, *cloud(spec), f"--accelerator-type={kind}", f"--version={image}", *spot,
        ]),
        *_on_host(spec, spec.name),
        Step("delete", [*base, "delete", spec.name, *cloud(spec), "--quiet"]),
    ])  # fmt: skip


def _queued(spec):
    kind, image = accelerator_type(spec.accelerator)
    base = ["gcloud", "compute", "tpus", "queued-resources"]
    spot = ["--spot"] if spec.spot else []
    node = f"{spec.name}-node"
    return Plan({}, [
        Step("describe", [*base, "describe", spec.name, *cloud(spec), "--format=value(state.state)"]),
        Step("create", [
            *base, "create", spec.name, f"--node-id={node}", *cloud(spec), f"--accelerator-type={kind}",
            f"--runtime-version={image}", *spot,
        ]),
        *_on_host(spec, node),
        Step("delete", [*base, "delete", spec.name, *cloud(spec), "--force", "--quiet"]),
    ])  # fmt: skip


def _gke(spec):
    topology = topologies.parse(spec.accelerator)
    if topology.platform == "gpu":
        hosts, chips = topology.dims[0] * spec.num_nodes, topology.dims[1]
        where, resource = {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}, "nvidia.com/gpu"
    else:
        _, _, _, label, a_host = _TPUS[topology.generation]
        chips = min(a_host, topology.num_devices)
        hosts = topology.num_devices // chips
        where, resource = {
            "cloud.google.com/gke-tpu-accelerator": label,
            "cloud.google.com/gke-tpu-topology": "x".join(map(str, topology.dims)),
        }, "google.com/tpu"  # fmt: skip
    if spec.spot:
        where = {**where, "cloud.google.com/gke-spot": "true"}
    environment = [{"name": name, "value": value} for name, value in spec.environment]
    if topology.platform == "gpu" and hosts > 1:
        environment += [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{spec.name}-slice-0-0.{spec.name}:1234"},
            {"name": "JAX_NUM_PROCESSES", "value": str(hosts)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {
                "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}},
        ]  # fmt: skip
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,
        "nodeSelector": where,
        "containers": [{
            "name": "dlm",
            "image": spec.image,
            "args": supervised(spec)[1:],
            "env": environment,
            "resources": {"limits": {resource: chips}},
        }],
    }  # fmt: skip
    if spec.spot:
        pod["tolerations"] = [{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}]
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        # Nobody restarts what would fail again; nodes that go are no failure of the job.
        "podFailurePolicy": {"rules": [
            {"action": "FailJob", "onExitCodes": {
                "containerName": "dlm", "operator": "In", "values": [policy.WRONG_INPUT, policy.DIVERGED]}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]},
        "template": {"spec": pod},
    }  # fmt: skip
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": spec.name,
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": spec.max_restarts,
                "rules": [
                    {
                        "name": "wrongInputOrDivergence",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": 1 if topology.platform == "gpu" else spec.num_nodes,
                    "template": {"spec": job},
                }
            ],
        },
    }
    path = f"{spec.name}.jobset.json"
    return Plan({path: _json(manifest)}, [Step("apply", ["kubectl", "apply", f"--filename={path}"])])


def _xpk(spec):
    kind, _ = accelerator_type(spec.accelerator)
    project = [f"--project={spec.project}"] if spec.project else []
    zone = [f"--zone={spec.zone}"] if spec.zone else []
    spot = ["--spot"] if spec.spot else []
    variables = [f"--env={name}={value}" for name, value in spec.environment]
    return Plan({}, [
        Step("create", [
            "xpk", "workload", "create", f"--cluster={spec.cluster}", f"--workload={spec.name}", f"--tpu-type={kind}",
            f"--num-slices={spec.num_nodes}", f"--docker-image={spec.image}", *project, *zone, *spot, *variables,
            f"--max-restarts={spec.max_restarts}", f"--command={shlex.join(supervised(spec))}",
        ]),
    ])  # fmt: skip


def _sky(spec):
    topology = topologies.parse(spec.accelerator)
    if topology.platform == "gpu":
        hosts, gpus = topology.dims
        resources, nodes, extra = {"accelerators": f"H100:{gpus}"}, hosts * spec.num_nodes, "cuda12"
    else:
        kind, image = accelerator_type(spec.accelerator)
        resources = {"accelerators": f"tpu-{kind}", "accelerator_args": {"runtime_version": image}}
        nodes, extra = spec.num_nodes, "tpu,gcs"
    if spec.zone:
        resources["zone"] = spec.zone
    if spec.image:
        resources["image_id"] = f"docker:{spec.image}"
    # Exit codes are the supervisor's to judge; a lost machine is SkyPilot's to replace.
    task = {
        "name": spec.name,
        "num_nodes": nodes,
        "resources": {**resources, "use_spot": spec.spot},
        "workdir": spec.source,
        "envs": dict(spec.environment),
        "setup": f"python3 -m pip install --quiet '.[{extra}]'\n",
        "run": _SKY_RUN.format(run=shlex.join(supervised(spec))),
    }
    path = f"{spec.name}.sky.json"
    return Plan({path: _json(task)}, [Step("launch", ["sky", "jobs", "launch", "--yes", f"--name={spec.name}", path])])


_SKY_RUN = """\
if [ "${{SKYPILOT_NUM_NODES:-1}}" -gt 1 ]; then
  JAX_COORDINATOR_ADDRESS=$(echo "$SKYPILOT_NODE_IPS" | head -n1):1234
  export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
fi
{run}
"""


# ------------------------------------------------------------------------------------------------ SLURM


def _slurm(spec):
    tasks = spec.num_nodes * spec.num_processes
    gpus = []
    if spec.accelerator:
        gpus = [f"--gpus-per-node={topologies.parse(spec.accelerator).dims[-1]}"]
    wanted = [
        f"--job-name={spec.name}", f"--nodes={spec.num_nodes}", f"--ntasks={tasks}",
        f"--ntasks-per-node={spec.num_processes}", *gpus,
        *([f"--partition={spec.partition}"] if spec.partition else []),
        *([f"--time={spec.time_limit}"] if spec.time_limit else []),
        "--requeue", "--signal=TERM@120", "--open-mode=append", f"--output={spec.name}-%j.log",
    ]  # fmt: skip
    script = _SLURM.format(
        options="\n".join(f"#SBATCH {option}" for option in wanted),
        variables="".join(f"export {name}={shlex.quote(value)}\n" for name, value in spec.environment),
        task=shlex.quote(
            # SLURM signals its own child only, which is this shell: it hands the signal on, and waits again.
            f'{shlex.join([sys.executable, "-m", "dlm_jax", *spec.command])} & run=$!; '
            'trap "kill -TERM $run" TERM; wait "$run"; code=$?; '
            'while kill -0 "$run" 2>/dev/null; do wait "$run"; code=$?; done; '
            'echo "$code" > "$codes/$SLURM_PROCID"; exit "$code"'
        ),
        name=spec.name, max_restarts=spec.max_restarts, wrong=policy.WRONG_INPUT, diverged=policy.DIVERGED,
        preempted=policy.PREEMPTED,
    )  # fmt: skip
    path = f"{spec.name}.sbatch"
    return Plan({path: script}, [Step("submit", ["sbatch", path])])


_SLURM = """\
#!/usr/bin/env bash
{options}
set -uo pipefail
{variables}# Every task leaves its exit code: the batch job restarts by what they mean together.
codes="$PWD/{name}-$SLURM_JOB_ID.codes"
crashes="$codes/crashes"
mkdir -p "$codes" && rm -f "$codes"/[0-9]*
export codes
# shellcheck disable=SC2016  # expanded by each task, not here
srun --kill-on-bad-exit=1 bash -c {task}
code=$?
said() {{ cat "$codes"/[0-9]* 2>/dev/null | grep -qx "$1"; }}
if [ "$code" -eq 0 ]; then
  rm -r "$codes"
elif said {wrong}; then
  code={wrong}
elif said {diverged}; then
  code={diverged}
elif said {preempted}; then
  code={preempted}
  scontrol requeue "$SLURM_JOB_ID"
else
  echo crash >> "$crashes"
  [ "$(wc -l < "$crashes")" -gt {max_restarts} ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def workdir_of(command):
    """Returns the workdir of a command, or ""."""
    place, is_joined = _workdir_place(command)
    return "" if place is None else command[place].partition("=")[2] if is_joined else command[place]


def with_workdir(command, workdir):
    """Returns a command with another workdir in place of its own."""
    place, is_joined = _workdir_place(command)
    changed = f"--workdir={workdir}" if is_joined else workdir
    return (*command[:place], changed, *command[place + 1 :])


def _workdir_place(command):
    """(index of the word that holds the workdir or None, whether the flag stands in it, too)."""
    for index, word in enumerate(command):
        if word.startswith("--workdir="):
            return index, True
        if word == "--workdir" and index + 1 < len(command):
            return index + 1, False
    return None, False


def _json(value):
    return json.dumps(value, indent=2) + "\n"


TARGETS = {
    "local": _local, "tpu_vm": _tpu_vm, "queued": _queued, "gke": _gke, "xpk": _xpk, "sky": _sky, "slurm": _slurm,
    "docker": _docker,
}  # fmt: skip
_COUNTED = {"num_processes": ("local", "slurm"), "num_nodes": ("slurm", "gke", "xpk", "sky")}
NEEDS = {
    "local": (), "tpu_vm": ("accelerator", "zone"), "queued": ("accelerator", "zone"), "gke": ("accelerator", "image"),
    "xpk": ("accelerator", "cluster", "image"), "sky": ("accelerator",), "slurm": (), "docker": ("image",),
}  # fmt: skip
