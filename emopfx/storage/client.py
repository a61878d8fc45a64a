"""boto3's client of an S3 service."""

from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from emopfx.errors import InputError
from emopfx.storage.traffic import CHUNK_BYTES

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest
    from mypy_boto3_s3 import S3Client

# How many requests are under way at once; threads that read ahead of others add as many.
WORKERS = 16
# botocore's pauses grow, but are short: who must outlast an outage calls again (see `parallel.patiently`).
ATTEMPTS = 6


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
