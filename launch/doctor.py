"""What would stop a run, found before it starts: versions, devices, stale variables, tools, places."""

import dataclasses
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

from . import topologies

_TOOLS = {
    "local": (), "tpu_vm": ("gcloud", "git"), "queued": ("gcloud", "git"), "gke": ("kubectl",), "xpk": ("xpk",),
    "sky": ("sky",), "slurm": ("sbatch", "srun"), "docker": ("docker",),
}  # fmt: skip
# Left over from another slice they make a start-up wait for ever.
_STALE = ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "MEGASCALE_PORT")
_TPU_FLAG = "xla_tpu"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `problem` is None where it is as it should be."""

    what: str
    found: str
    problem: str | None = None


def examine(target="local", *, accelerator="", workdir="", zone="", environment=None, execute=None):
    """Yields the Findings on this machine.

    Args:
      target: key of plan.TARGETS.
      accelerator: what should be here, or "".
      workdir: where the run will write, or "".
      zone: of the machines, to compare a bucket's place with.
      environment: {name: value}; default os.environ.
      execute: argv -> stdout, raising OSError or subprocess.CalledProcessError.
    """
    environment = os.environ if environment is None else environment
    execute = execute or _execute
    yield _python()
    yield from _versions()
    yield from _variables(environment)
    for tool in _TOOLS[target]:
        place = shutil.which(tool, path=environment.get("PATH"))
        yield Finding(tool, place or "not on PATH", None if place else f"--target={target} calls it: install it")
    if target == "local":
        yield from _chips()
        yield _devices(accelerator)
    if workdir:
        yield _bucket(workdir, zone, execute) if workdir.startswith("gs://") else _folder(workdir)


def _python():
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", version, None if sys.version_info >= (3, 11) else "must be 3.11 or newer")


def _versions():
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, version in found.items():
        problem = None
        if name not in ("jax", "libtpu") and version.split(".")[:2] != found["jax"].split(".")[:2]:
            problem = f"does not go with jax {found['jax']}: install both together"
        yield Finding(name, version, problem)


def _variables(environment):
    stale = [name for name in _STALE if name in environment]
    yield Finding(
        "MEGASCALE_*", ", ".join(stale) or "not set", "left over from another job: unset them" if stale else None
    )
    wrong = _TPU_FLAG in environment.get("XLA_FLAGS", "")
    yield Finding(
        "XLA_FLAGS",
        environment.get("XLA_FLAGS", "not set"),
        "TPU flags belong into LIBTPU_INIT_ARGS" if wrong else None,
    )
    joined = [
        name for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if name in environment
    ]
    partly = 0 < len(joined) < 3
    yield Finding(
        "JAX_COORDINATOR_ADDRESS", ", ".join(joined) or "not set",
        "set all of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or none" if partly else None,
    )  # fmt: skip


def _chips():
    devices = [str(path) for pattern in ("accel*", "vfio/[0-9]*") for path in pathlib.Path("/dev").glob(pattern)]
    if not devices:
        return
    holders = set()
    for handle in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(handle) in devices:
                holders.add(handle.parts[2])
        except OSError:  # not ours to look at, or gone
            continue
    holders.discard(str(os.getpid()))
    problem = "another process holds the chips: end it" if holders else None
    yield Finding("chips", f"{len(devices)}, held by {', '.join(sorted(holders)) or 'nobody'}", problem)


def _devices(accelerator):
    import jax

    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        return Finding("devices", "none", str(error).splitlines()[0])
    found = f"{len(devices)} x {devices[0].device_kind}"
    if not accelerator:
        return Finding("devices", found)
    topology = topologies.parse(accelerator)
    is_there = devices[0].platform == topology.platform
    return Finding("devices", found, None if is_there else f"--accelerator={accelerator}: not found here")


def _folder(workdir):
    wanted = pathlib.Path(workdir).absolute()
    place = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not os.access(place, os.W_OK):
        return Finding("workdir", str(workdir), f"{place} cannot be written")
    return Finding("workdir", f"{workdir}, {shutil.disk_usage(place).free / 2**30:,.0f} GiB free")


def _bucket(workdir, zone, execute):
    bucket = "/".join(workdir.split("/")[:3])
    try:
        location = execute(["gcloud", "storage", "buckets", "describe", bucket, "--format=value(location)"])
    except (OSError, subprocess.SubprocessError) as error:
        text = (getattr(error, "stderr", None) or "").strip() or str(error)
        return Finding("bucket", bucket, f"cannot be asked: {text.splitlines()[-1]}")
    location, region = location.strip().lower(), zone.rpartition("-")[0]
    is_near = not region or location == region or (len(location) < 5 and region.startswith(f"{location}-"))
    problem = None if is_near else f"lies in {location}, the machines in {region}: slow, and paid for by the byte"
    return Finding("bucket", f"{bucket} in {location}", problem)


def _execute(argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
