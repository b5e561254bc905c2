"""What is fixed and what is to be filled: prompts, templates, frozen positions, and the order of the rest."""

import re

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


def reveal_order(key, canvas, mask_id, order):
    """Returns int32[B, L]: frozen positions first, then the masked ones, in the order given.

    Args:
      key: PRNG key; what row b draws depends on (key, b) only.
      canvas: int32[B, L].
      mask_id: int.
      order: str, a family of information.orders; or int32[L] or int32[B, L], permutations.
    """
    order = orders.draw(order, key, *canvas.shape)
    is_masked = jnp.take_along_axis(canvas, order, axis=1) == mask_id
    return jnp.take_along_axis(order, jnp.argsort(is_masked, axis=1, stable=True), axis=1)


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
