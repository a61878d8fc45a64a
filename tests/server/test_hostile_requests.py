"""Requests that no client should send, and those that arrive at the wrong moment."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.server.serving import RunningServer
from tests.server.test_api import ask, body, refusal


def post_text(server: RunningServer, text: str, content_type: str = "application/json") -> Any:
    with server.client() as client:
        return client.post("/v1/chat/completions", content=text, headers={"content-type": content_type})


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]},
        {"model": "\ud800"},
        {"stop": "\ud800"},
        {"ndif": {"layers": "\ud800"}},
    ],
    ids=["content", "part", "model", "stop", "layers"],
)
def test_half_a_surrogate_pair_is_refused(tiny_server: RunningServer, fields: dict[str, Any]) -> None:
    assert "unicode" in refusal(post_text(tiny_server, json.dumps({**body(), **fields}))).lower()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": 5}, "stop: Input should be a valid string or a valid list, not 5."),
        ({"ndif": {"layers": 5}}, "ndif.layers: Input should be 'all' or a valid string or a valid list, not 5."),
        (
            {"ndif": {"layers": [1.5]}},
            "ndif.layers.0: Input should be a valid integer, got a number with a fractional part, not 1.5.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type: Input should be 'text', not 'image_url'.",
        ),
        (
            {"ndif": {"positions": "0:4"}},
            "ndif.positions: Input should be 'all', 'prompt', 'generated', 'last_prompt' or 'last' or a valid list, "
            "not '0:4'.",
        ),
    ],
)
def test_a_field_of_several_kinds_is_named_once(
    tiny_server: RunningServer, fields: dict[str, Any], message: str
) -> None:
    response = ask(tiny_server, **fields)
    assert refusal(response) == message
    assert response.json()["error"]["param"] == message.partition(":")[0]


def test_a_body_that_is_not_sent_as_json(tiny_server: RunningServer) -> None:
    response = post_text(tiny_server, json.dumps(body()), "application/x-www-form-urlencoded")
    assert "application/json" in refusal(response)


@pytest.mark.parametrize("save_dir", [".hidden", "a/.hidden", ".x.partial", "to-hidden"])
def test_a_hidden_folder_can_not_be_asked_for(tiny_server: RunningServer, save_dir: str) -> None:
    """What is hidden is half-written work: it is not listed, and another request may clear it away."""
    link = tiny_server.data / "to-hidden"
    if not link.is_symlink():
        (tiny_server.data / ".secret").mkdir()
        link.symlink_to(".secret")
    assert "dot" in refusal(ask(tiny_server, ndif={"save_dir": save_dir}))


def test_a_path_too_long_to_write_is_refused(tiny_server: RunningServer) -> None:
    assert "1,024 bytes" in refusal(ask(tiny_server, ndif={"save_dir": "/".join(["\U0001d400" * 60] * 5)}))


def test_a_range_beyond_all_numbers(tiny_server: RunningServer) -> None:
    assert "is not a range of positions" in refusal(ask(tiny_server, ndif={"positions": ["9" * 5000 + ":"]}))


def test_listings_pass_over_what_is_neither_file_nor_folder(tiny_server: RunningServer) -> None:
    folder = tiny_server.data / "odd"
    folder.mkdir()
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    (folder / "file").write_text("x")
    with tiny_server.client() as client:
        entries = client.get("/v1/activations/odd").json()["entries"]
        assert entries == [{"name": "file", "type": "file", "bytes": 1}]
        assert "nothing" in refusal(client.get("/v1/activations/odd/pipe"), 404)


def test_a_retry_at_any_moment_is_the_same_answer(tiny_server: RunningServer) -> None:
    """Also in the moment between the commit of the files and the answer."""

    def send(index: int) -> Any:
        ndif = {"request_id": f"storm-{index // 48}", "save_dir": "storm"}
        return ask(tiny_server, temperature=1, max_tokens=4, ndif=ndif)

    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(send, range(240)))
    assert {response.status_code for response in responses} == {200}
    assert len({json.dumps(response.json()["ndif"]["files"]) for response in responses}) == 5


def test_two_requests_for_one_folder_are_a_conflict(tiny_server: RunningServer) -> None:
    def send(index: int) -> Any:
        ndif = {"request_id": f"race-{index}", "save_dir": "race", "per_request_subdir": False}
        return ask(tiny_server, ndif=ndif)

    with ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(send, range(4)))
    assert sorted(response.status_code for response in responses) == [200, 409, 409, 409]
    for response in responses:
        if response.status_code == 409:
            assert "taken" in refusal(response, 409)
    assert {path.name for path in (tiny_server.data / "race").iterdir()} == {"activations.safetensors", "metadata.json"}
    assert not list(Path(tiny_server.data).glob(".race-*"))


@pytest.mark.parametrize("damage", ["truncated", "missing", "metadata"])
def test_a_damaged_folder_is_a_conflict_and_not_an_answer(tiny_server: RunningServer, damage: str) -> None:
    ndif = {"request_id": f"damaged-{damage}", "save_dir": "damaged"}
    folder = tiny_server.data / ask(tiny_server, ndif=ndif).json()["ndif"]["save_dir"]
    if damage == "truncated":
        os.truncate(folder / "activations.safetensors", 100)
    elif damage == "missing":
        (folder / "activations.safetensors").unlink()
    else:
        (folder / "metadata.json").write_text('{"format": 1, "fi')
    assert "already holds something else" in refusal(ask(tiny_server, ndif=ndif), 409)
