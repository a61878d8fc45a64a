"""How many bytes went over the wire, and how many may in a second."""

import threading
import time


class Traffic:
    """Counts the bytes that are moved, and keeps them below a limit (bytes a second), if there is one."""

    def __init__(self, limit: float | None = None) -> None:
        self.bytes = 0
        self._limit, self._free_at, self._lock = limit, 0.0, threading.Lock()

    def spend(self, count: int) -> None:
        """Wait until so many more bytes may be moved, and count them."""
        with self._lock:
            self.bytes += count
            if self._limit is None:
                return
            now = time.monotonic()
            pause = max(0.0, self._free_at - now)
            self._free_at = now + pause + count / self._limit
        time.sleep(pause)
