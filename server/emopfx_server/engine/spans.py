"""Requests on their way through the batch, and which rows of a step are whose."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation.continuous_batching.requests import RequestState

from emopfx_server.engine.capture import Capture
from emopfx_server.engine.interventions import Steered, Steering
from emopfx_server.engine.progress import Progress
from emopfx_server.engine.sampling import Sampler, SamplingParams, logprobs_of
from emopfx_server.engine.splitting import Share

_LOGPROB_ROWS = 64  # a prompt's rows over the vocabulary are turned into probabilities this many at a time


@dataclass(eq=False)
class Sequence:
    """A request on its way through the batch.

    Attributes:
        prompt: The prompt's token ids.
        sampler: Chooses its tokens.
        capture: Where its rows go, if it captures.
        steering: What is changed in its rows, if anything.
        stop_tokens: Token ids that end the answer.
        progress: What it has generated so far.
        batch_sizes: How many steps it ran in, by the number of requests in the step.
        stopped: Whether a stop text ended it.
        overflowed: Whether its interventions drove its activations out of bounds.
    """

    prompt: list[int]
    sampler: Sampler
    capture: Capture | None
    steering: Steering | None
    stop_tokens: list[int]
    progress: Progress = field(default_factory=Progress)
    batch_sizes: Counter[int] = field(default_factory=Counter)
    stopped: bool = False
    overflowed: bool = False


@dataclass(frozen=True)
class Span:
    """A sequence's part of the packed batch.

    Attributes:
        sequence: Whose rows they are.
        state: transformers' view of it.
        row: The first row.
        position: The first row's position in the sequence.
        length: How many rows.
        samples: Whether a token is chosen after the last one.
    """

    sequence: Sequence
    state: RequestState
    row: int
    position: int
    length: int
    samples: bool


def wants(span: Span) -> bool:
    """Whether some of a span's rows are captured."""
    capture = span.sequence.capture
    return capture is not None and capture.wants(span.position, span.length)


def share(span: Span, token_ids: list[int]) -> Share | None:
    """What of a step's rows goes to a span's capture; ``token_ids`` are the whole step's."""
    capture = span.sequence.capture
    ids = token_ids[span.row : span.row + span.length]
    return None if capture is None else Share(capture, span.row, span.position, ids)


def steered(span: Span) -> Steered | None:
    """What is changed in a span's rows."""
    steering = span.sequence.steering
    return None if steering is None else steering.within(span.row, span.position, span.length)


def given_up() -> Sequence:
    """What stands for a request that was dropped while its last step was prepared."""
    return Sequence([], Sampler(SamplingParams(0, 1, 0, 1)), None, None, [])


def _prompt_targets(span: Span) -> list[int]:
    """The prompt's tokens whose log probabilities this span's rows tell, each from the row before it."""
    sequence = span.sequence
    if not sequence.sampler.params.prompt_logprobs:
        return []
    known = len(sequence.progress.prompt_logprobs) + 1  # nothing comes before the first
    return sequence.prompt[max(known, span.position + 1) : span.position + span.length + 1]


def prompt_rows(spans: list[Span]) -> list[int]:
    """The rows of the packed batch that tell the prompts' log probabilities."""
    rows: list[int] = []
    for span in spans:
        count = len(_prompt_targets(span))
        first = span.row + len(span.sequence.progress.prompt_logprobs) - span.position
        rows.extend(range(first, first + count))
    return rows


def keep_logits(batch: dict[str, Any], rows: list[int]) -> None:
    """Have the model give these rows' logits, behind those of the next tokens."""
    indices = batch["logits_indices"]
    batch["logits_indices"] = torch.cat([indices, indices.new_tensor(rows)])
    if "logits_to_keep" in batch:
        batch["logits_to_keep"] = batch["logits_indices"]


def take_prompt_logprobs(logits: torch.Tensor, spans: list[Span]) -> None:
    """Note how likely the prompts' tokens were, from the logits of the rows that `prompt_rows` names."""
    row = 0
    for span in spans:
        targets = _prompt_targets(span)
        top = span.sequence.sampler.params.logprobs or 0
        for start in range(0, len(targets), _LOGPROB_ROWS):
            part = targets[start : start + _LOGPROB_ROWS]
            span.sequence.progress.prompt_logprobs += logprobs_of(logits[row : row + len(part)], part, top)
            row += len(part)


def take_logprobs(logits: torch.Tensor, sampling: list[Span], chosen: list[int]) -> None:
    """Note how likely the chosen tokens were, for the requests that ask."""
    rows = [row for row, span in enumerate(sampling) if span.sequence.sampler.params.logprobs is not None]
    if not rows:
        return
    top = max(sampling[row].sequence.sampler.params.logprobs or 0 for row in rows)
    for row, told in zip(rows, logprobs_of(logits[rows], [chosen[row] for row in rows], top), strict=True):
        sequence = sampling[row].sequence
        sequence.progress.logprobs.append({**told, "top": told["top"][: sequence.sampler.params.logprobs]})
