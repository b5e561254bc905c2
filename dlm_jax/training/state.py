"""What a run carries from step to step, and where it lies on the mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from dlm_jax.parallel import sharding
from dlm_jax.training import guard as guards


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The whole state of a run; the data position and every random key follow from `step`."""

    step: jax.Array  # int32[], finished steps
    params: Any
    ema: Any  # exponential moving average of params; what sampling and evaluation use
    opt_state: Any
    guard: guards.Guard  # which steps were not taken


def init_state(denoiser, optimizer, key):
    """Returns the state before the first step."""
    params = denoiser.init(key)
    average = jax.tree.map(jnp.copy, params)  # its own buffers: the state is donated
    return TrainState(jnp.int32(0), params, average, optimizer.init(params), jax.tree.map(jnp.asarray, guards.fresh()))


def state_shardings(denoiser, optimizer, mesh):
    """Returns (abstract TrainState, TrainState of NamedShardings); optimizer moments lie where their parameter lies."""
    abstract = jax.eval_shape(lambda key: init_state(denoiser, optimizer, key), jax.random.key(0))
    params = sharding.parameter_shardings(denoiser.logical_axes, abstract.params, mesh)
    by_path = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def of_moment(path, leaf):
        # A moment's path ends with its parameter's path; counters and masked leaves match none.
        for start in range(len(path)):
            found = by_path.get(jax.tree_util.keystr(path[start:]))
            if found is not None and len(leaf.shape) == len(found.spec):
                return found
        return sharding.replicated(mesh)

    return abstract, TrainState(
        step=sharding.replicated(mesh),
        params=params,
        ema=params,
        opt_state=jax.tree_util.tree_map_with_path(of_moment, abstract.opt_state),
        guard=jax.tree.map(lambda _: sharding.replicated(mesh), abstract.guard),
    )


def with_shardings(abstract, shardings):
    """Returns a tree of jax.ShapeDtypeStruct that say where each array lies, as restoring needs."""

    def describe(leaf, where: NamedSharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(describe, abstract, shardings)
