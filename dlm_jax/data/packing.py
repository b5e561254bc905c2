"""Documents -> fixed rows of tokens, tokenised and packed once, kept as memory-mapped files with digests.

Documents are split into train and validation, put in the order of their content hash, and wrapped: end-of-text
between documents, rows cut every `data.length` tokens, no padding. The tail that does not fill a row is dropped and
counted.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from dataclasses import dataclass

import numpy as np

from dlm_jax import files
from dlm_jax.config import DataConfig
from dlm_jax.data import normalize, sources, tokenizers
from dlm_jax.progress import Progress

_FORMAT = 1  # of the prepared files; raised when their meaning changes
_FLUSH_TOKENS = 1 << 20
_SPLITS = ("train", "validation")
_ARRAYS = ("tokens", "num_bytes", "document", "segment_ids")


@dataclass(frozen=True)
class Rows:
    """One split, ready to be read.

    Args:
      tokens: integer[N, L], memory-mapped.
      num_bytes: int32[N], how many bytes of text each row stands for.
      document: int32[N], the document that holds the row's middle token; rows are clustered by it.
      segment_ids: uint16[N, L] or None, which document of the row a token belongs to, counted from 0.
    """

    tokens: np.ndarray
    num_bytes: np.ndarray
    document: np.ndarray
    segment_ids: np.ndarray | None = None

    def __len__(self):
        return len(self.tokens)


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus: two splits, their tokenizer, and what they were made from."""

    train: Rows
    validation: Rows
    tokenizer: object
    fingerprint: str  # hex, of the rows and of everything that decides a batch but the seed
    manifest: dict


def prepare(config, cache_dir, *, frozen=False, quiet=False, interval=10.0, say=print):
    """Returns the Corpus of a DataConfig, prepared now or read from `cache_dir`.

    Args:
      config: DataConfig.
      cache_dir: folder for prepared files.
      frozen: refuse to replace a corpus that was prepared from something else.
      quiet: no progress.
      interval: seconds between progress lines in a log.
      say: called with lines worth knowing (sizes, what was skipped).
    Raises:
      ValueError, FileNotFoundError: naming the field or the file and what is wrong.
    """
    cache_dir = pathlib.Path(cache_dir)
    report = sources.Report()
    with Progress(f"reading {config.source}", quiet=quiet, interval=interval):
        source = sources.open_source(config, cache_dir, report)
    key = _key(config, source.digest)
    corpus = _open(cache_dir, key, config)
    if corpus is None:
        if frozen:
            _check_same(cache_dir, key, config)
        if source.rows is not None:
            splits, tokenizer = _split_rows(config, source.rows), _tokenizer_of_rows(config, source.rows)
            write = _write_rows
        else:
            splits, tokenizer = _split_documents(config, source, quiet, interval)
            write = _write_documents
        entries = {}
        for split, content in splits.items():
            entries[split] = write(cache_dir / split, content, tokenizer, config, report, quiet, interval)
        tokenizers.save(tokenizer, cache_dir / "tokenizer.json")
        manifest = {
            "key": key,
            "splits": entries,
            "tokenizer_sha256": tokenizers.sha256(tokenizer),
            "skipped": report.problems,
        }
        files.write_json(cache_dir / "manifest.json", {**manifest, "sha256": files.json_sha256(manifest)})
        corpus = _open(cache_dir, key, config)
    for line in report.lines():
        say(line)
    for split, entry in corpus.manifest["splits"].items():
        say(
            f"{split}: {entry['documents']} documents, {entry['bytes']} bytes, {entry['rows']} rows of "
            f"{config.length} tokens ({entry['dropped_tokens']} tokens of the tail dropped)"
        )
    say(f"corpus sha256 {source.digest[:16]}, vocabulary {corpus.tokenizer.vocab_size}")
    return corpus


def documents(config, cache_dir):
    """Returns (train, validation) lists of documents, split as `prepare` does; for baselines that read text."""
    source = sources.open_source(config, pathlib.Path(cache_dir), sources.Report())
    splits = _split_texts(config, _cut_documents(config, source))
    return splits["train"], splits["validation"]


def all_documents(config, cache_dir, report):
    """Returns the list of all documents of a DataConfig, cleaned and cut, in the order of the source.

    Raises:
      ValueError: if the source is an array of tokens.
    """
    source = sources.open_source(config, pathlib.Path(cache_dir), report)
    if source.rows is not None:
        raise ValueError(f"data.source={config.source!r}: holds tokens, not text")
    return _cut_documents(config, source)


