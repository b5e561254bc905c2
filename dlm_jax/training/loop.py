"""The training loop: one fixed order of things, nothing in it knows what is trained.

    batch -> step (dispatched) -> read the metrics of an earlier step -> evaluate -> save -> next

Metrics are read one logging interval late, so the host never waits for the device inside the loop. Evaluators are
values handed in; rerunning the same command resumes from the newest checkpoint.
"""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import signal
import sys
import time
from dataclasses import dataclass

import jax
import numpy as np

from dlm_jax import config as configs
from dlm_jax import files, rng
from dlm_jax.data import batches, packing
from dlm_jax.diffusion import objectives
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.parallel import mesh as meshes
from dlm_jax.parallel import multihost, sharding
from dlm_jax.progress import Progress
from dlm_jax.training import checkpoint, goodput, optimizers, writers
from dlm_jax.training import guard as guards
from dlm_jax.training import state as states
from dlm_jax.training.step import batch_names, jit_train_step, required_flops
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
    "train.bad_steps",
    "train.spike_sigmas",
    "train.max_bad_steps",
    "data.cache_dir",
    "data.source",
)


class Preempted(Exception):
    """The run was asked to stop and has saved its state."""


class Diverged(Exception):
    """Steps went wrong for longer than `train.max_bad_steps` forgives."""


class _RollBack(Exception):
    """The run must go back to its newest checkpoint, and past the batch of step `first`."""

    def __init__(self, first):
        super().__init__(first)
        self.first = first


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
    allow_changes: bool
    prepare_seconds: float

    @property
    def root_key(self):
        return jax.random.key(self.config.seed)


def cache_dir(config, workdir):
    """Returns the folder of a run's prepared corpus."""
    return pathlib.Path(config.data.cache_dir or pathlib.Path(workdir) / "data")


def prepare(config, workdir, *, say=print, quiet=False, mesh=None, allow_changes=False):
    """Returns the Run of a configuration: checks it against the machine and the corpus, and writes config.json.

    Args:
      config: RunConfig.
      workdir: the run's folder.
      say: called with lines worth knowing.
      quiet: no progress.
      mesh: Mesh, or None for the one of the configuration.
      allow_changes: continue a run though its configuration or its corpus is another.
    Raises:
      ValueError, FileNotFoundError, OSError: one line, before anything is compiled.
    """
    started = time.monotonic()
    workdir = pathlib.Path(workdir)
    if mesh is None:
        mesh = meshes.make_mesh(configs.check_devices(config, jax.device_count()))
    is_resumed = bool(checkpoint.steps(workdir))
    if is_resumed and not allow_changes:
        _check_unchanged(config, workdir)
    corpus = _prepare_corpus(config, workdir, frozen=is_resumed and not allow_changes, say=say, quiet=quiet)
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
        allow_changes=allow_changes,
        prepare_seconds=time.monotonic() - started,
    )


def _check_unchanged(config, workdir):
    """Refuses to continue a run under a configuration that would have led elsewhere."""
    if not (workdir / "config.json").exists():
        return
    changed = _decisive_changes(configs.load(workdir / "config.json"), config)
    if changed:
        listed = "; ".join(f"{name}={new!r}, was {old!r}" for name, (old, new) in changed.items())
        raise ValueError(
            f"{listed}: the checkpoints in {workdir} were trained otherwise; use another --workdir, or --allow_changes"
        )


def _prepare_corpus(config, workdir, *, frozen, say, quiet):
    """The corpus, prepared by the main process first; all processes must find the same, and run the same."""
    hosts_wait = "prepare the corpus"
    if not multihost.is_main():
        multihost.exchange(hosts_wait, seconds=24 * 3600.0)
    corpus = packing.prepare(
        config.data, cache_dir(config, workdir), frozen=frozen, say=say, quiet=quiet or not multihost.is_main(),
        interval=config.log.progress_seconds,
    )  # fmt: skip
    if multihost.is_main():
        multihost.exchange(hosts_wait, seconds=24 * 3600.0)
    run = files.json_sha256(configs.to_dict(config))
    for what, mine in (("configuration", run), ("corpus", corpus.fingerprint)):
        theirs = multihost.exchange(f"compare the {what}", mine)
        if len(set(theirs)) > 1:
            other = next(index for index, value in enumerate(theirs) if value != theirs[0])
            raise ValueError(f"process {other}: has another {what} than process 0; all processes must run the same")
    return corpus


