"""Files that survive a crash: writes are atomic, and damaged input is reported with its place.

Standard library only.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import tempfile


@contextlib.contextmanager
def atomic_path(path):
    """Yields a temporary path in the same folder; on success it becomes `path`, on failure nothing is left.

    Raises:
      OSError: if the folder cannot be written; an earlier file at `path` is untouched.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        yield pathlib.Path(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def check_place(path):
    """Raises OSError, before any work is done for it, unless a file could lie at `path`."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))


def write_text(path, text):
    """Writes text atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Writes a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path):
    """Reads a JSON file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not JSON; the message names the file and the line.
    """
    path = pathlib.Path(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON at line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list in a list in a list ...
        raise ValueError(f"{path}: not valid JSON: {error}") from None


def read_record(path, key, version, what):
    """Reads a JSON object of ours: it holds `key` and says "format": version.

    Raises:
      FileNotFoundError, ValueError: as `read_json`; if it is not `what` (a noun, and the verb that writes it), or
        of another format.
    """
    values = read_json(path)
    if not isinstance(values, dict) or key not in values:
        raise ValueError(f"{path}: is not {what[0]} (no {key}); {what[1]} writes one")
    if values.get("format") != version:
        raise ValueError(f"{path}: format={values.get('format')!r} must be {version}")
    return values


def sha256(path):
    """Returns the SHA-256 of a file's bytes, as hex; the path may be one in a bucket."""
    with path.open("rb") if hasattr(path, "open") else open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value):
    """Returns the SHA-256 of a JSON value, whatever the order of its keys, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def first_line(error):
    """Returns the first line of an exception's text, or its type where it has none."""
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:300]
