"""One request, one answer, one folder: however often, from wherever and beside whatever it is asked."""

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file

from emopfx_server.engine.requests import Answer, Outcome
from emopfx_server.engine.writer import read_committed
from emopfx_server.memory import Memory
from tests.server.serving import RunningServer, serve, wait_until_idle
from tests.server.test_api import ask, body, refusal
from tests.server.test_streaming import LONG


@pytest.fixture
def two_servers(tmp_path: Path) -> Iterator[list[RunningServer]]:
    """As replicas on one disk."""
    with serve("tiny", tmp_path / "data") as one, serve("tiny", tmp_path / "data") as other:
        yield [one, other]


def test_one_id_in_several_folders_at_once(tiny_server: RunningServer) -> None:
    def send(index: int) -> Any:
        ndif = {"request_id": "same", "save_dir": f"siblings/{index}", "per_request_subdir": False, "dtype": "float32"}
        return ask(tiny_server, "apples " * (1 + index), ndif=ndif)

    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(send, range(12)))
    assert [response.status_code for response in responses] == [200] * 12
    for index, response in enumerate(responses):
        folder = tiny_server.data / "siblings" / str(index)
        rows = load_file(folder / "activations.safetensors")["token_ids"]
        assert len(rows) == response.json()["ndif"]["tokens"] == response.json()["usage"]["total_tokens"] - 1
        committed = read_committed(folder)
        assert committed is not None
        assert committed.whole


def test_two_servers_of_one_folder_give_one_answer(two_servers: list[RunningServer]) -> None:
    def send(index: int) -> Any:
        ndif = {"request_id": f"shared-{index // 2}", "save_dir": "shared", "dtype": "float32"}
        return ask(two_servers[index % 2], temperature=1, seed=index // 2, ndif=ndif)

    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(send, range(16)))
    assert [response.status_code for response in responses] == [200] * 16
    crumbs = [response.json()["ndif"] for response in responses]
    for one, other in zip(crumbs[::2], crumbs[1::2], strict=True):
        assert one["files"] == other["files"]
        assert one["replayed"] + other["replayed"] == 1
    assert len(list(two_servers[0].data.rglob("metadata.json"))) == 8
    assert not list(two_servers[0].data.rglob("*.partial"))


def test_another_model_is_another_request(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"ndif": {"request_id": "again", "save_dir": "model"}}
    with serve("tiny", tmp_path / "data") as server:
        assert ask(server, **fields).status_code == 200
    with serve("tiny", tmp_path / "data", "--dtype", "bfloat16") as server:
        assert "already holds something else" in refusal(ask(server, **fields), 409)


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("capture", [True, False])
def test_another_number_of_choices_is_another_request(
    tiny_server: RunningServer, first: int, then: int, capture: bool
) -> None:
    ndif = {"request_id": f"n-{first}-{then}-{capture}", "save_dir": "numbers", "capture": capture}
    assert ask(tiny_server, n=first, ndif=ndif).status_code == 200
    response = ask(tiny_server, n=then, ndif=ndif)
    assert "taken" in refusal(response, 409)
    assert response.headers["x-should-retry"] == "false"
    assert ask(tiny_server, n=first, ndif=ndif).status_code == 200


def test_what_was_committed_is_not_written_into(tiny_server: RunningServer) -> None:
    assert ask(tiny_server, ndif={"request_id": "one", "save_dir": "nested"}).status_code == 200
    for ndif in (
        {"request_id": "two", "save_dir": "nested/one"},
        {"request_id": "two", "save_dir": "nested/one/deep/deeper"},
        {"request_id": "two", "save_dir": "nested/one/deep", "per_request_subdir": False},
    ):
        for n in (1, 2):
            assert "lies in another request's folder" in refusal(ask(tiny_server, n=n, ndif=ndif), 409)
    assert "already holds" in refusal(ask(tiny_server, ndif={"save_dir": "nested", "per_request_subdir": False}), 409)
    assert {path.name for path in (tiny_server.data / "nested").rglob("*")} == {
        "one",
        "activations.safetensors",
        "metadata.json",
    }


def test_one_of_two_at_once_has_the_folder(tiny_server: RunningServer) -> None:
    """Whichever of them lies in the other's."""
    wishes = [
        (1, {"request_id": "id", "save_dir": "above"}),
        (2, {"request_id": "id", "save_dir": "above"}),
        (1, {"request_id": "0", "save_dir": "above/id"}),
    ]
    with ThreadPoolExecutor(3) as pool:
        responses = list(pool.map(lambda wish: ask(tiny_server, n=wish[0], ndif=wish[1]), wishes))
    assert sorted(response.status_code for response in responses) == [200, 409, 409]


@pytest.mark.parametrize("name", ["metadata.json", "activations.safetensors"])
def test_the_names_of_the_files_are_not_for_requests(tiny_server: RunningServer, name: str) -> None:
    assert "is the name of a file" in refusal(ask(tiny_server, ndif={"save_dir": "md", "request_id": name}))
    assert "server's files" in refusal(ask(tiny_server, ndif={"save_dir": f"md/{name}/x"}))
    (tiny_server.data / "odd-names" / name).mkdir(parents=True)
    odd = {"save_dir": "odd-names", "per_request_subdir": False}
    assert "already holds something else" in refusal(ask(tiny_server, ndif=odd), 409)
    for content in ("[]", '{"answer": 1}', '{"answer": 1, "fingerprint": "f", "files": [1]}'):
        folder = tiny_server.data / f"foreign-{len(content)}"
        folder.mkdir(exist_ok=True)
        (folder / "metadata.json").write_text(content)
        foreign = {"save_dir": folder.name, "per_request_subdir": False}
        assert "already holds something else" in refusal(ask(tiny_server, ndif=foreign), 409)


