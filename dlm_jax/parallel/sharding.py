"""One rule table: logical axes of arrays -> mesh axes. Axes of size 1 vanish.

Parameters are split over `fsdp` along embed and over `tensor` along heads, MLP and vocabulary; batches over
`replica` and `fsdp`.
"""

import contextlib
import math

import jax
from jax.sharding import NamedSharding, PartitionSpec

from dlm_jax import axes

RULES = {
    axes.BATCH: ("replica", "fsdp"),
    axes.LENGTH: (),
    axes.LAYERS: (),
    axes.EMBED: ("fsdp",),
    axes.HEADS: ("tensor",),
    axes.KV_HEADS: ("tensor",),
    axes.HEAD_DIM: (),
    axes.MLP: ("tensor",),
    axes.VOCAB: ("tensor",),
    None: (),
}

# A vocabulary that the tensor axis does not divide stays whole: tokenizers choose odd sizes, people do not.
_MAY_STAY_WHOLE = (axes.VOCAB,)


def mesh_axes(axis, mesh):
    """Returns the mesh axes of more than one device that a logical axis is divided over, a tuple of names."""
    return tuple(a for a in RULES[axis] if mesh.shape[a] > 1)


def split(axis, size, mesh, name="array"):
    """Returns the mesh axes that a dimension of some size is divided over, a tuple of names; empty: it stays whole.

    Raises:
      ValueError: if the axis is unknown or its mesh axes do not divide the dimension.
    """
    if axis not in RULES:
        raise ValueError(f"{name}: unknown logical axis {axis!r}; known: {', '.join(str(a) for a in RULES)}")
    names = mesh_axes(axis, mesh)
    count = math.prod(mesh.shape[a] for a in names)
    if size % count == 0:
        return names
    if axis in _MAY_STAY_WHOLE:
        return ()
    raise ValueError(
        f"{name}: dimension {axis!r} of size {size} must be divisible by {count}, "
        f"the size of mesh axes {'x'.join(names)}"
    )


def spec(logical, shape, mesh, name="array"):
    """Returns the PartitionSpec of one array.

    Args:
      logical: a tuple of logical axis names or None, one a dimension.
      shape: the array's shape.
      mesh: Mesh.
      name: for messages.
    Raises:
      ValueError: if an axis is unknown or its mesh axes do not divide the dimension.
    """
    parts = []
    for axis, size in zip(logical, shape, strict=True):
        names = split(axis, size, mesh, name)
        parts.append(names if len(names) > 1 else (names[0] if names else None))
    return PartitionSpec(*parts)


def parameter_shardings(logical_axes, abstract_params, mesh):
    """Returns the NamedSharding of every parameter, in the structure of `abstract_params`.

    Args:
      logical_axes: tree with tuples of names as leaves.
      abstract_params: tree of anything with a `.shape`.
      mesh: Mesh.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract_params)
    named = treedef.flatten_up_to(logical_axes)
    return treedef.unflatten(
        [
            NamedSharding(mesh, spec(logical, leaf.shape, mesh, jax.tree_util.keystr(path)))
            for (path, leaf), logical in zip(leaves, named, strict=True)
        ]
    )


def batch_sharding(mesh, ndim=2):
    """Returns the NamedSharding of a batch: rows over replica and fsdp, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(mesh_axes(axes.BATCH, mesh) or None, *[None] * (ndim - 1)))


def replicated(mesh):
    """Returns the NamedSharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def on_mesh(mesh):
    """Returns a context in which functions are traced for a mesh; None: for one device."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def shard_by(function, in_specs, out_specs):
    """Returns the function run by every device on its own part of the arrays, as a kernel needs that XLA cannot split.

    Args:
      function: of arrays.
      in_specs, out_specs: PartitionSpecs over the axes of the mesh in use (`on_mesh`); without one nothing changes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
