"""The HTTP API of a real server on the built-in model."""

import asyncio
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests.server.serving import RunningServer, save_random_model, serve

QUESTION = "Tom has 12 apples. He buys 7 more apples. How many apples does Tom have now?"


def body(text: str = QUESTION, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 40, **fields}


def ask(server: RunningServer, text: str = QUESTION, **fields: Any) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/chat/completions", json=body(text, **fields))


def refusal(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    message: str = error["message"]
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_answer_has_openai_shape_and_a_breadcrumb(tiny_server: RunningServer) -> None:
    answer = ask(tiny_server, ndif={"request_id": "shape-1", "save_dir": "shape/calm"}).json()
    assert answer["id"] == "chatcmpl-shape-1"
    assert answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "Answer:" in choice["message"]["content"]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    crumb = answer["ndif"]
    assert crumb["save_dir"] == "shape/calm/shape-1"
    assert crumb["tokens"] == usage["total_tokens"] - 1
    folder = tiny_server.data / crumb["save_dir"]
    assert {file["name"] for file in crumb["files"]} == {path.name for path in folder.iterdir()}
    for file in crumb["files"]:
        content = (folder / file["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    tensors = load_file(folder / "activations.safetensors")
    assert {name: list(t.shape) for name, t in tensors.items() if t.dim() == 2} == crumb["shapes"]
    assert crumb["bytes"] == sum(file["bytes"] for file in crumb["files"])


def test_file_header_and_metadata(tiny_server: RunningServer) -> None:
    crumb = ask(tiny_server, ndif={"save_dir": "meta", "config_hash": "abc", "dtype": "float16"}).json()["ndif"]
    folder = tiny_server.data / crumb["save_dir"]
    with safe_open(folder / "activations.safetensors", "pt") as file:
        header = file.metadata()
        names = file.keys()
    assert header["config_hash"] == "abc"
    assert header["dtype"] == "float16"
    assert header["request_id"] == crumb["request_id"]
    record = json.loads((folder / "metadata.json").read_text())
    assert record["shapes"] == crumb["shapes"]
    assert record["files"] == crumb["files"][:1]
    assert set(names) == {*crumb["shapes"], "token_ids", "positions"}


def test_the_metadata_has_the_text_of_every_row(tiny_server: RunningServer) -> None:
    body = ask(tiny_server, ndif={"save_dir": "texts"}).json()
    record = json.loads((tiny_server.data / body["ndif"]["save_dir"] / "metadata.json").read_text())
    assert len(record["token_texts"]) == record["tokens"]
    # All but the last token of the answer have a row.
    generated = "".join(record["token_texts"][record["prompt_tokens"] :])
    assert body["choices"][0]["message"]["content"].startswith(generated.strip())
    assert len(generated) > 10


def test_one_layer_is_one_byte_range(tiny_server: RunningServer) -> None:
    crumb = ask(tiny_server, ndif={"save_dir": "range"}).json()["ndif"]
    url = f"/v1/activations/{crumb['save_dir']}/activations.safetensors"
    with tiny_server.client() as client:
        size = int.from_bytes(client.get(url, headers={"Range": "bytes=0-7"}).content, "little")
        header = json.loads(client.get(url, headers={"Range": f"bytes=8-{7 + size}"}).content)
        spans = sorted(header[name]["data_offsets"] for name in header if name.startswith("layers.1."))
        assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))
        start, stop = spans[0][0] + 8 + size, spans[-1][1] + 8 + size
        part = client.get(url, headers={"Range": f"bytes={start}-{stop - 1}"})
    whole = (tiny_server.data / crumb["save_dir"] / "activations.safetensors").read_bytes()
    assert part.status_code == 206
    assert part.content == whole[start:stop]


def test_same_seed_same_answer_whatever_runs_beside_it(tiny_server: RunningServer) -> None:
    def answer(seed: int, top_p: float = 1.0) -> str:
        response = ask(tiny_server, temperature=1.5, top_p=top_p, seed=seed, ndif={"capture": False})
        text: str = response.json()["choices"][0]["message"]["content"]
        return text

    for top_p in (1.0, 0.9):
        alone = [answer(seed, top_p) for seed in range(6)]
        with ThreadPoolExecutor(12) as pool:
            together = list(pool.map(lambda seed, p=top_p: answer(seed, p), [*range(6), *range(6)]))
        assert together == alone * 2
        assert len(set(alone)) > 1


def test_an_empty_nucleus_is_the_most_likely_token(tiny_server: RunningServer) -> None:
    greedy = ask(tiny_server, ndif={"capture": False}).json()["choices"]
    assert ask(tiny_server, temperature=2, top_p=0, ndif={"capture": False}).json()["choices"] == greedy


def test_stop_text_ends_the_answer_before_it(tiny_server: RunningServer) -> None:
    whole = ask(tiny_server, ndif={"capture": False}).json()
    text = whole["choices"][0]["message"]["content"]
    cut = ask(tiny_server, stop=["nothing like it", "Answer:"], ndif={"capture": False}).json()
    assert cut["choices"][0]["message"]["content"] == text[: text.index("Answer:")]
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]