def _key(config, digest):
    decisive = dataclasses.asdict(config)
    for name in ("source", "cache_dir", "transition"):
        decisive.pop(name)  # the digest stands for the content, wherever it lies
    normalisation = normalize.digest(decisive.pop("normalize"), decisive.pop("terminology"))
    if normalisation != [[], ""]:
        decisive["normalize"] = normalisation
    tokenizer = config.tokenizer
    if tokenizer not in (*tokenizers.TOKENIZERS, "bpe") and pathlib.Path(tokenizer).is_file():
        decisive["tokenizer"] = files.sha256(tokenizer)
    return files.json_sha256([_FORMAT, digest, decisive])


# ---------------------------------------------------------------------------------------------- splitting


def _hash(content):
    return hashlib.sha256(content).digest()


def _cut_documents(config, source):
    clean = normalize.make_normalizer(config.normalize, config.terminology)
    texts = (clean(document) for document in source.documents())
    return [piece for text in texts if text.strip() for piece in sources.cut(text, config.max_document_bytes)]


def _split_texts(config, texts):
    """By content: equal documents land in the same split, and the order is that of the hashes."""
    if config.split == "last":
        return _split_last(config, texts)
    hashed = sorted((_hash(text.encode("utf-8")), text) for text in texts)
    return _split_sorted(config, [text for _, text in hashed], [key for key, _ in hashed])


def _split_rows(config, rows):
    if config.split == "last":
        return _split_last(config, rows)
    keys = [_hash(np.ascontiguousarray(row).tobytes()) for row in rows]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    return _split_sorted(config, rows[np.asarray(order)], [keys[i] for i in order])


def _split_last(config, items):
    count = _num_validation(config, len(items))
    return {"train": items[: len(items) - count], "validation": items[len(items) - count :]}


def _split_sorted(config, items, keys):
    count = _num_validation(config, len(items))
    while count < len(items) and keys[count] == keys[count - 1]:
        count += 1
    if count == len(items):
        raise ValueError(f"data.source={config.source!r}: all documents are equal, nothing is left to train on")
    return {"train": items[count:], "validation": items[:count]}


def _num_validation(config, num_documents):
    if num_documents < 2:
        raise ValueError(
            f"data.source={config.source!r}: {num_documents} document; train and validation are split by document, so "
            "at least 2 are needed (see data.document_separator, data.max_document_bytes)"
        )
    return min(num_documents - 1, max(1, round(config.validation_fraction * num_documents)))


def _split_documents(config, source, quiet, interval):
    with Progress("splitting documents", quiet=quiet, interval=interval):
        splits = _split_texts(config, _cut_documents(config, source))
    if config.tokenizer != "bpe":
        return splits, tokenizers.make_tokenizer(config.tokenizer)
    with Progress("training the tokenizer", quiet=quiet, interval=interval):
        return splits, tokenizers.train_bpe(splits["train"], config.vocab_size)


def _tokenizer_of_rows(config, rows):
    if config.tokenizer == "bpe":
        raise ValueError("data.tokenizer='bpe': an array of tokens needs the tokenizer that made it")
    tokenizer = tokenizers.make_tokenizer(config.tokenizer, num_letters=len(config.transition))
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= tokenizer.vocab_size:
        raise ValueError(
            f"data.source={config.source!r}: token {high if high >= tokenizer.vocab_size else low} must be in "
            f"[0, {tokenizer.vocab_size}) of data.tokenizer={config.tokenizer!r}"
        )
    return tokenizer


# ---------------------------------------------------------------------------------------------- writing


def _dtype(tokenizer):
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


def _write_rows(folder, rows, tokenizer, config, report, quiet, interval):
    num_bytes = np.asarray([len(tokenizer.decode(row).encode("utf-8")) for row in rows], np.int32)
    arrays = {
        "tokens": np.asarray(rows, _dtype(tokenizer)),
        "num_bytes": num_bytes,
        "document": np.arange(len(rows), dtype=np.int32),
    }
    if config.segment_ids:
        arrays["segment_ids"] = np.zeros(rows.shape, np.uint16)
    return _write_arrays(folder, arrays, documents=len(rows), dropped_tokens=0)


def _write_documents(folder, texts, tokenizer, config, report, quiet, interval):
    """Tokenises and wraps one split."""
    arrays, dropped = _wrap(texts, tokenizer, config, report, folder.name, quiet, interval)
    return _write_arrays(folder, arrays, documents=len(texts), dropped_tokens=dropped)


