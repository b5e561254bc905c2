"""The device mesh (replica, fsdp, tensor), outer to inner; axis types are always Auto and always stated."""

import jax
from jax.sharding import AxisType

AXES = ("replica", "fsdp", "tensor")


def make_mesh(shape, devices=None):
    """Returns a Mesh over all devices.

    Args:
      shape: (replica, fsdp, tensor); the product is the number of devices.
      devices: a sequence of devices; None for all.
    """
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
