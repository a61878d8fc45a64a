"""A small client for the server's own routes; answers are sampled in `sampling`."""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from emopfx.errors import InputError, RunError

API_KEY_VARIABLE = "EMOPFX_API_KEY"
# Proxies from the environment are for the world outside, even where NO_PROXY does not say so.
DIRECT = {"all://127.0.0.1": None, "all://localhost": None}


def authorization() -> dict[str, str]:
    """Return the headers that carry the key in EMOPFX_API_KEY, if there is one."""
    key = os.environ.get(API_KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def error_message(response: httpx.Response) -> str:
    """Return the sentence in an error's body (`{"error": {"message": …}}`), or the status if it has none."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {response.status_code}"


class Unreachable(RunError):
    """The server did not answer."""


@dataclass(frozen=True)
class HookPoint:
    """A place inside a layer that can be captured: its width, and the layers that have it (None: all)."""

    name: str
    width: int
    layers: frozenset[int] | None


@dataclass(frozen=True)
class Structure:
    """What model a server serves; `raw` is all it says about it."""

    model: str
    revision: str | None
    dtype: str
    num_layers: int
    hook_points: tuple[HookPoint, ...]
    raw: dict[str, Any]


class ServerApi:
    """Talks to one server; use it as a context manager.

    Args:
        url: Where the server is, such as http://127.0.0.1:8000.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"the server's address must begin with http:// or https://, got {url!r}")
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, headers=authorization(), timeout=30, mounts=DIRECT)

    def __enter__(self) -> "ServerApi":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def wait_ready(self, seconds: float) -> None:
        """Wait until the server is ready to answer.

        Raises:
            RunError: If it isn't within that many seconds, with what it said last.
        """
        deadline = time.monotonic() + seconds
        while (reason := self.not_ready()) is not None:
            if time.monotonic() > deadline:
                raise RunError(f"the server at {self.url} was not ready within {seconds:.0f} s: {reason}")
            time.sleep(min(1.0, seconds / 10))

    def not_ready(self) -> str | None:
        """Return why the server can't answer now, None if it can."""
        try:
            response = self._http.get("/readyz")
        except httpx.TransportError as error:
            return str(error) or type(error).__name__
        return None if response.is_success else error_message(response)

    def structure(self) -> Structure:
        """Return what model the server serves."""
        raw = self._get("/v1/model/structure").json()
        hook_points = tuple(_hook_point(item) for item in raw["hook_points"])
        return Structure(raw["model"], raw["revision"], raw["dtype"], raw["num_layers"], hook_points, raw)

    def file_sizes(self, save_dir: str) -> dict[str, int] | None:
        """Return the names and sizes of the files in a folder of the server's data, None if there is none."""
        response = self._get(f"/v1/activations/{save_dir}", missing_ok=True)
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        return {item["name"]: item["bytes"] for item in response.json()["entries"] if item["type"] == "file"}

    def entries(self, folder: str) -> list[dict[str, Any]]:
        """Return what lies in a folder of the server's data: name, type ("file" or "directory") and bytes of each."""
        entries: list[dict[str, Any]] = self._get(f"/v1/activations/{folder}").json()["entries"]
        return entries

    def read(self, path: str) -> bytes | None:
        """Return the content of a file of the server's data, None if there is none."""
        response = self._get(f"/v1/activations/{path}", missing_ok=True)
        return None if response.status_code == httpx.codes.NOT_FOUND else response.content

    @contextmanager
    def stream(self, path: str, start: int = 0) -> Iterator[Iterator[bytes]]:
        """Yield the content of a file of the server's data from its `start`-th byte on, block by block.

        Raises:
            RunError: If the server can't be reached, loses the connection, or refuses.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        expected = httpx.codes.PARTIAL_CONTENT if start else httpx.codes.OK
        try:
            with self._http.stream("GET", f"/v1/activations/{path}", headers=headers) as response:
                if response.status_code != expected:
                    response.read()
                    raise RunError(f"the server at {self.url} refused {path}: {error_message(response)}")
                yield response.iter_raw()
        except httpx.TransportError as error:
            raise Unreachable(f"the server at {self.url} was lost: {error or type(error).__name__}") from None

    def file_sha256(self, path: str) -> str:
        """Read a file of the server's data and return its SHA-256 (hex)."""
        sha = hashlib.sha256()
        with self._http.stream("GET", f"/v1/activations/{path}") as response:
            for block in response.iter_bytes():
                sha.update(block)
        return sha.hexdigest()

    def _get(self, path: str, *, missing_ok: bool = False) -> httpx.Response:
        try:
            response = self._http.get(path)
        except httpx.TransportError as error:
            raise Unreachable(f"the server at {self.url} can't be reached: {error or type(error).__name__}") from None
        if response.is_success or (missing_ok and response.status_code == httpx.codes.NOT_FOUND):
            return response
        raise RunError(f"the server at {self.url} refused GET {path}: {error_message(response)}")


def _hook_point(item: Mapping[str, Any]) -> HookPoint:
    layers = item["layers"]
    return HookPoint(item["name"], item["width"], None if layers == "all" else frozenset(layers))
