"""Sources: what is read, what is reported with its place, and what is kept although its neighbour is broken."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from dlm_jax.config import DataConfig
from dlm_jax.data import packing, sources

JAPANESE = "吾輩は猫である。"


def open_(source, cache, **fields):
    """Returns (documents or None, Source, problems)."""
    report = sources.Report()
    found = sources.open_source(DataConfig(**{"source": str(source), "length": 8, **fields}), cache, report)
    return found.documents and list(found.documents()), found, report.problems


def line_of(**record):
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


# ---------------------------------------------------------------------------------------------- JSON lines

BROKEN_LINES = [
    (b"{broken\n", "not JSON"),
    (b'{"text": "\xff\xfe"}\n', "not UTF-8 at byte 10 of the line"),
    (line_of(title="no text here"), "has no text field 'text'"),
    (line_of(text=5), "has no text field 'text'"),
    (b"[1, 2]\n", "has no text field 'text'"),
    (b"3\n", "has no text field 'text'"),
    (line_of(text="  "), "field 'text' is empty"),
    (b'{"text": "\\ud800"}\n', "unpaired surrogate"),
    (b'{"text": "cut sho', "not JSON"),
    (b'{"text": ' + b"[" * 100_000 + b"\n", "not JSON"),
    (b'{"text": ' + b"9" * 5000 + b"}\n", "not JSON"),
]


@pytest.mark.parametrize(("broken", "reason"), BROKEN_LINES, ids=lambda value: str(value)[:30])
def test_a_broken_json_line_is_reported_with_file_and_line_and_the_rest_is_kept(broken, reason, tmp_path):
    path = tmp_path / "t.jsonl"
    good = line_of(text="good one") + line_of(text=JAPANESE)
    path.write_bytes(good + broken)
    documents, _, problems = open_(path, tmp_path / "cache")
    assert documents == ["good one", JAPANESE]
    assert len(problems) == 1 and problems[0][0] == f"{path}:3" and reason in problems[0][1]
    path.write_bytes(good)
    assert open_(path, tmp_path / "cache")[2] == []


def test_all_kinds_of_broken_lines_together_lose_no_good_one(tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [line for index, (line, _) in enumerate(BROKEN_LINES[:8]) for line in (line, line_of(text=f"good {index}"))]
    path.write_bytes(b"".join(lines))
    documents, _, problems = open_(path, tmp_path / "cache")
    assert documents == [f"good {index}" for index in range(8)]
    assert [place for place, _ in problems] == [f"{path}:{2 * index + 1}" for index in range(8)]


def test_empty_lines_and_a_byte_order_mark_are_no_problem(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line_of(text="first") + b"\n   \n" + line_of(text="second").rstrip(b"\n"))
    documents, _, problems = open_(path, tmp_path / "cache")
    assert documents == ["first", "second"] and problems == []


def test_the_problems_are_reported_again_when_the_prepared_text_is_reused(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    path.write_bytes(line_of(text="good") + b"{broken\n")
    first = open_(path, tmp_path / "cache")
    monkeypatch.setattr(sources, "_read_file", None)  # a second reading would fail
    again = open_(path, tmp_path / "cache")
    assert again[0] == first[0] == ["good"]
    assert [tuple(problem) for problem in again[2]] == [tuple(problem) for problem in first[2]] != []
    path.write_bytes(line_of(text="edited"))
    with pytest.raises(TypeError):
        open_(path, tmp_path / "cache")


def test_another_text_field_is_read_when_asked_for(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(line_of(text="a", body="b") + line_of(text="c"))
    assert open_(path, tmp_path / "cache", text_field="body")[0] == ["b"]
    assert open_(path, tmp_path / "cache")[0] == ["a", "c"]


def test_no_good_line_at_all_is_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"{broken\n\n")
    with pytest.raises(
        ValueError, match=r"^data\.source='.*t\.jsonl': holds no document; skipped .*t\.jsonl:1: not JSON"
    ):
        open_(path, tmp_path / "cache")


# ---------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("content", "separator", "documents"),
    [
        (b"one\n\ntwo\n\n\n\nthree\n", "\n\n", ["one", "two", "three\n"]),
        (b"one\r\n\r\ntwo", "\n\n", ["one", "two"]),
        (b"one\n\ntwo\n", "", ["one\n\ntwo\n"]),
        (b"a==b==c", "==", ["a", "b", "c"]),
        (b"a\n--\nb\n--\n", "\n--\n", ["a", "b"]),
        (JAPANESE.encode() + b"\n\n" + b"\xef\xbb\xbfx", "\n\n", [JAPANESE, "\ufeffx"]),
        (b"\xef\xbb\xbfmarked", "\n\n", ["marked"]),
        (b"one\n\n\n  \n\ntwo", "\n\n", ["one", "two"]),
    ],
    ids=str,
)
def test_text_files_are_cut_at_the_separator(content, separator, documents, tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    found, _, problems = open_(path, tmp_path / "cache", document_separator=separator)
    assert found == documents and problems == []


def test_a_line_of_text_that_is_not_utf8_is_reported_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"one\n\nt\xffwo\n\nthree")
    documents, _, problems = open_(path, tmp_path / "cache")
    assert [document.strip() for document in documents] == ["one", "three"]
    assert [tuple(problem) for problem in problems] == [(f"{path}:3", "not UTF-8 at byte 1 of the line")]


def test_an_empty_file_is_reported_and_the_others_are_kept(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"text")
    documents, _, problems = open_(tmp_path / "*.txt", tmp_path / "cache")
    assert documents == ["text"]
    assert [tuple(problem) for problem in problems] == [(str(tmp_path / "a.txt"), "empty file")]


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
def test_an_empty_file_alone_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"^data\.source='.*empty\.(txt|jsonl)': holds no document"):
        open_(tmp_path / name, tmp_path / "cache")


def test_globs_read_all_files_in_the_order_of_their_names(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "b.txt").write_text("b1\n\nb2")
    (tmp_path / "deep" / "a.jsonl").write_bytes(line_of(text="a1"))
    (tmp_path / "deep" / "er" / "c.txt").write_text("c1")
    assert open_(tmp_path / "deep" / "*.*", tmp_path / "cache")[0] == ["a1", "b1", "b2"]
    assert open_(tmp_path / "**" / "*.txt", tmp_path / "cache")[0] == ["b1", "b2", "c1"]


@pytest.mark.parametrize(
    ("names", "pattern", "message"),
    [
        ([], "none*.txt", "no such file, and not 'embedded', 'markov' or 'tfds:NAME'"),
        (["a.csv"], "a.csv", r"a\.csv must be \.txt or \.jsonl \(or a single \.npy\)"),
        (["a.txt", "b.pdf"], "*", r"b\.pdf must be \.txt"),
        (["a.npy", "b.npy"], "*.npy", r"a\.npy must be \.txt or \.jsonl \(or a single \.npy\)"),
    ],
)
def test_files_that_are_no_corpus_are_refused(names, pattern, message, tmp_path):
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises((ValueError, FileNotFoundError), match=rf"^data\.source=.*{message}"):
        open_(tmp_path / pattern, tmp_path / "cache")


def test_a_report_shows_ten_problems_and_counts_the_rest():
    report = sources.Report()
    for number in range(13):
        report.add(f"f:{number}", "broken")
    assert len(report.lines()) == 11 and report.lines()[0] == "skipped f:0: broken"
    assert report.lines()[-1] == "skipped 3 more; all are listed in the manifest"
    assert len(report.lines(most=13)) == 13


# ---------------------------------------------------------------------------------------------- without TensorFlow


def subprocess_json(script, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_local_text_becomes_an_array_record_builder_without_tensorflow(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(line_of(text="one") + line_of(text=JAPANESE))
    found = subprocess_json(
        """
        import json, pathlib, sys
        from dlm_jax.config import DataConfig
        from dlm_jax.data import sources
        source = sources.open_source(DataConfig(source=sys.argv[1]), pathlib.Path(sys.argv[2]), sources.Report())
        print(json.dumps({"texts": list(source.documents()), "tensorflow": "tensorflow" in sys.modules,
                          "tfds": "tensorflow_datasets" in sys.modules}))
        """,
        path,
        tmp_path / "cache",
    )
    assert found == {"texts": ["one", JAPANESE], "tensorflow": False, "tfds": True}
    records = list((tmp_path / "cache" / "tfds").rglob("*.array_record*"))
    assert len(records) == 1 and not list((tmp_path / "cache" / "tfds").rglob("*.tfrecord*"))


@pytest.fixture(scope="module")
def tiny_news(tmp_path_factory):
    """A real tfds data set of 20 records, prepared by a process of its own; reading it needs only its files."""
    folder = tmp_path_factory.mktemp("tfds")
    made = subprocess_json(
        """
        import sys
        import numpy as np
        import tensorflow_datasets as tfds

        class TinyNews(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {"text": tfds.features.Text(), "number": tfds.features.Scalar(np.int64)}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for number in range(20):
                    yield number, {"text": f"story {number} of \\u732b", "number": number}

        builder = TinyNews(data_dir=sys.argv[1], file_format="array_record")
        builder.download_and_prepare()
        print()
        print(builder.info.splits["train"].num_examples)
        """,
        folder,
    )
    assert made == 20
    return folder


READ_TFDS = """
import json, pathlib, sys
from dlm_jax.config import DataConfig
from dlm_jax.data import packing
try:
    corpus = packing.prepare(DataConfig(source=sys.argv[1], length=8, text_field=sys.argv[2]), sys.argv[3], quiet=True)
    train, validation = packing.documents(DataConfig(source=sys.argv[1], length=8), sys.argv[3])
    print(json.dumps([len(train), len(validation), sorted(train + validation)[0], "tensorflow" in sys.modules]))
except ValueError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("tiny_news", "text", [18, 2, "story 0 of 猫", False]),
        ("tiny_news", "body", "data.text_field='body': data.source='tfds:tiny_news' has the fields number, text"),
        ("tiny_news", "number", "data.text_field='number': that field of data.source='tfds:tiny_news' is not text"),
        ("tiny_olds", "text", "data.source='tfds:tiny_olds': Dataset tiny_olds not found."),
    ],
)
def test_a_tfds_data_set_is_read_by_its_name(tiny_news, tmp_path, name, field, expected):
    found = subprocess_json(READ_TFDS, f"tfds:{name}", field, tmp_path, TFDS_DATA_DIR=str(tiny_news))
    assert found == expected


