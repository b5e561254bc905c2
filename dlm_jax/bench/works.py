"""What is timed: training steps, samplers, likelihoods and batches of two reference shapes, or of a configuration.

Required operations are counted by one formula for all implementations: 2 a multiply-add, attention over all keys, the
body for every token of every call, the head only on the rows that are needed (masked in training, revealed in
sampling); a training step is three forward passes.
"""

import dataclasses
import functools
import pathlib
import tempfile
import time

import jax
import numpy as np

from dlm_jax import config as configs
from dlm_jax.aot.programs import peak_memory_bytes
from dlm_jax.bench.timing import Work
from dlm_jax.data.batches import Batches
from dlm_jax.data.packing import Rows
from dlm_jax.diffusion import objectives
from dlm_jax.evaluation import evaluators, likelihood
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.sampling import loop
from dlm_jax.training import goodput, manifest, optimizers, state
from dlm_jax.training.step import make_train_step, required_flops
from dlm_jax.training.watchdog import Watchdog

_BATCHES = 20  # batches a timed run of the data pipeline
_BLOCK = 32


@dataclasses.dataclass(frozen=True)
class Shape:
    """A workload: a configuration and the vocabulary that a tokenizer would give it."""

    name: str
    config: configs.RunConfig
    vocab_size: int
    num_steps: int

    @property
    def denoiser(self):
        return Denoiser(self.config.model, self.vocab_size)


def reference_shapes():
    """Returns the Shapes A (small vocabulary) and B (large vocabulary) of four layers of width 256."""
    base = configs.RunConfig(
        data=configs.DataConfig(length=256),
        model=configs.ModelConfig(num_layers=4, embed_dim=256, num_heads=8, dtype="float32"),
        train=configs.TrainConfig(batch_size=16),
    )
    large = configs.with_overrides(base, {"train.batch_size": 4})
    return [Shape("A", base, 97, 32), Shape("B", large, 32768, 32)]


def works_of(shape):
    """Returns the list of Work of one Shape."""
    return [make(shape) for make in MAKERS.values()]


def train(shape):
    """Returns the Work of one training step, state donated."""
    config, denoiser = shape.config, shape.denoiser
    optimizer = optimizers.make_optimizer(config.optimizer, config.train.num_steps, denoiser.logical_axes)
    objective = objectives.make_objective(config.diffusion, shape.vocab_size)
    root = jax.random.key(config.seed)
    step = jax.jit(make_train_step(denoiser, objective, optimizer, config.train, root), donate_argnames=("state",))
    batch = {"tokens": jax.device_put(_tokens(shape))}
    held = {"state": state.init_state(denoiser, optimizer, root)}
    started = time.perf_counter()
    compiled = step.lower(held["state"], batch).compile()
    notes = {"compile_seconds": time.perf_counter() - started}

    def run():
        started = time.perf_counter()
        held["state"], metrics = compiled(held["state"], batch)
        asked = time.perf_counter() - started
        jax.block_until_ready((held["state"], metrics))
        return asked

    peak = peak_memory_bytes(compiled)
    return Work(f"train/{shape.name}", run, batch["tokens"].size, train_flops(shape), peak, notes)


def guards(shape):
    """Returns the Work of what watches over as many training steps as lie between two saves.

    Spans and signs of life of every step, a fingerprint of every leaf and a digest of every file of one save.
    """
    config, denoiser = shape.config, shape.denoiser
    optimizer = optimizers.make_optimizer(config.optimizer, config.train.num_steps, denoiser.logical_axes)
    made = state.init_state(denoiser, optimizer, jax.random.key(0))
    arrays = {"params": made.params, "ema": made.ema, "opt_state": made.opt_state}
    folder = tempfile.TemporaryDirectory(prefix="dlm-bench-")
    for number, leaf in enumerate(jax.tree.leaves(arrays)):
        np.save(f"{folder.name}/{number}.npy", leaf)
    clock, watch = goodput.Clock("step"), Watchdog(0, "")
    num_steps = config.checkpoint.every_steps

    def run():
        for step in range(num_steps):
            clock.to("data")
            clock.to("step")
            watch.beat()
            if step % config.log.every_steps == 0:
                clock.take()
        manifest.seal(pathlib.Path(folder.name), manifest.fingerprints_of(arrays))

    return Work(f"guards/{shape.name}", run, notes={"steps": num_steps})


