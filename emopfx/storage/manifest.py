"""activations_manifest.json, here and in a bucket: which files there are, with sizes and checksums, and where else."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config

# pydantic asks for this one up to Python 3.11.
from typing_extensions import TypedDict

from emopfx.config_values import read_endpoint, read_s3_uri
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout, json_text, write_json
from emopfx.storage.files import METADATA
from emopfx.storage.s3 import Bucket
from emopfx.storage.s3_errors import Taken

PUBLISHING_TRIES = 10


class NoManifestError(RunError):
    """What should be a manifest is none."""


def _file_name(value: str) -> str:
    if value in ("", ".", "..") or "/" in value or "\0" in value:
        raise ValueError("a file's name has no folder in it")
    return value


@with_config(ConfigDict(strict=True, extra="allow"))
class File(TypedDict):
    """One file of a request."""

    name: Annotated[str, AfterValidator(_file_name)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@with_config(ConfigDict(strict=True, extra="allow"))
class Entry(TypedDict):
    """The files of a request, as the server wrote them.

    `uri` is where they are besides, on the service `endpoint_url`; of those that were sent in parts, `checksums` has
    what S3 has for a checksum, by name. Where only some `layers` were pulled, `partial` is the file that has them, in
    place of the whole one.
    """

    save_dir: str
    request_id: str
    uri: str | None
    endpoint_url: NotRequired[Annotated[str | None, AfterValidator(read_endpoint)]]
    files: Annotated[list[File], Field(min_length=1)]
    tokens: int
    checksums: NotRequired[dict[str, str]]
    layers: NotRequired[list[int]]
    partial: NotRequired[File]


Manifest = dict[str, Entry]
MANIFEST = TypeAdapter(Manifest)


def checked(value: Any, name: str, place: str) -> Manifest:
    """Return a manifest in which every entry is complete, and names files of the experiment's activations only.

    Args:
        value: What should be one.
        name: The experiment.
        place: Where it comes from, for messages.

    Raises:
        NoManifestError: If it is none.
    """
    try:
        manifest = MANIFEST.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise NoManifestError(f"{place} is no manifest of {name}'s activations: {where}: {first['msg']}") from None
    for key, entry in manifest.items():
        parts, save_dir = PurePosixPath(key).parts, entry["save_dir"]
        folder = PurePosixPath(save_dir)
        inside = folder.parts[:2] == (name, "activations") and len(folder.parts) > 2 and "\0" not in save_dir
        if len(parts) < 2 or not inside or ".." in folder.parts or str(folder) != save_dir:
            what = f"{key}: {save_dir!r} is no folder of a sample under {name}/activations"
        elif entry["uri"] and not _is_uri(entry["uri"], save_dir):
            what = f"{key}: its uri is none of S3 that ends with its save_dir"
        else:
            continue
        raise NoManifestError(f"{place} is no manifest of {name}'s activations: {what}")
    return manifest


def _is_uri(uri: str, save_dir: str) -> bool:
    """Whether a URI of S3 ends with a folder, whose name may have characters that the rest can't have."""
    with suppress(ValueError):
        return uri.endswith(f"/{save_dir}") and bool(read_s3_uri(uri.removesuffix(f"/{save_dir}")))
    return False


def read(layout: Layout) -> Manifest:
    """Return the manifest of an experiment here.

    Raises:
        InputError: If there is none.
        NoManifestError: If it is none.
    """
    if not layout.manifest.exists():
        raise InputError(f"there is no {layout.manifest}; emopfx generate makes it")
    return here(layout)


