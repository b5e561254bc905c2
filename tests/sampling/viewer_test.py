"""The viewer: pieces are the whole text, frames follow the steps, and no text can break out of the page."""

import html.parser
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_jax.data.tokenizers import ByteTokenizer, CharacterTokenizer
from dlm_jax.sampling import viewer

BYTES = ByteTokenizer()
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
NASTY = [
    "</script><script>alert(1)</script>", "</SCRIPT >", "<!--", "<!--<script>", "-->", "]]>", "&lt;&amp;", '"', "'",
    "`", "\\", "\\\\", "<\\", "\\</script>", "\\u003c", "\u2028\u2029", "\x00\x1b[2J\x7f\x85", "\r\n\t", "{data}",
    "{title}", "${alert(1)}", "é€😀", "\ufffd", "",
]  # fmt: skip


def tokens_of(text):
    return BYTES.encode(text)[0]


# ------------------------------------------------------------------------------------------------------------ pieces


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12))
def test_pieces_of_any_text_are_one_a_token_and_together_the_text(text):
    found = viewer.pieces(tokens_of(text), BYTES.decode)
    assert len(found) == len(text.encode())
    assert "".join(found) == text
    # Every character sits whole in one piece, that of its last byte.
    ends = np.cumsum([len(character.encode()) for character in text], dtype=int) - 1
    assert [found[end] for end in ends] == list(text)
    if len(text) > 1:  # variation: other tokens are another text
        assert "".join(viewer.pieces(tokens_of(text)[:-4], BYTES.decode)) != text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 256), max_size=20))
def test_pieces_of_any_bytes_are_together_what_the_tokenizer_decodes(tokens):
    """Bytes that are no UTF-8, in the middle and at the end, and end-of-text."""
    found = viewer.pieces(tokens, BYTES.decode)
    assert len(found) == len(tokens)
    assert "".join(found) == BYTES.decode(tokens)


def test_the_bytes_of_a_character_are_empty_until_its_last_one():
    assert viewer.pieces(tokens_of("a€😀b"), BYTES.decode) == ["a", "", "", "€", "", "", "", "😀", "b"]
    # A character that stays unfinished is shown by the last token, and one before another text with that text.
    assert viewer.pieces(tokens_of("a€")[:-1], BYTES.decode) == ["a", "", "\ufffd"]
    assert viewer.pieces([*tokens_of("€")[:-1], 98], BYTES.decode) == ["", "", "\ufffdb"]
    assert viewer.pieces(tokens_of("abc"), BYTES.decode) != ["a", "", "bc"]  # variation


def test_pieces_of_characters_are_the_characters():
    letters = CharacterTokenizer("letters", "abc")
    assert viewer.pieces([2, 0, 1, 1], letters.decode) == list("cabb")
    assert viewer.pieces([2, 0, 3, 1], letters.decode) == ["c", "a", "", "b"]  # variation: the mask has no text


@pytest.mark.parametrize("words", [["do", "n't", "go"], ["in", "put", "s"]])
def test_pieces_are_the_whole_text_of_a_decoder_that_changes_what_it_wrote(words):
    """Word pieces: a space is put between words, and taken back before an apostrophe."""

    def decode(tokens):
        return " ".join(words[token] for token in tokens).replace(" n't", "n't").replace("in put", "input")

    found = viewer.pieces([0, 1, 2], decode)
    assert len(found) == 3
    assert "".join(found) == decode([0, 1, 2])
    assert "".join(found) != " ".join(words)  # variation: the decoder does change it


def test_a_last_token_that_changes_the_text_before_it_is_not_lost():
    def decode(tokens):
        return " ".join(["do", "n't"][token] for token in tokens).replace("do n't", "don't").replace("don", "Don")

    assert "".join(viewer.pieces([0, 1], decode)) == decode([0, 1]) == "Don't"


# ------------------------------------------------------------------------------------------------------ terminal


def plain(text):
    return ESCAPE.sub("", text)


