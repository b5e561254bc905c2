"""Folders in a bucket: a workdir whose checkpoints lie there, with a local twin for everything that is small.

A workdir at `gs://` has a twin on this machine's disk. The twin is a workdir like any other, but its file
`checkpoints.url` says that the checkpoints are in the bucket: orbax reads and writes them there, each host its own
shards. The rest (configuration, metrics, tokenizer, plans, reports) is pulled at the start and pushed after every save
and at the end. Corpora may lie anywhere that fsspec reaches; they are copied before they are read.

Needs `gcsfs` for gs:// (the extra `gcs`); other file systems name what they need.
"""

import hashlib
import json
import os
import pathlib
import shutil
import threading
import time
import urllib.parse

from dlm_jax import files

CHECKPOINTS_URL = "checkpoints.url"
_WORKDIRS = ("gs://",)  # what orbax writes to
# Left on the machine that made them: each host prepares its own rows.
_STAYS = (".npy", ".tmp", ".lock", CHECKPOINTS_URL)
_in_bucket = {}  # twin -> {name: digest of what the bucket holds, as far as this process knows}
_BEAT, _STALE = 10.0, 60.0  # seconds between the lock's signs of life, and without one until it is taken over


def is_remote(path):
    """Returns whether a path is a URL."""
    return "://" in str(path)


def check_url(name, url):
    """Raises ValueError if a URL holds a password, which a configuration and a log would show; it is not repeated."""
    parts = urllib.parse.urlsplit(str(url))
    if is_remote(url) and ("@" in parts.netloc or parts.query):
        raise ValueError(f"{name}: must be an address without user, password or query; give those in the environment")


def as_path(place):
    """Returns a place as a path object: pathlib's, or for a URL one with the same methods; asks nobody."""
    if not is_remote(place):
        return pathlib.Path(place)
    # Asked for every bucket, this costs more requests than everything else together.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    from etils import epath

    return epath.Path(str(place))


def walk(folder):
    """Yields (relative posix path, path) of every file below a folder, sorted."""
    found, pending = [], [("", folder)]
    while pending:
        prefix, place = pending.pop()
        for entry in place.iterdir():
            name = f"{prefix}{entry.name}"
            if entry.is_dir():
                pending.append((f"{name}/", entry))
            else:
                found.append((name, entry))
    return sorted(found)


def size(path):
    """Returns the bytes of a file."""
    return path.stat().st_size if isinstance(path, pathlib.Path) else path.stat().length


def write_text(path, text):
    """Writes a text whole or not at all: by a rename, or as one object of a bucket."""
    if isinstance(path, pathlib.Path):
        files.write_text(path, text)
    else:
        path.write_text(text)


def move(source, target):
    """Moves a folder; in a bucket file by file, the originals last."""
    if isinstance(source, pathlib.Path):
        shutil.move(source, target)
        return
    for name, path in walk(source):
        path.copy(target / name)
    source.rmtree()


def free_bytes(folder):
    """Returns the bytes that are free where a folder lies, or None where nobody counts them."""
    return shutil.disk_usage(folder).free if isinstance(folder, pathlib.Path) else None


class Lock:
    """Holds a bucket's folder for one process; a lock without a sign of life for a minute is taken over.

    Buckets have no locks, so this is a promise between well-behaved processes: two that start in the same second may
    both believe that they are the first, and the one that finds another's name at its next sign of life ends its run.

    Raises:
      BlockingIOError: if another process holds it.
    """

    def __init__(self, path, wait=time.sleep):
        self._path, self._mine = path, f"process {os.getpid()} on {os.uname().nodename}, {time.time_ns()}"
        seen = self._read()
        waited = 0.0
        while seen is not None and waited < _STALE:
            wait(_BEAT)
            waited += _BEAT
            now = self._read()
            if now is not None and now != seen:
                raise BlockingIOError(f"{path}: another run writes there ({now['owner']}); use another --workdir")
            seen = now
        self._write()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lock")
        self._thread.start()

    def _read(self):
        try:
            return json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _write(self):
        self._path.write_text(json.dumps({"owner": self._mine, "alive": time.time()}))

    def _beat(self):
        last = time.monotonic()
        while not self._over.wait(_BEAT):
            try:
                seen = self._read()
                if seen is not None and seen["owner"] != self._mine:
                    self._end(f"taken over by {seen['owner']}")
                self._write()
                last = time.monotonic()
            except Exception as error:  # clients raise what they like; the next sign of life may get through
                if time.monotonic() - last > _STALE:
                    self._end(f"no sign of life got through: {files.first_line(error)}")

    def _end(self, why):
        os.write(2, f"dlm: {self._path}: {why}; ending, before two runs write there\n".encode())
        os._exit(1)

    def close(self):
        """Gives the folder free."""
        self._over.set()
        self._thread.join()
        seen = self._read()
        if seen is not None and seen["owner"] == self._mine:
            self._path.unlink()


# ------------------------------------------------------------------------------------------------ twins


