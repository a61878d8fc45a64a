"""Choosing the next token, each request by its own settings and random numbers, and telling how likely it was."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch


@dataclass(frozen=True)
class SamplingParams:
    """How a request's tokens are chosen.

    Attributes:
        temperature: 0 is greedy.
        top_p: The probability mass of the nucleus; 1 is everything.
        seed: Seeds the request's own random numbers, one a token.
        max_tokens: The most tokens the answer may have.
        stop: Texts that end the answer.
        frequency_penalty: Taken from a token's logit for every time the answer has it already.
        presence_penalty: Taken from a token's logit if the answer has it already.
        logit_bias: Added to the logits of these token ids.
        logprobs: How many of the most likely tokens are told at every position, or None for no log probabilities.
        prompt_logprobs: Whether the prompt's log probabilities are told too.
    """

    temperature: float
    top_p: float
    seed: int
    max_tokens: int
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False


class TokenLogprob(TypedDict):
    """A token with its natural log probability, and the most likely tokens in its place.

    The model's own probabilities: before bias, penalties, temperature and nucleus.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]


class Sampler:
    """One request's way of choosing tokens. The same seed gives the same choices, whatever runs beside it."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.penalizes = bool(params.frequency_penalty or params.presence_penalty)
        self._random = random.Random(params.seed % 2**64)  # which alone would take -1 for 1
        self._counts: Counter[int] = Counter()

    @property
    def adjusts(self) -> bool:
        """Whether it changes logits before it chooses."""
        return bool(self.params.logit_bias) or (self.penalizes and bool(self._counts))

    def draw(self) -> float:
        """The next random number in [0, 1)."""
        return self._random.random()

    def adjust(self, logits: torch.Tensor) -> None:
        """Apply bias and penalties to one row of logits, ``[vocabulary]``, in place (the formula of OpenAI's API)."""
        if self.params.logit_bias:
            ids, biases = zip(*self.params.logit_bias, strict=True)
            logits[list(ids)] += logits.new_tensor(biases)
        if self.penalizes and self._counts:
            frequency, presence = self.params.frequency_penalty, self.params.presence_penalty
            penalties = [frequency * count + presence for count in self._counts.values()]
            logits[list(self._counts)] -= logits.new_tensor(penalties)

    def chose(self, token: int) -> None:
        """Take note of a token that the answer now has."""
        if self.penalizes:
            self._counts[token] += 1


def sample(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Choose a token per row.

    Args:
        logits: ``[requests, vocabulary]``, float32.
        samplers: One for each row.

    Returns:
        Token ids, ``[requests]``.
    """
    adjusting = [row for row, sampler in enumerate(samplers) if sampler.adjusts]
    if adjusting:
        logits = logits.clone()
        for row in adjusting:
            samplers[row].adjust(logits[row])
    tokens = logits.argmax(dim=-1)
    plain = [row for row, s in enumerate(samplers) if s.params.temperature > 0 and s.params.top_p == 1]
    nucleus = [row for row, s in enumerate(samplers) if s.params.temperature > 0 and s.params.top_p < 1]
    if plain:
        probabilities = _probabilities(logits, samplers, plain)
        tokens[plain] = _invert(probabilities, samplers, plain)
    if nucleus:
        # The nucleus: the fewest most likely tokens whose mass reaches top_p (Holtzman et al., arXiv 1904.09751).
        ordered, ids = _probabilities(logits, samplers, nucleus).sort(dim=-1, descending=True, stable=True)
        top_p = ordered.new_tensor([[samplers[row].params.top_p] for row in nucleus])
        outside = ordered.cumsum(dim=-1) - ordered >= top_p
        choice = _invert(ordered.masked_fill(outside, 0), samplers, nucleus)
        tokens[nucleus] = ids.gather(1, choice.unsqueeze(1)).squeeze(1)
    return tokens


def logprobs_of(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """How likely tokens were.

    Args:
        logits: ``[tokens, vocabulary]``, as the model gave them.
        tokens: A token for each row.
        top: How many of the most likely tokens to name beside each.
    """
    scores = logits.float().log_softmax(dim=-1)
    chosen = scores.gather(1, torch.tensor(tokens, device=scores.device).unsqueeze(1)).squeeze(1).tolist()
    values, ids = scores.topk(min(top, scores.shape[1]), dim=-1)
    best = [list(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
    return [
        {"token": token, "logprob": value, "top": likely}
        for token, value, likely in zip(tokens, chosen, best, strict=True)
    ]


def _probabilities(logits: torch.Tensor, samplers: Sequence[Sampler], rows: list[int]) -> torch.Tensor:
    # float64, so that a sum over a large vocabulary loses nothing that a choice could hang on
    scores = logits[rows].double()
    temperatures = scores.new_tensor([[samplers[row].params.temperature] for row in rows])
    return ((scores - scores.amax(dim=-1, keepdim=True)) / temperatures).softmax(dim=-1)


def _invert(weights: torch.Tensor, samplers: Sequence[Sampler], rows: list[int]) -> torch.Tensor:
    """Draw from each row's weights by inverting their cumulative sum at one random number."""
    draws = weights.new_tensor([[samplers[row].draw()] for row in rows])
    cumulative = weights.cumsum(dim=-1)
    chosen = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
    last = (weights > 0).long().cumsum(dim=-1).argmax(dim=-1, keepdim=True)  # rounding can't step past the last one
    return torch.minimum(chosen, last).squeeze(1)
