"""The HTTP API, and the command that serves it."""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NoReturn

import nnsight
import torch
import transformers
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.responses import Response

import emopfx_server
from emopfx_server.answering import Answering, EventStream, Shape
from emopfx_server.chat import chat_job
from emopfx_server.completions import completion_job
from emopfx_server.engine.engine import Engine
from emopfx_server.engine.model import LoadedModel, ModelError, load
from emopfx_server.engine.writer import sweep
from emopfx_server.errors import handle_errors
from emopfx_server.files import StoredFile, listing, resolve_under
from emopfx_server.guard import OPEN_PATHS, Guard
from emopfx_server.logs import request_id, set_up
from emopfx_server.ndif import capture_spec
from emopfx_server.prepare import Job, Preparation
from emopfx_server.runs import Runs, while_connected
from emopfx_server.schemas import (
    ApiError,
    CaptureChanges,
    CaptureDefaults,
    ChatRequest,
    CompletionRequest,
    Generation,
    Ndif,
)
from emopfx_server.settings import Settings, SettingsError

_log = logging.getLogger(__name__)


def create_app(settings: Settings, loaded: LoadedModel, engine: Engine) -> FastAPI:
    """The API of one model.

    Raises:
        OSError: When the file of the API key can't be read.
        SettingsError: When there is no key in it.
    """
    root = settings.data_dir
    engine.metrics.watch_disk(root)
    engine.metrics.describe(model=loaded.name, revision=loaded.revision or "", dtype=loaded.dtype, **_versions())
    defaults = CaptureDefaults(hook_points=loaded.default_hook_points())
    preparation = Preparation(engine, root, defaults, settings.request_seconds)
    answering = Answering(engine, Runs(engine, root), logs_answers=settings.log_prompts)
    card = {"id": loaded.name, "object": "model", "created": int(time.time()), "owned_by": "emopfx"}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        threading.Thread(target=sweep, args=(root,), name="sweep", daemon=True).start()
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(title="emopfx-server", version=emopfx_server.__version__, lifespan=lifespan)
    handle_errors(app)

    async def respond(http: Request, body: Generation, size: int, prepare: Callable[[], tuple[Job, Shape]]) -> Response:
        job, shape = await preparation.apart(size, prepare)
        request_id.rename(job.request_id)
        if settings.log_prompts:
            _log.info("asked: %s", body.model_dump_json(exclude_defaults=True))
        if not body.stream:
            return JSONResponse(await while_connected(http, answering.answer(job, shape)))
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        events = answering.stream(job, shape, usage=usage)
        return EventStream(await while_connected(http, anext(events)), events)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, http: Request) -> Response:
        """Answer a conversation; the activations of the pass that answered are on disk when the answer comes.

        With ``n`` over 1, each choice is captured by itself: into the folder ``<request_id>/<index>``, with its own
        entry in the breadcrumb's ``choices``, and drawn with the seed plus its index.
        """
        return await respond(http, body, body.size(), partial(chat_job, preparation, body))

    @app.post("/v1/completions", response_model=None)
    async def complete(body: CompletionRequest, http: Request) -> Response:
        """Write on from prompts; with ``echo`` and ``logprobs``, tell how likely the prompts' own tokens are."""
        return await respond(http, body, body.size(), partial(completion_job, preparation, body))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The model of this name."""
        preparation.check_model(name)
        return card

    @app.get("/v1/model/structure")
    async def structure() -> dict[str, Any]:
        """The model's shape, and every hook point that can be captured."""
        return describe(loaded, engine)

    @app.get("/v1/interventions")
    async def get_defaults() -> CaptureDefaults:
        """What is captured when a request does not say."""
        return preparation.defaults

    @app.put("/v1/interventions")
    async def set_defaults(body: CaptureChanges) -> CaptureDefaults:
        """Change what is captured when a request does not say; fields left out keep their value."""
        changed = preparation.defaults.model_copy(update=body.model_dump(exclude_none=True))
        capture_spec(Ndif(capture=True), changed, loaded)
        preparation.defaults = changed
        return changed

    @app.head("/v1/activations/{path:path}", include_in_schema=False)
    @app.get("/v1/activations/{path:path}", response_model=None)
    def activations(path: str) -> Response:
        """A folder's listing, or a file (whole, or the range that is asked for)."""
        found = resolve_under(root, path, param="path")
        inside = found.relative_to(root.resolve())
        hidden = any(part.startswith(".") for part in inside.parts)
        if found.is_file() and not hidden:
            return StoredFile(found)
        if found.is_dir() and not hidden:
            return JSONResponse(listing(root, found))
        raise ApiError(404, f"There is nothing at {path!r}.", param="path", code="not_found")

    @app.get("/metrics")
    async def metrics() -> Response:
        """What Prometheus reads."""
        return Response(engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the engine runs."""
        if not engine.alive:
            raise ApiError(503, "The engine has stopped.", code="engine_stopped")
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Whether requests are taken."""
        if engine.draining or not engine.alive:
            raise ApiError(503, "The server takes no requests now.", code="not_ready", retry_after=5)
        return {"status": "ready", "model": loaded.name}

    app.add_middleware(
        Guard,
        key=settings.key(),
        open_paths=OPEN_PATHS if settings.open_health else frozenset(),
        max_body_bytes=settings.max_body_bytes,
        metrics=engine.metrics,
    )
    return app


def describe(loaded: LoadedModel, engine: Engine) -> dict[str, Any]:
    """The model's structure as ``GET /v1/model/structure`` gives it."""
    config = loaded.model.config.get_text_config()
    hook_points = [
        {
            "name": name,
            "width": loaded.sites[layers[0]][name].width,
            "shape": ["tokens", loaded.sites[layers[0]][name].width],
            "layers": "all" if len(layers) == loaded.num_layers else layers,
        }
        for name, layers in loaded.hook_points().items()
    ]
    return {
        "model": loaded.name,
        "revision": loaded.revision,
        "dtype": loaded.dtype,
        "architecture": type(loaded.model).__name__,
        "num_layers": loaded.num_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "context_length": engine.context_length,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "layers_path": loaded.layers_path,
        "hook_points": hook_points,
        "not_capturable": loaded.unreadable,
        "default_hook_points": loaded.default_hook_points(),
        "server": {**_versions(), "device": str(loaded.model.device)},
    }


def _versions() -> dict[str, str]:
    return {
        "version": emopfx_server.__version__,
        "transformers": transformers.__version__,
        "nnsight": nnsight.__version__,
        "torch": str(torch.__version__),
    }


class _Server(uvicorn.Server):
    """uvicorn, that says when it is ready, drains on a signal, and ends when the engine does."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        self._loop = asyncio.get_running_loop()
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        sys.stdout.write(f"emopfx-server ready on http://{host}:{port}\n")
        sys.stdout.flush()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or not self._engine.alive

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._engine.drain)
        super().handle_exit(sig, frame)


def main() -> None:
    """Run the ``emopfx-server`` command."""
    try:
        _serve()
    except KeyboardInterrupt:
        sys.exit(130)  # as the shell says it: what was to be finished is


def _serve() -> None:
    try:
        settings = Settings(_cli_parse_args=True)
        set_up(settings.log_format, settings.log_level)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        loaded = load(settings.model, revision=settings.revision, dtype=settings.dtype)
        engine = Engine(
            loaded,
            max_batch_size=settings.max_batch_size,
            capture_bytes=settings.capture_bytes,
            writers=settings.writers,
            max_queue=settings.max_queue,
            disk_floor=settings.disk_floor,
        )
        app = create_app(settings, loaded, engine)
    except ValidationError as error:
        first = error.errors()[0]
        _fail(f"{first['loc'][0]}: {first['msg']}, not {first['input']!r}", code=2)
    except (ModelError, SettingsError, OSError) as error:
        _fail(str(error), code=2)
    config = uvicorn.Config(app, host=settings.host, port=settings.port, log_config=None, access_log=False)
    server = _Server(config, engine)
    server.run()
    if not server.started or not engine.draining:
        _fail("the engine or the listener has stopped; the lines above say why", code=1)


def _fail(message: str, *, code: int) -> NoReturn:
    sys.stderr.write(f"emopfx-server: {message}\n")
    sys.exit(code)
