"""Tokenizers: text <-> token ids in [0, V). The mask is id V: it can be read by the denoiser, never predicted.

| name           | tokens                                                        |
|----------------|---------------------------------------------------------------|
| bytes          | UTF-8 bytes and end-of-text                                   |
| text8          | a-z and space, nothing else                                   |
| letters        | a, b, c ...: the states of a "markov" corpus                  |
| bpe            | byte-level subwords, trained on the train split               |
| tokenizer.json | any Hugging Face tokenizer file                               |
"""

import contextlib
import json
import os
import pathlib
import string
from dataclasses import dataclass

import numpy as np

from dlm_jax import files

END_OF_TEXT = "<|endoftext|>"
# What published tokenizers call their end-of-text token, in the order tried.
_KNOWN_ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "[SEP]")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids with a meaning. `eos` separates documents (None: documents just follow each other)."""

    mask: int
    eos: int | None
    pad: int
    bos: int


class ByteTokenizer:
    """UTF-8 bytes; 256 is end-of-text."""

    def __init__(self):
        self.vocab_size = 257
        self.special = SpecialTokens(mask=257, eos=256, pad=256, bos=256)

    def encode(self, text):
        """Returns (int32[n] tokens, int32[n] how many bytes of the text each stands for)."""
        tokens = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)
        return tokens, np.ones_like(tokens)

    def decode(self, tokens):
        """Returns the text of tokens; end-of-text becomes nothing, bytes that are not UTF-8 become U+FFFD."""
        return bytes(int(t) for t in tokens if t < 256).decode("utf-8", errors="replace")

    def to_json(self):
        return {"dlm_jax": "bytes"}


class CharacterTokenizer:
    """One token a character of a fixed alphabet; no end-of-text, documents follow each other."""

    def __init__(self, name, alphabet):
        self.name, self.alphabet = name, alphabet
        self.vocab_size = len(alphabet)
        self.special = SpecialTokens(mask=self.vocab_size, eos=None, pad=0, bos=self.vocab_size)
        self._id = {character: index for index, character in enumerate(alphabet)}

    def encode(self, text):
        """Returns (int32[n] tokens, int32[n] ones).

        Raises:
          ValueError: naming the first character outside the alphabet and its place.
        """
        try:
            tokens = np.fromiter((self._id[c] for c in text), np.int32, len(text))
        except KeyError as error:
            character = error.args[0]
            raise ValueError(
                f"character {character!r} at {text.index(character)}: tokenizer {self.name!r} knows only "
                f"{self.alphabet!r}"
            ) from None
        return tokens, np.ones_like(tokens)

    def decode(self, tokens):
        return "".join(self.alphabet[t] if t < self.vocab_size else "" for t in tokens)

    def to_json(self):
        return {"dlm_jax": "characters", "name": self.name, "alphabet": self.alphabet}


class SubwordTokenizer:
    """A tokenizer of the `tokenizers` library; text that looks like a special token is encoded as plain text."""

    def __init__(self, inner):
        self._inner = inner
        inner.encode_special_tokens = True
        inner.no_padding()
        inner.no_truncation()
        known = inner.get_vocab(with_added_tokens=True)
        size = max(known.values(), default=-1) + 1
        eos = next((known[name] for name in _KNOWN_ENDS if name in known), size)
        self.vocab_size = max(size, eos + 1)
        self.special = SpecialTokens(mask=self.vocab_size, eos=eos, pad=eos, bos=eos)

    def encode(self, text):
        """Returns (int32[n] tokens, int32[n] how many bytes of the text each stands for; they sum to all of them).

        Raises:
          ValueError: if the tokenizer has no token for some of it, and none for what is unknown.
        """
        try:
            encoded = self._inner.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(str(error)) from None
        tokens = np.asarray(encoded.ids, np.int32)
        if not len(tokens):
            return tokens, tokens
        ends = np.asarray([end for _, end in encoded.offsets])
        ends[-1] = len(text)  # what the tokenizer drops at the end still belongs to the text
        bytes_until = np.arange(len(text) + 1)
        if not text.isascii():
            bytes_until = np.concatenate([[0], np.cumsum([len(c.encode("utf-8")) for c in text])])
        until = np.maximum.accumulate(bytes_until[ends])
        return tokens, np.diff(until, prepend=0).astype(np.int32)

    def decode(self, tokens):
        ids = [int(t) for t in tokens if t < self.vocab_size and t != self.special.eos]
        return self._inner.decode(ids, skip_special_tokens=False)

    def to_json(self):
        return json.loads(self._inner.to_str())


def make_tokenizer(name, *, num_letters=3):
    """Returns the tokenizer of `data.tokenizer`, except "bpe", which must be trained (`train_bpe`).

    Args:
      name: "bytes", "text8", "letters" or the path of a tokenizer.json.
      num_letters: alphabet size of "letters".
    Raises:
      ValueError: if the name is unknown or the file is not a tokenizer.
      FileNotFoundError: if there is no such file.
    """
    if name in TOKENIZERS:
        return TOKENIZERS[name](num_letters)
    path = pathlib.Path(name)
    if path.suffix != ".json":
        raise ValueError(
            f"data.tokenizer={name!r}: must be one of {', '.join(TOKENIZERS)}, bpe, or the path of a tokenizer.json"
        )
    if not path.is_file():
        raise FileNotFoundError(f"data.tokenizer={name!r}: no such file")
    return load(path)


def train_bpe(texts, vocab_size):
    """Trains byte-level subwords; every text can be encoded, and decoding gives it back exactly.

    Args:
      texts: an iterable of str.
      vocab_size: int, V including end-of-text; a small corpus may yield fewer.
    Source: Sennrich et al. 2016, on bytes as in GPT-2.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return SubwordTokenizer(inner)


def save(tokenizer, path):
    """Writes a tokenizer as JSON, atomically."""
    files.write_json(path, tokenizer.to_json())


def load(path, digest=None):
    """Reads a tokenizer written by `save`, or a Hugging Face tokenizer.json.

    Args:
      path: of the file.
      digest: hex, the `sha256` of the tokenizer that was saved there; None for any tokenizer.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not a tokenizer, or another one; the message names the file.
    """
    values = files.read_json(path)
    if digest is not None and files.json_sha256(values) != digest:
        raise ValueError(f"{path}: not the tokenizer that was saved there, with which the model was trained")
    kind = values.get("dlm_jax") if isinstance(values, dict) else None
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "characters":
        if not all(isinstance(values.get(field), str) for field in ("name", "alphabet")):
            raise ValueError(f"{path}: not a tokenizer.json: 'name' and 'alphabet' must be text")
        return CharacterTokenizer(values["name"], values["alphabet"])
    from tokenizers import Tokenizer

    try:
        with _without_stderr():
            return SubwordTokenizer(Tokenizer.from_str(json.dumps(values)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and panics, which is none
        raise ValueError(f"{path}: not a tokenizer.json: {str(error).splitlines()[0]}") from None


@contextlib.contextmanager
def _without_stderr():
    """Drops what a panic of the library writes to the process' own stderr."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def sha256(tokenizer):
    """Returns a digest of what the tokenizer does, as hex."""
    return files.json_sha256(tokenizer.to_json())


TOKENIZERS = {
    "bytes": lambda num_letters: ByteTokenizer(),
    "text8": lambda num_letters: CharacterTokenizer("text8", string.ascii_lowercase + " "),
    "letters": lambda num_letters: CharacterTokenizer("letters", string.ascii_letters[:num_letters]),
}
