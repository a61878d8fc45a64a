"""How many bytes went over the wire, how many may in a second, and whether any more may at all."""

import io
import threading
import time

# Bytes that are moved at a time: few enough to keep a limit and to stop soon, many enough to cost little.
CHUNK_BYTES = 1 << 17


class Stopped(BaseException):
    """No more bytes may be moved. As it is no Exception, nothing on its way repeats a request because of it."""


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


class Paced(io.BytesIO):
    """Content to send, of which each piece waits for its turn."""

    def __init__(self, content: bytes, traffic: Traffic) -> None:
        super().__init__(content)
        self._traffic = traffic

    def read(self, size: int | None = -1) -> bytes:
        """Return the next piece; urllib3 asks for 16 KiB, but sends what it gets, and larger pieces cost less."""
        piece = super().read(CHUNK_BYTES if size and size > 0 else size)
        self._traffic.spend(len(piece))
        return piece
