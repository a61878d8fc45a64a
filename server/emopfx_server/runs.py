"""Running requests: each once, however many ask for it, and only while somebody waits for it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request as HttpRequest

from emopfx_server.engine.engine import Engine
from emopfx_server.engine.progress import Progress
from emopfx_server.engine.requests import Outcome, Request, recall
from emopfx_server.prepare import Job
from emopfx_server.schemas import ApiError

T = TypeVar("T")


class Run:
    """A request that runs, or was answered before."""

    def __init__(
        self, request: Request, fingerprint: str, outcome: Coroutine[Any, Any, Outcome], progress: Progress
    ) -> None:
        self.request = request
        self.fingerprint = fingerprint
        self.progress = progress
        self.task = asyncio.create_task(outcome)
        self.waiting = 0

    async def outcome(self) -> Outcome:
        """What came of it.

        Raises:
            ApiError: When it was refused or failed.
        """
        return await asyncio.shield(self.task)


class Runs:
    """Runs requests, or finds what came of them.

    Args:
        engine: What runs them.
        root: The activation root.
    """

    def __init__(self, engine: Engine, root: Path) -> None:
        self._engine = engine
        self._root = root
        self._running: dict[str, Run] = {}

    @asynccontextmanager
    async def join(self, request: Request, fingerprint: str) -> AsyncIterator[Run]:
        """Run a request, join it when the same one is running already, or recall it when it was answered before.

        It is given up when everybody has left before all of it is generated.

        Raises:
            ApiError: 409 when another request has its folder or id.
        """
        # Two requests that capture may have one id in different folders: what they would fight for is the folder.
        key = str(request.target.folder) if request.target else request.request_id
        run = self._running.get(key)
        if run is None:
            progress = Progress()
            run = Run(request, fingerprint, self._recall_or_run(request, fingerprint, progress), progress)
            self._running[key] = run
            run.task.add_done_callback(partial(self._done, key, run))
        elif run.fingerprint != fingerprint:
            raise _conflict(f"another request {request.request_id!r} is running")
        run.waiting += 1
        try:
            yield run
        finally:
            run.waiting -= 1
            if not run.waiting and not run.progress.generated:
                run.task.cancel()
                if self._running.get(key) is run:
                    del self._running[key]

    def breadcrumb(self, job: Job, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """The field ``ndif`` of an answer: where its activations lie. With several choices, each has its own."""
        crumbs = [self._crumb(request, outcome) for request, outcome in zip(job.requests, outcomes, strict=True)]
        return crumbs[0] if len(crumbs) == 1 else {"request_id": job.request_id, "choices": crumbs}

    def _crumb(self, request: Request, outcome: Outcome) -> dict[str, Any]:
        folder = request.target and request.target.folder.relative_to(self._root.resolve()).as_posix()
        shapes = outcome.record.get("shapes", {})
        return {
            "request_id": request.request_id,
            "capture": request.target is not None,
            "replayed": outcome.replayed,
            "seed": outcome.answer.seed,
            "save_dir": folder,
            "files": outcome.files,
            "bytes": sum(file["bytes"] for file in outcome.files),
            "tokens": outcome.record.get("tokens", 0),
            "tensors": len(shapes),
            "shapes": shapes,
            "batch_sizes": outcome.record.get("batch_sizes", {}),
            "interventions": [edit.record() for edit in request.edits],
        }

    def _done(self, key: str, run: Run, _: asyncio.Task[Outcome]) -> None:
        if self._running.get(key) is run:
            del self._running[key]
        run.progress.finish()
        if not run.task.cancelled():
            run.task.exception()  # whoever waits is told; when nobody does any more, it is no news

    async def _recall_or_run(self, request: Request, fingerprint: str, progress: Progress) -> Outcome:
        outcome = await self._recall(request, fingerprint)
        return outcome or await self._engine.run(request, progress)

    async def _recall(self, request: Request, fingerprint: str) -> Outcome | None:
        """What was committed under this request's folder, if it is this request's."""
        if request.target is None:
            return None
        folder = request.target.folder
        outcome = await asyncio.to_thread(recall, folder)
        if outcome is not None and outcome.record["fingerprint"] == fingerprint:
            self._engine.metrics.answers.labels("replayed").inc()
            return outcome
        if outcome is not None or (folder.exists() and any(folder.iterdir())):
            raise _conflict(f"{folder.relative_to(self._root.resolve())} already holds something else")
        return None


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
