import time

import pytest

from emopfx.errors import InputError, RunError
from emopfx.server_api import ServerApi, read_address
from tests.emopfx.scripted_server import STRUCTURE, Reply, Request, completion, error, in_turn, serve


def test_structure_names_the_layers_of_each_hook_point() -> None:
    with serve(in_turn(Reply(body=STRUCTURE))) as server, ServerApi(server.url) as api:
        structure = api.structure()
    assert (structure.model, structure.dtype, structure.num_layers) == ("tiny", "bfloat16", 4)
    assert [hook_point.layers for hook_point in structure.hook_points] == [None, None, frozenset({0, 2})]
    assert structure.raw == STRUCTURE


def test_waits_until_the_server_is_ready() -> None:
    with serve(in_turn(error(503, "loading"), error(503, "loading"), Reply(body={}))) as server:
        with ServerApi(server.url) as api:
            api.wait_ready(1.0, 1.0)
        assert [request.path for request in server.requests] == ["/readyz"] * 3


def test_says_what_it_waits_for_once_for_each_reason(capsys: pytest.CaptureFixture[str]) -> None:
    answers = in_turn(error(503, "loading"), error(503, "loading"), error(503, "draining"), Reply(body={}))
    with serve(answers) as server, ServerApi(server.url) as api:
        api.wait_ready(1.0, 1.0)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"waiting for the server at {server.url}: {why}" for why in ("loading", "draining")]


@pytest.mark.parametrize("answer", [error(404, "nothing here"), Reply(301, {}), Reply(400, b"<html>")])
def test_what_is_no_emopfx_server_is_not_waited_for(answer: Reply) -> None:
    with (
        serve(in_turn(answer)) as server,
        ServerApi(server.url) as api,
        pytest.raises(InputError, match=f"what answers at {server.url} is no emopfx-server: it does not have /readyz"),
    ):
        api.wait_ready(60, 60)


def test_a_server_that_asks_for_another_key_is_not_waited_for() -> None:
    with (
        serve(in_turn(error(401, "wrong key"))) as server,
        ServerApi(server.url) as api,
        pytest.raises(InputError, match=r"wrong key; EMOPFX_API_KEY must be"),
    ):
        api.wait_ready(60, 60)


@pytest.mark.parametrize("body", [b"<html>", [], {"model": "x"}, {"hook_points": 3}])
def test_a_structure_that_is_none_is_one_sentence(body: object) -> None:
    with (
        serve(in_turn(Reply(body=body))) as server,
        ServerApi(server.url) as api,
        pytest.raises(InputError, match=r"is no emopfx-server: it does not have /v1/model/structure"),
    ):
        api.structure()


def test_a_server_that_is_never_ready_is_given_up_with_what_it_said() -> None:
    with serve(in_turn(error(503, "still loading weights"))) as server, ServerApi(server.url) as api:
        start = time.monotonic()
        with pytest.raises(RunError, match="not ready within 0 s: still loading weights"):
            api.wait_ready(0.2, 0.2)
        assert time.monotonic() - start < 5


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with serve(in_turn(completion())) as server:
        url = server.url
    with ServerApi(url) as api:
        with pytest.raises(RunError, match=f"the server at {url} can't be reached"):
            api.structure()
        with pytest.raises(RunError, match="was not ready"):
            api.wait_ready(60, 0)


@pytest.mark.parametrize(
    "address",
    [
        *("localhost:8000", "ftp://host", "http://", "http:///x", "http://host:port", "http://[::1", "http://a b", ""),
        *("http://h:99999", "http://a..b", "http://h?x", "http://h#x", f"http://{'a' * 99}"),
    ],
)
def test_an_address_must_be_one(address: str) -> None:
    with pytest.raises(InputError, match="must begin with http:// or https://, followed by a host"):
        ServerApi(address)


@pytest.mark.parametrize("address", ["http://host", "https://host:8000/", "http://[::1]:8000", "http://gate/way/"])
def test_an_address_is_kept_without_the_slash_at_its_end(address: str) -> None:
    assert read_address(address) == address.rstrip("/")


@pytest.mark.parametrize("address", ["http://me:secret@host:8000", "me:secret@host", "http://secret@host"])
def test_an_address_with_a_password_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(InputError, match="no user or password; a key goes into EMOPFX_API_KEY") as caught:
        ServerApi(address)
    assert "secret" not in str(caught.value)


def test_whether_a_server_answers_at_all() -> None:
    with serve(in_turn(error(503, "stopped"), error(404, "no such page"))) as server, ServerApi(server.url) as api:
        assert api.is_alive()
        assert not api.is_alive()
    with ServerApi(server.url) as api:
        assert not api.is_alive()


def test_a_file_that_is_gone_or_a_server_that_is_lost_is_one_sentence() -> None:
    with serve(in_turn(error(404, "nothing there"), Reply(drop=True))) as server, ServerApi(server.url) as api:
        with pytest.raises(RunError, match="nothing there"):
            api.file_sha256("nano/x/a.json")
        with pytest.raises(RunError, match="was lost"):
            api.file_sha256("nano/x/a.json")


def test_files_of_the_servers_data_can_be_listed_and_checked() -> None:
    entries = [{"name": "a.json", "type": "file", "bytes": 3}, {"name": "sub", "type": "directory", "bytes": None}]

    def answer(request: Request) -> Reply:
        if request.path.endswith("/none"):
            return error(404, "nothing there")
        return Reply(body=b"abc") if request.path.endswith("a.json") else Reply(body={"entries": entries})

    with serve(answer) as server, ServerApi(server.url) as api:
        assert api.file_sizes("nano/x") == {"a.json": 3}
        assert api.file_sizes("nano/none") is None
        assert api.file_sha256("nano/x/a.json").startswith("ba7816bf")


def test_a_refusal_keeps_the_servers_sentence() -> None:
    with (
        serve(in_turn(error(400, "path is outside"))) as server,
        ServerApi(server.url) as api,
        pytest.raises(RunError, match=r"refused GET .*: path is outside"),
    ):
        api.file_sizes("nano")


@pytest.mark.parametrize("status", [401, 403])
def test_another_key_is_asked_for_at_once(status: int) -> None:
    refusal = error(status, "The API key is missing or wrong.")
    with serve(in_turn(refusal)) as server, ServerApi(server.url) as api:
        sentence = r"refused .*: The API key is missing or wrong\.; EMOPFX_API_KEY must be the key that the server asks"
        with pytest.raises(InputError, match=sentence):
            api.structure()
        with pytest.raises(InputError, match=sentence), api.stream("nano/report.json"):
            pass
