"""Log probabilities in the shapes of OpenAI's two APIs."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from emopfx_server.engine.sampling import TokenLogprob
from emopfx_server.engine.text import UNFINISHED, token_bytes, token_text

_LEAST = -9999.0  # what OpenAI's API says of a token that can't be; JSON has no infinity


def chat_logprobs(tokenizer: PreTrainedTokenizerBase, told: Sequence[TokenLogprob]) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat completion."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = token_text(tokenizer, token)
        content = token_bytes(tokenizer, token) if UNFINISHED in text else text.encode()
        return {"token": text, "logprob": max(logprob, _LEAST), "bytes": content and list(content)}

    content = [
        {**entry(one["token"], one["logprob"]), "top_logprobs": [entry(*likely) for likely in one["top"]]}
        for one in told
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: PreTrainedTokenizerBase,
    told: Sequence[TokenLogprob],
    offsets: Sequence[int],
    *,
    first: int | None = None,
) -> dict[str, Any]:
    """``choices[].logprobs`` of a plain completion.

    Args:
        tokenizer: The model's.
        told: The tokens, with their log probabilities.
        offsets: Where in the text each token begins, the first one's too if it is given.
        first: The token before them, of which nothing is known: the prompt's first.
    """
    tokens = [token_text(tokenizer, one["token"]) for one in told]
    values: list[float | None] = [max(one["logprob"], _LEAST) for one in told]
    top: list[dict[str, float] | None] = [_by_text(tokenizer, one) for one in told]
    if first is not None:
        tokens, values, top = [token_text(tokenizer, first), *tokens], [None, *values], [None, *top]
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": top, "text_offset": list(offsets)}


def _by_text(tokenizer: PreTrainedTokenizerBase, one: TokenLogprob) -> dict[str, float]:
    """The most likely tokens and the one that was chosen. Of tokens with one text, the likeliest stands."""
    found: dict[str, float] = {}
    for token, logprob in [*one["top"], (one["token"], one["logprob"])]:
        found.setdefault(token_text(tokenizer, token), max(logprob, _LEAST))
    return found
