"""Asks the server: `rollouts` with a provider of our own for OpenAI-style servers, named `vllm`.

The `rollouts` package checks the sampling parameters and carries the answer. Its own provider opens a
connection per request, repeats refused requests and turns errors into empty lists, so that is replaced. Its
cache is off, because what is done is decided by the result files. Its repeats are not used, because it can't
number seeds from a given one (`n_samples` must be 1 then): every repeat is a request with its own seed and
request id.
"""

import asyncio
import email.utils
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from rollouts import Response, RolloutsClient, Usage

from emopfx import server_api
from emopfx.balancing import Balancer
from emopfx.errors import InputError
from emopfx.progress import say

# What RolloutsClient puts into its config for itself; the rest goes to the server.
_OWN_KEYS = {
    *("max_retries", "timeout", "verbose", "use_cache", "cache_dir", "requests_per_minute", "progress_bar"),
    *("provider", "provider_config", "extra_params", "base_url", "connections"),
}
# Nobody is there who can answer (yet): the server starts, drains, is busy, or is lost to a gateway.
_WAIT_STATUS = {429, 502, 503, 504}
_DISK_FULL = 507


class SamplingError(Exception):
    """A request that failed for good.

    Attributes:
        hopeless: Whether every other request would fail in the same way.
    """

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless


@dataclass
class CapturedResponse(Response):  # type: ignore[misc]  # rollouts is not typed
    """An answer with the server's breadcrumb, the seconds it took, and how often it was asked for."""

    ndif: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    attempts: int = 1


