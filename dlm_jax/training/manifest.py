"""A digest of everything in a checkpoint: damage is found before anything of it is used.

Orbax restores a flipped bit without a word. A checkpoint of ours is sealed when it is complete: its `manifest.json`
holds the SHA-256 and size of every file and a fingerprint of every leaf. Files are verified before they are read,
leaves after they are placed, on whatever mesh.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax import files, storage

NAME = "manifest.json"
_FORMAT = 1
_SEEDS = (0x9E3779B9, 0x85EBCA6B)


class Damaged(Exception):
    """A checkpoint is not what was saved; the message says what is wrong, and where."""


def seal(folder, fingerprints):
    """Writes the manifest of a complete checkpoint, atomically.

    Args:
      folder: the step's folder.
      fingerprints: {path of a leaf: hex}, see `fingerprints_of`.
    """
    content = {"format": _FORMAT, "files": _digests(folder), "leaves": fingerprints}
    content["sha256"] = files.json_sha256(content)
    storage.write_text(folder / NAME, json.dumps(content, indent=1) + "\n")


def is_sealed(folder):
    """Returns whether there is a manifest, good or not."""
    return (folder / NAME).exists()


def verify(folder, items=None):
    """Returns {path of a leaf: fingerprint} of a checkpoint whose files are all there and as they were written.

    Args:
      folder: the step's folder.
      items: names of its subfolders that are read; None for everything.
    Raises:
      Damaged: naming the first file that is missing or different.
    """
    try:
        content = json.loads((folder / NAME).read_bytes())
        claimed = content.pop("sha256")
        known = {name: (entry["sha256"], entry["bytes"]) for name, entry in content["files"].items()}
    except FileNotFoundError:
        raise Damaged(f"{folder}: has no {NAME}: it was never completed, or the file was lost") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{folder / NAME}: cannot be read: {error}") from None
    if claimed != files.json_sha256(content) or content.get("format") != _FORMAT:
        raise Damaged(f"{folder / NAME}: is not what was written")
    for name, (digest, size) in sorted(known.items()):
        parts = pathlib.PurePosixPath(name).parts
        if ".." in parts or pathlib.PurePosixPath(name).is_absolute():
            raise Damaged(f"{folder / NAME}: names {name!r}, which is not inside the checkpoint")
        path = folder / name
        if items is not None and parts[0] not in items:
            continue
        if not path.is_file():
            raise Damaged(f"{path}: is missing")
        if storage.size(path) != size:
            raise Damaged(f"{path}: holds {storage.size(path)} bytes in place of {size}")
        if files.sha256(path) != digest:
            raise Damaged(f"{path}: is not what was written")
    return content["leaves"]


def fingerprints_of(trees):
    """Returns {path: hex} of every leaf of a tree of arrays: 64 bits that any change of any bit of it changes.

    A sum over elements, modulo 2^32 and twice, of their bits times an odd hash of their place: whole numbers add up to
    the same on any mesh.
    """
    found = jax.device_get(_fingerprints(trees))
    named = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path): words.astype(">u4").tobytes().hex() for path, words in named}


def compare(trees, fingerprints):
    """Raises Damaged unless every leaf has its fingerprint."""
    found = fingerprints_of(trees)
    for path in sorted(found.keys() | fingerprints.keys()):
        if found.get(path) != fingerprints.get(path):
            raise Damaged(f"{path}: was restored with other values than it was saved with")


@jax.jit
def _fingerprints(trees):
    return jax.tree.map(_fingerprint, trees)


def _fingerprint(leaf):
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        place = place * np.uint32(leaf.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    return jnp.stack([jnp.sum(bits * (_hash(place + np.uint32(seed)) | 1), dtype=jnp.uint32) for seed in _SEEDS])


def _hash(x):
    """A bijection of uint32 in which every bit depends on every bit. Source: Wellons 2018, lowbias32."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _digests(folder):
    return {
        name: {"sha256": files.sha256(path), "bytes": storage.size(path)}
        for name, path in storage.walk(folder)
        if path.name != NAME
    }