def wrap(texts, tokenizer, length, *, name="texts", report=None, quiet=True, interval=10.0):
    """Returns the Rows of some documents, wrapped as `prepare` does, and how many tokens of the tail were dropped.

    Args:
      texts: list of str.
      tokenizer: of the model.
      length: int, L.
      name: for messages.
      report: sources.Report or None, filled with documents that had to be skipped.
    Raises:
      ValueError: if they hold fewer tokens than one row.
    """
    config = DataConfig(source=name, length=length)
    report = sources.Report() if report is None else report
    arrays, dropped = _wrap(texts, tokenizer, config, report, name, quiet, interval)
    return Rows(**arrays), dropped


def _wrap(texts, tokenizer, config, report, name, quiet, interval):
    length, dtype, eos = config.length, _dtype(tokenizer), tokenizer.special.eos
    # Per token: id, bytes, document; flushed in whole rows so that memory stays bounded.
    held, held_tokens = [], 0
    done = {"tokens": [], "num_bytes": [], "document": [], "segment_ids": []}

    def flush():
        nonlocal held, held_tokens
        ids, sizes, owners = (np.concatenate(part) for part in zip(*held, strict=True))
        whole = len(ids) // length * length
        grid = [part[:whole].reshape(-1, length) for part in (ids, sizes, owners)]
        done["tokens"].append(grid[0].astype(dtype))
        done["num_bytes"].append(grid[1].sum(axis=1, dtype=np.int32))
        done["document"].append(grid[2][:, length // 2].astype(np.int32))
        if config.segment_ids:
            done["segment_ids"].append((grid[2] - grid[2][:, :1]).astype(np.uint16))
        held = [(ids[whole:], sizes[whole:], owners[whole:])]
        held_tokens = len(ids) - whole

    with Progress(f"packing {name}", len(texts), quiet=quiet, interval=interval) as progress:
        for index, text in enumerate(texts):
            try:
                ids, sizes = tokenizer.encode(text)
            except ValueError as error:
                report.add(f"document {index} of {name}", str(error))
                continue
            if eos is not None:
                ids, sizes = np.append(ids, np.int32(eos)), np.append(sizes, np.int32(0))
            held.append((ids, sizes, np.full(len(ids), index)))
            held_tokens += len(ids)
            if held_tokens >= _FLUSH_TOKENS:
                flush()
            progress.update(index + 1)
        if held:
            flush()
    if not any(len(part) for part in done["tokens"]):
        raise ValueError(
            f"data.length={length}: the {name} documents of {config.source!r} hold only "
            f"{held_tokens} tokens, fewer than one row" + "".join(f"; {line}" for line in report.lines(1))
        )
    return {kind: np.concatenate(parts) for kind, parts in done.items() if parts}, held_tokens


def _write_arrays(folder, arrays, **facts):
    digests = {}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)
        digests[name] = files.sha256(path)
    return {
        **facts,
        "rows": len(arrays["tokens"]),
        "bytes": int(arrays["num_bytes"].sum(dtype=np.int64)),
        "sha256": digests,
    }


# ---------------------------------------------------------------------------------------------- reading


def _read_manifest(cache_dir):
    """The manifest of a prepared corpus, or None if it is missing or not what was written."""
    try:
        manifest = files.read_json(cache_dir / "manifest.json")
        return manifest if manifest.pop("sha256") == files.json_sha256(manifest) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _check_same(cache_dir, key, config):
    before = _read_manifest(cache_dir)  # without it, what is prepared now is compared by its fingerprint
    if before is not None and before.get("key") != key:
        raise ValueError(
            f"data.source={config.source!r}: is not what {cache_dir} was prepared from; restore it, or use another "
            "--workdir, or --allow_changes"
        )


def _open(cache_dir, key, config):
    """Returns the prepared Corpus, or None if there is none for this key or its files are damaged."""
    manifest = _read_manifest(cache_dir)
    if manifest is None or manifest.get("key") != key:
        return None
    try:
        tokenizer = tokenizers.load(cache_dir / "tokenizer.json", manifest["tokenizer_sha256"])
        splits = {}
        for split, entry in manifest["splits"].items():
            arrays = {}
            for name, digest in entry["sha256"].items():
                if split not in _SPLITS or name not in _ARRAYS:
                    return None  # a name is a path: none but ours
                path = cache_dir / split / f"{name}.npy"
                if files.sha256(path) != digest:
                    return None
                arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            splits[split] = Rows(**arrays)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None  # prepared anew: the source is still there
    digests = list(itertools.chain(*(entry["sha256"].values() for entry in manifest["splits"].values())))
    identity = json.dumps([digests, manifest["tokenizer_sha256"]])
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    return Corpus(splits["train"], splits["validation"], tokenizer, fingerprint, manifest)