class VllmProvider:
    """Sends requests over one pool of connections, and repeats those that are worth repeating.

    Where the address names several servers, each request goes to the one that has the fewest.

    Connection errors, 429 and 5xx are repeated with growing, jittered pauses, or after the server's
    Retry-After; other 4xx and 507 (disk full) are not. A request waits up to `patience` seconds in all, and a server
    that is gone is told of once.

    Args:
        base_url: Where the server is, such as http://127.0.0.1:8000.
        api_key: Sent as bearer token, if given.
        connections: Most connections at once.
        patience: Seconds to wait for a server that is away or busy before giving up, whatever it asks for.
        first_pause: Seconds before the first repetition; doubled each time, up to 30.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        connections: int = 32,
        patience: float = 600.0,
        first_pause: float = 0.5,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else server_api.authorization()
        self.retries = 0
        self._told: set[str] = set()
        self._patience, self._first_pause = patience, first_pause
        self._balancer = Balancer(f"{base_url.rstrip('/')}/v1/chat/completions")
        self._host = httpx.URL(base_url).netloc.decode()
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx.AsyncClient(headers=headers, limits=limits, mounts=server_api.DIRECT)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def generate_single(
        self,
        prompt: list[dict[str, str]],
        config: Mapping[str, Any],
        seed: int | None = None,
        api_key: str | None = None,
        rate_limiter: object = None,
    ) -> CapturedResponse:
        """Return the answer to one chat.

        Args:
            prompt: The messages.
            config: Sampling parameters, and `extra_params`, which are merged into the request's body.
            seed: Seed of the sampling.
            api_key: Not used, as is the next: RolloutsClient calls with both.
            rate_limiter: Not used.

        Raises:
            SamplingError: If the server refused the request or could not be reached in time.
        """
        body = {key: value for key, value in config.items() if key not in _OWN_KEYS and value is not None}
        body |= {"messages": prompt, "seed": seed, **config.get("extra_params", {})}
        start = time.monotonic()
        attempt, waited = 1, 0.0
        while True:
            pause, problem, away = 0.0, "", True
            try:
                async with self._balancer.server() as url:
                    reply = await self._http.post(
                        url,
                        json=body,
                        headers={"Host": self._host},
                        timeout=httpx.Timeout(config["timeout"], connect=10),
                    )
            except httpx.TransportError as error:
                problem = f"the connection failed ({str(error) or type(error).__name__})"
                self._tell(f"generate: waiting for the server: {problem}")
            except httpx.RequestError as error:
                raise SamplingError(f"the server's answer can't be read: {error}") from None
            else:
                if reply.is_success:
                    self._told.clear()
                    return _response(reply, seed, time.monotonic() - start, attempt)
                problem = server_api.error_message(reply)
                pause, away = _retry_after(reply), reply.status_code in _WAIT_STATUS
                _raise_if_final(reply, problem)
            if not away and attempt > config["max_retries"]:
                raise SamplingError(f"{problem} (asked {attempt} times)")
            left = self._patience - waited
            if left <= 0:
                raise SamplingError(f"{problem}; gave up after waiting {waited:.0f} s", hopeless=away)
            pause = max(pause, min(30.0, self._first_pause * 2 ** min(attempt - 1, 10)))
            pause = min(pause * random.uniform(1.0, 1.5), left)
            self.retries += 1
            waited += pause
            attempt += 1
            await asyncio.sleep(pause)

    def _tell(self, line: str) -> None:
        # Many requests wait for the same server.
        if line not in self._told:
            self._told.add(line)
            say(line)


def _raise_if_final(reply: httpx.Response, problem: str) -> None:
    status = reply.status_code
    if status == _DISK_FULL or (status < 500 and status not in _WAIT_STATUS):
        # A wrong key, an unknown model and a full disk are the same for all; 400 and 409 are about this one.
        raise SamplingError(problem, hopeless=status in (401, 403, 404, _DISK_FULL))


def _retry_after(reply: httpx.Response) -> float:
    """Return the seconds that a Retry-After header asks for (a number or a date), 0 without one."""
    text = reply.headers.get("Retry-After", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _response(reply: httpx.Response, seed: int | None, seconds: float, attempts: int) -> CapturedResponse:
    try:
        value = reply.json()
        choice = value["choices"][0]
        content = choice["message"]["content"] or ""
        # Half of a surrogate pair is JSON, but can't be written down.
        content.encode()
        usage = {key: int(value["usage"][key]) for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
        ndif = value.get("ndif") or {}
        if not isinstance(ndif, dict):
            raise TypeError(f"ndif is {ndif!r}")
        return CapturedResponse(
            full=content,
            content=content,
            finish_reason=choice["finish_reason"],
            provider="vllm",
            response_id=value["id"],
            model=value["model"],
            object=value["object"],
            created=value["created"],
            usage=Usage(**usage),
            seed=seed,
            completed_reasoning=True,
            ndif=ndif,
            seconds=seconds,
            attempts=attempts,
        )
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise SamplingError(f"the server's answer is not a chat completion: {error!r}") from None


class VllmClient(RolloutsClient):  # type: ignore[misc]  # rollouts is not typed
    """A RolloutsClient that asks the server at `base_url` and keeps nothing on disk.

    Args:
        model: The model's name, as the server knows it.
        base_url: Where the server is.
        connections: Most connections at once.
        parameters: temperature, top_p and max_tokens.
    """

    provider: VllmProvider

    def __init__(self, model: str, base_url: str, connections: int, **parameters: float | None) -> None:
        self.base_url, self.connections = base_url, connections
        try:
            # The time limit is for one answer of a busy server; a server that is gone closes the connection.
            super().__init__(
                model=model, use_cache=False, progress_bar=False, max_retries=3, timeout=1800, **parameters
            )
        except ValueError as error:
            raise InputError(str(error)) from None

    def _init_provider(self, api_key: str | None = None) -> None:
        self.provider = VllmProvider(self.base_url, api_key, connections=self.connections)

    async def ask(self, messages: list[dict[str, str]], seed: int, ndif: Mapping[str, Any]) -> CapturedResponse:
        """Return the answer to a chat; `ndif` says what to capture, and under which request id.

        Raises:
            SamplingError: As `VllmProvider.generate_single` does.
        """
        rollouts = await self.agenerate(messages, seed=seed, extra_params={"ndif": dict(ndif)})
        answer: CapturedResponse = rollouts[0]
        return answer
