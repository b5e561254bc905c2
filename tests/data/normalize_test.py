"""Normalised text: what each step does and in which order, what a terminology table replaces, and which are refused."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax.config import DataConfig
from dlm_jax.data import normalize, packing
from dlm_jax.data.normalize import make_normalizer

EOS = 256
ALL_STEPS = ("nfkc", "casefold", "whitespace")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text(
    st.sampled_from(" \t\r\n\x85\u2028\u3000\u200baZＡ１ÅİıßΣςﬁ℃㌔①ﾃﾞｶﾞがネ猫Ж"), max_size=30
)
FEW = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.fixture
def table(tmp_path):
    """Returns a function: text or bytes of a terminology table -> its path."""

    def write(content, name="terms.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return str(path)

    return write


# ---------------------------------------------------------------------------------------------- steps

EXAMPLES = [
    ("nfkc", "ＡＢＣ１２３！", "ABC123!"),
    ("nfkc", "ﾃﾞｰﾀﾍﾞｰｽ", "データベース"),
    ("nfkc", "ｶﾞﾗｽとﾊﾟﾝ", "ガラスとパン"),
    ("nfkc", "か\u3099き", "がき"),
    ("nfkc", "Ａ ﬁne ﬂow", "A fine flow"),
    ("nfkc", "①㈱㎏㌔", "1(株)kgキロ"),
    ("nfkc", "全角１　空白", "全角1 空白"),
    ("casefold", "ABC ÀÉ ДОМ", "abc àé дом"),
    ("casefold", "Straße", "strasse"),
    ("casefold", "ネコとCAT", "ネコとcat"),
    ("casefold", "ＡＢＣ", "ａｂｃ"),
    ("whitespace", "a  b\t\tc", "a b c"),
    ("whitespace", "全角　　空白", "全角 空白"),
    ("whitespace", " left and right \n next ", "left and right\nnext"),
    ("whitespace", "\n\n a\n\n b\n\n", "a\n\nb"),
    ("whitespace", "dos\r\nlines\r\n", "dos\nlines"),
]


@pytest.mark.parametrize(("step", "before", "after"), EXAMPLES)
def test_a_step_does_what_it_says_and_no_other_step_does(step, before, after):
    assert make_normalizer((step,))(before) == after
    others = [name for name in normalize.STEPS if name != step]
    assert all(make_normalizer((name,))(before) != after for name in others)


@pytest.mark.parametrize(
    ("step", "text"),
    [("nfkc", "漢字とかな、plain ASCII"), ("casefold", "小文字 only ascii"), ("whitespace", "a\n\nb c\u200bd")],
)
def test_a_step_leaves_text_alone_that_is_normal_already(step, text):
    assert make_normalizer((step,))(text) == text
    assert make_normalizer((step,))(text + " Ａ ") != text + " Ａ "


@FEW
@given(TEXTS)
def test_no_steps_and_no_table_change_nothing(text):
    assert make_normalizer()(text) == text == make_normalizer((), "")(text)
    assert make_normalizer(("nfkc",))(text + "Ａ") != text + "Ａ"


@pytest.mark.parametrize(
    ("steps", "want"),
    [(("nfkc", "casefold"), "°c"), (("casefold", "nfkc"), "°C"), (("casefold",), "℃"), (("nfkc",), "°C")],
)
def test_steps_are_applied_in_the_order_given(steps, want):
    assert make_normalizer(steps)("℃") == want
    assert make_normalizer(("nfkc", "casefold"))("℃") != make_normalizer(("casefold", "nfkc"))("℃")


def is_idempotent(clean, text):
    return clean(clean(text)) == clean(text)


@pytest.mark.parametrize("step", ALL_STEPS)
@FEW
@given(text=TEXTS)
def test_a_second_pass_of_a_step_changes_nothing(step, text):
    assert is_idempotent(make_normalizer((step,)), text)


def test_a_table_that_swaps_two_terms_is_not_idempotent(table):
    """The variation of the test above: the same check rejects it."""
    assert not is_idempotent(make_normalizer((), table("cat,dog\ndog,cat\n")), "a cat")
    assert is_idempotent(make_normalizer((), table("cat,dog\n")), "a cat")


@FEW
@given(TEXTS)
def test_whitespace_leaves_no_run_of_blanks_and_no_blank_at_the_end_of_a_line(text):
    clean = make_normalizer(("whitespace",))
    for line in clean(text + "x  y").split("\n"):
        assert line == line.strip() and not re.search(r"\s\s", line)
    assert clean(text).split() == text.split()  # words stay what they are
    assert re.search(r"\s\s", text + "x  y")


# ---------------------------------------------------------------------------------------------- terminology


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize(
    ("rows", "text", "want", "shortest_first"),
    [
        (
            ["data base,DB", "data base management,DBM"],
            "data base management of a data base", "DBM of a DB", "DB management of a DB",
        ),
        (["機械学習,ML", "機械学習モデル,学習器"], "機械学習モデルと機械学習", "学習器とML", "MLモデルとML"),
        (["東京,Tokyo", "東京都,Metropolis", "京都,Kyoto"], "東京都と京都と東京", "MetropolisとKyotoとTokyo", ""),
    ],
)  # fmt: skip
def test_the_longest_variant_wins_wherever_it_stands_in_the_table(turn, rows, text, want, shortest_first, table):
    found = make_normalizer((), table("\n".join(rows[::turn])))(text)
    assert found == want != shortest_first


@pytest.mark.parametrize(
    ("rows", "text", "want", "by_turns"),
    [
        ("a,b\nb,c\n", "a b a", "b c b", "c c c"),
        ("cat,dog\ndog,cat\n", "cat dog", "dog cat", "cat cat"),
        ("猫,犬\n犬,鳥\n", "猫と犬", "犬と鳥", "鳥と鳥"),
    ],
)
def test_a_replacement_is_never_replaced_again(rows, text, want, by_turns, table):
    assert make_normalizer((), table(rows))(text) == want != by_turns


@pytest.mark.parametrize(
    ("rows", "text", "want"),
    [
        ("cat,feline\n", "cat, cats concat (cat) cat's Cat", "feline, cats concat (feline) feline's Cat"),
        ("naïve,simple\n", "naïve naïvely", "simple naïvely"),
        ("кот,кошка\n", "кот котик скот", "кошка котик скот"),
        ("v1,first\n", "v1 v10 rev1", "first v10 rev1"),
        ("C++,cpp\n", "C++ C++; VC++", "cpp cpp; VC++"),
        ("a.b,c\n", "a.b axb aa.b", "c axb aa.b"),
        ("new york,NYC\n", "new york new yorker", "NYC new yorker"),
    ],
)
def test_a_word_of_a_spaced_script_is_replaced_as_a_whole_only(rows, text, want, table):
    found = make_normalizer((), table(rows))(text)
    variant, canonical = rows.strip().split(",")
    assert found == want != text.replace(variant, canonical)


@pytest.mark.parametrize(
    ("rows", "text", "want"),
    [
        ("猫,ネコ\n", "吾輩は猫である。子猫も。", "吾輩はネコである。子ネコも。"),
        ("ユーザ様,利用者\n", "全ユーザ様へ", "全利用者へ"),
        ("お問合せ,お問い合わせ\n", "まずお問合せください", "まずお問い合わせください"),
    ],
)
def test_a_japanese_term_is_replaced_inside_running_text(rows, text, want, table):
    assert make_normalizer((), table(rows))(text) == want
    # Variation: a table of the same form with a Latin word does not reach inside a word.
    assert make_normalizer((), table("cat,neko\n"))("concatenated") == "concatenated"


def test_a_latin_word_is_replaced_between_japanese_characters(table):
    assert make_normalizer((), table("WEB,Web\n"))("このWEBサイトはWEB、") == "このWebサイトはWeb、"


def test_a_term_that_is_right_already_is_not_replaced_inside(table):
    text = "サーバとサーバー"
    assert make_normalizer((), table("サーバ,サーバー\nサーバー,サーバー\n"))(text) == "サーバーとサーバー"
    assert make_normalizer((), table("サーバ,サーバー\n"))(text) == "サーバーとサーバー"
    assert make_normalizer((), table("サーバ,計算機\n"))(text) == "計算機と計算機ー"  # variation: no such term


def test_variants_are_matched_after_the_steps_and_canonical_forms_are_kept_as_written(table):
    path = table("ＣＰＵ,プロセッサ\nNew　 York,ＮＹＣ\n")
    text = "The cpu and ＣＰＵ of NEW \t york"
    assert make_normalizer(ALL_STEPS, path)(text) == "the プロセッサ and プロセッサ of ＮＹＣ"
    assert make_normalizer((), path)(text) == "The cpu and プロセッサ of NEW \t york"  # variation: without the steps


@pytest.mark.parametrize(
    "content",
    [
        "colour,color\n",
        "colour,color",
        "variant,canonical\ncolour,color\n",
        " variant , canonical \ncolour,color\n",
        "\ufeffvariant,canonical\ncolour,color\n",
        "\ufeffcolour,color\n",
        "colour,color\r\n\r\n\r\n",
        "\n\ncolour,color\n\n",
        "  colour ,\tcolor \n",
        '"colour","color"\n',
        "colour,color\ncolour,color\n",
        "colour,color\n colour, color\n",
    ],
    ids=repr,
)
def test_headers_marks_blanks_quotes_and_repeated_rows_do_not_matter(content, table):
    clean = make_normalizer((), table(content))
    assert clean("colour of a variant") == "color of a variant"
    assert make_normalizer((), table(content.replace("colour", "color")))("colour") == "colour"


def test_a_header_is_a_header_in_the_first_row_only(table):
    assert make_normalizer((), table("colour,color\nvariant,canonical\n"))("a variant") == "a canonical"
    assert make_normalizer((), table("variant,canonical\ncolour,color\n"))("a variant") == "a variant"


def test_cells_may_hold_commas_and_canonical_forms_may_be_empty(table):
    path = table('"a,b",c\n社外秘,\n')
    assert make_normalizer((), path)("a,b と社外秘です") == "c とです"
    assert make_normalizer((), path)("a b と社内秘です") == "a b と社内秘です"


# content that is refused, what the message says after the path, and the same table repaired
REFUSED = {
    "two canonical forms": ("a,b\nc,d\na,e\n", ":3: 'a' has two canonical forms, 'b' and 'e'", "a,b\nc,d\na,b\n"),
    "two forms of 猫": ("猫,ネコ\n猫,ねこ\n", ":2: '猫' has two canonical forms, 'ネコ' and 'ねこ'", "猫,ネコ\n"),
    "two forms after a row of two lines": ('a,b\n"c\nd",e\na,f\n', ":4: 'a' has two", 'a,b\n"c\nd",e\n'),
    "one column": ("a,b\nalone\n", r":2: must be two columns, variant and canonical, not \['alone'\]", "a,b\n"),
    "three columns": ("variant,canonical\na,b,c\n", ":2: must be two columns", "variant,canonical\na,b\n"),
    "three columns in a header": ("variant,canonical,note\na,b\n", ":1: must be two columns", "a,b\n"),
    "another separator": ("a;b\n", ":1: must be two columns", "a,b\n"),
    "no variant": ("a,b\n ,c\n", ":2: must be two columns", "a,b\n"),
    "nothing": ("", ": holds no terms; must be lines of variant,canonical", "a,b\n"),
    "blank lines": ("\n\n", ": holds no terms", "\n\na,b\n"),
    "a header alone": ("\ufeffvariant,canonical\n", ": holds no terms", "variant,canonical\na,b\n"),
    "not UTF-8": (b"a,b\n\x83\x66,c\n", ": not UTF-8 at byte 4", "a,b\nデ,c\n"),
    "UTF-16": ("a,b\n".encode("utf-16"), ": not UTF-8 at byte 0", "a,b\n"),
    "an endless cell": ("a," + "b" * 140_000 + "\n", ": not CSV: field larger than field limit", "a,bb\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_cannot_be_used_is_refused_with_file_and_line(name, table):
    content, message, repaired = REFUSED[name]
    path = table(content)
    with pytest.raises(ValueError, match=f"^{re.escape(path)}{message}"):
        make_normalizer((), path)
    assert make_normalizer((), table(repaired))("x") == "x"


def test_rows_that_only_the_steps_make_equal_and_conflicting_are_refused_too(table):
    path = table("ＣＰＵ,processor\ncpu,chip\n")
    assert make_normalizer((), path)("cpu") == "chip"
    with pytest.raises(ValueError, match="two canonical forms"):
        make_normalizer(("nfkc", "casefold"), path)


def test_a_missing_table_is_named(tmp_path, table):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"^data.terminology={re.escape(repr(str(path)))}: no such file"):
            make_normalizer((), str(path))
    assert make_normalizer((), table("a,b\n"))("a") == "b"


def test_an_unknown_step_is_refused_by_the_configuration():
    with pytest.raises(ValueError, match=r"data\.normalize='upper': must be one of nfkc, casefold, whitespace"):
        DataConfig(source="x", normalize=("nfkc", "upper"))
    assert DataConfig(source="x", normalize=ALL_STEPS).normalize == ALL_STEPS


def test_the_digest_changes_with_whatever_may_change_the_text(table):
    path = table("a,b\n")
    first = normalize.digest(("nfkc",), path)
    assert normalize.digest(("nfkc",), table("a,b\n", "moved.csv")) == first
    others = [
        normalize.digest(("nfkc",), table("a,c\n", "edited.csv")),
        normalize.digest(("nfkc",), ""),
        normalize.digest(("casefold",), path),
        normalize.digest((), path),
        normalize.digest(("nfkc", "casefold"), path),
        normalize.digest(("casefold", "nfkc"), path),
        normalize.digest((), ""),
    ]
    assert len({json.dumps(one) for one in [first, *others]}) == 1 + len(others)
    assert normalize.digest((), "") == [[], ""]


# ---------------------------------------------------------------------------------------------- prepared rows

DOCUMENTS = [
    f"文書{i}：ﾃﾞｰﾀﾍﾞｰｽの  Ｃolour {i * 37}、吾輩は猫である。ＡＢＣ and the colour of ﬁre\tno {i}" for i in range(20)
]


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "texts.jsonl", DOCUMENTS)


def write_jsonl(path, documents):
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents))
    return str(path)


def config_of(source, **fields):
    return DataConfig(**{"source": source, "length": 16, "validation_fraction": 0.3, **fields})


def prepare(config, cache):
    return packing.prepare(config, cache, quiet=True, say=lambda line: None)


def text_of(corpus):
    """All bytes of the rows of both splits, the ends of documents left out."""
    tokens = np.concatenate([np.asarray(rows.tokens).ravel() for rows in (corpus.train, corpus.validation)])
    return bytes(tokens[tokens < EOS].astype(np.uint8)).decode("utf-8", errors="replace")


def test_prepared_rows_are_the_normalised_documents_wrapped(source, table, tmp_path):
    path = table("colour,color\n猫,ネコ\n")
    config = config_of(source, normalize=ALL_STEPS, terminology=path)
    corpus = prepare(config, tmp_path / "cache")
    train, validation = packing.documents(config, tmp_path / "cache")
    want = [
        f"文書{i}:データベースの color {i * 37}、吾輩はネコである。abc and the color of fire no {i}" for i in range(20)
    ]
    assert sorted(train + validation) == sorted(want)
    for rows, texts in ((corpus.train, train), (corpus.validation, validation)):
        stream = [token for text in texts for token in [*text.encode("utf-8"), EOS]]
        assert rows.tokens.ravel().tolist() == stream[: len(stream) // 16 * 16]
    plain = prepare(dataclasses.replace(config, normalize=(), terminology=""), tmp_path / "other")
    assert plain.fingerprint != corpus.fingerprint and "colour" in text_of(plain)
    assert "colour" not in text_of(corpus)


@pytest.mark.parametrize("fields", [{"normalize": ("nfkc",)}, {"normalize": ("casefold",)}, {"terminology": True}])
def test_each_option_alone_changes_the_rows(fields, source, table, tmp_path):
    if "terminology" in fields:
        fields = {"terminology": table("猫,ネコ\n")}
    plain = prepare(config_of(source), tmp_path / "cache")
    changed = prepare(config_of(source, **fields), tmp_path / "cache")  # the same cache: nothing stale is read
    assert changed.fingerprint != plain.fingerprint
    again = prepare(config_of(source), tmp_path / "cache")
    assert again.fingerprint == plain.fingerprint and text_of(again) == text_of(plain) != text_of(changed)


def test_rows_are_prepared_anew_when_the_table_is_edited_and_only_then(source, table, tmp_path, monkeypatch):
    config = config_of(source, terminology=table("猫,ネコ\n"))
    first = prepare(config, tmp_path / "cache")
    assert "ネコ" in text_of(first) and "猫" not in text_of(first)
    table("猫,ねこ\n")
    edited = prepare(config, tmp_path / "cache")
    assert "ねこ" in text_of(edited) and "ネコ" not in text_of(edited)
    assert edited.fingerprint != first.fingerprint
    monkeypatch.setattr(packing, "_write_documents", None)  # a second preparation would fail
    assert prepare(config, tmp_path / "cache").fingerprint == edited.fingerprint
    moved = config_of(source, terminology=table("猫,ねこ\n", "moved.csv"))
    assert prepare(moved, tmp_path / "cache").fingerprint == edited.fingerprint
    table("猫,ネコ\n")
    with pytest.raises(TypeError):
        prepare(config, tmp_path / "cache")


def test_a_table_that_is_damaged_later_is_refused_and_not_answered_from_the_cache(source, table, tmp_path):
    config = config_of(source, terminology=table("猫,ネコ\n"))
    prepare(config, tmp_path / "cache")
    path = table("猫,ネコ\n猫,ねこ\n")
    with pytest.raises(ValueError, match=f"^{re.escape(path)}:2: '猫' has two canonical forms"):
        prepare(config, tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        prepare(dataclasses.replace(config, terminology=str(tmp_path / "none.csv")), tmp_path / "cache")


def test_without_normalisation_rows_and_key_are_what_they_were_before_it_existed(source, tmp_path):
    config = config_of(source)
    corpus = prepare(config, tmp_path / "cache")
    train, validation = packing.documents(config, tmp_path / "cache")
    assert sorted(train + validation) == sorted(DOCUMENTS)
    stream = [token for text in train for token in [*text.encode("utf-8"), EOS]]
    assert corpus.train.tokens.ravel().tolist() == stream[: len(stream) // 16 * 16]
    decisive = dataclasses.asdict(config)
    for name in ("source", "cache_dir", "transition", "normalize", "terminology"):
        decisive.pop(name)
    digest = packing.sources.open_source(config, tmp_path / "cache", packing.sources.Report()).digest
    text = json.dumps([packing._FORMAT, digest, decisive], sort_keys=True)
    assert corpus.manifest["key"] == hashlib.sha256(text.encode()).hexdigest()
    normalised = prepare(config_of(source, normalize=("nfkc",)), tmp_path / "cache")
    assert normalised.manifest["key"] != corpus.manifest["key"]


def test_documents_that_become_empty_are_dropped(table, tmp_path):
    texts = [*DOCUMENTS, "社外秘", "社外秘 社外秘", "社外秘\n"]
    config = config_of(write_jsonl(tmp_path / "t.jsonl", texts), terminology=table("社外秘,\n"))
    train, validation = packing.documents(config, tmp_path / "cache")
    assert sorted(train + validation) == sorted(DOCUMENTS)
    entries = prepare(config, tmp_path / "cache").manifest["splits"]
    assert entries["train"]["documents"] + entries["validation"]["documents"] == len(DOCUMENTS)
    # Variation: without the table they are documents like others.
    train, validation = packing.documents(dataclasses.replace(config, terminology=""), tmp_path / "cache")
    assert len(train + validation) == len(texts)


def test_a_corpus_that_becomes_empty_is_refused(table, tmp_path):
    config = config_of(write_jsonl(tmp_path / "t.jsonl", ["社外秘"] * 9), terminology=table("社外秘,\n"))
    with pytest.raises(ValueError, match=r"^data\.source='.*t\.jsonl': 0 document; .* at least 2 are needed"):
        prepare(config, tmp_path / "cache")
    table("社外秘,社外秘\n")
    with pytest.raises(ValueError, match="all documents are equal"):
        prepare(config, tmp_path / "cache")


def test_documents_are_cut_after_they_are_normalised(tmp_path):
    source = write_jsonl(tmp_path / "t.jsonl", ["Ａ" * 30 + str(i) for i in range(9)])  # 91 bytes, then 31
    cut = config_of(source, normalize=("nfkc",), max_document_bytes=40)
    assert sum(map(len, packing.documents(cut, tmp_path / "cache"))) == 9
    plain = dataclasses.replace(cut, normalize=())
    assert sum(map(len, packing.documents(plain, tmp_path / "cache"))) > 9


def test_documents_that_normalisation_makes_equal_land_in_the_same_split(tmp_path):
    pairs = [text for i in range(20) for text in (f"Document {i} and ABC", f"Document {i} and ＡＢＣ")]
    config = config_of(write_jsonl(tmp_path / "t.jsonl", pairs), normalize=("nfkc",))
    train, validation = packing.documents(config, tmp_path / "cache")
    assert not set(train) & set(validation) and len(train + validation) == 40
    train, validation = packing.documents(dataclasses.replace(config, normalize=()), tmp_path / "cache")
    halves = [{text.replace("ＡＢＣ", "ABC") for text in split} for split in (train, validation)]
    assert halves[0] & halves[1]  # variation: told apart, some of them are separated
