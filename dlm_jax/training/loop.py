"""The training loop: one fixed order of things, nothing in it knows what is trained.

    batch -> step (dispatched) -> read the metrics of an earlier step -> evaluate -> save -> next

Metrics are read one logging interval late, so the host never waits for the device inside the loop. Evaluators are
values handed in; rerunning the same command resumes from the newest checkpoint.
"""

import concurrent.futures
import contextlib
import math
import pathlib
import signal
import time
from dataclasses import dataclass

import jax
import numpy as np

from dlm_jax import config as configs
from dlm_jax import rng
from dlm_jax.data import batches, packing
from dlm_jax.diffusion import objectives
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.parallel import mesh as meshes
from dlm_jax.parallel import multihost, sharding
from dlm_jax.progress import Progress
from dlm_jax.training import checkpoint, optimizers, writers
from dlm_jax.training import state as states
from dlm_jax.training.step import jit_train_step, required_flops
from dlm_jax.training.watchdog import Watchdog

# Dense bfloat16 peaks of one device, FLOP/s, as the makers state them. Matched by the start of device_kind.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}

# A run may be continued with other values of these; everything else decides the parameters.
_FREE_ON_RESUME = (
    "sample.",
    "eval.",
    "checkpoint.",
    "mesh.",
    "log.",
    "train.num_steps",
    "train.hang_seconds",
    "data.cache_dir",
    "data.source",
)


class Preempted(Exception):
    """The run was asked to stop and has saved its state."""


class Diverged(Exception):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class Run:
    """Everything a RunConfig stands for, built and checked, nothing compiled yet."""

    config: configs.RunConfig
    workdir: pathlib.Path
    mesh: object
    corpus: packing.Corpus
    denoiser: Denoiser
    optimizer: object
    objective: object
    batches: batches.Batches
    abstract: states.TrainState
    shardings: states.TrainState

    @property
    def root_key(self):
        return jax.random.key(self.config.seed)


def cache_dir(config, workdir):
    """Returns the folder of a run's prepared corpus."""
    return pathlib.Path(config.data.cache_dir or pathlib.Path(workdir) / "data")


def prepare(config, workdir, *, say=print, quiet=False, mesh=None):
    """Returns the Run of a configuration: checks it against the machine and the corpus, and writes config.json.

    Args:
      config: RunConfig.
      workdir: the run's folder.
      say: called with lines worth knowing.
      quiet: no progress.
      mesh: Mesh, or None for the one of the configuration.
    Raises:
      ValueError, FileNotFoundError, OSError: one line, before anything is compiled.
    """
    workdir = pathlib.Path(workdir)
    if mesh is None:
        mesh = meshes.make_mesh(configs.check_devices(config, jax.device_count(), jax.process_count()))
    _check_resumable(config, workdir)
    corpus = packing.prepare(
        config.data, cache_dir(config, workdir), say=say, quiet=quiet, interval=config.log.progress_seconds
    )
    configs.check_rows(config, len(corpus.train), len(corpus.validation))
    denoiser = Denoiser(config.model, corpus.tokenizer.vocab_size)
    optimizer = optimizers.make_optimizer(config.optimizer, config.train.num_steps, denoiser.logical_axes)
    abstract, shardings = states.state_shardings(denoiser, optimizer, mesh)
    if multihost.is_main():
        configs.save(config, workdir / "config.json")
    return Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        corpus=corpus,
        denoiser=denoiser,
        optimizer=optimizer,
        objective=objectives.make_objective(config.diffusion, corpus.tokenizer.vocab_size),
        batches=batches.Batches(corpus.train, config.train.batch_size, config.seed),
        abstract=abstract,
        shardings=shardings,
    )


def _check_resumable(config, workdir):
    """Refuses to continue a run under a configuration that would have led elsewhere."""
    if not checkpoint.steps(workdir) or not (workdir / "config.json").exists():
        return
    changed = configs.difference(configs.load(workdir / "config.json"), config)
    changed = {name: values for name, values in changed.items() if not name.startswith(_FREE_ON_RESUME)}
    if changed:
        name, (old, new) = next(iter(changed.items()))
        more = f" (and {len(changed) - 1} more fields)" if len(changed) > 1 else ""
        raise ValueError(
            f"{name}={new!r}: the checkpoints in {workdir} were trained with {old!r}{more}; use another --workdir"
        )


def compiled_step(run):
    """Returns the jitted train step of a Run: shardings stated, state donated."""
    step = jit_train_step(
        run.denoiser, run.objective, run.optimizer, run.config, run.mesh, run.shardings, tuple(run.batches(0))
    )

    def on_mesh(state, batch):
        with sharding.on_mesh(run.mesh):
            return step(state, batch)

    return on_mesh


def initial_state(run):
    """Returns the state before the first step, made on the mesh."""
    make = jax.jit(lambda key: states.init_state(run.denoiser, run.optimizer, key), out_shardings=run.shardings)
    return make(rng.stream(run.root_key, "init"))


def device_batch(run, step):
    """Returns the batch of a step as global arrays."""
    rows = run.batches(step, jax.process_index(), jax.process_count())
    where = sharding.batch_sharding(run.mesh)
    return {name: multihost.global_rows(array, where) for name, array in rows.items()}


