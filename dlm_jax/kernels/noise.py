"""Counter-based noise: a function of a row's key and a token's number only.

No state and no shape enters, so every tiling and every backend draws the same numbers from the same keys. All in int32
with wrap-around, which every compiler knows.
"""

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA


def threefry(keys, counters, rounds=13):
    """Returns two int32 words of noise.

    Args:
      keys: (int32[...], int32[...]), two words.
      counters: the same, broadcastable to the keys.
      rounds: int, 13 (the fewest that pass BigCrush) or 20 (jax.random's).
    Source: Salmon et al. 2011, Threefry-2x32; table 2 for the rounds.
    """
    schedule = (*keys, keys[0] ^ keys[1] ^ np.int32(_PARITY))
    a, b = counters[0] + keys[0], counters[1] + keys[1]
    for index in range(rounds):
        rotation = _ROTATIONS[index % 8]
        a = a + b
        b = (b << rotation) | jax.lax.shift_right_logical(b, jnp.full_like(b, 32 - rotation))
        b = a ^ b
        if index % 4 == 3:
            turn = index // 4 + 1
            a, b = a + schedule[turn % 3], b + schedule[(turn + 1) % 3] + np.int32(turn)
    return a, b


def gumbel(keys, ids):
    """Returns float32[...] standard Gumbel noise from 48 bits, so that the rarest tokens keep their chance.

    Args:
      keys: (int32[...], int32[...]), two words.
      ids: int32[...], token numbers, broadcastable to the keys.
    """
    high, low = threefry(keys, (ids, jnp.zeros_like(ids)))
    shift = jax.lax.shift_right_logical
    first = shift(high, jnp.full_like(high, 8)).astype(jnp.float32)
    second = (((high & 0xFF) << 16) | shift(low, jnp.full_like(low, 16))).astype(jnp.float32)
    uniform = first * np.float32(2.0**-24) + (second + np.float32(0.5)) * np.float32(2.0**-48)
    # Small uniforms make large noise, and float32 is finest near 0.
    return -jnp.log(-jnp.log1p(-jnp.minimum(uniform, np.float32(1 - 2.0**-24))))


def words(keys):
    """Returns (int32[...], int32[...]) of PRNG keys[...], as the functions above want them."""
    data = jax.random.key_data(keys)
    return tuple(jax.lax.bitcast_convert_type(data[..., index], jnp.int32) for index in (0, 1))


def gumbel_of_rows(keys, size):
    """Returns float32[..., size], the noise of tokens 0 .. size - 1 for every key[...]."""
    first, second = (word[..., None] for word in words(keys))
    return gumbel((first, second), jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (*first.shape[:-1], size)))
