"""``POST /v1/completions``: bare prompts as text or token ids, and the answers in OpenAI's older shape."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

from emopfx_server.answering import Piece
from emopfx_server.engine.model import LoadedModel
from emopfx_server.engine.requests import Answer, Outcome, Request
from emopfx_server.engine.text import Decoding
from emopfx_server.logprobs import completion_logprobs
from emopfx_server.prepare import Job, Preparation
from emopfx_server.schemas import ApiError, CompletionRequest


class CompletionShape:
    """How a plain completion is written down.

    Args:
        loaded: The model.
        body: What was asked for.
    """

    prefix = "cmpl"
    whole = "text_completion"
    chunk = "text_completion"

    def __init__(self, loaded: LoadedModel, body: CompletionRequest) -> None:
        self._tokenizer = loaded.tokenizer
        self._given = [prompt for prompt in _prompts(body) for _ in range(body.n)]
        self._echo = bool(body.echo)
        self._wants_logprobs = body.logprobs is not None
        self._prompt_only = body.max_tokens == 0

    def choice(self, index: int, request: Request, outcome: Outcome) -> dict[str, Any]:
        """A whole answer, behind the prompt if that was asked for."""
        answer = outcome.answer
        text = "" if self._prompt_only else answer.text
        logprobs = self._logprobs(index, request, answer) if self._wants_logprobs else None
        if self._echo:
            text = self._prompt(index) + text
        reason = "length" if self._prompt_only else answer.finish_reason
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, request: Request, answer: Answer) -> dict[str, Any]:
        """Those of the answer's tokens, behind the prompt's if they were asked for."""
        told = [] if self._prompt_only else answer.logprobs
        answered = Decoding(self._tokenizer)
        answered.feed([one["token"] for one in told])
        if not self._echo:
            return completion_logprobs(self._tokenizer, told, answered.offsets)
        begin = len(self._prompt(index))
        offsets = [*self._prompt_offsets(index), *(begin + offset for offset in answered.offsets)]
        told = [*answer.prompt_logprobs, *told]
        return completion_logprobs(self._tokenizer, told, offsets, first=request.prompt[0])

    def opening(self, index: int, request: Request) -> dict[str, Any]:
        """What a stream begins an answer with: the prompt, if that was asked for."""
        text = self._prompt(index) if self._echo else ""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of an answer."""
        logprobs = None
        if self._wants_logprobs:
            logprobs = completion_logprobs(self._tokenizer, piece.logprobs, piece.offsets)
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": None}

    def ending(self, index: int, outcome: Outcome) -> dict[str, Any]:
        """What a stream ends an answer with."""
        return {"index": index, "text": "", "logprobs": None, "finish_reason": outcome.answer.finish_reason}

    def completion_tokens(self, outcome: Outcome) -> int:
        """How many generated tokens count: none when only the prompt was asked about."""
        return 0 if self._prompt_only else outcome.answer.completion_tokens

    def _prompt(self, index: int) -> str:
        """The prompt as it was given, or what its token ids say."""
        given = self._given[index]
        text: str = given if isinstance(given, str) else self._tokenizer.decode(given)
        return text

    def _prompt_offsets(self, index: int) -> list[int]:
        """How many characters of the prompt came before each of its tokens."""
        given = self._given[index]
        if isinstance(given, str) and self._tokenizer.is_fast:
            spans = self._tokenizer(given, return_offsets_mapping=True)["offset_mapping"]
            # A token begins where the one before ended, though some tokenizers leave the space between them out; or
            # with it, where both are of one character.
            return [0, *(min(start, end) for (_, end), (start, _) in pairwise(spans))]
        decoding = Decoding(self._tokenizer, special=True)
        decoding.feed(self._tokenizer.encode(given) if isinstance(given, str) else given)
        return decoding.offsets


def completion_job(preparation: Preparation, body: CompletionRequest) -> tuple[Job, CompletionShape]:
    """What to run for a plain completion, and how to write it down.

    Raises:
        ApiError: When it can't be run.
    """
    loaded = preparation.engine.loaded
    preparation.check(body)
    _refuse_unsupported(body)
    given = _prompts(body)
    preparation.check_choices(len(given), body.n)
    prompts = [_tokens(preparation, prompt) for prompt in given]
    for prompt in prompts:
        preparation.room(len(prompt), body.max_tokens, "prompt")
    # There is no answer without a token; the one that nobody asked for is left out of what is written down.
    params = preparation.sampling(body, max(1, body.max_tokens))
    told = replace(params, logprobs=body.logprobs, prompt_logprobs=bool(body.echo) and body.logprobs is not None)
    return preparation.job(body, prompts, told), CompletionShape(loaded, body)


def _prompts(body: CompletionRequest) -> list[str] | list[list[int]]:
    if isinstance(body.prompt, str):
        return [body.prompt]
    if all(isinstance(token, int) for token in body.prompt):
        return [[token for token in body.prompt if isinstance(token, int)]]
    return body.prompt  # type: ignore[return-value]  # a list of one kind, which mypy can't tell


def _tokens(preparation: Preparation, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        preparation.check_length(len(prompt), "prompt")
        tokens: list[int] = preparation.engine.loaded.tokenizer.encode(prompt)
    else:
        preparation.check_tokens(prompt, "prompt")
        tokens = prompt
    if not tokens:
        raise ApiError(400, "prompt: comes to no tokens at all.", param="prompt")
    return tokens


def _refuse_unsupported(body: CompletionRequest) -> None:
    if body.suffix:
        raise ApiError(400, "suffix: this server only writes on; leave the field out.", param="suffix")
    if body.best_of is not None and body.best_of != body.n:
        raise ApiError(400, "best_of: every answer is given, so it must equal n.", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens: 0 needs echo, or there is nothing to answer.", param="max_tokens")
    if body.stream and body.echo and (body.max_tokens == 0 or body.logprobs is not None):
        raise ApiError(400, "stream: a prompt's log probabilities can't be streamed.", param="stream")
