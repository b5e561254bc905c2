"""Named streams of random keys: the one place where keys are derived.

A key is a pure function of (root, stream name, step, micro-batch), so the noise of a step is the same on any mesh,
on any number of hosts, and after a resume.
"""

import zlib

import jax


def stream(root, name, step=0, microbatch=0):
    """Returns the key of a named stream at one step.

    Args:
      root: the root PRNG key of the run.
      name: the stream's name, for example "mask" or "dropout".
      step: int or int32[], the training or sampling step.
      microbatch: int or int32[], index of the micro-batch within the step.
    Returns:
      A PRNG key, different for every (name, step, microbatch).
    """
    key = jax.random.fold_in(root, zlib.crc32(name.encode()))
    return jax.random.fold_in(jax.random.fold_in(key, step), microbatch)


def per_row(key, num_rows):
    """Returns one key a row, independent of how many rows there are.

    Args:
      key: a PRNG key.
      num_rows: int, B.
    Returns:
      key[B]; row b's key depends on (key, b) only, so results do not depend on the batch size.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jax.numpy.arange(num_rows))


def random_orders(key, num_rows, length):
    """Returns int32[B, L], one uniformly random order a row; row b's depends on (key, b) only."""
    bits = jax.vmap(lambda row_key: jax.random.bits(row_key, (length,)))(per_row(key, num_rows))
    return jax.numpy.argsort(bits, axis=-1)
