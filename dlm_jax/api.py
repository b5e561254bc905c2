"""`dlm_jax.load(workdir)` -> Generator: sample, infill, score and denoise from a checkpoint, with the EMA weights."""

import dataclasses
import functools
import pathlib
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from dlm_jax import config as configs
from dlm_jax import rng, storage
from dlm_jax.data import packing, sources, tokenizers
from dlm_jax.data.normalize import make_normalizer
from dlm_jax.data.packing import Rows
from dlm_jax.evaluation import dependence, evaluators, latency, likelihood, reveal
from dlm_jax.information import InformationCurve, pairs
from dlm_jax.information import plan as plans
from dlm_jax.information.orders import order_from_distances
from dlm_jax.models.denoiser import Denoiser
from dlm_jax.parallel import mesh as meshes
from dlm_jax.parallel import sharding
from dlm_jax.sampling import canvas as canvases
from dlm_jax.sampling import loop, presets, windows
from dlm_jax.training import checkpoint
from dlm_jax.training.loop import cache_dir, check_trained

# What a survey looks at: a random order, two that spread, one that halves, the reader's, and one from measured pairs.
DEFAULT_ORDERS = ("random", "spaced", "blue_noise", "bisection", "left_to_right", "computed")


def load(workdir, *, step=None):
    """Loads a trained model; needs nothing but the workdir.

    Args:
      workdir: folder of a run.
      step: int, which checkpoint; None for the newest.
    Returns:
      Generator.
    Raises:
      FileNotFoundError: if there is no workdir, configuration or checkpoint.
      ValueError: if a file is damaged or the checkpoint does not match its configuration.
    """
    workdir = storage.twin(workdir, must_exist=True)
    if not workdir.is_dir():
        raise FileNotFoundError(f"workdir={str(workdir)!r}: no such folder")
    config = configs.load(workdir / "config.json")
    step, params, meta = checkpoint.load_item(workdir, "ema", step)
    check_trained(config, meta, workdir / "config.json")
    tokenizer = tokenizers.load(cache_dir(config, workdir) / "tokenizer.json", meta.get("tokenizer_sha256"))
    denoiser = Denoiser(config.model, tokenizer.vocab_size)
    _check_params(workdir, denoiser, params)
    return Generator(config, tokenizer, denoiser, params, step, workdir)


def _check_params(workdir, denoiser, params):
    wanted = jax.eval_shape(denoiser.init, jax.random.key(0))
    have, want = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, wanted)
    )
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise ValueError(
                f"{workdir}: parameter {name} has shape {have.get(name)} in the checkpoint, but config.json and the "
                f"tokenizer ask for {want.get(name)}"
            )


