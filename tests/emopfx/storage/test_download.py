import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from emopfx.errors import InputError, RunError
from emopfx.layout import Layout
from emopfx.server_api import ServerApi
from emopfx.storage import download
from tests.emopfx.scripted_server import Reply, Request, error, serve

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SAVE_DIR = "nano/activations/calm/a_0001/abc"
ENTRY = {
    "save_dir": SAVE_DIR,
    "files": [{"name": "activations.safetensors", "bytes": len(CONTENT), "sha256": SHA256}],
}
FILES = {
    "nano/activations_manifest.json": json.dumps({"calm/a_0001": ENTRY}).encode(),
    "nano/report.json": b"{}",
    "nano/calm/a_0001/sample.json": b'{"a": 1}',
    f"{SAVE_DIR}/activations.safetensors": CONTENT,
}


def answer(files: dict[str, bytes]) -> Callable[[Request], Reply]:
    """Serve files as the server does: folders as listings, files whole or from a byte on."""

    def reply(request: Request) -> Reply:
        path = request.path.removeprefix("/v1/activations/")
        if path in files:
            start = re.match(r"bytes=(\d+)-", request.headers.get("Range", ""))
            return Reply(206, files[path][int(start[1]) :]) if start else Reply(body=files[path])
        inside = sorted({name.removeprefix(f"{path}/").split("/")[0] for name in files if name.startswith(f"{path}/")})
        if not inside:
            return error(404, "there is nothing")
        kinds = [{"name": name, "type": "file" if f"{path}/{name}" in files else "directory"} for name in inside]
        return Reply(body={"path": path, "entries": [{**kind, "bytes": None} for kind in kinds]})

    return reply


def there(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_fetches_all_but_the_activations(tmp_path: Path) -> None:
    with serve(answer(FILES)) as server, ServerApi(server.url) as api:
        assert download.fetch(api, Layout(tmp_path, "nano")) == 3
    assert there(tmp_path) == {path: content for path, content in FILES.items() if SAVE_DIR not in path}


def test_writes_nothing_outside_the_folder_whatever_the_server_says(tmp_path: Path) -> None:
    manifest = json.dumps({"calm/a_0001": {**ENTRY, "save_dir": "../elsewhere"}}).encode()
    with (
        serve(answer({**FILES, "nano/activations_manifest.json": manifest})) as server,
        ServerApi(server.url) as api,
        pytest.raises(RunError, match=r"outside the results folder: \.\./elsewhere/activations\.safetensors"),
    ):
        download.activations(api, Layout(tmp_path / "results", "nano"))
    assert there(tmp_path) == {}


def test_downloads_the_activations_once(tmp_path: Path) -> None:
    with serve(answer(FILES)) as server, ServerApi(server.url) as api:
        for _ in range(2):
            assert download.activations(api, Layout(tmp_path, "nano")) == 1
        asked = [request.path for request in server.requests]
    assert there(tmp_path) == {f"{SAVE_DIR}/activations.safetensors": CONTENT}
    assert len(asked) == 3


def test_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    part = tmp_path / SAVE_DIR / "activations.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    with serve(answer(FILES)) as server, ServerApi(server.url) as api:
        download.activations(api, Layout(tmp_path, "nano"))
        assert server.requests[-1].headers["Range"] == "bytes=1000-"
    assert there(tmp_path) == {f"{SAVE_DIR}/activations.safetensors": CONTENT}


def test_goes_on_when_the_server_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)
    drops = iter([True, True, False])

    def unsteady(request: Request) -> Reply:
        lost = request.path.endswith("safetensors") and next(drops)
        return Reply(drop=True) if lost else answer(FILES)(request)

    with serve(unsteady) as server, ServerApi(server.url) as api:
        download.activations(api, Layout(tmp_path, "nano"))
    assert there(tmp_path) == {f"{SAVE_DIR}/activations.safetensors": CONTENT}


def test_replaces_a_file_that_has_other_content(tmp_path: Path) -> None:
    target = tmp_path / SAVE_DIR / "activations.safetensors"
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT[::-1])
    with serve(answer(FILES)) as server, ServerApi(server.url) as api:
        download.activations(api, Layout(tmp_path, "nano"))
    assert target.read_bytes() == CONTENT


def test_refuses_content_that_its_checksum_denies(tmp_path: Path) -> None:
    broken = {**FILES, f"{SAVE_DIR}/activations.safetensors": CONTENT[::-1]}
    with (
        serve(answer(broken)) as server,
        ServerApi(server.url) as api,
        pytest.raises(RunError, match="has other content than its checksum says"),
    ):
        download.activations(api, Layout(tmp_path, "nano"))
    assert there(tmp_path) == {}


def test_says_that_there_is_no_such_experiment(tmp_path: Path) -> None:
    with (
        serve(answer({})) as server,
        ServerApi(server.url) as api,
        pytest.raises(InputError, match="has no results of nano"),
    ):
        download.fetch(api, Layout(tmp_path, "nano"))
