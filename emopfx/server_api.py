"""A small client for the server's own routes; answers are sampled in `sampling`."""

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from emopfx.errors import InputError, RunError
from emopfx.progress import say

API_KEY_VARIABLE = "EMOPFX_API_KEY"
# Proxies from the environment are for the world outside, even where NO_PROXY does not say so.
DIRECT = {"all://127.0.0.1": None, "all://localhost": None}
ADDRESS_PATTERN = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[^\s/:?#\[\]]+)(?::(?P<port>[0-9]{1,5}))?(?:/[^\s?#]*)?")
HEALTH_SECONDS = 5.0


def read_address(text: str) -> str:
    """Return a server's address, without a slash at its end.

    Raises:
        InputError: If it is none, or holds credentials: addresses are shown, and kept with the results.
    """
    if "@" in text:
        raise InputError(f"the server's address must hold no user or password; a key goes into {API_KEY_VARIABLE}")
    match = ADDRESS_PATTERN.fullmatch(text)
    try:
        good = match is not None and int(match["port"] or 0) < 1 << 16 and httpx.URL(text).host.encode("idna")
    except (httpx.InvalidURL, UnicodeError):
        good = False
    if not good:
        raise InputError(
            "the server's address must begin with http:// or https://, followed by a host and perhaps a port, as in "
            f"http://127.0.0.1:8000, got {text!r}"
        )
    return text.rstrip("/")


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
    """A place inside a layer that can be captured, and the layers that have it (None: all)."""

    name: str
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
        self.url = read_address(url)
        self._http = httpx.Client(base_url=self.url, headers=authorization(), timeout=30, mounts=DIRECT)

    def __enter__(self) -> "ServerApi":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def wait_ready(self, seconds: float, away_seconds: float) -> None:
        """Wait until the server is ready to answer, and say why.

        Args:
            seconds: How long to wait at most.
            away_seconds: How long to wait at most while nobody answers at all.

        Raises:
            InputError: If what answers is another kind of server, or asks for another API key.
            RunError: If it isn't ready by then, with what it said last.
        """
        began = answered = time.monotonic()
        told = ""
        while problem := self._problem():
            reason, away = problem
            moment = time.monotonic()
            answered = answered if away else moment
            if moment - began > seconds or moment - answered > away_seconds:
                raise RunError(f"the server at {self.url} was not ready within {moment - began:.0f} s: {reason}")
            if reason != told:
                told = reason
                say(f"waiting for the server at {self.url}: {reason}")
            time.sleep(min(1.0, seconds / 10))

    def not_ready(self) -> str | None:
        """Return why the server can't answer now, None if it can.

        Raises:
            InputError: If what answers is another kind of server, or asks for another API key.
        """
        problem = self._problem()
        return problem and problem[0]

    def _problem(self) -> tuple[str, bool] | None:
        """Return why the server can't answer now, and whether that is because nobody is there."""
        try:
            response = self._http.get("/readyz")
        except httpx.RequestError as error:
            return str(error) or type(error).__name__, True
        if response.is_success:
            return None
        if response.is_server_error or response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            return error_message(response), False
        refusal = self._refusal("GET /readyz", response)
        raise refusal if isinstance(refusal, InputError) else self._other_kind("/readyz")

    def is_alive(self) -> bool:
        """Whether a server answers, ready or not."""
        try:
            response = self._http.get("/healthz", timeout=HEALTH_SECONDS)
        except httpx.RequestError:
            return False
        return response.status_code in (httpx.codes.OK, httpx.codes.UNAUTHORIZED, httpx.codes.SERVICE_UNAVAILABLE)

    def structure(self) -> Structure:
        """Return what model the server serves."""
        response = self._get("/v1/model/structure")
        try:
            raw = response.json()
            hook_points = tuple(_hook_point(item) for item in raw["hook_points"])
            return Structure(raw["model"], raw["revision"], raw["dtype"], raw["num_layers"], hook_points, raw)
        except (ValueError, LookupError, TypeError):
            raise self._other_kind("/v1/model/structure") from None

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
            InputError: If the server asks for another API key.
            RunError: If the server can't be reached, loses the connection, or refuses otherwise.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        expected = httpx.codes.PARTIAL_CONTENT if start else httpx.codes.OK
        try:
            with self._http.stream("GET", f"/v1/activations/{path}", headers=headers) as response:
                if response.status_code != expected:
                    response.read()
                    raise self._refusal(path, response)
                yield response.iter_raw()
        except httpx.TransportError as error:
            raise Unreachable(f"the server at {self.url} was lost: {error or type(error).__name__}") from None

    def file_sha256(self, path: str) -> str:
        """Read a file of the server's data and return its SHA-256 (hex).

        Raises:
            InputError, RunError: As `stream` does.
        """
        sha = hashlib.sha256()
        with self.stream(path) as blocks:
            for block in blocks:
                sha.update(block)
        return sha.hexdigest()

    def _get(self, path: str, *, missing_ok: bool = False) -> httpx.Response:
        try:
            response = self._http.get(path)
        except httpx.RequestError as error:
            raise Unreachable(f"the server at {self.url} can't be reached: {error or type(error).__name__}") from None
        if response.is_success or (missing_ok and response.status_code == httpx.codes.NOT_FOUND):
            return response
        raise self._refusal(f"GET {path}", response)

    def _other_kind(self, path: str) -> InputError:
        return InputError(f"what answers at {self.url} is no emopfx-server: it does not have {path}")

    def _refusal(self, what: str, response: httpx.Response) -> InputError | RunError:
        refused = f"the server at {self.url} refused {what}: {error_message(response)}"
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return InputError(f"{refused}; {API_KEY_VARIABLE} must be the key that the server asks for")
        return RunError(refused)


def _hook_point(item: Mapping[str, Any]) -> HookPoint:
    layers = item["layers"]
    return HookPoint(item["name"], None if layers == "all" else frozenset(layers))
