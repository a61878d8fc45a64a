"""``POST /v1/chat/completions``: messages turned into a prompt, and the answer in OpenAI's shape."""

from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from emopfx_server.answering import Piece
from emopfx_server.engine.model import LoadedModel
from emopfx_server.engine.requests import Outcome, Request
from emopfx_server.engine.sampling import TokenLogprob
from emopfx_server.logprobs import chat_logprobs
from emopfx_server.prepare import Job, Preparation
from emopfx_server.schemas import ApiError, ChatRequest, Message

DEFAULT_MAX_TOKENS = 2048


class ChatShape:
    """How a chat completion is written down.

    Args:
        loaded: The model.
        logprobs: Whether log probabilities were asked for.
    """

    prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def __init__(self, loaded: LoadedModel, *, logprobs: bool) -> None:
        self._tokenizer = loaded.tokenizer
        self._wants_logprobs = logprobs

    def choice(self, index: int, request: Request, outcome: Outcome) -> dict[str, Any]:
        """A whole answer."""
        answer = outcome.answer
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "finish_reason": answer.finish_reason,
            "logprobs": self._logprobs(answer.logprobs),
        }

    def opening(self, index: int, request: Request) -> dict[str, Any]:
        """What a stream begins an answer with."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of an answer."""
        logprobs = self._logprobs(piece.logprobs)
        return {"index": index, "delta": {"content": piece.text}, "logprobs": logprobs, "finish_reason": None}

    def ending(self, index: int, outcome: Outcome) -> dict[str, Any]:
        """What a stream ends an answer with."""
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": outcome.answer.finish_reason}

    def completion_tokens(self, outcome: Outcome) -> int:
        """How many generated tokens count: all."""
        return outcome.answer.completion_tokens

    def _logprobs(self, told: list[TokenLogprob]) -> dict[str, Any] | None:
        return chat_logprobs(self._tokenizer, told) if self._wants_logprobs else None


def chat_job(preparation: Preparation, body: ChatRequest) -> tuple[Job, ChatShape]:
    """What to run for a chat request, and how to write it down.

    Raises:
        ApiError: When it can't be run.
    """
    loaded = preparation.engine.loaded
    preparation.check(body)
    _refuse_unsupported(body)
    preparation.check_choices(1, body.n)
    preparation.check_length(body.size(), "messages")
    prompt = tokenize(loaded, body.messages)
    asked = body.max_completion_tokens or body.max_tokens
    field = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
    room = preparation.room(len(prompt), asked, "messages", field)
    params = preparation.sampling(body, asked or min(room, DEFAULT_MAX_TOKENS))
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    job = preparation.job(body, [prompt], replace(params, logprobs=logprobs))
    return job, ChatShape(loaded, logprobs=bool(body.logprobs))


def tokenize(loaded: LoadedModel, messages: list[Message]) -> list[int]:
    """The prompt's token ids, by the chat template of the model's tokenizer.

    Raises:
        ApiError: 400 when the tokenizer has no template, or the template refuses the messages.
    """
    if not loaded.tokenizer.chat_template:
        raise ApiError(400, f"The tokenizer of {loaded.name!r} has no chat template.", param="messages")
    roles = {"developer": "system"}
    turns = [{"role": roles.get(message.role, message.role), "content": message.text()} for message in messages]
    try:
        text = loaded.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ApiError(400, f"The model's chat template refuses these messages: {error}.", param="messages") from error
    ids: list[int] = loaded.tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise ApiError(400, "The messages come to no tokens at all.", param="messages")
    return ids


def _refuse_unsupported(body: ChatRequest) -> None:
    for field in ("tools", "functions"):
        if getattr(body, field):
            raise ApiError(400, f"{field}: this server calls no tools; leave the field out.", param=field)
    if body.tool_choice not in (None, "none", "auto"):
        raise ApiError(400, "tool_choice: this server calls no tools; leave the field out.", param="tool_choice")
    if any(message.tool_calls for message in body.messages):
        raise ApiError(400, "messages: this server calls no tools; leave tool_calls out.", param="messages")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs to be true.", param="top_logprobs")
