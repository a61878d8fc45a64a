"""The request bodies of the HTTP API, and the error that every refusal is."""

import sys
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


LayerIndex = Annotated[int, BeforeValidator(_no_truth)]
Layers = Literal["all"] | str | list[LayerIndex]
Positions = Literal["all", "prompt", "generated", "last_prompt", "last"] | Annotated[list[str], Field(min_length=1)]
EditPositions = Literal["all", "prompt", "generated", "last_prompt"] | Annotated[list[str], Field(min_length=1)]
EditKind = Literal["add", "scale", "zero", "replace"]
CaptureDtype = Literal["bfloat16", "float16", "float32", "model"]

_LARGEST = sys.float_info.max


class ApiError(Exception):
    """A refusal or failure, sent in OpenAI's error shape.

    Args:
        status: The HTTP status code.
        message: One sentence that says what was wrong, where, and what is allowed.
        param: The request field at fault, dotted.
        code: A short machine-readable name.
        retry_after: Seconds after which trying again makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The error as a JSON object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _default_for_null(default: float) -> BeforeValidator:
    """OpenAI clients send null for "the default"."""
    return BeforeValidator(lambda value: default if value is None else value)


class TextPart(BaseModel):
    """A content part; text is the only kind there is."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    tool_calls: list[Any] | None = Field(None, exclude=True)

    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class CaptureDefaults(BaseModel):
    """What is captured when a request does not say: the server-wide defaults."""

    model_config = ConfigDict(extra="forbid")

    capture: bool = True
    layers: Layers = "all"
    hook_points: list[str] = Field(min_length=1)
    positions: Positions = "all"
    dtype: CaptureDtype = "bfloat16"


class CaptureChanges(BaseModel):
    """New server-wide capture defaults; a field left out keeps its value."""

    model_config = ConfigDict(extra="forbid")

    capture: bool | None = None
    layers: Layers | None = None
    hook_points: Annotated[list[str], Field(min_length=1)] | None = None
    positions: Positions | None = None
    dtype: CaptureDtype | None = None


def _read_vector(value: Any) -> Any:
    numbers = isinstance(value, list) and all(type(item) in (int, float) and abs(item) <= _LARGEST for item in value)
    if value is None or isinstance(value, str) or (numbers and value):
        return value
    raise ValueError("a vector is a list of finite numbers, or 'file.safetensors#tensor' in the server's data folder")


class Intervention(BaseModel):
    """A change to a request's own activations at one hook point, made while the model computes.

    ``add`` adds ``scale`` × ``vector``, ``replace`` puts ``scale`` × ``vector`` in place, ``scale`` multiplies by
    ``scale``, ``zero`` sets to zero. ``positions`` are those of the tokens whose activations are changed.
    """

    model_config = ConfigDict(extra="forbid")

    kind: EditKind
    layer: LayerIndex
    hook_point: str = "output"
    vector: Annotated[str | list[float] | None, BeforeValidator(_read_vector)] = None
    scale: float | None = Field(None, allow_inf_nan=False)
    positions: EditPositions = "all"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        takes_vector = self.kind in ("add", "replace")
        if takes_vector != (self.vector is not None):
            raise ValueError(f"{self.kind!r} {'needs a' if takes_vector else 'takes no'} vector")
        if self.kind == "scale" and self.scale is None:
            raise ValueError("'scale' needs a scale")
        if self.kind == "zero" and self.scale is not None:
            raise ValueError("'zero' takes no scale")
        return self


class Ndif(BaseModel):
    """The request field ``ndif``: what to capture and to change of this request, and where to put its files.

    Fields that are not known are accepted, and the answer names them.
    """

    model_config = ConfigDict(extra="allow")

    capture: bool | None = None
    request_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$",
        description="a name: the same request under it again is given the same answer, from its files where it "
        "captures, or else from the server's memory, which ends with the server",
    )
    save_dir: str = Field("requests", min_length=1)
    per_request_subdir: bool = True
    layers: Layers | None = None
    hook_points: Annotated[list[str], Field(min_length=1)] | None = None
    positions: Positions | None = None
    dtype: CaptureDtype | None = None
    config_hash: str | None = Field(None, max_length=256)
    timeout: float | None = Field(None, gt=0, description="seconds within which all must be generated")
    interventions: list[Intervention] = Field([], max_length=1000)

    def ignored(self) -> list[str]:
        """The fields that are not known."""
        return sorted(self.model_extra or {})


class StreamOptions(BaseModel):
    """What a stream tells besides the answer."""

    include_usage: bool | None = None


Stop = Annotated[str, Field(max_length=256)]


class Generation(BaseModel):
    """What chat and plain completions share. Fields that are not known are accepted and ignored."""

    model: str | None = None
    temperature: Annotated[float, _default_for_null(1.0)] = Field(1.0, ge=0, le=2)
    top_p: Annotated[float, _default_for_null(1.0)] = Field(1.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: Annotated[int, _default_for_null(1)] = Field(1, ge=1, le=128)
    frequency_penalty: Annotated[float, _default_for_null(0.0)] = Field(0.0, ge=-2, le=2)
    presence_penalty: Annotated[float, _default_for_null(0.0)] = Field(0.0, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ndif: Annotated[Ndif, BeforeValidator(lambda value: {} if value is None else value)] = Field(default_factory=Ndif)

    def stops(self) -> tuple[str, ...]:
        """The stop strings, empty ones left out."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in stops if text)


class ResponseFormat(BaseModel):
    """The form of the answer; text is the only one there is."""

    type: Literal["text"]


class ChatRequest(Generation):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = Field(None, exclude=True)

    def size(self) -> int:
        """How much there is to be turned into tokens, in characters."""
        return sum(len(message.text()) for message in self.messages)


def _of_one_kind(prompt: Any) -> Any:
    """Of a prompt that is of no kind at all, pydantic says what is wrong with it as each of the kinds."""
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and set(map(type, prompt)) in _PROMPT_KINDS):
        raise ValueError("give a text, a list of token ids, or a list of either")
    if set(map(type, prompt)) != {int} and not isinstance(prompt, str) and len(prompt) > _MOST_PROMPTS:
        raise ValueError(f"give at most {_MOST_PROMPTS:,} prompts")
    return prompt


_PROMPT_KINDS: tuple[set[type], ...] = ({str}, {int}, {list})
_MOST_PROMPTS = 1024
_Prompt = str | list[int] | list[str] | list[list[int]]


class CompletionRequest(Generation):
    """The body of ``POST /v1/completions``: one prompt or several, as text or as token ids."""

    prompt: Annotated[_Prompt, BeforeValidator(_of_one_kind)]
    max_tokens: Annotated[int, _default_for_null(16)] = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def size(self) -> int:
        """How much there is to be turned into tokens, in characters or token ids."""
        if isinstance(self.prompt, str):
            return len(self.prompt)
        return sum(1 if isinstance(part, int) else len(part) for part in self.prompt)
