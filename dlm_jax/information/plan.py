"""From measured losses and seconds to a decision: how many steps, of which sizes, in which order.

A candidate is a way to sample; it has a quality (nats per sequence that the sampler assigns to held-out text) and,
where the sampler was timed, a latency. Quality is judged on documents that the sizes were not chosen on.
"""

import math
import pathlib
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from dlm_jax import files
from dlm_jax.information import error, orders, schedules, statistics
from dlm_jax.information.curve import InformationCurve, interpolation
from dlm_jax.information.pairs import PairEstimate

_FORMAT = 1
MARGIN = 1.645  # standard errors kept in reserve against a budget: one-sided 95 %
_NUMBER = (int, float)
_PLAN_FIELDS = (
    ("length", (int,), "a whole number of at least 1"),
    ("num_steps", (int,), "a whole number"),
    ("sizes", (list,), "a list of whole numbers"),
    ("order", (str, list), "a name or a list of positions"),
    ("schedule", (str,), "text"),
    ("expected_kl_nats", _NUMBER, "a number"),
    ("nll_nats", _NUMBER, "a number"),
    ("stderr_nats", _NUMBER, "a number"),
    ("seconds", (*_NUMBER, type(None)), "a number"),
    ("question", (str,), "text"),
    ("tokenizer_sha256", (str,), "text"),
    ("model_sha256", (str,), "text"),
    ("details", (dict,), "a group of values"),
)
WITHIN = 0.01  # without a question: the fewest steps that come this near to the best


