import asyncio
import socket
from contextlib import AsyncExitStack, suppress
from typing import Any

import httpx
import pytest

from emopfx.balancing import Balancer


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that the name `servers` stands for; a real name service can't be had in a test."""
    addresses = ["127.0.0.1", "127.0.0.2"]
    real = socket.getaddrinfo

    def lookup(host: Any, *rest: Any, **options: Any) -> Any:
        if host != "servers":
            return real(host, *rest, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 8000)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return addresses


def test_each_request_goes_to_the_server_with_the_fewest(named: list[str]) -> None:
    async def work() -> list[str]:
        balancer, hosts = Balancer("http://servers:8000/v1"), []
        async with AsyncExitStack() as slow:
            for _ in range(4):
                hosts.append((await slow.enter_async_context(balancer.server())).host)
        async with balancer.server() as first, balancer.server() as second:
            hosts += [first.host, second.host]
        return hosts

    hosts = asyncio.run(work())
    assert sorted(hosts[:4]) == ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]
    assert set(hosts[4:]) == {"127.0.0.1", "127.0.0.2"}


def test_a_server_that_is_gone_is_looked_up_again(named: list[str]) -> None:
    async def work() -> httpx.URL:
        balancer = Balancer("http://servers:8000")
        with suppress(httpx.ConnectError):
            async with balancer.server():
                named.remove("127.0.0.1")
                raise httpx.ConnectError("gone")
        async with balancer.server() as url:
            return url

    assert asyncio.run(work()) == "http://servers:8000"


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/x", "http://127.0.0.1:8000", "https://servers", "http://no.such"]
)
@pytest.mark.usefixtures("named")
def test_one_server_is_asked_by_its_name(url: str) -> None:
    async def work() -> httpx.URL:
        async with Balancer(url).server() as found:
            return found

    assert asyncio.run(work()) == url