def _whole(name, value, low, high=None):
    """Returns a whole number as an int.

    Raises:
      ValueError: unless it is one, from `low` to `high`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{name}={value!r}: must be a whole number of at least {low}")
    if high is not None and value > high:
        raise ValueError(f"{name}={value}: must be at most {high}")
    return int(value)


class Generator:
    """A trained model, ready to be used.

    Attributes: `config` (RunConfig), `tokenizer`, `denoiser`, `params` (EMA weights), `step`, `length`.
    """

    def __init__(self, config, tokenizer, denoiser, params, step, workdir=None):
        self.config, self.tokenizer, self.denoiser = config, tokenizer, denoiser
        self.params, self.step, self.workdir = params, step, workdir
        self.length = config.data.length
        self.time_at = evaluators.schedule_of(config).time_at

    def sample(
        self, *, num_samples=None, num_steps=None, prompt="", sizes=None, order=None, preset=None, length=None,
        critical=(), negative_prompt=None, seed=0, **choices,
    ):  # fmt: skip
        """Samples texts.

        Args:
          num_samples: int; None for the configuration's, or one for each prompt.
          num_steps: int, for uniform sizes; None with no sizes: one token a step.
          prompt: str, the beginning of every sample; or list of str, one a sample.
          sizes: int[T], tokens revealed by each step, sum = length. Prompt tokens count as revealed: steps at or
            below them are skipped, and `nfe` shows what was run. With blocks: of each block, sum = block_length.
          order: which position each turn reveals: a name ("random", "spaced", ...; see information.orders), int32[L]
            or int32[B, L]; None for the order that the model was trained for.
          preset: str, a published sampler (see sampling.presets), or None.
          length: int, tokens a sample; None for the model's. Longer ones are written window after window, each
            beginning with the last half of the one before.
          critical: positions that are revealed last, one a step.
          negative_prompt: str, what `guidance` pushes away from; None: no prompt.
          seed: int.
          choices: further fields of config.SampleConfig: selection, transition, temperature, top_k, top_p, remasking,
            block_length, cache, guidance, stop_at_eos, ...
        Returns:
          sampling.Samples: tokens int32[B, L], nfe int32[B], reveal_step int32[B, L], texts.
        Raises:
          ValueError: naming the argument, its value and what is allowed.
        """
        self._needs_diffusion("sample")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        is_texts = isinstance(prompts, (list, tuple)) and all(isinstance(text, str) for text in prompts)
        if not is_texts or not prompts:
            raise ValueError(f"prompt={prompt!r}: must be a text, or a list of at least one")
        if num_samples is None:
            num_samples = self.config.sample.num_samples if isinstance(prompt, str) else len(prompts)
        length = self.length if length is None else _whole("length", length, 1, 2**20)
        num_samples = _whole("num_samples", num_samples, 1, 2**31 // length)
        if not isinstance(prompt, str) and len(prompts) != num_samples:
            raise ValueError(f"prompt: {len(prompts)} prompts must be as many as num_samples={num_samples}")
        encoded = [self._encode(text, "prompt") for text in prompts] * (num_samples // len(prompts))
        request = {
            "num_steps": num_steps, "sizes": sizes, "order": order, "preset": preset, "critical": critical,
            "negative_prompt": negative_prompt, **choices,
        }  # fmt: skip
        if length > self.length and len(critical):
            raise ValueError(f"critical: needs samples of at most the model's length {self.length}, not {length}")
        if length <= self.length:
            canvas = canvases.with_prompts(encoded, length, self.denoiser.mask_id)
            return self._run(canvas, self._root(seed), **request)
        return windows.extend(
            lambda canvas, index: self._run(canvas, rng.stream(self._root(seed), "window", index), **request),
            encoded, length, self.length, self.denoiser.mask_id, self.text,
            self.tokenizer.special.eos if choices.get("stop_at_eos") else None,
        )  # fmt: skip

    def infill(
        self, template, *, num_samples=1, num_steps=None, sizes=None, order=None, preset=None, critical=(), seed=0,
        **choices,
    ):  # fmt: skip
        """Fills the [MASK] and [MASK*n] of a template; everything else is kept.

        Args:
          template: str; [MASK*12] stands for 12 tokens.
          sizes: int[T] that sum to the template's length in tokens, or None for one token a step.
          Others as in `sample`.
        Returns:
          sampling.Samples of the template's length.
        Raises:
          ValueError: naming the argument, its value and what is allowed.
        """
        self._needs_diffusion("infill")
        num_samples = _whole("num_samples", num_samples, 1, 2**31 // self.length)
        canvas = canvases.from_template(
            template, lambda text: self._encode(text, "template"), num_samples, self.length, self.denoiser.mask_id
        )
        return self._run(
            canvas, self._root(seed), num_steps=num_steps, sizes=sizes, order=order, preset=preset, critical=critical,
            **choices,
        )  # fmt: skip

    def denoise(self, tokens):
        """Returns float32[B, L, V], log p(x_i | visible), for int32[B, L] tokens with mask_id where hidden.

        Raises:
          ValueError: if tokens are out of range or not [B, L].
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise ValueError(f"tokens: {tokens.dtype}{list(tokens.shape)} must be whole numbers [B, L]")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() <= self.denoiser.mask_id:
            raise ValueError(f"tokens: must be in [0, {self.denoiser.mask_id}], where the last one is the mask")
        return self._denoise(self.params, jnp.asarray(tokens, jnp.int32))

    @functools.cached_property
    def _denoise(self):
        def denoise(params, tokens):
            time = None
            if self.denoiser.needs_time:
                time = self.time_at((tokens == self.denoiser.mask_id).mean(axis=1, dtype=jnp.float32))
            hidden, _ = self.denoiser.hidden(params, tokens, time=time)
            return jax.nn.log_softmax(self.denoiser.logits(params, hidden), axis=-1)

        return jax.jit(denoise)

    def score(self, texts, *, sizes=None, num_orders=1, seed=0):
        """Returns how surprising texts are.

        A text is tokenised, ended with end-of-text where the tokenizer has one, and cut into windows of `length`
        tokens that are scored one by one; the positions of a last, shorter window that hold no text stay masked.

        Args:
          texts: list of str.
          sizes: None for an upper bound on -log p (any order, one token a step); or int[T] with sum = length for
            -log p of the T-step sampler given its order, averaged over `num_orders` random orders (a shorter window
            uses the steps up to its end).
          num_orders: int, draws a window.
          seed: int.
        Returns:
          float64[B], nats a text; exact left-to-right values for an autoregressive model.
        Raises:
          ValueError: naming the argument, its value and what is allowed.
        """
        if isinstance(texts, str):
            raise ValueError("texts: must be a list of texts, not a single text")
        if not isinstance(num_orders, int) or num_orders < 1:
            raise ValueError(f"num_orders={num_orders}: must be a whole number of at least 1")
        if sizes is not None:
            self._needs_diffusion("score with sizes")
            sizes = loop.resolve_sizes(self.length, sizes)
        windows, owners = self._windows(texts)
        total = np.zeros(len(texts))
        key = rng.stream(jax.random.key(seed), "score")
        for count in sorted({len(window) for window in windows}):
            chosen = [i for i, window in enumerate(windows) if len(window) == count]
            if count == 0:
                continue
            tokens = np.zeros((len(chosen), self.length), np.int32)
            tokens[:, :count] = [windows[i] for i in chosen]
            nats = self._window_losses(tokens, count, sizes, num_orders, rng.stream(key, "window", count))
            np.add.at(total, [owners[i] for i in chosen], nats)
        return total

    def _windows(self, texts):
        windows, owners = [], []
        for index, text in enumerate(texts):
            tokens = self._encode(text, f"texts[{index}]")
            if self.tokenizer.special.eos is not None:
                tokens = np.append(tokens, np.int32(self.tokenizer.special.eos))
            for start in range(0, len(tokens), self.length):
                windows.append(tokens[start : start + self.length])
                owners.append(index)
        return windows, owners

    def _window_losses(self, tokens, count, sizes, num_orders, key):
        """Nats of the first `count` tokens of each row; the others are never revealed."""
        denoiser = self.denoiser
        if evaluators.is_autoregressive(self.config):

            @jax.jit
            def losses(tokens, key, segment_ids):
                return reveal.autoregressive_losses(denoiser, self.params, tokens)[:, :count].sum(axis=1)

        else:
            if sizes is None:
                boundaries = np.arange(count + 1)
            else:
                boundaries = np.minimum(np.concatenate([[0], np.cumsum(sizes)]), count)
                boundaries = boundaries[: np.argmax(boundaries == count) + 1]

            @jax.jit
            def losses(tokens, key, segment_ids):
                return reveal.prefix_losses(
                    denoiser, self.params, tokens, key, count, boundaries, num_orders, self.time_at,
                    is_bound=sizes is None,
                )  # fmt: skip

        rows = Rows(tokens, np.zeros(len(tokens)), np.zeros(len(tokens)))
        return likelihood.row_losses(losses, rows, batch_size=self.config.eval.batch_size, key=key, quiet=True)

    def rows(self, corpus=None, *, num_rows=None, normalize=(), terminology="", quiet=True, say=warnings.warn):
        """Returns rows of text of `length` tokens, to measure on.

        Args:
          corpus: list of str, documents; or str, a data.source (a file, a glob, "embedded", "tfds:NAME"); or int[N, L],
            tokens, a document a row; None for the validation rows of the workdir that the model was loaded from.
          num_rows: int, at most so many; None for all.
          normalize, terminology: as in DataConfig, for text.
          quiet: no progress.
          say: called with a line for everything in the corpus that was skipped or mended.
        Returns:
          packing.Rows.
        Raises:
          ValueError, FileNotFoundError: naming what is wrong with the corpus.
        """
        if corpus is None:
            if self.workdir is None:
                raise ValueError("corpus: must be given, as this model was not loaded from a workdir")
            folder = cache_dir(self.config, self.workdir)
            found = packing.prepare(self.config.data, folder, say=lambda line: None, quiet=quiet).validation
            return evaluators.spread_rows(found, num_rows)
        if isinstance(corpus, str):
            data = dataclasses.replace(
                self.config.data, source=corpus, normalize=tuple(normalize), terminology=terminology,
                max_document_bytes=0,
            )  # fmt: skip
            report = sources.Report()
            with tempfile.TemporaryDirectory() as folder:
                texts = packing.all_documents(data, folder, report)
            found, _ = packing.wrap(texts, self.tokenizer, self.length, name=corpus, quiet=quiet, report=report)
            for line in report.lines():
                say(line)
            return evaluators.spread_rows(found, num_rows)
        if isinstance(corpus, np.ndarray):
            return evaluators.spread_rows(self._token_rows(corpus), num_rows)
        clean = make_normalizer(normalize, terminology)
        texts = [cleaned for cleaned in map(clean, corpus) if cleaned.strip()]
        found, _ = packing.wrap(texts, self.tokenizer, self.length, name="corpus", quiet=quiet)
        return evaluators.spread_rows(found, num_rows)

    def _token_rows(self, tokens):
        if tokens.ndim != 2 or tokens.shape[1] != self.length or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"corpus: {tokens.dtype}{list(tokens.shape)} must be whole numbers [N, {self.length}], with the "
                "model's length"
            )
        if not len(tokens):
            raise ValueError("corpus: holds no rows")
        wrong = (tokens < 0) | (tokens >= self.denoiser.mask_id)
        special = self.tokenizer.special
        if special.pad is not None and special.pad == special.eos:
            # A padding token may double as end-of-text, but text holds no two of those in a row.
            is_pad = tokens == special.pad
            wrong[:, 1:] |= is_pad[:, 1:] & is_pad[:, :-1]
        if wrong.any():
            row, place = np.argwhere(wrong)[0]
            raise ValueError(
                f"corpus: row {row} holds {tokens[row, place]} at position {place}, which is padding or no token; rows "
                "must be full: cut the text into windows of the length, or give documents as a list of str"
            )
        num_bytes = [len(self.tokenizer.decode(row).encode("utf-8")) for row in tokens]
        return Rows(tokens.astype(np.int32), np.asarray(num_bytes, np.int32), np.arange(len(tokens), dtype=np.int32))

    def measure(self, corpus=None, *, num_rows=None, num_counts=24, seed=0, keep_in=None, quiet=True, provenance=None):
        """Measures the information curve of a corpus with this model.

        Args:
          corpus: as in `rows`, or packing.Rows.
          num_rows: int, at most so many rows; None for all.
          num_counts: int, at most so many numbers of revealed tokens, log-spaced at both ends.
          seed: int, of the orders.
          keep_in: path of a .npz file: an interrupted measurement goes on from it; None keeps nothing.
          quiet: no progress.
          provenance: dict of plain values to add to the curve.
        Returns:
          information.InformationCurve.
        Raises:
          ValueError, FileNotFoundError: naming the argument, its value and what is allowed.
        """
        rows = corpus if isinstance(corpus, Rows) else self.rows(corpus, num_rows=num_rows, quiet=quiet)
        if not isinstance(num_counts, int) or num_counts < 2:
            raise ValueError(f"num_counts={num_counts}: must be a whole number of at least 2")
        counts = dependence.measured_counts(self.length, num_counts)
        costs, entropies = self.measure_order("random", rows, counts=counts, seed=seed, keep_in=keep_in, quiet=quiet)
        return self._curve(costs, entropies, rows, seed, provenance or {})

    def _curve(self, costs, entropies, rows, seed, provenance):
        return InformationCurve.measured(
            self.length, costs.counts, costs.mean_losses, rows.document, predictive_entropies=entropies,
            characters=float(np.mean([len(self.tokenizer.decode(row)) for row in np.asarray(rows.tokens)])),
            tokenizer_sha256=tokenizers.sha256(self.tokenizer), model_sha256=self.sha256,
            provenance={"workdir": str(self.workdir or ""), "step": self.step, "seed": seed, **provenance},
        )  # fmt: skip

    def measure_order(self, order, rows, *, counts, seed=0, keep_in=None, quiet=True):
        """Returns (information.StepCosts, float64[N, K] entropies): what steps cost in one order.

        Args:
          order: str, a family of information.orders, or int[L].
          rows: packing.Rows.
          counts: int64[K], numbers of revealed tokens that steps may start at.
          Others as in `measure`.
        """
        self._needs_diffusion("measure")
        if not isinstance(order, str):
            canvases.check_order(order, 1, self.length)
        if keep_in is not None:
            name = order if isinstance(order, str) else list(map(int, order))
            keep_in = likelihood.Kept(keep_in, rows, self.sha256, name, list(map(int, counts)), seed)
        mesh, params = self._spread
        return dependence.measure(
            self.denoiser, params, evaluators.schedule_of(self.config), rows, order=order, counts=counts,
            batch_size=self.config.eval.batch_size, key=rng.stream(jax.random.key(seed), "measure"), quiet=quiet,
            interval=self.config.log.progress_seconds, keep_in=keep_in, mesh=mesh,
        )  # fmt: skip

    def survey(
        self, rows, *, orders=DEFAULT_ORDERS, curve=None, batch_size=4, baseline=None, seed=0, keep_in=None, quiet=True,
        num_counts=16, num_single_last=0,
    ):  # fmt: skip
        """Measures everything that a plan is made of: the curve, the cost of steps in several orders, the latency.

        Args:
          rows: packing.Rows, of at least two documents; half of them choose sizes, the other half judges.
          orders: names of families, "computed" (from the dependence of pairs in these rows), or int[L]. "random" is
            always measured.
          curve: InformationCurve of this model, or None to measure it on the rows.
          batch_size: int, of the sampler that is timed; 0 = no timing.
          baseline: Generator of an autoregressive model with the same tokenizer, or None.
          seed: int.
          keep_in: folder where finished measurements are kept; None keeps nothing.
          quiet: no progress.
          num_counts: int, numbers of revealed tokens that planned steps may start at.
          num_single_last: int, so many tokens at the end of each order are revealed one at a time.
        Returns:
          information.plan.Survey.
        Raises:
          ValueError: if the rows come from fewer than two documents.
        """
        self._needs_diffusion("plan")
        length = self.length
        uniform = [t * length // steps for steps in (2, 4, 8, 16) if steps <= length for t in range(steps)]
        last = np.arange(length - num_single_last, length)
        counts = np.unique(np.concatenate([dependence.measured_counts(length, num_counts), uniform, last])).astype(int)
        if len(np.unique(rows.document)) < 2:
            raise ValueError("rows: at least 2 documents are needed, to plan on one and to judge on another")

        def kept(name):
            return None if keep_in is None else pathlib.Path(keep_in) / f"{name}.rows.npz"

        try:
            pair_estimate = pairs.estimate(rows.tokens, rows.document, self.tokenizer.vocab_size)
        except ValueError:
            pair_estimate = None
        costs = {}
        given = {order if isinstance(order, str) else "given": order for order in ("random", *orders)}
        for name, order in given.items():
            if name == "computed":
                if pair_estimate is None:
                    continue
                order = order_from_distances(pair_estimate.by_distance, length)
            costs[name], entropies = self.measure_order(
                order, rows, counts=counts, seed=seed, keep_in=kept(name), quiet=quiet
            )
            if name == "random" and curve is None:
                curve = self._curve(costs[name], entropies, rows, seed, {})
        found = {}
        if baseline is not None:
            nats = likelihood.row_losses(
                likelihood.autoregressive(baseline.denoiser, baseline.params), rows,
                batch_size=self.config.eval.batch_size, key=jax.random.key(seed), quiet=quiet,
                label="evaluating left to right", interval=self.config.log.progress_seconds,
            )  # fmt: skip
            judged = plans.halves(np.asarray(rows.document))[1]
            summary = likelihood.summarize(nats[judged], rows.num_bytes[judged], rows.document[judged], length)
            found = {
                "nll_nats": summary["nll_nats_per_token"] * length, "stderr_nats": summary["stderr"] * length,
                "bits_per_byte": summary["bits_per_byte"], "bits_per_byte_stderr": summary["bits_per_byte_stderr"],
            }  # fmt: skip
        timed = self.measure_latency(batch_size, quiet=quiet) if batch_size else None
        return plans.Survey(curve, costs, timed, found, pair_estimate, num_single_last)

    def measure_latency(self, batch_size, *, repeats=5, quiet=True):
        """Returns the information.plan.Latency of this model's sampler on this device, for batches of `batch_size`."""
        self._needs_diffusion("measure latency")
        return latency.measure(
            self.denoiser, self.params, self.length, batch_size, time_at=self.time_at, repeats=repeats, quiet=quiet,
            interval=self.config.log.progress_seconds,
        )  # fmt: skip

    @functools.cached_property
    def _spread(self):
        """(mesh over all devices, parameters on each of them); (None, parameters) where there is one device."""
        if jax.device_count() == 1 or jax.process_count() > 1:
            return None, self.params
        mesh = meshes.make_mesh((1, jax.device_count(), 1))
        return mesh, jax.device_put(self.params, sharding.replicated(mesh))

    @functools.cached_property
    def sha256(self):
        """str, hex, of the EMA weights."""
        return checkpoint.params_sha256(self.params)

    def _encode(self, text, argument):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"{argument}: is no valid Unicode at character {error.start}") from None
        try:
            return self.tokenizer.encode(text)[0]
        except ValueError as error:
            raise ValueError(f"{argument}: {error}") from None

    def _needs_diffusion(self, what):
        if evaluators.is_autoregressive(self.config):
            raise ValueError(f"{what}: this workdir holds an autoregressive baseline, which cannot denoise in parallel")

    def _root(self, seed):
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: must be between 0 and {2**32 - 1}")
        return rng.stream(jax.random.key(seed), "sample")

    def _run(self, canvas, key, *, num_steps, sizes, order, preset, critical=(), negative_prompt=None, **choices):
        length = canvas.shape[1]
        if num_steps is not None and _whole("num_steps", num_steps, 0) < 1:
            raise ValueError(f"num_steps={num_steps}: must be between 1 and the length {length}")
        if negative_prompt is not None and not choices.get("guidance"):
            raise ValueError("negative_prompt: needs guidance, which is 0")
        if preset is not None:
            choices = presets.preset(preset) | choices
        if preset == "planned":
            if sizes is not None or order is not None or num_steps is not None:
                raise ValueError("preset='planned': has its own sizes and order; leave them out")
            plan = self.plan()
            if plan.length != length:
                raise ValueError(f"preset='planned': its plan is for {plan.length} tokens, not {length}")
            if choices.get("selection", "random") != "random":
                raise ValueError(
                    f"preset='planned': has its own order; selection={choices['selection']!r} must be 'random'"
                )
            sizes, order = plan.sizes, plan.order
        made = loop.make_choices(num_steps=num_steps or 0, **choices)
        if preset is not None and made.needs_num_steps and num_steps is None:
            block = made.block_length or length
            made = dataclasses.replace(made, num_steps=-(-length // block) * block)
        if order is None and not made.is_scored and not made.is_ancestral:
            order = evaluators.order_of(self.config)
        negative = None if negative_prompt is None else self._encode(negative_prompt, "negative_prompt")
        mesh, params = self._spread if len(canvas) >= jax.device_count() else (None, self.params)
        out = loop.run(
            self.denoiser, params, key, canvas, made, sizes=sizes, order=order, critical=critical,
            time_at=self.time_at, eos_id=self.tokenizer.special.eos, negative=negative, mesh=mesh,
        )  # fmt: skip
        return out._replace(texts=[self.text(row) for row in out.tokens])

    def plan(self, path=None, *, argument="plan"):
        """Returns the information.Plan of the workdir, or of a file, checked against this model.

        Args:
          path: a plan.json, or None for the workdir's.
          argument: str, how messages name it.
        Raises:
          FileNotFoundError: if there is none.
          ValueError: if it is damaged or was made for another model.
        """
        if path is None and self.workdir is None:
            raise ValueError(f"{argument}: must be given, as this model was not loaded from a workdir")
        path = pathlib.Path(path or self.workdir / "plan.json")
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; dlm plan writes one")
        found = plans.Plan.load(path)
        found.check_fits(self.length, tokenizers.sha256(self.tokenizer), name=f"{argument}={path}")
        return found

    def text(self, tokens):
        """Returns the text of int32[L]; end-of-text inside a row becomes an empty line, at its end nothing."""
        eos = self.tokenizer.special.eos
        if eos is None:
            return self.tokenizer.decode(tokens)
        tokens = np.asarray(tokens)
        tokens = tokens[: np.max(np.flatnonzero(tokens != eos), initial=-1) + 1]
        ends = np.flatnonzero(tokens == eos)
        return "\n\n".join(self.tokenizer.decode(piece) for piece in np.split(np.asarray(tokens), ends))
