import asyncio
import json
import time
from collections.abc import Callable
from email.utils import formatdate

import pytest

from emopfx.errors import InputError
from emopfx.sampling import CapturedResponse, SamplingError, VllmClient, VllmProvider
from tests.emopfx.scripted_server import Reply, Request, ScriptedServer, completion, error, in_turn, serve

ODD: list[dict[str, object]] = [
    {"ndif": [1]},
    {"usage": None},
    {"usage": {"prompt_tokens": "x", "completion_tokens": 1, "total_tokens": 1}},
    {"usage": {"prompt_tokens": float("inf"), "completion_tokens": 1, "total_tokens": 1}},
    {"choices": [{"message": {"content": ["x"]}, "finish_reason": "stop"}]},
    {"choices": [{"message": {"content": "\ud800"}, "finish_reason": "stop"}]},
]
MESSAGES = [{"role": "user", "content": "How many?"}]


def ask(url: str, *, patience: float = 5.0, first_pause: float = 0.01, times: int = 1) -> list[CapturedResponse]:
    async def work() -> list[CapturedResponse]:
        client = VllmClient("tiny", url, connections=2, temperature=0.7, top_p=1.0, max_tokens=9)
        await client.provider.aclose()
        client.provider = VllmProvider(url, connections=2, patience=patience, first_pause=first_pause)
        try:
            return [await client.ask(MESSAGES, 5, {"request_id": "abc", "capture": True}) for _ in range(times)]
        finally:
            await client.provider.aclose()

    return asyncio.run(work())


def asked(answer: Callable[[Request], Reply], **options: float) -> tuple[CapturedResponse, ScriptedServer]:
    with serve(answer) as server:
        return ask(server.url, **options)[0], server  # type: ignore[arg-type]


def refused(answer: Callable[[Request], Reply], **options: float) -> tuple[SamplingError, ScriptedServer]:
    with serve(answer) as server:
        with pytest.raises(SamplingError) as caught:
            ask(server.url, **options)  # type: ignore[arg-type]
        return caught.value, server


def test_an_answer_keeps_its_usage_reason_and_breadcrumb() -> None:
    answer, _ = asked(in_turn(completion("Answer: 7", save_dir="nano/x", files=[{"name": "f"}])))
    assert answer.content == "Answer: 7"
    assert answer.finish_reason == "stop"
    assert answer.usage.completion_tokens == 3
    assert answer.ndif["save_dir"] == "nano/x"
    assert answer.seed == 5
    assert (answer.attempts, answer.response_id) == (1, "chatcmpl-abc")
    assert 0 < answer.seconds < 5


def test_a_request_carries_sampling_seed_and_extra_fields_and_nothing_of_the_clients_own() -> None:
    _, server = asked(in_turn(completion()))
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": "tiny",
        "messages": MESSAGES,
        "temperature": 0.7,
        "top_p": 1.0,
        "max_tokens": 9,
        "seed": 5,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ndif": {"request_id": "abc", "capture": True},
    }


def test_the_key_is_sent_as_bearer_token(monkeypatch: pytest.MonkeyPatch) -> None:
    _, server = asked(in_turn(completion()))
    assert "Authorization" not in server.requests[0].headers
    monkeypatch.setenv("EMOPFX_API_KEY", "secret")
    _, server = asked(in_turn(completion()))
    assert server.requests[0].headers["Authorization"] == "Bearer secret"


def test_a_server_on_this_machine_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    answer, _ = asked(in_turn(completion()), patience=0)
    assert answer.attempts == 1


def test_connections_are_used_again() -> None:
    with serve(in_turn(completion())) as server:
        ask(server.url, times=5)
        assert len(server.requests) == 5
        assert len(set(server.peers)) == 1


@pytest.mark.parametrize(
    "trouble",
    [error(429, "busy"), error(500, "oops"), error(503, "draining"), error(502, "no gateway"), Reply(drop=True)],
)
def test_trouble_that_passes_is_repeated_with_the_same_request(trouble: Reply) -> None:
    answer, server = asked(in_turn(trouble, trouble, completion()))
    assert answer.attempts == 3
    assert len(server.requests) == 3
    assert server.bodies[0] == server.bodies[1] == server.bodies[2]


