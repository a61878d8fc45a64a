"""Text that comes in pieces is the text that comes at once."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from emopfx_server.engine.text import Decoding, Detokenizer, cut, held_back, token_bytes
from emopfx_server.tiny.tokenizer import build as tokenizer_of_tiny
from tests.server.serving import byte_tokenizer

BYTES = byte_tokenizer()


def stream(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stop: Sequence[str]) -> list[str]:
    """Feed tokens until a stop text appears, as the engine does."""
    detokenizer = Detokenizer(tokenizer, stop)
    pieces, text = [], ""
    for count, token in enumerate(tokens, 1):
        pieces.append(detokenizer.feed([token]))
        text = tokenizer.decode(tokens[:count], skip_special_tokens=True)
        if any(ending in text for ending in stop):
            break
    return [*pieces, detokenizer.finish([], cut(text, stop))]


@given(st.lists(st.integers(0, 255)))
def test_any_bytes_come_out_as_they_would_at_once(tokens: list[int]) -> None:
    assert "".join(stream(BYTES, tokens, [])) == BYTES.decode(tokens)


@given(st.text(alphabet="ab é漢🙂", max_size=20), st.lists(st.text(alphabet="ab é漢🙂", min_size=1, max_size=3)))
def test_no_piece_holds_half_a_character_or_a_part_of_a_stop_text(text: str, stop: list[str]) -> None:
    pieces = stream(BYTES, BYTES.encode(text), stop)
    ends = [text.index(ending) + len(ending) for ending in stop if ending in text]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == cut(text[: min(ends, default=len(text))], stop)


@given(st.text(max_size=20))
def test_tokens_have_their_bytes_and_their_places(text: str) -> None:
    tokens = BYTES.encode(text)
    assert b"".join(token_bytes(BYTES, token) or b"" for token in tokens).decode() == text
    decoding = Decoding(BYTES)
    decoding.feed(tokens)
    assert decoding.offsets == [place for place, character in enumerate(text) for _ in character.encode()]


def test_special_tokens_are_not_decoded_again_with_those_that_follow() -> None:
    tokenizer = tokenizer_of_tiny()
    special, tom = tokenizer.all_special_ids[0], tokenizer.encode("Tom has", add_special_tokens=False)
    decoding = Decoding(tokenizer)
    decoding.feed([special] * 3 + tom[:1] + [special] + tom[1:])
    assert decoding.text == "Tom has"
    assert decoding.offsets == [0, 0, 0, 0, 3, 3]
    assert len(decoding._tokens) == 2


def test_words_have_no_bytes_of_their_own() -> None:
    tokenizer = tokenizer_of_tiny()
    assert token_bytes(tokenizer, tokenizer.encode("Tom", add_special_tokens=False)[0]) is None


def test_pieces_come_as_soon_as_they_are_sure() -> None:
    assert stream(BYTES, BYTES.encode("a🙂b"), []) == ["a", "", "", "", "🙂", "b", ""]
    assert stream(BYTES, BYTES.encode("a<en<end>b"), ["<end>"]) == ["a", "", "", "", "<en", *[""] * 5]


def test_words_keep_their_spaces() -> None:
    tokenizer = tokenizer_of_tiny()
    text = "Tom has 12 apples, and he's calm."
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(stream(tokenizer, tokens, [])) == text


@pytest.mark.parametrize(
    ("text", "stop", "held"),
    [("abc", ["cd"], 1), ("abc", ["x"], 0), ("abcd", ["cd"], 2), ("aab", ["abx", "bx"], 2), ("abcd", ["b"], 3)],
)
def test_what_is_held_back(text: str, stop: list[str], held: int) -> None:
    assert held_back(text, stop) == held