def twin(workdir, *, must_exist=False):
    """Returns the local folder that stands for a workdir, pulled; the workdir itself where it is local.

    Args:
      workdir: path or URL.
      must_exist: refuse a bucket's folder in which there is no run.
    Raises:
      ValueError: if workdirs cannot lie there, or the package for it is not installed.
      FileNotFoundError: if it must exist and does not.
      ConnectionError: if it cannot be reached.
    """
    if not is_remote(workdir):
        return pathlib.Path(workdir)
    url = str(workdir).rstrip("/")
    check_url("workdir", url)
    if not url.startswith(_WORKDIRS):
        raise ValueError(f"workdir={url!r}: must be a folder or start with {', '.join(_WORKDIRS)}")
    remote = as_path(url)
    is_there = _is_there(remote)
    holds_run = is_there and (remote / "config.json").exists()
    if must_exist and not holds_run:
        raise FileNotFoundError(f"workdir={url!r}: holds no config.json")
    cache = pathlib.Path(os.environ.get("DLM_JAX_CACHE") or pathlib.Path.home() / ".cache" / "dlm_jax")
    local = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
    if (local / "config.json").exists() and not holds_run:
        local.rename(local.with_name(f"{local.name}.{time.time_ns()}"))  # of a run that is no longer there
    local.mkdir(parents=True, exist_ok=True)
    files.write_text(local / CHECKPOINTS_URL, url + "/checkpoints\n")
    known = _in_bucket[str(local)] = {}
    for name, path in _small(remote) if is_there else ():
        content = path.read_bytes()
        known[name] = hashlib.sha256(content).digest()
        if _is_longer(local / name, content):
            continue  # lines that were not pushed before a kill
        with files.atomic_path(local / name) as temporary:
            temporary.write_bytes(content)
    return local


def _is_there(remote):
    try:
        return remote.exists()
    except ImportError as error:
        raise ValueError(f"{remote}: {files.first_line(error)}; pip install 'dlm_jax[gcs]'") from None
    except Exception as error:  # whatever the client of the bucket raises: no network, no bucket, no rights
        raise ConnectionError(f"{remote}: cannot be reached: {files.first_line(error)}") from None


def _is_longer(path, content):
    return path.suffix == ".jsonl" and path.is_file() and path.read_bytes().startswith(content)


def push(local):
    """Writes what has changed in a twin since it was pulled; does nothing for a workdir that is no twin."""
    url = checkpoints_of(local)
    if not is_remote(url):
        return
    remote = as_path(str(url).rpartition("/")[0])
    known = _in_bucket.setdefault(str(local), {})
    for name, path in _small(pathlib.Path(local)):
        content = path.read_bytes()
        digest = hashlib.sha256(content).digest()
        if known.get(name) != digest:
            target = remote / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            known[name] = digest


def checkpoints_of(workdir):
    """Returns the place of a workdir's checkpoints: a folder in it, or the URL that a twin names."""
    pointer = pathlib.Path(workdir) / CHECKPOINTS_URL
    return pointer.read_text().strip() if pointer.is_file() else str(pathlib.Path(workdir).absolute() / "checkpoints")


def _small(folder):
    """(relative path, path) of the files of a workdir that a twin holds."""
    for entry in folder.iterdir():
        if entry.name in ("checkpoints", "checkpoints_damaged") or entry.name.startswith("."):
            continue
        found = walk(entry) if entry.is_dir() else [("", entry)]
        for below, path in found:
            name = f"{entry.name}/{below}" if below else entry.name
            parts = pathlib.PurePosixPath(name).parts
            is_copy = parts[:2] in (("data", "fetched"), ("data", "tfds"))  # of a corpus
            if not (is_copy or name.endswith(_STAYS) or any(part.startswith(".") for part in parts)):
                yield name, path


# ------------------------------------------------------------------------------------------------ corpora


def fetch(url, folder):
    """Returns local copies of the files of a URL or glob, made anew when their source has changed.

    Args:
      url: as fsspec takes it, for example "gs://bucket/texts/*.jsonl" or "memory://x.txt".
      folder: where the copies go.
    Raises:
      FileNotFoundError: if nothing is there.
      ValueError: if the package for it is not installed.
      OSError: if it cannot be reached.
    """
    import fsspec

    folder = pathlib.Path(folder)
    try:
        system, path = fsspec.core.url_to_fs(url)
        found = sorted(name for name in system.glob(path) if system.isfile(name))
        keys = [_version(system, name) for name in found]
    except (ImportError, ValueError) as error:
        raise ValueError(f"data.source={url!r}: {files.first_line(error)}") from None
    except Exception as error:  # clients raise what they like
        raise ConnectionError(f"data.source={url!r}: cannot be reached: {files.first_line(error)}") from None
    if not found:
        raise FileNotFoundError(f"data.source={url!r}: no such file")
    copies = []
    for name, key in zip(found, keys, strict=True):
        # Named by its content's key, so that what has changed is another file.
        digest = hashlib.sha256(json.dumps([url, name, key]).encode()).hexdigest()[:16]
        copy = folder / f"{digest}{pathlib.PurePosixPath(name).suffix}"
        if not copy.exists():
            try:
                with files.atomic_path(copy) as temporary:
                    system.get_file(name, str(temporary))
            except OSError:
                raise
            except Exception as error:
                raise OSError(f"data.source={url!r}: cannot be read: {files.first_line(error)}") from None
        copies.append(copy)
    return copies


def _version(system, name):
    """What changes when a file does, as far as its file system tells."""
    about = system.info(name)
    telling = ("size", "ETag", "etag", "mtime", "updated", "LastModified", "generation", "created")
    return [str(system.ukey(name)), {key: str(about[key]) for key in telling if key in about}]
