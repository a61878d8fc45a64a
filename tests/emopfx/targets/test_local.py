import os
from pathlib import Path

from emopfx.layout import Layout, write_json
from emopfx.targets.local import deployed_url
from tests.emopfx.scripted_server import Reply, error, in_turn, serve


def test_the_server_of_deploy_is_used_while_it_answers(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "nano")
    assert deployed_url(layout) is None
    with serve(in_turn(Reply(body={"status": "ok"}), error(404, "another server has its port"))) as server:
        write_json(layout.server_address, {"url": server.url, "pid": os.getpid()})
        assert deployed_url(layout) == server.url
        assert deployed_url(layout) is None
    assert deployed_url(layout) is None
