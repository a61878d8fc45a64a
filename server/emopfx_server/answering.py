"""Answers, whole or as a stream of server-sent events: what chat and plain completions have in common."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from emopfx_server.engine.engine import Engine
from emopfx_server.engine.requests import Outcome, Request
from emopfx_server.engine.sampling import TokenLogprob
from emopfx_server.engine.text import Detokenizer, within
from emopfx_server.prepare import Job
from emopfx_server.runs import Run, Runs
from emopfx_server.schemas import ApiError

_log = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Piece:
    """A part of an answer, as it goes over a stream.

    Attributes:
        text: What is new.
        logprobs: The log probabilities of the tokens behind it, if they are asked for.
        offsets: How many characters of the answer came before each of these tokens.
    """

    text: str
    logprobs: list[TokenLogprob]
    offsets: list[int]


class Shape(Protocol):
    """How one of OpenAI's APIs writes an answer down."""

    prefix: str
    whole: str
    chunk: str

    def choice(self, index: int, request: Request, outcome: Outcome) -> dict[str, Any]:
        """A whole answer."""

    def opening(self, index: int, request: Request) -> dict[str, Any]:
        """What a stream begins an answer with."""

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of an answer."""

    def ending(self, index: int, outcome: Outcome) -> dict[str, Any]:
        """What a stream ends an answer with."""

    def completion_tokens(self, outcome: Outcome) -> int:
        """How many generated tokens count."""


class Answering:
    """Runs jobs and writes down what comes of them.

    Args:
        engine: What runs them.
        runs: The requests that run.
        logs_answers: Whether they are logged.
    """

    def __init__(self, engine: Engine, runs: Runs, *, logs_answers: bool) -> None:
        self._engine = engine
        self._runs = runs
        self._logs_answers = logs_answers

    async def answer(self, job: Job, shape: Shape) -> dict[str, Any]:
        """Run a job.

        Raises:
            ApiError: When it was refused or failed.
        """
        async with self._runs.join(job) as runs:
            outcomes = await asyncio.gather(*(self._outcome(run) for run in runs))
        # In a thread: with log probabilities, of which there may be thousands, it takes a while.
        choices = await asyncio.to_thread(
            lambda: [shape.choice(index, run.request, outcomes[index]) for index, run in enumerate(runs)]
        )
        head = self._head(job, shape.prefix, shape.whole, outcomes[0].answer.created)
        return {
            **head,
            "choices": choices,
            "usage": _usage(job, shape, outcomes),
            "ndif": self._runs.breadcrumb(job, outcomes),
        }

    async def stream(self, job: Job, shape: Shape, *, usage: bool) -> AsyncGenerator[str, None]:
        """Run a job, and give server-sent events while it runs; the last one carries the breadcrumb.

        The first event comes with the first token, so that a refusal can still be an HTTP status.

        Raises:
            ApiError: When it was refused or failed before the first event; afterwards the error is an event.
        """
        head = self._head(job, shape.prefix, shape.chunk, int(time.time())) | ({"usage": None} if usage else {})
        opened: set[int] = set()
        outcomes: dict[int, Outcome] = {}
        try:
            async with self._runs.join(job) as runs:
                async for index, part in _merged([self._follow(run) for run in runs]):
                    if index not in opened:
                        opened.add(index)
                        yield _event({**head, "choices": [shape.opening(index, runs[index].request)]})
                    if isinstance(part, Piece):
                        yield _event({**head, "choices": [shape.delta(index, part)]})
                        continue
                    outcomes[index] = part
                    last = len(outcomes) == len(runs) and not usage
                    ndif = {"ndif": self._breadcrumb(job, outcomes)} if last else {}
                    yield _event({**head, "choices": [shape.ending(index, part)], **ndif})
        except ApiError as error:
            if not opened:
                raise
            yield _event(error.body())
            return
        if usage:
            told = _usage(job, shape, [outcomes[index] for index in sorted(outcomes)])
            yield _event({**head, "choices": [], "usage": told, "ndif": self._breadcrumb(job, outcomes)})
        yield DONE

    def _breadcrumb(self, job: Job, outcomes: dict[int, Outcome]) -> dict[str, Any]:
        return self._runs.breadcrumb(job, [outcomes[index] for index in sorted(outcomes)])

    async def _outcome(self, run: Run) -> Outcome:
        outcome = await run.outcome()
        if self._logs_answers:
            _log.info("answered: %s", json.dumps(outcome.answer.text, ensure_ascii=False))
        return outcome

    async def _follow(self, run: Run) -> AsyncIterator[Piece | Outcome]:
        """The pieces of an answer while they come, and then what came of it."""
        detokenizer = Detokenizer(self._engine.loaded.tokenizer, run.request.params.stop)
        progress = run.progress
        seen = told = 0
        progress.readers += 1
        try:
            while not progress.generated:
                fresh = progress.tokens[seen:]
                seen += len(fresh)
                if text := detokenizer.feed(fresh):
                    begun = within(detokenizer.offsets, detokenizer.sent)
                    yield Piece(text, progress.logprobs[told:begun], detokenizer.offsets[told:begun])
                    told = begun
                await progress.beyond(seen)
        finally:
            progress.readers -= 1
        outcome = await self._outcome(run)
        logprobs = outcome.answer.logprobs
        text = detokenizer.finish([one["token"] for one in logprobs[seen:]], outcome.answer.text)
        if text or logprobs[told:]:
            yield Piece(text, logprobs[told:], detokenizer.offsets[told : len(logprobs)])
        yield outcome

    def _head(self, job: Job, prefix: str, kind: str, created: int) -> dict[str, Any]:
        name = self._engine.loaded.name
        return {"id": f"{prefix}-{job.request_id}", "object": kind, "created": created, "model": name}


class EventStream(StreamingResponse):
    """Server-sent events. When the client hangs up, whatever makes them is ended at once."""

    media_type = "text/event-stream"

    def __init__(self, first: str, events: AsyncGenerator[str, None]) -> None:
        self._events = events
        super().__init__(_after(first, events), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them, and then see to it that nothing runs on for them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


async def _after(first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for event in events:
        yield event


async def _merged(
    sources: Sequence[AsyncIterator[Piece | Outcome]],
) -> AsyncIterator[tuple[int, Piece | Outcome]]:
    """What several sources give, as it comes, with the number of the source."""
    queue: asyncio.Queue[tuple[int, Piece | Outcome | None]] = asyncio.Queue()

    async def pump(index: int, source: AsyncIterator[Piece | Outcome]) -> None:
        try:
            async for part in source:
                queue.put_nowait((index, part))
        finally:
            queue.put_nowait((index, None))

    tasks = [asyncio.create_task(pump(index, source)) for index, source in enumerate(sources)]
    try:
        running = len(tasks)
        while running:
            index, part = await queue.get()
            if part is None:
                running -= 1
                await tasks[index]
            else:
                yield index, part
    finally:
        for task in tasks:
            task.cancel()


def _event(content: dict[str, Any]) -> str:
    # In ASCII: many clients take U+2028 and its like for the end of a line.
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


def _usage(job: Job, shape: Shape, outcomes: Sequence[Outcome]) -> dict[str, int]:
    """The tokens that count; those of a prompt count once, however many choices it has."""
    prompt = sum(outcome.answer.prompt_tokens for outcome in outcomes[:: job.per_prompt])
    completion = sum(shape.completion_tokens(outcome) for outcome in outcomes)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
