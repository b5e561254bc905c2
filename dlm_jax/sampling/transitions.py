"""How many positions are revealed now.

| name                 | a step reveals                                                               | steps     |
|----------------------|------------------------------------------------------------------------------|-----------|
| exact_count          | the sizes given, row by row                                                  | given     |
| quota_llada          | masks // S each, the remainder on the first steps (LLaDA)                    | given     |
| quota_dream          | int(masks (1 - s/t)) on a grid from 1 to 1e-3, the rest at the end (Dream)   | given     |
| ancestral_md4        | each masked token with probability (a_s - a_t) / (1 - a_t), a = 1 - t        | given     |
| ancestral_md4_cosine | the same on MD4's cosine grid                                                | given     |
| ancestral_mdlm       | each masked token with probability (t - s) / t, t from 1 to 1e-5             | given     |
| first_hitting        | one token; time runs from token to token (time-conditioned models)           | a token   |
| threshold:p          | the leading ones whose confidence is above p, at least one (Fast-dLLM)       | as needed |
| factor:f             | n leading ones while (n + 1)(1 - c_n) < f, at least one (Fast-dLLM)          | as needed |
| entropy_bound:h      | the leading ones while sum H - max H <= h nats, at least one (EB)            | as needed |
| entropy_sum:h        | the leading ones while sum H <= h nats, at least one                         | as needed |

"Leading" is by the selection. A step reveals at least one token where the last column says "as needed". Ancestral
samplers end with one more step for what is still masked. Rows are counted one by one, so a row never depends on its
batch (Dream shares one count over the batch; this is its batch of one).

Source: MD4 (Shi et al. 2024, App. G), MDLM (Sahoo et al. 2024), LLaDA `generate.py`, Dream `generation_utils.py`,
Fast-dLLM (2505.22618), EB (Ben-Hamu et al. 2505.24857), entropy sums after Cai & Li (2603.22248), first hitting (Zheng
et al. 2409.02908).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax.config import split_choice

_MD4_EPSILON = 1e-4
_MDLM_EPSILON = 1e-5
_DREAM_EPSILON = 1e-3


class Steps(NamedTuple):
    """Steps whose number is known beforehand; every field is [S], then a scalar inside the scan."""

    index: np.ndarray  # int32, of the step
    stage: np.ndarray  # int32, which positions are open
    start: np.ndarray  # int32, slot of the order where the step begins
    stop: np.ndarray  # int32, slot after its last one
    filled: np.ndarray  # int32, positions of the stage that are revealed when it ends
    turn: np.ndarray  # int32, of the step inside its stage
    num_turns: np.ndarray  # int32, steps of the stage
    share: np.ndarray  # float32, probability of each masked token, or what Dream multiplies masks by
    alpha_t: np.ndarray  # float32, share of tokens that are kept at its beginning, of ancestral samplers
    alpha_s: np.ndarray  # float32, at its end


def grid(name, num_steps):
    """Returns (alpha_t, alpha_s, share), float64[S] each, of an ancestral transition; the last step fills what is left.

    Args:
      name: "ancestral_md4", "ancestral_md4_cosine" or "ancestral_mdlm".
      num_steps: T; S = T + 1.
    """
    if name == "ancestral_mdlm":
        t = np.linspace(1, _MDLM_EPSILON, num_steps + 1)
        alpha = 1 - t
        share = (t[:-1] - t[1:]) / t[:-1]
    else:
        t = 1 - np.arange(num_steps + 1) / num_steps
        if name == "ancestral_md4_cosine":
            t = np.cos(np.pi / 2 * (1 - t))
        alpha = (1 - 2 * _MD4_EPSILON) * (1 - t) + _MD4_EPSILON
        share = (alpha[1:] - alpha[:-1]) / (1 - alpha[:-1])
    return np.append(alpha[:-1], alpha[-1]), np.append(alpha[1:], 1.0), np.append(share, 1.0)


def loop_grid(num_steps, turn_on=0.55, turn_off=0.05, alpha_on=0.9):
    """Returns `grid` of ReMDM's loop: up to alpha_on, a stay there, and on to 1 (the published constants)."""
    t = np.linspace(1, _MDLM_EPSILON, num_steps + 1)
    alpha = np.where(
        t > turn_on,
        (1 - t) * alpha_on / (1 - turn_on),
        np.where(t > turn_off, alpha_on, 1 - t * (1 - alpha_on) / turn_off),
    )
    share = (alpha[1:] - alpha[:-1]) / (1 - alpha[:-1])
    return np.append(alpha[:-1], alpha[-1]), np.append(alpha[1:], 1.0), np.append(share, 1.0)


def dream_shares(num_steps):
    """Returns float32[S], 1 - s/t on Dream's grid; 1 for the last step."""
    t = np.linspace(1, _DREAM_EPSILON, num_steps + 1, dtype=np.float32)
    return np.append((1 - t[1:] / t[:-1])[: num_steps - 1], np.float32(1))


