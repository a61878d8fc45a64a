"""Brings activations and results here from a bucket, all or a selection; what is here already, and whole, stays."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from emopfx import hashing
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout, read_json
from emopfx.progress import say
from emopfx.storage import layers, manifest, parallel
from emopfx.storage.manifest import Entry, Manifest
from emopfx.storage.s3 import Bucket, Listed
from emopfx.storage.s3_errors import OtherContent

ACTIVATIONS = "activations.safetensors"
PART_SUFFIX = ".part"


@dataclass(frozen=True)
class Selection:
    """Which activations; an empty set takes all.

    A selection of layers makes smaller files. Their entries in the manifest have their own sizes and checksums, and
    the key `layers`.
    """

    variants: frozenset[str] = frozenset()
    samples: frozenset[str] = frozenset()
    layers: frozenset[int] = frozenset()

    def of(self, entries: Manifest) -> Manifest:
        """Return the entries of the selected variants and samples.

        Raises:
            InputError: If there is no such variant or sample.
        """
        for what, asked, place in (("variant", self.variants, 0), ("sample", self.samples, 1)):
            known = {key.split("/")[place] for key in entries}
            if lacking := asked - known:
                shown = ", ".join(sorted(known)[:10])
                raise InputError(f"there is no {what} {min(lacking)} in the bucket; there are {shown or 'none'}")
        return {
            key: entry
            for key, entry in entries.items()
            if (not self.variants or key.split("/")[0] in self.variants)
            and (not self.samples or key.split("/")[1] in self.samples)
        }


def activations(layout: Layout, bucket: Bucket, selection: Selection) -> None:
    """Bring activations here, each file checked against its checksum, and put them into the manifest here.

    Raises:
        InputError: If the bucket has no such experiment, variant or sample.
        RunError: If something is not here in the end; the message lists it.
    """
    remote = manifest.read_remote(bucket, layout.name)
    if remote is None:
        raise InputError(f"{bucket.root} has no activations of {layout.name}")
    entries = selection.of(remote)
    receiver = Receiver(bucket, layout, selection.layers)
    failures = parallel.for_each("pull-activations", entries, receiver.receive, bucket.traffic)
    whole = {key: receiver.entries[entry["save_dir"]] for key, entry in entries.items() if key not in failures}
    manifest.update(layout, whole)
    say(f"pull: {len(receiver.fetched)} files fetched, {len(receiver.kept)} were here")
    parallel.report("pull", failures, len(entries), str(layout.folder))


def results(layout: Layout, bucket: Bucket) -> None:
    """Bring everything of an experiment here but its activations.

    Raises:
        RunError: If something is not here in the end; the message lists it.
    """
    receiver = Receiver(bucket, layout, frozenset())
    found = {listed.key: listed for listed in _results(layout, bucket)}
    failures = parallel.for_each("pull-results", found, receiver.receive_result, bucket.traffic)
    say(f"pull-results: {len(receiver.fetched)} files fetched, {len(receiver.kept)} were here")
    parallel.report("pull-results", failures, len(found), str(layout.folder))


class Receiver:
    """Fetches files to the paths that are their keys.

    Attributes:
        entries: By `save_dir`, what is here of each request that was received.
    """

    def __init__(self, bucket: Bucket, layout: Layout, only_layers: frozenset[int]) -> None:
        self._bucket, self._root, self._layers = bucket, layout.root, only_layers
        # What earlier calls have brought here, of which some may be parts.
        here = (read_json(layout.manifest) or {}).values()
        self._here: Manifest = {entry["save_dir"]: entry for entry in here}
        self.entries: Manifest = {}
        self.fetched: list[str] = []
        self.kept: list[str] = []

    def receive(self, entry: Entry) -> None:
        """Fetch a request's files; metadata.json comes last and marks them as whole."""
        layers_only = bool(self._layers) and not self._whole(entry)
        files = [self._receive_file(path, file, layers_only=layers_only) for path, file in manifest.paths(entry)]
        partial = {"layers": sorted(self._layers)} if layers_only else {}
        self.entries[entry["save_dir"]] = {**entry, "files": files, **partial}

    def _receive_file(self, path: str, file: dict[str, Any], *, layers_only: bool) -> dict[str, Any]:
        target = self._root / path
        if layers_only and file["name"] == ACTIVATIONS:
            return self._receive_layers(path, target)
        if _is_whole(target, file):
            self.kept.append(path)
            return file
        part = _part(target)
        sha256 = self._bucket.fetch(path, part, file["bytes"])
        if sha256 != file["sha256"]:
            part.unlink()
            raise OtherContent(f"{self._bucket.uri(path)} has other content than its checksum says")
        part.replace(target)
        self.fetched.append(path)
        return file

    def _receive_layers(self, path: str, target: Path) -> dict[str, Any]:
        before = self._here.get(str(PurePosixPath(path).parent), {})
        if before.get("layers") == sorted(self._layers):
            file: dict[str, Any] = next(file for file in before["files"] if file["name"] == ACTIVATIONS)
            if _is_whole(target, file):
                self.kept.append(path)
                return file
        part = _part(target)
        layers.fetch(self._bucket, path, part, self._layers)
        file = {"name": target.name, "bytes": part.stat().st_size, "sha256": hashing.file_sha256(part)}
        part.replace(target)
        self.fetched.append(path)
        return file

    def _whole(self, entry: Entry) -> bool:
        """Whether all of a request's activations are here."""
        return all(_is_whole(self._root / path, file) for path, file in manifest.paths(entry))

    def receive_result(self, listed: Listed) -> None:
        """Fetch an object, unless its content is here."""
        stored = self._bucket.stored(listed.key)
        if stored is None:
            raise RunError(f"{self._bucket.uri(listed.key)} went away while it was fetched")
        file = {"name": PurePosixPath(listed.key).name, "bytes": stored.bytes, "sha256": stored.sha256}
        self._receive_file(listed.key, file, layers_only=False)


def _is_whole(path: Path, file: dict[str, Any]) -> bool:
    if not path.is_file() or path.stat().st_size != file["bytes"]:
        return False
    return bool(hashing.file_sha256(path) == file["sha256"])


def _part(target: Path) -> Path:
    # A crash may lose what is not synced; as the checksum is compared at the next call, nothing wrong can stay.
    return target.with_name(f".{target.name}{PART_SUFFIX}")


def _results(layout: Layout, bucket: Bucket) -> Iterator[Listed]:
    for listed in bucket.list(f"{layout.name}/"):
        parts = PurePosixPath(listed.key).parts
        if parts[1] not in ("activations", layout.manifest.name) and ".." not in parts:
            yield listed
