"""Answers that are streamed: the same as whole ones, piece by piece; and nothing is left when a client hangs up."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.serving import RunningServer, byte_tokenizer, save_random_model, serve, wait_until_idle
from tests.server.test_api import ask, body, refusal

LONG: dict[str, Any] = {"max_tokens": 2000, "temperature": 2, "logit_bias": {"2": -100}}
"""No end of text (token 2 of the built-in model), so that it goes on until it is stopped."""


@pytest.fixture(scope="module")
def byte_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A model that speaks random bytes."""
    folder = save_random_model("llama", tmp_path_factory.mktemp("bytes"), byte_tokenizer)
    with serve(str(folder), tmp_path_factory.mktemp("bytes-data")) as server:
        yield server


def events(server: RunningServer, **fields: Any) -> list[dict[str, Any]]:
    """A stream's events, without the mark at its end."""
    request = body(**{"stream": True, **fields})
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=request) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def test_order_of_the_chunks(tiny_server: RunningServer) -> None:
    whole = ask(tiny_server, ndif={"save_dir": "whole"}).json()
    chunks = events(tiny_server, stream_options={"include_usage": True}, ndif={"save_dir": "stream"})
    *deltas, end, usage = chunks
    assert deltas[0]["choices"][0]["delta"]["role"] == "assistant"
    assert len(deltas) > 5
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in deltas)
    assert (end["choices"][0]["finish_reason"], end["choices"][0]["delta"]) == ("stop", {})
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert all(chunk["usage"] is None and "ndif" not in chunk for chunk in [*deltas, end])
    assert usage["ndif"]["shapes"] == whole["ndif"]["shapes"]
    folder = tiny_server.data / usage["ndif"]["save_dir"]
    assert {file["name"] for file in usage["ndif"]["files"]} == {path.name for path in folder.iterdir()}
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert {(chunk["id"], chunk["object"], chunk["model"], chunk["created"]) for chunk in chunks} == {
        (chunks[0]["id"], "chat.completion.chunk", "tiny", chunks[0]["created"])
    }