@pytest.mark.parametrize(("step", "want"), [(-1, "░b░░"), (0, "ab░░"), (1, "ab░d"), (2, "abcd"), (9, "abcd")], ids=str)
def test_a_frame_hides_what_is_revealed_later(step, want):
    shown = viewer.frame(list("abcd"), [0, -1, 2, 1], step)
    assert plain(shown) == want
    if 0 <= step < 2:  # variation: other steps hide others
        assert plain(viewer.frame(list("abcd"), [2, -1, 0, 1], step)) != want


def test_a_frame_colours_by_step_and_leaves_frozen_tokens_plain():
    shown = viewer.frame(["<a>", "<b>", "<c>", "<d>"], [0, -1, 7, 7], 7)
    by_letter = {letter: int(colour) for colour, letter in re.findall(r"\x1b\[38;5;(\d+)m<(.)>\x1b\[0m", shown)}
    assert set(by_letter) == {"a", "c", "d"}
    assert by_letter["c"] == by_letter["d"] == 196 and by_letter["a"] == 27  # red last, blue first
    assert "<b>" in re.split(r"\x1b\[0m|\x1b\[38;5;\d+m", shown)
    # Variation: in one step all have one colour.
    assert len(set(re.findall(r"38;5;(\d+)m", viewer.frame(list("ab"), [0, 0], 0)))) == 1


@pytest.mark.parametrize("last", [0, 1, 13, 14, 15, 200])
def test_every_number_of_steps_has_colours(last):
    shown = viewer.frame(["x"] * (last + 1), list(range(last + 1)), last)
    colours = [int(colour) for colour in re.findall(r"38;5;(\d+)m", shown)]
    assert len(colours) == last + 1
    places = [viewer._TERMINAL_COLOURS.index(colour) for colour in colours]
    assert places == sorted(places)
    assert (len(set(colours)) == 1) == (last == 0)  # variation: more steps, more colours


def test_texts_and_steps_of_other_lengths_are_refused():
    with pytest.raises(ValueError):
        viewer.frame(["a", "b"], [0], 0)


def recorded(steps, **options):
    written, slept = [], []
    viewer.play(written.append, list("abcd"), np.asarray(steps), sleep=slept.append, **options)
    return written, slept


def test_play_on_a_terminal_shows_every_step_and_ends_with_all():
    written, slept = recorded([2, 0, -1, 1], seconds=6.0)
    screens = [plain(part).replace("\x1b[2J\x1b[H", "") for part in written]
    assert screens[:3] == ["step 0 of 3\n\n░░c░\n", "step 1 of 3\n\n░bc░\n", "step 2 of 3\n\n░bcd\n"]
    assert screens[-1] == "step 3 of 3\n\nabcd\n"
    assert sum(slept) == pytest.approx(6.0) and len(slept) == 3
    assert all(part.startswith("\x1b[2J\x1b[H") for part in written[:3])  # every screen is cleared first
    assert recorded([2, 0, -1, 1], seconds=6.0)[0] != recorded([0, 2, -1, 1], seconds=6.0)[0]  # variation


def test_play_without_a_terminal_writes_the_last_frame_only_and_does_not_wait():
    written, slept = recorded([2, 0, -1, 1], is_terminal=False)
    assert [plain(part) for part in written] == ["step 3 of 3\n\nabcd\n"]
    assert slept == []
    assert "\x1b[2J" not in written[0] and "\x1b[H" not in written[0]  # no screen to clear
    assert recorded([2, 0, -1, 1])[1] != []  # variation


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_sample_of_frozen_tokens_only_is_shown_at_once(is_terminal):
    written, slept = recorded([-1, -1, -1, -1], is_terminal=is_terminal)
    assert written[-1] == "step 0 of 0\n\nabcd\n" and slept == []
    assert recorded([-1, -1, -1, 0], is_terminal=is_terminal)[0][-1] != written[-1]  # variation


# ---------------------------------------------------------------------------------------------------------- the page


