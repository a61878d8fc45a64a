"""Sends the files of requests to a bucket, and names them in its manifest, while others are still being made."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any

from emopfx.errors import InputError, RunError
from emopfx.layout import Layout
from emopfx.storage import manifest
from emopfx.storage.client import WORKERS
from emopfx.storage.manifest import Manifest
from emopfx.storage.s3 import Bucket
from emopfx.storage.sender import Sender

PUBLISH_SECONDS = 30.0


class Courier:
    """Takes requests as they are completed; use it as a context manager.

    Args:
        bucket: Where they go.
        layout: Their experiment.
    """

    def __init__(self, bucket: Bucket, layout: Layout) -> None:
        self._bucket, self._layout = bucket, layout
        self._sender = Sender(bucket, layout.root, set(), replace=False)
        self._pool = ThreadPoolExecutor(WORKERS, "s3-push")
        self._arrived: Manifest = {}
        self._next, self._lock = time.monotonic() + PUBLISH_SECONDS, threading.Lock()

    def __enter__(self) -> "Courier":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._bucket.traffic.stop()
        # Who stops does not wait for S3, which may never answer.
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def take(self, entry: dict[str, Any]) -> None:
        """Send the files of a request soon, given its entry in the manifest."""
        self._pool.submit(self._send, entry)

    def _send(self, unchecked: dict[str, Any]) -> None:
        key = str(unchecked["save_dir"]).removeprefix(self._layout.save_dir("")).rpartition("/")[0]
        entry = manifest.checked({key: unchecked}, self._layout.name, "the server's answer")[key]
        self._sender.send_entry(entry)
        with self._lock:
            self._arrived[key] = manifest.in_bucket(entry, self._bucket, self._sender.checksums)
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + PUBLISH_SECONDS
            arrived = self._arrived.copy()
        # Who is late publishes all that have arrived by then.
        with suppress(InputError, RunError):
            manifest.publish(self._bucket, self._layout.name, arrived)