def test_without_usage_the_breadcrumb_is_in_the_last_chunk(tiny_server: RunningServer) -> None:
    chunks = events(tiny_server)
    assert ["ndif" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert not any("usage" in chunk for chunk in chunks)


def test_stop_texts_across_tokens_never_leak(tiny_server: RunningServer) -> None:
    whole = ask(tiny_server, ndif={"capture": False}).json()["choices"][0]["message"]["content"]
    stop = whole[3:12]
    chunks = events(tiny_server, stop=[stop, "never"], ndif={"capture": False})
    assert text_of(chunks) == whole[: whole.index(stop)]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_characters_of_many_tokens_come_whole(byte_server: RunningServer) -> None:
    odd = 0
    for seed in range(8):
        fields: dict[str, Any] = {"temperature": 1.5, "seed": seed, "max_tokens": 200, "ndif": {"capture": False}}
        chunks = events(byte_server, **fields)
        whole = ask(byte_server, **fields).json()["choices"][0]["message"]["content"]
        assert text_of(chunks) == whole
        odd += any(ord(character) > 127 and character != "\ufffd" for character in whole)
    assert odd, "some answer must have a character of several tokens"


def told_in(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]


@pytest.mark.parametrize("stop", [[], ["e", "\ufffd\ufffd"]])
def test_log_probabilities_are_of_the_tokens_that_are_told(byte_server: RunningServer, stop: list[str]) -> None:
    """Also where a token is a part of a character, and where an answer ends before its last tokens."""
    for seed in range(4):
        fields: dict[str, Any] = {"temperature": 1.5, "seed": seed, "max_tokens": 60, "logprobs": True, "stop": stop}
        fields["ndif"] = {"capture": False}
        whole = ask(byte_server, **fields).json()["choices"][0]
        content = b"".join(bytes(entry["bytes"]) for entry in whole["logprobs"]["content"])
        assert content.decode(errors="replace") == whole["message"]["content"]
        chunks = events(byte_server, **fields)
        assert told_in(chunks) == whole["logprobs"]["content"]
        told = ""
        for chunk in chunks:
            told += chunk["choices"][0]["delta"].get("content", "")
            assert told_in([chunk]) == [] or told, "no token is told before its text"


def test_tokens_are_placed_where_their_text_begins(byte_server: RunningServer) -> None:
    with byte_server.client() as client:
        request: dict[str, Any] = {"prompt": "é🙂a b", "max_tokens": 20, "echo": True, "logprobs": 0, "seed": 1}
        whole = client.post("/v1/completions", json=request).json()["choices"][0]
        del request["echo"]
        alone = client.post("/v1/completions", json=request).json()["choices"][0]
        lines = client.post("/v1/completions", json={**request, "stream": True}).text.splitlines()
    offsets = whole["logprobs"]["text_offset"]
    assert offsets[:9] == [0, 0, 1, 1, 1, 1, 2, 3, 4]
    assert [offset - 5 for offset in offsets[9:]] == alone["logprobs"]["text_offset"]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    for name in ("text_offset", "tokens"):
        assert [item for one in told for item in one[name]] == alone["logprobs"][name]


def test_several_choices_at_once(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"n": 3, "temperature": 1.5, "seed": 5}
    chunks = events(tiny_server, **fields, ndif={"request_id": "three", "save_dir": "n-stream"})
    whole = ask(tiny_server, **fields, ndif={"capture": False}).json()
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert [text_of(chunks, index) for index in range(3)] == texts
    crumbs = chunks[-1]["ndif"]["choices"]
    assert [crumb["save_dir"] for crumb in crumbs] == [f"n-stream/three/{index}" for index in range(3)]
    ends = [chunk for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(chunk["choices"][0]["index"] for chunk in ends) == [0, 1, 2]


def test_the_same_request_again_streams_the_stored_answer(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"temperature": 1, "ndif": {"request_id": "again", "save_dir": "idem-stream"}}
    first = events(tiny_server, **fields)
    second = events(tiny_server, **fields)
    assert [chunk["ndif"]["replayed"] for chunk in (first[-1], second[-1])] == [False, True]
    assert text_of(first) == text_of(second)
    assert len(second) == 3
    whole = ask(tiny_server, **fields).json()
    assert whole["choices"][0]["message"]["content"] == text_of(first)


def test_what_is_refused_has_a_status(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"ndif": {"request_id": "twin", "save_dir": "idem-stream"}}
    events(tiny_server, **fields)
    assert "taken" in refusal(ask(tiny_server, "Another?", stream=True, **fields), 409)
    assert "context" in refusal(ask(tiny_server, stream=True, max_tokens=10**6), 400)


def test_what_fails_on_the_way_is_an_event(tiny_server: RunningServer) -> None:
    request = {**body(max_tokens=300, logit_bias={"2": -100}), "stream": True}
    request["ndif"] = {"save_dir": "late", "request_id": "late"}
    with tiny_server.client() as client, client.stream("POST", "/v1/chat/completions", json=request) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        (tiny_server.data / "late" / "late" / "in the way").mkdir(parents=True)
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "conflict"
    assert [path.name for path in (tiny_server.data / "late").iterdir()] == ["late"]


def test_an_answer_that_takes_too_long_is_given_up(tiny_server: RunningServer) -> None:
    response = ask(tiny_server, **LONG, ndif={"save_dir": "slow", "timeout": 0.2})
    assert "0.2 seconds" in refusal(response, 408)
    assert response.headers["x-should-retry"] == "false"
    assert not (tiny_server.data / "slow").exists()


async def hang_up(client: httpx.AsyncClient, stream: bool, number: int) -> None:
    """Ask for a long answer, and leave when it has begun, or in the queue."""
    request = {**body(**LONG), "stream": stream, "ndif": {"request_id": f"gone-{number}", "save_dir": "gone"}}
    if not stream:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=request, timeout=httpx.Timeout(30, read=0.7))
        return
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        lines = response.aiter_lines()
        for _ in range(10):
            await anext(lines)


def test_clients_that_hang_up_leave_nothing_behind(tmp_path: Path) -> None:
    async def everybody(url: str) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            await asyncio.gather(*(hang_up(client, number % 4 > 0, number) for number in range(40)))

    with serve("tiny", tmp_path / "data", "--max-batch-size", "8") as server:
        asyncio.run(everybody(server.url))
        left = wait_until_idle(server)
        assert left['emopfx_answers_total{outcome="given up"}'] == 40
        assert list(server.data.rglob("*")) == [], "no file, and no folder"
        again = ask(server, ndif={"request_id": "gone-1", "save_dir": "gone"})
        assert again.json()["ndif"]["replayed"] is False


def test_whoever_joined_a_request_still_gets_the_answer_when_the_other_hangs_up(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"temperature": 2, "max_tokens": 400, "logit_bias": {"2": -100}}
    ndif = {"request_id": "joined", "save_dir": "joined"}

    async def both() -> dict[str, Any]:
        request = {**body(**fields), "ndif": ndif}
        async with httpx.AsyncClient(base_url=tiny_server.url, timeout=60) as client:
            async with client.stream("POST", "/v1/chat/completions", json={**request, "stream": True}) as response:
                await anext(response.aiter_lines())
                stays = asyncio.create_task(client.post("/v1/chat/completions", json=request))
                await asyncio.sleep(0.1)
            answer: dict[str, Any] = (await stays).json()
            return answer

    answer = asyncio.run(both())
    assert answer["usage"]["completion_tokens"] == 400
    assert (tiny_server.data / answer["ndif"]["save_dir"] / "metadata.json").exists()
