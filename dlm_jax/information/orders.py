"""Which position is revealed when: orders that do not depend on the values, and orders computed from dependence.

An order is int32[L], a permutation: order[j] is the position of turn j. A family of orders is drawn once a row.

| name          | turns                                                            | a row's own draw      |
|---------------|------------------------------------------------------------------|-----------------------|
| random        | uniformly random                                                 | the permutation       |
| spaced        | bit reversal: every prefix is spread evenly                      | a rotation            |
| golden        | steps of the golden ratio: spread evenly, for any prefix         | a rotation            |
| blue_noise    | each next position in the largest void, soft distances           | a rotation            |
| bisection     | midpoints of the gaps, level by level                            | none                  |
| left_to_right | 0, 1, 2, ...                                                     | none                  |
| blocks:n      | blocks of n tokens left to right, random inside a block          | the inner permutations |

Why spread: tokens near one another depend on one another, so those revealed together should be far apart, and those
revealed earlier should be near (DESIGN: the error of a step is the dependence inside it, given what is visible).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax import rng

NAMES = ("random", "spaced", "golden", "blue_noise", "bisection", "left_to_right", "blocks:16")


def check(name, argument="order"):
    """Returns the name of an order family.

    Raises:
      ValueError: if there is none of this name.
    """
    known = (*_BASES, "random")
    if isinstance(name, str) and (name in known or _block_size(name)):
        return name
    raise ValueError(f"{argument}={name!r}: must be one of {', '.join(known)}, blocks:N with N at least 1")


def draw(name, key, num_rows, length):
    """Returns int32[B, L], one order a row; row b's depends on (key, b) only. Traceable by jax.

    Args:
      name: str of the table above, or int32[L] or int32[B, L], a fixed order.
      key: PRNG key.
      num_rows: int, B.
      length: int, L.
    """
    if not isinstance(name, str):
        return jnp.broadcast_to(jnp.asarray(name, jnp.int32), (num_rows, length))
    check(name)
    if name == "random":
        return rng.random_orders(key, num_rows, length)
    if size := _block_size(name):
        random = rng.random_orders(key, num_rows, length)
        turn = jnp.argsort(random, axis=-1)  # of each position
        block = jnp.arange(length) // min(size, length)
        return jnp.argsort(block * length + turn, axis=-1).astype(jnp.int32)
    base, rotates = _BASES[name]
    order = jnp.asarray(base(length), jnp.int32)
    if not rotates:
        return jnp.broadcast_to(order, (num_rows, length))
    offset = jax.vmap(lambda row_key: jax.random.randint(row_key, (1,), 0, length))(rng.per_row(key, num_rows))
    return (order + offset) % length


def spaced_order(length, key):
    """Returns int32[L], a low-discrepancy order with a random rotation: any prefix is spread evenly.

    Args:
      length: int, L.
      key: PRNG key, of the rotation.
    """
    return np.asarray(draw("spaced", key, 1, length)[0], np.int32)


def dispersed_order(dependence):
    """Returns int32[L]: next comes the position that depends least on those revealed before it.

    Two positions that inform each other are kept far apart in the order, so that they are not revealed together.

    Args:
      dependence: float64[L, L], symmetric, how much two positions inform each other (nats, say); the diagonal is
        not read.
    """
    dependence = np.asarray(dependence, np.float64)
    length = len(dependence)
    pull = np.zeros(length)
    order = np.empty(length, np.int32)
    order[0] = np.argmax(dependence.sum(axis=1) - np.diag(dependence))
    is_free = np.ones(length, bool)
    for turn in range(length):
        if turn:
            order[turn] = np.argmin(np.where(is_free, pull, np.inf))
        is_free[order[turn]] = False
        pull += dependence[order[turn]]
    return order


def order_from_distances(by_distance, length):
    """Returns int32[L], `dispersed_order` where dependence is a function of the distance only.

    Args:
      by_distance: float64[D], mutual information of two positions 1, 2, ... D apart; farther ones count as D apart.
      length: int, L.
    """
    by_distance = np.maximum(np.asarray(by_distance, np.float64), 0.0)
    places = np.arange(length)
    apart = np.abs(places[:, None] - places)
    # A last trace of distance breaks the ties of noise-free zeros in favour of spreading.
    trace = 1e-9 * max(by_distance.max(initial=0.0), 1e-300) / (1.0 + apart**2)
    return dispersed_order(by_distance[np.clip(apart, 1, len(by_distance)) - 1] + trace)


def bisection_sizes(length):
    """Returns int64[T], T = ceil(log2(L + 1)), the sizes that reveal one level of `bisection` a step.

    With them a Markov chain is sampled without error: inside a level no two positions share a gap.
    """
    return np.asarray([len(level) for level in _bisection_levels(length)], np.int64)


def _bisection_levels(length):
    levels, gaps = [], [(0, length)]
    while gaps:
        levels.append([(low + high) // 2 for low, high in gaps])
        halves = [
            half
            for (low, high), middle in zip(gaps, levels[-1], strict=True)
            for half in ((low, middle), (middle + 1, high))
        ]
        gaps = [(low, high) for low, high in halves if low < high]
    return levels


@functools.cache
def _bisection(length):
    return np.concatenate(_bisection_levels(length)).astype(np.int32)


@functools.cache
def _spaced(length):
    """Cells of a circle of L in the order in which the van der Corput sequence first meets them."""
    bits = max(1, (length - 1).bit_length())
    index = np.arange(1 << bits)
    reversed_bits = np.zeros_like(index)
    for bit in range(bits):
        reversed_bits |= (index >> bit & 1) << (bits - 1 - bit)
    return _first_met(reversed_bits * length >> bits)


@functools.cache
def _golden(length):
    """As `_spaced`, with multiples of the golden ratio; 4 L of them meet every cell."""
    turns = np.arange(4 * length + 8) * ((np.sqrt(5) - 1) / 2) % 1.0
    return _first_met((turns * length).astype(np.int64))


@functools.cache
def _blue_noise(length):
    apart = np.abs(np.arange(length)[:, None] - np.arange(length))
    circular = np.minimum(apart, length - apart)
    return dispersed_order(1.0 / np.maximum(circular, 1) ** 2)


@functools.cache
def _left_to_right(length):
    return np.arange(length, dtype=np.int32)


def _first_met(cells):
    _, first = np.unique(cells, return_index=True)
    return cells[np.sort(first)].astype(np.int32)


def _block_size(name):
    prefix, _, size = name.partition(":")
    is_number = size.isascii() and size.isdigit()
    return int(size) if prefix == "blocks" and is_number and int(size) > 0 else 0


# name -> (length -> int32[L], whether a row rotates it)
_BASES = {
    "spaced": (_spaced, True),
    "golden": (_golden, True),
    "blue_noise": (_blue_noise, True),
    "bisection": (_bisection, False),
    "left_to_right": (_left_to_right, False),
}
