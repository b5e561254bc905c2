"""Distributions over token sequences whose every conditional is known exactly: test beds, corpora, and denoisers.

Each has `length`, `vocab_size`, `mask_id` (= vocab_size), and

  sample(key, n)        -> int32[n, L]
  log_prob(x)           -> float[B], nats
  log_marginal(tokens)  -> float[B], log p(the revealed tokens); masked positions are summed over
  denoise(tokens)       -> float[B, L, V], log p(x_i | revealed tokens)
  curve()               -> InformationCurve, exact

| distribution  | its dependence                                  | f(k)                                  |
|---------------|-------------------------------------------------|---------------------------------------|
| Independent   | none                                            | constant                              |
| Repeated      | one token decides all                           | 0 from k = 1                          |
| Parity        | all tokens together, none without the last      | 0 at k = L - 1 only                   |
| OneHot        | exactly one 1                                   | closed form                           |
| Permutation   | no token twice                                  | ln(L - k)                             |
| BalancedBits  | as many ones as zeros                           | hypergeometric mean                   |
| ReedSolomon   | any d tokens decide all, any d are independent  | a step at d                           |
| Blocks        | independent copies of a shorter one             | hypergeometric mean of its curve      |
| Rearranged    | that of another, at other positions             | the same                              |
| MarkovChain   | neighbours                                      | O(L^2), any chain, any length         |
| HiddenMarkov  | neighbours, through a hidden state              | enumeration, so for short ones        |
| Exchangeable  | one latent for all tokens                       | by types, any length for few tokens   |
| Mixture       | a latent choice among distributions             | enumeration, so for short ones        |

`denoise` gives a revealed position probability 1 on its own token, and an impossible context the uniform
distribution, never NaN. numpy tokens are answered in float64; jax tokens, traced ones too, in float32.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from dlm_jax.information.curve import InformationCurve

_MOST_OUTCOMES = 1 << 22  # that enumeration goes through


def _namespace(tokens):
    return jnp if isinstance(tokens, jax.Array) else np


def _log(p):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(p, np.float64))


def _gumbel_choice(key, log_p, shape):
    return jax.random.categorical(key, jnp.asarray(log_p, jnp.float32), shape=shape, mode="high").astype(jnp.int32)


def _one_hot_log(tokens, vocab_size, xp):
    """0 at the token, -inf elsewhere."""
    return xp.where(tokens[..., None] == xp.arange(vocab_size), 0.0, -xp.inf)


def _normalise(log_p, xp):
    """log-softmax over the last axis; rows without mass become uniform."""
    top = log_p.max(axis=-1, keepdims=True)
    possible = top > -xp.inf
    safe = xp.where(possible, log_p, 0.0)
    top = xp.where(possible, top, 0.0)
    return safe - top - xp.log(xp.exp(safe - top).sum(axis=-1, keepdims=True))


class _Distribution:
    length: int
    vocab_size: int

    @property
    def mask_id(self):
        return self.vocab_size

    def log_prob(self, x):
        """Returns float[B], log p(x) in nats, of complete sequences int[B, L]."""
        return self.log_marginal(x)

    def curve(self):
        """Returns the exact InformationCurve.

        Raises:
          ValueError: if there is no closed form and too many outcomes to enumerate.
        """
        return InformationCurve.exact(self._entropies())

    def _entropies(self):
        """float64[L], f(k) by enumeration: entropies of all marginals of the joint table."""
        if self.vocab_size**self.length > _MOST_OUTCOMES or self.length > 16:
            raise ValueError(
                f"{type(self).__name__}: its curve is found by enumeration, which {self.vocab_size}^{self.length} "
                f"outcomes are too many for (at most {_MOST_OUTCOMES})"
            )
        outcomes = np.indices((self.vocab_size,) * self.length).reshape(self.length, -1).T
        table = np.exp(self.log_prob(outcomes)).reshape((self.vocab_size,) * self.length)
        totals = np.zeros(self.length + 1)
        for size in range(1, self.length + 1):
            subsets = list(itertools.combinations(range(self.length), size))
            hidden = (tuple(i for i in range(self.length) if i not in subset) for subset in subsets)
            totals[size] = np.mean([special.entr(table.sum(axis=places)).sum() for places in hidden])
        return np.diff(totals)

    def denoise(self, tokens):
        """Returns float[B, L, V], log p(x_i | revealed), for int[B, L] tokens with `mask_id` where hidden."""
        xp = _namespace(tokens)
        is_possible = (self.log_marginal(tokens) > -xp.inf)[:, None, None]
        answer = _normalise(xp.where(is_possible, self._posterior(tokens, xp), 0.0), xp)
        is_masked = (tokens == self.mask_id)[..., None]
        return xp.where(is_masked, answer, _one_hot_log(tokens, self.vocab_size, xp))


class Independent(_Distribution):
    """Independent positions.

    Args:
      probs: float[L, V], each row sums to 1.
    """

    def __init__(self, probs):
        probs = np.asarray(probs, np.float64)
        if probs.ndim != 2 or probs.min() < 0 or not np.allclose(probs.sum(axis=1), 1):
            raise ValueError(f"probs: shape {list(probs.shape)} must be [L, V] with rows that sum to 1")
        self.length, self.vocab_size = probs.shape
        self.log_probs = _log(probs)

    def sample(self, key, n):
        return _gumbel_choice(key, self.log_probs[None], (n, self.length))

    def log_marginal(self, tokens):
        xp = _namespace(tokens)
        table = xp.concatenate([xp.asarray(self.log_probs), xp.zeros((self.length, 1))], axis=1)
        return table[xp.arange(self.length), tokens].sum(axis=1)

    def _posterior(self, tokens, xp):
        return xp.broadcast_to(xp.asarray(self.log_probs), (*tokens.shape, self.vocab_size))

    def _entropies(self):
        return np.full(self.length, special.entr(np.exp(self.log_probs)).sum(axis=1).mean())


class Repeated(_Distribution):
    """One uniform token, repeated everywhere."""

    def __init__(self, vocab_size, length):
        self.vocab_size, self.length = vocab_size, length

    def sample(self, key, n):
        return jnp.broadcast_to(jax.random.randint(key, (n, 1), 0, self.vocab_size), (n, self.length))

    def log_marginal(self, tokens):
        xp = _namespace(tokens)
        kinds = self._seen(tokens, xp).sum(axis=1)
        return xp.where(kinds == 0, 0.0, xp.where(kinds == 1, -np.log(self.vocab_size), -xp.inf))

    def _seen(self, tokens, xp):
        return (tokens[..., None] == xp.arange(self.vocab_size)).any(axis=1)

    def _posterior(self, tokens, xp):
        seen = self._seen(tokens, xp)
        allowed = xp.where(seen.any(axis=1, keepdims=True), seen, True)
        allowed = xp.where(seen.sum(axis=1, keepdims=True) > 1, False, allowed)
        return xp.broadcast_to(xp.where(allowed, 0.0, -xp.inf)[:, None], (*tokens.shape, self.vocab_size))

    def _entropies(self):
        return np.append(np.log(self.vocab_size), np.zeros(self.length - 1))


class Parity(_Distribution):
    """Uniform over the bit strings with an even number of ones."""

    def __init__(self, length):
        self.vocab_size, self.length = 2, length

    def sample(self, key, n):
        bits = jax.random.randint(key, (n, self.length - 1), 0, 2)
        return jnp.concatenate([bits, bits.sum(axis=1, keepdims=True) % 2], axis=1)

    def log_marginal(self, tokens):
        xp = _namespace(tokens)
        revealed = (tokens < 2).sum(axis=1)
        is_odd = (tokens == 1).sum(axis=1) % 2 == 1
        complete = xp.where(is_odd, -xp.inf, -(self.length - 1) * np.log(2))
        return xp.where(revealed == self.length, complete, -revealed * np.log(2))

    def _posterior(self, tokens, xp):
        is_last = (tokens == self.mask_id).sum(axis=1) == 1
        parity = (tokens == 1).sum(axis=1) % 2
        forced = _one_hot_log(parity, 2, xp)
        return xp.broadcast_to(xp.where(is_last[:, None], forced, 0.0)[:, None], (*tokens.shape, 2))

    def _entropies(self):
        return np.append(np.full(self.length - 1, np.log(2)), 0.0)


class OneHot(_Distribution):
    """Bits with exactly one 1, anywhere."""

    def __init__(self, length):
        self.vocab_size, self.length = 2, length

    def sample(self, key, n):
        return jax.nn.one_hot(jax.random.randint(key, (n,), 0, self.length), self.length, dtype=jnp.int32)

    def log_marginal(self, tokens):
        xp = _namespace(tokens)
        ones, hidden = (tokens == 1).sum(axis=1), (tokens == 2).sum(axis=1)
        places = xp.where(ones == 1, 1, xp.where(ones == 0, hidden, 0))  # that the 1 can have
        return xp.where(places > 0, xp.log(xp.maximum(places, 1) / self.length), -xp.inf)

    def _posterior(self, tokens, xp):
        ones, hidden = (tokens == 1).sum(axis=1), (tokens == 2).sum(axis=1)
        share = xp.where(ones == 0, 1.0 / xp.maximum(hidden, 1), 0.0)
        law = xp.stack([1 - share, share], axis=-1)
        log_law = xp.where(law > 0, xp.log(xp.where(law > 0, law, 1.0)), -xp.inf)
        return xp.broadcast_to(log_law[:, None], (*tokens.shape, 2))

    def _entropies(self):
        hidden = self.length - np.arange(self.length)
        return hidden / self.length * (special.entr(1 / hidden) + special.entr(1 - 1 / hidden))


class Permutation(_Distribution):
    """Uniform over the permutations of L tokens."""

    def __init__(self, length):
        self.vocab_size = self.length = length

    def sample(self, key, n):
        keys = jax.random.split(key, n)
        return jax.vmap(lambda row_key: jax.random.permutation(row_key, self.length))(keys).astype(jnp.int32)

    def _seen(self, tokens, xp):
        return (tokens[..., None] == xp.arange(self.vocab_size)).sum(axis=1)

    def log_marginal(self, tokens):
        xp = _namespace(tokens)
        seen = self._seen(tokens, xp)
        table = xp.asarray(special.gammaln(np.arange(self.length + 1) + 1.0))
        revealed = seen.sum(axis=1)
        return xp.where((seen <= 1).all(axis=1), table[self.length - revealed] - table[self.length], -xp.inf)

    def _posterior(self, tokens, xp):
        seen = self._seen(tokens, xp)
        return xp.broadcast_to(xp.where(seen > 0, -xp.inf, 0.0)[:, None], (*tokens.shape, self.vocab_size))

    def _entropies(self):
        return np.log(self.length - np.arange(self.length))


class BalancedBits(_Distribution):
    """Uniform over the bit strings with as many ones as zeros.

    Args:
      length: int, even.
    """

    def __init__(self, length):
        if length % 2:
            raise ValueError(f"length={length}: must be even, half of the bits are ones")
        self.vocab_size, self.length = 2, length

    def sample(self, key, n):
        half = jnp.arange(self.length, dtype=jnp.int32) % 2
        return jax.vmap(lambda row_key: jax.random.permutation(row_key, half))(jax.random.split(key, n))

    def _left(self, tokens):
        """How many zeros and ones are still to come, int[B, 2]; negative where there were too many."""
        xp = _namespace(tokens)
        return self.length // 2 - (tokens[..., None] == xp.arange(2)).sum(axis=1)

    def log_marginal(self, tokens):
        xp = _namespace(tokens)
        left = self._left(tokens)
        table = xp.asarray(special.gammaln(np.arange(self.length + 1) + 1.0))

        def log_choose(n, m):
            return table[n] - table[m] - table[n - m]

        hidden = (tokens == 2).sum(axis=1)
        safe = xp.clip(left[:, 1], 0, hidden)
        ways = log_choose(hidden, safe) - log_choose(self.length, self.length // 2)
        return xp.where((left >= 0).all(axis=1), ways, -xp.inf)

    def _posterior(self, tokens, xp):
        left = xp.maximum(self._left(tokens), 0)
        log_left = xp.where(left > 0, xp.log(xp.maximum(left, 1)), -xp.inf)
        return xp.broadcast_to(log_left[:, None], (*tokens.shape, 2))

    def _entropies(self):
        half, entropies = self.length // 2, []
        for k in range(self.length):
            ones = np.arange(max(0, k - half), min(half, k) + 1)
            share = (half - ones) / (self.length - k)
            weights = _hypergeometric(self.length, half, k, ones)
            entropies.append(weights @ (special.entr(share) + special.entr(1 - share)))
        return np.asarray(entropies)


def _hypergeometric(total, marked, drawn, found):
    """P(`found` of the `drawn` are marked), float64 like `found`."""

    def log_choose(n, m):
        return special.gammaln(n + 1) - special.gammaln(m + 1) - special.gammaln(n - m + 1)

    return np.exp(log_choose(marked, found) + log_choose(total - marked, drawn - found) - log_choose(total, drawn))


class Blocks(_Distribution):
    """Independent copies of a shorter distribution, one after the other.

    Args:
      block: distribution.
      num_blocks: int.
    """

    def __init__(self, block, num_blocks):
        self.block, self.num_blocks = block, num_blocks
        self.vocab_size, self.length = block.vocab_size, block.length * num_blocks

    def sample(self, key, n):
        return self.block.sample(key, n * self.num_blocks).reshape(n, self.length)

    def log_marginal(self, tokens):
        parts = self.block.log_marginal(tokens.reshape(-1, self.block.length))
        return parts.reshape(-1, self.num_blocks).sum(axis=1)

    def denoise(self, tokens):
        """Returns float[B, L, V], log p(x_i | revealed); an impossible block is uniform, the others are not touched."""
        parts = self.block.denoise(tokens.reshape(-1, self.block.length))
        return parts.reshape(*tokens.shape, self.vocab_size)

    def _entropies(self):
        inner, others = self.block.curve().entropy, self.block.length - 1
        entropies = []
        for k in range(self.length):
            seen = np.arange(max(0, k - (self.length - 1 - others)), min(others, k) + 1)
            entropies.append(_hypergeometric(self.length - 1, others, k, seen) @ inner[seen])
        return np.asarray(entropies)


class Rearranged(_Distribution):
    """Another distribution with its positions moved about.

    Args:
      inner: distribution.
      places: int[L], a permutation: position i here is position places[i] of the inner one.
    """

    def __init__(self, inner, places):
        self.inner, self.places = inner, np.asarray(places)
        self.length, self.vocab_size = inner.length, inner.vocab_size
        if sorted(self.places.tolist()) != list(range(self.length)):
            raise ValueError(f"places: must hold every position 0..{self.length - 1} exactly once")
        self._back = np.argsort(self.places)

    def sample(self, key, n):
        return self.inner.sample(key, n)[:, self.places]

    def log_marginal(self, tokens):
        return self.inner.log_marginal(tokens[:, self._back])

    def denoise(self, tokens):
        """Returns float[B, L, V], log p(x_i | revealed)."""
        return self.inner.denoise(tokens[:, self._back])[:, self.places]

    def _entropies(self):
        return self.inner.curve().entropy


class MarkovChain(_Distribution):
    """A Markov chain.

    Args:
      initial: float[V], law of the first token.
      transition: float[V, V], row u is the law of the token after u.
      length: int.
    """

    def __init__(self, initial, transition, length):
        initial, transition = np.asarray(initial, np.float64), np.asarray(transition, np.float64)
        size = len(initial)
        if transition.shape != (size, size) or not np.allclose(transition.sum(axis=1), 1) or transition.min() < 0:
            raise ValueError(f"transition: shape {list(transition.shape)} must be [V, V] with rows that sum to 1")
        if not np.isclose(initial.sum(), 1) or initial.min() < 0:
            raise ValueError(f"initial={initial.tolist()}: must be probabilities that sum to 1")
        self.vocab_size, self.length = size, length
        self.initial, self.transition = initial, transition
        powers = [np.eye(size)]
        for _ in range(length):
            powers.append(powers[-1] @ transition)
        self._log_power = _log(powers)  # [L + 1, V, V]
        self._log_law = _log([initial @ power for power in powers[:length]])  # [L, V]

    def sample(self, key, n):
        keys = jax.random.split(key, self.length)
        log_transition = jnp.asarray(self._log_power[1], jnp.float32)

        def step(state, step_key):
            state = jax.random.categorical(step_key, log_transition[state], mode="high").astype(jnp.int32)
            return state, state

        first = _gumbel_choice(keys[0], self._log_law[0], (n,))
        _, rest = jax.lax.scan(step, first, keys[1:])
        return jnp.concatenate([first[None], rest]).T

    def _nearest(self, tokens, xp):
        """Index of the nearest revealed position strictly left (-1: none) and strictly right (L: none), int[B, L]."""
        places = xp.arange(self.length)
        is_revealed = tokens < self.vocab_size
        up_to = _running_max(xp.where(is_revealed, places, -1), xp)
        left = xp.concatenate([xp.full_like(up_to[:, :1], -1), up_to[:, :-1]], axis=1)
        mirrored = _running_max(xp.where(is_revealed, self.length - 1 - places, -1)[:, ::-1], xp)[:, ::-1]
        down_to = self.length - 1 - mirrored
        right = xp.concatenate([down_to[:, 1:], xp.full_like(down_to[:, :1], self.length)], axis=1)
        return left, right

    def _from_left(self, tokens, left, xp):
        """log p(x_i = . | nearest revealed token on the left), float[B, L, V]."""
        places = xp.arange(self.length)
        token = xp.take_along_axis(tokens, xp.maximum(left, 0), axis=1)
        power = xp.asarray(self._log_power)[xp.where(left >= 0, places - left, 0), xp.where(left >= 0, token, 0)]
        return xp.where((left >= 0)[..., None], power, xp.asarray(self._log_law))

    def log_marginal(self, tokens):
        xp = _namespace(tokens)
        left, _ = self._nearest(tokens, xp)
        is_revealed = tokens < self.vocab_size
        law = self._from_left(tokens, left, xp)
        picked = xp.take_along_axis(law, xp.where(is_revealed, tokens, 0)[..., None], axis=2)[..., 0]
        return xp.where(is_revealed, picked, 0.0).sum(axis=1)

    def _posterior(self, tokens, xp):
        left, right = self._nearest(tokens, xp)
        has_right = right < self.length
        token = xp.take_along_axis(tokens, xp.minimum(right, self.length - 1), axis=1)
        distance = xp.where(has_right, right - xp.arange(self.length), 0)
        onward = xp.swapaxes(xp.asarray(self._log_power), 1, 2)[distance, xp.where(has_right, token, 0)]
        return self._from_left(tokens, left, xp) + xp.where(has_right[..., None], onward, 0.0)

    def _entropies(self):
        """F(k) = mean H(X_S) is a sum over pairs of neighbours in S of H(right | left), so L^2 weights are enough."""
        length = self.length
        law = np.exp(self._log_law)  # [L, V]
        given = special.entr(np.exp(self._log_power)).sum(axis=2)  # [L + 1, V], H(d steps on | token)
        # Sum over all pairs of positions d apart, and over all first positions.
        by_distance = np.asarray([(law[: length - d] @ given[d]).sum() for d in range(1, length)])
        first = special.entr(law).sum(axis=1)
        sizes = np.arange(1, length + 1)[:, None]
        # P(i is the first of S) and P(i, i + d are neighbours in S), as running products: no rounding to speak of.
        gaps = np.arange(1, length)
        is_first = np.cumprod(
            np.concatenate([sizes / length, np.maximum(length - gaps - (sizes - 1), 0) / (length - gaps)], axis=1),
            axis=1,
        )
        totals = is_first @ first
        if length > 1:
            start = sizes * (sizes - 1) / (length * (length - 1))
            ratio = np.maximum(length - gaps[:-1] - 1 - (sizes - 2), 0) / np.maximum(length - gaps[:-1] - 1, 1)
            totals = totals + np.cumprod(np.concatenate([start, ratio], axis=1), axis=1) @ by_distance
        return np.diff(np.concatenate([[0.0], totals]))


def _running_max(x, xp):
    return jax.lax.cummax(x, axis=1) if xp is jnp else np.maximum.accumulate(x, axis=1)


def stationary_markov_chain(transition, length):
    """Returns the MarkovChain that starts in its stationary law."""
    return MarkovChain(stationary(transition), transition, length)


class Mixture(_Distribution):
    """A latent choice among distributions of equal length and vocabulary.

    Args:
      weights: float[M], probabilities.
      components: M distributions.
    """

    def __init__(self, weights, components):
        weights = np.asarray(weights, np.float64)
        shapes = {(c.length, c.vocab_size) for c in components}
        if len(weights) != len(components) or not np.isclose(weights.sum(), 1) or weights.min() < 0:
            raise ValueError(f"weights={weights.tolist()}: must be {len(components)} probabilities that sum to 1")
        if len(shapes) != 1:
            raise ValueError(f"components: must share one length and vocabulary, not {sorted(shapes)}")
        self.length, self.vocab_size = shapes.pop()
        self.weights, self.components = weights, list(components)

    def sample(self, key, n):
        choice_key, *keys = jax.random.split(key, len(self.components) + 1)
        choice = _gumbel_choice(choice_key, _log(self.weights), (n,))
        drawn = jnp.stack([c.sample(k, n) for c, k in zip(self.components, keys, strict=True)])
        return drawn[choice, jnp.arange(n)]

    def _joint(self, tokens, xp):
        """log p(component, revealed tokens), float[M, B]."""
        return xp.stack([w + c.log_marginal(tokens) for w, c in zip(_log(self.weights), self.components, strict=True)])

    def log_marginal(self, tokens):
        xp = _namespace(tokens)
        return _log_sum(self._joint(tokens, xp), xp)

    def _posterior(self, tokens, xp):
        answers = xp.stack([c.denoise(tokens) for c in self.components])
        return _log_sum(self._joint(tokens, xp)[:, :, None, None] + answers, xp)


class Exchangeable(Mixture):
    """A latent choice of one law, from which all tokens are then drawn independently.

    Args:
      weights: float[M], probabilities.
      probs: float[M, V], the laws.
      length: int.
    """

    def __init__(self, weights, probs, length):
        self.probs = np.asarray(probs, np.float64)
        super().__init__(weights, [Independent(np.tile(law, (length, 1))) for law in self.probs])

    def _entropies(self):
        types = math.comb(self.length + self.vocab_size - 1, self.vocab_size - 1)
        if types > _MOST_OUTCOMES:
            raise ValueError(f"Exchangeable: {types} types of rows are too many (at most {_MOST_OUTCOMES})")
        log_probs, log_weights = _log(self.probs), _log(self.weights)
        totals = np.zeros(self.length + 1)
        for size in range(1, self.length + 1):
            counts = _types(size, self.vocab_size)  # [n, V]
            log_ways = special.gammaln(size + 1) - special.gammaln(counts + 1).sum(axis=1)
            seen = counts[:, None] > 0
            log_joint = log_weights + (counts[:, None] * np.where(seen, log_probs, 0.0)).sum(axis=2)
            log_p = special.logsumexp(log_joint, axis=1)
            totals[size] = -np.sum(np.where(np.isfinite(log_p), np.exp(log_ways + log_p) * log_p, 0.0))
        return np.diff(totals)


def _types(size, vocab_size):
    """int[n, V], all ways to split `size` tokens among V values."""
    if vocab_size == 1:
        return np.full((1, 1), size)
    parts = []
    for first in range(size + 1):
        rest = _types(size - first, vocab_size - 1)
        parts.append(np.concatenate([np.full((len(rest), 1), first), rest], axis=1))
    return np.concatenate(parts)


class HiddenMarkov(_Distribution):
    """A hidden Markov model.

    Args:
      initial: float[S], law of the first state.
      transition: float[S, S], row u is the law of the state after u.
      emission: float[S, V], row u is the law of the token in state u.
      length: int.
    """

    def __init__(self, initial, transition, emission, length):
        emission = np.asarray(emission, np.float64)
        self.states = MarkovChain(initial, transition, length)
        if emission.ndim != 2 or len(emission) != self.states.vocab_size or not np.allclose(emission.sum(axis=1), 1):
            raise ValueError(f"emission: shape {list(emission.shape)} must be [S, V] with rows that sum to 1")
        self.emission, self.length, self.vocab_size = emission, length, emission.shape[1]

    def sample(self, key, n):
        state_key, token_key = jax.random.split(key)
        log_emission = jnp.asarray(_log(self.emission), jnp.float32)
        states = self.states.sample(state_key, n)
        return jax.random.categorical(token_key, log_emission[states], mode="high").astype(jnp.int32)

    def _forward(self, tokens, xp):
        """(log p(revealed), p(state_i | revealed before i) [B, L, S], likelihood of revealed after i [B, L, S])."""
        seen = xp.concatenate([xp.asarray(self.emission), xp.ones((len(self.emission), 1))], axis=1)[:, tokens]
        seen = xp.moveaxis(seen, 0, 2)  # [B, L, S]
        transition = xp.asarray(self.states.transition)
        prior = xp.broadcast_to(xp.asarray(self.states.initial), seen[:, 0].shape)
        before, log_p = [], xp.zeros(len(tokens))
        for i in range(self.length):
            before.append(prior)
            joint = prior * seen[:, i]
            mass = joint.sum(axis=1, keepdims=True)
            log_p = log_p + xp.where(mass[:, 0] > 0, xp.log(xp.where(mass[:, 0] > 0, mass[:, 0], 1.0)), -xp.inf)
            prior = (joint / xp.where(mass > 0, mass, 1.0)) @ transition
        after, later = [], xp.ones_like(prior)
        for i in reversed(range(self.length)):
            after.append(later)
            later = (later * seen[:, i]) @ transition.T
            later = later / xp.maximum(later.max(axis=1, keepdims=True), 1e-300 if xp is np else 1e-30)
        return log_p, xp.stack(before, axis=1), xp.stack(after[::-1], axis=1)

    def log_marginal(self, tokens):
        return self._forward(tokens, _namespace(tokens))[0]

    def _posterior(self, tokens, xp):
        _, before, after = self._forward(tokens, xp)
        law = (before * after) @ xp.asarray(self.emission)
        return xp.where(law > 0, xp.log(xp.where(law > 0, law, 1.0)), -xp.inf)


def stationary(transition):
    """Returns float64[S], the stationary law of a transition matrix (its eigenvector of eigenvalue 1)."""
    transition = np.asarray(transition, np.float64)
    values, vectors = np.linalg.eig(transition.T)
    law = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    return law / law.sum()


def _log_sum(x, xp):
    """log-sum-exp over the first axis; -inf stays -inf."""
    top = x.max(axis=0)
    safe = xp.where(top > -xp.inf, top, 0.0)
    total = xp.exp(x - safe).sum(axis=0)
    return xp.where(top > -xp.inf, safe + xp.log(xp.where(total > 0, total, 1.0)), -xp.inf)


class ReedSolomon(_Distribution):
    """Uniform over the values at 0..L-1 of all polynomials of degree below `dimension` over a prime field.

    Any `dimension` tokens are independent and uniform, and determine all others: an MDS code.

    Args:
      field_size: int, a prime of at least `length`.
      length: int, L.
      dimension: int, d in 1..L.
    """

    def __init__(self, field_size, length, dimension):
        is_prime = field_size > 1 and all(field_size % k for k in range(2, int(field_size**0.5) + 1))
        if not is_prime or field_size < length:
            raise ValueError(f"field_size={field_size}: must be a prime of at least length={length}")
        if not 1 <= dimension <= length:
            raise ValueError(f"dimension={dimension}: must be between 1 and length={length}")
        self.vocab_size, self.length, self.dimension = field_size, length, dimension
        self._inverse = np.asarray([pow(x, -1, field_size) if x else 0 for x in range(field_size)], np.int32)

    def sample(self, key, n):
        coefficients = jax.random.randint(key, (n, self.dimension), 0, self.vocab_size)
        value = jnp.zeros((n, self.length), jnp.int32)
        for j in reversed(range(self.dimension)):
            value = (value * jnp.arange(self.length) + coefficients[:, j : j + 1]) % self.vocab_size
        return value

    def _interpolate(self, tokens, xp):
        """The codeword through the first `dimension` revealed tokens, int[B, L]; meaningless if there are fewer."""
        q = self.vocab_size
        is_hidden = tokens == self.mask_id
        chosen = xp.argsort(is_hidden, axis=1, stable=True)[:, : self.dimension]  # [B, d], revealed ones first
        values = xp.take_along_axis(tokens, chosen, axis=1) % q
        inverse = xp.asarray(self._inverse)
        basis = xp.ones((*tokens.shape, self.dimension), tokens.dtype)  # [B, L, d], Lagrange polynomials
        places = xp.arange(self.length)[None, :, None]
        own = xp.arange(self.dimension)
        for m in range(self.dimension):
            node = chosen[:, None, m : m + 1]
            factor = (places - node) * inverse[(chosen[:, None, :] - node) % q] % q
            basis = xp.where(own == m, basis, basis * factor % q)
        return (basis * values[:, None, :] % q).sum(axis=2) % q

    def _state(self, tokens, xp):
        """(number revealed, whether they lie on one polynomial, the codeword), [B], [B], [B, L]."""
        revealed = (tokens < self.vocab_size).sum(axis=1)
        codeword = self._interpolate(tokens, xp)
        agrees = ((tokens == codeword) | (tokens == self.mask_id)).all(axis=1)
        return revealed, agrees | (revealed <= self.dimension), codeword

    def log_marginal(self, tokens):
        xp = _namespace(tokens)
        revealed, is_possible, _ = self._state(tokens, xp)
        free = xp.minimum(revealed, self.dimension)
        return xp.where(is_possible, -free * np.log(self.vocab_size), -xp.inf)

    def _posterior(self, tokens, xp):
        revealed, is_possible, codeword = self._state(tokens, xp)
        is_determined = (revealed >= self.dimension) & is_possible
        forced = _one_hot_log(codeword, self.vocab_size, xp)
        return xp.where(is_determined[:, None, None], forced, 0.0)

    def _entropies(self):
        return np.where(np.arange(self.length) < self.dimension, np.log(self.vocab_size), 0.0)
