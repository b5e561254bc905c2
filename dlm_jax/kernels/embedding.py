"""The rows of an embedding table, by token."""

import jax
from jax.sharding import PartitionSpec

from dlm_jax import axes
from dlm_jax.parallel import sharding


def embed(table, tokens, dtype):
    """Returns table[tokens] as [B, L, D] of a dtype.

    On a mesh every device looks up its own part of the width for all rows of its fsdp group and then exchanges widths
    for rows: neither the table nor its gradient is gathered.

    Args:
      table: float32[V + 1, D].
      tokens: int32[B, L].
      dtype: of the result.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return table[tokens].astype(dtype)
    rows, width = sharding.split(axes.BATCH, len(tokens), mesh), sharding.split(axes.EMBED, table.shape[1], mesh)

    def on_device(table, tokens):
        if not width:
            return table[tokens].astype(dtype)
        tokens = jax.lax.all_gather(tokens, width, axis=0, tiled=True)
        return jax.lax.all_to_all(table[tokens].astype(dtype), width, split_axis=0, concat_axis=2, tiled=True)

    spec = PartitionSpec
    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(spec(None, width or None), spec(rows or None)), out_specs=spec(rows or None)
    )(table, tokens)
