"""The configuration of a run: frozen dataclasses, their defaults, and every rule they must satisfy.

Standard library only. The command line builds a nested dict (ml_collections, in `cli/` and `configs/`) and hands it
to `from_dict`; the resolved configuration is written to `config.json` and is what `dlm_jax.load` reads. A default
lives here and nowhere else.
"""

import dataclasses
import difflib
import json
import math
import re
import typing
from dataclasses import dataclass, field

# The families of information.orders, spelled here too because this file imports the standard library only.
_ORDER_NAMES = r"random|spaced|golden|blue_noise|bisection|left_to_right|blocks:[1-9]\d*"


def _choice(name, value, allowed):
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}{hint}")


def _at_least(name, value, low):
    if not value >= low:  # written this way round so that NaN is refused
        raise ValueError(f"{name}={value}: must be at least {low}")


def _between(name, value, low, high):
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: must be between {low} and {high}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on. `source`: "embedded" (or "embedded:topics", "embedded:docstrings"), a file or glob of .txt,
    .jsonl or .npy, "tfds:NAME", or "markov" (a Markov chain of known entropy)."""

    source: str = "embedded"
    text_field: str = "text"  # of a JSON line or a tfds record
    document_separator: str = "\n\n"  # in text files; "" = a file is one document
    max_document_bytes: int = 0  # longer documents are cut; 0 = never
    normalize: tuple = ()  # of text: nfkc, casefold, whitespace, in this order
    terminology: str = ""  # CSV file of variant,canonical: every variant is replaced
    tokenizer: str = "bytes"  # bytes | text8 | letters | bpe | path to a tokenizer.json
    vocab_size: int = 4096  # of a "bpe" tokenizer, trained on the train split; of a tokenizer.json that is not here yet
    length: int = 128
    validation_fraction: float = 0.1  # of documents
    split: str = "hash"  # hash: documents by content hash | last: the last documents
    segment_ids: bool = False  # attention stays inside a document
    cache_dir: str = ""  # where prepared rows live; "" = WORKDIR/data
    transition: tuple = ((0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.3, 0.3, 0.4))  # of the "markov" source
    num_documents: int = 20000  # of the "markov" source

    def __post_init__(self):
        _choice("data.split", self.split, ("hash", "last"))
        for step in self.normalize:
            _choice("data.normalize", step, ("nfkc", "casefold", "whitespace"))
        _at_least("data.length", self.length, 2)
        _at_least("data.max_document_bytes", self.max_document_bytes, 0)
        _at_least("data.num_documents", self.num_documents, 2)
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"data.validation_fraction={self.validation_fraction}: must be above 0 and below 1")
        if "://" in self.source:
            from dlm_jax import storage

            storage.check_url("data.source", self.source)
        if not self.source:
            raise ValueError("data.source='': must name a corpus, for example 'embedded' or 'texts/*.txt'")
        if self.tokenizer == "bpe":
            _at_least("data.vocab_size", self.vocab_size, 257)
        rows = self.transition
        if not rows or any(not isinstance(row, tuple) or len(row) != len(rows) for row in rows):
            raise ValueError(f"data.transition={rows}: must be a square table")
        for row in rows:
            is_shares = all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in row)
            if not (is_shares and abs(sum(row) - 1) <= 1e-6):
                raise ValueError(f"data.transition: row {row} must be probabilities that sum to 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The denoiser: a pre-norm transformer (RMSNorm, RoPE, SwiGLU)."""

    num_layers: int = 4
    embed_dim: int = 256
    num_heads: int = 8
    num_kv_heads: int = 0  # 0 = num_heads
    mlp_dim: int = 0  # 0 = 8/3 embed_dim, rounded up to a multiple of 32
    attention: str = "bidirectional"  # bidirectional | block_causal | causal (the autoregressive baseline)
    block_length: int = 0  # of block_causal attention: a token sees its own block and the ones before
    qk_norm: bool = False
    tie_embeddings: bool = False
    time_conditioning: bool = False  # adaLN
    time_dim: int = 128
    dropout: float = 0.0
    rope_theta: float = 10000.0
    dtype: str = "auto"  # of the computation: float32 | bfloat16 | auto (bfloat16 on TPU and GPU)
    remat: str = "elementwise"  # what a backward pass computes again: none | elementwise | dots (and attention) | full

    def __post_init__(self):
        _choice("model.attention", self.attention, ("bidirectional", "block_causal", "causal"))
        _at_least("model.block_length", self.block_length, 0)
        if (self.attention == "block_causal") != (self.block_length > 0):
            raise ValueError(
                f"model.block_length={self.block_length} with model.attention={self.attention!r}: a block length and "
                "'block_causal' go together"
            )
        _choice("model.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        _choice("model.remat", self.remat, ("none", "elementwise", "dots", "full"))
        for name in ("num_layers", "embed_dim", "num_heads", "time_dim"):
            _at_least(f"model.{name}", getattr(self, name), 1)
        _at_least("model.num_kv_heads", self.num_kv_heads, 0)
        _at_least("model.mlp_dim", self.mlp_dim, 0)
        if not self.rope_theta > 0:
            raise ValueError(f"model.rope_theta={self.rope_theta}: must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: must be at least 0 and below 1")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"model.num_heads={self.num_heads}: must divide model.embed_dim={self.embed_dim}")
        if self.head_dim % 2:
            raise ValueError(
                f"model.embed_dim={self.embed_dim}: embed_dim / num_heads = {self.head_dim} must be even (RoPE)"
            )
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(f"model.num_kv_heads={self.num_kv_heads}: must divide model.num_heads={self.num_heads}")
        if self.time_dim % 2:
            raise ValueError(f"model.time_dim={self.time_dim}: must be even")

    @property
    def head_dim(self):
        return self.embed_dim // self.num_heads

    @property
    def kv_heads(self):
        return self.num_kv_heads or self.num_heads

    @property
    def hidden_dim(self):
        return self.mlp_dim or -(-self.embed_dim // 12) * 32


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The forward process and the objective. Exact-count masking is the linear schedule with static shapes."""

    objective: str = "nelbo"  # nelbo | cross_entropy | autoregressive
    masking: str = "exact_count"  # exact_count (antithetic pairs) | order_prefix (the same, in `order`) | independent
    order: str = (
        "spaced"  # of masking "order_prefix": spaced | golden | blue_noise | bisection | left_to_right | blocks:N
    )
    random_order_share: float = 0.1  # of masking "order_prefix": pairs of rows with a random order instead
    schedule: str = "linear"  # linear | cosine | polynomial | log_linear
    schedule_power: float = 2.0  # of the polynomial schedule
    time_epsilon: float = 1e-3  # independent masking draws t in [time_epsilon, 1]

    def __post_init__(self):
        _choice("diffusion.objective", self.objective, ("nelbo", "cross_entropy", "autoregressive"))
        _choice("diffusion.masking", self.masking, ("exact_count", "order_prefix", "independent"))
        _choice("diffusion.schedule", self.schedule, ("linear", "cosine", "polynomial", "log_linear"))
        if not self.schedule_power > 0:
            raise ValueError(f"diffusion.schedule_power={self.schedule_power}: must be above 0")
        if not 0 < self.time_epsilon < 1:
            raise ValueError(f"diffusion.time_epsilon={self.time_epsilon}: must be above 0 and below 1")
        if not re.fullmatch(_ORDER_NAMES, self.order):
            raise ValueError(
                f"diffusion.order={self.order!r}: must be one of spaced, golden, blue_noise, bisection, "
                "left_to_right, random, blocks:N with N at least 1"
            )
        _between("diffusion.random_order_share", self.random_order_share, 0, 1)
        if self.masking != "independent" and self.schedule != "linear":
            raise ValueError(
                f"diffusion.schedule={self.schedule!r}: masking {self.masking!r} draws the number of masked tokens "
                "uniformly, which is the 'linear' schedule; use diffusion.masking='independent'"
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW or SGD, with warm-up, a learning-rate schedule, decay of matrices only, and global-norm clipping."""

    name: str = "adamw"  # adamw | muon (matrices; adamw for the rest) | sgd
    learning_rate: float = 3e-4
    lr_schedule: str = "cosine"  # cosine | linear | constant, after the warm-up
    final_lr_fraction: float = 0.0
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0  # 0 = off

    def __post_init__(self):
        _choice("optimizer.name", self.name, ("adamw", "muon", "sgd"))
        _choice("optimizer.lr_schedule", self.lr_schedule, ("cosine", "linear", "constant"))
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"optimizer.learning_rate={self.learning_rate}: must be above 0 and finite")
        _between("optimizer.final_lr_fraction", self.final_lr_fraction, 0, 1)
        _at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        _at_least("optimizer.weight_decay", self.weight_decay, 0)
        _at_least("optimizer.clip_norm", self.clip_norm, 0)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: must be at least 0 and below 1")
        if not self.eps > 0:
            raise ValueError(f"optimizer.eps={self.eps}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and on how much."""

    num_steps: int = 1000
    batch_size: int = 32  # global, in rows
    micro_batches: int = 1
    ema_decay: float = 0.999  # the average starts fast: min(ema_decay, (1 + step) / (10 + step))
    bad_steps: str = "skip"  # a loss or gradient that is not finite, or a spike: skip (the step) | roll_back | stop
    spike_sigmas: float = 0.0  # of the running spread of loss and gradient norm; 0 = only what is not finite is bad
    max_bad_steps: int = 10  # in a row, or roll-backs to one checkpoint; then exit code 87
    hang_seconds: float = 1800.0  # no step ends for so long: stacks are written, exit code 86; 0 = wait for ever

    def __post_init__(self):
        _at_least("train.num_steps", self.num_steps, 1)
        _at_least("train.batch_size", self.batch_size, 1)
        _at_least("train.micro_batches", self.micro_batches, 1)
        _choice("train.bad_steps", self.bad_steps, ("skip", "roll_back", "stop"))
        if not 0 <= self.spike_sigmas < math.inf:
            raise ValueError(f"train.spike_sigmas={self.spike_sigmas}: must be at least 0")
        _at_least("train.max_bad_steps", self.max_bad_steps, 1)
        if not 0 <= self.hang_seconds < math.inf:
            raise ValueError(f"train.hang_seconds={self.hang_seconds}: must be at least 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay={self.ema_decay}: must be at least 0 and below 1")


def split_choice(text):
    """Returns (name, parameter) of a choice such as "threshold:0.9"; the parameter is None where none is given.

    Raises:
      ValueError: if what follows the colon is no finite number.
    """
    name, colon, number = text.partition(":")
    if not colon:
        return name, None
    try:
        parameter = float(number)
    except ValueError:
        parameter = math.nan
    if not math.isfinite(parameter):
        raise ValueError(f"{text!r}: what follows the colon must be a number")
    return name, parameter


# name -> (least, largest) of the parameter after the colon, or None where there is none.
TRANSITIONS = {
    "exact_count": None,
    "quota_llada": None,
    "quota_dream": None,
    "ancestral_md4": None,
    "ancestral_md4_cosine": None,
    "ancestral_mdlm": None,
    "first_hitting": None,
    "threshold": (0, 1),
    "factor": (0, math.inf),
    "entropy_bound": (0, math.inf),
    "entropy_sum": (0, math.inf),
}
REMASKINGS = {
    "none": None,
    "remdm_cap": (0, 1),
    "remdm_rescale": (0, 1),
    "remdm_confidence": (0, 1),
    "remdm_loop": (0, 1),
    "forward_backward": None,
    "corrector": (1, 2**20),
}
_LARGEST = 3.4e38  # of float32
SELECTIONS = ("random", "confidence", "margin", "entropy", "drawn")
_FIXED_STEPS = ("quota_llada", "quota_dream", "ancestral_md4", "ancestral_md4_cosine", "ancestral_mdlm")
_OWN_STEPS = ("first_hitting", "threshold", "factor", "entropy_bound", "entropy_sum")


def _parametrised(name, value, table):
    try:
        choice, parameter = split_choice(value)
    except ValueError as error:
        raise ValueError(f"{name}={error}") from None
    _choice(name, choice, tuple(table))
    bounds = table[choice]
    if bounds is None and parameter is not None:
        raise ValueError(f"{name}={value!r}: {choice} takes no number; must be {choice!r}")
    if bounds is not None:
        low, high = bounds
        example = f"{choice}:{max(low, min(high, 0.5)):g}"
        if parameter is None:
            raise ValueError(f"{name}={value!r}: needs a number, for example {example!r}")
        if not low <= parameter <= high:
            most = "" if high == math.inf else f" and at most {high:g}"
            raise ValueError(f"{name}={value!r}: its number must be at least {low:g}{most}")
        if choice == "corrector" and parameter != int(parameter):
            raise ValueError(f"{name}={value!r}: its number must be whole, the tokens that a step draws anew")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How to sample: one value an axis, explained in sampling/. What cannot be composed is refused here."""

    num_samples: int = 4
    num_steps: int = 0  # 0 = one token a step, or what the transition itself decides
    selection: str = "random"  # which first: random (an order known beforehand) | confidence | margin | entropy | drawn
    order_temperature: float = 0.0  # of the scores, for selections that score
    spacing: int = 1  # positions revealed together are so far apart where that is possible, for selections that score
    scores: str = "marginals"  # marginals | filtered (after temperature, top-k and top-p)
    transition: str = "exact_count"  # how many now; see TRANSITIONS
    temperature: float = 1.0  # 0 = the most probable token
    top_k: int = 0  # 0 = all
    top_p: float = 1.0
    numerics: str = "exact"  # exact | published (what old float32 samplers drew; for comparisons only)
    remasking: str = "none"  # what may be taken back; see REMASKINGS
    block_length: int = 0  # blocks of so many tokens from left to right; 0 = one block
    cache: str = "none"  # none | exact (block-causal models) | prefix, dual (approximate)
    guidance: float = 0.0  # strength of the prompt against no prompt, or against a negative one
    stop_at_eos: bool = False  # end-of-text ends a row

    def __post_init__(self):
        _at_least("sample.num_samples", self.num_samples, 1)
        _at_least("sample.num_steps", self.num_steps, 0)
        _choice("sample.selection", self.selection, SELECTIONS)
        _between("sample.num_steps", self.num_steps, 0, 2**20)
        for name in ("temperature", "order_temperature"):
            if not 0 <= getattr(self, name) < _LARGEST:
                raise ValueError(f"sample.{name}={getattr(self, name)}: must be at least 0 and finite")
        _at_least("sample.spacing", self.spacing, 1)
        _choice("sample.scores", self.scores, ("marginals", "filtered"))
        _parametrised("sample.transition", self.transition, TRANSITIONS)
        _at_least("sample.top_k", self.top_k, 0)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sample.top_p={self.top_p}: must be above 0 and at most 1")
        _choice("sample.numerics", self.numerics, ("exact", "published"))
        _parametrised("sample.remasking", self.remasking, REMASKINGS)
        _at_least("sample.block_length", self.block_length, 0)
        _choice("sample.cache", self.cache, ("none", "exact", "prefix", "dual"))
        if not abs(self.guidance) < _LARGEST:
            raise ValueError(f"sample.guidance={self.guidance}: must be finite")
        for rule in _SAMPLER_RULES:
            reason = rule(self)
            if reason:
                raise ValueError(f"sample.{reason}")

    @property
    def is_ancestral(self):
        """Whether every masked token is revealed on its own, with a probability."""
        return self.transition.startswith("ancestral")

    @property
    def is_adaptive(self):
        """Whether the number of steps follows from what is predicted."""
        return split_choice(self.transition)[0] in _OWN_STEPS[1:]

    @property
    def is_scored(self):
        """Whether the order follows from what is predicted."""
        return self.selection != "random"

    @property
    def needs_num_steps(self):
        """Whether there is no sampler without a number of steps."""
        return self.transition in _FIXED_STEPS


def _steps_follow_from_transition(s):
    if s.num_steps and split_choice(s.transition)[0] in _OWN_STEPS:
        return f"num_steps={s.num_steps}: transition {s.transition!r} chooses its own number of steps; must be 0"
    return None


def _thresholds_need_confidence(s):
    if split_choice(s.transition)[0] in ("threshold", "factor") and s.selection not in ("confidence", "drawn"):
        return (
            f"transition={s.transition!r}: compares confidences, so selection must be 'confidence' or 'drawn', "
            f"not {s.selection!r}"
        )
    return None


def _entropies_are_of_marginals(s):
    if split_choice(s.transition)[0] in ("entropy_bound", "entropy_sum") and s.selection == "drawn":
        return f"transition={s.transition!r}: looks at entropies before a token is drawn; selection must not be 'drawn'"
    return None


def _ancestral_picks_positions(s):
    if not s.is_ancestral:
        return None
    if s.is_scored:
        return f"selection={s.selection!r}: transition {s.transition!r} reveals each token on its own; must be 'random'"
    if s.block_length:
        return f"block_length={s.block_length}: transition {s.transition!r} runs over the whole row; must be 0"
    return None


def _first_hitting_is_random(s):
    if s.transition == "first_hitting" and s.is_scored:
        return f"selection={s.selection!r}: transition 'first_hitting' hits a random token next; must be 'random'"
    return None


def _known_orders_have_no_scores(s):
    if s.is_scored:
        return None
    if s.order_temperature:
        return f"order_temperature={s.order_temperature}: selection 'random' has no scores; must be 0"
    if s.spacing > 1:
        return f"spacing={s.spacing}: a known order is taken as it is (order 'spaced' spreads tokens); must be 1"
    return None


def _remasking_needs_a_clock(s):
    name = split_choice(s.remasking)[0]
    if name in ("none", "corrector"):
        return None
    if s.transition != "ancestral_mdlm":
        return f"remasking={s.remasking!r}: follows the clock of transition 'ancestral_mdlm', not {s.transition!r}"
    if s.numerics == "published":
        return f"numerics='published': remasking {s.remasking!r} was published with exact draws; must be 'exact'"
    return None


def _revised_rows_have_no_end(s):
    if s.remasking != "none" and s.stop_at_eos:
        return f"stop_at_eos=True: remasking {s.remasking!r} may take the end back; must be False"
    if s.remasking != "none" and s.cache != "none":
        return f"cache={s.cache!r}: remasking {s.remasking!r} changes tokens that are cached; must be 'none'"
    return None


def _caches_need_blocks(s):
    if s.cache == "none":
        return None
    if not s.block_length:
        return f"cache={s.cache!r}: is refreshed block by block; block_length must be at least 1"
    if s.guidance:
        return f"cache={s.cache!r}: guidance {s.guidance} looks at a second canvas, which is not cached; must be 'none'"
    return None


def _published_has_published_parts(s):
    if s.numerics == "published" and split_choice(s.transition)[0] in _OWN_STEPS[1:]:
        return f"numerics='published': transition {s.transition!r} has no old sampler to compare with; must be 'exact'"
    return None


_SAMPLER_RULES = (
    _steps_follow_from_transition,
    _thresholds_need_confidence,
    _entropies_are_of_marginals,
    _ancestral_picks_positions,
    _first_hitting_is_random,
    _known_orders_have_no_scores,
    _remasking_needs_a_clock,
    _revised_rows_have_no_end,
    _caches_need_blocks,
    _published_has_published_parts,
)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on the validation rows."""

    every_steps: int = 0  # during training; 0 = never
    num_rows: int = 0  # 0 = all
    batch_size: int = 32
    num_orders: int = 2  # Monte Carlo draws a row of the likelihood bound, each an antithetic pair
    t_steps: tuple = (8, 32)  # step counts of the T-step likelihood
    t_step_rows: int = 64  # rows for the T-step likelihood, which costs T passes; 0 = all

    def __post_init__(self):
        for name in ("every_steps", "num_rows", "t_step_rows"):
            _at_least(f"eval.{name}", getattr(self, name), 0)
        _at_least("eval.batch_size", self.batch_size, 1)
        _at_least("eval.num_orders", self.num_orders, 1)
        for steps in self.t_steps:
            if type(steps) is not int:
                raise ValueError(f"eval.t_steps={steps!r}: must be whole numbers")
            _at_least("eval.t_steps", steps, 1)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and how much to keep. The last step is always saved."""

    every_steps: int = 1000
    max_to_keep: int = 2  # the last but one goes before the last is sealed: one would not be safe

    def __post_init__(self):
        _at_least("checkpoint.every_steps", self.every_steps, 1)
        _at_least("checkpoint.max_to_keep", self.max_to_keep, 2)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The device mesh, outer to inner; fsdp = 0 takes all devices that are left."""

    replica: int = 1
    fsdp: int = 0
    tensor: int = 1

    def __post_init__(self):
        _at_least("mesh.replica", self.replica, 1)
        _at_least("mesh.fsdp", self.fsdp, 0)
        _at_least("mesh.tensor", self.tensor, 1)

    def shape(self, num_devices):
        """Returns (replica, fsdp, tensor) with fsdp filled in.

        Raises:
          ValueError: if the product is not the number of devices.
        """
        fixed = self.replica * self.tensor
        fsdp = self.fsdp or max(1, num_devices // fixed)
        if fixed * fsdp != num_devices:
            raise ValueError(
                f"mesh.replica={self.replica} x mesh.fsdp={fsdp} x mesh.tensor={self.tensor}: "
                f"must multiply to the number of devices, {num_devices}"
            )
        return self.replica, fsdp, self.tensor


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is reported while training, and where to."""

    every_steps: int = 10
    progress_seconds: float = 10.0  # between progress lines when the output is not a terminal
    tensorboard: bool = False
    wandb_project: str = ""  # "" = off
    peak_flops: float = 0.0  # of one device, for MFU; 0 = by device kind, unknown kinds report none

    def __post_init__(self):
        _at_least("log.every_steps", self.every_steps, 1)
        _at_least("log.peak_flops", self.peak_flops, 0)
        if not self.progress_seconds > 0:
            raise ValueError(f"log.progress_seconds={self.progress_seconds}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything about a run, in the order of the config files."""

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self):
        _between("seed", self.seed, 0, 2**32 - 1)
        for rule in _CROSS_RULES:
            rule(self)


def _objective_fits_attention(run):
    autoregressive = run.diffusion.objective == "autoregressive"
    if autoregressive != (run.model.attention == "causal"):
        raise ValueError(
            f"diffusion.objective={run.diffusion.objective!r} with model.attention={run.model.attention!r}: "
            "'autoregressive' and 'causal' go together"
        )


def _autoregression_has_no_time(run):
    if run.model.attention == "causal" and run.model.time_conditioning:
        raise ValueError("model.time_conditioning=True: a causal model has no diffusion time; set it to False")


def _micro_batches_divide(run):
    if run.train.batch_size % run.train.micro_batches:
        raise ValueError(
            f"train.micro_batches={run.train.micro_batches}: must divide train.batch_size={run.train.batch_size}"
        )


def _pairs_are_even(run):
    rows = run.train.batch_size // run.train.micro_batches
    if uses_pairs(run.diffusion) and rows % 2:
        raise ValueError(
            f"train.batch_size={run.train.batch_size}: diffusion.masking={run.diffusion.masking!r} pairs rows, so "
            f"every micro-batch must hold an even number of rows, not {rows}"
        )


def _steps_fit_length(run):
    fitting = [*(("eval.t_steps", t) for t in run.eval.t_steps), ("sample.block_length", run.sample.block_length)]
    if run.sample.transition == "exact_count":
        fitting.append(("sample.num_steps", run.sample.num_steps))
    for name, value in fitting:
        if value > run.data.length:
            raise ValueError(f"{name}={value}: must be at most data.length={run.data.length}")


def _warmup_fits_run(run):
    if run.optimizer.warmup_steps > run.train.num_steps:
        raise ValueError(
            f"optimizer.warmup_steps={run.optimizer.warmup_steps}: must be at most "
            f"train.num_steps={run.train.num_steps}"
        )


def _markov_has_letters(run):
    if (run.data.source == "markov") != (run.data.tokenizer == "letters"):
        raise ValueError(
            f"data.source={run.data.source!r} with data.tokenizer={run.data.tokenizer!r}: "
            "'markov' and 'letters' go together"
        )


_CROSS_RULES = (
    _objective_fits_attention,
    _autoregression_has_no_time,
    _micro_batches_divide,
    _pairs_are_even,
    _steps_fit_length,
    _warmup_fits_run,
    _markov_has_letters,
)


def uses_pairs(diffusion):
    """Returns whether rows are masked in antithetic pairs, which must then stay on one device."""
    return diffusion.objective != "autoregressive" and diffusion.masking != "independent"


def check_devices(run, num_devices):
    """Checks the run against the machine, before anything is compiled.

    Args:
      run: RunConfig.
      num_devices: number of devices over all hosts.
    Returns:
      (replica, fsdp, tensor), the mesh shape.
    Raises:
      ValueError: naming the field, its value and what is allowed.
    """
    replica, fsdp, tensor = shape = run.mesh.shape(num_devices)
    model = run.model
    for name, size in [
        ("model.num_heads", model.num_heads),
        ("model.num_kv_heads", model.kv_heads),
        ("model.mlp_dim", model.hidden_dim),
    ]:
        if size % tensor:
            raise ValueError(f"{name}={size}: must be divisible by mesh.tensor={tensor}")
    if model.embed_dim % fsdp:
        raise ValueError(f"model.embed_dim={model.embed_dim}: must be divisible by mesh.fsdp={fsdp}")
    unit = replica * fsdp * (2 if uses_pairs(run.diffusion) else 1)
    rows = run.train.batch_size // run.train.micro_batches
    if rows % unit:
        pairs = ", whole pairs of rows on each" if uses_pairs(run.diffusion) else ""
        raise ValueError(
            f"train.batch_size={run.train.batch_size}: each micro-batch of {rows} rows must be divisible by {unit} "
            f"(mesh.replica x mesh.fsdp{pairs})"
        )
    return shape


def check_rows(run, num_train_rows, num_validation_rows):
    """Checks that the prepared corpus holds at least one batch and one validation row.

    Raises:
      ValueError: naming the field, its value and what is allowed.
    """
    if num_train_rows < run.train.batch_size:
        raise ValueError(
            f"data.length={run.data.length}: data.source={run.data.source!r} makes only {num_train_rows} training "
            f"rows of that length, fewer than train.batch_size={run.train.batch_size}; use a shorter length, a "
            "smaller batch or a larger corpus"
        )
    if num_validation_rows < 1:
        raise ValueError(
            f"data.validation_fraction={run.data.validation_fraction}: the validation documents of "
            f"data.source={run.data.source!r} hold fewer than data.length={run.data.length} tokens"
        )


def to_dict(run):
    """Returns a RunConfig as a nested dict of plain values."""
    return dataclasses.asdict(run)


def from_dict(values):
    """Returns the RunConfig of a nested dict; missing fields take their defaults.

    Raises:
      ValueError: on an unknown field (with the closest name), a value of the wrong type, or a broken rule.
    """
    return _build(RunConfig, values, "")


def sample_config(values):
    """Returns the SampleConfig of a dict of fields; messages name them sample.FIELD.

    Raises:
      ValueError: as `from_dict`.
    """
    return _build(SampleConfig, values, "sample.")


def with_overrides(run, changes):
    """Returns a RunConfig with other values.

    Args:
      run: RunConfig.
      changes: {"group.field": value}.
    Raises:
      ValueError: naming the field, its value and what is allowed.
    """
    values = to_dict(run)
    for name, value in changes.items():
        group, _, field = name.rpartition(".")
        target = values[group] if group else values
        target[field] = value
    return from_dict(values)


def save(run, path):
    """Writes a RunConfig as JSON, atomically."""
    from dlm_jax import files

    files.write_json(path, to_dict(run))


def load(path):
    """Reads a RunConfig written by `save`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not valid JSON or not a valid configuration; the message names the file.
    """
    from dlm_jax import files

    values = files.read_json(path)
    try:
        return from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _build(cls, values, prefix):
    if not isinstance(values, dict):
        raise ValueError(f"{prefix[:-1] or 'config'}={values!r}: must be a group of fields")
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            close = _elsewhere(str(name)) or difflib.get_close_matches(str(name), fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(fields)}"
            raise ValueError(f"{prefix}{name}: unknown field{hint}")
    hints = typing.get_type_hints(cls)
    built = {}
    for name, value in values.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            built[name] = _build(kind, value, f"{prefix}{name}.")
        else:
            built[name] = _coerce(f"{prefix}{name}", value, kind)
    made = cls(**built)
    for name, value in built.items():  # after the rules, whose messages say more
        if type(value) is int:
            _fits(f"{prefix}{name}", value, 2**32)
        elif type(value) is float and not abs(value) < _LARGEST:
            raise ValueError(f"{prefix}{name}={value}: must be finite")
    return made


def _fits(name, value, limit):
    if abs(value) >= limit:
        raise ValueError(f"{name}: a number of {len(str(abs(value)))} digits is too large")


def _elsewhere(name):
    for group in dataclasses.fields(RunConfig):
        if dataclasses.is_dataclass(group.type) and name in {item.name for item in dataclasses.fields(group.type)}:
            return [f"{group.name}.{name}"]
    return []


def _coerce(name, value, kind):
    if kind is tuple and isinstance(value, (list, tuple)):
        return tuple(tuple(item) if isinstance(item, (list, tuple)) else item for item in value)
    if kind is float and type(value) is int:
        _fits(name, value, 10**300)
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name}={value!r}: must be {kind.__name__}, not {type(value).__name__}")
    return value


def difference(old, new):
    """Returns the fields in which two configurations differ, as {name: (old value, new value)}."""
    first, second = _flat(to_dict(old)), _flat(to_dict(new))
    return {name: (first[name], second[name]) for name in first if first[name] != second[name]}


def _flat(values, prefix=""):
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = json.loads(json.dumps(value))
    return flat
