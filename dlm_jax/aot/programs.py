"""The programs of a configuration, compiled for a topology: no device of it is needed, no parameter is made."""

import collections
import dataclasses
import os
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from dlm_jax import config as configs
from dlm_jax.diffusion import objectives
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.parallel import mesh as meshes
from dlm_jax.parallel import sharding
from dlm_jax.sampling import loop
from dlm_jax.training import optimizers, state
from dlm_jax.training.step import batch_names, jit_train_step

# Collective matrix products are cut into rings of permutations, one for each device: whole, they compile several times
# faster and can be counted.
_OPTIONS = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}, "gpu": {}}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program, per device.

    Args:
      seconds: of compiling.
      peak_memory_bytes: arguments, results and temporaries together, where they live at the same time.
      shortfall_bytes: by how much that exceeds the device's memory; 0 = it fits.
      collectives: {name: how many in the program; one inside a loop counts once}.
      kernels: {name of a Pallas kernel or library call: how many}.
    """

    seconds: float
    peak_memory_bytes: int
    shortfall_bytes: int
    collectives: dict
    kernels: dict


class Unavailable(Exception):
    """The compiler for a topology is not installed."""


def devices_of(topology):
    """Returns the devices of a Topology as numpy array [n], without any of them being here.

    Raises:
      Unavailable: if the compiler for them is not installed.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    extra = "aot" if topology.platform == "tpu" else "aot_gpu"
    try:
        found = topologies.get_topology_desc(**topology.compiler_arguments)
    except Exception as error:  # whatever the plugin raises: it is missing, or does not know the topology
        text = " ".join(str(error).split())[:200]
        raise Unavailable(
            f"{topology.name}: cannot compile for it here ({text}); pip install 'dlm_jax[{extra}]'"
        ) from None
    return np.asarray(found.devices)


def mesh_of(topology, shape):
    """Returns the Mesh (replica, fsdp, tensor) over the devices of a Topology."""
    return meshes.make_mesh(shape, devices_of(topology).flat)


def train_step(config, vocab_size, topology):
    """Returns the lowered training step of a RunConfig on a Topology.

    Raises:
      ValueError: if the mesh does not fit; Unavailable.
    """
    mesh = mesh_of(topology, configs.check_devices(config, topology.num_devices))
    denoiser = Denoiser(config.model, vocab_size, topology.platform)
    optimizer = optimizers.make_optimizer(config.optimizer, config.train.num_steps, denoiser.logical_axes)
    objective = objectives.make_objective(config.diffusion, vocab_size)
    abstract, shardings = state.state_shardings(denoiser, optimizer, mesh)
    names = batch_names(config)
    shape, rows = (config.train.batch_size, config.data.length), sharding.batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows) for name in names}
    step = jit_train_step(denoiser, objective, optimizer, config, mesh, shardings, names)
    with sharding.on_mesh(mesh):
        return step.lower(state.with_shardings(abstract, shardings), batch)


