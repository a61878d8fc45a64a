"""Running jobs: each once, however many ask for it, and only while somebody waits for it."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request as HttpRequest

from emopfx_server.engine.engine import Engine
from emopfx_server.engine.progress import Progress
from emopfx_server.engine.requests import Outcome, Request, Target, outcome_of
from emopfx_server.engine.writer import METADATA, discard, read_committed
from emopfx_server.memory import Memory
from emopfx_server.prepare import Job
from emopfx_server.schemas import ApiError

T = TypeVar("T")


class Run:
    """A choice of a job that runs, or was answered before."""

    def __init__(self, request: Request, progress: Progress, outcome: Coroutine[Any, Any, Outcome]) -> None:
        self.request = request
        self.progress = progress
        self.task = asyncio.create_task(outcome)
        self.task.add_done_callback(lambda _: progress.finish())

    @property
    def failed(self) -> bool:
        """Whether there will be no answer."""
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)

    async def outcome(self) -> Outcome:
        """What came of it.

        Raises:
            ApiError: When it was refused or failed.
        """
        return await asyncio.shield(self.task)


class _Running:
    """A job with its runs and those who wait for them."""

    def __init__(self, job: Job, runs: list[Run]) -> None:
        self.job = job
        self.runs = runs
        self.waiting = 0
        self.left = False
        self.end: asyncio.Task[None]

    @property
    def lost(self) -> bool:
        """Whether it won't be answered: everybody has left, or a run has failed."""
        return self.left or any(run.failed for run in self.runs)

    def leave(self) -> None:
        """Give it up before all of it is generated. What is generated will be written, and then taken back."""
        self.left = True
        for run in self.runs:
            if not run.progress.generated:
                run.task.cancel()


