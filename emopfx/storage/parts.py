"""Sends large files in parts, of which a bounded number are in memory and under way at once."""

import base64
import hashlib
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from itertools import count
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emopfx.storage.client import Wire
from emopfx.storage.s3_errors import OtherContent, Refused, Taken, Unavailable
from emopfx.storage.traffic import Paced

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, PartTypeDef

# How long parts are, unless there would be more of them than S3 allows.
PART_BYTES = 8 << 20
MOST_PARTS = 10_000


class Parts:
    """Sends files in parts.

    Args:
        wire: The bucket's.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        # Files go one after the other, so that one is soon whole, and S3 puts it together while the next one goes.
        self._turn = threading.Lock()

    def put(self, path: Path, key: str, place: dict[str, Any], sha256: str, condition: Mapping[str, Any]) -> str:
        """Write a large file as an object; of an upload that was broken off, only the rest is sent.

        Args:
            path: The file.
            key: Where it goes, for messages.
            place: Bucket and key as boto3 takes them.
            sha256: What its content must be (hex).
            condition: What must be so for the object to be written.

        Returns:
            What S3 has for a checksum of it (see `composite`).

        Raises:
            OtherContent: If the file has other content.
            Taken: If the condition is not met.
            Refused: If S3 does not take it.
            Unavailable: If S3 can't be used; the upload is gone on with at the next call.
            OSError: If the file can't be read.
        """
        if upload := self._continued(path, key, place):
            checksum = self._write(path, upload, sha256, condition)
            with self._wire.asking(key):
                head = self._wire.client.head_object(**place)
            if head["Metadata"].get("sha256") == sha256:
                return checksum
            # It was begun with a file that was partly alike, and still says that it is that one.
            condition = {"IfMatch": head["ETag"]}
        return self._write(path, self._begin(key, place, sha256), sha256, condition)

    def _write(self, path: Path, upload: "_Upload", sha256: str, condition: Mapping[str, Any]) -> str:
        """Send the parts that an upload lacks, and complete it; return its checksum."""
        try:
            digest, parts = self._send(path, upload)
            if digest != sha256:
                raise OtherContent(f"{upload.key} has other content than its checksum says")
            with self._wire.asking(upload.key):
                self._wire.client.complete_multipart_upload(
                    **upload.place, MultipartUpload={"Parts": parts}, **condition
                )
        except (OtherContent, Taken):
            self._abort(upload)
            raise
        return _of_parts([base64.b64decode(part["ChecksumSHA256"]) for part in parts])

    def _begin(self, key: str, place: dict[str, Any], sha256: str) -> "_Upload":
        with self._wire.asking(key):
            begun = self._wire.client.create_multipart_upload(
                **place, ChecksumAlgorithm="SHA256", Metadata={"sha256": sha256}
            )
        return _Upload(key, {**place, "UploadId": begun["UploadId"]}, {})

    def _continued(self, path: Path, key: str, place: dict[str, Any]) -> "_Upload | None":
        """Return the last upload of a file like this one that was broken off."""
        # Who may not list uploads can't go on with one.
        with suppress(Refused, Taken, FileNotFoundError), self._wire.asking(key):
            pages = self._wire.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=place["Bucket"], Prefix=place["Key"]
            )
            uploads = [upload for page in pages for upload in page.get("Uploads", [])]
            own = [one for one in uploads if (one["Key"], one.get("ChecksumAlgorithm")) == (place["Key"], "SHA256")]
            for upload in sorted(own, key=lambda one: one["Initiated"], reverse=True):
                begun = {**place, "UploadId": upload["UploadId"]}
                listed = self._wire.client.get_paginator("list_parts").paginate(**begun)
                parts = {part["PartNumber"]: part for page in listed for part in page.get("Parts", [])}
                # One part tells; nobody can read the metadata that it was begun with.
                if parts and _is_of(path, parts[min(parts)]):
                    return _Upload(key, begun, parts)
        return None

    def _send(self, path: Path, upload: "_Upload") -> "tuple[str, list[CompletedPartTypeDef]]":
        """Send a file's parts; return the SHA-256 of all that was read, and what completes the upload."""
        digest, sent, failed = hashlib.sha256(), list[Future["CompletedPartTypeDef"]](), threading.Event()
        step = part_bytes(path.stat().st_size)

        def done(part: "Future[CompletedPartTypeDef]") -> None:
            if part.cancelled() or part.exception():
                failed.set()
            self._wire.slots.release()

        try:
            with self._turn, path.open("rb") as file:
                for number in count(1):
                    self._wire.slots.acquire()
                    content = None if failed.is_set() else _next(file, step)
                    if not content:
                        self._wire.slots.release()
                        break
                    part = self._wire.pool.submit(self._send_part, upload, number, content)
                    part.add_done_callback(done)
                    sent.append(part)
                    digest.update(content)
        finally:
            if failed.is_set():
                for part in sent:
                    part.cancel()
            # A part that arrives after the upload has been given up would stay.
            wait(sent)
        for part in sent:
            if not part.cancelled() and (error := part.exception()):
                raise error
        return digest.hexdigest(), [part.result() for part in sent]

    def _send_part(self, upload: "_Upload", number: int, content: mmap) -> "CompletedPartTypeDef":
        checksum, there = _base64(hashlib.sha256(content)), upload.parts.get(number)
        if there and _is_same(there, content):
            self._wire.traffic.spend(0)
            return {"PartNumber": number, "ETag": there["ETag"], "ChecksumSHA256": checksum}
        reads: Any = content  # what Paced needs of a file
        body: Any = Paced(upload.key, reads, len(content), self._wire.traffic)
        with self._wire.asking(upload.key):
            part = self._wire.client.upload_part(
                **upload.place,
                PartNumber=number,
                Body=body,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=checksum,
            )
        return {"PartNumber": number, "ETag": part["ETag"], "ChecksumSHA256": checksum}

    def _abort(self, upload: "_Upload") -> None:
        with suppress(Taken, Refused, Unavailable, FileNotFoundError), self._wire.asking(upload.key):
            self._wire.client.abort_multipart_upload(**upload.place)


