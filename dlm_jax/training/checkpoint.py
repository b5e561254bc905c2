"""Checkpoints behind one facade. The only importer of orbax.

A step's folder holds params, ema, opt_state and meta.json's content (config, corpus fingerprint). It appears under its
final name only when it is complete, and counts only when it is sealed with a manifest of everything in it
(`training/manifest.py`), so a kill during a save leaves the earlier steps as they were. What is damaged is set aside
with the reason, never deleted.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import threading
import time
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp

from dlm_jax import files, storage
from dlm_jax.parallel import multihost
from dlm_jax.training import guard as guards
from dlm_jax.training import manifest
from dlm_jax.training.state import TrainState

_ARRAYS = ("params", "ema", "opt_state")
_ITEMS = (*_ARRAYS, "meta")
# A save needs the bytes of its arrays, and a little for what surrounds them.
_ROOM = 1.1


def folder(workdir):
    """Returns the folder of a workdir's checkpoints, on this machine or in a bucket."""
    return storage.as_path(storage.checkpoints_of(workdir))


def steps(workdir):
    """Returns the sealed steps of a workdir, oldest first; empty, foreign and unfinished folders are not steps."""
    found = []
    place = folder(workdir)
    for path in place.iterdir() if place.is_dir() else ():
        if _is_complete(path) and manifest.is_sealed(path):
            found.append(int(path.name))
    return sorted(found)


def _is_complete(path):
    return path.name.isdecimal() and all((path / item).is_dir() for item in _ITEMS)


class Checkpoints:
    """Saves and restores the state of one run.

    Args:
      workdir: the run's folder.
      max_to_keep: how many steps to keep; older ones are deleted after a newer one is complete.
    Raises:
      BlockingIOError: if another process writes into this workdir.
    """

    def __init__(self, workdir, max_to_keep):
        self.workdir = workdir
        folder(workdir).mkdir(parents=True, exist_ok=True)
        self._lock = None
        if multihost.is_main():
            self._lock = _lock(workdir)
            for path in list(folder(workdir).iterdir()):
                if path.name.isdecimal() and not (_is_complete(path) and manifest.is_sealed(path)):
                    _set_aside(path, "it was never completed")
        self._unsealed, self._sealing = {}, threading.Lock()  # step -> fingerprints
        self._manager = ocp.CheckpointManager(
            folder(workdir),
            item_names=_ITEMS,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=max_to_keep,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal_soon),
            ),
        )

    def save(self, state, meta):
        """Starts saving a TrainState; the arrays are copied before this returns.

        Args:
          state: TrainState.
          meta: dict of plain values, stored beside the arrays.
        Raises:
          OSError: if this save, or the one before it, could not be written. Earlier steps are untouched.
        """
        arrays = {name: getattr(state, name) for name in _ARRAYS}
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        step = int(state.step)
        with _writing(self.workdir):
            self._check_room(arrays)
            self._manager.wait_until_finished()  # of the save before, which is sealed before this one begins
            self._seal()
            self._unsealed[step] = manifest.fingerprints_of(arrays)
            self._manager.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)), force=True)

    def _check_room(self, arrays):
        if not multihost.is_main():
            return
        needed = int(_ROOM * sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
        free = storage.free_bytes(folder(self.workdir))
        if free is not None and free < needed:
            raise OSError(f"a save needs {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} are free")

    def _seal_soon(self):
        """Seals in the background: orbax calls this before the very last thing that it writes in a bucket."""
        if multihost.is_main():
            threading.Thread(target=self._seal_when_done, name="seal").start()

    def _seal_when_done(self):
        while self._manager.is_saving_in_progress():
            time.sleep(0.02)
        with contextlib.suppress(Exception):  # tried again, and told, by the next save, wait or close
            self._seal()

    def _seal(self):
        """Seals what is complete."""
        with self._sealing:
            for step in sorted(self._unsealed):
                path = folder(self.workdir) / str(step)
                if _is_complete(path):
                    if multihost.is_main():
                        manifest.seal(path, self._unsealed[step])
                        storage.push(self.workdir)
                    del self._unsealed[step]

    def wait(self):
        """Returns when the last save is complete.

        Raises:
          OSError: if it could not be written.
        """
        with _writing(self.workdir):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            self._seal()

    def restore(self, abstract):
        """Returns (TrainState, meta) of the newest step that can be read, or None if there is no step.

        The main process looks for it and verifies its files; all processes take the same one. The Guard is fresh.

        Args:
          abstract: TrainState of jax.ShapeDtypeStruct with shardings; any mesh will do.
        Raises:
          ValueError: if steps are there and none fits; the message says why.
          ProcessesMissing: if another process does not come along.
        """
        problems, tried = [], set()
        while True:
            chosen = multihost.decide("choose a checkpoint", lambda: json.dumps(self._choose(tried, problems)))
            step, fingerprints, problem = json.loads(chosen)
            self._manager.reload()
            if step is None:
                break
            tried.add(step)
            restored, mine = None, ""
            try:
                restored = self._restore_step(step, abstract, fingerprints)
            except manifest.Damaged as error:
                mine = f"damaged: {error}"
            except Exception as error:  # orbax raises many kinds
                mine = files.first_line(error)
            problem = next(filter(None, multihost.exchange("restore a checkpoint", mine)), "")
            if not problem:
                return restored
            if not problem.startswith("damaged: "):  # its files are whole: an older step would fare no better
                break
            problems.append(f"step {step}: {problem}")
            if multihost.is_main():
                _set_aside(folder(self.workdir) / str(step), problem.removeprefix("damaged: "))
        if problem:
            raise ValueError(f"{folder(self.workdir)}: step {step} could not be restored; {problem}")
        return None

    def _choose(self, tried, problems):
        """(step, fingerprints, "") of the newest step whose files are whole, or (None, None, first problem)."""
        for step in reversed(steps(self.workdir)):
            path = folder(self.workdir) / str(step)
            if step in tried:
                continue
            try:
                return step, manifest.verify(path), ""
            except manifest.Damaged as error:
                problems.append(f"step {step}: {error}")
                _set_aside(path, str(error))
        return None, None, next(iter(problems), "")

    def _restore_step(self, step, abstract, fingerprints):
        items = {name: ocp.args.StandardRestore(getattr(abstract, name)) for name in _ARRAYS}
        with _quiet():
            found = self._manager.restore(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonRestore()))
        manifest.compare({name: found[name] for name in _ARRAYS}, fingerprints)
        where = abstract.step.sharding
        count, guard = jax.device_put((np.int32(step), guards.fresh()), where)
        return TrainState(count, found.params, found.ema, found.opt_state, guard), found.meta

    def close(self):
        """Ends background work; every save must have been waited for.

        Raises:
          OSError: if the last save could not be written.
        """
        try:
            with _writing(self.workdir):
                self._manager.close()
                self._seal()
        finally:
            if self._lock is not None:
                self._lock()


