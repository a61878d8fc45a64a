"""From tokens to text, while they come: never half a character, never a part of a stop text."""

from collections.abc import Sequence
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"


class Detokenizer:
    """The text of an answer as its tokens come; all pieces together are the text that is decoded at the end.

    Args:
        tokenizer: The model's.
        stop: Texts that end the answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._tokens: list[int] = []
        self._start = 0  # of the tokens that are decoded again, so that a token's text may depend on the one before
        self._read = 0  # how many tokens the text so far is made of
        self._text = ""
        self._sent = 0

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that can be sent now that these tokens have come too."""
        for token in tokens:
            self._tokens.append(token)
            before = self._decode(self._tokens[self._start : self._read])
            now = self._decode(self._tokens[self._start :])
            if len(now) > len(before) and not now.endswith(UNFINISHED):
                self._text += now[len(before) :]
                self._start, self._read = self._read, len(self._tokens)
        return self._send(len(self._text) - held_back(self._text, self._stop))

    def finish(self, text: str) -> str:
        """The rest of an answer's whole text."""
        self._text = text
        return self._send(len(text))

    def _send(self, end: int) -> str:
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


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


def row_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """Each token's text as it reads after the one before it: some tokenizers drop a leading space."""
    alone: list[str] = tokenizer.batch_decode([[token] for token in token_ids])
    pairs = tokenizer.batch_decode([list(pair) for pair in pairwise(token_ids)])
    return alone[:1] + [pair[len(before) :] for pair, before in zip(pairs, alone, strict=False)]