class Runs:
    """Runs jobs, or finds what came of them.

    Answers to requests that capture are found in their folders; of the others that have a name, the latest are
    remembered until the server stops.

    Args:
        engine: What runs them.
        root: The activation root.
    """

    def __init__(self, engine: Engine, root: Path) -> None:
        self._engine = engine
        self._root = root.resolve()
        self._memory = Memory()
        self._running: dict[Path, _Running] = {}
        self._above: Counter[Path] = Counter()  # the folders that the running ones lie in

    @asynccontextmanager
    async def join(self, job: Job) -> AsyncIterator[list[Run]]:
        """Run a job, join it when the same one is running already, or recall it when it was answered before.

        It is given up when everybody has left before all of it is generated. A job that is not answered leaves no
        files.

        Raises:
            ApiError: 409 when another request has its folder or id.
        """
        # Two requests that capture may have one id in different folders: what they would fight for is the folder.
        key = job.folder or Path(job.request_id)
        while (running := self._running.get(key)) is not None and running.lost:
            await asyncio.shield(running.end)
        if running is None:
            running = self._begin(key, job)
        elif running.job.fingerprint != job.fingerprint:
            raise _conflict(f"another request {job.request_id!r} is running")
        running.waiting += 1
        try:
            yield running.runs
        finally:
            running.waiting -= 1
            if not running.waiting and not all(run.progress.generated for run in running.runs):
                running.leave()

    def breadcrumb(self, job: Job, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """The field ``ndif`` of an answer: where its activations lie. With several choices, each has its own."""
        crumbs = [self._crumb(request, outcome) for request, outcome in zip(job.requests, outcomes, strict=True)]
        crumb = crumbs[0] if len(crumbs) == 1 else {"request_id": job.request_id, "choices": crumbs}
        return {**crumb, "ignored": job.ignored}

    def _crumb(self, request: Request, outcome: Outcome) -> dict[str, Any]:
        shapes = outcome.record.get("shapes", {})
        return {
            "request_id": request.request_id,
            "capture": request.target is not None,
            "replayed": outcome.replayed,
            "seed": outcome.answer.seed,
            "save_dir": request.target and request.target.folder.relative_to(self._root).as_posix(),
            "files": outcome.files,
            "bytes": sum(file["bytes"] for file in outcome.files),
            "tokens": outcome.record.get("tokens", 0),
            "tensors": len(shapes),
            "shapes": shapes,
            "batch_sizes": outcome.record.get("batch_sizes", {}),
            "interventions": [edit.record() for edit in request.edits],
        }

    def _begin(self, key: Path, job: Job) -> _Running:
        if self._above[key] or any(above in self._running for above in key.parents):
            raise _conflict("another request is running, of which one's folder lies in the other's")
        remembered = None if job.folder else self._memory.recall(job.request_id)
        if remembered is not None and remembered.fingerprint != job.fingerprint:
            raise _conflict(f"another request {job.request_id!r} was answered")
        answered = remembered.outcomes if remembered else [None] * len(job.requests)
        runs = []
        for request, outcome in zip(job.requests, answered, strict=True):
            progress = Progress()
            runs.append(Run(request, progress, self._recall_or_run(request, progress, outcome)))
        running = self._running[key] = _Running(job, runs)
        self._above.update(key.parents)
        running.end = asyncio.create_task(self._end(key, running))
        return running

    async def _end(self, key: Path, running: _Running) -> None:
        """Wait until nothing of a job runs any more, and see to what is left of it."""
        job = running.job
        outcomes = await asyncio.gather(*(run.task for run in running.runs), return_exceptions=True)
        answers = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
        if len(answers) < len(outcomes):
            await asyncio.to_thread(_take_back, job, outcomes)
        elif job.named and job.folder is None and not answers[0].replayed:
            self._memory.remember(job.request_id, job.fingerprint, answers)
        del self._running[key]
        for above in key.parents:
            self._above[above] -= 1
            if not self._above[above]:
                del self._above[above]

    async def _recall_or_run(self, request: Request, progress: Progress, outcome: Outcome | None) -> Outcome:
        if outcome is None and request.target is not None:
            outcome = await asyncio.to_thread(self._recall, request.target)
        if outcome is None:
            return await self._engine.run(request, progress)
        self._engine.metrics.answers.labels("replayed").inc()
        return outcome

    def _recall(self, target: Target) -> Outcome | None:
        """What was committed under a request's folder, if it is this request's and undamaged."""
        inside = target.folder.relative_to(self._root)
        if any((self._root / above / METADATA).is_file() for above in list(inside.parents)[:-1]):
            raise _conflict(f"{inside} lies in another request's folder")
        committed = read_committed(target.folder)
        if committed is not None and committed.record["fingerprint"] == target.fingerprint:
            return outcome_of(committed) if committed.whole else None
        if committed is not None or not _is_empty(target.folder):
            raise _conflict(f"{inside} already holds something else")
        return None


def _is_empty(folder: Path) -> bool:
    try:
        return next(folder.iterdir(), None) is None
    except FileNotFoundError:
        return True


def _take_back(job: Job, outcomes: Sequence[Outcome | BaseException]) -> None:
    """Remove what was written for a job that is not answered, but not what was there before."""
    for request, outcome in zip(job.requests, outcomes, strict=True):
        if request.target and isinstance(outcome, Outcome) and not outcome.replayed:
            with contextlib.suppress(OSError):
                discard(request.target.folder)
    if job.folder is not None and len(job.requests) > 1:
        with contextlib.suppress(OSError):
            job.folder.rmdir()  # if nothing else is in it


async def while_connected(http: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """Do what a client asked for, unless it hangs up.

    Raises:
        ApiError: 499 when it has; nobody reads it, but the log.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_hangs_up(http))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "The client has hung up.", code="client_closed_request")
    finally:
        task.cancel()
        gone.cancel()


async def _hangs_up(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _conflict(reason: str) -> ApiError:
    return ApiError(409, f"This request's id or folder is taken: {reason}.", param="ndif.request_id", code="conflict")