def load_item(workdir, name="ema", step=None):
    """Loads one item of a checkpoint without the rest onto one device, whatever mesh it was saved from.

    Args:
      workdir: the run's folder.
      name: "ema" or "params".
      step: int, or None for the newest.
    Returns:
      (step, tree, meta).
    Raises:
      FileNotFoundError: if there is no checkpoint, or not that step.
      ValueError: if it cannot be read.
    """
    there = steps(workdir)
    if not there:
        raise FileNotFoundError(f"{folder(workdir)}: holds no complete checkpoint")
    if step is not None and step not in there:
        raise FileNotFoundError(f"step={step}: must be one of {', '.join(map(str, there))}")
    problems = []
    for candidate in [step] if step is not None else reversed(there):
        path = folder(workdir) / str(candidate)
        try:
            fingerprints = manifest.verify(path, (name, "meta"))
            with _quiet():
                tree = _restore_here(path / name)
                meta = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path / "meta")
            own = {key: value for key, value in fingerprints.items() if key.startswith(f"['{name}']")}
            manifest.compare({name: tree}, own)
            return candidate, tree, meta
        except Exception as error:  # see Checkpoints.restore
            problems.append(f"{path}: cannot be read: {files.first_line(error)}")
            print(problems[-1], file=sys.stderr)
    raise ValueError(problems[0])


def _restore_here(path):
    """The tree of arrays at a path, on this process's first device."""
    checkpointer = ocp.StandardCheckpointer()
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    saved = checkpointer.metadata(path).item_metadata.tree
    return checkpointer.restore(
        path, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), saved)
    )


def params_sha256(params):
    """Returns the SHA-256 of all parameters: raw bytes, sorted by path, little-endian, C order."""
    named = sorted((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params))
    digest = hashlib.sha256()
    for _, leaf in named:
        array = np.asarray(leaf)
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _lock(workdir):
    """Keeps other processes from writing there as long as this one lives; returns a function that stops doing so."""
    path = folder(workdir) / ".lock"
    if storage.is_remote(path):
        return storage.Lock(path).close
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(handle, 100).decode(errors="replace").strip()
        os.close(handle)
        raise BlockingIOError(f"{workdir}: another run writes into it ({owner}); use another --workdir") from None
    except OSError:  # a file system without locks: nothing can be promised
        return lambda: os.close(handle)
    os.truncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {os.uname().nodename}".encode())
    return lambda: os.close(handle)  # and so does the system when the process ends


def _set_aside(path, reason):
    """Moves a step's folder out of the way, with the reason, so that the step can be saved again."""
    aside = path.parent.parent / "checkpoints_damaged"
    aside.mkdir(parents=True, exist_ok=True)
    target, number = aside / path.name, 0
    while target.exists():
        number += 1
        target = aside / f"{path.name}.{number}"
    storage.move(path, target)
    (target / "reason.txt").write_text(reason + "\n")
    print(f"checkpoint {path}: {reason}; moved to {target}", file=sys.stderr)


class _writing:
    """Turns the many errors of a failed write into one OSError that names the workdir."""

    def __init__(self, workdir):
        self.workdir = workdir

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is not None and not isinstance(error, (KeyboardInterrupt, SystemExit)):
            kind = ConnectionError if storage.is_remote(folder(self.workdir)) else OSError
            text = f"{folder(self.workdir)}: the checkpoint could not be written: {files.first_line(error)}"
            raise kind(text) from error


class _quiet(warnings.catch_warnings):
    """Hides the advice to restore onto stated shardings, where reading onto whatever is here is what is wanted."""

    def __enter__(self):
        result = super().__enter__()
        warnings.simplefilter("ignore")
        return result
