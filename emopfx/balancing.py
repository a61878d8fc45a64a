"""Spreads requests over the servers behind one name: a headless Service names every pod that is ready."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

RESOLVE_SECONDS = 5.0


class Balancer:
    """Gives each request to the server that has the fewest of them.

    Args:
        url: Where the servers are, such as http://emopfx-server-headless:8000.
    """

    def __init__(self, url: str) -> None:
        self._url = httpx.URL(url)
        self._at_work: Counter[str] = Counter()
        self._addresses: list[str] = []
        self._resolve_at = 0.0

    @asynccontextmanager
    async def server(self) -> AsyncIterator[httpx.URL]:
        """The address to send one request to, which counts as that server's until the block ends."""
        addresses = await self._resolve()
        if len(addresses) < 2:
            yield self._url
            return
        address = min(addresses, key=self._at_work.__getitem__)
        self._at_work[address] += 1
        try:
            yield self._url.copy_with(host=address)
        except httpx.TransportError:
            self._resolve_at = 0.0
            raise
        finally:
            self._at_work[address] -= 1

    async def _resolve(self) -> list[str]:
        """The servers' addresses, asked for anew now and then, because servers come and go."""
        if self._url.scheme == "https" or time.monotonic() < self._resolve_at:
            return self._addresses
        loop = asyncio.get_running_loop()
        try:
            # One family only: a host with an address of each is one server.
            found = await loop.getaddrinfo(
                self._url.host, self._url.port, family=socket.AF_INET, type=socket.SOCK_STREAM
            )
        except OSError:
            found = []  # the request itself will say what is wrong
        self._addresses = sorted({str(address[0]) for *_, address in found})
        self._resolve_at = time.monotonic() + RESOLVE_SECONDS
        return self._addresses
