import hashlib
from pathlib import Path
from typing import Any

import pytest

from emopfx.server_api import ServerApi
from emopfx.storage.files import problem
from tests.emopfx.scripted_server import Reply, Request, error, serve

CONTENT = b"some activations"


@pytest.fixture
def entry() -> dict[str, Any]:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    files = [{"name": "activations.safetensors", "bytes": len(CONTENT), "sha256": sha256}]
    return {"save_dir": "nano/activations/calm/a/id", "files": files}


@pytest.fixture
def file(tmp_path: Path, entry: dict[str, Any]) -> Path:
    path: Path = tmp_path / entry["save_dir"] / "activations.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return path


def test_whole_files_have_no_problem(tmp_path: Path, entry: dict[str, Any], file: Path) -> None:
    assert problem(entry, tmp_path, None, checksums=False) is None
    assert problem(entry, tmp_path, None, checksums=True) is None


def test_missing_short_and_changed_files_are_named(tmp_path: Path, entry: dict[str, Any], file: Path) -> None:
    file.write_bytes(CONTENT.replace(b"a", b"b"))
    assert problem(entry, tmp_path, None, checksums=False) is None
    assert "has other content" in str(problem(entry, tmp_path, None, checksums=True))
    file.write_bytes(CONTENT[:-1])
    assert str(problem(entry, tmp_path, None, checksums=False)).endswith("has 15 bytes, not 16")
    file.unlink()
    assert str(problem(entry, tmp_path, None, checksums=False)).endswith("activations.safetensors is missing")
    file.parent.rmdir()
    assert str(problem(entry, tmp_path, None, checksums=False)).startswith("there is no folder")


@pytest.mark.parametrize(
    ("content", "sizes", "checksums"),
    [(CONTENT, None, None), (b"other activation", None, "has other content"), (CONTENT[:3], "has 3 bytes", "has 3")],
)
def test_the_server_is_asked_for_what_is_not_here(
    tmp_path: Path, entry: dict[str, Any], content: bytes, sizes: str | None, checksums: str | None
) -> None:
    def answer(request: Request) -> Reply:
        if request.path.endswith("safetensors"):
            return Reply(body=content)
        listed = [{"name": "activations.safetensors", "type": "file", "bytes": len(content)}]
        return Reply(body={"entries": listed})

    with serve(answer) as server, ServerApi(server.url) as api:
        for found, expected in (
            (problem(entry, tmp_path, api, checksums=False), sizes),
            (problem(entry, tmp_path, api, checksums=True), checksums),
        ):
            assert (found is None) if expected is None else (expected in str(found))


def test_what_is_neither_here_nor_there_is_missing(tmp_path: Path, entry: dict[str, Any]) -> None:
    with serve(lambda request: error(404, "nothing")) as server, ServerApi(server.url) as api:
        assert str(problem(entry, tmp_path, api, checksums=False)).startswith("there is no folder")


def test_a_folder_that_was_not_completed_is_not_here(tmp_path: Path, entry: dict[str, Any], file: Path) -> None:
    file.write_bytes(CONTENT[:-1])
    listed = [{"name": "activations.safetensors", "type": "file", "bytes": len(CONTENT)}]
    with serve(lambda request: Reply(body={"entries": listed})) as server, ServerApi(server.url) as api:
        assert problem(entry, tmp_path, api, checksums=False) is None
        (file.parent / "metadata.json").write_text("{}")
        assert str(problem(entry, tmp_path, api, checksums=False)).endswith("has 15 bytes, not 16")