def test_length_is_said(tiny_server: RunningServer) -> None:
    answer = ask(tiny_server, max_tokens=3, ndif={"capture": False}).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3
    assert ask(tiny_server, max_completion_tokens=2, max_tokens=None).json()["usage"]["completion_tokens"] == 2


def test_nulls_unknown_fields_and_text_parts_are_accepted(tiny_server: RunningServer) -> None:
    nulls: dict[str, Any] = {"top_p": None, "seed": None, "stop": None, "ndif": None, "n": None, "stream": False}
    response = ask(tiny_server, **nulls, logit_bias={}, user="x", model="tiny")
    assert response.status_code == 200
    parts = [{"type": "text", "text": QUESTION[:20]}, {"type": "text", "text": QUESTION[20:]}]
    with tiny_server.client() as client:
        request = {**body(), "messages": [{"role": "user", "content": parts}], "ndif": {"anything": 1}}
        split = client.post("/v1/chat/completions", json=request)
    assert split.json()["choices"] == response.json()["choices"]


def test_capture_off_writes_nothing(tiny_server: RunningServer) -> None:
    before = sorted(tiny_server.data.rglob("*"))
    crumb = ask(tiny_server, ndif={"capture": False, "save_dir": "off"}).json()["ndif"]
    assert (crumb["save_dir"], crumb["files"], crumb["tokens"], crumb["shapes"]) == (None, [], 0, {})
    assert sorted(tiny_server.data.rglob("*")) == before


def test_same_request_again_is_answered_from_disk(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"temperature": 1, "ndif": {"request_id": "again", "save_dir": "idem"}}
    first = ask(tiny_server, **fields).json()
    assert first["ndif"].pop("replayed") is False
    second = ask(tiny_server, **fields).json()
    assert second["ndif"].pop("replayed") is True
    assert second == first
    assert "taken" in refusal(ask(tiny_server, "Another question?", **fields), 409)


def test_what_was_answered_before_a_restart_is_answered_from_disk(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"temperature": 1, "ndif": {"request_id": "again", "save_dir": "idem"}}
    answers = []
    for _ in range(2):
        with serve("tiny", tmp_path / "data") as server:
            answers.append(ask(server, **fields).json())
    assert [answer["ndif"].pop("replayed") for answer in answers] == [False, True]
    assert answers[0] == answers[1]


def test_a_disk_that_is_to_stay_free_is_not_written_to(tmp_path: Path) -> None:
    with serve("tiny", tmp_path / "data", "--disk-floor", str(10**18)) as server:
        assert "1,000,000,0" in refusal(ask(server), 507)
        assert ask(server, ndif={"capture": False}).status_code == 200


def test_the_same_request_twice_at_once_runs_once(tiny_server: RunningServer) -> None:
    fields: dict[str, Any] = {"temperature": 1, "ndif": {"request_id": "twice", "save_dir": "idem"}}

    async def both() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=tiny_server.url, timeout=60) as client:
            posts = [client.post("/v1/chat/completions", json=body(**fields)) for _ in range(2)]
            return [response.json() for response in await asyncio.gather(*posts)]

    one, other = asyncio.run(both())
    assert one["choices"] == other["choices"]
    assert one["ndif"]["files"] == other["ndif"]["files"]