@pytest.mark.parametrize(
    ("status", "hopeless"), [(400, False), (409, False), (422, False), (401, True), (404, True), (507, True)]
)
def test_a_refusal_is_not_repeated_and_keeps_its_sentence(status: int, hopeless: bool) -> None:
    problem, server = refused(in_turn(error(status, "There is no layer 99."), completion()))
    assert str(problem) == "There is no layer 99."
    assert problem.hopeless is hopeless
    assert len(server.requests) == 1


def test_retry_after_in_seconds_is_kept() -> None:
    start = time.monotonic()
    asked(in_turn(error(429, "busy", Retry_After="1"), completion()))
    assert 1.0 <= time.monotonic() - start < 3


def test_retry_after_as_a_date_is_kept() -> None:
    start = time.monotonic()
    asked(in_turn(error(503, "busy", Retry_After=formatdate(time.time() + 2, usegmt=True)), completion()))
    assert 0.9 <= time.monotonic() - start < 5


@pytest.mark.parametrize("seconds", ["3600", "inf", "nan", "1e999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_nobody_waits_longer_than_the_patience_whatever_the_server_asks_for(seconds: str) -> None:
    start = time.monotonic()
    problem, server = refused(in_turn(error(503, "busy", Retry_After=seconds)), patience=0.5)
    assert str(problem).startswith("busy; gave up after waiting")
    assert len(server.requests) >= 2
    assert time.monotonic() - start < 3


def test_a_server_that_is_gone_is_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    asked(in_turn(Reply(drop=True), Reply(drop=True), Reply(drop=True), completion()))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("generate: waiting for the server: the connection failed (")


def test_a_server_that_keeps_failing_is_asked_four_times() -> None:
    problem, server = refused(in_turn(error(500, "The server failed.")))
    assert str(problem) == "The server failed. (asked 4 times)"
    assert not problem.hopeless
    assert len(server.requests) == 4


def test_a_server_that_stays_away_is_given_up_for_all() -> None:
    with serve(in_turn(completion())) as server:
        url = server.url
    with pytest.raises(SamplingError, match=r"the connection failed .* gave up after waiting") as caught:
        ask(url, patience=0.3, first_pause=0.05)
    assert caught.value.hopeless


def test_a_server_that_comes_back_is_waited_for() -> None:
    problem, _ = refused(in_turn(error(503, "loading")), patience=0.2)
    assert str(problem).startswith("loading; gave up")
    answer, _ = asked(in_turn(*[error(503, "loading")] * 6, completion()), patience=30)
    assert answer.attempts == 7


@pytest.mark.parametrize(
    "body",
    [
        *(b"<html>", b"[]", b"{}", b'{"choices": []}', b"[" * 100_000, b"\xff"),
        *(json.dumps({**completion().body, **odd}).encode() for odd in ODD),
    ],
)
def test_an_answer_that_is_none_is_an_error(body: bytes) -> None:
    problem, _ = refused(in_turn(Reply(body=body)))
    assert "is not a chat completion" in str(problem)


def test_an_answer_without_a_breadcrumb_is_one() -> None:
    answer, _ = asked(in_turn(Reply(body={**completion().body, "ndif": None})))
    assert answer.ndif == {}


def test_an_answer_that_cannot_be_decoded_is_an_error() -> None:
    problem, _ = refused(in_turn(Reply(body=b"no gzip", headers={"Content-Encoding": "gzip"})))
    assert str(problem).startswith("the server's answer can't be read: ")


def test_an_error_without_a_sentence_gives_its_status() -> None:
    problem, _ = refused(in_turn(Reply(status=400, body=b"<html>")))
    assert str(problem) == "HTTP status 400"


def test_rollouts_checks_the_sampling_parameters() -> None:
    with pytest.raises(InputError, match="temperature must be between"):
        VllmClient("tiny", "http://127.0.0.1:9", connections=1, temperature=3.0)
