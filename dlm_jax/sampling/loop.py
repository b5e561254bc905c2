"""The sampler: one compiled program that unrolls T denoising steps with `lax.scan`.

    canvas (frozen tokens and masks), order (positions by turn)
        |
        v        step t of the scan, for slots k_t .. k_{t+1} - 1 of the order
    [ denoiser body ] -> rows to reveal -> [ head on those rows ] -> [ token choice ] -> canvas
        ^                                                                                  |
        +----------------------------------------------------------------------------------+

Steps are put into at most four contiguous groups, each a scan padded to its largest step, so that one program serves
any sizes without computing the head on rows it does not need. Slots that were frozen are revealed already: a step
that finds nothing to do in a row leaves the row alone and does not count.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax import rng
from dlm_jax.information.schedules import check_sizes, uniform_sizes
from dlm_jax.sampling import canvas as canvases
from dlm_jax.sampling import selection as selections
from dlm_jax.sampling import token_choice
from dlm_jax.sampling.plain import PlainDenoiser

_MAX_GROUPS = 4
# A further group costs one more copy of the program; it must save this share of the head's rows.
_WORTH_A_GROUP = 0.2


class Samples(NamedTuple):
    """What a sampler returns; arrays are on the host."""

    tokens: np.ndarray  # int32[B, L]
    nfe: np.ndarray  # int32[B], denoiser calls that revealed something in the row
    reveal_step: np.ndarray  # int32[B, L], which step revealed a position; -1 where it was frozen
    texts: list | None = None


def sample(
    denoise,
    *,
    key,
    num_samples=None,
    length=None,
    mask_id,
    sizes=None,
    num_steps=None,
    selection="random",
    order=None,
    temperature=1.0,
    canvas=None,
):
    """Samples from a denoiser of your own.

    Args:
      denoise: int32[B, L] -> float[B, L, V], log p(x_i | visible), traceable by jax. Keep passing the same function
        object: the program is compiled once for each.
      key: PRNG key.
      num_samples, length: shape of the samples; not needed with `canvas`.
      mask_id: int, marks positions to fill.
      sizes: int[T], tokens revealed by each step, sum L; or
      num_steps: int, for uniform sizes. Neither: one token a step.
      selection: "random" or "confidence".
      order: for selection "random", which position each turn reveals: int32[L] or int32[B, L], the name of a family
        ("spaced", ...; see information.orders), or None for a random one a row.
      temperature: float, 0 = the most probable token.
      canvas: int32[B, L] with mask_id where tokens are to be filled; all else is frozen and counts as revealed.
    Returns:
      Samples.
    Raises:
      ValueError: naming the argument, its value and what is allowed.
    """
    if canvas is None:
        if num_samples is None or length is None:
            raise ValueError("num_samples, length: both must be given where there is no canvas")
        canvas = canvases.empty(num_samples, length, mask_id)
    return run(
        _plain(denoise, mask_id), None, key, canvas, sizes=sizes, num_steps=num_steps, selection=selection,
        order=order, temperature=temperature,
    )  # fmt: skip


@functools.lru_cache(maxsize=32)
def _plain(denoise, mask_id):
    return PlainDenoiser(denoise, mask_id)


def run(
    denoiser,
    params,
    key,
    canvas,
    *,
    sizes=None,
    num_steps=None,
    selection="random",
    order=None,
    temperature=1.0,
    time_at=None,
):
    """Samples from anything with the seam of a Denoiser; see `sample`.

    Args:
      denoiser: has `mask_id`, `needs_time`, `hidden` and `logits`.
      params: its parameters.
      time_at: masked share -> time, for a denoiser that needs time.
      Others as in `sample`.
    """
    canvas = np.asarray(canvas, np.int32)
    batch, length = canvas.shape
    sizes = resolve_sizes(length, sizes, num_steps)
    selections.check(selection)
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature}: must be at least 0 and finite")
    if order is not None:
        if selections.is_scored(selection):
            raise ValueError(f"order: selection={selection!r} chooses its own; must be None")
        order = canvases.check_order(order, batch, length)
    family = order if isinstance(order, str) else "random" if order is None else None
    starts, stops = _steps_to_run(sizes, canvas, denoiser.mask_id)
    groups = group_steps(stops - starts)
    program = _program(denoiser, selection, family, groups, time_at)
    bounds = jnp.asarray(starts, jnp.int32), jnp.asarray(stops, jnp.int32)
    given = None if family else jnp.asarray(order)
    tokens, reveal_step = program(params, key, jnp.asarray(canvas), given, *bounds, jnp.float32(temperature))
    reveal_step = np.asarray(reveal_step)
    return Samples(np.asarray(tokens), _distinct_steps(reveal_step), reveal_step)


def _distinct_steps(reveal_step):
    """How many different steps revealed something in each row, int32[B]."""
    ordered = np.sort(reveal_step, axis=1)
    is_new = np.diff(ordered, axis=1, prepend=-1) > 0  # frozen positions hold -1
    return is_new.sum(axis=1, dtype=np.int32)


def resolve_sizes(length, sizes=None, num_steps=None):
    """Returns int64[T] from sizes, or from a number of steps, or one token a step.

    Raises:
      ValueError: naming the argument, its value and what is allowed.
    """
    if sizes is not None:
        if num_steps is not None and num_steps != len(sizes):
            raise ValueError(f"num_steps={num_steps}: must be {len(sizes)}, the number of sizes, or None")
        return check_sizes(sizes, length)
    return uniform_sizes(length, length if num_steps is None else num_steps)


def _steps_to_run(sizes, canvas, mask_id):
    """Boundaries of the steps that have something to do in some row: the first and last slot of each, int64[S]."""
    fewest_frozen = int((canvas != mask_id).sum(axis=1).min())
    boundaries = np.concatenate([[0], np.cumsum(sizes)])
    starts, stops = boundaries[:-1], boundaries[1:]
    needed = stops > fewest_frozen
    return np.maximum(starts[needed], fewest_frozen), stops[needed]


def group_steps(sizes):
    """Returns ((number of steps, padded size), ...): at most 4 contiguous groups with little padding.

    Args:
      sizes: int[S].
    """
    sizes = np.asarray(sizes, np.int64)
    count = len(sizes)
    if count == 0:
        return ()
    starts = range(count)
    # best[g][b]: least padded rows of the first b steps in g + 1 groups, and where its last group starts.
    cost = [np.maximum.accumulate(sizes[a:]) * np.arange(1, count - a + 1) for a in starts]
    best, cut = [np.concatenate([[0], cost[0]])], [np.zeros(count + 1, int)]
    for _ in range(min(_MAX_GROUPS, count) - 1):
        totals = np.full((count, count + 1), np.iinfo(np.int64).max)
        for a in starts:
            totals[a, a + 1 :] = best[-1][a] + cost[a]
        cut.append(totals.argmin(axis=0))
        best.append(totals.min(axis=0))
    used = 0
    for g in range(1, len(best)):
        if best[g][count] <= (1 - _WORTH_A_GROUP) * best[used][count]:
            used = g
    groups, end = [], count
    for g in range(used, -1, -1):
        start = cut[g][end] if g else 0
        if end > start:
            groups.append((int(end - start), int(sizes[start:end].max())))
        end = start
    return tuple(reversed(groups))


@functools.lru_cache(maxsize=64)
def _program(denoiser, selection, family, groups, time_at):
    """Compiles once for a denoiser, a selection, a family of orders (None: orders are an argument) and a profile of
    sizes; batch and length specialise it further."""
    score = selections.SCORES[selection]
    step_rows = _known_rows if score is None else functools.partial(_scored_rows, score)

    @jax.jit
    def program(params, key, canvas, order, starts, stops, temperature):
        batch, length = canvas.shape
        order = canvases.reveal_order(rng.stream(key, "order"), canvas, denoiser.mask_id, family or order)
        num_frozen = (canvas != denoiser.mask_id).sum(axis=1)
        token_keys = rng.per_row(rng.stream(key, "token"), batch)

        def step(size, carry, bounds):
            index, start, stop = bounds
            tokens, reveal_step = carry
            time = None
            if denoiser.needs_time:
                masked_share = (tokens == denoiser.mask_id).mean(axis=1, dtype=jnp.float32)
                time = time_at(masked_share)
            slots = start + jnp.arange(size)
            rows, logits = step_rows(denoiser, params, tokens, order, slots, num_frozen, time)
            # A position's noise depends on the row and the position, not on the step or on how steps are padded.
            row_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(token_keys, rows)
            drawn = token_choice.categorical(row_keys, logits, temperature)
            is_due = (slots < stop)[None] & (slots[None] >= num_frozen[:, None])
            where = jnp.where(is_due, rows, length)  # out of range: dropped
            row_index = jnp.arange(batch)[:, None]
            tokens = tokens.at[row_index, where].set(drawn, mode="drop")
            reveal_step = reveal_step.at[row_index, where].set(index, mode="drop")
            return (tokens, reveal_step), None

        carry = (canvas, jnp.full((batch, length), -1, jnp.int32))
        done = 0
        for count, size in groups:
            part = slice(done, done + count)
            steps = (jnp.arange(done, done + count), starts[part], stops[part])
            carry, _ = jax.lax.scan(functools.partial(step, size), carry, steps)
            done += count
        return carry

    return program


def _known_rows(denoiser, params, tokens, order, slots, num_frozen, time):
    """Rows whose turn is known beforehand: the head runs on them alone."""
    rows = jnp.take(order, jnp.minimum(slots, tokens.shape[1] - 1), axis=1)
    hidden, _ = denoiser.hidden(params, tokens, rows=rows, time=time)
    return rows, denoiser.logits(params, hidden)


def _scored_rows(score, denoiser, params, tokens, order, slots, num_frozen, time):
    """The best-scored masked rows: the head runs on all rows.

    A row with more frozen positions than others has its turns at later slots; the first due slot takes the best.
    """
    hidden, _ = denoiser.hidden(params, tokens, time=time)
    logits = denoiser.logits(params, hidden)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    ranked = selections.best_first(score(log_p), tokens == denoiser.mask_id)
    revealed = (tokens != denoiser.mask_id).sum(axis=1)
    turn = jnp.clip(slots[None] - revealed[:, None], 0, tokens.shape[1] - 1)
    rows = jnp.take_along_axis(ranked, turn, axis=1)
    return rows, jnp.take_along_axis(logits, rows[..., None], axis=1)