def test_capture_defaults_can_be_changed(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        before = client.get("/v1/interventions").json()
        changed = client.put("/v1/interventions", json={"layers": [-1], "positions": "last"}).json()
        try:
            assert changed == {**before, "layers": [-1], "positions": "last"}
            crumb = ask(tiny_server).json()["ndif"]
            assert len(crumb["shapes"]) == 2
            assert crumb["tokens"] == 1
            assert "layer" in refusal(client.put("/v1/interventions", json={"layers": [99]}))
            assert "layer_s" in refusal(client.put("/v1/interventions", json={"layer_s": "all"}))
            assert client.get("/v1/interventions").json() == changed
        finally:
            client.put("/v1/interventions", json=before)


def test_models_structure_and_health(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        assert client.get("/v1/models").json()["data"] == [client.get("/v1/models/tiny").json()]
        assert "'other/model'" in refusal(client.get("/v1/models/other/model"), 404)
        structure = client.get("/v1/model/structure").json()
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready", "model": "tiny"}
    points = {point["name"]: point for point in structure["hook_points"]}
    assert {"input_layernorm.output", "self_attn.output", "mlp.output", "output"} <= set(points)
    assert points["output"]["width"] == structure["hidden_size"]
    assert all(point["shape"] == ["tokens", point["width"]] for point in points.values())
    assert structure["not_capturable"] == []
    assert points["output"]["layers"] == "all"
    assert structure["layers_path"] == "model.layers"
    assert structure["context_length"] >= 4096


def test_listing(tiny_server: RunningServer) -> None:
    crumb = ask(tiny_server, ndif={"save_dir": "list"}).json()["ndif"]
    (tiny_server.data / "list" / ".hidden.partial").mkdir()
    with tiny_server.client() as client:
        assert client.get("/v1/activations/list").json()["entries"] == [
            {"name": crumb["request_id"], "type": "directory", "bytes": None}
        ]
        entries = client.get(f"/v1/activations/{crumb['save_dir']}").json()["entries"]
        assert [(entry["name"], entry["bytes"]) for entry in entries] == [
            (file["name"], file["bytes"]) for file in crumb["files"]
        ]
        assert "nothing" in refusal(client.get("/v1/activations/list/absent"), 404)
        assert "nothing" in refusal(client.get("/v1/activations/list/.hidden.partial"), 404)
        assert "relative path" in refusal(client.get("/v1/activations/%2e%2e/%2e%2e/etc/passwd"))
        assert "/nowhere" in refusal(client.get("/nowhere"), 404)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 0}, ["max_tokens", "greater than or equal to 1"]),
        ({"max_tokens": 10**6}, ["context"]),
        ({"temperature": -1}, ["temperature"]),
        ({"top_p": -0.1}, ["top_p"]),
        ({"top_p": 1.1}, ["top_p"]),
        ({"n": 0}, ["n:", "greater than or equal to 1"]),
        ({"n": 1000}, ["n:", "less than or equal to 128"]),
        ({"logit_bias": {"999999": 1}}, ["logit_bias", "999999"]),
        ({"logit_bias": {"a": 1}}, ["logit_bias"]),
        ({"frequency_penalty": 3}, ["frequency_penalty"]),
        ({"top_logprobs": 2}, ["top_logprobs", "logprobs to be true"]),
        ({"logprobs": True, "top_logprobs": 21}, ["top_logprobs"]),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, ["tools", "leave the field out"]),
        ({"response_format": {"type": "json_object"}}, ["response_format", "'text'"]),
        ({"stop": ["x"] * 17}, ["stop"]),
        ({"ndif": {"timeout": 0}}, ["timeout"]),
        ({"messages": [{"role": "tool", "content": "x"}]}, ["role"]),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, ["'text'"]),
        ({"messages": []}, ["messages"]),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, ["tool_calls"]),
        ({"tool_choice": "required"}, ["tool_choice", "leave the field out"]),
        ({"max_completion_tokens": 10**6}, ["max_completion_tokens is 1,000,000"]),
        ({"messages": [{"role": "king", "content": "x"}]}, ["role", "'system'"]),
        ({"ndif": {"layers": [4096]}}, ["4096", "numbered 0 to"]),
        ({"ndif": {"layers": "9:9"}}, ["'9:9'", "numbered 0 to"]),
        ({"ndif": {"layers": "some"}}, ["'some'", "numbered 0 to"]),
        ({"ndif": {"layers": "::0"}}, ["'::0'"]),
        ({"ndif": {"layers": "0:1_0"}}, ["'0:1_0'"]),
        ({"ndif": {"layers": " 0:1"}}, ["' 0:1'"]),
        ({"ndif": {"layers": [True]}}, ["layers.0", "valid integer", "True"]),
        ({"ndif": {"interventions": [{"kind": "zero", "layer": True}]}}, ["layer", "valid integer", "True"]),
        ({"ndif": {"layers": []}}, ["[]"]),
        ({"ndif": {"hook_points": ["attn.output"]}}, ["'attn.output'", "input_layernorm.output", "mlp.output"]),
        ({"ndif": {"hook_points": []}}, ["hook_points"]),
        ({"ndif": {"positions": ["1-2"]}}, ["'1-2'", "'0:16'"]),
        ({"ndif": {"positions": ["5:2"]}}, ["ndif.positions", "'5:2' is a range of no positions"]),
        ({"ndif": {"positions": "first"}}, ["positions"]),
        ({"ndif": {"dtype": "int8"}}, ["dtype", "bfloat16"]),
        ({"ndif": {"save_dir": "../x"}}, ["'../x/", "inside"]),
        ({"ndif": {"save_dir": "a/../../x"}}, ["a/../../x"]),
        ({"ndif": {"save_dir": "/etc"}}, ["/etc"]),
        ({"ndif": {"save_dir": "a\0b"}}, ["save_dir"]),
        ({"ndif": {"save_dir": ""}}, ["save_dir"]),
        ({"ndif": {"save_dir": ".", "per_request_subdir": False}}, ["save_dir"]),
        ({"ndif": {"save_dir": "link/x"}}, ["save_dir"]),
        ({"ndif": {"save_dir": "file/x"}}, ["save_dir"]),
        ({"ndif": {"save_dir": "x" * 300}}, ["save_dir"]),
        ({"ndif": {"request_id": "../x"}}, ["request_id"]),
        ({"ndif": {"request_id": ".x"}}, ["request_id"]),
        ({"ndif": []}, ["ndif"]),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    tiny_server: RunningServer, fields: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    link, file = tiny_server.data / "link", tiny_server.data / "file"
    if not link.is_symlink():
        link.symlink_to(tmp_path.parent)
        file.write_text("in the way")
    with tiny_server.client() as client:
        message = refusal(client.post("/v1/chat/completions", json={**body(), **fields}))
    for word in words:
        assert word in message
    assert sorted(tmp_path.iterdir()) == []