def check_trained(config, meta, path):
    """Checks that a configuration is the one that a checkpoint was trained with, but for what is free on resume.

    Args:
      config: RunConfig.
      meta: dict, the checkpoint's; without a configuration there is nothing to compare.
      path: of the configuration, for the message.
    Raises:
      ValueError: naming the field, its value and the one trained with.
    """
    trained = configs.from_dict(meta["config"]) if "config" in meta else config
    for name, (old, new) in _decisive_changes(trained, config).items():
        raise ValueError(f"{path}: {name}={new!r}: the checkpoint was trained with {old!r}")


def _decisive_changes(old, new):
    changed = configs.difference(old, new)
    return {name: values for name, values in changed.items() if not name.startswith(_FREE_ON_RESUME)}


def compiled_step(run):
    """Returns the jitted train step of a Run: shardings stated, state donated."""
    step = jit_train_step(
        run.denoiser, run.objective, run.optimizer, run.config, run.mesh, run.shardings, batch_names(run.config)
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
    shapes = dict.fromkeys(batch_names(run.config), (run.config.train.batch_size, run.config.data.length))
    return multihost.global_rows(lambda part: run.batches(step, part), shapes, sharding.batch_sharding(run.mesh))


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
      Diverged: when bad steps persist, or at the first with train.bad_steps='stop'; the checkpoints stay.
      ProcessesMissing: if another process does not come along.
      ValueError, OSError: see `prepare` and `Checkpoints`.
    """
    config, last = run.config, run.config.train.num_steps
    started, clock = time.monotonic(), goodput.Clock("restore")
    about = {
        "config": configs.to_dict(config),
        "fingerprint": run.corpus.fingerprint,
        "tokenizer_sha256": run.corpus.manifest["tokenizer_sha256"],
    }
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_stop_on_sigterm())
        saves = checkpoint.Checkpoints(run.workdir, config.checkpoint.max_to_keep)
        stack.callback(saves.close)
        sinks = writers.make_writers(config.log, run.workdir, about["config"]) if multihost.is_main() else []
        for sink in sinks:
            stack.callback(sink.close)
        state, meta = _restore_or_init(run, saves)
        step, shift = int(state.step), meta.get("shift", 0)
        if step >= last:
            return state
        fetch = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        step_fn = compiled_step(run)
        report = stack.enter_context(
            Progress(label, last, interval=config.log.progress_seconds, quiet=not multihost.is_main())
        )
        report.start_at(step)
        report.note = "compiling"
        meter = _Meter(run, sinks, report, clock)
        stack.callback(meter.close)
        meter.write(step, {"attempt_from": step, "seconds/prepare": run.prepare_seconds})
        meter.start_from(state)
        watch = stack.enter_context(
            Watchdog(config.train.hang_seconds, run.workdir / f"hang-{jax.process_index()}.txt")
        )
        upcoming = fetch.submit(device_batch, run, step + shift)
        saved, num_calls, num_rollbacks, activity = step, step, 0, "compile"
        while step < last:
            clock.to("data")
            batch = upcoming.result()
            clock.to(activity)
            if step + 1 < last:
                upcoming = fetch.submit(device_batch, run, step + 1 + shift)
            state, metrics = step_fn(state, batch)
            activity = "step"
            clock.to(activity)
            step += 1
            report.update(step)
            watch.beat()
            is_out_of_time = stop_after_seconds is not None and time.monotonic() - started > stop_after_seconds
            num_calls += 1
            is_stopping = stop.is_set or multihost.is_preempted(num_calls)
            is_ending = step == last or is_stopping or is_out_of_time
            is_saving = is_ending or step % config.checkpoint.every_steps == 0
            is_evaluating = evaluators and config.eval.every_steps and step % config.eval.every_steps == 0
            try:
                if is_saving or step % config.log.every_steps == 0:
                    meter.record(step, metrics)
                if is_saving or is_evaluating:
                    meter.flush()  # what is saved or evaluated is known to be good
            except _RollBack as bad:
                num_rollbacks += 1
                if num_rollbacks > config.train.max_bad_steps:
                    raise Diverged(f"step {step}: {num_rollbacks} roll-backs to step {saved}") from None
                state = None  # its memory is needed
                with watch.paused():
                    saves.wait()
                    state, _ = _restore_or_init(run, saves)
                step = int(state.step)
                shift += bad.first + 1 - step  # the next batch is the one after the bad one
                report.start_at(step)
                meter.write(step, {"attempt_from": step})
                meter.start_from(state)
                upcoming = fetch.submit(device_batch, run, step + shift)
                continue
            if is_evaluating:
                clock.to("evaluate")
                with watch.paused():
                    for evaluate in evaluators:
                        meter.write(step, evaluate(state.ema, step))
                meter.restart_clock()
                clock.to("step")
            if is_saving:
                clock.to("save")
                with watch.paused():
                    saves.save(state, {**about, "shift": shift, "guard": guards.to_meta(state.guard)})
                meter.restart_clock()
                saved, num_rollbacks = step, 0
                clock.to("step")
            if is_stopping:
                clock.to("save")
                with watch.paused():
                    saves.wait()
                raise Preempted(f"stopped after step {step} and saved")
            if is_out_of_time:
                break
        clock.to("save")
        with (
            watch.paused(),
            Progress(f"saving step {saved}", interval=config.log.progress_seconds, quiet=not multihost.is_main()),
        ):
            saves.wait()
    return state


def _restore_or_init(run, saves):
    """(TrainState, meta) of the newest checkpoint, or of a new run."""
    with Progress("preparing the state", interval=run.config.log.progress_seconds, quiet=not multihost.is_main()):
        found = saves.restore(states.with_shardings(run.abstract, run.shardings))
        if found is None:
            return initial_state(run), {}
    state, meta = found
    if meta["fingerprint"] != run.corpus.fingerprint and not run.allow_changes:
        raise ValueError(
            f"data.source={run.config.data.source!r}: the corpus is not the one that the checkpoints in {run.workdir} "
            "were trained on; restore it, or use another --workdir, or --allow_changes"
        )
    guard = jax.device_put(guards.from_meta(meta.get("guard")), run.shardings.guard)
    return dataclasses.replace(state, guard=guard), meta


class _StopFlag:
    def __init__(self):
        self.is_set = False


@contextlib.contextmanager
def _stop_on_sigterm():
    """Yields a flag that SIGTERM sets; the loop stops at the next step.

    Several processes have another way, `multihost.is_preempted`, which an own handler would shadow.
    """
    flag = _StopFlag()
    if jax.process_count() > 1:
        yield flag
        return

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

    def __init__(self, run, sinks, report, clock):
        config = run.config
        self._sinks, self._report, self._spent = sinks, report, clock
        self._config = config.train
        self._skipped, self._step = 0, 0
        self._tokens = config.train.batch_size * config.data.length
        self._flops = required_flops(run.denoiser, config)
        self._peak = (config.log.peak_flops or _peak_flops()) * jax.device_count()
        self._waiting = None
        self._clock, self._clock_step = None, 0
        # Says when the device was done with a step, whenever the host gets round to reading its metrics.
        self._stamps = concurrent.futures.ThreadPoolExecutor(1)

    def record(self, step, metrics):
        when = self._stamps.submit(lambda: jax.block_until_ready(metrics) and time.monotonic())
        previous, self._waiting = self._waiting, (step, metrics, when)
        if previous is not None:
            self._finish(*previous)

    def flush(self):
        if self._waiting is not None:
            previous, self._waiting = self._waiting, None
            self._finish(*previous)

    def start_from(self, state):
        """Forgets what waits: the run goes on from this state."""
        self._waiting = None
        self._skipped = int(state.guard.skipped)
        self.restart_clock()

    def restart_clock(self):
        """What has passed since the last metrics says nothing of the speed of steps."""
        self._clock = None

    def write(self, step, values):
        self._step = step
        spent = self._spent.take()
        for sink in self._sinks:
            sink.write(step, {**values, **spent})

    def close(self):
        """Writes where the last seconds went."""
        self._stamps.shutdown(wait=False)
        with contextlib.suppress(OSError):  # what went wrong with the disk has been said
            self.write(self._step, {})

    def _finish(self, step, metrics, when):
        values = {name: float(total) / float(weight) for name, (total, weight) in metrics.items()}
        in_a_row, first_bad = values.pop("skipped_in_a_row"), values.pop("first_skipped_step")
        now = when.result()
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
        before, self._skipped = self._skipped, int(values["skipped_steps"])
        if self._skipped > before:
            self._respond(step, self._skipped - before, int(in_a_row), int(first_bad))

    def _respond(self, step, count, in_a_row, first_bad):
        """Follows the policy on steps that were not taken."""
        what = f"step {step}: loss or gradient not finite, or a spike, in {count} of the last steps"
        if self._config.bad_steps == "roll_back":
            self._say(f"{what}; rolling back and past them")
            raise _RollBack(first_bad)
        if self._config.bad_steps == "stop":
            raise Diverged(f"{what}; none of them was taken (train.bad_steps='stop')")
        if in_a_row >= self._config.max_bad_steps:
            raise Diverged(f"{what}, the last {in_a_row} in a row; none of them was taken")
        self._say(f"{what}; they were skipped")

    def _say(self, line):
        if multihost.is_main():
            print(f"dlm: {line}", file=sys.stderr)


def _peak_flops():
    kind = jax.devices()[0].device_kind
    return next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), 0.0)
