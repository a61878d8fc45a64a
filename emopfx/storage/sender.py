"""Sends files to a bucket, unless it has them, and deletes them here once it surely has."""

from contextlib import suppress
from pathlib import Path

from emopfx import hashing
from emopfx.errors import RunError
from emopfx.storage import manifest
from emopfx.storage.files import part_of
from emopfx.storage.manifest import Entry, File
from emopfx.storage.objects import Stored
from emopfx.storage.parts import composite
from emopfx.storage.s3 import Bucket
from emopfx.storage.s3_errors import Taken


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
            if self._put(key, sha256, None):
                return
            stored = self._bucket.stored(key)
        if self._bucket.problem(key, stored, size, sha256, strict=self._replace) is None:
            self.kept.append(key)
            return
        if stored is None:
            raise RunError(f"{self._bucket.uri(key)} is being written by somebody else; run it again")
        if not self._replace:
            raise RunError(f"{self._bucket.uri(key)} has other content; push --replace writes over it")
        if self._put(key, sha256, stored):
            return
        # Perhaps it was written, and only the answer was lost.
        if self._bucket.problem(key, self._bucket.stored(key), size, sha256):
            raise RunError(f"{self._bucket.uri(key)} was changed by somebody else in the meantime")
        self.sent.append(key)

    def _put(self, key: str, sha256: str, over: Stored | None) -> bool:
        """Send a file unless there is another object than `over`; return whether it was sent."""
        try:
            self._bucket.put(self._root / key, key, sha256, over)
        except Taken:
            return False
        self.sent.append(key)
        return True

    def delete_entry(self, entry: Entry) -> None:
        """Delete a request's files here if the bucket surely has their content."""
        here = [(self._root / path, path, file) for path, file in manifest.paths(entry)]
        here = [(local, path, file) for local, path, file in here if local.exists()]
        for local, path, file in here:
            if not surely_has(self._bucket, path, local, file):
                raise RunError(f"{self._bucket.uri(path)} is not whole; the files here are kept")
        # metadata.json goes first: a folder without it is no longer taken for a whole one.
        for local, _, _ in reversed(here):
            local.unlink()
            part_of(local).unlink(missing_ok=True)
        self._delete_empty(self._root / entry["save_dir"], self._root)

    def _delete_empty(self, folder: Path, root: Path) -> None:
        # What else is in a folder is not ours, and stays; so does the folder.
        with suppress(OSError):
            while folder.parent.parent != root:
                folder.rmdir()
                folder = folder.parent


def surely_has(bucket: Bucket, key: str, path: Path, file: File) -> bool:
    """Whether an object has a file's content: by a checksum of S3's own, or else by reading it.

    Args:
        bucket: The bucket.
        key: The object's key.
        path: The file here.
        file: What the manifest says of it.
    """
    stored, size, sha256 = bucket.stored(key), file["bytes"], file["sha256"]
    if stored is None or stored.bytes != size:
        return False
    if stored.checksum and not stored.in_parts:
        return stored.sha256 == sha256
    if stored.checksum:
        whole, checksum = composite(path)
        if (whole, checksum) == (sha256, stored.checksum.partition("-")[0]):
            return True
    return bucket.sha256(key, size) == sha256
