"""Many clients at once: all are answered in the order they came, in bounded memory; those who leave leave nothing.

``EMOPFX_LOAD=1000,200`` says how many come, and how many hang up.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.server.serving import RunningServer, serve, wait_until_idle
from tests.server.test_api import body
from tests.server.test_streaming import LONG, hang_up

CLIENTS, LEAVING = map(int, os.environ.get("EMOPFX_LOAD", "1000,200").split(","))


async def ask_all(server: RunningServer, names: list[str]) -> list[tuple[str, int]]:
    """Everybody at once; names and HTTP statuses, in the order of the answers."""
    answered: list[tuple[str, int]] = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:

        async def ask(name: str) -> None:
            ndif = {"request_id": name, "save_dir": "load", "positions": "last"}
            request = body(f"Tom has {len(answered) % 9} apples.", max_tokens=12, logit_bias={"2": -100}, ndif=ndif)
            response = await client.post("/v1/chat/completions", json=request)
            answered.append((name, response.status_code))

        await asyncio.gather(*map(ask, names))
    return answered


def running_order(log: Path) -> list[str]:
    """The requests' ids, in the order in which the server was done with them."""
    lines = [line for line in log.read_text().splitlines() if "generated, length" in line]
    return [line.rpartition("[")[2].rstrip("]") for line in lines]


def arrival_order(log: Path) -> list[str]:
    lines = [line for line in log.read_text().splitlines() if "waits for its turn" in line]
    return [line.rpartition("[")[2].rstrip("]") for line in lines]


def test_everybody_is_answered_in_turn_and_memory_is_bounded(tmp_path: Path) -> None:
    with serve("tiny", tmp_path / "data", "--max-batch-size", "16", "--log-level", "debug") as server:
        process = psutil.Process(server.process.pid)
        asyncio.run(ask_all(server, [f"warm-{number}" for number in range(50)]))
        before = process.memory_info().rss
        answered = asyncio.run(ask_all(server, [f"client-{number}" for number in range(CLIENTS)]))
        grown = process.memory_info().rss - before
        assert {status for _, status in answered} == {200}
        assert len(list(server.data.rglob("metadata.json"))) == CLIENTS + 50
        assert not list(server.data.rglob("*.partial"))
        wait_until_idle(server)
        assert grown < 64e6 + CLIENTS * 100e3
        log = tmp_path / "data.server.log"
        arrived, done = arrival_order(log)[50:], running_order(log)[50:]
    place = {name: index for index, name in enumerate(arrived)}
    # All answers are of one length, so nobody is done before more of those who came earlier than have a place at once.
    # (A disk that stalls may hold up one answer for long, and move all others up by one.)
    assert max(place[name] - index for index, name in enumerate(done)) <= 2 * 16


def test_of_those_who_leave_nothing_is_left(tmp_path: Path) -> None:
    async def everybody(server: RunningServer) -> list[tuple[str, int]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
            leaving = [hang_up(client, True, number) for number in range(LEAVING)]
            staying = ask_all(server, [f"stays-{number}" for number in range(20)])
            answers = asyncio.create_task(staying)
            await asyncio.gather(*leaving)
            return await answers

    with serve("tiny", tmp_path / "data") as server:
        answered = asyncio.run(everybody(server))
        left = wait_until_idle(server)
        assert {status for _, status in answered} == {200}
        assert left['emopfx_answers_total{outcome="given up"}'] == LEAVING
        assert not (server.data / "gone").exists()
        assert len(list(server.data.rglob("metadata.json"))) == 20
        open_files = [file.path for file in psutil.Process(server.process.pid).open_files()]
        assert [path for path in open_files if path.startswith(f"{server.data}/")] == []
        # What they held of the cache is free again: as much as a fresh server takes is taken at once.
        long: dict[str, Any] = {**LONG, "max_tokens": 1500, "ndif": {"capture": False}}
        with server.client(120) as client:
            assert client.post("/v1/chat/completions", json=body(**long)).json()["usage"]["completion_tokens"] == 1500
