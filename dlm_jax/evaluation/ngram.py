"""A byte n-gram with Witten-Bell interpolation: the baseline that any model of text must beat."""

import math
from collections import defaultdict

_END = 256


class WittenBell:
    """p(b | h) = (count(hb) + kinds(h) p(b | shorter h)) / (count(h) + kinds(h)), down to uniform over 257 symbols.

    Args:
      documents: iterable of str; each ends with an end-of-text symbol, and histories do not cross documents.
      order: int, 3 for a trigram.
    Source: Witten & Bell 1991, interpolated.
    """

    def __init__(self, documents, order=3):
        self.order = order
        self._counts = [defaultdict(dict) for _ in range(order)]
        for document in documents:
            for history, symbol in self._events(document):
                for n in range(order):
                    followers = self._counts[n][history[len(history) - n :] if n else ()]
                    followers[symbol] = followers.get(symbol, 0) + 1
        self._totals = [{h: sum(f.values()) for h, f in counts.items()} for counts in self._counts]

    def _events(self, document):
        symbols = [*document.encode("utf-8"), _END]
        start = (_END,) * (self.order - 1)  # a document begins after an end
        history = start
        for symbol in symbols:
            yield history, symbol
            history = (*history[1:], symbol) if self.order > 1 else ()

    def bits_per_byte(self, documents):
        """Returns -log2 p of the documents, end-of-text included, over their UTF-8 bytes."""
        bits, num_bytes, known = 0.0, 0, {}
        for document in documents:
            num_bytes += len(document.encode("utf-8"))
            for event in self._events(document):
                if event not in known:
                    known[event] = math.log2(self._probability(*event))
                bits -= known[event]
        return bits / num_bytes

    def _probability(self, history, symbol):
        p = 1 / 257
        for n in range(self.order):
            context = history[len(history) - n :] if n else ()
            followers = self._counts[n].get(context)
            if followers:
                total = self._totals[n][context]
                p = (followers.get(symbol, 0) + len(followers) * p) / (total + len(followers))
        return p