# ---------------------------------------------------------------------------------------------- arrays


def save(path, array):
    np.save(path, array)
    return path


def test_an_array_of_rows_is_read_as_it_is(tmp_path):
    rows = np.arange(40, dtype=np.int64).reshape(5, 8)
    _, source, _ = open_(save(tmp_path / "t.npy", rows), tmp_path)
    assert source.documents is None and np.array_equal(source.rows, rows)


def test_a_stream_of_tokens_is_cut_into_rows_and_the_tail_is_dropped(tmp_path):
    _, source, report = open_(save(tmp_path / "t.npy", np.arange(30, dtype=np.uint8)), tmp_path)
    assert np.array_equal(source.rows, np.arange(24).reshape(3, 8))
    assert "6 tokens at the end fill no row of data.length=8" in str(report)
    changed = open_(save(tmp_path / "u.npy", np.arange(1, 31, dtype=np.uint8)), tmp_path)[1]
    assert changed.digest != source.digest


def test_an_array_is_prepared_with_its_bytes_counted(tmp_path):
    rows = np.random.default_rng(0).integers(97, 123, (10, 8))
    path = save(tmp_path / "t.npy", rows)
    corpus = packing.prepare(
        DataConfig(source=str(path), length=8), tmp_path / "cache", quiet=True, say=lambda line: None
    )
    assert len(corpus.train) == 9 and len(corpus.validation) == 1
    together = np.concatenate([corpus.train.tokens, corpus.validation.tokens])
    assert sorted(together.tolist()) == sorted(rows.tolist())
    assert corpus.train.num_bytes.tolist() == [8] * 9