def make_steps(choices, layout, sizes):
    """Returns the Steps of a sampler that is not adaptive.

    Args:
      choices: SampleConfig.
      layout: canvas.Layout, stages of positions.
      sizes: list of int[T_g], one a stage, summing to its length; for quotas only their number counts.
    """
    if choices.is_ancestral:
        make = loop_grid if choices.remasking.startswith("remdm_loop") else None
        alpha_t, alpha_s, share = make(choices.num_steps) if make else grid(choices.transition, choices.num_steps)
        count, length = len(share), layout.length
        zero, all_of_it = np.zeros(count), np.full(count, length)
        return _steps(
            zero, zero, all_of_it, all_of_it, np.arange(count), all_of_it * 0 + count, share, alpha_t, alpha_s
        )
    columns = []
    for stage, (first, stage_sizes) in enumerate(zip(layout.starts, sizes, strict=True)):
        stops = np.cumsum(stage_sizes)
        count = len(stops)
        share = dream_shares(count) if choices.transition == "quota_dream" else np.zeros(count)
        columns.append((
            np.full(count, stage), first + stops - stage_sizes, first + stops, stops, np.arange(count),
            np.full(count, count), share, np.zeros(count), np.zeros(count),
        ))  # fmt: skip
    return _steps(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def _steps(stage, start, stop, filled, turn, num_turns, share, alpha_t, alpha_s):
    whole = (
        np.asarray(values, np.int32) for values in (np.arange(len(stage)), stage, start, stop, filled, turn, num_turns)
    )
    return Steps(*whole, *(np.asarray(values, np.float32) for values in (share, alpha_t, alpha_s)))


class Candidates(NamedTuple):
    """What a count is made from: the open masked positions of every row in the order of the selection."""

    count: jax.Array  # int32[B], how many there are
    filled: jax.Array  # int32[B], positions of the stage that are revealed already
    at_start: jax.Array  # int32[B], masked positions of the stage before its first step
    confidence: jax.Array  # float32[B, W], probability of the most probable (or the drawn) token; 0 beyond the count
    entropy: jax.Array  # float32[B, W], of the marginals, nats; infinite beyond the count


def exact_count(now, candidates, parameter):
    """int32[B]: so many that `now.filled` positions of the stage are revealed; a frozen one counts as revealed."""
    return now.filled - candidates.filled


def quota_llada(now, candidates, parameter):
    """int32[B]: the masks of the stage divided evenly over its steps, the remainder one each on the first ones."""
    each, rest = candidates.at_start // now.num_turns, candidates.at_start % now.num_turns
    goal = each * (now.turn + 1) + jnp.minimum(now.turn + 1, rest)
    return goal - (candidates.at_start - candidates.count)


def quota_dream(now, candidates, parameter):
    """int32[B]: int(masks (1 - s/t)), which may be 0; all of them on the last step."""
    return jnp.floor(candidates.count.astype(jnp.float32) * now.share).astype(jnp.int32)


def threshold(now, candidates, parameter):
    """int32[B]: leading confidences strictly above the parameter."""
    return _leading(candidates.confidence > parameter)


def factor(now, candidates, parameter):
    """int32[B]: the largest n for which (n + 1)(1 - c_n) is below the parameter, c_n being the n-th confidence."""
    place = 1 + jnp.arange(candidates.confidence.shape[1])
    fits = ((place + 1) * (1 - candidates.confidence) < parameter) & (candidates.confidence > 0)
    return jnp.where(fits, place, 0).max(axis=1)


def entropy_bound(now, candidates, parameter):
    """int32[B]: the leading entropies whose sum without the largest, a bound on the KL of the step, stays within the
    parameter."""
    entropy = candidates.entropy
    largest = jax.lax.cummax(entropy, axis=1)
    # Each further entropy adds the smaller of itself and the largest before it: no difference of sums, so no rounding.
    added = jnp.minimum(entropy[:, 1:], largest[:, :-1])
    total = jnp.concatenate([jnp.zeros_like(entropy[:, :1]), jnp.cumsum(added, axis=1)], axis=1)
    return _leading((total <= parameter) & jnp.isfinite(entropy))


def entropy_sum(now, candidates, parameter):
    """int32[B]: the leading entropies whose sum stays within the parameter."""
    return _leading(jnp.cumsum(candidates.entropy, axis=1) <= parameter)


def _leading(fits):
    """int32[B], how many True come before the first False."""
    return jnp.cumprod(fits.astype(jnp.int32), axis=1).sum(axis=1)


def count_of(transition, now, candidates, parameter):
    """Returns int32[B], how many candidates a step reveals; an adaptive one reveals at least one where it can."""
    name = split_choice(transition)[0]
    count = COUNTS[name](now, candidates, parameter)
    return jnp.clip(count, 1 if name in ADAPTIVE else 0, candidates.count)


COUNTS = {
    "exact_count": exact_count,
    "quota_llada": quota_llada,
    "quota_dream": quota_dream,
    "first_hitting": exact_count,
    "threshold": threshold,
    "factor": factor,
    "entropy_bound": entropy_bound,
    "entropy_sum": entropy_sum,
}
ADAPTIVE = ("threshold", "factor", "entropy_bound", "entropy_sum")