def here(layout: Layout) -> Manifest:
    """Return the manifest of an experiment here, an empty one if there is none.

    Raises:
        NoManifestError: If it is none.
    """
    try:
        value = json.loads(layout.manifest.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise NoManifestError(f"{layout.manifest} is no JSON; delete it, and generate or pull makes it anew") from None
    return checked(value, layout.name, str(layout.manifest))


def read_remote(bucket: Bucket, name: str) -> Manifest | None:
    """Return the manifest that a bucket has of an experiment, None if it has none.

    Raises:
        NoManifestError: If it is none, or names files outside the experiment's activations.
        RunError: If S3 fails.
    """
    key = _key(name)
    try:
        manifest = json.loads(bucket.read(key))
    except FileNotFoundError:
        return None
    except ValueError:
        raise NoManifestError(f"{bucket.uri(key)} is no JSON; push --replace writes it anew") from None
    return checked(manifest, name, bucket.uri(key))


def publish(bucket: Bucket, name: str, entries: Manifest, *, replace: bool = False) -> None:
    """Put entries into a bucket's manifest; those that others put there in the meantime stay.

    Args:
        bucket: The bucket.
        name: The experiment.
        entries: What is put there.
        replace: Whether it takes the place of entries of another config, and of a manifest that is none.

    Raises:
        InputError: If there are entries of another config.
        RunError: If S3 fails, or others never cease to write it.
    """
    key = _key(name)
    for _ in range(PUBLISHING_TRIES):
        stored = bucket.stored(key)
        before = merged_into(bucket, name, entries, replace=replace) if stored else {}
        merged = {**before, **entries}
        if stored and merged == before:
            return
        try:
            bucket.put_bytes(json_text(merged).encode(), key, over=stored)
        except Taken:
            continue
        return
    raise RunError(f"{bucket.uri(key)} is being changed by others all the time")


def merged_into(bucket: Bucket, name: str, entries: Manifest, *, replace: bool) -> Manifest:
    """Return a bucket's manifest, into which entries are to be put.

    Raises:
        InputError: If it has entries of another config, unless they are to be replaced.
        RunError: If it is no manifest, unless it is to be replaced, or S3 fails.
    """
    try:
        before = read_remote(bucket, name) or {}
    except NoManifestError:
        if not replace:
            raise
        return {}
    if not replace:
        refuse_others(before, {key: entry["request_id"] for key, entry in entries.items()}, bucket.uri(name))
    return before


def refuse_others(there: Manifest, request_ids: dict[str, str], place: str) -> None:
    """Refuse to mix the requests that are here with others of the same samples.

    Args:
        there: The manifest of a bucket.
        request_ids: By key, the requests that are here, or will be.
        place: Names the bucket.

    Raises:
        InputError: If there are others.
    """
    for key, request_id in request_ids.items():
        if key in there and there[key]["request_id"] != request_id:
            raise InputError(
                f"{place} has activations of {key} under another config (request {there[key]['request_id']}, "
                f"here {request_id}); choose another place, or --replace"
            )


def update(layout: Layout, entries: Manifest) -> None:
    """Put entries into the manifest here."""
    before = here(layout)
    merged = {**before, **entries}
    if merged != before or not layout.manifest.exists():
        write_json(layout.manifest, merged)


def in_bucket(entry: Entry, bucket: Bucket, checksums: Mapping[str, str] | None = None) -> Entry:
    """Return an entry that says that its files are in a bucket too.

    Args:
        entry: The entry.
        bucket: The bucket.
        checksums: By key, what S3 has for a checksum of files that were sent in parts.
    """
    placed = entry.copy()
    placed["uri"], placed["endpoint_url"] = bucket.uri(entry["save_dir"]), bucket.endpoint_url
    if own := {file["name"]: checksums[path] for path, file in paths(entry) if checksums and path in checksums}:
        placed["checksums"] = own
    return placed


def checksum_there(entry: Entry, file: File) -> str | None:
    """Return what S3 has for a checksum of a file if it was sent in parts, as far as is known."""
    return entry.get("checksums", {}).get(file["name"])


def paths(entry: Entry) -> list[tuple[str, File]]:
    """Return an entry's files, each with its path in a data folder or its key in a bucket; metadata.json is last."""
    ordered = sorted(entry["files"], key=lambda file: file["name"] == METADATA)
    return [(f"{entry['save_dir']}/{file['name']}", file) for file in ordered]


def as_here(entry: Entry) -> Entry:
    """Return an entry with the files that a pull of its layers has brought here."""
    partial = entry.get("partial")
    if partial is None:
        return entry
    kept = entry.copy()
    kept["files"] = [partial if file["name"] == partial["name"] else file for file in entry["files"]]
    return kept


def root(entry: Entry) -> str:
    """Return the URI under which the keys of a pushed entry are."""
    return str(entry["uri"]).removesuffix(f"/{entry['save_dir']}")


def _key(name: str) -> str:
    return f"{name}/activations_manifest.json"