@dataclass(frozen=True)
class Latency:
    """Seconds of one step of the sampler on this device.

    Args:
      device: str.
      batch_size: int, B.
      step_sizes: int64[S], tokens revealed by a step.
      seconds: float64[S], median of one step of the whole batch.
      spread: float64[S], half the range of the middle half of the repeats.
      autoregressive: {"uncached", "cached_floor"}: seconds a token of the same network left to right, recomputing
        everything, and the least that a key-value cache could reach; or {}.
    """

    device: str
    batch_size: int
    step_sizes: np.ndarray
    seconds: np.ndarray
    spread: np.ndarray
    autoregressive: dict = field(default_factory=dict)

    def of(self, sizes):
        """Returns float, seconds of one batch with these sizes."""
        return float(np.interp(np.asarray(sizes), self.step_sizes, self.seconds).sum())

    def to_dict(self):
        """Returns plain values."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Candidate:
    """One way to sample.

    Args:
      order: str or list, family of orders or a fixed order.
      schedule: str, how the sizes were found.
      sizes: tuple of int.
      nll_nats, stderr_nats: per sequence, on documents that it was not chosen on.
      excess_nats, excess_stderr: above one token at a time in random order with the same model, paired; the expected KL
        error in the sense of `error.expected_kl`. May be negative for better orders.
      bits_per_byte: float or None.
      seconds: of one batch, or None.
      planning_nats: per sequence, on the documents that the choice is made on; None where there is only one set.
    """

    order: object
    schedule: str
    sizes: tuple
    nll_nats: float
    stderr_nats: float
    excess_nats: float
    excess_stderr: float
    bits_per_byte: float | None = None
    bits_per_byte_stderr: float | None = None
    seconds: float | None = None
    planning_nats: float | None = None

    @property
    def score(self):
        """float, nats by which it is chosen: never those by which it is judged, where there are two sets of rows."""
        return self.nll_nats if self.planning_nats is None else self.planning_nats

    @property
    def num_steps(self):
        return len(self.sizes)

    @property
    def order_name(self):
        return self.order if isinstance(self.order, str) else "computed"


@dataclass(frozen=True)
class Plan:
    """A decision, as sampling needs it: `gen.sample(sizes=plan.sizes, order=plan.order)`.

    Args:
      length, num_steps: int.
      sizes: int64[T].
      order: str (a family of orders) or list (a fixed order).
      schedule: str.
      expected_kl_nats: above one token at a time in random order with the same model, nats per sequence.
      nll_nats, stderr_nats: of held-out text under this sampler, nats per sequence.
      seconds: of one batch on the device that was timed, or None.
      question: str, what was asked.
      tokenizer_sha256, model_sha256: hex, of the model it was made for; "" where unknown.
      details: dict of plain values (frontier, latency, provenance).
    """

    length: int
    num_steps: int
    sizes: np.ndarray
    order: object
    schedule: str
    expected_kl_nats: float
    nll_nats: float
    stderr_nats: float
    seconds: float | None = None
    question: str = ""
    tokenizer_sha256: str = ""
    model_sha256: str = ""
    details: dict = field(default_factory=dict)

    @classmethod
    def of(cls, candidate, length, **about):
        """Returns the Plan of a Candidate."""
        return cls(
            length=length,
            num_steps=candidate.num_steps,
            sizes=np.asarray(candidate.sizes, np.int64),
            order=candidate.order,
            schedule=candidate.schedule,
            expected_kl_nats=candidate.excess_nats,
            nll_nats=candidate.nll_nats,
            stderr_nats=candidate.stderr_nats,
            seconds=candidate.seconds,
            **about,
        )

    def to_dict(self):
        """Returns plain values, the content of plan.json."""
        return {"format": _FORMAT, **asdict(replace(self, sizes=self.sizes.tolist()))}

    def save(self, path):
        """Writes plan.json, atomically."""
        files.write_json(path, self.to_dict())

    @classmethod
    def load(cls, path):
        """Reads a plan written by `save`.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it is damaged or not a plan; the message names the file and the field.
        """
        path = pathlib.Path(path)
        values = files.read_record(path, "sizes", _FORMAT, ("a plan", "dlm plan"))
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        for name, kinds, what in _PLAN_FIELDS:
            if name not in known and name in ("length", "num_steps", "order", "schedule", "nll_nats"):
                raise ValueError(f"{path}: {name} is missing")
            if name in known and (type(known[name]) not in kinds):
                raise ValueError(f"{path}: {name}={known[name]!r} must be {what}")
        length = known["length"]
        if length < 1:
            raise ValueError(f"{path}: length={length!r} must be a whole number of at least 1")
        if any(type(size) is not int for size in known["sizes"]):
            raise ValueError(f"{path}: sizes={known['sizes']!r} must be a list of whole numbers")
        try:
            known["sizes"] = schedules.check_sizes(known["sizes"], length)
            if isinstance(known["order"], str):
                orders.check(known["order"])
        except ValueError as mistake:
            raise ValueError(f"{path}: {mistake}") from None
        if isinstance(known["order"], list):
            is_whole = len(known["order"]) == length and all(type(place) is int for place in known["order"])
            if not is_whole or sorted(known["order"]) != list(range(length)):
                raise ValueError(f"{path}: order: must be a name or hold every position 0..{length - 1} exactly once")
        if known["num_steps"] != len(known["sizes"]):
            raise ValueError(
                f"{path}: num_steps={known['num_steps']!r} must be {len(known['sizes'])}, as many as sizes"
            )
        for name in ("expected_kl_nats", "stderr_nats"):
            known.setdefault(name, math.nan)
        return cls(**known)

    def check_fits(self, length, tokenizer_sha256=None, name="plan"):
        """Checks that the plan was made for such a model.

        Raises:
          ValueError: naming what differs and what to do.
        """
        if self.length != length:
            raise ValueError(
                f"{name}: its length {self.length} must be the model's, {length}; run dlm plan on this model"
            )
        if self.tokenizer_sha256 and tokenizer_sha256 and self.tokenizer_sha256 != tokenizer_sha256:
            raise ValueError(
                f"{name}: it was made for another tokenizer (sha256 {self.tokenizer_sha256[:12]}, not "
                f"{tokenizer_sha256[:12]}); run dlm plan on this workdir"
            )


def candidates_of_curve(curve, num_steps, latency=None):
    """Returns the Candidates that a curve alone can judge: random order, every kind of sizes.

    Args:
      curve: InformationCurve.
      num_steps: ints, the numbers of steps to look at.
      latency: Latency or None.
    """
    length = curve.length
    _, best = schedules.optimal_schedules(curve, max(num_steps), counts=curve.counts)
    found = []
    for steps in num_steps:
        named = {name: make(length, steps) for name, make in schedules.FIXED.items()}
        if steps in best:
            named["planned"] = best[steps]
        for name, sizes in named.items():
            nll, nll_error = error.negative_log_likelihood(curve, sizes)
            excess, excess_error = error.expected_kl_with_error(curve, sizes)
            found.append(
                Candidate(
                    "random",
                    name,
                    tuple(int(s) for s in sizes),
                    nll,
                    nll_error,
                    excess,
                    excess_error,
                    seconds=latency.of(sizes) if latency else None,
                )
            )
    return found


@dataclass(frozen=True)
class Survey:
    """Everything that was measured about sampling from one model: what a decision is made of, and what a report shows.

    Args:
      curve: InformationCurve, of all rows.
      costs: {order name: StepCosts}, of the same rows; "random" is among them.
      latency: Latency or None.
      baseline: {"nll_nats", "stderr_nats", "bits_per_byte", "bits_per_byte_stderr"} of the autoregressive model on the
        judged rows, or {}.
      pairs: PairEstimate or None.
      num_single_last: int, so many tokens at the end of the order are to be revealed one at a time.
    """

    curve: InformationCurve
    costs: dict
    latency: Latency | None = None
    baseline: dict = field(default_factory=dict)
    pairs: PairEstimate | None = None
    num_single_last: int = 0

    @property
    def length(self):
        return self.curve.length

    def interpolated_nll(self, sizes):
        """Returns float64[N], -log p of each row in random order for any sizes; linear in the measured losses."""
        costs = self.costs["random"]
        cells = np.diff(np.append(costs.counts, costs.length))
        index = np.arange(len(cells))
        losses = costs.by_row[:, index, index] / cells  # mean loss of the hidden tokens, float64[N, K]
        weights = error.error_weights(sizes, costs.length) + 1.0
        return losses @ (weights @ interpolation(costs.length, costs.counts))

    def candidates(self, num_steps):
        """Returns the Candidates of all orders and schedules.

        Planned sizes are chosen on one half of the documents; every candidate is judged on the other. The excess is
        measured from one token at a time in random order, paired row by row.

        Args:
          num_steps: ints.
        Raises:
          ValueError: if there are fewer than two documents.
        """
        random = self.costs["random"]
        plan_on, judge_on = halves(random.document)
        if not judge_on.any():
            raise ValueError("rows: at least 2 documents are needed, to plan on one and to judge on another")
        document, num_bytes = random.document[judge_on], random.num_bytes[judge_on]
        one_by_one = self.interpolated_nll(np.ones(self.length, np.int64))[judge_on]
        found = []
        for order, costs in self.costs.items():
            planned = costs.select(plan_on).planned_sizes(max(num_steps), self.num_single_last)
            edges = set(costs.counts.tolist())
            for steps in sorted(set(num_steps)):
                named = {"planned": planned[steps]} if steps in planned else {}
                if steps <= self.length:
                    named |= {name: make(self.length, steps) for name, make in schedules.FIXED.items()}
                for name, sizes in named.items():
                    if order == "random":
                        nats = self.interpolated_nll(sizes)
                    elif set((np.cumsum(sizes) - sizes).tolist()) <= edges:
                        nats = costs.nll(sizes)
                    else:
                        continue  # its boundaries were not measured, and other orders have no smooth curve
                    judged = self._judged(costs.order, name, sizes, nats[judge_on], one_by_one, document, num_bytes)
                    found.append(replace(judged, planning_nats=float(nats[plan_on].mean())))
        return found

    def _judged(self, order, schedule, sizes, nats, one_by_one, document, num_bytes):
        ones = np.ones(len(nats))
        nll, nll_error = statistics.ratio(nats, ones, document)
        excess, excess_error = statistics.ratio(nats - one_by_one, ones, document)
        bits, bits_error = statistics.ratio(nats / math.log(2), num_bytes, document)
        seconds = self.latency.of(sizes) if self.latency else None
        sizes = tuple(int(s) for s in sizes)
        return Candidate(order, schedule, sizes, nll, nll_error, excess, excess_error, bits, bits_error, seconds)

    def planned_minus_fixed(self, num_steps):
        """Returns, for every number of steps and fixed schedule, how much better planned sizes are in random order.

        Sizes are planned on one half of the documents and all compared, row by row, on the other.

        Returns:
          [{"num_steps", "schedule", "difference_nats", "stderr_nats"}]; negative: the planned sizes are better.
        """
        random = self.costs["random"]
        plan_on, judge_on = halves(random.document)
        planned = random.select(plan_on).planned_sizes(max(num_steps))
        found = []
        for steps in sorted(set(num_steps) & set(planned)):
            mine = self.interpolated_nll(planned[steps])[judge_on]
            for name, make in schedules.FIXED.items():
                apart = mine - self.interpolated_nll(make(self.length, steps))[judge_on]
                value, stderr = statistics.ratio(apart, np.ones(len(apart)), random.document[judge_on])
                found.append({"num_steps": steps, "schedule": name, "difference_nats": value, "stderr_nats": stderr})
        return found


def halves(document):
    """Returns (bool[N], bool[N]): rows to plan on and rows to judge on, no document in both."""
    _, index = np.unique(document, return_inverse=True)
    return index % 2 == 0, index % 2 == 1


def choose(candidates, *, num_steps=None, max_kl=None, max_latency=None):
    """Returns (Candidate, str): the answer to one question, and the question in words.

    Args:
      candidates: list of Candidate.
      num_steps: int, the best with exactly so many steps; or
      max_kl: float, nats per sequence: the fewest steps whose excess, plus MARGIN standard errors, stays within; or
      max_latency: float, seconds of a batch: the best that is as fast. None of them: the fewest steps that come
        within WITHIN of the best.
    Raises:
      ValueError: if nothing can meet the budget; the message says what could be met.
    """
    asked = [name for name, value in (("num_steps", num_steps), ("max_kl", max_kl), ("max_latency", max_latency))
             if value is not None]  # fmt: skip
    if len(asked) > 1:
        raise ValueError(f"{', '.join(asked)}: only one of them can be given")
    if num_steps is not None:
        fitting = [c for c in candidates if c.num_steps == num_steps]
        if not fitting:
            known = sorted({c.num_steps for c in candidates})
            raise ValueError(f"num_steps={num_steps}: must be one of {', '.join(map(str, known))}")
        return min(fitting, key=lambda c: c.score), f"the best {num_steps} steps"
    if max_kl is not None:
        return _fewest(candidates, max_kl), f"the fewest steps whose error is at most {max_kl:g} nats per sequence"
    if max_latency is not None:
        timed = [c for c in candidates if c.seconds is not None]
        if not timed:
            raise ValueError("max_latency: the sampler was not timed; plan with a workdir")
        fitting = [c for c in timed if c.seconds <= max_latency]
        if not fitting:
            fastest = min(timed, key=lambda c: c.seconds)
            raise ValueError(
                f"max_latency={max_latency}: cannot be met; the fastest, {fastest.num_steps} steps, takes "
                f"{fastest.seconds:.4g} s"
            )
        return min(fitting, key=lambda c: c.score), f"the best within {max_latency:g} s a batch"
    # Planned sizes have been compared with uniform ones already; the other fixed ones stand beside them to be seen.
    is_planned = {(c.order_name, c.num_steps) for c in candidates if c.schedule == "planned"}
    candidates = [c for c in candidates if c.schedule == "planned" or (c.order_name, c.num_steps) not in is_planned]
    best = min(c.score for c in candidates)
    near = [c for c in candidates if c.score <= (1 + WITHIN) * best]
    fewest = min(c.num_steps for c in near)
    chosen = min((c for c in near if c.num_steps == fewest), key=lambda c: c.score)
    return chosen, f"the fewest steps whose quality is within {WITHIN:.0%} of the best"


def _fewest(candidates, max_kl):
    def upper(candidate):
        return candidate.excess_nats + MARGIN * (candidate.excess_stderr or 0.0)

    if all(math.isnan(upper(c)) for c in candidates):
        raise ValueError(f"max_kl={max_kl}: needs standard errors; measure at least 4 documents")
    fitting = [c for c in candidates if upper(c) <= max_kl]
    if not fitting:
        best = min(candidates, key=upper)
        raise ValueError(
            f"max_kl={max_kl}: cannot be met; the least is {upper(best):.4g} nats per sequence (with a margin of "
            f"{MARGIN} standard errors), in {best.num_steps} steps"
        )
    fewest = min(c.num_steps for c in fitting)
    return min((c for c in fitting if c.num_steps == fewest), key=lambda c: c.score)


def frontier(candidates):
    """Returns the Candidates that no other beats in both quality and time (steps, where none was timed)."""

    def time_of(candidate):
        return candidate.num_steps if candidate.seconds is None else candidate.seconds

    kept, best = [], math.inf
    for candidate in sorted(candidates, key=lambda c: (time_of(c), c.nll_nats)):
        if candidate.nll_nats < best:
            kept.append(candidate)
            best = candidate.nll_nats
    return kept


def cost_of(num_samples, seconds, batch_size, price_per_hour=None, num_chips=1):
    """Returns {"batches", "seconds", "chip_hours", "money"} of making samples one batch after the other.

    Args:
      num_samples: int.
      seconds: float, of one batch.
      batch_size: int.
      price_per_hour: float, of one chip, or None.
      num_chips: int.
    """
    batches = math.ceil(num_samples / batch_size)
    hours = batches * seconds * num_chips / 3600
    return {
        "batches": batches,
        "seconds": batches * seconds,
        "chip_hours": hours,
        "money": None if price_per_hour is None else hours * price_per_hour,
    }


def steps_saved(candidates, order, schedule, baseline=("random", "uniform")):
    """Returns {baseline T: fewest steps of (order, schedule) of at least the same quality}, what a choice saves.

    Args:
      candidates: list of Candidate.
      order, schedule: str, the choice.
      baseline: (order, schedule).
    """

    def curve_of(which):
        return sorted((c.num_steps, c.nll_nats) for c in candidates if (c.order_name, c.schedule) == which)

    mine = curve_of((order, schedule))
    return {
        steps: next((mine_steps for mine_steps, mine_nll in mine if mine_nll <= nll), None)
        for steps, nll in curve_of(baseline)
    }


def in_words(sizes):
    """Returns a sentence about sizes: where one token at a time is worth it, and where wide steps are."""
    sizes = np.asarray(sizes)
    single = sizes == 1
    leading = int(np.argmin(single)) if not single.all() else len(sizes)
    trailing = int(np.argmin(single[::-1])) if not single.all() else 0
    parts = []
    if leading:
        parts.append("the first token alone" if leading == 1 else f"the first {leading} tokens one at a time")
    middle = sizes[leading : len(sizes) - trailing]
    if len(middle):
        low, high = int(middle.min()), int(middle.max())
        span = f"{low}" if low == high else f"{low} to {high}"
        parts.append(f"{len(middle)} steps of {span} tokens")
    if trailing:
        parts.append("the last token alone" if trailing == 1 else f"the last {trailing} tokens one at a time")
    return ", then ".join(parts)