def train_flops(shape):
    """Returns float, the required operations of one training step."""
    return required_flops(shape.denoiser, shape.config)


def sample(shape):
    """Returns the Work of one batch of samples in T uniform steps, random order."""
    config, denoiser = shape.config, shape.denoiser
    params = denoiser.init(jax.random.key(0))
    length, batch = config.data.length, config.train.batch_size
    canvas = np.full((batch, length), denoiser.mask_id, np.int32)
    choices = configs.SampleConfig(num_steps=shape.num_steps)
    ask = functools.partial(
        loop.run, denoiser, params, jax.random.key(1), canvas, choices, time_at=evaluators.schedule_of(config).time_at
    )
    return Work(f"sample/{shape.name}", ask, batch * length, sample_flops(shape), notes={"num_steps": shape.num_steps})


def sample_flops(shape):
    """Returns float, the required operations of one batch of samples."""
    length, batch = shape.config.data.length, shape.config.train.batch_size
    body = shape.num_steps * shape.denoiser.flops(length, 0.0) * batch * length
    return body + 2.0 * shape.vocab_size * shape.config.model.embed_dim * batch * length


def score(shape):
    """Returns the Work of the likelihood bound of one batch."""
    config, denoiser = shape.config, shape.denoiser
    losses = likelihood.bound(denoiser, denoiser.init(jax.random.key(0)), evaluators.schedule_of(config), 1)
    tokens, length = _tokens(shape), config.data.length
    masked = (length + 1) / (2 * length)
    flops = 2.0 * denoiser.flops(length, masked) * tokens.size  # a pair of masks a row
    return Work(
        f"likelihood/{shape.name}", lambda: jax.block_until_ready(losses(tokens, jax.random.key(2), None)),
        tokens.size, flops,
    )  # fmt: skip


def batches(shape):
    """Returns the Work of handing out batches of a prepared corpus."""
    rows = np.tile(_tokens(shape), (256, 1)).astype(np.uint16)
    ask = Batches(Rows(rows, np.zeros(len(rows)), np.zeros(len(rows))), shape.config.train.batch_size, 0)
    counter = iter(range(1 << 40))

    def run():
        for _ in range(_BATCHES):
            ask(next(counter))

    return Work(f"data/{shape.name}", run, _BATCHES * shape.config.train.batch_size * shape.config.data.length)


def cached_sampling(shape):
    """Returns the Works of block decoding without and with each cache, one token at a time in four steps a block."""
    found = []
    num_blocks = shape.config.data.length // _BLOCK
    for name, attention, cache in (
        ("none", "bidirectional", "none"), ("prefix", "bidirectional", "prefix"), ("dual", "bidirectional", "dual"),
        ("block-causal none", "block_causal", "none"), ("block-causal exact", "block_causal", "exact"),
    ):  # fmt: skip
        model = dataclasses.replace(
            shape.config.model, attention=attention, block_length=_BLOCK if attention == "block_causal" else 0
        )
        denoiser = Denoiser(model, shape.vocab_size)
        params = denoiser.init(jax.random.key(0))
        canvas = np.full((shape.config.train.batch_size, shape.config.data.length), denoiser.mask_id, np.int32)
        choices = configs.SampleConfig(block_length=_BLOCK, cache=cache, num_steps=8 * num_blocks)
        ask = functools.partial(loop.run, denoiser, params, jax.random.key(1), canvas, choices)
        found.append(Work(f"blocks/{shape.name} {name}", ask, canvas.size, notes={"num_steps": 8 * num_blocks}))
    return found


def _tokens(shape):
    size = (shape.config.train.batch_size, shape.config.data.length)
    return np.random.default_rng(0).integers(0, shape.vocab_size, size).astype(np.int32)


MAKERS = {"train": train, "sample": sample, "likelihood": score, "data": batches, "guards": guards}
