"""Committing a request's activations: a partial folder, synced, then renamed into place."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from safetensors.torch import save_file

from emopfx_server.engine.capture import Capture

ACTIVATIONS = "activations.safetensors"
METADATA = "metadata.json"
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""What the system says of a folder that can't be renamed to where something else is."""

_PARTIAL = ".partial"
_NICENESS = 10  # a tenth of a core is always left to a thread this nice
_STALE_SECONDS = 3600  # far longer than it takes to write a file: a partial folder's time is that of its last one


class FileEntry(TypedDict):
    """A written file, as the breadcrumb and the metadata list it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Committed:
    """What a folder holds.

    Attributes:
        record: The metadata.
        files: All files, the metadata's among them.
        whole: Whether they are as the metadata says.
        found: Whether they were there before.
    """

    record: dict[str, Any]
    files: list[FileEntry]
    whole: bool = True
    found: bool = False


def commit(folder: Path, capture: Capture, header: Mapping[str, str], record: dict[str, Any]) -> Committed:
    """Write a request's files so that they are all there, or none of them.

    They are written to a hidden folder beside ``folder``, which no other attempt has, synced, and the folder is
    renamed; the metadata, written last, marks the commit. Where the same request was committed meanwhile, what it
    wrote stands; where its files are damaged, they are replaced.

    Args:
        folder: Where the files are to be; must be empty or not exist, but for the same request's.
        capture: The rows.
        header: Text for the safetensors header.
        record: What the metadata says besides shapes and files.

    Raises:
        OSError: When writing failed; nothing is left behind.
    """
    partial = _hidden(folder)
    missing = [parent for parent in partial.parents if not parent.exists()]
    try:
        partial.mkdir(parents=True)
        tensors = capture.tensors()
        save_file(tensors, partial / ACTIVATIONS, metadata=dict(header))
        (partial / ACTIVATIONS).chmod(0o644)  # safetensors writes for its owner alone; a Job may run as another user
        entry = describe(partial / ACTIVATIONS)
        record = record | {
            "tokens": capture.rows,
            "shapes": {name: list(tensor.shape) for name, tensor in tensors.items() if tensor.dim() == 2},
            "files": [entry],
        }
        (partial / METADATA).write_text(json.dumps(record, indent=1) + "\n")
        files = [entry, describe(partial / METADATA)]
        for path in (partial / ACTIVATIONS, partial / METADATA, partial):
            _sync(path)
        committed = _put(partial, folder, Committed(record, files))
        for parent in (folder.parent, *(new.parent for new in missing)):
            _sync(parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return committed


def _put(partial: Path, folder: Path, fresh: Committed) -> Committed:
    """Rename a written folder into place, unless the same request's whole files are there."""
    try:
        partial.rename(folder)
    except OSError as error:
        there = read_committed(folder) if error.errno in TAKEN else None
        if there is None or there.record["fingerprint"] != fresh.record["fingerprint"]:
            raise
        if there.whole:
            return there
        aside = _hidden(folder)
        folder.rename(aside)
        partial.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
    return fresh


def discard(folder: Path) -> None:
    """Take back what was committed: all of it at once, like the commit."""
    aside = _hidden(folder)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove what servers that were killed left half-written. What may be another one's live work is left alone."""
    for path, folders, files in os.walk(root):
        for name in [name for name in folders if name.startswith(".") and name.endswith(_PARTIAL)]:
            folders.remove(name)
            partial = Path(path) / name
            try:
                stale = time.time() - partial.stat().st_mtime > _STALE_SECONDS
            except FileNotFoundError:  # it was live
                continue
            if stale:
                shutil.rmtree(partial, ignore_errors=True)
        if METADATA in files:
            folders.clear()  # nothing is written under what was committed


def give_way() -> None:
    """Have the calling thread write when the forward pass leaves a core free: all of its threads wait for the last."""
    if sys.platform == "linux":  # where threads have priorities of their own
        thread = threading.get_native_id()
        with suppress(OSError):  # not everybody may
            os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


def describe(path: Path) -> FileEntry:
    """A file's name, size and checksum."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def read_committed(folder: Path) -> Committed | None:
    """What was committed in a folder, or None when there is nothing, or something that no commit has made."""
    try:
        record = json.loads((folder / METADATA).read_text())
        if not record.keys() >= {"fingerprint", "answer"}:
            return None
        whole = all(_is_whole(folder / file["name"], file) for file in record["files"])
        return Committed(record, [*record["files"], describe(folder / METADATA)], whole, found=True)
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return None


def _is_whole(path: Path, entry: FileEntry) -> bool:
    try:
        return path.stat().st_size == entry["bytes"] and describe(path) == entry
    except OSError:
        return False


def _hidden(folder: Path) -> Path:
    """A folder beside ``folder`` that listings don't show and nobody else has; its name is short enough for any."""
    return folder.parent / f".{folder.name[:48]}.{secrets.token_hex(4)}{_PARTIAL}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
