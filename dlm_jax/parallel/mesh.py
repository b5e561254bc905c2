"""The device mesh (replica, fsdp, tensor), outer to inner; axis types are always Auto and always stated."""

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("replica", "fsdp", "tensor")


def make_mesh(shape, devices=None):
    """Returns a Mesh over all devices, neighbours in it being neighbours in the machine where that can be.

    Args:
      shape: (replica, fsdp, tensor); the product is the number of devices.
      devices: a sequence of devices; None for all.
    """
    devices = list(jax.devices() if devices is None else devices)
    # A mesh axis may be a part of a slice's dimension: 64 x 4 on a slice of 16 x 16.
    arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))
