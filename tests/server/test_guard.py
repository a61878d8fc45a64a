"""The key, the limits, the log and the metrics of a real server."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from prometheus_client.parser import text_string_to_metric_families

from emopfx_server.errors import handle_errors
from emopfx_server.guard import OPEN_PATHS, Guard
from emopfx_server.metrics import Metrics
from tests.server.serving import RunningServer, serve
from tests.server.test_api import QUESTION, body, refusal

KEY = "sesam-öffne-dich"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "key").write_text(f"{KEY}\n")
    flags = ["--api-key-file", str(folder / "key"), "--max-body-bytes", "4000", "--log-format", "json"]
    with serve("tiny", folder / "data", *flags, EMOPFX_MAX_QUEUE="2", EMOPFX_MAX_BATCH_SIZE="1") as server:
        yield server


def client(server: RunningServer, authorization: str | None = f"Bearer {KEY}") -> httpx.Client:
    headers = [] if authorization is None else [(b"Authorization", authorization.encode())]
    return httpx.Client(base_url=server.url, headers=headers, timeout=60)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x"])
def test_without_the_key_nothing_but_health_and_metrics(guarded: RunningServer, authorization: str | None) -> None:
    with client(guarded, authorization) as http:
        for path in ("/v1/models", "/v1/activations/", "/docs", "/openapi.json", "/nowhere"):
            response = http.get(path)
            assert "API key" in refusal(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        assert refusal(http.post("/v1/chat/completions", json=body()), 401)
        assert [http.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3


def test_with_the_key_everything(guarded: RunningServer) -> None:
    with client(guarded) as http:
        assert http.get("/v1/models").status_code == 200
        assert http.post("/v1/chat/completions", json=body()).status_code == 200


def test_health_needs_the_key_too_if_that_is_wanted(tmp_path: Path) -> None:
    with serve("tiny", tmp_path / "data", EMOPFX_API_KEY=KEY, EMOPFX_OPEN_HEALTH="false") as server:
        with client(server, None) as http:
            assert [http.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [401] * 3
        with client(server) as http:
            assert [http.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--api-key-file", "/nowhere"], "/nowhere"),
        (["--api-key-file", "empty"], "holds no key"),
        (["--api-key-file", "binary"], "binary is not UTF-8 text"),
        (["--api-key-file", "empty", "--api-key", "x"], "not both"),
        (["--api-key", ""], "api_key"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused(flags: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    command = [sys.executable, "-m", "emopfx_server", "--data-dir", str(tmp_path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr.strip().splitlines()[-1]


def test_large_bodies_are_refused_however_they_come(guarded: RunningServer) -> None:
    content = json.dumps(body("x " * 3000)).encode()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    with client(guarded) as http:
        headers = {"Content-Type": "application/json"}
        for sent in (content, pieces()):
            response = http.post("/v1/chat/completions", content=sent, headers=headers)
            assert "4,000 bytes" in refusal(response, 413)


def test_other_origins_are_given_no_leave(guarded: RunningServer) -> None:
    with client(guarded) as http:
        response = http.get("/v1/models", headers={"Origin": "https://example.com"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_more_than_the_queue_holds_are_told_to_come_again(guarded: RunningServer) -> None:
    request = body(max_tokens=300, logit_bias={"2": -100}, ndif={"capture": False})
    with client(guarded) as http, ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda _: http.post("/v1/chat/completions", json=request), range(16)))
    refused = [response for response in responses if response.status_code != 200]
    assert 1 <= len(refused) <= 12
    for response in refused:
        assert "wait already" in refusal(response, 429)
        assert int(response.headers["retry-after"]) > 0


def log_with(server: RunningServer, text: str) -> str:
    """The server's log, when it has got that far: a line is written when its answer has been sent."""
    path, deadline = server.data.parent / "data.server.log", time.monotonic() + 30
    while text not in (log := path.read_text()):
        assert time.monotonic() < deadline, log
        time.sleep(0.02)
    return log


