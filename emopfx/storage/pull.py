"""Brings results and activations here from a bucket, all or a selection; what is here already, and whole, stays."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from emopfx import hashing, record
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout
from emopfx.progress import say
from emopfx.storage import layers, manifest, parallel
from emopfx.storage.files import ACTIVATIONS, is_whole, part_of
from emopfx.storage.layers import Partial
from emopfx.storage.manifest import Entry, File, Manifest
from emopfx.storage.objects import Listed
from emopfx.storage.results import is_result, refuse_other_config
from emopfx.storage.s3 import Bucket
from emopfx.storage.s3_errors import OtherContent


@dataclass(frozen=True)
class Selection:
    """Which activations; an empty set takes all.

    A selection of layers makes smaller files, beside which the manifest's entries have the keys `layers` and
    `partial`. Layers that are here already stay.
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


def activations(layout: Layout, bucket: Bucket, selection: Selection, *, replace: bool = False) -> None:
    """Bring activations here, each file checked against its checksum, and put them into the manifest here.

    Args:
        layout: The experiment.
        bucket: Where they are.
        selection: Which of them.
        replace: Whether they take the place of those of another config.

    Raises:
        InputError: If the bucket has no such experiment, variant or sample, or here is another config's.
        RunError: If something is not here in the end; the message lists it.
    """
    entries = selection.of(_remote(layout, bucket, replace=replace))
    with record.lock(layout):
        receiver = Receiver(bucket, layout, selection.layers, replace=replace)
        failures = parallel.for_each("pull-activations", entries, receiver.receive, bucket.traffic)
        whole = {key: receiver.entries[entry["save_dir"]] for key, entry in entries.items() if key not in failures}
        manifest.update(layout, whole)
    say(f"pull: {len(receiver.fetched)} files fetched, {len(receiver.kept)} were here")
    parallel.report("pull", failures, len(entries), f"are not in {layout.folder}")


def addresses(layout: Layout, bucket: Bucket, *, replace: bool = False) -> None:
    """Put into the manifest here where the bucket has each request, for who reads them there.

    Raises:
        InputError: If the bucket has no such experiment, or here is another config's.
        RunError: If S3 fails.
    """
    entries = _remote(layout, bucket, replace=replace)
    with record.lock(layout):
        # What an entry says of files that are here stays true.
        known = {key: entry for key, entry in manifest.here(layout).items() if _same(entry, entries.get(key))}
        placed = {key: manifest.in_bucket(entry, bucket) for key, entry in entries.items()}
        for key, entry in known.items():
            placed[key] = {**entry, **placed[key]}
        manifest.update(layout, placed)
    say(f"pull: {len(entries)} requests are read from {bucket.root} where they are not here")


def results(layout: Layout, bucket: Bucket, *, replace: bool = False) -> None:
    """Bring everything of an experiment here but its activations.

    Args:
        layout: The experiment.
        bucket: Where it is.
        replace: Whether files here with other content are written over.

    Raises:
        InputError: If the results here are another config's, unless they are to be replaced.
        RunError: If something is not here in the end; the message lists it.
    """
    if not replace:
        parallel.patiently("pull-results", lambda: refuse_other_config(layout, bucket))
    found = parallel.patiently("pull-results", lambda: {one.key: one for one in _results(layout, bucket)})
    with record.lock(layout):
        receiver = Receiver(bucket, layout, frozenset(), replace=replace)
        failures = parallel.for_each("pull-results", found, receiver.receive_result, bucket.traffic)
    say(f"pull-results: {len(receiver.fetched)} files fetched, {len(receiver.kept)} were here")
    parallel.report("pull-results", failures, len(found), f"are not in {layout.folder}")


