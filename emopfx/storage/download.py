"""Brings results and activations here from behind a server, through its API."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emopfx import hashing
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout, commit, write_bytes
from emopfx.progress import Progress, say
from emopfx.server_api import ServerApi, Unreachable

CONNECTIONS = 8
PAUSE_SECONDS, TRIES = 2.0, 30
PART_SUFFIX = ".part"


def fetch(api: ServerApi, layout: Layout) -> int:
    """Bring all results of an experiment here but its activations.

    Returns:
        How many files there are.

    Raises:
        InputError: If the server has no such experiment.
    """
    _known(api, layout.name)
    with Progress("fetch", 0) as progress, ThreadPoolExecutor(CONNECTIONS) as pool:
        paths = list(_files(api, layout.name, leave_out=f"{layout.name}/activations"))
        progress.expect(len(paths))
        for _ in pool.map(lambda path: _fetch_file(api, path, layout.root), paths):
            progress.advance()
    return len(paths)


def activations(api: ServerApi, layout: Layout) -> int:
    """Bring an experiment's activations here, and go on with what an earlier call has left.

    A file is complete here only when its checksum is the one that the server recorded when it wrote it.

    Returns:
        How many files there are.

    Raises:
        InputError: If the server has no such experiment.
        RunError: If the server is lost, or a file has other content than its checksum says.
    """
    manifest = json.loads(_known(api, layout.name))
    files = [
        (f"{entry['save_dir']}/{file['name']}", file["bytes"], file["sha256"])
        for entry in manifest.values()
        for file in entry["files"]
    ]
    kept = 0
    with Progress("download-activations", len(files)) as progress:
        for path, size, sha256 in files:
            kept += not download(api, path, _target(layout.root, path), size, sha256)
            progress.advance()
    say(f"download-activations: {kept} of {len(files)} files were here already")
    return len(files)


def download(api: ServerApi, path: str, target: Path, size: int, sha256: str) -> bool:
    """Bring one file here, from where an earlier call was stopped.

    Returns:
        False if it was here already.

    Raises:
        RunError: If the server is lost, or what it has is not what the checksum says.
    """
    if target.exists() and target.stat().st_size == size and hashing.file_sha256(target) == sha256:
        return False
    part = target.with_name(target.name + PART_SUFFIX)
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(TRIES):
        try:
            _append(api, path, part, size)
            break
        except Unreachable:
            if attempt == TRIES - 1:
                raise
            time.sleep(PAUSE_SECONDS)
    if hashing.file_sha256(part) != sha256:
        part.unlink()
        raise RunError(f"{path} has other content than its checksum says; emopfx generate --verify makes it again")
    commit(part, target)
    return True


def _append(api: ServerApi, path: str, part: Path, size: int) -> None:
    start = part.stat().st_size if part.exists() else 0
    if start > size:
        part.unlink()
        start = 0
    if start == size and size:
        return
    with part.open("ab") as file, api.stream(path, start) as blocks:
        for block in blocks:
            file.write(block)


def _known(api: ServerApi, name: str) -> bytes:
    manifest = api.read(f"{name}/activations_manifest.json")
    if manifest is None:
        raise InputError(f"the server at {api.url} has no results of {name}")
    return manifest


def _files(api: ServerApi, folder: str, leave_out: str) -> Iterator[str]:
    for entry in api.entries(folder):
        path = f"{folder}/{entry['name']}"
        if entry["type"] == "file":
            yield path
        elif path != leave_out:
            yield from _files(api, path, leave_out)


def _fetch_file(api: ServerApi, path: str, root: Path) -> None:
    content = api.read(path)
    if content is None:
        raise RunError(f"{path} went away while it was fetched; run it again")
    write_bytes(_target(root, path), content)


def _target(root: Path, path: str) -> Path:
    """Return where a file that the server names goes; never outside `root`, whatever the server says."""
    target = (root / path).resolve()
    if not target.is_relative_to(root.resolve()):
        raise RunError(f"the server names a file outside the results folder: {path}")
    return target
