"""One S3 bucket: objects go in and out with their SHA-256, in parallel parts, and never one over another unseen.

Credentials are found by boto3's own chain (environment, profile, service account) and stay inside it.
"""

import base64
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import HTTPClientError, IncompleteReadError

from emopfx import hashing
from emopfx.config import S3_URI_PATTERN
from emopfx.errors import InputError
from emopfx.storage.s3_errors import BrokenOff, OtherContent, Taken, Unavailable, explained
from emopfx.storage.traffic import Traffic

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

# Up to this size an object goes in one piece. A larger one goes in parts, at most as many as S3 allows.
PART_BYTES = 8 << 20
MOST_PARTS = 10_000
# Threads that each hold at most one part.
WORKERS = 16
# With growing pauses, this lasts over a quarter of a minute of failures.
ATTEMPTS = 6
DELETED_AT_ONCE = 1000


@dataclass(frozen=True)
class Stored:
    """What the bucket says of an object; `sha256` (hex) is None if it was not written by `Bucket.put`."""

    bytes: int
    sha256: str | None
    etag: str


@dataclass(frozen=True)
class Listed:
    """An object, or an unfinished upload of one (with its id), as listings name it."""

    key: str
    bytes: int
    changed: datetime
    upload_id: str = ""


class Bucket:
    """A place in a bucket, under which keys are; use it as a context manager.

    Args:
        uri: s3://bucket or s3://bucket/prefix.
        endpoint_url: Address of the service, if it is not AWS or is not named by boto3's own settings.
        bandwidth: Most bytes a second, if there is a limit.

    Raises:
        InputError: If the URI is none.
    """

    def __init__(self, uri: str, endpoint_url: str | None = None, bandwidth: float | None = None) -> None:
        if not S3_URI_PATTERN.fullmatch(uri):
            raise InputError(f"an S3 URI is s3://bucket or s3://bucket/prefix, got {uri!r}")
        self.root = uri.rstrip("/")
        self._name, _, prefix = self.root.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self.traffic = Traffic(bandwidth)
        config = Config(
            retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS},
            max_pool_connections=2 * WORKERS,
            connect_timeout=10,
            read_timeout=60,
            # Content is compared with the manifest's checksums, however it was written.
            response_checksum_validation="when_required",
            # Every body goes with its checksum, which is signed: to sign the body too would only hash it once more.
            s3={"payload_signing_enabled": False},
        )
        with self._asking():
            self._client: S3Client = boto3.Session().client("s3", endpoint_url=endpoint_url, config=config)
        self._parts = ThreadPoolExecutor(WORKERS, "s3-part")
        self._slots = threading.BoundedSemaphore(WORKERS)

    def __enter__(self) -> "Bucket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.shutdown(cancel_futures=True)
        self._client.close()

    def uri(self, key: str) -> str:
        """Return the URI of a key."""
        return f"{self.root}/{key}"

    def stored(self, key: str) -> Stored | None:
        """Return what the bucket says of an object, None if there is none."""
        try:
            with self._asking(key):
                head = self._client.head_object(Bucket=self._name, Key=self._prefix + key, ChecksumMode="ENABLED")
        except FileNotFoundError:
            return None
        # Of an object in parts, whose ETag has their number, S3's own checksum is one of the parts' checksums.
        own = "" if "-" in head["ETag"] else head.get("ChecksumSHA256", "")
        sha256 = base64.b64decode(own).hex() if own else head["Metadata"].get("sha256")
        return Stored(head["ContentLength"], sha256, head["ETag"])

    def put(self, path: Path, key: str, sha256: str, over: Stored | None = None) -> None:
        """Write a file as an object that nobody else has written in the meantime.

        The bytes are hashed as they are sent: S3 refuses what changed on the way, and nothing is kept if they are
        not what `sha256` says.

        Args:
            path: The file.
            key: Where it goes.
            sha256: What its content must be (hex).
            over: The object that it replaces; without it, there must be none.

        Raises:
            OtherContent: If the file has other content.
            Taken: If there is another object than `over`.
            Unavailable: If S3 fails, or refuses.
            OSError: If the file can't be read.
        """
        size = path.stat().st_size
        if size > PART_BYTES:
            self._put_parts(path, size, key, sha256, over)
        else:
            self.put_bytes(path.read_bytes(), key, sha256, over)

    def put_bytes(self, content: bytes, key: str, sha256: str | None = None, over: Stored | None = None) -> None:
        """Write an object of at most `PART_BYTES` (see `put`)."""
        digest = hashlib.sha256(content)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise OtherContent(f"{key} has other content than its checksum says")
        self.traffic.spend(len(content))
        with self._asking():
            self._client.put_object(
                Bucket=self._name,
                Key=self._prefix + key,
                Body=content,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
                Metadata={"sha256": digest.hexdigest()},
                **_condition(over),
            )

    def _put_parts(self, path: Path, size: int, key: str, sha256: str, over: Stored | None) -> None:
        place: dict[str, Any] = {"Bucket": self._name, "Key": self._prefix + key}
        with self._asking():
            upload = self._client.create_multipart_upload(
                **place, ChecksumAlgorithm="SHA256", Metadata={"sha256": sha256}
            )
        place["UploadId"] = upload["UploadId"]
        sent: list[Future[CompletedPartTypeDef]] = []
        try:
            if self._send_parts(path, size, place, sent) != sha256:
                raise OtherContent(f"{key} has other content than its checksum says")
            parts = [part.result() for part in sent]
            with self._asking():
                self._client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts}, **_condition(over))
        except BaseException as error:
            for part in sent:
                part.cancel()
            # A part that arrives after the upload has been given up would stay.
            wait(sent)
            if not isinstance(error, Unavailable):
                with suppress(Taken, Unavailable), self._asking():
                    self._client.abort_multipart_upload(**place)
            raise

    def _send_parts(
        self, path: Path, size: int, place: dict[str, Any], sent: list["Future[CompletedPartTypeDef]"]
    ) -> str:
        """Hand a file's parts to the threads; return the SHA-256 of all that was read."""
        part_bytes = max(PART_BYTES, -(-size // MOST_PARTS))
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while True:
                self._slots.acquire()
                content = file.read(part_bytes)
                if not content:
                    self._slots.release()
                    return digest.hexdigest()
                part = self._parts.submit(self._send_part, place, len(sent) + 1, content)
                part.add_done_callback(lambda _: self._slots.release())
                sent.append(part)
                digest.update(content)

    def _send_part(self, place: dict[str, Any], number: int, content: bytes) -> "CompletedPartTypeDef":
        checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
        self.traffic.spend(len(content))
        with self._asking():
            part = self._client.upload_part(
                **place, PartNumber=number, Body=content, ChecksumAlgorithm="SHA256", ChecksumSHA256=checksum
            )
        return {"PartNumber": number, "ETag": part["ETag"], "ChecksumSHA256": checksum}

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes, or `length` of them from `start` on, fewer where it ends.

        Raises:
            FileNotFoundError: If there is no such object.
            Unavailable: If S3 fails, or refuses.
        """
        if length == 0:
            return b""
        wanted: Any = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        for attempt in range(1, ATTEMPTS):
            try:
                return self._get(key, wanted)
            except BrokenOff:
                time.sleep(min(10.0, 0.1 * 2**attempt))
        return self._get(key, wanted)

    def _get(self, key: str, wanted: Any) -> bytes:
        try:
            with self._asking(key):
                body = self._client.get_object(Bucket=self._name, Key=self._prefix + key, **wanted)["Body"]
        except EOFError:
            return b""
        # botocore repeats a request that fails, but not one whose answer breaks off.
        try:
            content = body.read()
        except (HTTPClientError, IncompleteReadError) as error:
            raise BrokenOff(f"{self.root}: {error}") from None
        self.traffic.spend(len(content))
        return content

    def sha256(self, key: str, size: int) -> str:
        """Read an object of `size` bytes and return the SHA-256 of its content (hex)."""
        digest = hashlib.sha256()
        for start in range(0, size, PART_BYTES):
            digest.update(self.read(key, start, min(PART_BYTES, size - start)))
        return digest.hexdigest()

    def fetch(self, key: str, path: Path, size: int) -> str:
        """Write an object of `size` bytes to a file, in parallel parts.

        Returns:
            The SHA-256 of its content (hex).

        Raises:
            FileNotFoundError: If there is no such object.
            Unavailable: If S3 fails, or refuses.
            OSError: If the file can't be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if size <= PART_BYTES:
            content = self.read(key)
            path.write_bytes(content)
            return hashlib.sha256(content).hexdigest()
        with path.open("wb") as file:
            file.truncate(size)
            starts = range(0, size, PART_BYTES)
            parts = [self._parts.submit(self._fetch_part, key, file.fileno(), start, size) for start in starts]
            try:
                for part in parts:
                    part.result()
            finally:
                # The file must outlive the threads that write to it.
                for part in parts:
                    part.cancel()
                wait(parts)
        return hashing.file_sha256(path)

    def _fetch_part(self, key: str, file: int, start: int, size: int) -> None:
        os.pwrite(file, self.read(key, start, min(PART_BYTES, size - start)), start)

    def list(self, folder: str) -> Iterator[Listed]:
        """Yield every object whose key begins with `folder`, by key."""
        with self._asking():
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._name, Prefix=self._prefix + folder
            ):
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(self._prefix)
                    yield Listed(key, item["Size"], item["LastModified"])

    def folders(self) -> Iterator[str]:
        """Yield the names of the folders at the top."""
        with self._asking():
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._name, Prefix=self._prefix, Delimiter="/"
            ):
                for item in page.get("CommonPrefixes", []):
                    yield item["Prefix"].removeprefix(self._prefix).rstrip("/")

    def unfinished(self, folder: str) -> Iterator[Listed]:
        """Yield every upload in parts under `folder` that was begun and not ended."""
        with self._asking():
            for page in self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._name, Prefix=self._prefix + folder
            ):
                for item in page.get("Uploads", []):
                    key = item["Key"].removeprefix(self._prefix)
                    yield Listed(key, 0, item["Initiated"], item["UploadId"])

    def delete(self, listed: Iterable[Listed]) -> None:
        """Delete objects and unfinished uploads."""
        keys = []
        for item in listed:
            if item.upload_id:
                with self._asking():
                    self._client.abort_multipart_upload(
                        Bucket=self._name, Key=self._prefix + item.key, UploadId=item.upload_id
                    )
            else:
                keys.append(self._prefix + item.key)
        for start in range(0, len(keys), DELETED_AT_ONCE):
            some = keys[start : start + DELETED_AT_ONCE]
            with self._asking():
                answer = self._client.delete_objects(
                    Bucket=self._name, Delete={"Objects": [{"Key": key} for key in some], "Quiet": True}
                )
            for error in answer.get("Errors", []):
                raise Unavailable(f"s3://{self._name}/{error.get('Key')} could not be deleted: {error.get('Message')}")

    def _asking(self, key: str = "") -> AbstractContextManager[None]:
        return explained(self.root, key)


def _condition(over: Stored | None) -> dict[str, Any]:
    return {"IfNoneMatch": "*"} if over is None else {"IfMatch": over.etag}
