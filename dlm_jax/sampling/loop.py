"""The sampler: one compiled program in which small choices compose.

    canvas (frozen tokens and masks), stages (which positions are open), order (positions by turn)
        |
        v      a step, inside lax.scan (a known number of steps) or lax.while_loop (as many as needed)
    [ denoiser body ] -> [ selection: who comes first ] -> [ transition: how many ] -> [ head on their rows ]
        ^                                                                                   |
        |                                                                          [ token choice ]
        +------------------------ [ remasking ] <----------------------------------- tokens |

Where the order is known beforehand the head runs only on the rows that are revealed; a selection that scores positions
needs it everywhere. Steps of known sizes are put into at most four contiguous groups, each a scan padded to its largest
step. Frozen positions count as revealed: a step that finds nothing to do in a row leaves it alone and does not count.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax import rng
from dlm_jax.config import SampleConfig, sample_config, split_choice
from dlm_jax.information.schedules import check_sizes, uniform_sizes
from dlm_jax.kernels.unmask import of_logits
from dlm_jax.parallel import mesh as meshes
from dlm_jax.parallel import sharding
from dlm_jax.sampling import canvas as canvases
from dlm_jax.sampling import guidance, remasking, token_choice, transitions
from dlm_jax.sampling import selection as selections
from dlm_jax.sampling.plain import PlainDenoiser

_MAX_GROUPS = 4
# A further group costs one more copy of the program; it must save this share of the head's rows.
_WORTH_A_GROUP = 0.2


class Samples(NamedTuple):
    """What a sampler returns; arrays are on the host."""

    tokens: np.ndarray  # int32[B, L]
    nfe: np.ndarray  # int32[B], denoiser calls that were needed for the row
    reveal_step: (
        np.ndarray
    )  # int32[B, L], which step revealed a position (last); -1 where none did: frozen, or after the end
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
    order=None,
    critical=(),
    canvas=None,
    eos_id=None,
    negative=None,
    mesh=None,
    **choices,
):
    """Samples from a denoiser of your own.

    Args:
      denoise: int32[B, L] -> float[B, L, V], log p(x_i | visible), traceable by jax. Keep passing the same function
        object: the program is compiled once for each.
      key: PRNG key.
      num_samples, length: shape of the samples; not needed with `canvas`.
      mask_id: int, marks positions to fill.
      sizes: int[T], tokens revealed by each step, sum L (with blocks: of each block, sum block_length); or
      num_steps: int, for uniform sizes (with blocks: of all blocks together). Neither: one token a step.
      order: for selection "random", which position each turn reveals: int32[L] or int32[B, L], the name of a family
        ("spaced", ...; see information.orders), or None for a random one a row.
      critical: positions that are revealed last, one a step.
      canvas: int32[B, L] with mask_id where tokens are to be filled; all else is frozen and counts as revealed.
      eos_id: int, for stop_at_eos.
      negative: int32[n] or None, for guidance: tokens in place of the prompt to be pushed away from; None: masks.
      mesh: Mesh or None, to spread rows over devices.
      choices: further fields of config.SampleConfig: selection, temperature, transition, remasking, ...
    Returns:
      Samples.
    Raises:
      ValueError: naming the argument, its value and what is allowed.
    """
    if canvas is None:
        if num_samples is None or length is None:
            raise ValueError("num_samples, length: both must be given where there is no canvas")
        canvas = canvases.empty(num_samples, length, mask_id)
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: must be between 1 and the length {np.shape(canvas)[1]}")
    return run(
        _plain(denoise, mask_id), None, key, canvas, make_choices(num_steps=num_steps or 0, **choices), sizes=sizes,
        order=order, critical=critical, eos_id=eos_id, negative=negative, mesh=mesh,
    )  # fmt: skip


@functools.lru_cache(maxsize=32)
def _plain(denoise, mask_id):
    return PlainDenoiser(denoise, mask_id)


def make_choices(**choices):
    """Returns the SampleConfig of keyword arguments.

    Raises:
      ValueError: naming the argument, its value and what is allowed.
    """
    unknown = sorted(choices.keys() - SampleConfig.__dataclass_fields__.keys())
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown; must be one of {', '.join(SampleConfig.__dataclass_fields__)}")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in choices.items()}
    try:
        return sample_config(plain)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("sample.")) from None


def run(
    denoiser, params, key, canvas, choices, *, sizes=None, order=None, critical=(), time_at=None, eos_id=None,
    negative=None, mesh=None,
):  # fmt: skip
    """Samples from anything with the seam of a Denoiser; see `sample`.

    Args:
      denoiser: has `mask_id`, `needs_time`, `hidden` and `logits`.
      params: its parameters.
      choices: SampleConfig.
      time_at: masked share -> time, for a denoiser that needs time.
      Others as in `sample`.
    """
    program, rows, *rest = build(
        denoiser, canvas, choices, sizes=sizes, order=order, critical=critical, time_at=time_at, eos_id=eos_id,
        negative=negative,
    )  # fmt: skip
    batch = len(rows.canvas)
    if mesh is not None:
        # Every device has all parameters and its own rows, so that none waits for another.
        mesh = meshes.make_mesh((mesh.size, 1, 1), mesh.devices.flat)
        params, rows = _spread(mesh, params, rows)
    with sharding.on_mesh(mesh):
        state = program(params, key, rows, *rest)
    return Samples(*(np.asarray(part)[:batch] for part in (state.tokens, state.nfe, state.reveal_step)))


def build(
    denoiser, canvas, choices, *, sizes=None, order=None, critical=(), time_at=None, eos_id=None, negative=None
):  # fmt: skip
    """Returns (program, rows, ...): what `run` calls as program(params, key, rows, ...), nothing compiled yet.

    Args:
      See `run`.
    Raises:
      ValueError: naming the argument, its value and what is allowed.
    """
    canvas = np.asarray(canvas, np.int32)
    batch, length = canvas.shape
    layout = canvases.make_layout(length, choices.block_length, critical)
    if order is not None:
        if choices.is_scored or choices.is_ancestral:
            what = f"selection={choices.selection!r}" if choices.is_scored else f"transition={choices.transition!r}"
            raise ValueError(f"order: {what} chooses its own; must be None")
        order = canvases.check_order(order, batch, length)
    if choices.stop_at_eos and eos_id is None:
        raise ValueError("stop_at_eos=True: there is no end-of-text token; must be False")
    _check_cache(choices, denoiser, layout)
    stage_sizes = resolve_stage_sizes(layout, choices, sizes)
    unconditional = None
    if choices.guidance:
        unconditional = canvases.unconditional(canvas, denoiser.mask_id, negative)
        denoiser = guidance.GuidedDenoiser(denoiser)
    elif negative is not None:
        raise ValueError("negative: needs guidance, which is 0")

    steps, groups = None, ()
    if not choices.is_adaptive:
        steps = transitions.make_steps(choices, layout, stage_sizes)
        steps = _needed(steps, layout, canvas, denoiser.mask_id, choices)
        groups = _groups(steps, choices, length)
    family = order if isinstance(order, str) else "random" if order is None else None
    how = _How.of(choices, eos_id, layout)
    program = _program(denoiser, how, family, groups, time_at)
    dials = _Dials(*map(jnp.float32, (
        choices.temperature, choices.order_temperature, choices.top_k, choices.top_p,
        split_choice(choices.transition)[1] or 0.0, split_choice(choices.remasking)[1] or 0.0, choices.guidance,
    )))  # fmt: skip
    given = None if family else jnp.asarray(np.broadcast_to(order, canvas.shape))
    return program, _Rows(canvas, given, unconditional), layout.stage, steps, dials


class _Rows(NamedTuple):
    canvas: jax.Array  # int32[B, L]
    order: jax.Array | None  # int32[B, L]
    unconditional: jax.Array | None  # int32[B, L], of guidance


def _spread(mesh, params, rows):
    """Parameters on every device of a mesh, rows divided over them; rows that fill up the last device have no masks."""
    more = -len(rows.canvas) % mesh.size

    def divided(array, is_canvas):
        filled = np.zeros((more, array.shape[1]), np.int32) if is_canvas else np.repeat(array[:1], more, axis=0)
        return jax.device_put(np.concatenate([array, filled]), sharding.batch_sharding(mesh))

    parts = (None if part is None else divided(np.asarray(part), part is rows.canvas) for part in rows)
    return jax.device_put(params, sharding.replicated(mesh)), _Rows(*parts)


def _check_cache(choices, denoiser, layout):
    if choices.cache == "none":
        return
    if not hasattr(denoiser, "empty_cache"):
        raise ValueError(f"cache={choices.cache!r}: this denoiser keeps no keys and values; must be 'none'")
    if len(layout.critical):
        raise ValueError(f"cache={choices.cache!r}: critical positions lie outside the blocks; must be 'none'")
    if len(set(layout.lengths)) > 1:
        raise ValueError(f"block_length={choices.block_length}: must divide the length {layout.length} with a cache")
    attention, block = denoiser.config.attention, denoiser.config.block_length
    if choices.cache == "exact" and (attention, block) != ("block_causal", choices.block_length):
        own = f"of blocks of {block}" if block else attention
        raise ValueError(
            f"cache='exact': needs a model of block-causal attention with blocks of {choices.block_length}, not {own}"
        )
    if choices.cache != "exact" and attention != "bidirectional":
        raise ValueError(f"cache={choices.cache!r}: is made for bidirectional models; this one's is exact: 'exact'")


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


def resolve_stage_sizes(layout, choices, sizes=None):
    """Returns the sizes of the steps of every stage, a list of int64[T_g]; None for an adaptive transition.

    Args:
      layout: canvas.Layout.
      choices: SampleConfig.
      sizes: int[T], of each block, or None.
    Raises:
      ValueError: naming the argument, its value and what is allowed.
    """
    num_blocks = len(layout.lengths) - len(layout.critical)
    blocks, name = layout.lengths[:num_blocks], split_choice(choices.transition)[0]
    if sizes is not None and name != "exact_count":
        raise ValueError(f"sizes: transition {choices.transition!r} has its own; must be None")
    if choices.is_adaptive:
        return None
    if choices.needs_num_steps and not choices.num_steps:
        raise ValueError(f"num_steps=0: transition {choices.transition!r} needs a number of steps, at least 1")
    if choices.is_ancestral:
        if len(layout.critical):
            raise ValueError(f"critical: transition {choices.transition!r} runs over the whole row; must be empty")
        return None
    num_steps = choices.num_steps or None
    if num_steps and num_blocks > 1:
        if num_steps % num_blocks:
            raise ValueError(f"num_steps={num_steps}: must be a multiple of {num_blocks}, the number of blocks")
        num_steps //= num_blocks
        if name == "exact_count" and num_steps > max(blocks):
            raise ValueError(
                f"num_steps={choices.num_steps}: must be at most {num_blocks * max(blocks)}, one token a step"
            )
    if sizes is not None and num_blocks > 1:
        sizes = resolve_sizes(choices.block_length, sizes, num_steps)
        ends = np.cumsum(sizes)
        parts = [np.diff(np.minimum(ends, size), prepend=0) for size in blocks]
        found = [part[part > 0] for part in parts]
    elif choices.transition.startswith("quota"):
        # Further steps of LLaDA's have nothing left to reveal; Dream's may have nothing yet.
        is_capped = choices.transition == "quota_llada"
        found = [np.zeros(min(num_steps, size) if is_capped else num_steps, np.int64) for size in blocks]
    else:
        fewer = [min(num_steps, size) if num_steps and num_blocks > 1 else num_steps for size in blocks]
        found = [resolve_sizes(size, sizes, steps) for size, steps in zip(blocks, fewer, strict=True)]
    return [*found, *[np.ones(1, np.int64)] * len(layout.critical)]


def _needed(steps, layout, canvas, mask_id, choices):
    """The steps that have something to do in some row; those of a fixed clock all run."""
    if choices.is_ancestral or choices.transition.startswith("quota"):
        is_needed = np.asarray([(canvas[:, layout.stage == stage] == mask_id).any() for stage in steps.stage])
    else:
        frozen = np.stack([(canvas[:, layout.stage == g] != mask_id).sum(axis=1) for g in range(len(layout.lengths))])
        is_needed = steps.filled > frozen.min(axis=1)[steps.stage]
        # A step never begins before the positions that are frozen in every row.
        first = np.asarray(layout.starts)[steps.stage] + frozen.min(axis=1)[steps.stage]
        steps = steps._replace(start=np.maximum(steps.start, first).astype(np.int32))
    kept = transitions.Steps(*(part[is_needed] for part in steps))
    return kept._replace(index=np.arange(is_needed.sum(), dtype=np.int32))


def _groups(steps, choices, length):
    """((number of steps, padded size), ...); size L: any number of rows may be due."""
    count = len(steps.index)
    if count == 0:
        return ()
    if choices.transition in ("exact_count", "first_hitting"):
        return group_steps(steps.stop - steps.start)
    return ((count, length),)


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


class _How(NamedTuple):
    """What a program is compiled for; numbers that can change without compiling are dials."""

    selection: str
    transition: str
    remasking: str
    numerics: str
    scores: str
    cache: str
    spacing: int
    block_length: int
    has_order_noise: bool
    has_top_k: bool
    has_top_p: bool
    num_redrawn: int  # by a corrector, tokens a step
    eos_id: int | None  # None: rows go on after end-of-text

    @classmethod
    def of(cls, choices, eos_id, layout):
        name, parameter = split_choice(choices.remasking)
        return cls(
            selection=choices.selection, transition=split_choice(choices.transition)[0], remasking=name,
            numerics=choices.numerics, scores=choices.scores, cache=choices.cache, spacing=choices.spacing,
            block_length=choices.block_length if choices.cache != "none" else 0,
            has_order_noise=choices.order_temperature > 0, has_top_k=choices.top_k > 0, has_top_p=choices.top_p < 1,
            num_redrawn=min(int(parameter), layout.length) if name == "corrector" else 0,
            eos_id=eos_id if choices.stop_at_eos else None,
        )  # fmt: skip

    @property
    def is_adaptive(self):
        return self.transition in transitions.ADAPTIVE

    @property
    def is_ancestral(self):
        return self.transition.startswith("ancestral")

    @property
    def knows_rows(self):
        """Whether the rows of every step are known before it: the head then runs on them alone."""
        is_plain = self.transition in ("exact_count", "first_hitting") and self.eos_id is None
        return self.selection == "random" and is_plain

    @property
    def redraws(self):
        """Whether a position may be drawn more than once, so that its noise must depend on the step."""
        return self.remasking != "none"


class _Dials(NamedTuple):
    temperature: jax.Array
    order_temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    transition: jax.Array
    remasking: jax.Array
    guidance: jax.Array


class _State(NamedTuple):
    tokens: jax.Array  # int32[B, L]
    reveal_step: jax.Array  # int32[B, L]
    nfe: jax.Array  # int32[B]
    decoded: jax.Array  # float32[B, L], probability of a token when it was drawn; read by remasking only
    share: jax.Array  # float32[B], masked share at the time of first hitting


class _Window(NamedTuple):
    """The positions that a call of the denoiser looks at, and what it remembers of the others."""

    start: object  # int or int32[]
    width: int
    cache: object = None


@functools.lru_cache(maxsize=64)
def _program(denoiser, how, family, groups, time_at):
    """Compiles once for a denoiser, the choices in `how`, a family of orders (None: orders are an argument) and a
    profile of sizes; batch and length specialise it further."""

    @jax.jit
    def program(params, key, rows, stage, steps, dials):
        canvas, order, unconditional = rows
        if unconditional is not None:
            params = {"own": params, "unconditional": unconditional, "scale": dials.guidance}
        row_keys = rng.per_row(rng.stream(key, "token"), len(canvas))
        order = canvases.reveal_order(
            rng.stream(key, "order"), canvas, denoiser.mask_id, order if family is None else family, stage
        )
        sampler = _Sampler(denoiser, how, time_at, params, key, row_keys, canvas, order, stage, dials)
        if how.cache != "none":
            return sampler.by_blocks(sampler.start(), steps)
        if how.is_adaptive:
            return sampler.until_filled(sampler.start(), _Window(0, canvas.shape[1]))
        return sampler.scan(sampler.start(), steps, groups, _Window(0, canvas.shape[1]))

    return program


def _put(values, where, new):
    """[B, L] with [B, R] new values at int32[B, R] places; row by row, so that no device needs another's rows."""
    if jnp.ndim(new) == 0:
        new = jnp.full(where.shape, new, values.dtype)
    return jax.vmap(lambda row, places, one: row.at[places].set(one, mode="drop"))(values, where, new)


