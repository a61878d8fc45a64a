"""Requests that no client should send, and those that arrive at the wrong moment."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.server.serving import RunningServer, byte_tokenizer, save_random_model, serve
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


def test_metadata_that_cannot_be_read_is_a_conflict_and_not_an_answer(tiny_server: RunningServer) -> None:
    ndif = {"request_id": "damaged-metadata", "save_dir": "unreadable"}
    folder = tiny_server.data / ask(tiny_server, ndif=ndif).json()["ndif"]["save_dir"]
    (folder / "metadata.json").write_text('{"format": 1, "fi')
    assert "already holds something else" in refusal(ask(tiny_server, ndif=ndif), 409)


def test_a_large_prompt_holds_up_nobody(tiny_server: RunningServer) -> None:
    """What can't fit is refused before it is turned into tokens; what may is turned into them beside all else."""
    largest = "x1 " * 150_000

    def send(text: str) -> Any:
        return ask(tiny_server, text, ndif={"capture": False})

    with ThreadPoolExecutor(8) as pool, tiny_server.client() as client:
        asked = [pool.submit(send, largest) for _ in range(8)]
        slowest = 0.0
        while not all(future.done() for future in asked):
            start = time.monotonic()
            assert client.get("/healthz").status_code == 200
            slowest = max(slowest, time.monotonic() - start)
        assert slowest < 1
    assert all("share a context" in refusal(future.result()) for future in asked)
    start = time.monotonic()
    assert "characters" in refusal(ask(tiny_server, "x1 " * 8_000_000, ndif={"capture": False}))
    with tiny_server.client() as client:
        response = client.post("/v1/completions", json={"prompt": ["a", "x1 " * 2_000_000]})
    assert "characters" in refusal(response)
    assert time.monotonic() - start < 20


def test_more_choices_than_can_ever_run_are_refused_at_once(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        response = client.post("/v1/completions", json={"prompt": ["a"] * 1024, "n": 128, "max_tokens": 1})
        assert "1,024 × 128 choices" in refusal(response)
        assert response.json()["error"]["param"] == "n"


def test_marks_that_some_take_for_line_ends_are_data(tmp_path: Path) -> None:
    folder = save_random_model("llama", tmp_path / "bytes", byte_tokenizer)
    marks = "a\u2028b\u2029c\u0085d"
    with serve(str(folder), tmp_path / "data") as server, server.client() as client:
        request = {"prompt": marks, "echo": True, "max_tokens": 1, "stream": True}
        lines = client.post("/v1/completions", json=request).text.splitlines()
    events = [line.removeprefix("data: ") for line in lines if line]
    assert json.loads(events[0])["choices"][0]["text"] == marks
    assert events[-1] == "[DONE]"


NO_PROMPTS: list[Any] = [None, 5, {}, [], ["a", 1], [1, [2]], [None], [True], [1.5]]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        *((it, f"prompt: give a text, a list of token ids, or a list of either, not {it!r}.") for it in NO_PROMPTS),
        ([[1, "a"]], "prompt.0.1: Input should be a valid integer, unable to parse string as an integer, not 'a'."),
        ([[1], [None]], "prompt.1.0: Input should be a valid integer, not None."),
    ],
)
def test_a_prompt_of_no_kind_is_refused_in_one_sentence(tiny_server: RunningServer, prompt: Any, message: str) -> None:
    with tiny_server.client() as client:
        assert refusal(client.post("/v1/completions", json={"prompt": prompt})) == message


@pytest.mark.parametrize("field", ["tools", "functions", "ndif", "prompt", "stop"])
@pytest.mark.parametrize("depth", [150, 900])
def test_what_is_nested_too_deeply_is_refused_as_what_it_is(tiny_server: RunningServer, field: str, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    value = f'{{"unknown": {nested}}}' if field == "ndif" else nested
    path = "/v1/completions" if field == "prompt" else "/v1/chat/completions"
    request = {key: item for key, item in body().items() if path.endswith("chat/completions") or key != "messages"}
    text = json.dumps(request)[:-1] + f', "{field}": {value}}}'
    with tiny_server.client() as client:
        response = client.post(path, content=text, headers={"content-type": "application/json"})
    if (field, depth) == ("ndif", 150):
        assert response.json()["ndif"]["ignored"] == ["unknown"]
    else:
        assert "surrogate" not in refusal(response)


def test_unknown_wishes_are_named_in_the_answer(tiny_server: RunningServer) -> None:
    crumb = ask(tiny_server, ndif={"capture": False, "layer": [1], "hookpoints": 5}).json()["ndif"]
    assert crumb["ignored"] == ["hookpoints", "layer"]
    crumb = ask(tiny_server, n=2, ndif={"capture": False, "layer": [1]}).json()["ndif"]
    assert crumb["ignored"] == ["layer"]
    ndif = {"request_id": "typo", "save_dir": "typo"}
    assert ask(tiny_server, ndif={**ndif, "layer": 1}).json()["ndif"]["replayed"] is False
    assert ask(tiny_server, ndif=ndif).json()["ndif"]["replayed"] is True, "what is ignored makes no other request"


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=5-2", "bytes=", "bytes=x-y", "lines=1-2", "nonsense"])
def test_ranges_that_a_file_does_not_have_are_refused_like_all_else(tiny_server: RunningServer, asked: str) -> None:
    crumb = ask(tiny_server, ndif={"save_dir": "ranges"}).json()["ndif"]
    url = f"/v1/activations/{crumb['save_dir']}/metadata.json"
    size = crumb["files"][1]["bytes"]
    with tiny_server.client() as client:
        response = client.get(url, headers={"Range": asked})
        status = 416 if asked == "bytes=99999999-" else 400
        assert f"has {size}" in refusal(response, status)
        assert response.json()["error"]["param"] == "Range"
        assert response.headers.get("content-range") == (f"bytes */{size}" if status == 416 else None)
        part = client.get(url, headers={"Range": "bytes=0-4"})
        assert (part.status_code, len(part.content)) == (206, 5)


def test_files_and_folders_can_be_asked_for_without_their_content(tiny_server: RunningServer) -> None:
    crumb = ask(tiny_server, ndif={"save_dir": "heads"}).json()["ndif"]
    with tiny_server.client() as client:
        head = client.head(f"/v1/activations/{crumb['save_dir']}/activations.safetensors")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) == crumb["files"][0]["bytes"]
        assert client.head(f"/v1/activations/{crumb['save_dir']}").status_code == 200
        assert client.head("/v1/activations/heads/nothing").status_code == 404
