"""A request's way through the engine: admission, generation, commit."""

import asyncio
import dataclasses
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from safetensors import SafetensorError

from emopfx_server.engine.admission import Admission, Admitted, QueueFull
from emopfx_server.engine.batching import Batching, BatchingError
from emopfx_server.engine.capture import Capture
from emopfx_server.engine.interventions import Steering
from emopfx_server.engine.model import LoadedModel
from emopfx_server.engine.progress import Progress
from emopfx_server.engine.refusals import (
    capture_too_large,
    check_disk,
    draining,
    overflowed,
    queue_full,
    too_late,
    write_failed,
)
from emopfx_server.engine.requests import Answer, Outcome, Request, Target, outcome_of
from emopfx_server.engine.sampling import Sampler
from emopfx_server.engine.spans import Sequence
from emopfx_server.engine.text import Decoding, cut, row_texts, within
from emopfx_server.engine.writer import Committed, commit, give_way
from emopfx_server.metrics import Metrics
from emopfx_server.schemas import ApiError

_log = logging.getLogger(__name__)

CAPTURED = "after interventions"
"""What a row shows where the request also intervenes: what the model went on with."""

_PLACES_PER_ROW = 2  # as many again stand ready, so that a row of the batch is taken up in the step after it is free


class Engine:
    """Admits requests, runs them together, and commits what they captured before they are answered.

    Args:
        loaded: The model.
        max_batch_size: How many requests may run in one step.
        capture_bytes: The bound on captured bytes held in memory.
        writers: How many threads write files.
        max_queue: How many requests may wait for a place or for room.
        disk_floor: Bytes of the disk that are to stay free.
        metrics: Where it counts what it does.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_batch_size: int,
        capture_bytes: int,
        writers: int,
        max_queue: int = 2048,
        disk_floor: int = 0,
        metrics: Metrics | None = None,
    ) -> None:
        self.loaded = loaded
        self.metrics = metrics or Metrics()
        self.admission = Admission(_PLACES_PER_ROW * max_batch_size, capture_bytes, max_queue)
        self.draining = False
        self._disk_floor = disk_floor
        self._batching = Batching(loaded, max_batch_size, self.metrics.step_seconds.observe)
        self._writers = ThreadPoolExecutor(writers, thread_name_prefix="writer", initializer=give_way)
        self._watch()

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and answer may have together: the model's bound, or the cache's."""
        return min(self.loaded.context_length, self._batching.cache_tokens)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._batching.alive

    def start(self) -> None:
        """Start the engine's thread."""
        self._batching.start()

    def stop(self) -> None:
        """End the engine's thread and the writers'."""
        self._batching.stop()
        self._writers.shutdown()

    def drain(self) -> None:
        """Take no more requests and turn away those that wait; running ones finish."""
        self.draining = True
        self.admission.turn_away(draining())

    async def run(self, request: Request, progress: Progress) -> Outcome:
        """Answer a request. Cancelling it before all is generated leaves nothing behind.

        Args:
            request: What to run.
            progress: Where its tokens appear while they come.

        Raises:
            ApiError: 400 when it is too large to ever be admitted, 408 when it takes longer than it may, 429 when too
                many wait, 503 when the engine can't take it now, 507 when the disk is full, 500 when something failed.
        """
        start = time.monotonic()
        try:
            outcome = await self._admit(request, progress, start)
        except asyncio.CancelledError:
            self.metrics.answers.labels("given up").inc()
            raise
        except ApiError as error:
            self.metrics.answers.labels("failed" if error.status in (500, 507) else "refused").inc()
            raise
        finally:
            progress.finish()
        answer = outcome.answer
        _log.info(
            "%d prompt tokens, %d generated, %s", answer.prompt_tokens, answer.completion_tokens, answer.finish_reason
        )
        self.metrics.answers.labels(answer.finish_reason).inc()
        self.metrics.answer_seconds.observe(time.monotonic() - start)
        return outcome

    async def _admit(self, request: Request, progress: Progress, start: float) -> Outcome:
        if self.draining:
            raise draining()
        size = request.target.spec.bytes(len(request.prompt), request.params.max_tokens) if request.target else 0
        if size > self.admission.limit:
            raise capture_too_large(size, self.admission.limit)
        _log.debug("waits for its turn, behind %d", self.admission.waiting)
        timer = asyncio.timeout(request.seconds)
        try:
            async with timer, self.admission.enter(size) as admitted:
                return await self._run(request, progress, admitted, timer, start)
        except QueueFull as error:
            raise queue_full(self.admission.waiting) from error
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise too_late(request.seconds) from error

    async def _run(
        self, request: Request, progress: Progress, admitted: Admitted, timer: asyncio.Timeout, start: float
    ) -> Outcome:
        target = request.target
        capture = None
        if target is not None:
            check_disk(target.folder, self.admission.held + self._disk_floor)
            capture = Capture(target.spec, len(request.prompt), request.params.max_tokens)
        params = request.params
        steering = Steering(request.edits, len(request.prompt), params.max_tokens) if request.edits else None
        sequence = Sequence(request.prompt, Sampler(params), capture, steering, self.loaded.stop_tokens, progress)
        answer = await self._generate(request, sequence, start)
        timer.reschedule(None)  # what is generated will be written
        self.admission.leave_place(admitted)
        progress.finish()
        if target is None or capture is None:
            return Outcome(answer, {}, [], replayed=False)
        return await self._commit(request, target, capture, answer, sequence)

    async def _generate(self, request: Request, sequence: Sequence, start: float) -> Answer:
        self.metrics.prompt_tokens.inc(len(sequence.prompt))
        progress = sequence.progress
        try:
            await self._batching.run(sequence)
        except BatchingError as error:
            raise ApiError(500, f"Generation failed: {error}.", code="engine_error") from error
        finally:
            self.metrics.generated_tokens.inc(len(progress.tokens))
            if progress.first_token is not None:
                self.metrics.first_token_seconds.observe(progress.first_token - start)
        if sequence.overflowed:
            raise overflowed()
        text = self._text(sequence)
        return Answer(
            text=text,
            finish_reason="stop" if sequence.stopped or progress.tokens[-1] in sequence.stop_tokens else "length",
            prompt_tokens=len(sequence.prompt),
            completion_tokens=len(progress.tokens),
            seed=request.params.seed,
            created=int(time.time()),
            logprobs=progress.logprobs and progress.logprobs[: self._visible(sequence, text)],
            prompt_logprobs=progress.prompt_logprobs,
        )

    async def _commit(
        self, request: Request, target: Target, capture: Capture, answer: Answer, sequence: Sequence
    ) -> Outcome:
        loop = asyncio.get_running_loop()
        with self.metrics.writing.track_inprogress():
            try:
                committed = await loop.run_in_executor(
                    self._writers, self._write, request, target, capture, answer, sequence
                )
            except (OSError, SafetensorError) as error:
                raise write_failed(error) from error
        if not committed.found:
            self.metrics.capture_bytes.inc(sum(file["bytes"] for file in committed.files))
        return outcome_of(committed)

    def _write(
        self, request: Request, target: Target, capture: Capture, answer: Answer, sequence: Sequence
    ) -> Committed:
        facts = {
            "request_id": request.request_id,
            "model": self.loaded.name,
            "revision": self.loaded.revision,
            "config_hash": target.config_hash,
            "dtype": str(target.spec.dtype).removeprefix("torch."),
            "interventions": [edit.record() for edit in request.edits],
            "captured": CAPTURED,
        }
        sites = target.spec.layout.sites
        record = {
            "format": 1,
            **facts,
            "model_dtype": self.loaded.dtype,
            "layers": sorted({site.layer for site in sites}),
            "hook_points": list(dict.fromkeys(site.hook_point for site in sites)),
            "positions": target.spec.positions,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "batch_sizes": {str(size): steps for size, steps in sorted(sequence.batch_sizes.items())},
            "fingerprint": target.fingerprint,
            "answer": dataclasses.asdict(answer),
            "token_texts": row_texts(self.loaded.tokenizer, capture.token_ids),
        }
        return commit(target.folder, capture, {name: _header_text(fact) for name, fact in facts.items()}, record)

    def _text(self, sequence: Sequence) -> str:
        """The answer's text, cut before the first stop text."""
        text = self.loaded.tokenizer.decode(sequence.progress.tokens, skip_special_tokens=True)
        return cut(text, sequence.sampler.params.stop)

    def _visible(self, sequence: Sequence, text: str) -> int:
        """How many tokens an answer's text is made of: not the one that ends it, nor those of a stop text."""
        decoding = Decoding(self.loaded.tokenizer)
        decoding.feed(sequence.progress.tokens)
        return within(decoding.offsets, len(text))

    def _watch(self) -> None:
        """Show the state of the queue in the metrics."""
        watch, admission = self.metrics.watch, self.admission
        watch("requests_running", "Requests that generate", lambda: admission.running)
        watch("requests_waiting", "Requests that wait for a place or for room", lambda: admission.waiting)
        watch("capture_held_bytes", "Captured bytes that may come to be held in memory", lambda: admission.held)
        watch("capture_limit_bytes", "The bound on captured bytes in memory", lambda: admission.limit)


def _header_text(fact: Any) -> str:
    """A fact as a safetensors header can hold it."""
    if fact is None:
        return ""
    return fact if isinstance(fact, str) else json.dumps(fact)
