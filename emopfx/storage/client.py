"""boto3's client of an S3 service, and what all that is asked of one bucket shares."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import BoundedSemaphore
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from emopfx.errors import InputError
from emopfx.storage.s3_errors import explained
from emopfx.storage.traffic import CHUNK_BYTES, Traffic

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from mypy_boto3_s3 import S3Client

# How many requests are under way at once; those of pieces of large files add as many.
WORKERS = 16
# botocore's pauses grow, but are short: who must outlast an outage calls again (see `parallel.patiently`).
ATTEMPTS = 6


@dataclass(frozen=True)
class Wire:
    """What all that is asked of a bucket shares.

    Attributes:
        client: boto3's.
        root: The URI under which keys are, for messages.
        traffic: Counts what is moved.
        pool: Moves the pieces of large files.
        slots: One for each of these pieces that may be in memory.
    """

    client: "S3Client"
    root: str
    traffic: Traffic
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WORKERS, "s3-piece"))
    slots: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(WORKERS))

    def asking(self, key: str = "") -> AbstractContextManager[None]:
        """Raise what goes wrong as one sentence about a key (see `explained`)."""
        return explained(self.root, key)

    def close(self) -> None:
        """Begin nothing more, and wait for what is under way, unless all is stopped."""
        self.pool.shutdown(wait=not self.traffic.stopped, cancel_futures=True)
        self.client.close()


def connect(endpoint_url: str | None) -> "S3Client":
    """Return a client, which finds its credentials by itself.

    Args:
        endpoint_url: Address of the service, if it is not AWS or is not named by boto3's own settings.

    Raises:
        InputError: If the address in boto3's own settings is none.
    """
    config = Config(
        retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS},
        max_pool_connections=2 * WORKERS,
        # Also how long S3 may take nothing more of what is being sent.
        connect_timeout=20,
        read_timeout=60,
        # Content is compared with the manifest's checksums, however it was written.
        response_checksum_validation="when_required",
        # Every body goes with its checksum, which is signed: to sign the body too would only hash it once more.
        s3={"payload_signing_enabled": False},
    )
    try:
        client = boto3.Session().client("s3", endpoint_url=endpoint_url, config=config)
    except ValueError:
        raise InputError("the address of S3 in boto3's own settings is none") from None
    client.meta.events.register("before-send.s3.PutObject", _send_at_once)
    return client


def _send_at_once(request: "AWSPreparedRequest", **_: object) -> None:
    """Do not ask first whether something small may be sent, as botocore does for all: that takes about as long."""
    if int(request.headers["Content-Length"]) <= CHUNK_BYTES and "Expect" in request.headers:
        del request.headers["Expect"]
