"""How good are samples? Entropy, distinct n-grams and repetition of tokens, and what a judge thinks of the texts.

A low perplexity under a judge is worth nothing without the entropy beside it: both fall when a sampler says little.
"""

import importlib.util
import math
from collections import Counter

import jax
import numpy as np

from dlm_jax.data import tokenizers
from dlm_jax.data.packing import Rows
from dlm_jax.diffusion import objectives
from dlm_jax.evaluation import evaluators, likelihood
from dlm_jax.information import statistics


def statistics_of(tokens):
    """Returns {"entropy_nats", "entropy_stderr", "distinct_1", "distinct_2", "distinct_3", "repetition"} of samples.

    entropy: of the tokens inside a sample, nats, mean over samples; distinct_n: different n-grams over all n-grams of
    all samples; repetition: share of 4-grams that were there before in the same sample.

    Args:
      tokens: int[B, L].
    """
    tokens = np.asarray(tokens)
    entropies, again = [], []
    for row in tokens:
        counts = np.unique(row, return_counts=True)[1] / len(row)
        entropies.append(-np.sum(counts * np.log(counts)))
        grams = _grams(row, 4)
        again.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    found = {
        "entropy_nats": float(np.mean(entropies)),
        "entropy_stderr": float(np.std(entropies, ddof=1) / math.sqrt(len(tokens))) if len(tokens) > 1 else math.nan,
        "repetition": float(np.mean(again)),
    }
    for n in (1, 2, 3):
        counts = Counter(gram for row in tokens for gram in _grams(row, n))
        found[f"distinct_{n}"] = len(counts) / max(1, sum(counts.values()))
    return found


def _grams(row, n):
    return list(zip(*(row[start:].tolist() for start in range(n)), strict=False))


def judged(judge, texts, tokens=None, tokenizer=None, *, num_orders=8):
    """Returns {"nats_per_token", "stderr", "perplexity", "num_tokens"} of texts under a judge, in its own tokens.

    Exact for an autoregressive judge, a bound for a diffusion model.

    Args:
      judge: api.Generator, or HuggingFaceJudge.
      texts: list of str.
      tokens: int[B, L] and
      tokenizer: of the samples: where it is the judge's own, the tokens are judged as they are, without an
        end-of-text that no sample has.
      num_orders: int, draws a text of a bound.
    """
    if tokens is not None and can_read(judge, tokens, tokenizer):
        nats, counts = (
            _nats_of_tokens(judge, np.asarray(tokens, np.int32), num_orders),
            np.full(len(tokens), tokens.shape[1]),
        )
    elif isinstance(judge, HuggingFaceJudge):
        nats, counts = judge.nats(texts)
    else:
        ends = 0 if judge.tokenizer.special.eos is None else 1
        counts = np.asarray([len(judge.tokenizer.encode(text)[0]) + ends for text in texts])
        nats = judge.score(texts, num_orders=num_orders)
    per_token, stderr = statistics.ratio(nats, counts, np.arange(len(nats)))
    return {
        "nats_per_token": per_token, "stderr": stderr, "perplexity": math.exp(min(per_token, 700.0)),
        "num_tokens": int(np.sum(counts)),
    }  # fmt: skip


def can_read(judge, tokens, tokenizer):
    """Returns whether a judge can be given the tokens of samples as they are."""
    if isinstance(judge, HuggingFaceJudge) or tokenizer is None or np.shape(tokens)[1] > judge.length:
        return False
    return tokenizers.sha256(judge.tokenizer) == tokenizers.sha256(tokenizer)


def _nats_of_tokens(judge, tokens, num_orders):
    if evaluators.is_autoregressive(judge.config):
        losses = likelihood.autoregressive(judge.denoiser, judge.params)
    else:
        losses = likelihood.bound(judge.denoiser, judge.params, evaluators.schedule_of(judge.config), num_orders)
    rows = Rows(tokens, np.zeros(len(tokens)), np.arange(len(tokens)))
    batch_size = min(judge.config.eval.batch_size, len(tokens))
    return likelihood.row_losses(losses, rows, batch_size=batch_size, key=jax.random.key(0), quiet=True)


class HuggingFaceJudge:
    """An autoregressive model of the transformers package (extra `hf`), on CPU.

    Args:
      name: of a model on the hub, or a folder.
    Raises:
      ValueError: if the packages are missing.
    """

    def __init__(self, name):
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"judge='hf:{name}': needs the package {package}; install dlm_jax[hf]")
        import transformers

        self.name = name
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(name).eval()

    def nats(self, texts):
        """Returns (float64[B], int64[B]): nats of each text after a beginning-of-text token, and its tokens."""
        import torch

        nats, counts = [], []
        first = self.tokenizer.bos_token_id
        first = self.tokenizer.eos_token_id if first is None else first
        for text in texts:
            ids = [first, *self.tokenizer(text, add_special_tokens=False)["input_ids"]]
            ids = torch.tensor([ids[: self.model.config.max_position_embeddings]])
            with torch.no_grad():
                log_p = torch.log_softmax(self.model(ids).logits[0, :-1].double(), dim=-1)
            nats.append(-float(log_p.gather(1, ids[0, 1:, None]).sum()))
            counts.append(ids.shape[1] - 1)
        return np.asarray(nats), np.asarray(counts)


def mauve(judge, samples, references):
    """Returns float, MAUVE of samples against references by features of the judge, or None without its package.

    Features are the judge's mean hidden states. Values depend on the judge: compare only those of one judge.

    Args:
      judge: api.Generator.
      samples, references: int32[B, L], tokens of the judge.
    """
    if importlib.util.find_spec("mauve") is None:
        return None
    import mauve as package

    ours, theirs = (_features(judge, tokens) for tokens in (samples, references))
    return float(package.compute_mauve(p_features=theirs, q_features=ours, verbose=False).mauve)


def _features(judge, tokens):
    @jax.jit
    def hidden(tokens):
        inputs = tokens
        if evaluators.is_autoregressive(judge.config):
            inputs = objectives.shift_right(tokens, judge.denoiser.mask_id, None)
        time = judge.time_at(np.zeros(len(tokens), np.float32)) if judge.denoiser.needs_time else None
        return judge.denoiser.hidden(judge.params, inputs, time=time)[0].mean(axis=1)

    return np.asarray(hidden(np.asarray(tokens, np.int32)), np.float32)
