"""Packing: documents -> rows; what is wrapped, counted, split, reused and prepared anew."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax.config import DataConfig
from dlm_jax.data import packing, sources
from dlm_jax.data.batches import Batches

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
DOCUMENTS = [
    f"document {i}: {JAPANESE[i % 20 :]} naïve café €{i} 👩‍👩‍👧 plain english words follow here {i * 37}"
    for i in range(30)
]
EOS = 256


def write_jsonl(path, documents):
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents))
    return str(path)


def config_of(source, **fields):
    return DataConfig(**{"source": str(source), "length": 16, "validation_fraction": 0.2, **fields})


def prepare(config, cache, say=lambda line: None):
    return packing.prepare(config, cache, quiet=True, say=say)


def same(first, second):
    return all(
        np.array_equal(getattr(a, field), getattr(b, field))
        for a, b in ((first.train, second.train), (first.validation, second.validation))
        for field in ("tokens", "num_bytes", "document")
    )


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "texts.jsonl", DOCUMENTS)


@pytest.fixture
def corpus(source, tmp_path):
    return prepare(config_of(source), tmp_path / "cache")


# ---------------------------------------------------------------------------------------------- wrapping


def test_rows_are_the_documents_wrapped_with_end_of_text_and_nothing_else(source, tmp_path):
    config = config_of(source)
    corpus = prepare(config, tmp_path / "cache")
    for rows, texts in zip(
        (corpus.train, corpus.validation), packing.documents(config, tmp_path / "cache"), strict=True
    ):
        stream = [token for text in texts for token in [*text.encode("utf-8"), EOS]]
        whole = len(stream) // config.length * config.length
        assert rows.tokens.dtype == np.uint16
        assert rows.tokens.shape == (whole // config.length, config.length)
        assert rows.tokens.ravel().tolist() == stream[:whole]
        assert rows.tokens.ravel().tolist() != [token for token in stream if token != EOS][:whole]


def test_splits_hold_every_document_once(source, tmp_path):
    train, validation = packing.documents(config_of(source), tmp_path / "cache")
    assert len(validation) == 6 and len(train) == 24
    assert sorted(train + validation) == sorted(DOCUMENTS)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
@pytest.mark.parametrize("length", [7, 16, 33])
def test_bytes_of_the_rows_are_the_bytes_of_the_text_that_is_in_them(source, tmp_path, tokenizer, length):
    config = config_of(source, tokenizer=tokenizer, vocab_size=400, length=length)
    corpus = prepare(config, tmp_path / "cache")
    for split, texts in zip(("train", "validation"), packing.documents(config, tmp_path / "cache"), strict=True):
        rows, sizes = getattr(corpus, split), []
        for text in texts:
            sizes += [*corpus.tokenizer.encode(text)[1].tolist(), 0]
        whole = len(sizes) // length * length
        expected = np.asarray(sizes[:whole]).reshape(-1, length).sum(axis=1)
        assert rows.num_bytes.tolist() == expected.tolist()
        dropped = corpus.manifest["splits"][split]["dropped_tokens"]
        assert dropped == len(sizes) - whole
        all_bytes = sum(len(text.encode("utf-8")) for text in texts)
        assert int(rows.num_bytes.sum()) + sum(sizes[whole:]) == all_bytes
        assert all_bytes != sum(len(text) for text in texts)  # characters are not bytes here
        assert corpus.manifest["splits"][split]["bytes"] == int(rows.num_bytes.sum())


def test_rows_with_a_whole_text_count_all_of_its_bytes(tmp_path):
    """Length divides the stream exactly: nothing is dropped, so rows and texts hold the same bytes."""
    texts = [f"{i:02d}日本" for i in range(20)]  # 2 + 6 bytes and end-of-text
    config = config_of(write_jsonl(tmp_path / "even.jsonl", texts), length=9)
    corpus = prepare(config, tmp_path / "cache")
    assert corpus.train.num_bytes.tolist() == [8] * 16
    assert corpus.validation.num_bytes.tolist() == [8] * 4
    assert corpus.manifest["splits"]["train"]["dropped_tokens"] == 0


@settings(max_examples=15, deadline=None, derandomize=True)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), min_size=1))
def test_flushing_often_changes_nothing(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flush")
    tokenizer, report = packing.tokenizers.make_tokenizer("bytes"), sources.Report()
    config = config_of("unused", length=4, segment_ids=True)
    texts = [*texts, "at least one row"]
    with pytest.MonkeyPatch.context() as patch:
        entries = []
        for name, tokens in (("often", 1), ("once", 1 << 20)):
            patch.setattr(packing, "_FLUSH_TOKENS", tokens)
            entries.append(packing._write_documents(folder / name, texts, tokenizer, config, report, True, 10.0))
    for name in ("tokens", "num_bytes", "document"):
        assert entries[0]["sha256"][name] == entries[1]["sha256"][name]
    assert entries[0]["dropped_tokens"] == entries[1]["dropped_tokens"] < config.length
    often, once = (np.load(folder / name / "segment_ids.npy") for name in ("often", "once"))
    assert np.array_equal(often, once)


def test_segment_ids_count_the_documents_of_a_row_from_zero(source, tmp_path):
    config = config_of(source, segment_ids=True, length=100)
    corpus = prepare(config, tmp_path / "cache")
    tokens, segments = np.asarray(corpus.train.tokens), np.asarray(corpus.train.segment_ids)
    ended = np.cumsum(tokens == EOS, axis=1)
    expected = np.concatenate([np.zeros((len(tokens), 1), int), ended[:, :-1]], axis=1)  # an end belongs to its text
    assert segments.tolist() == expected.tolist()
    assert segments.max() >= 1 and segments.tolist() != ended.tolist()
    middle = corpus.train.document - corpus.train.document[0]
    assert (np.diff(middle) >= 0).all() and middle.max() <= 23
    assert Batches(corpus.train, 2, 0)(0)["segment_ids"].shape == (2, 100)
    assert prepare(config_of(source), tmp_path / "other").train.segment_ids is None


def test_a_document_that_the_tokenizer_cannot_encode_is_reported_and_skipped(tmp_path):
    texts = [f"only letters and spaces {'abcdefghij'[i]}" for i in range(10)]
    path = write_jsonl(tmp_path / "t.jsonl", [*texts, "Capital"])
    lines = []
    corpus = prepare(config_of(path, tokenizer="text8"), tmp_path / "cache", say=lines.append)
    skipped = [line for line in lines if line.startswith("skipped")]
    assert len(skipped) == 1 and "character 'C' at 0: tokenizer 'text8'" in skipped[0]
    assert corpus.manifest["skipped"] and corpus.tokenizer.vocab_size == 27
    assert "Capital" not in "".join(corpus.tokenizer.decode(row) for row in corpus.train.tokens)


def test_long_documents_are_cut_between_characters():
    assert list(sources.cut("abc", 0)) == ["abc"]
    assert list(sources.cut("日本語x", 6)) == ["日本", "語x"]
    assert list(sources.cut("日本語x", 7)) == ["日本", "語x"]
    assert list(sources.cut("abcdef", 3)) == ["abc", "def"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1), limit=st.integers(4, 20))
def test_cut_pieces_are_short_and_join_to_the_document(text, limit):
    pieces = list(sources.cut(text, limit))
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode("utf-8")) <= limit for piece in pieces)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_limit_below_one_character_loses_no_text(limit):
    assert "".join(sources.cut("日x本é", limit)) == "日x本é"


def test_max_document_bytes_gives_more_and_shorter_documents(source, tmp_path):
    train, validation = packing.documents(config_of(source, max_document_bytes=40), tmp_path / "cache")
    texts = train + validation
    assert len(texts) > len(DOCUMENTS)
    assert max(len(text.encode("utf-8")) for text in texts) <= 40
    assert sum(map(len, texts)) == sum(map(len, DOCUMENTS))


# ---------------------------------------------------------------------------------------------- splitting


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_equal_documents_land_in_the_same_split(fraction, tmp_path):
    texts = [text for i in range(12) for text in [f"copy of number {i}, long enough to fill a row"] * (1 + i % 4)]
    config = config_of(write_jsonl(tmp_path / "t.jsonl", texts), validation_fraction=fraction)
    train, validation = packing.documents(config, tmp_path / "cache")
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == len(texts)
    # The variation: by position instead of content, copies end up on both sides for one of these fractions.
    last = dataclasses.replace(config, split="last")
    train, validation = packing.documents(last, tmp_path / "cache")
    assert validation == texts[-len(validation) :]


def test_splitting_by_position_separates_copies():
    train, validation = packing._split_texts(config_of("x", split="last"), ["same"] * 10).values()
    assert set(train) & set(validation) == {"same"}


def test_the_order_of_the_documents_in_the_file_does_not_matter(source, corpus, tmp_path):
    path = write_jsonl(tmp_path / "turned.jsonl", DOCUMENTS[::-1])
    turned = prepare(config_of(path), tmp_path / "cache2")
    assert same(turned, corpus) and turned.fingerprint == corpus.fingerprint
    last = prepare(config_of(path, split="last"), tmp_path / "cache3")
    assert not same(last, corpus)


def test_equal_documents_only_cannot_be_split(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", ["the same text again and again"] * 5)
    with pytest.raises(ValueError, match=r"^data\.source='.*t\.jsonl': all documents are equal"):
        prepare(config_of(path), tmp_path / "cache")


def test_a_single_document_cannot_be_split(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", ["alone"])
    with pytest.raises(ValueError, match=r"^data\.source='.*t\.jsonl': 1 document; .* at least 2 are needed"):
        prepare(config_of(path), tmp_path / "cache")


def test_a_split_without_a_whole_row_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", ["short", "also short"])
    with pytest.raises(ValueError, match=r"^data\.length=16: the (train|validation) documents .* fewer than one row"):
        prepare(config_of(path), tmp_path / "cache")


# ---------------------------------------------------------------------------------------------- reuse


def stamps(cache):
    return {str(path): path.stat().st_mtime_ns for path in cache.rglob("*.npy")}


def test_prepared_rows_are_reused(source, corpus, tmp_path, monkeypatch):
    before = stamps(tmp_path / "cache")
    monkeypatch.setattr(packing, "_write_documents", None)  # a second preparation would fail
    again = prepare(config_of(source), tmp_path / "cache")
    assert again.fingerprint == corpus.fingerprint and same(again, corpus)
    assert stamps(tmp_path / "cache") == before
    with pytest.raises(TypeError):
        prepare(config_of(source, length=17), tmp_path / "cache")


def test_an_edited_file_is_prepared_anew(source, corpus, tmp_path):
    write_jsonl(tmp_path / "texts.jsonl", [*DOCUMENTS[:-1], "something else, of about the same length as the others"])
    edited = prepare(config_of(source), tmp_path / "cache")
    assert edited.fingerprint != corpus.fingerprint
    text = "".join(edited.tokenizer.decode(row) for rows in (edited.train, edited.validation) for row in rows.tokens)
    assert "something else" in text


@pytest.mark.parametrize("name", ["train/tokens.npy", "validation/num_bytes.npy", "manifest.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_prepared_file_is_prepared_anew(source, corpus, tmp_path, name, damage):
    path = tmp_path / "cache" / name
    content = path.read_bytes()
    path.unlink()  # the old rows stay mapped
    if damage == "flip":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 0x80]) + content[-2:])
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    again = prepare(config_of(source), tmp_path / "cache")
    assert path.read_bytes() == content
    assert again.fingerprint == corpus.fingerprint and same(again, corpus)


@pytest.mark.parametrize(
    "change", [{"splits": []}, {"splits": {}}, {"skipped": [["x", "y"]]}, {"sha256": "0"}], ids=str
)
def test_a_changed_value_of_the_manifest_is_not_trusted(change, source, corpus, tmp_path):
    path = tmp_path / "cache" / "manifest.json"
    content = path.read_bytes()
    path.write_text(json.dumps({**json.loads(content), **change}))
    assert prepare(config_of(source), tmp_path / "cache").fingerprint == corpus.fingerprint
    assert path.read_bytes() == content


@pytest.mark.parametrize("escape", ["split", "array"])
def test_a_name_in_the_manifest_cannot_lead_out_of_the_cache(escape, source, corpus, tmp_path, monkeypatch):
    path = tmp_path / "cache" / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("sha256")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "cache" / "train", elsewhere)
    if escape == "split":
        content["splits"] = {"../elsewhere": content["splits"].pop("train"), **content["splits"]}
    else:
        digests = content["splits"]["train"]["sha256"]
        digests["../../elsewhere/tokens"] = digests.pop("tokens")
    path.write_text(json.dumps({**content, "sha256": packing.files.json_sha256(content)}))  # a forger knows how to sign
    opened = []
    monkeypatch.setattr(packing.files, "sha256", lambda place: opened.append(str(place)) or "")
    assert packing._open(tmp_path / "cache", content["key"], config_of(source)) is None
    assert not [place for place in opened if "elsewhere" in place]


def test_a_swapped_tokenizer_file_is_not_trusted(source, corpus, tmp_path):
    """A valid tokenizer.json of another tokenizer in the cache must not be used with these rows."""
    packing.tokenizers.save(packing.tokenizers.make_tokenizer("text8"), tmp_path / "cache" / "tokenizer.json")
    assert prepare(config_of(source), tmp_path / "cache").fingerprint == corpus.fingerprint


@pytest.mark.parametrize(
    "fields",
    [{"length": 17}, {"validation_fraction": 0.4}, {"tokenizer": "bpe", "vocab_size": 300}, {"max_document_bytes": 30},
     {"split": "last"}],
    ids=str,
)  # fmt: skip
def test_whatever_decides_the_rows_changes_the_fingerprint(source, corpus, tmp_path, fields):
    assert prepare(config_of(source, **fields), tmp_path / "cache2").fingerprint != corpus.fingerprint


def test_the_place_of_the_file_and_of_the_cache_do_not_matter(source, corpus, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = write_jsonl(tmp_path / "elsewhere" / "texts.jsonl", DOCUMENTS)
    moved = prepare(config_of(path, cache_dir="unused"), tmp_path / "cache2")
    assert moved.fingerprint == corpus.fingerprint and same(moved, corpus)


def test_the_report_names_sizes_and_the_corpus(source, tmp_path):
    lines = []
    prepare(config_of(source), tmp_path / "cache", say=lines.append)
    first = list(lines)
    prepare(config_of(source), tmp_path / "cache", say=lines.append)
    assert len(first) == 3 and lines[3:] == first
    assert first[0].startswith("train: 24 documents, ") and first[1].startswith("validation: 6 documents, ")
    assert first[2].startswith("corpus sha256 ") and first[2].endswith("vocabulary 257")
