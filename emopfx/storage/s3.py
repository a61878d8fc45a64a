"""One S3 bucket: objects go in and out with their SHA-256, in parallel parts, and never one over another unseen.

Credentials are found by boto3's own chain (environment, profile, service account) and stay inside it.
"""

import base64
import hashlib
import io
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from emopfx.config_values import read_endpoint, read_s3_uri
from emopfx.errors import InputError
from emopfx.storage.client import Wire, connect
from emopfx.storage.objects import Listed, Stored
from emopfx.storage.parts import Parts
from emopfx.storage.ranges import RANGE_BYTES, Ranges
from emopfx.storage.s3_errors import OtherContent, Refused, Taken, explained
from emopfx.storage.traffic import NotSent, Paced, Traffic

DELETED_AT_ONCE = 1000
# Up to this size a file goes in one piece: it is hashed once, S3 itself has the manifest's checksum of it, and it costs
# S3 one request; other files fill the line meanwhile. A larger one goes in parts side by side, and one that was broken
# off goes on.
WHOLE_BYTES = 256 << 20


class Bucket:
    """A place in a bucket, under which keys are; use it as a context manager.

    Args:
        uri: s3://bucket or s3://bucket/prefix.
        endpoint_url: Address of the service, if it is not AWS or is not named by boto3's own settings.
        bandwidth: Most bytes a second, if there is a limit.

    Raises:
        InputError: If the URI or the address is none.
    """

    def __init__(self, uri: str, endpoint_url: str | None = None, bandwidth: float | None = None) -> None:
        try:
            self.root, self.endpoint_url = read_s3_uri(uri).rstrip("/"), read_endpoint(endpoint_url)
        except ValueError as error:
            raise InputError(str(error)) from None
        self._name, _, prefix = self.root.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self.traffic = Traffic(bandwidth)
        with explained(self.root):
            self._wire = Wire(connect(endpoint_url), self.root, self.traffic)
        self._ranges, self._parts = Ranges(self._wire), Parts(self._wire)

    def __enter__(self) -> "Bucket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self.traffic.stop()
        self._wire.close()

    def uri(self, key: str) -> str:
        """Return the URI of a key."""
        return f"{self.root}/{key}"

    def stored(self, key: str) -> Stored | None:
        """Return what the bucket says of an object, None if there is none."""
        try:
            with self._wire.asking(key):
                head = self._wire.client.head_object(Bucket=self._name, Key=self._prefix + key, ChecksumMode="ENABLED")
        except FileNotFoundError:
            return None
        return Stored.of(head, head["ContentLength"])

    def problem(
        self,
        key: str,
        stored: Stored | None,
        size: int,
        sha256: str,
        *,
        checksum: str | None = None,
        strict: bool = False,
    ) -> str | None:
        """Return what is wrong with an object that should have this content, None if nothing is.

        It is read if nothing is known of its content; where it is `strict`, or should have another checksum, what its
        writer has said of it is not enough.

        Args:
            key: Its key.
            stored: What the bucket says of it.
            size: How many bytes it must have.
            sha256: What their SHA-256 must be (hex).
            checksum: What S3 must have for a checksum if it was sent in parts.
            strict: Whether its writer is not believed.
        """
        if stored is None:
            return f"{self.uri(key)} is missing"
        if stored.bytes != size:
            return f"{self.uri(key)} has {stored.bytes} bytes, not {size}"
        if checksum is not None and checksum == stored.checksum:
            return None
        hashed_there = stored.checksum and not stored.in_parts
        known = stored.sha256 if hashed_there or not (strict or checksum) else None
        if (known or self.sha256(key, size)) != sha256:
            return f"{self.uri(key)} has other content than its checksum says"
        return None

    def put(self, path: Path, key: str, sha256: str, over: Stored | None = None) -> str | None:
        """Write a file as an object that nobody else has written in the meantime.

        The bytes are hashed as they are sent: S3 refuses what changed on the way, and nothing is kept if they are
        not what `sha256` says.

        Args:
            path: The file.
            key: Where it goes.
            sha256: What its content must be (hex).
            over: The object that it replaces; without it, there must be none.

        Returns:
            What S3 has for a checksum of it if it went in parts, else None: then it has the SHA-256 itself.

        Raises:
            OtherContent: If the file has other content.
            Taken: If there is another object than `over`.
            Refused: If S3 does not take it.
            Unavailable: If S3 can't be used.
            OSError: If the file can't be read.
        """
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            # Of no bytes, none can be held back.
            if not size and sha256 != hashlib.sha256().hexdigest():
                raise OtherContent(f"{key} has other content than its checksum says")
            if size <= WHOLE_BYTES:
                self._put(Paced(key, file, size, self.traffic, sha256), key, sha256, over)
                return None
        return self._parts.put(path, key, self._place(key), sha256, _condition(over))

    def put_bytes(self, content: bytes, key: str, over: Stored | None = None) -> None:
        """Write an object of at most `WHOLE_BYTES` (see `put`)."""
        digest = hashlib.sha256(content).hexdigest()
        self._put(Paced(key, io.BytesIO(content), len(content), self.traffic), key, digest, over)

    def _put(self, body: Paced, key: str, sha256: str, over: Stored | None) -> None:
        reads: Any = body  # what botocore needs of a file
        try:
            with self._wire.asking(key):
                self._wire.client.put_object(
                    **self._place(key),
                    Body=reads,
                    ChecksumAlgorithm="SHA256",
                    ChecksumSHA256=base64.b64encode(bytes.fromhex(sha256)).decode(),
                    Metadata={"sha256": sha256},
                    **_condition(over),
                )
        except NotSent as stopped:
            raise stopped.error from None

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes, or `length` of them from `start` on, fewer where it ends.

        Raises:
            FileNotFoundError: If there is no such object.
            Refused: If S3 does not give it.
            Unavailable: If S3 can't be used.
        """
        if length == 0:
            return b""
        with suppress(EOFError):
            return b"".join(self._ranges.get(key, self._place(key), start, length)[0])
        return b""

    def piece(
        self, key: str, start: int, length: int | None, *, of: Stored | None = None, size: int | None = None
    ) -> tuple[bytes, Stored]:
        """Return bytes of an object (see `read`), and what it is.

        Args:
            key: Its key.
            start: Where the range begins.
            length: How long it is; None takes the rest of the object.
            of: The object that is meant.
            size: How many bytes the whole object must have.

        Raises:
            OtherContent: If it is another object, or has another size; then nothing of it is read.
        """
        try:
            chunks, stored = self._ranges.get(key, self._place(key), start, length, of=of, size=size)
        except EOFError as error:
            raise OtherContent(str(error)) from None
        return b"".join(chunks), stored

    def stream(self, key: str, start: int, end: int, *, of: Stored | None, size: int) -> Generator[bytes]:
        """Yield the bytes of a range in order, read by parallel requests (see `piece`)."""
        return self._ranges.stream(key, self._place(key), start, end, of, size)

    def sha256(self, key: str, size: int) -> str:
        """Read an object of `size` bytes and return the SHA-256 of its content (hex)."""
        digest = hashlib.sha256()
        with self._contents(key, size) as contents:
            for content in contents:
                digest.update(content)
        return digest.hexdigest()

    def fetch(self, key: str, path: Path, size: int) -> str:
        """Write an object of `size` bytes to a file, in parallel parts.

        Returns:
            The SHA-256 of its content (hex).

        Raises:
            FileNotFoundError: If there is no such object.
            OtherContent: If it has another size.
            Refused: If S3 does not give it.
            Unavailable: If S3 can't be used.
            OSError: If the file can't be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("wb") as file, self._contents(key, size) as contents:
            for content in contents:
                digest.update(content)
                file.write(content)
        return digest.hexdigest()

    @contextmanager
    def _contents(self, key: str, size: int) -> Iterator[Iterable[bytes]]:
        """Yield an object's bytes in pieces; where not all of them are taken, the rest is let go of."""
        if size > RANGE_BYTES:
            with closing(self.stream(key, 0, size, of=None, size=size)) as contents:
                yield contents
        else:
            yield self._ranges.get(key, self._place(key), 0, None, size=size)[0]

    def list(self, folder: str) -> Iterator[Listed]:
        """Yield every object whose key begins with `folder`, by key."""
        for page in self._pages(self._wire.client.get_paginator("list_objects_v2"), folder):
            for item in page.get("Contents", []):
                yield Listed(item["Key"].removeprefix(self._prefix), item["Size"], item["LastModified"])

    def folders(self) -> Iterator[str]:
        """Yield the names of the folders at the top."""
        for page in self._pages(self._wire.client.get_paginator("list_objects_v2"), "", Delimiter="/"):
            for item in page.get("CommonPrefixes", []):
                yield item["Prefix"].removeprefix(self._prefix).rstrip("/")

    def unfinished(self, folder: str) -> Iterator[Listed]:
        """Yield every upload in parts under `folder` that was begun and not ended."""
        for page in self._pages(self._wire.client.get_paginator("list_multipart_uploads"), folder):
            for item in page.get("Uploads", []):
                yield Listed(item["Key"].removeprefix(self._prefix), 0, item["Initiated"], item["UploadId"])

    def _pages(self, paginator: Any, folder: str, **how: str) -> Iterator[Any]:
        with self._wire.asking():
            yield from paginator.paginate(Bucket=self._name, Prefix=self._prefix + folder, **how)

    def delete(self, listed: Iterable[Listed]) -> None:
        """Delete objects and unfinished uploads."""
        keys = []
        for item in listed:
            if item.upload_id:
                with suppress(Taken), self._wire.asking(item.key):
                    self._wire.client.abort_multipart_upload(**self._place(item.key), UploadId=item.upload_id)
            else:
                keys.append(self._prefix + item.key)
        for start in range(0, len(keys), DELETED_AT_ONCE):
            some = keys[start : start + DELETED_AT_ONCE]
            with self._wire.asking():
                answer = self._wire.client.delete_objects(
                    Bucket=self._name, Delete={"Objects": [{"Key": key} for key in some], "Quiet": True}
                )
            for error in answer.get("Errors", []):
                raise Refused(f"s3://{self._name}/{error.get('Key')} could not be deleted: {error.get('Message')}")

    def _place(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._name, "Key": self._prefix + key}


def _condition(over: Stored | None) -> Mapping[str, Any]:
    return {"IfNoneMatch": "*"} if over is None else {"IfMatch": over.etag}
