"""Checks that the activations a manifest names are there and whole, on this disk or behind the server."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emopfx import hashing

if TYPE_CHECKING:
    from emopfx.server_api import ServerApi

# What a request's folder holds; metadata.json is written last and deleted first, and marks the folder as whole.
ACTIVATIONS, METADATA = "activations.safetensors", "metadata.json"


def is_here(root: Path, save_dir: str) -> bool:
    """Whether a request's files were all written under this data folder."""
    return (root / save_dir / METADATA).is_file()


def read_range(path: Path, start: int, length: int) -> bytes:
    """Return a range of a file's bytes, fewer where the file ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, start)
    finally:
        os.close(descriptor)


def part_of(path: Path) -> Path:
    """Return where a file is written until it is whole."""
    return path.with_name(f".{path.name}.part")


def is_whole(path: Path, size: int, sha256: str) -> bool:
    """Whether a file has this size and content."""
    return path.is_file() and path.stat().st_size == size and hashing.file_sha256(path) == sha256


def problem(entry: Mapping[str, Any], root: Path, server: "ServerApi | None", *, checksums: bool) -> str | None:
    """Return what is wrong with a sample's activations, None if nothing is.

    Args:
        entry: `save_dir` (relative to the data folder) and `files` with name, bytes and sha256.
        root: The data folder on this disk. If the entry's folder is not there, or was not completed, the server is
            asked.
        server: The server that wrote the files, if it can be asked.
        checksums: Whether to read the files and compare their SHA-256, not only their sizes.
    """
    save_dir = str(entry["save_dir"])
    folder = root / save_dir
    here = is_here(root, save_dir) or (server is None and folder.is_dir())
    if here:
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    elif server is None or (listed := server.file_sizes(save_dir)) is None:
        return f"there is no folder {save_dir}"
    else:
        sizes = listed
    for file in entry["files"]:
        name = file["name"]
        if name not in sizes:
            return f"{save_dir}/{name} is missing"
        if sizes[name] != file["bytes"]:
            return f"{save_dir}/{name} has {sizes[name]} bytes, not {file['bytes']}"
        if not checksums:
            continue
        if here:
            sha256 = hashing.file_sha256(folder / name)
        else:
            assert server is not None
            sha256 = server.file_sha256(f"{save_dir}/{name}")
        if sha256 != file["sha256"]:
            return f"{save_dir}/{name} has other content than its checksum says"
    return None
