"""Where documents come from. The only importer of tensorflow_datasets.

| data.source                          | documents                                                              |
|--------------------------------------|------------------------------------------------------------------------|
| embedded                             | English that every CPython carries: docstrings and `help()` topics     |
| embedded:docstrings, embedded:topics | one half of it                                                         |
| FILE or GLOB of .txt                 | text between `data.document_separator`s                                |
| FILE or GLOB of .jsonl               | the `data.text_field` of every line                                    |
| FILE.npy                             | tokens: int[N, data.length] rows, or int[N] to be cut into rows        |
| tfds:NAME                            | the `data.text_field` of the train split, prepared as ArrayRecord      |
| URL of any of these files            | the same: gs://, s3://, https://, ... as fsspec reaches them           |
| markov                               | rows drawn from the chain `data.transition`; its entropy is known      |

Text files become a real tfds builder (ArrayRecord, no TensorFlow) whose version is the hash of their content, so
edited files are never read stale.
"""

import ast
import contextlib
import glob
import hashlib
import io
import json
import logging
import os
import pathlib
import string
import sysconfig
import warnings
from dataclasses import dataclass, field

import numpy as np

from dlm_jax import files, storage
from dlm_jax.information import distributions

_TEXT_SUFFIXES = (".txt", ".jsonl")


@dataclass
class Report:
    """What was wrong with the input: (place, reason) of everything that was skipped."""

    problems: list = field(default_factory=list)

    def add(self, place, reason):
        self.problems.append((str(place), reason))

    def lines(self, most=10):
        """Returns printable lines, at most `most` of them and a count of the rest."""
        shown = [f"skipped {place}: {reason}" for place, reason in self.problems[:most]]
        if len(self.problems) > most:
            shown.append(f"skipped {len(self.problems) - most} more; all are listed in the manifest")
        return shown


@dataclass
class Source:
    """A corpus that is ready to be read.

    Args:
      digest: hex, changes whenever the content does.
      documents: () -> iterator of str, or None.
      rows: int[N, L] tokens that need no tokenizer, or None.
    """

    digest: str
    documents: object = None
    rows: object = None


def open_source(config, cache_dir, report):
    """Opens the corpus of a DataConfig.

    Args:
      config: DataConfig.
      cache_dir: pathlib.Path, where copies and prepared files live.
      report: Report, filled with what had to be skipped.
    Returns:
      Source.
    Raises:
      ValueError, FileNotFoundError: naming data.source and what is wrong.
    """
    name = config.source
    if name == "embedded" or name.startswith("embedded:"):
        return _embedded(name, cache_dir)
    if name == "markov":
        return _markov(config)
    if name.startswith("tfds:"):
        return _tfds(name.removeprefix("tfds:"), config, report)
    if storage.is_remote(name):
        paths = storage.fetch(name, cache_dir / "fetched")
    else:
        paths = [pathlib.Path(p) for p in sorted(glob.glob(os.path.expanduser(name), recursive=True))]
        paths = [p for p in paths if p.is_file()]
    if not paths:
        raise FileNotFoundError(f"data.source={name!r}: no such file, and not 'embedded', 'markov' or 'tfds:NAME'")
    suffixes = {p.suffix for p in paths}
    if suffixes == {".npy"} and len(paths) == 1:
        return _array(paths[0], config, report)
    if not suffixes <= set(_TEXT_SUFFIXES):
        wrong = next(p for p in paths if p.suffix not in _TEXT_SUFFIXES)
        raise ValueError(f"data.source={name!r}: {wrong.name} must be .txt or .jsonl (or a single .npy)")
    return _text_files(paths, config, cache_dir, report)


def cut(document, max_bytes):
    """Yields pieces of at most `max_bytes` UTF-8 bytes, cut between characters; 0 = never cut."""
    encoded = document.encode("utf-8")
    while max_bytes and len(encoded) > max_bytes:
        end = max_bytes
        while end > 0 and encoded[end] & 0xC0 == 0x80:  # never inside a character
            end -= 1
        if end == 0:  # a character is longer than that: it stays whole
            end = 1
            while end < len(encoded) and encoded[end] & 0xC0 == 0x80:
                end += 1
        yield encoded[:end].decode("utf-8")
        encoded = encoded[end:]
    if encoded:
        yield encoded.decode("utf-8")


