"""Several processes: start-up, global arrays from host-local rows, agreement without the devices.

What to do next is agreed on over the hosts' own channel, never by a device collective: a device that waits for a
peer cannot say for whom.
"""

import collections
import functools
import os
import time

import jax
from jax._src import cloud_tpu_init, distributed  # neither has a public door: on a TPU VM? | the key-value store
from jax.experimental import multihost_utils

_rounds = collections.Counter()


class ProcessesMissing(Exception):
    """Other processes did not come in time; the message says which."""


def initialize():
    """Joins the other processes when the environment names them; with one process it does nothing.

    Understands JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; SLURM tasks and Cloud TPU workers are
    found by jax itself. Must run before any device is used.

    Raises:
      ValueError: if a variable is missing or no number.
      ProcessesMissing: if the others do not come.
    """
    env = os.environ
    if jax.distributed.is_initialized():
        return
    if "JAX_COORDINATOR_ADDRESS" in env and _number("JAX_NUM_PROCESSES", 1) > 1:
        count, index = _number("JAX_NUM_PROCESSES", 1), _number("JAX_PROCESS_ID")
        if not 0 <= index < count:
            raise ValueError(f"JAX_PROCESS_ID={index}: must be between 0 and {count - 1}")
        _join(env["JAX_COORDINATOR_ADDRESS"], count, index)
    elif (
        _number("SLURM_NTASKS", 1) > 1
        or len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
        or cloud_tpu_init.running_in_cloud_tpu_vm
    ):
        _join()


def _join(*arguments):
    try:
        jax.distributed.initialize(*arguments)
    except RuntimeError as error:
        raise ProcessesMissing(f"start: {str(error).splitlines()[0]}") from None


def _number(name, default=None):
    text = os.environ.get(name, default)
    try:
        return int(text)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={text!r}: must be a whole number") from None


def is_main():
    """Returns whether this process writes files and logs."""
    return jax.process_index() == 0


def exchange(name, text="", *, seconds=1800.0):
    """Returns the text of every process, in order of process, once all have given theirs: a barrier that can fail.

    Args:
      name: str, of the meeting; every process must come to the same meetings in the same order.
      text: str, this process's word.
      seconds: float, how long to wait for the others.
    Raises:
      ProcessesMissing: naming those who have not come.
    """
    if not jax.distributed.is_initialized():
        return [text]
    # Asking jax.process_count() could start the devices, for which all processes wait without a word.
    here = distributed.global_state
    client, count, rank = here.client, here.num_processes, here.process_id
    meeting = f"dlm/{name}/{_rounds[name]}"
    _rounds[name] += 1
    client.key_value_set(f"{meeting}/{rank}", f"={text}")  # an empty value would not count as one
    # The service's own barrier keeps its timeout only to the heartbeat, and does not say who is missing.
    deadline, texts = time.monotonic() + seconds, []
    for index in range(count):
        left = max(1, int(1000 * (deadline - time.monotonic())))
        try:
            texts.append(client.blocking_key_value_get(f"{meeting}/{index}", left)[1:])
        except jax.errors.JaxRuntimeError as error:
            came = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(f"{meeting}/")}
            missing = ", ".join(str(index) for index in range(count) if index not in came)
            reason = f"no sign of process {missing}" if missing else str(error).splitlines()[0]
            raise ProcessesMissing(f"{name}: after {seconds:g} s {reason} (of {count})") from None
    return texts


def decide(name, choose, *, seconds=1800.0):
    """Returns what the main process chooses, on every process.

    Args:
      name: as in `exchange`.
      choose: () -> str, called on the main process only.
      seconds: as in `exchange`.
    Raises:
      ProcessesMissing: as `exchange`.
    """
    return exchange(name, choose() if is_main() else "", seconds=seconds)[0]


def global_rows(rows_of, shapes, sharding):
    """Returns global arrays of which each process makes just the rows that its devices hold.

    Devices that hold the same rows may belong to several processes (a tensor axis over hosts, say): what a process
    makes follows from the sharding, never from its number.

    Args:
      rows_of: slice of the first axis -> {name: numpy array of those rows}.
      shapes: {name: shape of the global array}.
      sharding: NamedSharding over the first axis.
    """
    made = functools.cache(lambda start, stop: rows_of(slice(start, stop)))

    def piece(name):
        return lambda index: made(index[0].start, index[0].stop)[name]

    return {name: jax.make_array_from_callback(shape, sharding, piece(name)) for name, shape in shapes.items()}


def is_preempted(num_calls):
    """Returns whether a SIGTERM to any of several processes asks all of them to save after this step.

    The processes agree on the step in the background; each must ask after every step.

    Args:
      num_calls: int, how often this was asked: the same on all processes, and never less than before.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(num_calls)