def test_prompt_longer_than_the_context(tiny_server: RunningServer) -> None:
    response = ask(tiny_server, "apples " * 40_000, ndif={"capture": False})
    assert re.search(r"prompt has 40,\d+ tokens .* context of \d,\d+ tokens", refusal(response))


def test_another_model_is_not_found(tiny_server: RunningServer) -> None:
    assert refusal(ask(tiny_server, model="gpt-9"), 404).count("'tiny'") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b"", "body is missing"),
        ('{"messages": "é"}'.encode("latin-1"), "not JSON in UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{}", "messages: Field required."),
    ],
)
def test_a_body_that_is_none_is_refused(tiny_server: RunningServer, content: bytes, words: str) -> None:
    with tiny_server.client() as client:
        response = client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert words in refusal(response)


def test_another_method_is_told_which_are_allowed(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        response = client.get("/v1/chat/completions")
    assert "Method Not Allowed" in refusal(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "no/such-model"], ["no/such-model"]),
        (["--model", "random:nowhere"], ["random:nowhere"]),
        (["--dtype", "int3"], ["dtype", "float32"]),
        (["--port", "99999"], ["port"]),
        (["--data-dir", "/dev/null/x"], ["/dev/null"]),
    ],
)
def test_bad_flags_end_with_one_sentence(flags: list[str], words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "emopfx_server", "--data-dir", str(tmp_path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("emopfx-server: ")
    for word in words:
        assert word in last


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"model_type": "no-such"}', '{"model_type": "llama", "hidden_size": "x"}']
)
def test_a_config_that_is_none_ends_with_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    command = [sys.executable, "-m", "emopfx_server", "--data-dir", str(tmp_path / "data"), "--model"]
    done = subprocess.run([*command, f"random:{tmp_path}/config.json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("emopfx-server: cannot load model 'random:")
    assert "Traceback" not in done.stderr


def test_truncated_weights_end_with_one_sentence(tmp_path: Path) -> None:
    folder = save_random_model("llama", tmp_path / "llama")
    os.truncate(folder / "model.safetensors", 1000)
    command = [sys.executable, "-m", "emopfx_server", "--data-dir", str(tmp_path / "data"), "--model", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("emopfx-server: cannot load model")
    assert "Traceback" not in done.stderr


def test_an_interrupt_from_the_keyboard_ends_quietly(tmp_path: Path) -> None:
    with serve("tiny", tmp_path / "data") as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) == 130
    assert "Traceback" not in (tmp_path / "data.server.log").read_text()


def test_what_a_killed_server_left_long_ago_is_swept_away(tmp_path: Path) -> None:
    partial = tmp_path / "data" / "nano" / ".r1.0123.partial"
    partial.mkdir(parents=True)
    (partial / "activations.safetensors").write_text("half")
    os.utime(partial, (0, 0))
    with serve("tiny", tmp_path / "data"):
        deadline = time.monotonic() + 30
        while partial.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_softcapped_attention_is_refused(tmp_path: Path) -> None:
    folder = save_random_model("gemma2", tmp_path / "gemma2")
    command = [sys.executable, "-m", "emopfx_server", "--model", str(folder), "--data-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "capped at 50" in done.stderr


def test_settings_come_from_the_environment_too(tmp_path: Path) -> None:
    with serve("tiny", tmp_path / "data", EMOPFX_CAPTURE_BYTES="5000", EMOPFX_DTYPE="bfloat16") as server:
        with server.client() as client:
            assert client.get("/v1/model/structure").json()["dtype"] == "bfloat16"
        assert "5,000" in refusal(ask(server))
        assert ask(server, ndif={"positions": "last"}).status_code == 200


def test_requests_wait_for_room_and_all_are_answered(tmp_path: Path) -> None:
    with serve("tiny", tmp_path / "data", EMOPFX_CAPTURE_BYTES="300000") as server:
        with ThreadPoolExecutor(24) as pool:
            codes = list(pool.map(lambda _: ask(server, ndif={"dtype": "float32"}).status_code, range(24)))
        assert codes == [200] * 24
        assert len(list(server.data.rglob("metadata.json"))) == 24
        assert not list(server.data.rglob("*.partial"))


def test_sigterm_finishes_what_runs_and_takes_no_more(tmp_path: Path) -> None:
    with serve("tiny", tmp_path / "data", EMOPFX_CAPTURE_BYTES="500000") as server:
        long: dict[str, Any] = {"max_tokens": 400, "temperature": 2, "logit_bias": {"2": -100}}
        with ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(ask, server, **long, stream=number % 2 == 0, ndif={"layers": [0]}) for number in range(8)
            ]
            server.wait_until(lambda now: now["emopfx_requests_running"] > 0 and now["emopfx_requests_waiting"] > 0)
            server.process.send_signal(signal.SIGTERM)
            responses = [future.result() for future in asked]
        codes = [response.status_code for response in responses]
        assert set(codes) == {200, 503}, "what ran must have finished, and what waited must have been turned away"
        streams = [response.text for response in responses[::2] if response.status_code == 200]
        assert all(text.endswith("data: [DONE]\n\n") for text in streams)
        server.process.wait(timeout=20)
        assert len(list(server.data.rglob("metadata.json"))) == codes.count(200)