class Page(html.parser.HTMLParser):
    """What a browser sees: tags with attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.words, self._inside = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", {}))
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        else:
            self.words.append(data)


def embedded(page):
    """The literal that the script assigns to `samples`."""
    found = re.search(r"^const samples = (.*);$", Page(page).scripts[0], re.MULTILINE)
    return found[1]


def as_script_reads(literal):
    r"""The value of a literal as JavaScript reads it: like JSON, and `\!` is `!`."""
    return json.loads(re.sub(r"(?<!\\)((?:\\\\)*)\\!", r"\1!", literal))


SAMPLES = [("first", ["a", "é", ""], [0, -1, 1]), ("second", ["b"], np.asarray([3]))]


def test_a_page_holds_one_script_with_the_samples_and_nothing_from_outside():
    page = viewer.page(SAMPLES, title="A & B")
    seen = Page(page)
    assert page.startswith("<!doctype html>") and 'charset="utf-8"' in page
    assert len(seen.scripts) == 1
    assert [tag for tag, _ in seen.tags].count("h1") == 1 and "A & B" in seen.words
    for tag, attributes in seen.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "href", "srcset", "action", "background"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    for outside in (
        "http:",
        "https:",
        "//cdn",
        "url(",
        "@import",
        "fetch(",
        "XMLHttp",
        "import(",
        "WebSocket",
        "eval(",
    ):
        assert outside not in page
    assert "innerHTML" not in page and "document.write" not in page
    assert as_script_reads(embedded(page)) == [
        {"label": "first", "texts": ["a", "é", ""], "steps": [0, -1, 1]},
        {"label": "second", "texts": ["b"], "steps": [3]},
    ]
    assert viewer.page(SAMPLES[:1]) != viewer.page(SAMPLES)  # variation


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
def test_no_text_breaks_out_of_the_script_and_all_survive(nasty):
    harmless = Page(viewer.page([("label", ["x", "y"], [0, 1])]))
    for label, texts in ((nasty, ["x"]), ("label", [nasty, nasty]), ("label", [*nasty, "x"])):
        page = viewer.page([(label, texts, [0] * len(texts))])
        seen = Page(page)
        assert seen.tags == harmless.tags and seen.words == harmless.words
        (value,) = as_script_reads(embedded(page))
        assert (value["label"], value["texts"]) == (label, texts)
        literal = embedded(page).lower()
        assert "</" not in literal and "<!--" not in literal
        assert not [c for c in literal if ord(c) < 32]
    # Variation: the same text put there as it is would be seen.
    if "</script>" in nasty and "\\" not in nasty:
        raw = Page(page.replace(embedded(page), json.dumps([nasty])))
        assert raw.tags != harmless.tags


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("<>!-/\\\"'sScript&;{}\u2028\n \x00aé"), max_size=10), min_size=1, max_size=4))
def test_any_texts_survive(texts):
    harmless = Page(viewer.page([("", ["x"], [0])]))
    page = viewer.page([("", texts, range(len(texts)))])
    assert Page(page).tags == harmless.tags
    assert as_script_reads(embedded(page))[0]["texts"] == texts


def test_what_is_embedded_is_json():
    for nasty in NASTY:
        assert json.loads(embedded(viewer.page([("", [nasty], [0])])))[0]["texts"] == [nasty]


@pytest.mark.parametrize("title", ["</title><script>alert(1)</script>", "<b>", '"quoted"', "&amp;"], ids=ascii)
def test_a_title_is_text(title):
    harmless, seen = Page(viewer.page(SAMPLES, title="x")), Page(viewer.page(SAMPLES, title=title))
    assert seen.tags == harmless.tags
    assert seen.words.count(title) == harmless.words.count("x") >= 1
    assert Page(viewer.page(SAMPLES, title="<b>").replace("&lt;b&gt;", "<b>")).tags != harmless.tags  # variation


def test_a_title_takes_no_samples_in():
    page = viewer.page([("", ["<img src=x onerror=alert(1)>"], [0])], title="{data}")
    assert "img" not in [tag for tag, _ in Page(page).tags]
