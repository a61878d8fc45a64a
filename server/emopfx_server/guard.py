"""What stands before every request: the key, the limit on its size, its id, its line in the log, its count."""

import hmac
import logging
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emopfx_server.logs import request_id
from emopfx_server.metrics import Metrics
from emopfx_server.schemas import ApiError

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})

_LOGGED = 200  # characters of a path

_log = logging.getLogger(__name__)


class Guard:
    """Lets requests through to the API.

    Args:
        app: The API.
        key: What clients must send as bearer token, or None for no key.
        open_paths: Paths that need no key.
        max_body_bytes: The largest body that is read.
        metrics: Where requests are counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None,
        open_paths: frozenset[str],
        max_body_bytes: int,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._key = None if key is None else key.encode()
        self._open_paths = open_paths
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        name = request_id.name(secrets.token_hex(8))
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name.value
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, self._limited(receive), send_named)
            else:
                headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
                await JSONResponse(refusal.body(), refusal.status, headers)(scope, receive, send_named)
        except Exception:
            if status:  # too late for another answer; uvicorn logs it and breaks off
                raise
            _log.exception("%s %s failed", scope["method"], _target(scope))
            failure = ApiError(500, "The server failed; its log says why.", code="internal_error")
            await JSONResponse(failure.body(), failure.status)(scope, receive, send_named)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, status).inc()
            level = logging.DEBUG if path in OPEN_PATHS else logging.INFO
            seconds = time.monotonic() - start
            _log.log(level, "%s %s: %s after %.3f s", scope["method"], _target(scope), status or "hung up", seconds)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._key is not None and scope["path"] not in self._open_paths:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            # In constant time, so that a key can't be guessed piece by piece.
            if not hmac.compare_digest(given.strip().encode("latin-1"), self._key) or scheme.lower() != "bearer":
                message = "The API key is missing or wrong; send it as 'Authorization: Bearer …'."
                return ApiError(401, message, code="invalid_api_key")
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > self._max_body_bytes:
            return ApiError(413, self._too_large(), code="request_too_large")
        return None

    def _limited(self, receive: Receive) -> Receive:
        """A body without a stated length is counted while it comes."""
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise HTTPException(413, self._too_large().rstrip("."))
            return message

        return receive_limited

    def _too_large(self) -> str:
        return f"The body is larger than the {self._max_body_bytes:,} bytes that this server reads."


def _target(scope: Scope) -> str:
    """The path as it was sent, which can't end a line of the log."""
    target: str = scope["raw_path"].decode("latin-1")
    return target if len(target) <= _LOGGED else f"{target[:_LOGGED]}…"