BAD_ARRAYS = {
    "floats": (np.zeros((4, 8)), {}, r"float64\[4, 8\] must be integer tokens"),
    "three dimensions": (np.zeros((2, 2, 8), int), {}, r"int64\[2, 2, 8\] must be integer tokens"),
    "other length": (np.zeros((4, 9), int), {}, r"rows of 9 tokens, must be data\.length=8"),
    "too short": (np.zeros(7, int), {}, r"holds no row of data\.length=8 tokens"),
    "no rows": (np.zeros((0, 8), int), {}, r"holds no row of data\.length=8"),
    "objects": (np.array([None, 1], dtype=object), {}, "not a .npy array"),
    "too large": (300 - np.eye(4, 8, dtype=int), {}, r"token 300 must be in \[0, 257\) of data\.tokenizer='bytes'"),
    "negative": (-np.eye(4, 8, dtype=int), {}, r"token -1 must be in \[0, 257\)"),
    "one row": (np.zeros((1, 8), int), {}, "1 document; .*at least 2 are needed"),
    "bpe": (np.eye(4, 8, dtype=int), {"tokenizer": "bpe"}, "an array of tokens needs the tokenizer that made it"),
    "not npy": (b"hello", {}, "not a .npy array"),
    "empty": (b"", {}, "not a .npy array"),
    "cut short": (None, {}, "not a .npy array"),
    "header of no end": (b"\x93NUMPY\x01\x00\x08\x00{'a': (\n", {}, "not a .npy array"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_a_bad_array_is_refused_in_one_line(kind, tmp_path):
    content, fields, message = BAD_ARRAYS[kind]
    path = tmp_path / "t.npy"
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    elif content is None:
        np.save(path, np.zeros((4, 8), int))
        path.write_bytes(path.read_bytes()[:-50])
    else:
        path.write_bytes(content)
    config = DataConfig(source=str(path), length=8, **fields)
    with pytest.raises(ValueError, match=rf"^data\.(source|tokenizer)=.*{message}") as caught:
        packing.prepare(config, tmp_path / "cache", quiet=True)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- embedded, markov


def test_the_embedded_topics_are_copied_and_not_read_twice(tmp_path, monkeypatch):
    documents, source, _ = open_("embedded:topics", tmp_path)
    assert len(documents) > 50 and any("if_stmt" in text for text in documents)
    copy = tmp_path / "embedded-topics.jsonl"
    assert [json.loads(line)["text"] for line in copy.read_text().splitlines()] == documents
    monkeypatch.setattr(sources, "_topics", None)  # a second reading of the standard library would fail
    again = open_("embedded:topics", tmp_path)
    assert again[0] == documents and again[1].digest == source.digest
    with pytest.raises(TypeError):
        open_("embedded:topics", tmp_path / "elsewhere")


def test_the_embedded_docstrings_leave_out_tests_and_empty_ones(tmp_path, monkeypatch):
    library = tmp_path / "library"
    (library / "test").mkdir(parents=True)
    (library / "a.py").write_text('"""Module."""\n\ndef f():\n    """Inner."""\n\ndef g():\n    """  """\n')
    (library / "broken.py").write_text('"""Broken."""\n(')
    (library / "test" / "b.py").write_text('"""Test."""\n')
    monkeypatch.setattr(sources.sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    assert open_("embedded:docstrings", tmp_path / "cache")[0] == ["Module.", "Inner."]
    both = open_("embedded", tmp_path / "cache")[0]
    assert both[:2] == ["Module.", "Inner."] and len(both) > 50
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"embedded.jsonl", "embedded-docstrings.jsonl"}


def test_an_unknown_part_of_the_embedded_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^data\.source='embedded:poems': must be one of embedded, embedded:docs"):
        open_("embedded:poems", tmp_path)


def test_the_markov_source_draws_rows_of_the_right_length_from_its_chain(tmp_path):
    fields = {"tokenizer": "letters", "num_documents": 2000}
    _, source, _ = open_("markov", tmp_path, **fields)
    assert source.rows.shape == (2000, 8) and set(np.unique(source.rows)) == {0, 1, 2}
    chain = np.asarray(DataConfig().transition)
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (source.rows[:, :-1].ravel(), source.rows[:, 1:].ravel()), 1)
    share = pairs / pairs.sum(axis=1, keepdims=True)
    assert np.abs(share - chain).max() < 0.03 < np.abs(share.T - chain).max()
    assert open_("markov", tmp_path, **fields)[1].digest == source.digest
    never_stays = ((0.0, 1.0), (1.0, 0.0))
    turned = open_("markov", tmp_path, **fields, transition=never_stays)[1].rows
    assert (turned[:, 1:] != turned[:, :-1]).all()


def test_a_markov_corpus_is_prepared_as_letters(tmp_path):
    config = DataConfig(source="markov", tokenizer="letters", length=32, num_documents=50)
    corpus = packing.prepare(config, tmp_path, quiet=True, say=lambda line: None)
    assert (len(corpus.train), len(corpus.validation)) == (45, 5)
    assert corpus.tokenizer.vocab_size == 3 and set(corpus.tokenizer.decode(corpus.train.tokens[0])) <= set("abc")


def test_a_chain_of_more_states_than_letters_is_refused(tmp_path):
    table = tuple(tuple(1 / 53 for _ in range(53)) for _ in range(53))
    with pytest.raises(ValueError, match=r"^data\.transition: 53 states, must be at most 52$"):
        open_("markov", tmp_path, tokenizer="letters", transition=table)
