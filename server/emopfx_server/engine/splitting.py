"""Splitting a step's rows between its requests, in a thread of its own while the next step computes."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from emopfx_server.engine.capture import Capture, Layout, Slab


@dataclass(frozen=True)
class Share:
    """A request's part of a step's rows; see `Capture.take`."""

    capture: Capture
    row: int
    position: int
    token_ids: Sequence[int]


class Splitter:
    """Hands steps' rows to their requests, in order. At most one step waits for it, so memory stays bounded.

    Args:
        device: Where the rows are. From a GPU they are copied to pinned memory, on a stream beside the computation's.
    """

    def __init__(self, device: torch.device) -> None:
        self.last: Future[None] | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="splitter")

    def split(self, slab: Slab, layout: Layout, shares: Sequence[Share]) -> None:
        """Split a step's slab.

        Raises:
            Exception: What went wrong with the step before.
        """
        if self.last is not None:
            self.last.result()
        fetch = (lambda: slab) if self._stream is None else _start_copy(slab, self._stream)
        self.last = self._thread.submit(_split, fetch, layout, shares)

    def stop(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def _split(fetch: Callable[[], Slab], layout: Layout, shares: Sequence[Share]) -> None:
    slab = fetch()
    for share in shares:
        share.capture.take(slab, layout, share.row, share.position, share.token_ids)


def _start_copy(slab: Slab, stream: torch.cuda.Stream) -> Callable[[], Slab]:
    """Begin to copy a slab to the host; the call that is returned waits until it is there."""
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        host = {
            width: torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)
            for width, rows in slab.items()
        }
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record(stream)
    for rows in slab.values():
        rows.record_stream(stream)  # its memory is given to nobody else before it is copied

    def fetch() -> Slab:
        copied.synchronize()
        return host

    return fetch
