"""The adapter on transformers' continuous batching: the only module that touches its private parts.

transformers packs, schedules and caches; this module takes the place of its forward-and-sample step. What it stands on
is private there, so the version is pinned, and `check_foundations` fails at start when a name has moved.
"""

import asyncio
import inspect
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchingManager,
    OutputRouter,
)
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import FutureRequestState, GenerationOutput, RequestState

from emopfx_server.engine.capture import Capture, Reading
from emopfx_server.engine.interventions import Rewrite
from emopfx_server.engine.model import LoadedModel, ModelError
from emopfx_server.engine.progress import Progress
from emopfx_server.engine.sampling import sample
from emopfx_server.engine.spans import (
    Sequence,
    Span,
    given_up,
    keep_logits,
    prompt_rows,
    share,
    steered,
    take_logprobs,
    take_prompt_logprobs,
    wants,
)
from emopfx_server.engine.splitting import Splitter
from emopfx_server.engine.step import Step

_PAGE_TOKENS = 32
_CPU_CACHE_TOKENS = 16_384
_CPU_STEP_TOKENS = 512
_STEP_PARAMETERS = ["self", "model", "batch_data", "carry_over_ids", "prev_output_ids", "output_ids"]


class BatchingError(Exception):
    """The engine failed while a request was in it."""


