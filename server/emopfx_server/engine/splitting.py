"""Handing steps' rows to their requests, in a thread of its own while later steps compute.

Rows of several steps are gathered in one slab before they are handed over: to hand over one row at a time would keep
the interpreter from the step that computes.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from emopfx_server.engine.capture import Capture, Reading, Slab
from emopfx_server.engine.model import Site

SLAB_ROWS = 512
"""How many rows a slab has; a step that has more gets one of its own."""


@dataclass(frozen=True)
class Share:
    """A request's part of a step's rows: those from ``row``, whose tokens stand from ``position`` in its sequence."""

    capture: Capture
    row: int
    position: int
    token_ids: Sequence[int]


@dataclass
class _Run:
    """Rows of a slab that are one request's, and follow one another in its sequence; see `Capture.take`."""

    rows: list[int]
    position: int
    token_ids: list[int]


@dataclass
class _Window:
    """A slab that steps read into, one after the other."""

    reading: Reading
    slab: Slab
    room: int
    filled: int = 0


class Splitter:
    """Hands rows over in order. At most one slab waits for it while the next is filled, so memory stays bounded.

    Args:
        device: Where the rows are. From a GPU they are copied to pinned memory, on a stream beside the computation's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._window: _Window | None = None
        self._runs: dict[Capture, list[_Run]] = {}
        self._last: Future[None] | None = None
        self._lock = threading.Lock()  # a request comes for its rows from another thread than steps do
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="splitter")
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._read = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def room(self, reading: Reading, rows: int) -> Mapping[Site, torch.Tensor]:
        """Where a step is to read its rows into: for each site a tensor ``[rows, width]``.

        Raises:
            Exception: What went wrong when rows were handed over.
        """
        if (last := self._last) is not None and last.done():
            last.result()
        window = self._window
        if window is None or window.reading != reading or window.room - window.filled < rows:
            window = self._open(reading, max(rows, SLAB_ROWS))
        here = slice(window.filled, window.filled + rows)
        return {site: reading.layout.view(window.slab, site)[here] for site in reading.layout.sites}

    def note(self, rows: int, shares: Sequence[Share]) -> None:
        """Say whose the rows are that a step has read into its room."""
        window = self._window
        assert window is not None
        with self._lock:
            for share in shares:
                if share.capture.given_up:
                    continue
                first = window.filled + share.row
                runs = self._runs.setdefault(share.capture, [])
                if not runs or share.position != runs[-1].position + len(runs[-1].token_ids):
                    runs.append(_Run([], share.position, []))
                runs[-1].rows.extend(range(first, first + len(share.token_ids)))
                runs[-1].token_ids.extend(share.token_ids)
            window.filled += rows
            if self._read is not None:
                self._read.record()
            if window.filled == window.room:
                self._hand_over_all()
                self._window = None

    def finish(self, capture: Capture) -> Future[None]:
        """Begin to hand over what is left of a request's rows. The future tells when it has all of them."""
        with self._lock:
            return self._hand_over({capture: self._runs.pop(capture, [])})

    def drop(self, capture: Capture) -> None:
        """Forget the rows of a request that nobody waits for any more, those of a step under way too."""
        with self._lock:
            capture.given_up = True
            self._runs.pop(capture, None)

    def stop(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _open(self, reading: Reading, rows: int) -> _Window:
        if self._last is not None:
            self._last.result()
        window = _Window(reading, reading.layout.allocate(rows, reading.dtype, self._device), rows)
        with self._lock:
            self._hand_over_all()
            self._window = window
        return window

    def _hand_over_all(self) -> None:
        runs, self._runs = self._runs, {}
        self._hand_over(runs)

    def _hand_over(self, runs: dict[Capture, list[_Run]]) -> Future[None]:
        self._last = self._thread.submit(self._take, self._last, self._window, runs)
        return self._last

    def _take(self, before: Future[None] | None, window: _Window | None, runs: dict[Capture, list[_Run]]) -> None:
        if before is not None:
            before.result()  # whoever waits for rows hears of it when some were lost
        if window is None:
            return
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            if self._stream is not None and self._read is not None:
                self._stream.wait_event(self._read)
            for capture, own in runs.items():
                for run in own:
                    capture.take(window.slab, window.reading.layout, run.rows, run.position, run.token_ids)
