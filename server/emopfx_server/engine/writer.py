"""Committing a request's activations: a partial folder, synced, then renamed into place."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from safetensors.torch import save_file

from emopfx_server.engine.capture import Capture

ACTIVATIONS = "activations.safetensors"
METADATA = "metadata.json"


class FileEntry(TypedDict):
    """A written file, as the breadcrumb and the metadata list it."""

    name: str
    bytes: int
    sha256: str


def commit(folder: Path, request_id: str, capture: Capture, header: Mapping[str, str], record: dict[str, Any]) -> None:
    """Write a request's files so that they are all there, or none of them.

    They are written to ``.<request_id>.partial`` beside ``folder`` (a ``/`` in the id becomes a dot), synced, and the
    folder is renamed; the metadata, written last, marks the commit.

    Args:
        folder: Where the files are to be; must not exist.
        request_id: Names the partial folder.
        capture: The rows.
        header: Text for the safetensors header.
        record: What the metadata says besides shapes and files.

    Raises:
        OSError: When writing failed; nothing is left behind.
    """
    partial = folder.parent / f".{request_id.replace('/', '.')}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed server left
    try:
        partial.mkdir(parents=True)
        tensors = capture.tensors()
        save_file(tensors, partial / ACTIVATIONS, metadata=dict(header))
        (partial / ACTIVATIONS).chmod(0o644)  # safetensors writes for its owner alone; a Job may run as another user
        record = record | {
            "tokens": capture.rows,
            "shapes": {name: list(tensor.shape) for name, tensor in tensors.items() if tensor.dim() == 2},
            "files": [describe(partial / ACTIVATIONS)],
        }
        (partial / METADATA).write_text(json.dumps(record, indent=1) + "\n")
        for path in (partial / ACTIVATIONS, partial / METADATA, partial):
            _sync(path)
        partial.rename(folder)
        _sync(folder.parent)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def describe(path: Path) -> FileEntry:
    """A file's name, size and checksum."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def read_record(folder: Path) -> dict[str, Any] | None:
    """The metadata of a committed request, or None when nothing was committed there, or it is no longer whole."""
    try:
        record: dict[str, Any] = json.loads((folder / METADATA).read_text())
        whole = all((folder / file["name"]).stat().st_size == file["bytes"] for file in record["files"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return record if whole else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
