"""Does one thing to many items at once, until all are done or S3 is gone."""

import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from emopfx.errors import RunError
from emopfx.progress import Progress, say
from emopfx.storage.client import WORKERS
from emopfx.storage.s3_errors import Away, Unavailable
from emopfx.storage.traffic import Traffic

Item = TypeVar("Item")
Result = TypeVar("Result")

# Seconds to wait, again and again, for a service that went away.
PAUSES = (5.0, 15.0)
# Between two looks at how many bytes have been moved, where no item gets done.
TICK_SECONDS = 1.0


def for_each(label: str, items: Mapping[str, Item], work: Callable[[Item], None], traffic: Traffic) -> dict[str, str]:
    """Call `work` with every item, in threads.

    An item that fails costs no other one. Where S3 itself fails, no further item is begun; what is left is tried again
    after a while if S3 may be back by then.

    Args:
        label: Names the progress.
        items: The items by key.
        work: What is done; it may raise RunError and OSError.
        traffic: Counts the bytes that it moves, and is stopped where this is.

    Returns:
        By key, why each item is not done; in the items' order.
    """
    before = traffic.bytes
    with Progress(label, len(items), moved=lambda: traffic.bytes - before) as progress:
        failures, left, back = _try(items, work, progress, traffic)
        for pause in PAUSES:
            if not (left and back):
                break
            say(f"{label}: {next(iter(left.values()))}; {len(left)} are tried again in {pause:.0f} s")
            time.sleep(pause)
            more, left, back = _try({key: items[key] for key in left}, work, progress, traffic)
            failures |= more
    failures |= left
    return {key: failures[key] for key in items if key in failures}


def _try(
    items: Mapping[str, Item], work: Callable[[Item], None], progress: Progress, traffic: Traffic
) -> tuple[dict[str, str], dict[str, str], bool]:
    """Return why items failed, why others were left when S3 did, and whether S3 may come back."""
    failures: dict[str, str] = {}
    left: dict[str, str] = {}
    back = True
    pool = ThreadPoolExecutor(WORKERS, "s3-item")
    try:
        futures = {pool.submit(work, item): key for key, item in items.items()}
        for future in _as_done(futures, lambda: progress.update(progress.done)):
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
    except BaseException:
        # What is under way ends in the middle of a file, and is not waited for: S3 may never answer.
        traffic.stop()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return failures, left, back


def _as_done(futures: Iterable[Future[None]], tick: Callable[[], None]) -> Iterator[Future[None]]:
    """Yield futures as they are done, and call `tick` every so often in between."""
    done: queue.SimpleQueue[Future[None]] = queue.SimpleQueue()
    waited_for = set(futures)
    for future in waited_for:
        future.add_done_callback(done.put)
    while waited_for:
        try:
            future = done.get(timeout=TICK_SECONDS)
        except queue.Empty:
            tick()
        else:
            waited_for.remove(future)
            yield future


def patiently(label: str, call: Callable[[], Result]) -> Result:
    """Call something, again after a while if S3 is away.

    Args:
        label: Begins what is said of it.
        call: What may raise Away.
    """
    for pause in PAUSES:
        try:
            return call()
        except Away as error:
            say(f"{label}: {error}; it is tried again in {pause:.0f} s")
            time.sleep(pause)
    return call()


@contextmanager
def all_or_listed(label: str, items: Iterable[str], where: str) -> Iterator[None]:
    """Say of all items that they are not done if S3 fails before any of them is begun.

    Raises:
        RunError: If it does.
    """
    try:
        yield
    except Unavailable as error:
        failures = dict.fromkeys(items, "not tried")
        failures |= {key: str(error) for key in list(failures)[:1]}
        report(label, failures, len(failures), where)
        raise


def report(label: str, failures: Mapping[str, str], total: int, where: str) -> None:
    """Say which items are not done, and why.

    Args:
        label: Begins the message.
        failures: By key, why each is not done.
        total: How many there are.
        where: What is true of those that failed, such as "are not in s3://bucket".

    Raises:
        RunError: If there are any.
    """
    if failures:
        lines = "\n".join(f"  {key}: {reason}" for key, reason in failures.items())
        raise RunError(f"{label}: {len(failures)} of {total} {where}; run it again to go on:\n{lines}")
