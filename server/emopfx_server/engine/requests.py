"""What the engine is asked, and what it answers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emopfx_server.engine.capture import CaptureSpec
from emopfx_server.engine.interventions import Edit
from emopfx_server.engine.sampling import SamplingParams, TokenLogprob
from emopfx_server.engine.writer import Committed, FileEntry


@dataclass(frozen=True)
class Target:
    """What to capture of a request, and where it goes.

    Attributes:
        spec: What is captured.
        folder: Where the files are to be.
        fingerprint: Tells this request from another under the same id.
        config_hash: The experiment's, recorded with the files.
    """

    spec: CaptureSpec
    folder: Path
    fingerprint: str
    config_hash: str | None


@dataclass(frozen=True)
class Request:
    """A request that has been checked and can be run.

    Attributes:
        request_id: Names it and its files.
        prompt: The prompt's token ids.
        params: How its tokens are chosen.
        target: What to capture, if anything.
        edits: What to change in its activations.
        seconds: How long it may take until all is generated, the wait for its turn included.
    """

    request_id: str
    prompt: list[int]
    params: SamplingParams
    target: Target | None
    edits: tuple[Edit, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        text: The answer, without the stop text that ended it.
        finish_reason: ``stop`` or ``length``.
        prompt_tokens: The prompt's length.
        completion_tokens: How many tokens were generated, the end-of-text token among them.
        seed: The seed its tokens were drawn with.
        created: When it was done, in Unix seconds.
        logprobs: The log probabilities of the tokens that the text is made of, if they were asked for.
        prompt_logprobs: Those of the prompt's tokens from the second on, if they were asked for.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seed: int
    created: int
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """An answer with what was written of it.

    Attributes:
        answer: The answer.
        record: The files' metadata, or what there is to say without files.
        files: The committed files.
        replayed: Whether it had been answered before.
    """

    answer: Answer
    record: dict[str, Any]
    files: list[FileEntry]
    replayed: bool


def outcome_of(committed: Committed) -> Outcome:
    """What a folder tells of the request whose files it holds."""
    answer = Answer(**committed.record["answer"])
    return Outcome(answer, committed.record, committed.files, replayed=committed.found)
