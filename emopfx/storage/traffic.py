"""How many bytes went over the wire, how many may in a second, and whether any more may at all."""

import hashlib
import threading
import time
from typing import BinaryIO

from emopfx.storage.s3_errors import OtherContent

# Bytes that are moved at a time: few enough to keep a limit and to stop soon, many enough to cost little.
CHUNK_BYTES = 1 << 17


class Stopped(BaseException):
    """No more bytes may be moved. As it is no Exception, nothing on its way repeats a request because of it."""


class NotSent(BaseException):
    """What is being sent can't be, for a reason of its own. No Exception either: it would be the same again.

    Attributes:
        error: Why.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Traffic:
    """Counts the bytes that are moved, and keeps them below a limit (bytes a second), if there is one."""

    def __init__(self, limit: float | None = None) -> None:
        self.bytes = 0
        self._limit, self._free_at, self._lock = limit, 0.0, threading.Lock()
        self._stopped = threading.Event()

    @property
    def stopped(self) -> bool:
        """Whether no more bytes are let through."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Let no more bytes through."""
        self._stopped.set()

    def spend(self, count: int) -> None:
        """Wait until so many more bytes may be moved, and count them.

        Raises:
            Stopped: If `stop` was called.
        """
        if self._stopped.wait(self._pause(count)):
            raise Stopped
        with self._lock:
            self.bytes += count

    def _pause(self, count: int) -> float:
        if self._limit is None:
            return 0
        with self._lock:
            now = time.monotonic()
            pause = max(0.0, self._free_at - now)
            self._free_at = now + pause + count / self._limit
        return pause


class Paced:
    """What is sent of a file, of which each piece waits for its turn.

    Args:
        key: Where it goes, for messages.
        file: The file, of which nobody else reads.
        length: How many bytes are sent.
        traffic: Counts them.
        sha256: What they must be (hex): otherwise the last piece is never sent. None if they need not be checked.
    """

    def __init__(self, key: str, file: BinaryIO, length: int, traffic: Traffic, sha256: str | None = None) -> None:
        self._key, self._file, self._length, self._traffic, self._sha256 = key, file, length, traffic, sha256
        self.seek(0)

    def __len__(self) -> int:
        return self._length

    def seek(self, start: int) -> None:
        """Go back to the start, 0, as who sends it again does."""
        self._file.seek(start)
        self._left, self._digest = self._length, hashlib.sha256()

    def read(self, size: int) -> bytes:
        """Return the next piece; urllib3 asks for 16 KiB, but sends what it gets, and larger pieces cost less.

        Raises:
            NotSent: If the file can't be read, or its bytes are not what they must be.
        """
        try:
            piece = self._file.read(min(CHUNK_BYTES, self._left))
        except OSError as error:
            raise NotSent(error) from None
        self._left -= len(piece)
        if not self._is_right(piece):
            raise NotSent(OtherContent(f"{self._key} has other content than its checksum says"))
        self._traffic.spend(len(piece))
        return piece

    def _is_right(self, piece: bytes) -> bool:
        """Whether the bytes up to the end of a piece may be what they must be."""
        if self._sha256 is None:
            return True
        self._digest.update(piece)
        return bool(piece) if self._left else self._digest.hexdigest() == self._sha256
