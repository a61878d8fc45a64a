"""From tokens to text, while they come: never half a character, never a part of a stop text."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + index): byte for index, byte in enumerate(_OTHERS)}
"""The characters that stand for bytes in the tokens of byte-level tokenizers, since GPT-2's."""


class Decoding:
    """A text that grows with its tokens, by whole characters only.

    Args:
        tokenizer: The model's.
        special: Whether special tokens have a text.

    Attributes:
        text: What the tokens so far say for sure.
        offsets: How many characters of it came before each token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, special: bool = False) -> None:
        self.text = ""
        self.offsets: list[int] = []
        self._tokenizer = tokenizer
        self._silent = frozenset() if special else frozenset(tokenizer.all_special_ids)
        self._special = special
        self._tokens: list[int] = []
        self._start = 0  # of the tokens that are decoded again, so that a token's text may depend on the one before
        self._read = 0  # how many tokens the text is made of

    def feed(self, tokens: Sequence[int]) -> None:
        """Add tokens."""
        for token in tokens:
            self.offsets.append(len(self.text))
            if token in self._silent:  # it would be decoded again with every token that follows
                continue
            self._tokens.append(token)
            before = self._decode(self._tokens[self._start : self._read])
            now = self._decode(self._tokens[self._start :])
            if len(now) > len(before) and not now.endswith(UNFINISHED):
                self.text += now[len(before) :]
                self._start, self._read = self._read, len(self._tokens)

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=not self._special)
        return text


class Detokenizer:
    """The text of an answer as its tokens come; all pieces together are the text that is decoded at the end.

    Args:
        tokenizer: The model's.
        stop: Texts that end the answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._decoding = Decoding(tokenizer)
        self._stop = stop
        self.sent = 0

    @property
    def offsets(self) -> list[int]:
        """How many characters of the answer came before each token."""
        return self._decoding.offsets

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that can be sent now that these tokens have come too."""
        self._decoding.feed(tokens)
        text = self._decoding.text
        return self._send(text, len(text) - held_back(text, self._stop))

    def finish(self, tokens: Sequence[int], text: str) -> str:
        """The rest of an answer, given its last tokens and its whole text."""
        self._decoding.feed(tokens)
        return self._send(text, len(text))

    def _send(self, text: str, end: int) -> str:
        piece = text[self.sent : end]
        self.sent = max(self.sent, end)
        return piece


def within(offsets: Sequence[int], length: int) -> int:
    """How many tokens begin in the first ``length`` characters of a text."""
    return bisect_left(offsets, length)


def cut(text: str, stop: Sequence[str]) -> str:
    """A text up to its first stop text."""
    return text[: min((at for ending in stop if (at := text.find(ending)) >= 0), default=len(text))]


def held_back(text: str, stop: Sequence[str]) -> int:
    """How many characters at a text's end belong to a stop text, or may turn out to."""
    whole = len(text) - len(cut(text, stop))
    if whole:
        return whole
    beginnings = (size for ending in stop for size in range(1, len(ending)) if text.endswith(ending[:size]))
    return max(beginnings, default=0)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """One token's own text, the space before a word included."""
    text: str = tokenizer.decode([token])
    piece = tokenizer.convert_ids_to_tokens(token)
    return f" {text}" if str(piece).startswith("▁") and not text.startswith(" ") else text


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes | None:
    """One token's own bytes if the tokenizer's tokens are made of bytes, also where they are a part of a character."""
    decoder = tokenizer.backend_tokenizer.decoder if tokenizer.is_fast else None
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if decoder is None or b'"ByteLevel"' not in decoder.__getstate__() or not _BYTES.keys() >= set(piece):
        return None
    return bytes(_BYTES[character] for character in piece)


def row_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """Each token's text as it reads after the one before it: some tokenizers drop a leading space."""
    alone: list[str] = tokenizer.batch_decode([[token] for token in token_ids])
    pairs = tokenizer.batch_decode([list(pair) for pair in pairwise(token_ids)])
    return alone[:1] + [pair[len(before) :] for pair, before in zip(pairs, alone, strict=False)]