class Receiver:
    """Fetches files to the paths that are their keys.

    Attributes:
        entries: By `save_dir`, what is here of each request that was received.
    """

    def __init__(self, bucket: Bucket, layout: Layout, only_layers: frozenset[int], *, replace: bool) -> None:
        self._bucket, self._root, self._layers, self._replace = bucket, layout.root, only_layers, replace
        # What earlier calls have brought here, of which some may be parts.
        self._here = {entry["save_dir"]: entry for entry in manifest.here(layout).values()}
        self.entries: Manifest = {}
        self.fetched: list[str] = []
        self.kept: list[str] = []

    def receive(self, entry: Entry) -> None:
        """Fetch a request's files; metadata.json comes last and marks them as whole."""
        here = self._here.get(entry["save_dir"])
        if here and not self._replace and here["files"] != entry["files"] and self._is_here(here):
            raise RunError(f"{self._root / entry['save_dir']} has other content; pull --replace writes over it")
        received = manifest.in_bucket(entry, self._bucket)
        layers_only = bool(self._layers) and not self._is_here(entry)
        for path, file in manifest.paths(entry):
            if layers_only and file["name"] == ACTIVATIONS:
                received["layers"], received["partial"] = self._receive_layers(entry, path, file)
            else:
                self._receive_file(path, file)
        self.entries[entry["save_dir"]] = received

    def _receive_file(self, path: str, file: File) -> None:
        target = self._root / path
        if is_whole(target, file["bytes"], file["sha256"]):
            self.kept.append(path)
            return
        with _part(target) as part:
            if self._bucket.fetch(path, part, file["bytes"]) != file["sha256"]:
                raise OtherContent(f"{self._bucket.uri(path)} has other content than its checksum says")
            part.replace(target)
        self.fetched.append(path)

    def _receive_layers(self, entry: Entry, path: str, file: File) -> tuple[list[int], File]:
        target, here = self._root / path, self._here.get(entry["save_dir"])
        # Layers of what has been made anew in the meantime would be mixed with others.
        known = here.get("partial") if here and here["files"] == entry["files"] else None
        before = None
        if known and is_whole(target, known["bytes"], known["sha256"]):
            before = Partial.open(target)
        if known and before and self._layers <= before.layers:
            self.kept.append(path)
            return sorted(before.layers), known
        wanted = self._layers | (before.layers if before else set())
        with _part(target) as part:
            checksum = manifest.checksum_there(entry, file)
            layers.fetch(self._bucket, path, part, wanted, file, checksum=checksum, before=before)
            partial: File = {
                "name": target.name,
                "bytes": part.stat().st_size,
                "sha256": hashing.file_sha256(part),
            }
            part.replace(target)
        self.fetched.append(path)
        return sorted(wanted), partial

    def _is_here(self, entry: Entry) -> bool:
        """Whether all of a request's activations are here."""
        return all(is_whole(self._root / path, file["bytes"], file["sha256"]) for path, file in manifest.paths(entry))

    def receive_result(self, listed: Listed) -> None:
        """Fetch an object, unless its content is here."""
        stored = self._bucket.stored(listed.key)
        if stored is None:
            raise RunError(f"{self._bucket.uri(listed.key)} went away while it was fetched")
        sha256 = stored.sha256 or self._bucket.sha256(listed.key, stored.bytes)
        target = self._root / listed.key
        if not self._replace and target.exists() and not is_whole(target, stored.bytes, sha256):
            raise RunError(f"{target} has other content; pull --replace writes over it")
        self._receive_file(
            listed.key, {"name": PurePosixPath(listed.key).name, "bytes": stored.bytes, "sha256": sha256}
        )


def _remote(layout: Layout, bucket: Bucket, *, replace: bool) -> Manifest:
    remote = parallel.patiently("pull", lambda: manifest.read_remote(bucket, layout.name))
    if remote is None:
        raise InputError(f"{bucket.root} has no activations of {layout.name}")
    if not replace:
        here = {key: entry["request_id"] for key, entry in manifest.here(layout).items()}
        manifest.refuse_others(remote, here, bucket.uri(layout.name))
    return remote


def _same(here: Entry, there: Entry | None) -> bool:
    return there is not None and (here["save_dir"], here["files"]) == (there["save_dir"], there["files"])


@contextmanager
def _part(target: Path) -> Iterator[Path]:
    """Yield where a file is written before it is whole; what is left there goes."""
    # A crash may lose what is not synced; as the checksum is compared at the next call, nothing wrong can stay.
    part = part_of(target)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _results(layout: Layout, bucket: Bucket) -> Iterator[Listed]:
    for listed in bucket.list(f"{layout.name}/"):
        path = PurePosixPath(listed.key)
        # Consoles mark folders by objects whose keys end with a slash.
        if str(path) == listed.key and ".." not in path.parts and is_result(path.relative_to(layout.name)):
            yield listed