def test_without_files_a_retry_is_answered_from_memory(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"temperature": 1, "n": 2, "logprobs": True}
    ndif = {"request_id": "remembered", "capture": False}
    first = ask(tiny_server, **fields, ndif=ndif).json()
    second = ask(tiny_server, **fields, ndif=ndif).json()
    assert [crumb.pop("replayed") for crumb in first["ndif"]["choices"]] == [False, False]
    assert [crumb.pop("replayed") for crumb in second["ndif"]["choices"]] == [True, True]
    assert second == first
    assert "taken" in refusal(ask(tiny_server, "Another?", **fields, ndif=ndif), 409)
    unnamed = [ask(tiny_server, temperature=2, ndif={"capture": False}).json()["ndif"]["replayed"] for _ in range(2)]
    assert unnamed == [False, False]


def test_memory_is_bounded_and_keeps_what_is_asked_for() -> None:
    def outcome(text: str) -> list[Outcome]:
        return [Outcome(Answer(text, "stop", 1, 1, 0, 0), {}, [], replayed=False)]

    memory = Memory(room=3000)
    for index in range(100):
        memory.remember(str(index), "f", outcome("x" * 900))
        assert memory.recall("0") is not None, "it is asked for again and again"
    assert [index for index in range(100) if memory.recall(str(index))] == [0, 98, 99]
    memory.remember("large", "f", outcome("x" * 4000))
    assert memory.recall("large") is None


def sampled(name: str, n: int) -> dict[str, Any]:
    """Choices of which some end long before others."""
    fields = {**LONG, "temperature": 1.5, "seed": 3, "stop": ["89"], "max_tokens": 800}
    return {**body(**fields), "n": n, "ndif": {"request_id": name, "save_dir": "left", "layers": [0]}}


async def leave_when_one_is_committed(server: RunningServer, request: dict[str, Any], *, stream: bool) -> None:
    """Hang up when one choice's files are there and others are not."""
    committed = server.data / "left" / request["ndif"]["request_id"]
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        asked = asyncio.create_task(client.post("/v1/chat/completions", json={**request, "stream": stream}))
        deadline = time.monotonic() + 60
        while not list(committed.glob("*/metadata.json")):
            assert not asked.done()
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert not asked.done()
        asked.cancel()


@pytest.mark.parametrize("stream", [False, True])
def test_of_choices_that_are_left_none_stays(tiny_server: RunningServer, stream: bool) -> None:
    request = sampled(f"stream-{stream}", 6)
    asyncio.run(leave_when_one_is_committed(tiny_server, request, stream=stream))
    wait_until_idle(tiny_server)
    folder, deadline = tiny_server.data / "left" / request["ndif"]["request_id"], time.monotonic() + 30
    while folder.exists():
        assert time.monotonic() < deadline, sorted(folder.rglob("*"))
        time.sleep(0.02)
    assert not list((tiny_server.data / "left").glob(f".{request['ndif']['request_id']}*"))


def test_a_retry_of_choices_that_were_left_is_answered(tiny_server: RunningServer) -> None:
    request = sampled("retried", 4)
    asyncio.run(leave_when_one_is_committed(tiny_server, request, stream=True))
    with tiny_server.client() as client:
        response = client.post("/v1/chat/completions", json=request)
    assert response.status_code == 200, response.text
    for crumb in response.json()["ndif"]["choices"]:
        committed = read_committed(tiny_server.data / crumb["save_dir"])
        assert committed is not None
        assert committed.whole


def test_choices_that_were_there_before_stay(tiny_server: RunningServer) -> None:
    request = sampled("replayed", 4)
    with tiny_server.client() as client:
        assert client.post("/v1/chat/completions", json=request).status_code == 200
    folder = tiny_server.data / "left" / "replayed"
    lost = max(range(4), key=lambda index: json.loads((folder / str(index) / "metadata.json").read_text())["tokens"])
    for path in (folder / str(lost)).iterdir():
        path.unlink()
    asyncio.run(leave_when_one_is_committed(tiny_server, request, stream=False))
    wait_until_idle(tiny_server)
    time.sleep(0.3)
    there = {int(path.parent.name) for path in folder.glob("*/metadata.json")}
    assert there == {0, 1, 2, 3} - {lost}


@pytest.mark.parametrize("damage", ["truncated", "missing", "changed"])
def test_damaged_files_are_made_again(tiny_server: RunningServer, damage: str) -> None:
    ndif = {"request_id": f"damaged-{damage}", "save_dir": "damaged"}
    folder = tiny_server.data / ask(tiny_server, ndif=ndif).json()["ndif"]["save_dir"]
    file = folder / "activations.safetensors"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:100] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    assert "already holds" in refusal(ask(tiny_server, "Another?", ndif=ndif), 409)
    again = ask(tiny_server, ndif=ndif)
    assert again.status_code == 200, again.text
    assert again.json()["ndif"]["replayed"] is False
    assert load_file(file).keys() == {*again.json()["ndif"]["shapes"], "token_ids", "positions"}
    assert ask(tiny_server, ndif=ndif).json()["ndif"]["replayed"] is True
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