class Batching:
    """Runs sequences together, one forward pass per step, in one thread of its own."""

    def __init__(self, loaded: LoadedModel, max_batch_size: int, observe_step: Callable[[float], None]) -> None:
        check_foundations()
        if not loaded.model._supports_attention_backend:
            raise ModelError(
                f"cannot serve {loaded.name!r}: {type(loaded.model).__name__} has layers that transformers' continuous "
                "batching can't give its paged attention, so its answers would be wrong"
            )
        self._loaded = loaded
        self._observe_step = observe_step
        self._loop: asyncio.AbstractEventLoop | None = None
        self._names = map(str, itertools.count())
        self._step = Step(loaded)
        self._splitter = Splitter(loaded.model.device)
        self._sequences: dict[str, Sequence] = {}
        self._manager: ContinuousBatchingManager = loaded.model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=_config(loaded, max_batch_size),
        )
        _check_attention(loaded)
        self._manager.warmup()  # makes the batch processor, so that its step can be replaced before the first one
        runner = self._manager.batch_processor.model_runner
        runner._forward_process_and_sample = self._forward_and_sample

    @property
    def cache_tokens(self) -> int:
        """How many tokens the key-value cache holds: no sequence can be longer."""
        return int(self._manager.batch_processor.cache.max_tokens_read)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs and takes requests; it ends when a step fails."""
        denied = self._manager.background_thread_status.can_accept_new_requests()
        return denied is None and bool(self._manager.is_running())

    def start(self) -> None:
        """Start the engine's thread."""
        self._manager.start()

    def stop(self) -> None:
        """End the engine's thread; whatever still runs fails."""
        self._manager.stop(block=True, hard_stop=True)
        self._splitter.stop()

    async def run(self, sequence: Sequence) -> None:
        """Generate ``sequence.progress``, in company of whatever else runs. When cancelled, its cache is freed.

        Raises:
            BatchingError: When the engine failed.
        """
        self._loop = asyncio.get_running_loop()
        done: asyncio.Future[GenerationOutput] = self._loop.create_future()
        name = next(self._names)  # never used again, so that what is left of a cancelled request can't be another's
        self._sequences[name] = sequence
        try:
            self._manager.register_result_handler(name, partial(_settle, done))
            admitted = self._manager.add_request(
                sequence.prompt,
                request_id=name,
                max_new_tokens=sequence.sampler.params.max_tokens,
                eos_token_id=sequence.stop_tokens,
            )
            if admitted is None:
                raise BatchingError("the engine has stopped")
            output = await done
            if output.error is not None:
                raise BatchingError(f"the engine failed: {output.error}")
            if sequence.capture is not None:
                await self._complete(sequence.capture)
        except asyncio.CancelledError:
            self._give_up(name)
            raise
        finally:
            del self._sequences[name]
            if sequence.capture is not None:
                self._splitter.drop(sequence.capture)

    async def _complete(self, capture: Capture) -> None:
        """Wait until a capture has all of its rows."""
        try:
            # Shielded: what is handed over next waits for it.
            await asyncio.shield(asyncio.wrap_future(self._splitter.finish(capture)))
        except Exception as error:
            raise BatchingError(f"rows could not be handed over: {error!r}") from error

    def _give_up(self, name: str) -> None:
        """Drop a request. If its last step is just being done, the result has nobody to go to and is thrown away."""
        with self._manager.output_router._lock:
            self._manager.output_router.result_handlers.pop(name, None)
        self._manager.cancel_request(name)
        while self._manager.get_result(timeout=0) is not None:
            pass

    def _forward_and_sample(
        self,
        model: torch.nn.Module,
        batch_data: dict[str, Any],
        carry_over_ids: torch.Tensor,
        prev_output_ids: torch.Tensor,
        output_ids: torch.Tensor,
    ) -> None:
        """One engine step, in place of transformers' own: forward, capture, sample."""
        start = time.perf_counter()
        spans = self._spans()
        asked = prompt_rows(spans)
        first = len(batch_data["logits_indices"])
        if asked:
            keep_logits(batch_data, asked)
        wanted = [span for span in spans if wants(span)]
        specs = [span.sequence.capture.spec for span in wanted if span.sequence.capture]
        reading = Reading.of(specs, self._loaded.model.dtype) if specs else None
        changes = {span.sequence: change for span in spans if (change := steered(span))}
        rewrite = Rewrite(list(changes.values()), output_ids.device) if changes else None
        tokens = batch_data["input_ids"].shape[1]
        reads = self._splitter.room(reading, tokens) if reading else {}
        logits = self._step(batch_data, reading.layout if reading else None, reads, rewrite)
        if reading is not None:
            token_ids = batch_data["input_ids"][0].tolist()
            self._splitter.note(tokens, [part for span in wanted if (part := share(span, token_ids))])
        if "logits_to_keep" not in batch_data:
            logits = logits[:, batch_data["logits_indices"]]
        if rewrite is not None:
            for sequence, overflowed in zip(changes, rewrite.overflowed(), strict=True):
                sequence.overflowed |= overflowed
        if asked:
            take_prompt_logprobs(logits[0, first:], spans)
        self._choose(logits[0, :first].float(), spans, output_ids)
        self._observe_step(time.perf_counter() - start)

    def _spans(self) -> list[Span]:
        """Which rows of the packed batch are whose."""
        spans = []
        row = 0
        in_batch = self._manager.batch_processor.inputs_and_outputs.requests_in_batch
        for future in in_batch:
            state, length = future.state, future.query_length
            sequence = self._sequences.get(state.request_id) or given_up()
            sequence.batch_sizes[len(in_batch)] += 1
            # The state's offset has already been moved past this step.
            spans.append(Span(sequence, state, row, state.position_offset - length, length, future.has_new_token))
            row += length
        return spans

    def _choose(self, logits: torch.Tensor, spans: list[Span], output_ids: torch.Tensor) -> None:
        """Sample a token for every span whose prefill is complete, and end those that reached a stop text."""
        sampling = [span for span in spans if span.samples]
        if not sampling:
            return
        logits, samplers = logits[: len(sampling)], [span.sequence.sampler for span in sampling]
        tokens = sample(logits, samplers)
        output_ids[0, : len(sampling)].copy_(tokens)
        chosen = tokens.tolist()
        take_logprobs(logits, sampling, chosen)
        for span, token in zip(sampling, chosen, strict=True):
            span.sequence.progress.append(token)
            span.sequence.sampler.chose(token)
            span.sequence.stopped = self._reached_stop(span.sequence)
            if span.sequence.stopped or span.sequence.overflowed:
                span.state._new_tokens_limit = span.state.generated_len() + 1
        followed = [span.sequence.progress for span in sampling if span.sequence.progress.readers]
        if followed and self._loop is not None:
            self._loop.call_soon_threadsafe(_tell, followed)

    def _reached_stop(self, sequence: Sequence) -> bool:
        """Whether a stop text has appeared. Only the tail is decoded: a character takes at most four tokens."""
        stop = sequence.sampler.params.stop
        if not stop:
            return False
        tail = sequence.progress.tokens[-4 * max(map(len, stop)) - 4 :]
        text = self._loaded.tokenizer.decode(tail, skip_special_tokens=True)
        return any(ending in text for ending in stop)


