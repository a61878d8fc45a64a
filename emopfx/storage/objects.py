"""What S3 says of the objects that it has."""

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef


@dataclass(frozen=True)
class Stored:
    """One object, as an answer describes it.

    Attributes:
        bytes: Its size.
        sha256: The SHA-256 of its content (hex), None if it was not written by `Bucket.put`.
        etag: Names this content.
        checksum: The SHA-256 that S3 itself has found (base64), "" if it has none; of an object in parts, of the
            parts' checksums.
    """

    bytes: int
    sha256: str | None
    etag: str
    checksum: str

    @classmethod
    def of(cls, answer: "HeadObjectOutputTypeDef | GetObjectOutputTypeDef", size: int) -> "Stored":
        """Return what an answer says of an object of this size."""
        # Behind that of an object in parts, some say how many they are.
        checksum = answer.get("ChecksumSHA256", "").partition("-")[0]
        stored = cls(size, answer["Metadata"].get("sha256"), answer["ETag"], checksum)
        if stored.in_parts or not stored.checksum:
            return stored
        return cls(size, base64.b64decode(stored.checksum).hex(), stored.etag, stored.checksum)

    @property
    def in_parts(self) -> bool:
        """Whether it was sent in parts: then its ETag has their number."""
        return "-" in self.etag


@dataclass(frozen=True)
class Listed:
    """An object, or an unfinished upload of one (with its id), as listings name it."""

    key: str
    bytes: int
    changed: datetime
    upload_id: str = ""