# ---------------------------------------------------------------------------------------------- embedded


def _embedded(name, cache_dir):
    parts = {
        "embedded": ("docstrings", "topics"),
        "embedded:docstrings": ("docstrings",),
        "embedded:topics": ("topics",),
    }
    if name not in parts:
        raise ValueError(f"data.source={name!r}: must be one of {', '.join(parts)}")
    path = cache_dir / (name.replace(":", "-") + ".jsonl")
    if not path.exists():
        documents = [d for part in parts[name] for d in {"docstrings": _docstrings, "topics": _topics}[part]()]
        if not documents:
            raise ValueError(f"data.source={name!r}: this Python installation carries no library sources")
        files.write_text(path, "".join(json.dumps({"text": d}, ensure_ascii=False) + "\n" for d in documents))

    def documents():
        with open(path, encoding="utf-8", newline="\n") as file:
            for line in file:
                yield json.loads(line)["text"]

    return Source(files.sha256(path), documents)


def _docstrings():
    """Every docstring of the standard library, in order of file and line, without the test suites."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(parts):
            continue
        with contextlib.suppress(SyntaxError, ValueError, OSError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    text = ast.get_docstring(node)
                    if text and text.strip():
                        found.append(text)
    return found


def _topics():
    """The texts behind `help("topic")`, in order of name."""
    from pydoc_data import topics

    return [text for _, text in sorted(topics.topics.items()) if text.strip()]


# ---------------------------------------------------------------------------------------------- synthetic


def markov_chain(config):
    """Returns the distribution behind the "markov" source: stationary, over rows of `data.length`."""
    return distributions.stationary_markov_chain(np.asarray(config.transition), config.length)


def _markov(config):
    if len(config.transition) > len(string.ascii_letters):
        raise ValueError(
            f"data.transition: {len(config.transition)} states, must be at most {len(string.ascii_letters)}"
        )
    import jax  # a Markov corpus is drawn with a named key, like everything random

    key = jax.random.key(0)
    rows = np.asarray(markov_chain(config).sample(key, config.num_documents), np.int32)
    digest = hashlib.sha256(rows.tobytes()).hexdigest()
    return Source(digest, rows=rows)


# ---------------------------------------------------------------------------------------------- arrays


def _array(path, config, report):
    name = f"data.source={str(path)!r}"
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header is parsed as Python, which raises many kinds
        raise ValueError(f"{name}: not a .npy array: {error}") from None
    if tokens.dtype.kind not in "iu" or tokens.ndim not in (1, 2):
        raise ValueError(f"{name}: {tokens.dtype}{list(tokens.shape)} must be integer tokens, [N] or [N, data.length]")
    if tokens.ndim == 2 and tokens.shape[1] != config.length:
        raise ValueError(f"{name}: rows of {tokens.shape[1]} tokens, must be data.length={config.length}")
    if tokens.ndim == 1:
        left = len(tokens) % config.length
        if left:
            report.add(path, f"{left} tokens at the end fill no row of data.length={config.length}")
        tokens = tokens[: len(tokens) - left].reshape(-1, config.length)
    if not len(tokens):
        raise ValueError(f"{name}: holds no row of data.length={config.length} tokens")
    return Source(files.sha256(path), rows=tokens)


# ---------------------------------------------------------------------------------------------- text files


def _text_files(paths, config, cache_dir, report):
    digest = hashlib.sha256(json.dumps([config.document_separator, config.text_field]).encode())
    for path in paths:
        digest.update(files.sha256(path).encode())
    digest = digest.hexdigest()
    problems_path = cache_dir / "tfds" / f"problems-{digest[:16]}.json"

    def documents(found):
        for path in paths:
            yield from _read_file(path, config, found)

    def examples():
        found = Report()
        yield from documents(found)
        files.write_json(problems_path, found.problems)

    if not problems_path.exists() and next(documents(found := Report()), None) is None:
        raise ValueError(
            f"data.source={config.source!r}: holds no document" + "".join(f"; {line}" for line in found.lines()[:1])
        )
    builder = _local_builder(digest[:16], cache_dir / "tfds", examples)
    for place, reason in files.read_json(problems_path) if problems_path.exists() else ():
        report.add(place, reason)
    return Source(digest, lambda: _records(builder.as_data_source(split="train"), "text"))


def _read_file(path, config, report):
    """Yields the documents of one file; what cannot be read is reported with file and line, the rest is kept."""
    if path.stat().st_size == 0:
        report.add(path, "empty file")
        return
    with open(path, "rb") as file:
        lines = _decoded_lines(path, file, report)
        yield from (_json_documents if path.suffix == ".jsonl" else _plain_documents)(path, lines, config, report)


def _decoded_lines(path, file, report):
    for number, raw in enumerate(file, start=1):
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            report.add(f"{path}:{number}", f"not UTF-8 at byte {error.start} of the line")


def _plain_documents(path, lines, config, report):
    separator, held = config.document_separator, []
    for _, line in lines:
        held.append(line.replace("\r\n", "\n"))
        if separator and (separator in line or separator in "".join(held[-len(separator) - 1 :])):
            *complete, rest = "".join(held).split(separator)
            yield from (document for document in complete if document.strip())
            held = [rest]
    last = "".join(held)
    if last.strip():
        yield last


def _json_documents(path, lines, config, report):
    for number, line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            report.add(f"{path}:{number}", f"not JSON: {getattr(error, 'msg', error)}")
            continue
        text = record.get(config.text_field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            report.add(f"{path}:{number}", f"has no text field {config.text_field!r} (data.text_field)")
        elif not text.strip():
            report.add(f"{path}:{number}", f"field {config.text_field!r} is empty")
        elif any("\ud800" <= c <= "\udfff" for c in text):
            report.add(f"{path}:{number}", "holds an unpaired surrogate, which is not text")
        else:
            yield text


# ---------------------------------------------------------------------------------------------- tfds


def _import_tfds():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("absl", "tensorflow_datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    return tfds


def _local_builder(content, data_dir, examples):
    """Returns a prepared tfds builder of text documents, keyed by the hash of their content."""
    tfds = _import_tfds()

    with tfds.core.registered.skip_registration():  # one class a call: a process may read several corpora

        class LocalText(tfds.core.GeneratorBasedBuilder):
            """Documents of local files."""

            VERSION = tfds.core.Version("1.0.0")
            BUILDER_CONFIGS = (tfds.core.BuilderConfig(name=content, description="local text files"),)
            pkg_dir_path = pathlib.Path(__file__).parent
            code_path = pathlib.Path(__file__)  # tfds finds it with importlib_resources, which it does not require

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for index, text in enumerate(examples()):
                    yield index, {"text": text}

    builder = LocalText(config=content, data_dir=str(data_dir), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):  # tfds announces a download; stdout belongs to the verbs
        builder.download_and_prepare()
    return builder


def _tfds(name, config, report):
    tfds = _import_tfds()
    label = f"data.source='tfds:{name}'"
    try:
        builder = tfds.builder(name, file_format="array_record")
        data = builder.as_data_source(split="train")
    except Exception as error:  # tfds raises many kinds, all of which mean: not there
        raise ValueError(f"{label}: {str(error).strip().splitlines()[0]}") from None
    if config.text_field not in builder.info.features:
        raise ValueError(
            f"data.text_field={config.text_field!r}: {label} has the fields {', '.join(sorted(builder.info.features))}"
        )
    if not isinstance(builder.info.features[config.text_field], tfds.features.Text):
        raise ValueError(f"data.text_field={config.text_field!r}: that field of {label} is not text")
    digest = hashlib.sha256(f"{builder.info.full_name} {builder.info.splits['train'].shard_lengths}".encode())
    return Source(digest.hexdigest(), lambda: _records(data, config.text_field))


def _records(data, text_field, chunk=1024):
    """Yields the text of every record, read in chunks (several times faster than one by one)."""
    for start in range(0, len(data), chunk):
        for record in data.__getitems__(list(range(start, min(start + chunk, len(data))))):
            yield record[text_field].decode("utf-8", errors="replace")
