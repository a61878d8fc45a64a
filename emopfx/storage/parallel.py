"""Does one thing to many items at once, until all are done or S3 is gone."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from emopfx.errors import RunError
from emopfx.progress import Progress, say
from emopfx.storage.s3 import WORKERS
from emopfx.storage.s3_errors import Away, Unavailable
from emopfx.storage.traffic import Traffic

Item = TypeVar("Item")

# Seconds to wait, again and again, for a service that went away.
PAUSES = (5.0, 15.0)


def for_each(label: str, items: Mapping[str, Item], work: Callable[[Item], None], traffic: Traffic) -> dict[str, str]:
    """Call `work` with every item, in threads.

    An item that fails costs no other one. Where S3 itself fails, no further item is begun; what is left is tried again
    after a while if S3 may be back by then.

    Args:
        label: Names the progress.
        items: The items by key.
        work: What is done; it may raise RunError and OSError.
        traffic: Counts the bytes that it moves.

    Returns:
        By key, why each item is not done; in the items' order.
    """
    before = traffic.bytes
    with Progress(label, len(items), moved=lambda: traffic.bytes - before) as progress:
        failures, left, back = _try(items, work, progress)
        for pause in PAUSES:
            if not (left and back):
                break
            say(f"{label}: {next(iter(left.values()))}; the other {len(left)} are tried again in {pause:.0f} s")
            time.sleep(pause)
            more, left, back = _try({key: items[key] for key in left}, work, progress)
            failures |= more
    failures |= left
    return {key: failures[key] for key in items if key in failures}


def _try(
    items: Mapping[str, Item], work: Callable[[Item], None], progress: Progress
) -> tuple[dict[str, str], dict[str, str], bool]:
    """Return why items failed, why others were left when S3 did, and whether S3 may come back."""
    failures: dict[str, str] = {}
    left: dict[str, str] = {}
    back = True
    pool = ThreadPoolExecutor(WORKERS, "s3-item")
    try:
        futures = {pool.submit(work, item): key for key, item in items.items()}
        for future in as_completed(futures):
            error = None if future.cancelled() else future.exception()
            if isinstance(error, Unavailable):
                left[futures[future]] = str(error)
                back &= isinstance(error, Away)
                for other in futures:
                    other.cancel()
            elif isinstance(error, RunError | OSError):
                failures[futures[future]] = str(error)
                progress.advance(failed=True)
            elif error is not None:
                raise error
            elif not future.cancelled():
                progress.advance()
        left |= {futures[future]: "not tried" for future in futures if future.cancelled()}
    finally:
        pool.shutdown(cancel_futures=True)
    return failures, left, back


def report(label: str, failures: Mapping[str, str], total: int, place: str) -> None:
    """Say which items are not done, and why.

    Raises:
        RunError: If there are any.
    """
    if failures:
        lines = "\n".join(f"  {key}: {reason}" for key, reason in failures.items())
        raise RunError(f"{label}: {len(failures)} of {total} are not in {place}; run it again to go on:\n{lines}")
