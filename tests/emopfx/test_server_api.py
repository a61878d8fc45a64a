import time

import pytest

from emopfx.errors import InputError, RunError
from emopfx.server_api import ServerApi
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
            api.wait_ready(1.0)
        assert [request.path for request in server.requests] == ["/readyz"] * 3


def test_a_server_that_is_never_ready_is_given_up_with_what_it_said() -> None:
    with serve(in_turn(error(503, "still loading weights"))) as server, ServerApi(server.url) as api:
        start = time.monotonic()
        with pytest.raises(RunError, match="not ready within 0 s: still loading weights"):
            api.wait_ready(0.2)
        assert time.monotonic() - start < 5


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with serve(in_turn(completion())) as server:
        url = server.url
    with ServerApi(url) as api:
        with pytest.raises(RunError, match=f"the server at {url} can't be reached"):
            api.structure()
        with pytest.raises(RunError, match="was not ready"):
            api.wait_ready(0)


def test_an_address_must_be_one() -> None:
    with pytest.raises(InputError, match="must begin with http://"):
        ServerApi("localhost:8000")


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
