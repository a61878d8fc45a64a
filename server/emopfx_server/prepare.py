"""A request's body, checked against the model, and turned into what the engine runs."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic_core import PydanticSerializationError

from emopfx_server.engine.engine import Engine
from emopfx_server.engine.interventions import Edit
from emopfx_server.engine.model import LoadedModel
from emopfx_server.engine.requests import Request, Target
from emopfx_server.engine.sampling import SamplingParams
from emopfx_server.ndif import capture_folder, capture_spec, edits
from emopfx_server.schemas import ApiError, CaptureDefaults, Generation

T = TypeVar("T")

_LARGE = 100_000  # characters or token ids, of which preparing takes a good part of a second
_LARGE_AT_ONCE = 2
_STRETCH = 8  # how many times its name a token's text may be long: one may stand for any unknown word


@dataclass(frozen=True)
class Job:
    """One HTTP request: as many runs as it has choices.

    Attributes:
        request_id: The client's name for it, or one that was made up.
        named: Whether it is the client's, who may come again with it.
        fingerprint: Tells this request from another under the same id.
        folder: What its files are under, if it captures.
        requests: One for each choice, by index; the choices of one prompt stand together.
        per_prompt: How many choices each prompt has.
        ignored: The fields of ``ndif`` that are not known.
    """

    request_id: str
    named: bool
    fingerprint: str
    folder: Path | None
    requests: list[Request]
    per_prompt: int
    ignored: list[str]


class Preparation:
    """Checks requests for one model.

    Args:
        engine: What will run them.
        root: The activation root.
        defaults: What is captured when a request does not say.
        seconds: The longest that any request may take to be generated.
    """

    def __init__(self, engine: Engine, root: Path, defaults: CaptureDefaults, seconds: float | None) -> None:
        self.engine = engine
        self.root = root
        self.defaults = defaults
        self._seconds = seconds
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._most_characters = _STRETCH * engine.context_length * max(map(len, engine.loaded.tokenizer.get_vocab()))

    async def apart(self, size: int, work: Callable[[], T]) -> T:
        """Prepare a request in a thread, so that the others go on meanwhile; large ones wait for each other.

        Args:
            size: The request's, in characters or token ids.
            work: What is to be done.
        """
        async with self._large if size > _LARGE else nullcontext():
            return await asyncio.to_thread(work)

    def job(self, body: Generation, prompts: Sequence[list[int]], params: SamplingParams) -> Job:
        """What to run for a request.

        With one choice, its files go to the folder that the request names; with more, each choice has a folder in it
        that is named by its index, and draws its tokens with the seed plus its index.

        Raises:
            ApiError: When it can't be run.
        """
        changes = edits(body.ndif, self.engine.loaded, self.root)
        fingerprint = _fingerprint(body, changes, self.engine.loaded)
        request_id = body.ndif.request_id or secrets.token_hex(12)
        seconds = min((limit for limit in (body.ndif.timeout, self._seconds) if limit is not None), default=None)
        spec = capture_spec(body.ndif, self.defaults, self.engine.loaded)
        folder = capture_folder(body.ndif, request_id, self.root) if spec is not None else None
        choices = [prompt for prompt in prompts for _ in range(body.n)]
        requests = []
        for index, prompt in enumerate(choices):
            alone = len(choices) == 1
            target = None
            if spec is not None and folder is not None:
                own = folder if alone else folder / str(index)
                target = Target(spec, own, fingerprint, body.ndif.config_hash)
            name = request_id if alone else f"{request_id}/{index}"
            requests.append(Request(name, prompt, replace(params, seed=params.seed + index), target, changes, seconds))
        named = body.ndif.request_id is not None
        return Job(request_id, named, fingerprint, folder, requests, body.n, body.ndif.ignored())

    def sampling(self, body: Generation, max_tokens: int) -> SamplingParams:
        """How a request's tokens are chosen.

        Raises:
            ApiError: 400 when it names tokens that the model does not have.
        """
        nothing_else = body.top_p == 0  # than the most likely token is in the nucleus
        biases = tuple((body.logit_bias or {}).items())
        self.check_tokens([token for token, _ in biases], "logit_bias")
        return SamplingParams(
            temperature=0 if nothing_else else body.temperature,
            top_p=body.top_p,
            seed=secrets.randbits(31) if body.seed is None else body.seed,
            max_tokens=max_tokens,
            stop=body.stops(),
            frequency_penalty=body.frequency_penalty,
            presence_penalty=body.presence_penalty,
            logit_bias=biases,
        )

    def check(self, body: Generation) -> None:
        """Check that a request is made of text, and asks for the model that is served.

        Raises:
            ApiError: 400 or 404 when it is not, or does not.
        """
        try:
            body.model_dump_json()
        except PydanticSerializationError as error:
            surrogates = "surrogates" in str(error)
            wrong = "holds half a surrogate pair, which is not Unicode text" if surrogates else "is nested too deeply"
            raise ApiError(400, f"The request {wrong}.") from error
        self.check_model(body.model)

    def check_model(self, name: str | None) -> None:
        """Check that a request asks for the model that is served.

        Raises:
            ApiError: 404 when it does not.
        """
        served = self.engine.loaded.name
        if name is not None and name != served:
            raise ApiError(
                404,
                f"The model {name!r} is not served here; this server serves {served!r}.",
                param="model",
                code="model_not_found",
            )

    def check_tokens(self, tokens: Sequence[int], param: str) -> None:
        """Check that the model has these tokens.

        Raises:
            ApiError: 400 when it has not.
        """
        size = self.engine.loaded.model.config.get_text_config().vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise ApiError(
                    400, f"{param}: the model's token ids go from 0 to {size - 1}, not {token}.", param=param
                )

    def check_choices(self, prompts: int, n: int) -> None:
        """Check that there is ever room for as many choices as a request has.

        Raises:
            ApiError: 400 when there is not.
        """
        most = self.engine.admission.most
        if prompts * n > most:
            raise ApiError(
                400,
                f"n: {prompts:,} × {n:,} choices are more than the {most:,} that this server takes at once.",
                param="n",
                code="too_many_choices",
            )

    def check_length(self, characters: int, param: str) -> None:
        """Check that a text may fit into the context, before it is turned into tokens.

        Raises:
            ApiError: 400 when it can't.
        """
        if characters > self._most_characters:
            raise ApiError(
                400,
                f"The prompt has {characters:,} characters, but prompt and answer share a context of "
                f"{self.engine.context_length:,} tokens.",
                param=param,
                code="context_length_exceeded",
            )

    def room(self, prompt_tokens: int, asked: int | None, param: str, field: str = "max_tokens") -> int:
        """How many tokens may follow the prompt.

        Args:
            prompt_tokens: The prompt's length.
            asked: How many were asked for.
            param: The field that holds the prompt.
            field: The field in which they were asked for.

        Raises:
            ApiError: 400 when none may, or fewer than were asked for.
        """
        context = self.engine.context_length
        room = context - prompt_tokens
        if room < 1 or (asked is not None and asked > room):
            wanted = f" and {field} is {asked:,}" if asked else ""
            raise ApiError(
                400,
                f"The prompt has {prompt_tokens:,} tokens{wanted}, but prompt and answer share a context of "
                f"{context:,} tokens.",
                param=param if room < 1 else field,
                code="context_length_exceeded",
            )
        return room


def _fingerprint(body: Generation, changes: tuple[Edit, ...], loaded: LoadedModel) -> str:
    """Tells a request from another one, by what changes the answer; fields that it does not know are left out.

    Vectors may lie in files, so what was read counts, and not only what was asked for. Another server may come to have
    the same folder, so its model counts too.
    """
    ndif = {"timeout", *body.ndif.ignored()}
    content = body.model_dump_json(exclude={"model": True, "stream": True, "stream_options": True, "ndif": ndif})
    content += json.dumps([edit.record() for edit in changes])
    content += json.dumps([loaded.name, loaded.revision, loaded.dtype])
    return hashlib.sha256(content.encode()).hexdigest()