@dataclass(frozen=True)
class _Upload:
    """An upload in parts that was begun.

    Attributes:
        key: Where it goes, for messages.
        place: Bucket, key and the upload's id as boto3 takes them.
        parts: The parts that S3 has of it, by number.
    """

    key: str
    place: dict[str, Any]
    parts: "Mapping[int, PartTypeDef]"


def part_bytes(size: int) -> int:
    """Return how long the parts of a file of this size are."""
    return max(PART_BYTES, -(-size // MOST_PARTS))


def _next(file: BufferedReader, step: int) -> mmap | None:
    """Return the next part of a file, None at its end.

    It has memory of its own, which goes back as soon as it is sent: what a thread allocates otherwise stays with it.
    """
    length = min(step, os.fstat(file.fileno()).st_size - file.tell())
    if length <= 0:
        return None
    content = mmap(-1, length)
    file.readinto(content)
    return content


def composite(path: Path) -> tuple[str, str]:
    """Return a file's SHA-256 (hex), and what S3 has for a checksum of it once it was sent in parts."""
    whole, parts, step = hashlib.sha256(), list[bytes](), part_bytes(path.stat().st_size)
    with path.open("rb") as file:
        while content := file.read(step):
            whole.update(content)
            parts.append(hashlib.sha256(content).digest())
    return whole.hexdigest(), _of_parts(parts)


def _of_parts(digests: list[bytes]) -> str:
    """Return S3's checksum of an object, given its parts' SHA-256: that of all of these."""
    return _base64(hashlib.sha256(b"".join(digests)))


def _is_of(path: Path, part: "PartTypeDef") -> bool:
    """Whether a part that S3 has is of this file."""
    step = part_bytes(path.stat().st_size)
    with path.open("rb") as file:
        file.seek((part["PartNumber"] - 1) * step)
        return _is_same(part, file.read(step))


def _is_same(part: "PartTypeDef", content: bytes | mmap) -> bool:
    """Whether a part that S3 has is this content; without a checksum in the list, an ETag may be its MD5."""
    if part["Size"] != len(content):
        return False
    if checksum := part.get("ChecksumSHA256"):
        return checksum == _base64(hashlib.sha256(content))
    return part["ETag"].strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest()


def _base64(digest: "hashlib._Hash") -> str:
    return base64.b64encode(digest.digest()).decode()