def _settle(done: asyncio.Future[GenerationOutput], output: GenerationOutput) -> None:
    if not done.done():
        done.set_result(output)


def _tell(followed: list[Progress]) -> None:
    for progress in followed:
        progress.tell()


def _config(loaded: LoadedModel, max_batch_size: int) -> ContinuousBatchingConfig:
    """How transformers is to batch. On a GPU it sizes its cache itself, from the memory that is free."""
    on_gpu = loaded.model.device.type == "cuda"
    return ContinuousBatchingConfig(
        page_size=_PAGE_TOKENS,
        num_blocks=None if on_gpu else _CPU_CACHE_TOKENS // _PAGE_TOKENS,
        max_batch_tokens=None if on_gpu else _CPU_STEP_TOKENS,
        max_requests_per_batch=max_batch_size,
        max_memory_percent=0.8,  # the rest is for the slab
        allow_block_sharing=False,  # a shared prefix is not computed, so its rows would be missing
        use_cuda_graph=False,  # a replayed graph runs no Python, so nothing could be read
        use_async_batching=False,
        auto_switch_to_flash=on_gpu,
    )


def _check_attention(loaded: LoadedModel) -> None:
    """Refuse a model that transformers would batch wrongly: its paged attention knows no softcap, save for flash."""
    config = loaded.model.config.get_text_config()
    softcap = getattr(config, "attn_logit_softcapping", None)
    if softcap and "flash" not in str(config._attn_implementation):
        raise ModelError(
            f"cannot serve {loaded.name!r}: its attention scores are capped at {softcap}, which transformers' "
            "continuous batching leaves out without flash attention, so its answers would be wrong"
        )


def check_foundations() -> None:
    """Check that what this module stands on is still there.

    Raises:
        RuntimeError: When transformers has moved something; it names the thing.
    """
    step = list(inspect.signature(ModelRunner._forward_process_and_sample).parameters)
    if step != _STEP_PARAMETERS:
        raise RuntimeError(f"transformers' ModelRunner._forward_process_and_sample now takes {step}")
    fields = {
        FutureRequestState: ("state", "has_new_token", "query_length"),
        RequestState: ("position_offset", "generated_len", "_new_tokens_limit"),
        BackgroundThreadStatus: ("can_accept_new_requests",),
    }
    made = {
        ContinuousBatchingIOs: ("requests_in_batch",),
        ContinuousBatchingManager: ("batch_processor", "background_thread_status", "output_router"),
        OutputRouter: ("_lock", "result_handlers"),
    }
    lost = {owner: [name for name in names if not hasattr(owner, name)] for owner, names in fields.items()}
    lost |= {owner: [name for name in names if not _makes(owner, name)] for owner, names in made.items()}
    for owner, missing in lost.items():
        if missing:
            raise RuntimeError(f"transformers' {owner.__name__} no longer has {', '.join(missing)}")


def _makes(owner: type, name: str) -> bool:
    """Whether the objects of a class are given an attribute of this name when they are made."""
    return name in inspect.unwrap(owner.__init__).__code__.co_names  # type: ignore[misc]
