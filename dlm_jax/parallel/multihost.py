"""Several processes: start-up, global arrays from host-local rows, agreement on stopping."""

import os

import jax
from jax.experimental import multihost_utils


def initialize():
    """Joins the other processes when the environment names them; with one process it does nothing.

    Understands JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; SLURM tasks and Cloud TPU workers are
    found by jax itself. Must run before any device is used.
    """
    env = os.environ
    if jax.distributed.is_initialized():
        return
    if "JAX_COORDINATOR_ADDRESS" in env and int(env.get("JAX_NUM_PROCESSES", "1")) > 1:
        jax.distributed.initialize(
            env["JAX_COORDINATOR_ADDRESS"], int(env["JAX_NUM_PROCESSES"]), int(env["JAX_PROCESS_ID"])
        )
    elif int(env.get("SLURM_NTASKS", "1")) > 1 or len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        jax.distributed.initialize()


def is_main():
    """Returns whether this process writes files and logs."""
    return jax.process_index() == 0


def global_rows(local_rows, sharding):
    """Returns a global array from each process's own rows.

    Args:
      local_rows: numpy array [B / hosts, ...], this process's rows, in order of process.
      sharding: NamedSharding of the global array.
    """
    return jax.make_array_from_process_local_data(sharding, local_rows)


def any_host(flag):
    """Returns whether the flag is set on any process; every process must call it at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(jax.numpy.asarray(flag)).any())
