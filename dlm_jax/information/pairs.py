"""A look at a corpus before any training: f(0) and f(1) from counts of tokens and of pairs of tokens.

  f(0) = entropy of a token
  f(1) = f(0) - [2 / (L (L - 1))] sum_d (L - d) I_d,   I_d = mutual information of two tokens d apart

No model enters, so there is no model error; but counts are finite. Plug-in entropies are too low and plug-in mutual
informations too high: entropies get the Miller-Madow term, and from each I_d the same statistic of unrelated tokens
(of different documents) is taken away. Large vocabularies are merged into their most frequent tokens and one rest
class, which can only lower I_d: then f(0) - f(1) is a lower estimate.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

_GROUPS = 10  # of documents, for the jackknife


@dataclass(frozen=True)
class PairEstimate:
    """What pair counts say about a corpus, all in nats, with jackknife standard errors over groups of documents.

    Args:
      length: int, L, of the rows.
      unigram_entropy: (float, float), f(0) and its error.
      one_revealed_entropy: (float, float), f(1).
      distances: int64[D], at which pairs were counted.
      pair_information: float64[D], I_d, bias-corrected.
      pair_stderr: float64[D].
      num_classes: int, tokens that were told apart; fewer than the vocabulary: I_d is a lower estimate.
      vocab_size: int.
    """

    length: int
    unigram_entropy: tuple
    one_revealed_entropy: tuple
    distances: np.ndarray
    pair_information: np.ndarray
    pair_stderr: np.ndarray
    num_classes: int
    vocab_size: int

    @property
    def by_distance(self):
        """float64[L - 1], I_d at every distance 1 .. L - 1, interpolated in log d."""
        every = np.arange(1, self.length)
        return np.interp(np.log(every), np.log(self.distances), self.pair_information)

    def to_dict(self):
        """Returns the estimate as plain values."""
        return {
            "length": self.length,
            "unigram_entropy_nats": list(self.unigram_entropy),
            "one_revealed_entropy_nats": list(self.one_revealed_entropy),
            "distances": self.distances.tolist(),
            "pair_information_nats": self.pair_information.tolist(),
            "pair_stderr_nats": self.pair_stderr.tolist(),
            "num_classes": self.num_classes,
            "vocab_size": self.vocab_size,
            "is_lower_estimate": self.num_classes < self.vocab_size,
        }


def estimate(tokens, document, vocab_size, *, num_classes=256, num_distances=16):
    """Returns the PairEstimate of rows of tokens.

    Args:
      tokens: int[N, L], rows; positions are pooled, as rows are cut anywhere in running text.
      document: int[N], the cluster of each row.
      vocab_size: int.
      num_classes: int, the most frequent tokens are told apart, all others are one class.
      num_distances: int, log-spaced distances that are counted.
    Raises:
      ValueError: if there are fewer than two documents or two tokens a row.
    """
    tokens = np.asarray(tokens)
    names, group = np.unique(document, return_inverse=True)
    if len(names) < 2 or tokens.ndim != 2 or tokens.shape[1] < 2:
        raise ValueError(
            f"tokens: {len(names)} documents, rows {list(tokens.shape)}: at least 2 documents and rows of 2 tokens "
            "are needed"
        )
    length = tokens.shape[1]
    num_groups = min(_GROUPS, len(names))
    group = group * num_groups // len(names)  # neighbours stay together, groups are even
    frequent = np.argsort(-np.bincount(tokens.ravel(), minlength=vocab_size), kind="stable")
    num_classes = min(num_classes, vocab_size)
    merged = np.full(vocab_size, num_classes - 1)
    merged[frequent[: num_classes - (num_classes < vocab_size)]] = np.arange(num_classes - (num_classes < vocab_size))
    classes = merged[tokens]
    # f(0) of the tokens themselves, I_d of the classes.
    unigrams = np.stack([np.bincount(tokens[group == g].ravel(), minlength=vocab_size) for g in range(num_groups)])
    first = _leave_one_out(unigrams, _entropy)
    distances = np.unique(np.round(np.geomspace(1, length - 1, num_distances)).astype(int))
    # Unrelated tokens: each row beside one of a document half a corpus away.
    order = np.argsort(np.asarray(document), kind="stable")
    partner = np.empty(len(order), int)
    partner[order] = np.roll(order, len(order) // 2)
    elsewhere = np.roll(classes[partner], length // 2, axis=1)  # at another place too: rows may share a layout
    values = []
    for distance in distances:
        counts = _pair_counts(classes[:, :-distance], classes[:, distance:], group, num_groups, num_classes)
        # As many unrelated pairs: the same bias.
        unrelated = _pair_counts(classes[:, :-distance], elsewhere[:, distance:], group, num_groups, num_classes)
        values.append(_leave_one_out(counts, _information) - _leave_one_out(unrelated, _information))
    values = np.stack(values)  # [D, 1 + groups]
    every = np.arange(1, length)
    interpolated = np.stack([np.interp(np.log(every), np.log(distances), column) for column in values.T], axis=1)
    resolved = 2 / (length * (length - 1)) * ((length - every) @ interpolated)
    return PairEstimate(
        length=length,
        unigram_entropy=_jackknife(first),
        one_revealed_entropy=_jackknife(first - resolved),
        distances=distances,
        pair_information=values[:, 0],
        pair_stderr=np.asarray([_jackknife(row)[1] for row in values]),
        num_classes=num_classes,
        vocab_size=vocab_size,
    )


def _pair_counts(left, right, group, num_groups, num_classes):
    """int64[groups, C, C]."""
    index = (group[:, None] * num_classes + left) * num_classes + right
    counts = np.bincount(index.ravel(), minlength=num_groups * num_classes**2)
    return counts.reshape(num_groups, num_classes, num_classes)


def _entropy(counts):
    total = counts.sum()
    plug_in = special.entr(counts / total).sum()
    return plug_in + (np.count_nonzero(counts) - 1) / (2 * total)  # Miller-Madow


def _information(counts):
    """Plug-in mutual information of a table of pairs."""
    share = counts / counts.sum()
    margins = special.entr(share.sum(axis=0)).sum() + special.entr(share.sum(axis=1)).sum()
    return margins - special.entr(share).sum()


def _leave_one_out(counts, statistic):
    """float64[1 + groups]: of everything, then without each group."""
    total = counts.sum(axis=0)
    return np.asarray([statistic(total), *(statistic(total - part) for part in counts)])


def _jackknife(values):
    """(value, standard error) from [all, without group 1, ...]."""
    left_out = values[1:]
    count = len(left_out)
    return float(values[0]), float(np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2)))