class _Sampler(NamedTuple):
    """The parts of one traced program, at hand for every step."""

    denoiser: object
    how: _How
    time_at: object
    params: object
    key: jax.Array
    row_keys: jax.Array  # key[B], of token noise
    canvas: jax.Array
    order: jax.Array
    stage: jax.Array  # int32[L]
    dials: _Dials

    # ------------------------------------------------------------------------------------------------- the loops

    def start(self):
        batch, length = self.canvas.shape
        return _State(
            self.canvas, jnp.full((batch, length), -1, jnp.int32), jnp.zeros(batch, jnp.int32),
            jnp.zeros((batch, length)), jnp.ones(batch),
        )  # fmt: skip

    def scan(self, state, steps, groups, window):
        """Runs steps whose number is known, group by group."""
        done = 0
        for count, size in groups:
            part = jax.tree.map(lambda field, done=done, count=count: field[done : done + count], steps)
            state, _ = jax.lax.scan(lambda s, now, size=size: (self.step(s, now, size, window), None), state, part)
            done += count
        return state

    def until_filled(self, state, window):
        """Runs steps as long as an open position is masked; each reveals at least one in every row that has some."""
        batch = len(self.canvas)

        def is_open(carry):
            return self._slice(carry[1].tokens == self.denoiser.mask_id, window).any()

        def again(carry):
            index, state = carry
            masked = state.tokens == self.denoiser.mask_id
            now = jnp.where(masked, self.stage, jnp.iinfo(jnp.int32).max).min(axis=1)[:, None]  # a row's own stage
            steps = transitions.Steps(index, now, *[jnp.zeros((batch, 1), jnp.int32)] * 5, *[jnp.float32(0)] * 3)
            return index + 1, self.step(state, steps, window.width, window)

        return jax.lax.while_loop(is_open, again, (jnp.int32(0), state))[1]

    def by_blocks(self, state, steps):
        """Runs block after block on its own tokens (or all from there on); keys and values of the others are kept."""
        batch, length = self.canvas.shape
        block, how = self.how.block_length, self.how
        cache = self.denoiser.empty_cache(batch, length)

        def one_block(carry, number, width):
            state, cache = carry
            first = number * block
            is_open = (self._slice(state.tokens, _Window(first, block)) == self.denoiser.mask_id).any()
            cache, calls = self._refresh(state, cache, first, is_open)
            window = _Window(first, width, cache)
            before = state.nfe
            if how.is_adaptive:
                state = self._blocks_until_filled(state, window, number)
            else:
                state = self._block_steps(state, steps, window, number)
            return (state._replace(nfe=state.nfe + jnp.where(state.nfe > before, calls, 0)), cache), None

        if how.cache == "prefix":  # a window for each block: all that follows is looked at
            for number in range(length // block):
                (state, cache), _ = one_block((state, cache), number, length - number * block)
            return state
        body = functools.partial(one_block, width=block)
        return jax.lax.scan(body, (state, cache), jnp.arange(length // block))[0][0]

    def _refresh(self, state, cache, first, is_open):
        """Writes keys and values before a block begins, and says how many calls that took."""
        if self.how.cache == "exact":  # those of the block before, now that it is clean
            previous = jnp.maximum(first - self.how.block_length, 0)
            return self._remember(state, _Window(previous, self.how.block_length, cache)), 1 * (first > 0)
        window = _Window(0, self.canvas.shape[1], cache)
        return jax.lax.cond(is_open, lambda: self._remember(state, window), lambda: cache), 1

    def _remember(self, state, window):
        time = self._time(state)
        return self._hidden(state.tokens, None, time, window)[1]

    def _blocks_until_filled(self, state, window, number):
        inside = _Window(window.start, self.how.block_length)

        def is_open(carry):
            return (self._slice(carry[1].tokens, inside) == self.denoiser.mask_id).any()

        def again(carry):
            index, state = carry
            batch = len(self.canvas)
            now = transitions.Steps(index, number, *[jnp.zeros((batch, 1), jnp.int32)] * 5, *[jnp.float32(0)] * 3)
            return index + 1, self.step(state, now, self.how.block_length, window)

        return jax.lax.while_loop(is_open, again, (1 + state.reveal_step.max(), state))[1]

    def _block_steps(self, state, steps, window, number):
        """The steps of one block: those of another are passed over without a call."""

        def maybe(state, now):
            is_due = now.stage == number
            step = functools.partial(self.step, now=now, size=self.how.block_length, window=window)
            return jax.lax.cond(is_due, step, lambda state: state, state), None

        return jax.lax.scan(maybe, state, steps)[0]

    # -------------------------------------------------------------------------------------------------- one step

    def step(self, state, now, size, window):
        """Reveals tokens, then takes some back."""
        masked = state.tokens == self.denoiser.mask_id
        state = state._replace(share=self._hit(state.share, masked, now))
        time = self._time(state)
        choose = self._known if self.how.knows_rows else self._chosen
        rows, is_due, seen = choose(state, masked, now, size, time, window)
        after = self._write(state, rows, is_due, seen, now)
        after = after._replace(nfe=state.nfe + is_due.any(axis=1))
        if self.how.remasking in remasking.SIGMAS:
            after = self._take_back(state, after, masked, now)
        if self.how.num_redrawn:
            after = self._correct(after, now, is_due.any(axis=1))
        return after if self.how.eos_id is None else self._end_rows(after)

    def _known(self, state, masked, now, size, time, window):
        """Rows whose turn is known beforehand."""
        length = masked.shape[1]
        slots = now.start + jnp.arange(size)
        rows = jnp.take(self.order, jnp.minimum(slots, length - 1), axis=1)
        is_due = (slots < now.stop)[None] & jnp.take_along_axis(masked, rows, axis=1)
        inside = jnp.clip(rows - window.start, 0, window.width - 1)
        hidden, _ = self._hidden(state.tokens, inside, time, window)
        return rows, is_due, self._look(hidden, rows, now)

    def _chosen(self, state, masked, now, size, time, window):
        """Rows chosen by what is predicted for them, or by chance: the head runs on all rows of the window."""
        is_open = self._slice(masked & (self.stage[None] == now.stage), window)
        hidden, _ = self._hidden(state.tokens, None, time, window)
        places = jnp.broadcast_to(window.start + jnp.arange(window.width), is_open.shape)
        if self.how.is_ancestral:
            return places, *self._revealed_by_chance(state, masked, now, hidden, places, is_open, window)
        draws_all = size >= window.width or self.how.selection == "drawn"
        seen = self._look(hidden, places, now, is_drawn=draws_all)
        if self.how.selection == "random":
            turn_of = jnp.argsort(self.order, axis=1)
            scores = -self._slice(turn_of, window).astype(jnp.float32)
        else:
            scores = selections.SCORES[self.how.selection](seen)
        if self.how.has_order_noise:
            scores += self.dials.order_temperature * self._gumbel("selection", now, window)
        turn = selections.turns(scores, is_open, self.how.spacing)
        by_turn = jnp.argsort(turn, axis=1)
        count = is_open.sum(axis=1)
        is_ranked = jnp.arange(window.width)[None] < count[:, None]
        certainty = seen.log_prob if self.how.selection == "drawn" else seen.largest
        in_stage = self.stage[None] == now.stage
        candidates = transitions.Candidates(
            count=count,
            filled=(in_stage & ~masked).sum(axis=1),
            at_start=(in_stage & (self.canvas == self.denoiser.mask_id)).sum(axis=1),
            confidence=jnp.where(is_ranked, jnp.exp(jnp.take_along_axis(certainty, by_turn, axis=1)), 0.0),
            entropy=jnp.where(is_ranked, jnp.take_along_axis(seen.entropy, by_turn, axis=1), jnp.inf),
        )
        reveal = transitions.count_of(self.how.transition, now, candidates, self.dials.transition)
        if draws_all:
            return places, turn < reveal[:, None], seen
        rows = by_turn[:, :size]
        is_due = jnp.arange(size)[None] < reveal[:, None]
        rows_in_hidden = rows.reshape((1,) * (hidden.ndim - 3) + (*rows.shape, 1))
        hidden = jnp.take_along_axis(hidden, rows_in_hidden, axis=-2)
        rows = rows + window.start
        return rows, is_due, self._look(hidden, rows, now)

    def _revealed_by_chance(self, state, masked, now, hidden, places, is_open, window):
        """Every open position by itself: is_due and Unmasked."""
        share = self._reveal_share(state, masked, now)
        if self.how.numerics == "exact":
            is_due = is_open & (self._uniform("reveal", now, window) < share)
            return is_due, self._look(hidden, places, now)
        logits = self._filter(self.denoiser.logits(self.params, hidden).astype(jnp.float32))
        convention = "mdlm" if self.how.transition == "ancestral_mdlm" else "md4"
        keys = self._keys(places, now, always=True)
        drawn = token_choice.published_mixture(keys, logits, self.dials.temperature, share, convention)
        is_last = now.turn == now.num_turns - 1
        seen = of_logits(logits, None, self.dials.temperature)
        tokens = jnp.where(is_last, seen.tokens, drawn).astype(jnp.int32)
        return is_open & ((drawn < logits.shape[-1]) | is_last), seen._replace(tokens=tokens)

    def _write(self, state, rows, is_due, seen, now):
        """The state with the drawn tokens where they are due."""
        where = jnp.where(is_due, rows, self.canvas.shape[1])  # out of range: dropped
        decoded = state.decoded
        if self.how.remasking == "remdm_confidence":
            decoded = _put(decoded, where, jnp.exp(seen.log_prob))
        return state._replace(
            tokens=_put(state.tokens, where, seen.tokens),
            reveal_step=_put(state.reveal_step, where, now.index),
            decoded=decoded,
        )

    def _reveal_share(self, state, masked, now):
        """Probability that a masked token is revealed, of an ancestral transition."""
        if self.how.remasking not in remasking.SIGMAS or self.how.remasking == "remdm_confidence":
            return now.share
        sigma = remasking.SIGMAS[self.how.remasking](
            now.alpha_t, now.alpha_s, self.dials.remasking, remasking.largest_sigma(now.alpha_t, now.alpha_s)
        )
        return remasking.share_of(sigma, now.alpha_t, now.alpha_s)

    def _take_back(self, before, after, masked, now):
        """Masks some of the tokens that were revealed before this step."""
        is_revealed = ~masked & (self.canvas == self.denoiser.mask_id)
        sigma = remasking.sigma_of(
            self.how.remasking, now.alpha_t, now.alpha_s, self.dials.remasking, is_revealed, before.decoded
        )
        window = _Window(0, masked.shape[1])
        taken = is_revealed & (self._uniform("remask", now, window) < sigma) & (now.turn < now.num_turns - 1)
        return after._replace(tokens=jnp.where(taken, self.denoiser.mask_id, after.tokens))

    def _correct(self, state, now, is_active):
        """Draws a few random tokens anew, all at once, given all others."""
        window = _Window(0, self.canvas.shape[1])
        is_drawn = (state.tokens != self.denoiser.mask_id) & (self.canvas == self.denoiser.mask_id)
        chance = jnp.where(is_drawn, self._uniform("correct", now, window), jnp.inf)
        rows = jnp.argsort(chance, axis=1)[:, : self.how.num_redrawn].astype(jnp.int32)
        is_due = jnp.take_along_axis(is_drawn, rows, axis=1) & is_active[:, None]
        where = jnp.where(is_due, rows, self.canvas.shape[1])
        open_ = _put(state.tokens, where, self.denoiser.mask_id)
        time = self._time(state._replace(tokens=open_))
        hidden, _ = self._hidden(open_, rows, time, window)
        drawn = self._look(hidden, rows, now, name="correct").tokens
        after = state._replace(tokens=_put(state.tokens, where, drawn))
        return after._replace(nfe=state.nfe + is_due.any(axis=1))

    def _end_rows(self, state):
        """Once all before a drawn end-of-text is there, everything that follows becomes end-of-text: the row is done.

        That goes for tokens that were drawn already, but not for frozen ones.
        """
        masked = state.tokens == self.denoiser.mask_id
        was_open = self.canvas == self.denoiser.mask_id
        is_end = (state.tokens == self.how.eos_id) & was_open
        place = jnp.arange(masked.shape[1])[None]
        first_masked = jnp.where(masked, place, masked.shape[1]).min(axis=1, keepdims=True)
        first_end = jnp.where(is_end, place, masked.shape[1]).min(axis=1, keepdims=True)
        is_over = was_open & (place > first_end) & (first_end < first_masked)
        return state._replace(
            tokens=jnp.where(is_over, self.how.eos_id, state.tokens),
            reveal_step=jnp.where(is_over, -1, state.reveal_step),
        )

    # ------------------------------------------------------------------------------------- network, time and noise

    def _hidden(self, tokens, rows, time, window):
        if window.cache is None:
            return self.denoiser.hidden(self.params, tokens, rows=rows, time=time)
        positions = (window.start + jnp.arange(window.width))[None]
        inside = self._slice(tokens, window)
        return self.denoiser.hidden(self.params, inside, rows=rows, time=time, positions=positions, cache=window.cache)

    def _slice(self, values, window):
        if window.width == values.shape[1]:
            return values
        return jax.lax.dynamic_slice_in_dim(values, window.start, window.width, axis=1)

    def _time(self, state):
        if not self.denoiser.needs_time:
            return None
        if self.how.transition == "first_hitting":
            return self.time_at(state.share)
        return self.time_at((state.tokens == self.denoiser.mask_id).mean(axis=1, dtype=jnp.float32))

    def _hit(self, share, masked, now):
        """The masked share at which the next token is hit: the largest of as many uniforms as there are masks."""
        if self.how.transition != "first_hitting" or not self.denoiser.needs_time:
            return share
        count = jnp.maximum(masked.sum(axis=1), 1)
        keys = rng.per_row(rng.stream(self.key, "hit", now.index), len(masked))
        uniform = jax.vmap(lambda key: jax.random.uniform(key, minval=jnp.finfo(jnp.float32).tiny))(keys)
        return share * uniform ** (1 / count)

    def _filter(self, logits, is_scaled=False):
        """Logits after the filters; `is_scaled`: divided by the temperature too, as Dream's scores are."""
        if self.how.has_top_k or self.how.has_top_p:
            logits = token_choice.keep_likely(
                logits.astype(jnp.float32), self.dials.temperature,
                top_k=self.dials.top_k if self.how.has_top_k else None,
                top_p=self.dials.top_p if self.how.has_top_p else None,
            )  # fmt: skip
        if is_scaled:  # at temperature 0 Dream leaves logits as they are
            logits = logits / jnp.where(self.dials.temperature > 0, self.dials.temperature, 1.0)
        return logits

    def _look(self, hidden, rows, now, *, is_drawn=True, name="token"):
        """The Unmasked of int32[B, R] positions; a position's noise depends on the row, the position and, where a
        position may be drawn again, the step: not on how steps are padded or how many rows there are."""
        how, keys = self.how, self._keys(rows, now, name=name) if is_drawn else None
        scores_filtered = how.scores == "filtered" and how.selection != "random"
        is_filtered = how.has_top_k or how.has_top_p or scores_filtered
        if hasattr(self.denoiser, "unmask") and how.numerics == "exact" and not is_filtered:
            return self.denoiser.unmask(self.params, hidden, keys, self.dials.temperature)
        logits = self.denoiser.logits(self.params, hidden).astype(jnp.float32)
        seen = self._filter(logits, is_scaled=True) if scores_filtered else logits
        return of_logits(
            seen, keys, self.dials.temperature, drawn_from=self._filter(logits), draw=token_choice.NOISE[how.numerics]
        )

    def _keys(self, rows, now, always=False, name="token"):
        keys = self.row_keys if name == "token" else rng.per_row(rng.stream(self.key, name), len(rows))
        if self.how.redraws or always:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, now.index)
        return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, rows)

    def _uniform(self, name, now, window):
        """float32[B, W] in [0, 1), of the window's positions; fresh at every step."""
        return self._slice(self._noise(jax.random.uniform, name, now), window)

    def _gumbel(self, name, now, window):
        return self._slice(self._noise(token_choice.gumbel, name, now), window)

    def _noise(self, draw, name, now):
        keys = rng.per_row(rng.stream(self.key, name, now.index), len(self.canvas))
        return jax.vmap(lambda key: draw(key, (self.canvas.shape[1],)))(keys)
