"""What is fixed and what is to be filled: prompts, templates, frozen positions, and which of the rest are open when.

A canvas is int32[B, L]: tokens that are frozen, and mask_id where one is to be filled. Positions are open in stages:
blocks from left to right, counted from position 0, then the critical positions, one a stage. A step only reveals
positions of one stage.
"""

import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dlm_jax.information import orders

_MASK_SPAN = re.compile(r"\[MASK(?:\*(\d+))?\]")


def empty(num_samples, length, mask_id):
    """Returns int32[B, L], everything to be filled."""
    return np.full((num_samples, length), mask_id, np.int32)


def with_prompt(tokens, num_samples, length, mask_id):
    """Returns int32[B, L] that starts with the prompt.

    Raises:
      ValueError: if the prompt leaves nothing to fill.
    """
    if len(tokens) >= length:
        raise ValueError(f"prompt: {len(tokens)} tokens must be fewer than the length {length}")
    canvas = empty(num_samples, length, mask_id)
    canvas[:, : len(tokens)] = tokens
    return canvas


def from_template(template, encode, num_samples, max_length, mask_id):
    """Returns int32[B, n] from text with [MASK] or [MASK*n] where tokens are to be filled.

    Args:
      template: str.
      encode: str -> int32[n].
      num_samples: int.
      max_length: int, the model's length.
      mask_id: int.
    Raises:
      ValueError: if nothing is to be filled or the template is too long.
    """
    pieces, end = [], 0
    for found in _MASK_SPAN.finditer(template):
        count = int(found[1] or 1)
        if count > max_length:
            raise ValueError(f"template: {found[0]} must be at most the length {max_length}")
        pieces += [encode(template[end : found.start()]), np.full(count, mask_id, np.int32)]
        end = found.end()
    tokens = np.concatenate([*pieces, encode(template[end:])]).astype(np.int32)
    if not (tokens == mask_id).any():
        raise ValueError("template: must hold [MASK] or [MASK*n] with n at least 1")
    if len(tokens) > max_length:
        raise ValueError(f"template: {len(tokens)} tokens must be at most the length {max_length}")
    return np.tile(tokens, (num_samples, 1))


class Layout(NamedTuple):
    """The stages of L positions."""

    stage: np.ndarray  # int32[L]
    lengths: tuple  # of ints, positions of each stage
    starts: tuple  # of ints, slots of the order before each stage
    critical: tuple  # of ints, positions that are stages of their own at the end

    @property
    def length(self):
        return len(self.stage)


def make_layout(length, block_length=0, critical=()):
    """Returns the Layout of blocks and critical positions.

    Args:
      length: int, L.
      block_length: int, 0 = one block; the last block may be shorter.
      critical: positions that are revealed last, one at a time.
    Raises:
      ValueError: naming the argument, its value and what is allowed.
    """
    if block_length > length:
        raise ValueError(f"block_length={block_length}: must be at most the length {length}")
    if isinstance(critical, str) or not all(isinstance(place, (int, np.integer)) for place in critical):
        raise ValueError(f"critical={critical!r}: must be a list of whole numbers")
    critical = tuple(int(place) for place in critical)
    if any(not 0 <= place < length for place in critical) or len(set(critical)) < len(critical):
        raise ValueError(f"critical={list(critical)}: must be different positions from 0 to {length - 1}")
    if len(critical) >= length:
        raise ValueError(f"critical: {len(critical)} positions must be fewer than the length {length}")
    stage = np.arange(length) // (block_length or length)
    stage[list(critical)] = length + np.arange(len(critical))
    _, stage = np.unique(stage, return_inverse=True)
    lengths = np.bincount(stage)
    starts = np.cumsum(lengths) - lengths
    return Layout(stage.astype(np.int32), tuple(lengths.tolist()), tuple(starts.tolist()), critical)


def with_prompts(prompts, length, mask_id):
    """Returns int32[B, L], each row beginning with a prompt of its own, of any length.

    Raises:
      ValueError: if a prompt leaves nothing to fill.
    """
    return np.concatenate([with_prompt(tokens, 1, length, mask_id) for tokens in prompts])


def unconditional(canvas, mask_id, negative=None):
    """Returns int32[B, L], what a second canvas holds at frozen positions (masks, or a negative prompt), -1 elsewhere.

    Args:
      canvas: int32[B, L].
      mask_id: int.
      negative: int32[n], tokens from position 0 on, or None.
    Raises:
      ValueError: if nothing is frozen, or the negative prompt is longer than what is frozen at the beginning.
    """
    is_frozen = canvas != mask_id
    if not is_frozen.any():
        raise ValueError("guidance: needs a prompt or another frozen position to be guided by")
    found = np.where(is_frozen, mask_id, -1).astype(np.int32)
    if negative is not None:
        room = int(np.argmin(np.append(is_frozen.all(axis=0), False)))
        if len(negative) > room:
            raise ValueError(f"negative: {len(negative)} tokens must be at most the prompt's {room}")
        found[:, : len(negative)] = negative
    return found


def reveal_order(key, canvas, mask_id, order, stage):
    """Returns int32[B, L]: stage by stage, frozen positions first, then the masked ones, in the order given.

    Args:
      key: PRNG key; what row b draws depends on (key, b) only.
      canvas: int32[B, L].
      mask_id: int.
      order: str, a family of information.orders; or int32[L] or int32[B, L], permutations.
      stage: int32[L], of a Layout.
    """
    order = orders.draw(order, key, *canvas.shape)
    rank = 2 * stage[None] + (canvas == mask_id)
    return jnp.take_along_axis(
        order, jnp.argsort(jnp.take_along_axis(rank, order, axis=1), axis=1, stable=True), axis=1
    )


def check_order(order, num_samples, length):
    """Returns the order as int32[L] or int32[B, L], or the name of a family (information.orders) as it is.

    Raises:
      ValueError: unless it is a known name or every row is a permutation of 0..L-1.
    """
    if isinstance(order, str):
        return orders.check(order)
    order = np.asarray(order)
    if order.shape not in ((length,), (num_samples, length)) or order.dtype.kind not in "iu":
        raise ValueError(
            f"order: shape {list(order.shape)} must be [{length}] or [{num_samples}, {length}], whole numbers"
        )
    if not (np.sort(order, axis=-1) == np.arange(length)).all():
        raise ValueError(f"order: must hold every position 0..{length - 1} exactly once")
    return order.astype(np.int32)