def sampler(config, vocab_size, topology, choices):
    """Returns the lowered sampler of a RunConfig's model on a Topology: its batch divided over all devices.

    Args:
      config: RunConfig; train.batch_size rows of data.length tokens are sampled.
      vocab_size: V.
      topology: Topology.
      choices: SampleConfig.
    """
    mesh = mesh_of(topology, (topology.num_devices, 1, 1))
    denoiser = Denoiser(config.model, vocab_size, topology.platform)
    canvas = np.full((config.train.batch_size, config.data.length), denoiser.mask_id, np.int32)
    program, rows, *rest = loop.build(denoiser, canvas, choices)

    def placed(tree, where):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=where), tree)

    whole = sharding.replicated(mesh)
    params = jax.eval_shape(denoiser.init, jax.random.key(0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    with sharding.on_mesh(mesh):
        return program.lower(
            placed(params, whole), placed(key, whole), placed(rows, sharding.batch_sharding(mesh)),
            *(placed(part, whole) for part in rest),
        )  # fmt: skip


def compile_for(lowered, topology):
    """Returns the Compiled of a lowered program; one that does not fit is no error.

    Args:
      lowered: jax.stages.Lowered.
      topology: Topology.
    """
    started = time.monotonic()
    try:
        executable = lowered.compile(compiler_options=_OPTIONS[topology.platform])
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"(?:Used |temporaries \()([\d.]+)([KMG])", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or needed is None:
            raise
        wanted = int(float(needed[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[needed[2]])
        return Compiled(time.monotonic() - started, wanted, max(1, wanted - topology.memory_bytes), {}, {})
    seconds = time.monotonic() - started
    peak = peak_memory_bytes(executable)
    text = executable.as_text()
    return Compiled(seconds, peak, max(0, peak - topology.memory_bytes), collectives(text), kernels(text))


def peak_memory_bytes(executable):
    """Returns int, the bytes of a compiled program on one device by the compiler's account."""
    account = executable.memory_analysis()
    live = (
        account.argument_size_in_bytes + account.output_size_in_bytes - account.alias_size_in_bytes
        + account.temp_size_in_bytes
    )  # fmt: skip
    return int(max(getattr(account, "peak_memory_in_bytes", 0), live))


def collectives(text):
    """Returns {name: count} of the collectives in a compiled program's text.

    What a compiler cuts into pieces, to run it beside other work, has one channel and counts once.
    """
    found = collections.defaultdict(set)
    for line in text.splitlines():
        kind = re.search(rf"= (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(", line)
        channel = re.search(r"channel_id=(\d+)", line)
        if kind:
            # Those of shard_map share a channel: their shapes tell them apart.
            shape = re.sub(r"\{[^}]*\}", "", kind[1])
            found[kind[2]].add((channel and channel[1], shape if channel and channel[1] == "1" else ""))
    return {name: len(found[name]) for name in _COLLECTIVES if found[name]}


def kernels(text):
    """Returns {name: count} of the kernels in a compiled program's text that XLA did not make."""
    counts = collections.Counter()
    for line in text.splitlines():
        target = re.search(r'custom_call_target="([^"]+)"', line)
        if not target or not re.search(r"tpu_custom_call|triton|cudnn|mosaic", target[1]):
            continue
        name = re.search(r'kernel_name[\\": =]+([\w.]+)', line) or re.search(r"%([\w.-]+?)(?:\.\d+)? =", line)
        counts[name[1]] += 1
    return dict(counts)


def fit(config, vocab_size, topology, say=lambda text: None):
    """Returns (Compiled, suggestion or None): the smallest change that makes it fit, checked by compiling it.

    Args:
      config: RunConfig.
      vocab_size: V.
      topology: Topology.
      say: called with lines worth knowing.
    """
    found = compile_for(train_step(config, vocab_size, topology), topology)
    if not found.shortfall_bytes:
        return found, None
    for change in _changes(config):
        try:
            changed = configs.with_overrides(config, change)
            lowered = train_step(changed, vocab_size, topology)
        except ValueError:
            continue  # the mesh does not allow it
        text = " ".join(f"--config.{name}={value}" for name, value in change.items())
        say(f"does not fit; trying {text}")
        if not compile_for(lowered, topology).shortfall_bytes:
            return found, text
    return found, None


def _changes(config):
    """Changes of a RunConfig that save memory, the cheapest first."""
    if config.mesh.replica > 1:
        yield {"mesh.replica": 1, "mesh.fsdp": 0}
    if config.model.remat != "full":
        yield {"model.remat": "full"}
    for factor in (2, 4, 8, 16, 32):
        yield {"model.remat": "full", "train.micro_batches": config.train.micro_batches * factor}
    for tensor in (2, 4, 8):
        if tensor > config.mesh.tensor:
            yield {
                "model.remat": "full", "train.micro_batches": config.train.micro_batches * 32, "mesh.tensor": tensor,
                "mesh.fsdp": 0,
            }  # fmt: skip
