"""Tokenizers round trip exactly, count bytes exactly, and say what they refuse."""

import functools
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlm_jax.data import tokenizers
from dlm_jax.data.tokenizers import END_OF_TEXT, make_tokenizer, train_bpe

JAPANESE = "吾輩は猫である。名前はまだ無い。"
TEXTS = ["the cat sat on the mat", "the dog and the cat", JAPANESE, "a\tb\n\n  c", "naïve café €5 👩‍👩‍👧"] * 4
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@functools.cache
def bpe():
    return train_bpe(TEXTS, 300)


def tokenizer(name):
    return bpe() if name == "bpe" else make_tokenizer(name)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=UNICODE)
@example(text="")
@example(text=JAPANESE)
@example(text=f"before{END_OF_TEXT}after</s>[MASK]")
@example(text=" \n\t \r\n ")
@example(text="\x00\ufeff\U0010ffff")
def test_any_unicode_text_comes_back_exactly(name, text):
    chosen = tokenizer(name)
    tokens, sizes = chosen.encode(text)
    assert chosen.decode(tokens) == text
    assert tokens.dtype == sizes.dtype == np.int32 and len(tokens) == len(sizes)
    assert int(sizes.sum()) == len(text.encode("utf-8"))
    assert not len(tokens) or 0 <= tokens.min() <= tokens.max() < chosen.vocab_size
    assert chosen.special.eos not in tokens
    if len(tokens):
        assert chosen.decode(tokens[:-1]) != text


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_text_that_looks_like_end_of_text_is_plain_text(name):
    chosen = tokenizer(name)
    tokens, _ = chosen.encode(END_OF_TEXT)
    assert len(tokens) > 1 and chosen.special.eos not in tokens
    assert chosen.decode(tokens) == END_OF_TEXT
    assert chosen.decode([chosen.special.eos]) == ""
    assert chosen.decode([*tokens, chosen.special.eos, *tokens]) == 2 * END_OF_TEXT


@pytest.mark.parametrize(
    ("name", "vocab_size", "special"),
    [("bytes", 257, (257, 256, 256, 256)), ("text8", 27, (27, None, 0, 27)), ("letters", 3, (3, None, 0, 3))],
)
def test_the_ids_of_the_built_in_tokenizers(name, vocab_size, special):
    chosen = make_tokenizer(name)
    ids = chosen.special
    assert chosen.vocab_size == vocab_size
    assert (ids.mask, ids.eos, ids.pad, ids.bos) == special


def test_the_mask_is_the_id_after_the_vocabulary():
    assert bpe().special.mask == bpe().vocab_size == 300
    assert bpe().special.eos < bpe().vocab_size


def test_text8_round_trips_its_alphabet_and_names_what_it_does_not_know():
    chosen = make_tokenizer("text8")
    text = "the quick brown fox jumps over the lazy dog"
    tokens, sizes = chosen.encode(text)
    assert chosen.decode(tokens) == text and int(sizes.sum()) == len(text)
    with pytest.raises(ValueError, match=r"^character 'C' at 4: tokenizer 'text8' knows only 'abc.*xyz '$"):
        chosen.encode("the Cat")
    with pytest.raises(ValueError, match="character '猫' at 0"):
        chosen.encode("猫")


def test_letters_has_as_many_letters_as_asked_for():
    chosen = make_tokenizer("letters", num_letters=5)
    assert chosen.decode(chosen.encode("edcba")[0]) == "edcba"
    with pytest.raises(ValueError, match="character 'f' at 1: tokenizer 'letters' knows only 'abcde'"):
        chosen.encode("af")


def test_bytes_that_are_not_utf8_become_the_replacement_character():
    assert make_tokenizer("bytes").decode([0xE5, 0x90]) == "\ufffd"


def test_bpe_learns_from_its_texts():
    text = "the cat sat on the mat"
    assert len(bpe().encode(text)[0]) < len(text.encode()) / 2
    assert len(bpe().encode("QZXJ VWQK")[0]) > 5


@pytest.mark.parametrize("name", ["bytes", "text8", "letters", "bpe"])
def test_a_saved_tokenizer_is_the_same_after_loading(name, tmp_path):
    chosen, text = tokenizer(name), "abcacb"
    tokenizers.save(chosen, tmp_path / "tokenizer.json")
    loaded = tokenizers.load(tmp_path / "tokenizer.json")
    assert loaded.vocab_size == chosen.vocab_size and loaded.special == chosen.special
    assert np.array_equal(loaded.encode(text)[0], chosen.encode(text)[0])
    assert tokenizers.sha256(loaded) == tokenizers.sha256(chosen)
    others = [tokenizer(other) for other in ("bytes", "text8", "letters", "bpe") if other != name]
    assert tokenizers.sha256(chosen) not in [tokenizers.sha256(other) for other in others]


def test_a_tokenizer_json_is_used_by_its_path(tmp_path):
    path = tmp_path / "mine.json"
    tokenizers.save(bpe(), path)
    assert make_tokenizer(str(path)).decode(bpe().encode(JAPANESE)[0]) == JAPANESE


DAMAGED = {
    "not json": b"{not json",
    "cut short": None,
    "not utf-8": b"\xff\xfe\x00",
    "no model": b"{}",
    "a list": b"[1, 2]",
    "a number": b"3",
    "empty": b"",
    "characters without alphabet": json.dumps({"dlm_jax": "characters", "name": "x"}).encode(),
    "alphabet that is no text": json.dumps({"dlm_jax": "characters", "name": "x", "alphabet": 7}).encode(),
    "unknown kind": json.dumps({"dlm_jax": "runes"}).encode(),
    "nested too deeply": b"[" * 10**5 + b"]" * 10**5,
    "panic of the library": json.dumps(
        {
            "model": {"type": "BPE", "vocab": {}, "merges": []},
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        }
    ).encode(),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_tokenizer_json_is_refused_in_one_line_that_names_it(kind, tmp_path):
    path = tmp_path / "damaged.json"
    content = DAMAGED[kind]
    if content is None:
        tokenizers.save(bpe(), path)
        content = path.read_bytes()[:-100]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.json: not ") as caught:
        tokenizers.load(path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_json_without_a_token_for_what_is_unknown_says_so(tmp_path):
    words = {"type": "WordLevel", "vocab": {"the": 0, "cat": 1}, "unk_token": "[UNK]"}
    (tmp_path / "words.json").write_text(json.dumps({"model": words, "pre_tokenizer": {"type": "Whitespace"}}))
    tokenizer = tokenizers.load(tmp_path / "words.json")
    assert tokenizer.encode("the cat")[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"\[UNK\]"):
        tokenizer.encode("the dog")


def test_another_tokenizer_than_the_one_that_was_saved_is_refused(tmp_path):
    saved = tokenizers.CharacterTokenizer("x", "abc")
    tokenizers.save(saved, tmp_path / "t.json")
    assert tokenizers.load(tmp_path / "t.json", tokenizers.sha256(saved)).alphabet == "abc"
    tokenizers.save(tokenizers.CharacterTokenizer("x", "acb"), tmp_path / "t.json")
    with pytest.raises(ValueError, match=r"t\.json: not the tokenizer that was saved there"):
        tokenizers.load(tmp_path / "t.json", tokenizers.sha256(saved))


def test_an_unknown_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^data\.tokenizer='byte': must be one of bytes, text8, letters, bpe, or"):
        make_tokenizer("byte")
    with pytest.raises(FileNotFoundError, match=r"^data\.tokenizer='.*none\.json': no such file$"):
        make_tokenizer(str(tmp_path / "none.json"))
