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

    Attributes:
        sent: The keys of those that were sent.
        kept: The keys of those that were there.
        checksums: By key, what S3 has for a checksum of those that are there in parts.

    Args:
        bucket: Where to.
        root: The data folder.
        there: The keys that the bucket has, as far as is known.
        replace: Whether objects with other content are written over.
    """

    def __init__(self, bucket: Bucket, root: Path, there: set[str], *, replace: bool) -> None:
        self._bucket, self._root, self._there, self._replace = bucket, root, there, replace
        self.sent: list[str] = []
        self.checksums: dict[str, str] = {}
        self.kept: list[str] = []

    def send_entry(self, entry: Entry) -> None:
        """Send a request's files; metadata.json comes last and marks them as whole."""
        for path, file in manifest.paths(entry):
            self._send(path, file["sha256"], file["bytes"], manifest.checksum_there(entry, file))

    def send_result(self, path: Path) -> None:
        """Send a file as it is now."""
        key = str(path.relative_to(self._root))
        if not key.isprintable():
            raise RunError(f"{key!r} can't be the name of an object")
        self._send(key, hashing.file_sha256(path), path.stat().st_size)

    def _send(self, key: str, sha256: str, size: int, checksum: str | None = None) -> None:
        stored = self._bucket.stored(key) if key in self._there else None
        if stored is None:
            if self._put(key, sha256, None):
                return
            stored = self._bucket.stored(key)
        if self._problem(key, stored, size, sha256, checksum) is None:
            self._note(key, stored, self.kept)
            return
        if stored is None:
            raise RunError(f"{self._bucket.uri(key)} is being written by somebody else; run it again")
        if not self._replace:
            raise RunError(f"{self._bucket.uri(key)} has other content; push --replace writes over it")
        if self._put(key, sha256, stored):
            return
        # Perhaps it was written, and only the answer was lost.
        stored = self._bucket.stored(key)
        if self._problem(key, stored, size, sha256, None):
            raise RunError(f"{self._bucket.uri(key)} was changed by somebody else in the meantime")
        self._note(key, stored, self.sent)

    def _problem(self, key: str, stored: Stored | None, size: int, sha256: str, checksum: str | None) -> str | None:
        """Return what is wrong with an object; of one in parts, the parts here tell if nothing is known of them."""
        path = self._root / key
        if checksum is None and stored and stored.in_parts and stored.bytes == size and path.is_file():
            whole, found = composite(path)
            checksum = found if whole == sha256 else None
        return self._bucket.problem(key, stored, size, sha256, checksum=checksum, strict=self._replace)

    def _put(self, key: str, sha256: str, over: Stored | None) -> bool:
        """Send a file unless there is another object than `over`; return whether it was sent."""
        try:
            checksum = self._bucket.put(self._root / key, key, sha256, over)
        except Taken:
            return False
        self.sent.append(key)
        if checksum:
            self.checksums[key] = checksum
        return True

    def _note(self, key: str, stored: Stored | None, keys: list[str]) -> None:
        keys.append(key)
        if stored and stored.in_parts and stored.checksum:
            self.checksums[key] = stored.checksum

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
        if (whole, checksum) == (sha256, stored.checksum):
            return True
    return bucket.sha256(key, size) == sha256
