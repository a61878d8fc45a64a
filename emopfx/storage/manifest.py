"""activations_manifest.json, here and in a bucket: which files there are, with sizes and checksums, and where else."""

import json
from pathlib import PurePosixPath
from typing import Any

from emopfx.errors import InputError, RunError
from emopfx.layout import Layout, json_text, read_json, write_json
from emopfx.storage.s3 import Bucket
from emopfx.storage.s3_errors import Taken

Entry = dict[str, Any]
Manifest = dict[str, Entry]

PUBLISHING_TRIES = 10


def read(layout: Layout) -> Manifest:
    """Return the manifest of an experiment here.

    Raises:
        InputError: If there is none.
    """
    manifest = read_json(layout.manifest)
    if manifest is None:
        raise InputError(f"there is no {layout.manifest}; emopfx generate makes it")
    return manifest


def read_remote(bucket: Bucket, name: str) -> Manifest | None:
    """Return the manifest that a bucket has of an experiment, None if it has none.

    Raises:
        RunError: If it is no manifest, or names files outside the experiment's activations.
    """
    key = _key(name)
    try:
        manifest = json.loads(bucket.read(key))
    except FileNotFoundError:
        return None
    except ValueError:
        raise RunError(f"{bucket.uri(key)} is no JSON") from None
    if not isinstance(manifest, dict) or not all(_inside(entry, name) for entry in manifest.values()):
        raise RunError(f"{bucket.uri(key)} is no manifest of {name}'s activations")
    return manifest


def publish(bucket: Bucket, name: str, entries: Manifest) -> None:
    """Put entries into a bucket's manifest; those that others put there in the meantime stay.

    Raises:
        RunError: If S3 fails, or others never cease to write it.
    """
    key = _key(name)
    for _ in range(PUBLISHING_TRIES):
        stored = bucket.stored(key)
        before = (read_remote(bucket, name) if stored else None) or {}
        merged = {**before, **entries}
        if merged == before:
            return
        try:
            bucket.put_bytes(json_text(merged).encode(), key, over=stored)
        except Taken:
            continue
        return
    raise RunError(f"{bucket.uri(key)} is being changed by others all the time")


def update(layout: Layout, entries: Manifest) -> None:
    """Put entries into the manifest here."""
    before = read_json(layout.manifest) or {}
    merged = {**before, **entries}
    if merged != before:
        write_json(layout.manifest, merged)


def paths(entry: Entry) -> list[tuple[str, dict[str, Any]]]:
    """Return an entry's files, each with its path in a data folder or its key in a bucket; metadata.json is last."""
    return [(f"{entry['save_dir']}/{file['name']}", file) for file in entry["files"]]


def root(entry: Entry) -> str:
    """Return the URI under which the keys of a pushed entry are."""
    return str(entry["uri"]).removesuffix(f"/{entry['save_dir']}")


def _key(name: str) -> str:
    return f"{name}/activations_manifest.json"


def _inside(entry: Any, name: str) -> bool:
    """Whether an entry's files all lie under the experiment's activations."""
    try:
        paths_of = [PurePosixPath(path) for path, _ in paths(entry)]
    except (KeyError, TypeError):
        return False
    return all(path.parts[:2] == (name, "activations") and ".." not in path.parts for path in paths_of)