def test_log_lines_are_json_with_the_requests_id_and_without_its_text(guarded: RunningServer) -> None:
    with client(guarded) as http:
        answer = http.post("/v1/chat/completions", json=body(ndif={"request_id": "logged-1"}))
        assert answer.headers["x-request-id"] == "logged-1"
        refused = http.get("/nowhere")
    log = log_with(guarded, refused.headers["x-request-id"])
    lines = [json.loads(line) for line in log.splitlines()]
    mine = [line["message"] for line in lines if line.get("request_id") == "logged-1"]
    assert any("generated, stop" in message for message in mine)
    assert any("POST /v1/chat/completions: 200" in message for message in mine)
    assert "GET /nowhere: 404" in next(
        line["message"] for line in lines if line.get("request_id") == refused.headers["x-request-id"]
    )
    for secret in (QUESTION[:12], answer.json()["choices"][0]["message"]["content"][:8], KEY, "öffne"):
        assert secret not in log


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_and_answers_are_logged_if_that_is_wanted(tmp_path: Path, stream: bool) -> None:
    with serve("tiny", tmp_path / "data", "--log-prompts", "true") as server:
        with client(server) as http:
            answer = http.post("/v1/chat/completions", json=body()).json()["choices"][0]["message"]["content"]
            logged = f"answered: {json.dumps(answer)}"
            if stream:
                http.post("/v1/chat/completions", json=body(stream=True))
        log_with(server, QUESTION)
        assert log_with(server, logged).count(logged) == 1 + stream


def failing_app() -> FastAPI:
    app = FastAPI()
    handle_errors(app)

    @app.get("/whole")
    async def whole() -> None:
        raise LookupError("no such thing")

    @app.get("/begun")
    async def begun() -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            yield "begun"
            raise LookupError("no more of it")

        return StreamingResponse(pieces())

    return app


def test_no_path_makes_a_line_of_the_log(tiny_server: RunningServer) -> None:
    with tiny_server.client() as http:
        refusal(http.get(f"/v1/models/x%0AFORGED%00{'x' * 3000}%0Aend"), 404)
        refusal(http.get("/v1/models/then"), 404)
    log = log_with(tiny_server, "/v1/models/then")
    assert not any(line.startswith(("FORGED", "end")) for line in log.splitlines())
    assert "\0" not in log
    assert "x" * 300 not in log


def test_what_nobody_foresaw_is_logged_named_counted_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app)  # which raises whatever is left to raise
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            return await http.get(path)

    counts, app = Metrics(), failing_app()
    app.add_middleware(Guard, key=None, open_paths=OPEN_PATHS, max_body_bytes=1000, metrics=counts)
    response = asyncio.run(ask("/whole"))
    assert "log says why" in refusal(response, 500)
    assert len(response.headers["x-request-id"]) > 8
    assert "LookupError: no such thing" in caplog.text
    assert 'emopfx_requests_total{path="/whole",status="500"} 1.0' in counts.text().decode()
    with pytest.raises(LookupError):  # so that the server breaks off what it can't take back
        asyncio.run(ask("/begun"))


def metrics(server: RunningServer) -> dict[str, float]:
    with client(server) as http:
        text = http.get("/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {"|".join((sample.name, *map(str, sample.labels.values()))): sample.value for sample in samples}


def test_metrics_count_what_was_done(guarded: RunningServer) -> None:
    before = metrics(guarded)
    with client(guarded) as http:
        answer = http.post("/v1/chat/completions", json=body()).json()
        http.post("/v1/chat/completions", json=body(max_tokens=2, ndif={"capture": False}))
        http.post("/v1/chat/completions", json=body(max_tokens=10**6))
    after = metrics(guarded)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    usage = answer["usage"]
    assert grown("emopfx_answers_total|stop") == grown("emopfx_answers_total|length") == 1
    assert grown("emopfx_requests_total|/v1/chat/completions|200") == 2
    assert grown("emopfx_requests_total|/v1/chat/completions|400") == 1
    assert grown("emopfx_prompt_tokens_total") == 2 * usage["prompt_tokens"]
    assert grown("emopfx_generated_tokens_total") == usage["completion_tokens"] + 2
    assert grown("emopfx_capture_bytes_total") == answer["ndif"]["bytes"]
    assert grown("emopfx_first_token_seconds_count") == grown("emopfx_answer_seconds_count") == 2
    assert grown("emopfx_step_seconds_count") >= usage["completion_tokens"] + 2
    assert after["emopfx_writer_backlog"] == after["emopfx_requests_waiting"] == 0
    assert after["emopfx_disk_free_bytes"] > 0
    assert [after[name] for name in after if name.startswith("emopfx_build_info|")] == [1]


def test_the_dashboard_asks_for_metrics_that_there_are(guarded: RunningServer) -> None:
    dashboard = Path(__file__).parents[2] / "charts" / "emopfx" / "dashboards" / "server.json"
    expressions = [
        target["expr"] for panel in json.loads(dashboard.read_text())["panels"] for target in panel["targets"]
    ]
    asked = {name for expression in expressions for name in re.findall(r"emopfx_\w+", expression)}
    with client(guarded) as http:
        http.post("/v1/chat/completions", json=body())
    assert asked <= {name.split("|")[0] for name in metrics(guarded)}
    assert len(asked) > 10