def measure_step_seconds(run, *, repeats=8, label="measuring the step"):
    """Returns the median seconds of one training step, on a state that is thrown away.

    Args:
      run: Run.
      repeats: how many steps to time.
    """
    with Progress(label, interval=run.config.log.progress_seconds):
        step, state, seconds = compiled_step(run), initial_state(run), []
        for index in range(repeats + 1):
            batch = device_batch(run, index)
            start = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, batch))
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def train(run, *, evaluators=(), stop_after_seconds=None, label="training"):
    """Trains to the last step, or resumes and trains to the last step.

    Args:
      run: Run.
      evaluators: functions (params, step) -> {name: value}, called with the EMA weights every eval.every_steps.
      stop_after_seconds: stop early, saved and evaluated as usual, when this much time has passed.
      label: of the progress report.
    Returns:
      TrainState, the last.
    Raises:
      Preempted: after SIGTERM; the state is saved.
      Diverged: when the loss is no longer finite; the last good checkpoint stays.
      ValueError, OSError: see `prepare` and `Checkpoints`.
    """
    config, last = run.config, run.config.train.num_steps
    started = time.monotonic()
    meta = {"config": configs.to_dict(config), "fingerprint": run.corpus.fingerprint}
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_stop_on_sigterm())
        saves = checkpoint.Checkpoints(run.workdir, config.checkpoint.max_to_keep)
        stack.callback(saves.close)
        sinks = writers.make_writers(config.log, run.workdir, meta["config"]) if multihost.is_main() else []
        for sink in sinks:
            stack.callback(sink.close)
        state, first = _restore_or_init(run, saves)
        if first >= last:
            return state
        fetch = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        step_fn = compiled_step(run)
        report = stack.enter_context(
            Progress(label, last, interval=config.log.progress_seconds, quiet=not multihost.is_main())
        )
        report.start_at(first)
        report.note = "compiling"
        meter = _Meter(run, sinks, report)
        watch = stack.enter_context(
            Watchdog(config.train.hang_seconds, run.workdir / f"hang-{jax.process_index()}.txt")
        )
        upcoming = fetch.submit(device_batch, run, first)
        saved = first
        for step in range(first, last):
            batch = upcoming.result()
            if step + 1 < last:
                upcoming = fetch.submit(device_batch, run, step + 1)
            state, metrics = step_fn(state, batch)
            done = step + 1
            report.update(done)
            watch.beat()
            is_out_of_time = stop_after_seconds is not None and time.monotonic() - started > stop_after_seconds
            if done % config.log.every_steps == 0 or done == last or is_out_of_time:
                meter.record(done, metrics)
            if evaluators and config.eval.every_steps and done % config.eval.every_steps == 0:
                meter.pause()
                with watch.paused():
                    for evaluate in evaluators:
                        meter.write(done, evaluate(state.ema, done))
                meter.resume()
            is_stopping = multihost.any_host(stop.is_set)
            if done % config.checkpoint.every_steps == 0 or done == last or is_stopping or is_out_of_time:
                meter.flush()  # never save a state whose loss is not finite
                with watch.paused():
                    saves.save(state, meta)
                saved = done
            if is_stopping:
                saves.wait()
                raise Preempted(f"stopped after step {done} and saved")
            if is_out_of_time:
                break
        meter.flush()
        with watch.paused(), Progress(f"saving step {saved}", interval=config.log.progress_seconds):
            saves.wait()
    return state


def _restore_or_init(run, saves):
    with Progress("preparing the state", interval=run.config.log.progress_seconds, quiet=not multihost.is_main()):
        found = saves.restore(states.with_shardings(run.abstract, run.shardings))
        if found is None:
            return initial_state(run), 0
    state, meta = found
    if meta["fingerprint"] != run.corpus.fingerprint:
        raise ValueError(
            f"data.source={run.config.data.source!r}: the corpus is not the one that the checkpoints in {run.workdir} "
            "were trained on; restore the corpus or use another --workdir"
        )
    return state, int(state.step)


class _StopFlag:
    def __init__(self):
        self.is_set = False


@contextlib.contextmanager
def _stop_on_sigterm():
    """Yields a flag that SIGTERM sets; the loop stops at the next step."""
    flag = _StopFlag()

    def on_sigterm(signum, frame):
        flag.is_set = True

    try:
        before = signal.signal(signal.SIGTERM, on_sigterm)
    except ValueError:  # not the main thread: the caller owns the signals
        yield flag
        return
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)


class _Meter:
    """Turns metrics into numbers one interval late, and into speed."""

    def __init__(self, run, sinks, report):
        config = run.config
        self._sinks, self._report = sinks, report
        self._tokens = config.train.batch_size * config.data.length
        self._flops = required_flops(run.denoiser, config)
        self._peak = (config.log.peak_flops or _peak_flops()) * jax.device_count()
        self._waiting = None
        self._clock, self._clock_step = None, 0

    def record(self, step, metrics):
        previous, self._waiting = self._waiting, (step, metrics, time.monotonic())
        if previous is not None:
            self._finish(*previous)

    def flush(self):
        if self._waiting is not None:
            previous, self._waiting = self._waiting, None
            self._finish(*previous)

    def pause(self):
        self.flush()
        self._clock = None

    def resume(self):
        self._clock = None

    def write(self, step, values):
        for sink in self._sinks:
            sink.write(step, values)

    def _finish(self, step, metrics, when):
        values = {name: float(total) / float(weight) for name, (total, weight) in metrics.items()}
        now = time.monotonic()
        if self._clock is not None and step > self._clock_step:
            per_step = (now - self._clock) / (step - self._clock_step)
            values["tokens_per_second"] = self._tokens / per_step
            if self._peak:
                values["mfu"] = self._flops / per_step / self._peak
        self._clock, self._clock_step = now, step
        self.write(step, values)
        note = f"loss {values['loss']:.3f} nats/token"
        if "tokens_per_second" in values:
            note += f", {values['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in values:
            note += f", MFU {values['mfu']:.0%}"
        self._report.note = note
        if not math.isfinite(values["loss"]):
            raise Diverged(f"step {step}: the loss is {values['loss']}; the last checkpoint is from before it")


def _peak_flops():
    kind = jax.devices()[0].device_kind
    return next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), 0.0)
