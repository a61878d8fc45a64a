"""Sends activations and results to a bucket; what is there already, and whole, is not sent again."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emopfx import hashing
from emopfx.config import S3
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout
from emopfx.progress import say
from emopfx.storage import manifest, parallel
from emopfx.storage.manifest import Entry, Manifest
from emopfx.storage.s3 import WORKERS, Bucket
from emopfx.storage.s3_errors import Taken, Unavailable

# Of this machine alone, or (the manifest) sent in a way of its own.
STAYS_HERE = ("activations_manifest.json", "server.log", "server.json")


def activations(layout: Layout, bucket: Bucket, *, replace: bool = False, delete_local: bool = False) -> None:
    """Send the activations that the manifest names, then the manifest, whose entries now carry their URI.

    Args:
        layout: The experiment.
        bucket: Where to.
        replace: Whether objects with other content are written over.
        delete_local: Whether the files here are deleted after the bucket has said that it has them whole.

    Raises:
        InputError: If there is no manifest, or the bucket has an experiment of that name and another config.
        RunError: If something is not there in the end; the message lists it.
    """
    entries = {key: entry for key, entry in manifest.read(layout).items() if "layers" not in entry}
    _check_config(bucket, layout.name, entries, replace=replace)
    there = {listed.key for listed in bucket.list(f"{layout.name}/activations/")}
    sender = Sender(bucket, layout.root, there, replace=replace)
    failures = parallel.for_each("push-activations", entries, sender.send_entry, bucket.traffic)
    whole = {
        key: {**entry, "uri": bucket.uri(entry["save_dir"])} for key, entry in entries.items() if key not in failures
    }
    manifest.update(layout, whole)
    try:
        manifest.publish(bucket, layout.name, whole)
    except Unavailable:
        # Then what is missing is to be listed all the same.
        if not failures:
            raise
    say(f"push: {len(sender.sent)} files sent, {len(sender.kept)} were there")
    parallel.report("push", failures, len(entries), bucket.root)
    if delete_local:
        failures = parallel.for_each("delete-local", whole, sender.delete_entry, bucket.traffic)
        parallel.report("delete-local", failures, len(whole), bucket.root)


def results(layout: Layout, bucket: Bucket) -> None:
    """Send everything else of an experiment: config, record, answers, reports and artifacts.

    Raises:
        RunError: If something is not there in the end; the message lists it.
    """
    there = {listed.key for listed in bucket.list(f"{layout.name}/")}
    sender = Sender(bucket, layout.root, there, replace=True)
    paths = {str(path.relative_to(layout.root)): path for path in _result_files(layout)}
    failures = parallel.for_each("push-results", paths, sender.send_result, bucket.traffic)
    say(f"push-results: {len(sender.sent)} files sent, {len(sender.kept)} were there")
    parallel.report("push-results", failures, len(paths), bucket.root)


def everything(layout: Layout, s3: S3) -> None:
    """Send all that an experiment has to the bucket of its config.

    Raises:
        RunError: As `activations` and `results` do.
    """
    with Bucket(s3.uri, s3.endpoint_url) as bucket:
        activations(layout, bucket)
        results(layout, bucket)


@contextmanager
def continuous(layout: Layout, s3: S3) -> Iterator[Callable[[Entry], None]]:
    """Send each request's files as soon as they are there, if the config says `continuous`.

    What fails, or is not sent at the end, is left to `everything`.

    Yields:
        What is to be called with each entry.
    """
    if s3.push != "continuous":
        yield lambda entry: None
        return
    with Bucket(s3.uri, s3.endpoint_url) as bucket:
        sender = Sender(bucket, layout.root, set(), replace=False)
        pool = ThreadPoolExecutor(WORKERS, "push")
        try:

            def send(entry: Entry) -> None:
                pool.submit(sender.send_entry, entry)

            yield send
        finally:
            pool.shutdown(cancel_futures=True)


class Sender:
    """Sends files to the keys that are their paths.

    Args:
        bucket: Where to.
        root: The data folder.
        there: The keys that the bucket has, as far as is known.
        replace: Whether objects with other content are written over.
    """

    def __init__(self, bucket: Bucket, root: Path, there: set[str], *, replace: bool) -> None:
        self._bucket, self._root, self._there, self._replace = bucket, root, there, replace
        self.sent: list[str] = []
        self.kept: list[str] = []

    def send_entry(self, entry: Entry) -> None:
        """Send a request's files; metadata.json comes last and marks them as whole."""
        for path, file in manifest.paths(entry):
            self._send(path, file["sha256"], file["bytes"])

    def send_result(self, path: Path) -> None:
        """Send a file as it is now."""
        self._send(str(path.relative_to(self._root)), hashing.file_sha256(path), path.stat().st_size)

    def _send(self, key: str, sha256: str, size: int) -> None:
        stored = self._bucket.stored(key) if key in self._there else None
        if stored is None:
            try:
                self._bucket.put(self._root / key, key, sha256)
            except Taken:
                stored = self._bucket.stored(key)
            else:
                self.sent.append(key)
                return
        if stored and (stored.bytes, stored.sha256) == (size, sha256):
            self.kept.append(key)
            return
        if not stored or not self._replace:
            raise RunError(f"{self._bucket.uri(key)} has other content; push --replace writes over it")
        try:
            self._bucket.put(self._root / key, key, sha256, over=stored)
        except Taken:
            raise RunError(f"{self._bucket.uri(key)} was changed by somebody else in the meantime") from None
        self.sent.append(key)

    def delete_entry(self, entry: Entry) -> None:
        """Delete a request's files here if the bucket has them whole."""
        for path, file in manifest.paths(entry):
            stored = self._bucket.stored(path)
            if stored is None or (stored.bytes, stored.sha256) != (file["bytes"], file["sha256"]):
                raise RunError(f"{self._bucket.uri(path)} is not whole; the files here are kept")
        folder = self._root / entry["save_dir"]
        if folder.is_dir():
            for _, file in manifest.paths(entry):
                (folder / file["name"]).unlink(missing_ok=True)
            folder.rmdir()


def _check_config(bucket: Bucket, name: str, entries: Manifest, *, replace: bool) -> None:
    remote = manifest.read_remote(bucket, name) or {}
    for key, entry in entries.items():
        if not replace and key in remote and remote[key].get("request_id") != entry["request_id"]:
            raise InputError(
                f"{bucket.uri(name)} has activations of {key} under another config (request "
                f"{remote[key].get('request_id')}, here {entry['request_id']}); choose another prefix, or --replace"
            )


def _result_files(layout: Layout) -> Iterator[Path]:
    for path in sorted(layout.folder.rglob("*")):
        parts: Any = path.relative_to(layout.folder).parts
        hidden = any(part.startswith(".") for part in parts)
        if path.is_file() and not hidden and parts[0] not in ("activations", *STAYS_HERE):
            yield path
