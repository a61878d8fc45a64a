"""What people see while a stage works: a bar on a terminal, a few plain lines in a log."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

# Results go to standard output, everything else to standard error.
console = Console(stderr=True, highlight=False, soft_wrap=True)

LINE_SECONDS = 10.0
LINE_SHARE = 0.05


def say(message: str) -> None:
    """Print one line for people, above a bar that may be running."""
    console.print(message, markup=False)


def show_table(console: Console, table: Table) -> None:
    """Print a table of short cells, wider than the console where they would be cut otherwise."""
    wide = console.options.update(max_width=1000)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


class Progress:
    """Counts the items of one stage; use it as a context manager.

    Args:
        label: What is counted, the first word of every line.
        total: How many items there are; 0 shows nothing until `expect` says more.
        done: How many of them were there before; the rate leaves them out.
        moved: Returns how many bytes have been moved, where that is worth showing.
    """

    def __init__(self, label: str, total: int, done: int = 0, moved: Callable[[], int] | None = None) -> None:
        self.label, self.total, self.done, self.failed = label, total, done, 0
        self._moved = moved
        self._before = done
        self._start = self._last_time = time.monotonic()
        self._last_done = done
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=total, completed=done, note="", visible=total > 0)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def expect(self, total: int) -> None:
        """Set how many items there are, where that was not known before."""
        self.total = total
        self._bar.update(self._task, total=total, visible=total > 0)

    def advance(self, *, failed: bool = False) -> None:
        """Count one more item as done, or as failed."""
        self.failed += failed
        self.update(self.done + (not failed))

    def update(self, done: int) -> None:
        """Set how many items are done, and show it where it is time to."""
        self.done = done
        now = time.monotonic()
        self._bar.update(self._task, completed=done, note=self._note(now - self._start))
        moved = done - self._last_done >= LINE_SHARE * self.total
        waited = now - self._last_time
        due = waited >= LINE_SECONDS or (moved and waited >= 1) or done == self.total
        if due and not console.is_terminal:
            self._last_time, self._last_done = now, done
            say(self.line(now - self._start))

    def line(self, seconds: float) -> str:
        """Return the progress as one plain line, given how long the stage has worked."""
        rate = (self.done - self._before) / seconds if seconds > 0 else 0.0
        left = self.total - self.done - self.failed
        eta = _duration(left / rate) if rate > 0 else "?"
        share = 100 * self.done / self.total if self.total else 100.0
        count = f"{self.label} {self.done}/{self.total} {share:.1f}%"
        speed = f" {self._speed(seconds)}" if self._moved else ""
        return f"{count} {60 * rate:.1f}/min{speed} failed={self.failed} eta={eta}"

    def _note(self, seconds: float) -> str:
        notes = [self._speed(seconds)] if self._moved else []
        return " ".join(notes + [f"failed={self.failed}"] * (self.failed > 0))

    def _speed(self, seconds: float) -> str:
        moved = self._moved() if self._moved else 0
        return f"{moved / 1e6 / seconds if seconds > 0 else 0:.1f}MB/s"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"
